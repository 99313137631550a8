"""The objective: expected accepted tokens per second under measured costs, evaluated at every step.

    rate(S) = (1 + sum of a(v) for v in S) / (t_draft + t_host + t_verify(1 + |S|, context))

For n nodes the best tree is the n nodes of largest a(v), and a draft comes ordered that way, so one scan
over its prefixes finds the argmax; the empty prefix is plain decoding and always takes part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Backend
from specx.drafters.base import EMPTY_DRAFT, Draft, Drafter
from specx.engine.staircase import Staircase

__all__ = ["Decision", "Plan"]

TIME_RATE = 0.1  # weight of one step in the running averages of host and branch time


@dataclass(frozen=True, slots=True)
class Decision:
    """What the plan chose for one step.

    Attributes:
        draft: the tree to verify, possibly empty.
        expected: expected number of emitted tokens.
        cost_ms: expected time of the step.
    """

    draft: Draft
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
        self._host_ms = 0.0
        self._leaf_ms = 0.0

    def choose(self, drafter: Drafter, backend: Backend) -> Decision:
        """The draft and width of the highest expected rate, given what `drafter` proposes now."""
        length = backend.length
        room = max(0, min(backend.max_width, backend.n_ctx - length) - 1)
        limit = room if self.max_nodes is None else min(room, self.max_nodes)
        draft = EMPTY_DRAFT
        if limit > 0:
            draft = drafter.propose(limit, 1 if self.widths else backend.max_leaves)
        widths = self._allowed(room + 1)
        nodes = np.minimum(widths - 1, len(draft))
        gains = np.concatenate(([1.0], 1.0 + np.cumsum(draft.probs, dtype=np.float64)))[nodes]
        times = self.staircase.costs(length)[widths] + self._leaf_ms * _extra_leaves(draft)[nodes]
        times += self._host_ms + drafter.cost_ms * (nodes > 0)
        best = int(np.argmax(gains / times))
        chosen = _padded(draft.head(int(nodes[best])), int(widths[best]) - 1)
        return Decision(chosen, float(gains[best]), float(times[best]))

    def _allowed(self, most: int) -> NDArray[np.int64]:
        """Widths to consider; where the step of a wider batch is cheaper, a draft is padded up to it."""
        if self.widths is None:
            return np.arange(1, most + 1)
        return np.array(sorted(n for n in self.widths if n <= most) or [1])

    def observe(self, decision: Decision, length: int, forward_ms: float, host_ms: float) -> None:
        """A step that verified `decision` at `length` took this long inside and outside the backend."""
        self._host_ms += TIME_RATE * (host_ms - self._host_ms)
        leaves = int(_extra_leaves(decision.draft)[-1])
        n = len(decision.draft) + 1
        if leaves == 0:
            self.staircase.observe(n, length, forward_ms)
            return
        extra = (forward_ms - float(self.staircase.costs(length)[n])) / leaves
        self._leaf_ms += TIME_RATE * (max(extra, 0.0) - self._leaf_ms)


def _extra_leaves(draft: Draft) -> NDArray[np.int64]:
    """(n + 1,) leaves beyond the first of each prefix of `draft`, the empty one included."""
    extra = np.zeros(len(draft) + 1, np.int64)
    seen: set[int] = set()
    count = 0
    for i, parent in enumerate(draft.parents.tolist()):
        count += parent in seen
        seen.add(parent)
        extra[i + 1] = count
    return extra


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
