"""Did the machine become faster or slower while it was measured? The seasonal Kendall test and Sen's slope.

The same work is compared with itself at different times, so neither what the work was nor a few wild values
matter. Source: Hirsch, Slack and Smith, Techniques of trend analysis for monthly water quality data, 1982.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

__all__ = ["Trend", "trend"]

SIGNIFICANCE = 0.01  # of the test: one run in a hundred without a drift is said to have one


@dataclass(frozen=True, slots=True)
class Trend:
    """How a value changes with time.

    Attributes:
        change: the median slope, times what lies between the first time and the last.
        p: probability of an order at least as regular without any trend.
    """

    change: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether chance is no explanation."""
        return self.p < SIGNIFICANCE


def trend(groups: Sequence[Sequence[tuple[float, float]]]) -> Trend | None:
    """The common trend of some groups of (time, value); only values of one group are compared.

    None if there is nothing to compare.
    """
    pairs = [
        (later[1] - earlier[1], later[0] - earlier[0])
        for group in groups
        for earlier, later in combinations(sorted(group), 2)
        if later[0] > earlier[0]
    ]
    if not pairs:
        return None
    slope = statistics.median(rise / run for rise, run in pairs)
    times = [time for group in groups for time, _ in group]
    score = sum((rise > 0) - (rise < 0) for rise, _ in pairs)
    variance = sum(n * (n - 1) * (2 * n + 5) / 18 for n in map(len, groups))
    z = max(abs(score) - 1, 0) / math.sqrt(variance)
    p = 2 * (1 - statistics.NormalDist().cdf(z))
    return Trend(slope * (max(times) - min(times)), p)
