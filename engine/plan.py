"""The objective: expected accepted tokens per second under measured costs, evaluated at every step.

    rate(S) = (1 + sum of a(v) for v in S) / (t_host + t_verify(1 + |S|, context))

t_host is all the time spent outside the backend, drafting included. For n nodes the best tree is the n
nodes of largest a(v), and a draft comes ordered that way, so one scan over its prefixes finds the argmax;
the empty prefix is plain decoding and always takes part.

A draft may promise too much for the text at hand, so the maximum is taken under a constraint that bounds
what that can cost: what a step would lose if nothing of its draft came true must be covered by a budget,
which is a small allowance, interest on every token, and what earlier drafts of this generation saved
(conservative exploration: Wu et al., Conservative Bandits, 2016). A generation of n tokens thus takes at
most ALLOWANCE + INTEREST * n plain steps longer than plain decoding, as far as steps cost what was measured.

Some sources cost time, such as a draft model. After the free proposal such a source *offers* further tokens.
It is asked for one after the other as long as some number of them is expected to raise the rate of this step,
with all time spent and to be spent in it counted: what is spent stays in the denominator. Two more reasons to
ask are the same objective over more than one step.

- An *investment*: what has to be read or loaded before the first token serves later steps as well. What it
  would have gained in this step is noted, and once such gains sum up to its price it is made (ski rental:
  Karlin et al., 1988), so it costs at most twice what could have been saved. It stands outside the budget.
- *Exploration*: a source that is thought to be poor is asked now and then all the same, where a right token
  would pay, for at most INTEREST of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Backend
from specx.drafters.base import EMPTY_DRAFT, Draft, Drafter, Offer
from specx.engine.cost.staircase import CLIP, Staircase
from specx.kernels._native import best_prefix

__all__ = ["Asked", "Decision", "Plan"]

TIME_RATE = 0.1  # weight of one step in the running averages of host and branch time
# The budget, in plain steps. benchmarks/simulate.py compares such numbers on recorded outputs.
ALLOWANCE = 3.5  # at the start of a generation
INTEREST = 0.02  # for every token
MOST = 16.0  # savings of long ago do not pay for a bad stretch
# Per step: the price of a branch, and of leaving single tokens, fades while nothing is tried that would tell
# it, so that one hiccup does not end branches or drafts.
PRICE_DECAY = 0.01
AHEAD = (1, 2, 4, 8, 16)  # further tokens of a source that costs time that are weighed at once


@dataclass(frozen=True, slots=True)
class Asked:
    """What a step spent on a source that costs time.

    Attributes:
        ms: all of it, in milliseconds.
        invested_ms: the part that later steps profit from as well.
        explored_ms: the part that was not expected to pay.
        tokens: how often it was asked.
        alone: expected emitted tokens and milliseconds of the step without it.
    """

    ms: float
    invested_ms: float
    explored_ms: float
    tokens: int
    alone: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the plan chose for one step.

    Attributes:
        draft: the tree to verify, possibly empty.
        leaves: its leaves beyond the first.
        expected: expected number of emitted tokens.
        cost_ms: expected time of the step, what was asked for included.
        asked: what was spent on it before, if anything was.
    """

    draft: Draft
    leaves: int
    expected: float
    cost_ms: float
    asked: Asked | None = None

    @property
    def rate(self) -> float:
        """Expected tokens per millisecond."""
        return self.expected / self.cost_ms

    @property
    def asked_ms(self) -> float:
        """Milliseconds spent on a source that costs time."""
        return self.asked.ms if self.asked else 0.0


class _Reason(Enum):
    """Why a source that costs time is asked."""

    GAIN = auto()
    INVESTMENT = auto()
    EXPLORATION = auto()


