"""What kernels/drafts/foresight.cpp and `ModelCounts.expected_beside` compute, in plain Python."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specx.kernels.reference.drafts import merge_chain

__all__ = ["FORESEEN", "UNKNOWN", "Beside", "Foresight", "Outcome", "beside", "claims_after"]

FORESEEN = 16  # further tokens that a chain is forecast with at once: as many as the plan weighs
TOLD_APART = (0, 1, 2, 4, 8)  # claims agreed with; numbers in between count as the next of these
UNKNOWN = -1  # a token that is not known yet

Node = tuple[int, int, float, int]
"""Token, parent, probability and source of a node of a draft."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What to expect of a source where the free drafters propose a token.

    Attributes:
        said: probability that it will say that token.
        right: that it will be right.
        both: that it will say that token and be right.
    """

    said: float
    right: float
    both: float

    @property
    def if_said(self) -> float:
        """Probability that it is right if it says that token."""
        return self.both / self.said if self.said > 0 else 0.0

    @property
    def if_other(self) -> float:
        """Probability that it is right if it says another."""
        return (self.right - self.both) / (1 - self.said) if self.said < 1 else 0.0


def beside(
    right: NDArray[np.float64],
    agreed: NDArray[np.float64],
    edges: NDArray[np.float64],
    priors: NDArray[np.float64],
    hazard: float,
) -> Beside:
    """What to expect where the free drafters' token is right with the probability `hazard`.

    Args:
        right: (cells, 2, 2) hits and trials by whether they were right.
        agreed: (cells, 2) hits and trials of saying their token.
        edges: (cells - 1,) hazards from which on the next cell applies.
        priors: (5,) of being right where they are not and where they are, of saying their token likewise, and
            the weight of these.
    """
    otherwise, alike, unsaid, said, weight = priors.tolist()
    at = bisect_right(edges.tolist(), hazard)

    def shrunk(counts: NDArray[np.float64], prior: float) -> float:
        hits, trials = counts.tolist()
        return float((weight * prior + hits) / (weight + trials))

    both = hazard * shrunk(right[at, 1], alike)
    other = (1 - hazard) * shrunk(right[at, 0], otherwise)
    saying = shrunk(agreed[at], hazard * said + (1 - hazard) * unsaid)
    return Beside(min(max(saying, both), 1 - other), both + other, both)


def claims_after(draft: Sequence[Node], path: Sequence[int]) -> tuple[list[int], list[float]]:
    """The most promising way on in `draft` below the tokens of `path`: tokens, and the hazard of each.

    Nothing, if the path is not in it.
    """
    at, above, depth = -1, 1.0, 0
    claimed: list[int] = []
    hazards: list[float] = []
    for node, (token, parent, prob, _) in enumerate(draft):  # children follow their parents, the best first
        if parent != at or (depth < len(path) and token != path[depth]):
            continue
        if depth >= len(path):
            claimed.append(token)
            hazards.append(prob / above if above > 0 else 0.0)
        at, above, depth = node, prob, depth + 1
    return claimed, hazards


@dataclass(frozen=True, slots=True)
class Outcome:
    """What may come of a call of a source.

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
    """What is expected of a source before it is asked.

    Attributes:
        tokens, sure: what the free drafters say comes next, and the hazard of each.
        expected: for each claim that is foreseen, how likely the source says it, is right, and both.
        first, later: how likely its next token, and one further on, are right where nothing is claimed.
        below: hazards of what the free drafters say after a token of the source that they did not.
        draft: what its chain is merged into.
        chain, hazards_before: what it has given in this step, and how sure that is.
        source: its index.
    """

    tokens: list[int]
    sure: list[float]
    expected: list[Beside]
    first: float
    later: float
    below: list[float]
    draft: list[Node] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)
    hazards_before: list[float] = field(default_factory=list)
    source: int = 0

    def worth_checking(self, most: int, further_ms: float, token_ms: float) -> int:
        """How many of the first `most` claims are checked in one call: those that are expected to save time.

        Another one costs `further_ms`, and spares a call of `token_ms` if it and all before it are right and
        what the source says.
        """
        path, n = 1.0, 0
        for at in self.expected[:most]:
            path *= at.both
            if path * token_ms <= further_ms:
                break
            n += 1
        return n

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
            Outcome(path + rest, checked + 1, [*agreed, *self.sure[checked + 1 : FORESEEN]]),
        ]

    def hazards(self, checked: int, asked: int) -> list[float]:
        """Of the tokens there will be after `asked` calls, the first of which checks so many claims.

        A call gives one token, and the first another for each claim that the source agrees with. So the token
        at depth d is there if the first d - `asked` claims are what the source says, and the tokens are those
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

    @property
    def likely(self) -> float:
        """How likely the next token is right."""
        return self._right(0)

    def _right(self, depth: int) -> float:
        if depth < len(self.expected):
            return self.expected[depth].right
        return self.later if depth else self.first

    def drafts(self, checked: int, asked: int) -> list[tuple[float, list[Node]]]:
        """What may come of `asked` calls, the first of which checks so many claims: drafts as they would be,
        each with the probability of that."""
        if asked > 1:
            hazards = self.hazards(checked, asked)
            return [(1.0, self._with([UNKNOWN] * len(hazards), hazards))]
        found = []
        for outcome in self.outcomes(checked):
            n = len(outcome.hazards)
            known = outcome.agreed if outcome.agreed <= checked else n
            tokens = [*self.tokens[:known], *[UNKNOWN] * (n - known)]
            found.append((outcome.probability, self._with(tokens, outcome.hazards)))
        return found

    def _with(self, tokens: Sequence[int], hazards: Sequence[float]) -> list[Node]:
        chain, sure = [*self.chain, *tokens], [*self.hazards_before, *hazards]
        return merge_chain(self.draft, chain, sure, self.source)
