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
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Backend
from specx.drafters.base import EMPTY_DRAFT, Draft, Drafter
from specx.engine.staircase import CLIP, Staircase
from specx.kernels._native import best_prefix

__all__ = ["Decision", "Plan"]

TIME_RATE = 0.1  # weight of one step in the running averages of host and branch time
# The budget, in plain steps. benchmarks/simulate.py compares such numbers on recorded outputs.
ALLOWANCE = 3.5  # at the start of a generation
INTEREST = 0.02  # for every token
MOST = 16.0  # savings of long ago do not pay for a bad stretch
# Per step: the price of a branch, and of leaving single tokens, fades while nothing is tried that would tell
# it, so that one hiccup does not end branches or drafts.
PRICE_DECAY = 0.01


@dataclass(frozen=True, slots=True)
class Decision:
    """What the plan chose for one step.

    Attributes:
        draft: the tree to verify, possibly empty.
        leaves: its leaves beyond the first.
        expected: expected number of emitted tokens.
        cost_ms: expected time of the step.
    """

    draft: Draft
    leaves: int
    expected: float
    cost_ms: float


class Plan:
    """Chooses what to verify. Owns the staircase.

    Args:
        staircase: measured cost of a forward call.
        max_nodes: most drafted tokens per step, if the user limits them.
        widths: the only batch widths allowed (bit-identical ones), or None for all. With such a set a tree
            is a chain: an accepted branch would leave the cache in another order.
    """

    def __init__(
        self, staircase: Staircase, *, max_nodes: int | None = None, widths: frozenset[int] | None = None
    ) -> None:
        self.staircase = staircase
        self.max_nodes = max_nodes
        self.widths = widths
        self._host_ms = 0.0  # all time outside the backend, `propose` included, whatever is then chosen
        self._leaf_ms = 0.0
        self._switch_ms = 0.0  # what a step costs more because the one before had another width
        self._before = 1  # width of the step before
        self._budget = ALLOWANCE
        self._plain_ms = 1.0  # a step of plain decoding at the present length
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
        costs = self._affordable(costs)
        draft = EMPTY_DRAFT
        if limit > 0 and np.isfinite(costs[2:]).any():
            draft = drafter.propose(limit, 1 if self.widths else backend.max_leaves)
        nodes, width, leaves, gain, cost = best_prefix(
            draft.probs, draft.parents, costs, self._host_ms, self._leaf_ms
        )
        return Decision(_padded(draft.head(nodes), width - 1), leaves, gain, cost)

    def observe(
        self, decision: Decision, accepted: int, length: int, forward_ms: float, host_ms: float
    ) -> None:
        """What a step that verified `decision` at `length` gave, and its time in and outside the backend."""
        self._host_ms += TIME_RATE * (host_ms - self._host_ms)
        n = len(decision.draft) + 1
        switched, self._before = n != self._before, n
        cost = float(self.staircase.costs(length)[n])
        excess = min(forward_ms, CLIP * cost) - cost
        lost = (cost + excess) / self._plain_ms - 1 - accepted if n > 1 or switched else 0.0
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

    def _affordable(self, costs: NDArray[np.float64]) -> NDArray[np.float64]:
        """`costs` without the widths whose loss, if nothing drafted comes true, the budget does not cover."""
        self._plain_ms = costs.min()
        return np.where(costs <= self._plain_ms * (1 + self._budget), costs, np.inf)

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