class Plan:
    """Chooses what to verify. Owns the staircase.

    Args:
        staircase: measured cost of a forward call.
        max_nodes: most drafted tokens per step, if the user limits them.
        widths: the only batch widths allowed (bit-identical ones), or None for all. With such a set a tree
            is a chain: an accepted branch would leave the cache in another order.
        clock: seconds.
    """

    def __init__(
        self,
        staircase: Staircase,
        *,
        max_nodes: int | None = None,
        widths: frozenset[int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.staircase = staircase
        self.max_nodes = max_nodes
        self.widths = widths
        self._clock = clock
        self._host_ms = 0.0  # all time outside the backend, `propose` included, whatever is then chosen
        self._leaf_ms = 0.0
        self._switch_ms = 0.0  # what a step costs more because the one before had another width
        self._before = 1  # width of the step before
        self._budget = ALLOWANCE
        self._plain_ms = 1.0  # a step of plain decoding at the present length
        self._credit_ms = 0.0  # what the next investment would have gained so far
        self._exploring_ms = 0.0  # that may be spent without being expected to pay
        self._forbidden: NDArray[np.float64] | None = None
        if widths is not None:
            allowed = [n in widths for n in range(staircase.max_width + 1)]
            self._forbidden = np.where(allowed, 0.0, np.inf)

    @property
    def narrowest(self) -> int:
        """Room that a step needs at least, in tokens."""
        return min(self.widths) if self.widths else 1

    def begin(self) -> None:
        """A generation starts."""
        self._before = 1
        self._budget = ALLOWANCE

    def choose(self, drafter: Drafter, backend: Backend) -> Decision:
        """The draft and width of the highest expected rate, given what `drafter` proposes now."""
        length = backend.length
        room = backend.n_ctx - length
        # Nothing is committed that leaves less room than a step needs: the context then ends at the same
        # token whatever is drafted.
        limit = min(backend.max_width - 1, room - self.narrowest)
        if self.max_nodes is not None:
            limit = min(limit, self.max_nodes)
        costs = self._costs(length)[: max(1, min(backend.max_width, room)) + 1]
        if self._forbidden is not None and room >= self.narrowest:
            costs = costs + self._forbidden[: len(costs)]
        listed = costs.tolist()  # NumPy takes longer to begin than a few dozen numbers to be looked at
        self._plain_ms = min(listed)
        leaves = 1 if self.widths else backend.max_leaves
        most = self._affordable()
        if limit <= 0 or not any(cost <= most for cost in listed[2:]):
            return self._best(EMPTY_DRAFT, costs, leaves)
        best = self._best(drafter.propose(limit, leaves), costs, leaves)
        return self._ask(drafter, best, costs, leaves)

    def _best(self, draft: Draft, costs: NDArray[np.float64], leaves: int, spent_ms: float = 0.0) -> Decision:
        """The prefix of `draft` of the highest rate: of one of its chains, if there may be one leaf only."""
        leaf, nodes, width, branches, gain, cost = self._scan(draft, costs, leaves, spent_ms)
        part = draft if leaf < 0 else draft.chain(leaf)
        return Decision(_padded(part.head(nodes), width - 1), branches, gain, cost)

    def _scan(
        self, draft: Draft, costs: NDArray[np.float64], leaves: int, spent_ms: float
    ) -> tuple[int, int, int, int, float, float]:
        """What `best_prefix` gives for the widths that the budget covers beside `spent_ms`."""
        return best_prefix(
            draft.probs,
            draft.parents,
            costs,
            self._host_ms + spent_ms,
            self._leaf_ms,
            self._affordable(spent_ms),
            leaves == 1,
        )

    def _ask(self, drafter: Drafter, free: Decision, costs: NDArray[np.float64], leaves: int) -> Decision:
        """`free`, or what is better once a source that costs time was asked as often as that pays."""
        best, tokens, spent_ms, invested_ms, explored_ms = free, 0, 0.0, 0.0, 0.0
        while offer := drafter.offer():
            reason = self._why_ask(offer, best, costs, leaves, spent_ms)
            if reason is None:
                break
            start = self._clock()
            draft = offer.take()
            took_ms = (self._clock() - start) * 1e3
            if reason is _Reason.INVESTMENT:
                self._credit_ms = 0.0
                invested_ms = max(took_ms - offer.token_ms, 0.0)
                took_ms -= invested_ms
            elif reason is _Reason.EXPLORATION:
                explored_ms += took_ms
            spent_ms += took_ms
            tokens += 1
            best = self._best(draft, costs, leaves, spent_ms)
        if not tokens:
            return free
        asked = Asked(spent_ms + invested_ms, invested_ms, explored_ms, tokens, (free.expected, free.cost_ms))
        return replace(best, asked=asked)

    def _why_ask(
        self, offer: Offer, best: Decision, costs: NDArray[np.float64], leaves: int, spent_ms: float
    ) -> _Reason | None:
        """Why the next token on offer is worth its time, or None if it is not."""
        most = 0.0
        for gain in self._gains(offer, best, costs, leaves, spent_ms):
            if gain > offer.invest_ms and self._covers(spent_ms + offer.invest_ms + offer.token_ms):
                return _Reason.GAIN
            most = max(most, gain)
        self._credit_ms += most
        if most > 0 and self._credit_ms >= offer.invest_ms:
            return _Reason.INVESTMENT
        if spent_ms == 0 and offer.explorable and self._may_explore(offer, best, costs):
            return _Reason.EXPLORATION
        return None

    def _gains(
        self, offer: Offer, best: Decision, costs: NDArray[np.float64], leaves: int, spent_ms: float
    ) -> Iterator[float]:
        """Milliseconds that numbers of further tokens are expected to save, at least 0: the time that what
        they give takes at the rate of `best`, less the time it takes then."""
        for further in AHEAD:
            time_ms = spent_ms + further * offer.token_ms
            if further > offer.most or not self._covers(time_ms):
                return
            *_, expected, cost_ms = self._scan(offer.forecast(further), costs, leaves, time_ms)
            yield max(expected / best.rate - cost_ms, 0.0)

    def _may_explore(self, offer: Offer, best: Decision, costs: NDArray[np.float64]) -> bool:
        """Whether a token may be asked for that is not expected to pay: rarely, and where it might."""
        time_ms = offer.invest_ms + offer.token_ms
        if self._exploring_ms < time_ms or not self._covers(time_ms):
            return False
        self._exploring_ms = min(self._exploring_ms, 2 * time_ms)  # and not often in a row
        for n in AHEAD:
            if n > offer.most:
                break
            *_, expected, cost_ms = self._scan(_sure(n), costs, 1, n * offer.token_ms)
            if expected / cost_ms > best.rate:
                return True
        return False

    def _covers(self, spent_ms: float) -> bool:
        """Whether the budget covers so much time in a step."""
        return spent_ms <= self._plain_ms * self._budget

    def observe(
        self, decision: Decision, accepted: int, length: int, forward_ms: float, host_ms: float
    ) -> None:
        """What a step that verified `decision` at `length` gave, and its time in and outside the backend."""
        self._host_ms += TIME_RATE * (host_ms - self._host_ms)
        n = len(decision.draft) + 1
        switched, self._before = n != self._before, n
        cost = self.staircase.cost(n, length)
        excess = min(forward_ms, CLIP * cost) - cost
        lost = (cost + excess) / self._plain_ms - 1 - accepted if n > 1 or switched else 0.0
        if decision.asked is not None:
            lost += (decision.asked.ms - decision.asked.invested_ms) / self._plain_ms
            self._exploring_ms -= decision.asked.explored_ms
        self._exploring_ms += INTEREST * (forward_ms + host_ms + decision.asked_ms)
        self._budget = min(max(self._budget + INTEREST * (accepted + 1) - lost, 0.0), MOST)
        if decision.leaves:
            self._leaf_ms += TIME_RATE * (max(excess / decision.leaves, 0.0) - self._leaf_ms)
            return
        self._leaf_ms *= 1 - PRICE_DECAY
        if n == 1 and switched:
            self._switch_ms += TIME_RATE * (max(excess, 0.0) - self._switch_ms)
        elif n == 1:
            self._switch_ms *= 1 - PRICE_DECAY
        if n > 1 or not switched or excess < 0:  # a single token cheaper than thought tells so at once
            saved = self._switch_ms if n > 1 and not switched else 0.0
            self.staircase.observe(n, length, forward_ms + saved)

    def _affordable(self, spent_ms: float = 0.0) -> float:
        """Milliseconds of the dearest width whose loss, if nothing drafted comes true, the budget covers
        beside `spent_ms`."""
        return max(self._plain_ms * (1 + self._budget) - spent_ms, self._plain_ms)

    def _costs(self, length: int) -> NDArray[np.float64]:
        """(max_width + 1,) milliseconds by width, after a step of the width before.

        llama.cpp keeps the compute graph of a step and builds it anew when the width changes. The staircase
        holds single tokens after single tokens and wider steps after another width. Leaving single tokens
        therefore costs the way back as well, which the step that leaves is charged with, and the step that
        comes back is not.
        """
        costs = self.staircase.costs(length)
        if self._before == 1:
            costs[2:] += self._switch_ms
        else:
            costs[self._before] = max(costs[self._before] - self._switch_ms, costs[1])
        return costs


def _sure(n: int) -> Draft:
    """A chain of `n` tokens that are sure to be right."""
    row = np.arange(n, dtype=np.int32)
    return Draft(row, row - 1, np.ones(n, np.float32), np.zeros(n, np.uint8))


def _padded(draft: Draft, n: int) -> Draft:
    """`draft` made n nodes long by hopeless ones below its last node."""
    missing = n - len(draft)
    if missing <= 0:
        return draft
    return Draft(
        np.concatenate((draft.tokens, np.zeros(missing, np.int32))),
        np.concatenate((draft.parents, np.arange(len(draft) - 1, n - 1, dtype=np.int32))),
        np.concatenate((draft.probs, np.zeros(missing, np.float32))),
        np.concatenate((draft.sources, np.zeros(missing, np.uint8))),
    )
