"""What real steps say about the measured table: outliers, regimes, and slow drifts.

A running estimate (an exponentially weighted moving average) per width follows drifts, and one factor for the
machine as a whole, its present regime, follows its speed. Estimates decay to what was measured, so a width
that was costly while something else kept the machine busy is explored again some time later.

A step that is far off is an outlier and counts for nothing until it has happened several times in a row: then
it is the estimate that is wrong, and it is moved at once. Single tokens, which are taken all the time, speak
for every width, so that one nobody tries, because it is thought too costly, becomes cheaper with them. Other
widths speak for those near them as well, down to nothing for single tokens: something else may contend for
what wide steps live on, or the table may be wrong about them, and a text of sixty tokens has no time to find
that out width by width. As all steps may have become slower, they speak for these, too, half as loud.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLIP", "IN_A_ROW", "Regimes", "Weights"]

# Chosen on recorded texts with simulated changes of speed, so that a change is followed within 50 steps
# (tests/engine/cost/test_regimes.py) and single outliers change nothing.
STEP_RATE = 0.15  # weight of one real step in the running estimate of its width
REGIME_RATE = 0.1  # weight of one real step in the estimate of the machine's present speed
SPEED_DECAY = 0.003  # per step: what one width says of all others is forgotten: they are explored again
WIDE_REGIME_RATE = 0.05  # weight in it of a step that is no single token
CONTENTION_RATE = 0.1  # weight of one wide step that is dearer than thought in how costly wide steps are
RELIEF_RATE = 0.3  # and of one that is cheaper
DECAY = 0.001  # per step: what was learned of a width is forgotten, too, unless the width is seen again
DECAY_EVERY = 16  # steps decay at once: NumPy took half of the time that a step is observed in
CLIP = 2.0  # a step more than this many times off is an outlier
IN_A_ROW = 3  # unless it was as many in a row

Weights = tuple[tuple[int, float], tuple[int, float]]
"""The two measured depths that speak for a length, and how much each does."""


class Regimes:
    """Present milliseconds of a step by width and depth.

    Args:
        max_width: largest width that will be asked for.

    Attributes:
        measured: by depth, (max_width + 1,) milliseconds as measured.
        present: the same, corrected by real steps of the width.
        speed: present time of any step relative to `present`.
        contention: (max_width + 1,) present time of wide steps, beyond that of all; at least 1.
    """

    def __init__(self, max_width: int) -> None:
        self.max_width = max_width
        self.measured: dict[int, NDArray[np.float64]] = {}
        self.present: dict[int, NDArray[np.float64]] = {}
        self.speed = 1.0
        self.contention = np.ones(max_width + 1)
        self._widths = np.arange(max_width + 1)
        self._narrowest = max_width  # that steps have had
        self._steps = 0
        self._outliers: dict[int, list[float]] = {}  # by width, its latest steps if all were off to one side
        self._wide_outliers: list[tuple[int, float]] = []  # the latest wide steps, if all were far too costly
        self._moved: set[int] = set()  # widths that turned out far off since single tokens last did

    def rebase(self, measured: dict[int, NDArray[np.float64]]) -> None:
        """Take a new table; what real steps said of the depths that it has in common is kept."""
        present = {}
        for depth, table in measured.items():
            known = depth in self.measured
            present[depth] = table * (self.present[depth] / self.measured[depth] if known else 1.0)
        self.measured, self.present = measured, present

    def reset(self) -> None:
        """A new measurement: what was thought of the machine as a whole is void."""
        self.contention.fill(1.0)
        self._begin_regime(1.0)

    def weigh(self, depths: Sequence[int], length: int) -> Weights:
        """The two of the measured `depths`, ascending, that speak for `length`, and how much each does."""
        i = min(bisect_right(depths, length), len(depths) - 1)
        low, high = depths[max(i - 1, 0)], depths[i]
        if low == high or length <= low:
            return (low, 1.0), (low, 0.0)
        share = (length - low) / (high - low)  # above 1 beyond the deepest: along its slope
        if share > 1.0 and (self.present[high] < self.present[low]).any():
            return (high, 1.0), (high, 0.0)  # a noisy slope must not be followed downwards
        return (low, 1.0 - share), (high, share)

    def costs(self, weights: Weights) -> NDArray[np.float64]:
        """(max_width + 1,) present milliseconds by width."""
        (low, below), (high, above) = weights
        costs = self.present[low] * (below * self.speed)
        if above:
            costs += self.present[high] * (above * self.speed)
        costs *= self.contention
        return costs

    def total_costs(self, weights: Iterable[Weights]) -> NDArray[np.float64]:
        """`costs` of several contexts, added up."""
        shares: dict[int, float] = {}
        for both in weights:
            for depth, share in both:
                shares[depth] = shares.get(depth, 0.0) + share
        costs = np.zeros(self.max_width + 1)
        for depth, share in shares.items():
            costs += self.present[depth] * (share * self.speed)
        costs *= self.contention
        return costs

    def expected(self, n: int, weights: Weights) -> float:
        """Milliseconds that a step of `n` tokens is expected to take at present."""
        (low, below), (high, above) = weights
        mean = self.present[low].item(n) * below + self.present[high].item(n) * above
        return mean * self.speed * self.contention.item(n)

    def observe(self, n: int, weights: Weights, ms: float) -> float:
        """A real step of `n` tokens took `ms` milliseconds.

        Returns what it showed the whole table to be off by: a factor below 1, as the machine cannot be too
        fast, and what is measured has been multiplied with it; else 1.
        """
        factor = 1.0
        self._narrowest = min(self._narrowest, n)
        self._steps += 1
        if self._steps % DECAY_EVERY == 0:
            self._decay(weights)
        expected = self.expected(n, weights)
        ratio = (ms if ms > 1e-6 else 1e-6) / expected
        if 1 / CLIP <= ratio <= CLIP:
            self._drift(n, weights, ratio)
        else:
            outliers = [r for r in self._outliers.get(n, []) if (r > 1) == (ratio > 1)] + [ratio]
            self._outliers[n] = outliers
            if len(outliers) >= IN_A_ROW:
                least = min(outliers) if ratio > 1 else max(outliers)
                factor = self._move(n, weights, least * expected)
            elif n != self._narrowest:
                self._note_wide(n, ratio)
        self.speed **= 1 - SPEED_DECAY
        return factor

    def _drift(self, n: int, weights: Weights, ratio: float) -> None:
        """A step about as costly as expected."""
        self._outliers.pop(n, None)
        for depth, weight in weights:
            self.present[depth][n] *= ratio ** (STEP_RATE * (weight if weight < 1.0 else 1.0))
        if n == self._narrowest:
            self.speed *= ratio**REGIME_RATE
            return
        self.speed *= ratio**WIDE_REGIME_RATE
        self._wide_outliers.clear()
        rate = CONTENTION_RATE if ratio > 1 else RELIEF_RATE
        wide = np.interp(self._widths, (self._narrowest, n, 4 * n), (0.0, rate, 0.0))
        self.contention = np.maximum(self.contention * ratio**wide, 1.0)

    def _decay(self, weights: Weights) -> None:
        """Forget a little of what steps told; several steps' worth now and then, which takes less time."""
        for depth, weight in weights:
            if weight > 0:
                change = self.measured[depth] / self.present[depth]
                self.present[depth] *= change ** (1 - (1 - DECAY) ** DECAY_EVERY)
        self.contention **= (1 - SPEED_DECAY) ** DECAY_EVERY

    def _note_wide(self, n: int, ratio: float) -> None:
        """A step of `n` tokens took `ratio` times as long as expected; after a few, wide steps are costly.

        How much is interpolated between the widths seen, and down to nothing at the narrowest.
        """
        if ratio < 1:
            self._wide_outliers.clear()
            self.contention.fill(1.0)
            return
        self._wide_outliers.append((n, ratio))
        if len(self._wide_outliers) < IN_A_ROW:
            return
        least: dict[int, float] = {self._narrowest: 1.0}
        for width, times in self._wide_outliers:
            least[width] = min(times, least.get(width, np.inf))
        known = sorted(least)
        self.contention *= np.exp(np.interp(self._widths, known, np.log([least[width] for width in known])))
        self._wide_outliers.clear()
        self._outliers.clear()

    def _move(self, n: int, weights: Weights, ms: float) -> float:
        """Steps of width `n` surely take `ms` milliseconds, far from what was known; returns as `observe`."""
        factor = ms / self.expected(n, weights)
        if n != self._narrowest:
            self._outliers.pop(n)
            self._moved.add(n)
            for depth, weight in weights:
                if weight > 0:
                    self.present[depth][n] *= factor
            return 1.0
        moved = list(self._moved)
        scale = 1.0
        if factor > 1:  # the machine is slower, for now
            self.speed *= factor
            self.contention = np.maximum(self.contention / factor, 1.0)
            for present in self.present.values():
                present[moved] /= factor
        else:
            self._end_contention(n, moved)
            factor = ms / self.expected(n, weights)
            if factor < 1 / CLIP:  # the machine cannot be too fast: it was not at its best when measured
                scale = factor
                self._scale(factor, moved)
        self._begin_regime(self.speed)
        return scale

    def _end_contention(self, n: int, moved: list[int]) -> None:
        """Width `n` goes back to its measured time, and others to theirs where they were thought dearer."""
        for depth, present in self.present.items():
            kept = present[moved] * self.speed
            np.minimum(present, self.measured[depth], out=present)
            present[n] = self.measured[depth][n]
            present[moved] = kept
        self.speed = 1.0
        self.contention.fill(1.0)

    def _scale(self, factor: float, moved: list[int]) -> None:
        """Multiply what was measured, and the present times of all widths but those in `moved`."""
        for depth, present in self.present.items():
            kept = present[moved]
            np.multiply(present, factor, out=present)
            present[moved] = kept
            self.measured[depth] *= factor

    def _begin_regime(self, speed: float) -> None:
        """Nothing is pending about how far off anything might be."""
        self.speed = speed
        self._outliers.clear()
        self._moved.clear()
        self._wide_outliers.clear()
