"""What it costs that a step has another width than the one before, and which width is kept for that reason.

llama.cpp keeps the compute graph of a step and builds it anew when the width changes. On a CPU a single token
after a wider step takes a little longer. CUDA runs a graph kernel by kernel the first time, records it the
second time, and repeats what it recorded from then on: two steps of every row of one width take several times
as long as the others, each of the two differently. There the staircase holds what steps take in a row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Keeping", "Switching"]

RATE = 0.1  # weight of one step in the average, on a CPU: that it lags behind charges less, and gains
LATEST = 5  # steps of which the median counts, of two the lower, on a GPU, where what it says begins a row
FAR = 2.0, 10.0  # times what a step takes in a row, on a CPU and a GPU: what it takes longer was no change of
# width, and must not end drafts
DECAY = 0.01  # per single token in a row on a CPU, where nothing would be tried that tells it; on a GPU every
# text begins with steps that tell it
KEPT = (1, 2, 4, 8, 16, 32, 64)  # widths that rows have
START = 0.2  # of a change: what a text is charged for beginning with drafts, as what these promise is the
# least sure then


class Switching:
    """Widths of the latest steps, and what changing them takes.

    Attributes:
        width: of the step before.
    """

    def __init__(self) -> None:
        self.width, self._settles = 1, 1
        self._alike = 1  # steps in a row of that width, the last one included
        self._excess_ms = [0.0]  # what the first step of a row takes longer, the second, ...
        self._seen: list[deque[float]] = [deque(maxlen=LATEST)]
        self._away = False

    def begin(self, settles: int) -> None:
        """A text begins, alone.

        Args:
            settles: `Facts.settles` of the model.
        """
        self.width, self._settles, self._away = 1, settles, False
        self._alike = 1 if settles == 1 else 0  # a GPU has read the prompt before
        while len(self._seen) < self.unsettled:
            self._seen.append(deque(maxlen=LATEST))
            self._excess_ms.append(0.0)

    def after(self, rows: int) -> None:
        """A step of so many rows was computed, of whatever."""
        self._alike = self._alike + 1 if rows == self.width else 1
        self.width = rows

    @property
    def unsettled(self) -> int:
        """Steps at the beginning of a row that take longer."""
        return max(self._settles - 1, 1)

    @property
    def known(self) -> bool:
        """Whether it was seen, where that is much, what the beginning of a row takes longer."""
        return self._settles == 1 or all(self._seen[: self.unsettled])

    @property
    def change_ms(self) -> float:
        """What the beginning of a row takes longer, all of it."""
        return sum(self._excess_ms[: self.unsettled])

    def excess_ms(self, n: int) -> float:
        """What the next step takes longer than in a row if it has `n` tokens: on a CPU if that is one, on a
        GPU always."""
        place = self._place(n)
        return self._excess_ms[place] if place < self.unsettled else 0.0

    def left_ms(self, n: int) -> float:
        """What a row of `n` tokens takes longer from the next step on, with the way back if it begins now.

        The way back from a row that is there has to be paid whatever comes next.
        """
        if n == self.width:
            return sum(self._excess_ms[self._alike : self.unsettled])
        return self.change_ms * (2 if n > 1 else 1)

    def all_left_ms(self, widest: int) -> NDArray[np.float64]:
        """(widest + 1,) `left_ms` by width; what is at 0 means nothing."""
        left = np.full(widest + 1, 2 * self.change_ms)
        for n in (1, self.width):
            if n <= widest:  # several texts had more rows together
                left[n] = self.left_ms(n)
        return left

    def settled(self, n: int) -> bool:
        """Whether the next step, if it has `n` tokens, takes as long as all of the row that follow."""
        return self._place(n) >= self.unsettled

    def for_drafts(self, n: int) -> bool:
        """Whether a step of `n` tokens takes what it does because of drafts: its own, or the last ones."""
        return n > 1 or (self._away and not self.settled(1))

    def beyond_ms(self, n: int) -> float:
        """What the next step, if it has `n` tokens, takes longer than the staircase says."""
        if n > 1 and self._settles == 1:
            return -self._excess_ms[0] if self.settled(n) else 0.0
        return self.excess_ms(n)

    def observe(self, n: int, ms: float, usual_ms: float) -> None:
        """A step of `n` tokens of the only text took `ms`, where the staircase says `usual_ms`."""
        place = self._place(n)
        settled = place >= self.unsettled
        excess_ms = max(min(ms, FAR[self._settles > 1] * usual_ms) - usual_ms, 0.0)
        if not settled and self._settles > 1:
            seen = self._seen[place]
            seen.append(excess_ms)
            self._excess_ms[place] = sorted(seen)[(len(seen) - 1) // 2]
        elif not settled and n == 1:
            self._excess_ms[0] += RATE * (excess_ms - self._excess_ms[0])
        elif n == 1 and self._settles == 1:
            self._excess_ms[0] *= 1 - DECAY
        self._away = n > 1 or (self._away and not settled)
        self.after(n)

    def _place(self, n: int) -> int:
        """How many steps of its row come before the next one, if it has `n` tokens."""
        return self._alike if n == self.width else 0


class Keeping:
    """Which width the steps of a text keep, where changing it costs much.

    The work function algorithm for a metrical task system (Borodin, Linial and Saks, 1992): states are
    widths, a step asks of each what a token costs there, and all are equally far from each other. The work
    function of a width is what the cheapest way through all widths would have cost so far that ends there.
    The width is changed as soon as another one is so much cheaper that the change is paid for. With a text
    a row begins anyway, so its first width is nearly free.
    """

    def __init__(self) -> None:
        self.width = 0  # a row begins with the text, of whatever width
        self._work = [0.0] * len(KEPT)
        self._each = [0.0] * len(KEPT)  # milliseconds of a token, in the step at hand
        self._change_ms = 0.0

    def choose(self, steps_ms: NDArray[np.float64], gains: Sequence[float], change_ms: float) -> int:
        """The width of the next step.

        Args:
            steps_ms: (W + 1,) milliseconds of a step in a row, by width.
            gains: expected tokens of the step with 0, 1, ... nodes of its draft, rising.
            change_ms: what the beginning of a row takes longer.
        """
        last, self._change_ms = len(gains) - 1, change_ms
        if not self.width:
            self._work = [START * self._change_ms * (n > 1) for n in KEPT]
        self._each = [
            float(steps_ms[n]) / gains[min(n - 1, last)] if n < len(steps_ms) else np.inf for n in KEPT
        ]
        far = [
            min(work, self._change_ms) + each + self._change_ms * (self.width not in (0, n))
            for n, work, each in zip(KEPT, self._work, self._each, strict=True)
        ]
        return KEPT[far.index(min(far))]

    def saved_ms(self, n: int) -> float:
        """Milliseconds that each token is expected to cost less than now with steps of `n` tokens; infinite
        where no row of a width that is kept has begun."""
        if self.width not in KEPT:
            return np.inf
        return self._each[KEPT.index(self.width)] - self._each[KEPT.index(n)]

    def observe(self, n: int, tokens: int) -> None:
        """The step had `n` tokens, and gave so many."""
        self.width = n
        work = [
            min(work, self._change_ms) + tokens * each
            for work, each in zip(self._work, self._each, strict=True)
        ]
        least = min(work)
        self._work = [min(each - least, self._change_ms) for each in work]
