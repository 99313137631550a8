"""What it costs that a step has another width than the one before.

llama.cpp keeps the compute graph of a step and builds it anew when the width changes. CUDA runs a graph
kernel by kernel when it comes for the first and the second time, and repeats what it recorded from then on.
The staircase holds single tokens as they take in a row, and wider steps after another width.

A step is priced as one of a row of its width. One that begins a row pays its share of what the beginning
takes longer, which is divided by the steps that rows had of late. If the first step paid for everything, or
for the way back as well, few rows would be begun that pay.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Prices", "Switching"]

ROW = 2.0  # steps of one width in a row, before any were seen
RATE = 0.1  # weight of one in the running averages
FIRST = 3  # the least of so many counts at first: one outlier must not end drafts
DECAY = 0.01  # per single token in a row: nothing would be tried that tells it, else


class Prices(NamedTuple):
    """What is added to a staircase, or taken off it, in milliseconds.

    Attributes:
        saved_ms: what a step of several tokens takes less in a row.
        wide_ms: what one pays that has another width than the step before.
        single_ms: what a single token pays after a step of several.
    """

    saved_ms: float
    wide_ms: float
    single_ms: float


class Switching:
    """Widths of the latest steps, and what changing them takes.

    Attributes:
        width: of the step before.
        excess_ms: what a single token takes longer after another width; a wider step is thought to take as
            much longer than in a row.
    """

    def __init__(self) -> None:
        self.width, self.excess_ms = 1, 0.0
        self._settles = self._alike = 1
        self._seen = 0
        self._away = False
        self._rows = {True: ROW, False: ROW}  # of several tokens, of single ones: steps in a row

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

    def settled(self, n: int) -> bool:
        """Whether the next step, if it has `n` tokens, takes as long as all of the row that follow."""
        return n == self.width and self._alike >= self.unsettled

    def for_drafts(self, n: int) -> bool:
        """Whether a step of `n` tokens takes what it does because of drafts: its own, or the last ones."""
        return n > 1 or (self._away and not self.settled(1))

    def prices(self) -> Prices:
        """Of the next step."""
        beginning = self.unsettled * self.excess_ms
        return Prices(self.excess_ms, beginning / self._rows[True], beginning / self._rows[False])

    def observe(self, n: int, excess_ms: float) -> None:
        """A step of `n` tokens of the only text took so much longer than the staircase says."""
        if n > 1:
            self._away = True
        elif self.settled(1):
            self._away = False
            self.excess_ms *= 1 - DECAY
        else:
            self._learn(max(excess_ms, 0.0))
        if n != self.width and self._alike:
            wide = self.width > 1
            self._rows[wide] += RATE * (self._alike - self._rows[wide])
        self.after(n)

    def _learn(self, excess_ms: float) -> None:
        self._seen += 1
        if self._seen == 1:
            self.excess_ms = excess_ms
        elif self._seen <= FIRST:
            self.excess_ms = min(self.excess_ms, excess_ms)
        else:
            self.excess_ms += RATE * (excess_ms - self.excess_ms)
