"""What it costs that a step has another width than the one before, and which width is kept for that reason.

llama.cpp keeps the compute graph of a step and builds it anew when the width changes. On a CPU a single token
after a wider step takes a little longer. CUDA runs a graph kernel by kernel when it comes for the first and
the second time, and repeats what it recorded from then on: two steps of every row of one width take up to
twice as long as the others. There the staircase holds what steps take in a row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Keeping", "Switching"]

RATE = 0.1  # weight of one step in the average, on a CPU: that it lags behind charges less, and gains
LATEST = 5  # steps of which the median counts, of two the lower, on a GPU, where what it says begins a row
FAR = 2.0, 4.0  # times what a step takes in a row, on a CPU and a GPU: what it takes longer was no change of
# width, and must not end drafts
DECAY = 0.01  # per single token in a row on a CPU, where nothing would be tried that tells it; on a GPU every
# text begins with steps that tell it
KEPT = (1, 2, 4, 8, 16, 32, 64)  # widths that rows have
SHARE = 0.6  # of what a change costs; less than all of it, as what drafts promise comes true on average


class Switching:
    """Widths of the latest steps, and what changing them takes.

    Attributes:
        width: of the step before.
        excess_ms: what a step takes longer at the beginning of a row: on a CPU a single token, on a GPU any.
    """

    def __init__(self) -> None:
        self.width, self.excess_ms = 1, 0.0
        self._settles = self._alike = 1
        self._seen: deque[float] = deque(maxlen=LATEST)
        self._away = False

    def begin(self, settles: int) -> None:
        """A text begins, alone.

        Args:
            settles: `Facts.settles` of the model.
        """
        self.width, self._settles, self._away = 1, settles, False
        self._alike = 1 if settles == 1 else 0  # a GPU has read the prompt before

    def after(self, rows: int) -> None:
        """A step of so many rows was computed, of whatever."""
        self._alike = self._alike + 1 if rows == self.width else 1
        self.width = rows

    @property
    def unsettled(self) -> int:
        """Steps at the beginning of a row that take longer."""
        return max(self._settles - 1, 1)

    @property
    def change_ms(self) -> float:
        """What the beginning of a row takes longer, all of it."""
        return self.unsettled * self.excess_ms

    def left_ms(self, n: int) -> float:
        """What a row of `n` tokens takes longer from the next step on, with the way back if it begins now.

        The way back from a row that is there has to be paid whatever comes next.
        """
        if n == self.width:
            return max(self.unsettled - self._alike, 0) * self.excess_ms
        return self.change_ms * (2 if n > 1 else 1)

    def settled(self, n: int) -> bool:
        """Whether the next step, if it has `n` tokens, takes as long as all of the row that follow."""
        return n == self.width and self._alike >= self.unsettled

    def for_drafts(self, n: int) -> bool:
        """Whether a step of `n` tokens takes what it does because of drafts: its own, or the last ones."""
        return n > 1 or (self._away and not self.settled(1))

    def beyond_ms(self, n: int) -> float:
        """What the next step, if it has `n` tokens, takes longer than the staircase says."""
        if n > 1 and self._settles == 1:
            return -self.excess_ms if self.settled(n) else 0.0
        return 0.0 if self.settled(n) else self.excess_ms

    def observe(self, n: int, ms: float, usual_ms: float) -> None:
        """A step of `n` tokens of the only text took `ms`, where the staircase says `usual_ms`."""
        settled = self.settled(n)
        excess_ms = max(min(ms, FAR[self._settles > 1] * usual_ms) - usual_ms, 0.0)
        if not settled and self._settles > 1:
            self._seen.append(excess_ms)
            self.excess_ms = sorted(self._seen)[(len(self._seen) - 1) // 2]
        elif not settled and n == 1:
            self.excess_ms += RATE * (excess_ms - self.excess_ms)
        elif n == 1 and self._settles == 1:
            self.excess_ms *= 1 - DECAY
        self._away = n > 1 or (self._away and not settled)
        self.after(n)


class Keeping:
    """Which width the steps of a text keep, where changing it costs much.

    The work function algorithm for a metrical task system (Borodin, Linial and Saks, 1992): states are
    widths, a step asks of each what a token costs there, and all are equally far from each other. The work
    function of a width is what the cheapest way through all widths would have cost so far that ends there.
    The width is changed as soon as another one is so much cheaper that the change is paid for.
    """

    def __init__(self) -> None:
        self._width = 1
        self._work = [0.0] + [np.inf] * (len(KEPT) - 1)
        self._each = [0.0] * len(KEPT)  # milliseconds of a token, in the step at hand
        self._change_ms = 0.0

    def choose(self, steps_ms: NDArray[np.float64], gains: Sequence[float], change_ms: float) -> int:
        """The width of the next step.

        Args:
            steps_ms: (W + 1,) milliseconds of a step in a row, by width.
            gains: expected tokens of the step with 0, 1, ... nodes of its draft, rising.
            change_ms: what the beginning of a row takes longer.
        """
        last, self._change_ms = len(gains) - 1, SHARE * change_ms
        self._each = [
            float(steps_ms[n]) / gains[min(n - 1, last)] if n < len(steps_ms) else np.inf for n in KEPT
        ]
        far = [
            min(work, self._change_ms) + each + self._change_ms * (n != self._width)
            for n, work, each in zip(KEPT, self._work, self._each, strict=True)
        ]
        return KEPT[far.index(min(far))]

    def observe(self, n: int, tokens: int) -> None:
        """The step had `n` tokens, and gave so many."""
        self._width = n
        work = [
            min(work, self._change_ms) + tokens * each
            for work, each in zip(self._work, self._each, strict=True)
        ]
        least = min(work)
        self._work = [min(each - least, self._change_ms) for each in work]
