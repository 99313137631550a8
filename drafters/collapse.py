"""An alarm for drafts that are right far less often than they should be.

A cumulative-sum test (Page 1954): every scored token adds the log likelihood ratio of "half as often right as
expected" against "as expected", and the sum never falls below 0. While the expectation holds, the mean number
of tokens before a false alarm is at least exp(threshold) (Lorden 1971).
"""

from __future__ import annotations

import math
from collections import deque

__all__ = ["FALSE_ALARM_TOKENS", "Collapse"]

FALSE_ALARM_TOKENS = 100_000
"""Scored tokens per false alarm, at least, as long as tokens are right as often as expected."""

THRESHOLD = math.log(FALSE_ALARM_TOKENS)
SHARE = 0.5  # of the expected rate: the collapse that is found the fastest
SURE = 0.98  # no expectation is held to be surer
RECENT = 64  # scored tokens that an alarm describes


class Collapse:
    """Watches one source of drafts."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._recent: deque[tuple[float, bool]] = deque(maxlen=RECENT)

    @property
    def alarm(self) -> bool:
        """Whether the tokens since some time ago are right far too rarely."""
        return self._sum > THRESHOLD

    @property
    def rates(self) -> tuple[float, float]:
        """Expected and observed share of right tokens among the last ones."""
        n = max(len(self._recent), 1)
        return sum(h for h, _ in self._recent) / n, sum(right for _, right in self._recent) / n

    def observe(self, expected: float, right: bool) -> None:
        """A token that was `expected` to be right with this probability was right or not."""
        expected = min(expected, SURE)
        self._recent.append((expected, right))
        ratio = SHARE if right else (1 - SHARE * expected) / (1 - expected)
        self._sum = max(0.0, self._sum + math.log(ratio))

    def restart(self) -> None:
        """Begin anew."""
        self._sum = 0.0
        self._recent.clear()
