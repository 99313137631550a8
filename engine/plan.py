"""The objective: expected accepted tokens per second under measured costs, evaluated at every step.

    rate(S) = (1 + sum of a(v) for v in S) / (t_host + t_verify(1 + |S|, context))

t_host is all the time spent outside the backend, drafting included. For n nodes the best tree is the n
nodes of largest a(v), and a draft comes ordered that way, so one scan over its prefixes finds the argmax;
the empty prefix is plain decoding and always takes part.
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
LEAF_DECAY = 0.01  # the price of a branch fades when none is tried, so that one hiccup does not end branches


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
        self._forbidden: NDArray[np.float64] | None = None
        if widths is not None:
            allowed = [n in widths for n in range(staircase.max_width + 1)]
            self._forbidden = np.where(allowed, 0.0, np.inf)

    @property
    def narrowest(self) -> int:
        """Room that a step needs at least, in tokens."""
        return min(self.widths) if self.widths else 1

    def choose(self, drafter: Drafter, backend: Backend) -> Decision:
        """The draft and width of the highest expected rate, given what `drafter` proposes now."""
        length = backend.length
        room = backend.n_ctx - length
        # Nothing is committed that leaves less room than a step needs: the context then ends at the same
        # token whatever is drafted.
        limit = min(backend.max_width - 1, room - self.narrowest)
        if self.max_nodes is not None:
            limit = min(limit, self.max_nodes)
        draft = EMPTY_DRAFT
        if limit > 0:
            draft = drafter.propose(limit, 1 if self.widths else backend.max_leaves)
        costs = self.staircase.costs(length)[: max(1, min(backend.max_width, room)) + 1]
        if self._forbidden is not None and room >= self.narrowest:
            costs = costs + self._forbidden[: len(costs)]
        nodes, width, leaves, gain, cost = best_prefix(
            draft.probs, draft.parents, costs, self._host_ms, self._leaf_ms
        )
        return Decision(_padded(draft.head(nodes), width - 1), leaves, gain, cost)

    def observe(self, decision: Decision, length: int, forward_ms: float, host_ms: float) -> None:
        """A step that verified `decision` at `length` took this long inside and outside the backend."""
        self._host_ms += TIME_RATE * (host_ms - self._host_ms)
        n = len(decision.draft) + 1
        if decision.leaves == 0:
            self.staircase.observe(n, length, forward_ms)
            self._leaf_ms *= 1 - LEAF_DECAY
            return
        cost = float(self.staircase.costs(length)[n])
        extra = (min(forward_ms, CLIP * cost) - cost) / decision.leaves
        self._leaf_ms += TIME_RATE * (max(extra, 0.0) - self._leaf_ms)


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
