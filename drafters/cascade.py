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

import numpy as np

from specx.drafters.base import Draft
from specx.drafters.calibration.model import Beside

__all__ = ["FORESEEN", "Below", "Claims", "Foresight", "claims_after", "graft", "worth_checking"]

FORESEEN = 16  # further tokens that a chain is forecast with at once: as many as the plan weighs
TOLD_APART = (0, 1, 2, 4, 8)  # claims agreed with; numbers in between count as the next of these
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
    tokens, parents, probs = draft.tokens.tolist(), draft.parents.tolist(), draft.probs.tolist()
    at, above, depth = -1, 1.0, 0
    claimed: list[int] = []
    hazards: list[float] = []
    for node, parent in enumerate(parents):  # children follow their parents, the best first
        if parent != at or (depth < len(path) and tokens[node] != path[depth]):
            continue
        if depth >= len(path):
            claimed.append(tokens[node])
            hazards.append(probs[node] / above if above > 0 else 0.0)
        at, above, depth = node, probs[node], depth + 1
    return Claims(claimed, hazards)


def graft(draft: Draft, path: Sequence[int], below: Draft) -> Draft:
    """`draft` with the tree `below` under the node that the tokens of `path` lead to, which has no children.

    Args:
        draft: a tree that has the path.
        path: tokens from below the root.
        below: its probabilities are given that the path is right.
    """
    if not len(below):
        return draft
    tokens, parents = draft.tokens.tolist(), draft.parents.tolist()
    at, depth = -1, 0
    for node, parent in enumerate(parents):
        if depth < len(path) and parent == at and tokens[node] == path[depth]:
            at, depth = node, depth + 1
    n = len(draft)
    probs = np.concatenate((draft.probs, below.probs * draft.probs[at]))
    order = np.argsort(-probs, kind="stable")  # a parent comes before its children at equal probability
    places = np.empty(len(order) + 1, np.int32)
    places[order], places[-1] = np.arange(len(order)), -1
    under = np.where(below.parents < 0, at, below.parents + n)
    return Draft(
        np.concatenate((draft.tokens, below.tokens))[order],
        places[np.concatenate((draft.parents, under))[order]],
        probs[order],
        np.concatenate((draft.sources, below.sources))[order],
    )


def worth_checking(both: Sequence[float], further_ms: float, token_ms: float) -> int:
    """How many claimed tokens are checked in one call: those that are expected to save time.

    Another one costs `further_ms`, and spares a call of `token_ms` if it and all before it are what the model
    says.

    Args:
        both: of each claimed token, the probability that it is right and the model says it, if that was so of
            those before it.
    """
    path, n = 1.0, 0
    for hazard in both:
        path *= hazard
        if path * token_ms <= further_ms:
            break
        n += 1
    return n


class Below:
    """How sure the free drafters are, on average, below tokens of a model that they did not claim."""

    def __init__(self) -> None:
        self._paths = [0.0] * BELOW
        self._seen = 0

    def observe(self, claims: Claims) -> None:
        """They said so much there."""
        path = 1.0
        self._seen += 1
        rate = max(BELOW_RATE, 1 / self._seen)
        for n in range(BELOW):
            path *= claims.hazards[n] if n < len(claims) else 0.0
            self._paths[n] += rate * (path - self._paths[n])

    def hazards(self) -> list[float]:
        """Of the next tokens, each given that those before it are right; none where nothing is ever said."""
        said = [1.0, *(path for path in self._paths if path > 0)]
        return [now / before for before, now in pairwise(said)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What may come of a call of a model.

    Attributes:
        probability: of that.
        agreed: how many of the claimed tokens it says.
        hazards: of the tokens after its chain then: those claims, what it says next, and what the free
            drafters say after that.
    """

    probability: float
    agreed: int
    hazards: list[float]


@dataclass(frozen=True, slots=True)
class Foresight:
    """What is expected of a model before it is asked.

    Attributes:
        claims: what the free drafters say comes next.
        expected: for each claim, how likely the model says it, is right, and both.
        first, later: how likely its next token, and one further on, are right where nothing is claimed.
        below: hazards of what the free drafters say after a token of the model that they did not.
    """

    claims: Claims
    expected: list[Beside]
    first: float
    later: float
    below: list[float]

    def outcomes(self, checked: int) -> list[Outcome]:
        """Of one call that checks so many claims."""
        found: list[Outcome] = []
        agreed: list[float] = []
        path, rest = 1.0, 0.0  # probability of having come so far, and of what is not told apart
        for n in range(checked + 1):
            if n >= len(self.expected):
                return [*found, Outcome(path + rest, n, [*agreed, self._right(n), *self.below])]
            at = self.expected[n]
            rest += path * (1 - at.said)
            if n in TOLD_APART:
                found.append(Outcome(rest, n, [*agreed, at.if_other, *self.below]))
                rest = 0.0
            agreed.append(at.if_said)
            path *= at.said
        return [
            *found,
            Outcome(path + rest, checked + 1, [*agreed, *self.claims.hazards[checked + 1 : FORESEEN]]),
        ]

    def hazards(self, checked: int, asked: int) -> list[float]:
        """Of the tokens there will be after `asked` calls, the first of which checks so many claims.

        A call gives one token, and the first another for each claim that the model agrees with. So the token
        at depth d is there if the first d - `asked` claims are what the model says, and the tokens are those
        that it would give one by one.
        """
        found = []
        for depth in range(checked + asked):
            hazard = self._right(depth)
            if depth >= asked:
                before = self.expected[depth - asked]
                hazard *= before.both / before.right if before.right > 0 else 0.0
            found.append(hazard)
        return [*found, *self.below]

    def _right(self, depth: int) -> float:
        if depth < len(self.expected):
            return self.expected[depth].right
        return self.later if depth else self.first
