"""The free draft and a model that checks it: cascades of drafts.

A model reads what the free drafters claim comes next in one call, at little more than the price of one
token: what it would have said itself goes on, and its own token replaces the first that it would not (Chen et
al., Cascade Speculative Drafting, 2024). The free drafters go on from where its chain ends (Zhao et al.,
Ouroboros, 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from specx.drafters.base import Draft
from specx.kernels._native import claims_after as native_claims
from specx.kernels._native import graft as native_graft

__all__ = ["Below", "Claims", "claims_after", "graft"]

BELOW, BELOW_RATE = 4, 0.05  # tokens, and the weight of a new one in the running mean


@dataclass(frozen=True, slots=True)
class Claims:
    """What the free drafters say comes next along one path.

    Attributes:
        tokens: of the path.
        hazards: of each, the probability that it is right if those before it are.
    """

    tokens: list[int]
    hazards: list[float]

    def __len__(self) -> int:
        return len(self.tokens)


def claims_after(draft: Draft, path: Sequence[int]) -> Claims:
    """The most promising way on in `draft` below the tokens of `path`; nothing if they are not in it."""
    return Claims(*native_claims(draft.tokens, draft.parents, draft.probs, path))


def graft(draft: Draft, path: Sequence[int], below: Draft) -> Draft:
    """`draft` with the tree `below` under the node that the tokens of `path` lead to, which has no children.

    Args:
        draft: a tree that has the path.
        path: tokens from below the root.
        below: its probabilities are given that the path is right.
    """
    if not len(below):
        return draft
    return Draft(
        *native_graft(
            draft.tokens, draft.parents, draft.probs, draft.sources, path,
            below.tokens, below.parents, below.probs, below.sources,
        )
    )  # fmt: skip


class Below:
    """How sure the free drafters are, on average, below tokens of a model that they did not claim."""

    def __init__(self) -> None:
        self._paths = [0.0] * BELOW
        self._seen = 0
        self._hazards: list[float] = []

    def observe(self, claims: Claims) -> None:
        """They said so much there."""
        path = 1.0
        self._seen += 1
        rate = max(BELOW_RATE, 1 / self._seen)
        for n in range(BELOW):
            path *= claims.hazards[n] if n < len(claims) else 0.0
            self._paths[n] += rate * (path - self._paths[n])
        said = [1.0, *(path for path in self._paths if path > 0)]
        self._hazards = [now / before for before, now in pairwise(said)]

    def hazards(self) -> list[float]:
        """Of the next tokens, each given that those before it are right; none where nothing is ever said."""
        return self._hazards
