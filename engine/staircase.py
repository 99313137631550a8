"""The staircase: what one forward call of n tokens costs on this machine, measured.

It is neither a line nor monotonic (kernels work in groups of rows), and it depends on the depth of the
context, so it is kept per power-of-two *bucket* of the context. The first time a bucket is reached its
steps are timed on the spot, by computing guesses that are then forgotten; after that every real step
corrects it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Backend

__all__ = ["Staircase", "bucket_of"]

FIRST_BUCKET = 512  # tokens; llama.cpp's padded cache changes its attention path there too
ORDER = (1, 2, 4, 8, 16, 3, 6, 5, 7, 12, 10, 24, 32)  # most informative widths first
REPEATS = 2  # of each width, the smaller time counts: noise only ever adds
BUDGET_S = 4.0  # for the first bucket; a 1B model on two cores is through in that time
LATER_BUDGET_S = 1.0  # for a deeper bucket, whose shape is known from the one before
STEP_RATE = 0.15  # weight of one real step in the running estimate of its width
REGIME_RATE = 0.1  # weight of one real step in the estimate of the machine's present speed
CLIP = 3.0  # a step this many times off is counted as only this much off: a hiccup, not a trend


def bucket_of(length: int) -> int:
    """Context bucket of a sequence of `length` tokens: 0 below 512, then one per doubling."""
    return max(0, (length // FIRST_BUCKET).bit_length())


class Staircase:
    """Milliseconds of one forward call by width and context bucket.

    Args:
        max_width: largest width that will be asked for.
    """

    def __init__(self, max_width: int) -> None:
        self.max_width = max_width
        self._steps: dict[int, dict[int, float]] = {}
        self._speed = 1.0  # present time of a step relative to the recorded one
        self._costs: dict[int, NDArray[np.float64]] = {}

    @property
    def buckets(self) -> list[int]:
        """Buckets that have been measured."""
        return sorted(self._steps)

    def steps(self, bucket: int) -> Mapping[int, float]:
        """Measured milliseconds by width in one bucket."""
        return dict(sorted(self._steps[bucket].items()))

    def needs_measuring(self, length: int) -> bool:
        """Whether the bucket of `length` has never been timed."""
        return bucket_of(length) not in self._steps

    def costs(self, length: int) -> NDArray[np.float64]:
        """(max_width + 1,) milliseconds of a call of n tokens at index n; index 0 is infinite.

        Widths between measured ones are interpolated, those beyond the widest are extrapolated along the
        last step. Without any measurement a call costs as much as its width.
        """
        bucket = bucket_of(length)
        costs = self._costs.get(bucket)
        if costs is None:
            costs = self._costs[bucket] = self._fill(bucket)
        return costs

    def measure(
        self,
        backend: Backend,
        *,
        clock: Callable[[], float] = time.perf_counter,
        budget_s: float | None = None,
    ) -> float:
        """Time the widths at the backend's present length; returns the seconds it took.

        Widths are taken in the order of what they tell, until the budget is spent; at least 1 and 2 are.
        The committed sequence is as before afterwards.
        """
        start = clock()
        length = backend.length
        budget = (LATER_BUDGET_S if self._steps else BUDGET_S) if budget_s is None else budget_s
        steps: dict[int, float] = {}
        widths = [n for n in ORDER if n <= min(self.max_width, backend.n_ctx - length)]
        for repeat in range(REPEATS):
            for n in widths:
                spent = clock() - start
                expected = steps.get(n, steps.get(n // 2, 0.0) * 2) / 1e3
                if (n > 2 or repeat > 0) and spent + expected > budget:
                    continue
                took = self._time(backend, n, clock, warm_up=not steps)
                steps[n] = min(took, steps.get(n, took))
        if steps:
            self._steps[bucket_of(length)] = steps
            self._costs.clear()
            self._speed = 1.0
        return clock() - start

    def observe(self, n: int, length: int, ms: float) -> None:
        """A real step of `n` tokens at `length` took `ms` milliseconds."""
        bucket = bucket_of(length)
        expected = self.costs(length)[n]
        ratio = float(np.clip(ms / expected, 1 / CLIP, CLIP))
        steps = self._steps.setdefault(bucket, dict(self._nearest(bucket)))
        if not steps:
            steps[n] = ms
        else:
            self._speed *= ratio**REGIME_RATE
            known = steps.get(n, expected / self._speed)
            steps[n] = known * ratio**STEP_RATE
        self._costs.pop(bucket, None)

    def to_json(self) -> dict[str, Any]:
        """A plain value for the store."""
        return {str(bucket): {str(n): ms for n, ms in steps.items()} for bucket, steps in self._steps.items()}

    def load_json(self, data: Mapping[str, Any]) -> None:
        """Take over what `to_json` gave.

        Raises:
            ValueError, TypeError, AttributeError: it is something else.
        """
        steps = {int(b): {int(n): float(ms) for n, ms in s.items()} for b, s in data.items()}
        if any(n < 1 or not 0 < ms < float("inf") for s in steps.values() for n, ms in s.items()):
            raise ValueError("a staircase holds positive times of positive widths")
        self._steps = {bucket: s for bucket, s in steps.items() if s}
        self._costs.clear()

    def _time(self, backend: Backend, n: int, clock: Callable[[], float], *, warm_up: bool) -> float:
        tokens = np.zeros(n, np.int32)
        parents = np.arange(-1, n - 1, dtype=np.int32)
        length = backend.length
        took = 0.0
        for _ in range(2 if warm_up else 1):
            start = clock()
            backend.forward(tokens, parents)
            took = (clock() - start) * 1e3
            backend.keep([0])
            backend.rewind(length)
        return max(took, 1e-6)

    def _nearest(self, bucket: int) -> Mapping[int, float]:
        if not self._steps:
            return {}
        return self._steps[min(self._steps, key=lambda b: (abs(b - bucket), b))]

    def _fill(self, bucket: int) -> NDArray[np.float64]:
        steps = self._nearest(bucket)
        widths = np.arange(self.max_width + 1, dtype=np.float64)
        if not steps:
            costs = widths.copy()
        else:
            known = sorted(steps)
            times = [steps[n] for n in known]
            costs = np.interp(widths, known, times)
            if len(known) > 1:
                slope = (times[-1] - times[-2]) / (known[-1] - known[-2])
                costs = np.where(
                    widths > known[-1], times[-1] + (widths - known[-1]) * max(slope, 0.0), costs
                )
        costs = costs * self._speed
        costs[0] = np.inf
        return costs
