"""What a step can be and may spend on each text, and what was chosen.

A draft may promise too much for the text at hand, so the objective is maximized under a constraint that
bounds what that can cost: what a step would lose if nothing of its draft came true must be covered by a
*budget* of the text, which is a small allowance, interest on every token, and what earlier drafts of this
text saved (conservative exploration: Wu et al., Conservative Bandits, 2016). A text of n tokens thus takes at
most ALLOWANCE + INTEREST * n plain steps longer than plain decoding, as far as steps cost what was measured.
Where they cost more, the excess is owed: nothing is drafted before it is paid back, so the bound grows by
what one step takes longer. On a GPU one change of width and back is allowed beyond that, as far as `MOST`,
and the way back from a row may be owed: without that nothing could be tried. Of several texts at once each
pays for its part of what a step takes longer, so what all of them wait is bounded by the sum of their
budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache
from specx.drafters.base import Draft, Drafting, Room, StepCosts
from specx.engine.learned.lengths import Outlook

__all__ = ["ALLOWANCE", "INTEREST", "Budget", "Decision", "Part", "Planned", "Spent", "Terms"]

# In plain steps. benchmarks/simulate.py compares such numbers on recorded outputs.
ALLOWANCE = 1.5  # at the start of a text
INTEREST = 0.02  # for every token
MOST = 16.0  # savings of long ago do not pay for a bad stretch


class Budget:
    """Of one text.

    Attributes:
        steps: plain steps that may be lost now; negative while some are owed.
    """

    __slots__ = ("_granted", "steps")

    def __init__(self) -> None:
        self.steps, self._granted = ALLOWANCE, False

    def grant(self, steps: float) -> None:
        """Once, what changing the width and back takes where that is much (`engine/cost/switching.py`)."""
        if not self._granted and steps > 0:
            self.steps, self._granted = self.steps + steps, True

    def settle(self, accepted: int, lost: float) -> None:
        """A step gave `accepted` tokens beyond the sure one, and took `lost` plain steps longer than these
        would have taken."""
        self.steps = min(self.steps + INTEREST * (accepted + 1) - lost, MOST)


class Planned(Protocol):
    """A text, as far as the plan looks at it."""

    cache: Cache
    drafting: Drafting
    budget: Budget
    outlook: Outlook


@dataclass(slots=True)
class Terms:
    """What a step can be, for the texts at hand.

    Attributes:
        jobs: the texts.
        rooms: how much each may draft.
        costs: milliseconds of the forward call; infinite where it is not allowed. By the width of the tree
            for one text, by the common width if all trees have one, else by the rows of all texts together.
        plain_ms: the cheapest way to take one token of each text.
        even: whether all trees have one width.
        spent_ms: for each text, what was spent on sources that cost time.
        step: what the step costs, and its budget covers, if there is one text.
        again: tokens that the step reads again, whatever it is.
    """

    jobs: Sequence[Planned]
    rooms: list[Room]
    costs: NDArray[np.float64]
    plain_ms: float
    even: bool
    spent_ms: list[float]
    step: StepCosts | None = None
    again: int = 0

    def covered_ms(self, i: int) -> float:
        """Most milliseconds of a step that the budget of text `i` covers."""
        return self.jobs[i].budget.steps * self.plain_ms

    def caps(self) -> list[int]:
        """Most nodes of each of several texts whose price its budget covers, if none of them comes true.

        A text that has nothing left gets none: what costs nothing for one may cost something for all.
        """
        first = 1 if self.even else len(self.jobs)  # index of the plain step
        share = len(self.jobs) if self.even else 1  # of what a common width costs
        extra = (self.costs[first:] - self.plain_ms) / share
        budgets = np.array([job.budget.steps for job in self.jobs])
        spare = np.maximum(budgets * self.plain_ms - self.spent_ms, 0.0)
        affordable = (extra <= spare[:, None]) & (budgets > 0)[:, None]
        last = affordable.shape[1] - 1 - affordable[:, ::-1].argmax(axis=1)
        caps: list[int] = np.where(affordable.any(axis=1), last, 0).tolist()
        return caps

    @property
    def full(self) -> bool:
        """Whether several texts gain nothing from drafts, even if all of them came true."""
        n = len(self.jobs)
        tokens = np.arange(len(self.costs)) * (n if self.even else 1)
        return bool((tokens * self.plain_ms <= self.costs * n).all())


@dataclass(slots=True)
class Spent:
    """What a step spent on sources that cost time, for one text.

    Attributes:
        ms: all of it, in milliseconds.
        invested_ms: the part that later steps profit from as well.
        explored_ms: the part that was not expected to pay.
        tokens: how often they were asked.
        alone: expected emitted tokens of the text and milliseconds of the step without them.
    """

    ms: float
    invested_ms: float
    explored_ms: float
    tokens: int
    alone: tuple[float, float]


@dataclass(slots=True)  # one a step: a frozen one takes three times as long to make
class Part:
    """What was chosen for one text.

    Attributes:
        draft: the tree to verify, possibly empty.
        leaves: its leaves beyond the first.
        expected: expected number of emitted tokens.
        spent: what sources that cost time took for it before, if any was asked.
    """

    draft: Draft
    leaves: int
    expected: float
    spent: Spent | None = None


@dataclass(slots=True)
class Decision:
    """What was chosen for one step.

    Attributes:
        parts: for each of the texts.
        cost_ms: expected time of the step, what was asked for included.
        plain_ms: expected time in the model of the cheapest step without drafts.
        expected: expected number of emitted tokens of all texts.
        again: committed tokens that the step reads again.
    """

    parts: tuple[Part, ...]
    cost_ms: float
    plain_ms: float
    expected: float
    again: int = 0

    @property
    def rate(self) -> float:
        """Expected tokens per millisecond."""
        return self.expected / self.cost_ms

    @property
    def spent_ms(self) -> float:
        """Milliseconds spent on sources that cost time."""
        spent = 0.0
        for part in self.parts:
            if part.spent is not None:
                spent += part.spent.ms
        return spent
