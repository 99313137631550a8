"""What `Below` and `AskedChain` compute, in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from specx.kernels.reference.drafts import graft, merge_chain
from specx.kernels.reference.foresight import FORESEEN, UNKNOWN, Foresight, Node, claims_after
from specx.kernels.reference.model_counts import AGREES, OTHER, SILENT, Cell, ModelCounts, Place

__all__ = ["AskedChain", "Below", "Given"]

BELOW, BELOW_RATE = 4, 0.05  # tokens, and the weight of a new one in the running mean


class Below:
    """How sure the free drafters are, on average, below tokens of a source that they did not claim."""

    def __init__(self) -> None:
        self._paths = [0.0] * BELOW
        self._seen = 0

    def observe(self, hazards: Sequence[float]) -> None:
        """They were so sure of their claims there, each given that those before it are right."""
        path = 1.0
        self._seen += 1
        rate = max(BELOW_RATE, 1 / self._seen)
        for n in range(BELOW):
            path *= hazards[n] if n < len(hazards) else 0.0
            self._paths[n] += rate * (path - self._paths[n])

    def hazards(self) -> list[float]:
        """Of the next tokens, each given that those before it are right; none where nothing is ever said."""
        said = [1.0, *(path for path in self._paths if path > 0)]
        return [now / before for before, now in pairwise(said)]


@dataclass(frozen=True, slots=True)
class Given:
    """A token that the source gave.

    Attributes:
        token: it.
        hazard: how likely it is right if those before it are.
        cell, place: where its hazard was learned, and where it was forecast from.
        claimed, sure: what the free drafters say there, UNKNOWN for nothing, and how sure they are.
    """

    token: int
    hazard: float
    cell: Cell
    place: Place
    claimed: int
    sure: float


class AskedChain:
    """What a source that costs time has given in the present step, beside the free draft.

    Args:
        below: what the free drafters say below the chain is counted there.
        source: its index.
    """

    def __init__(self, below: Below, source: int) -> None:
        self._below, self._source = below, source
        self._free: list[Node] = []
        self._under: list[Node] = []
        self._given: list[Given] = []

    @property
    def tokens(self) -> list[int]:
        """What it has given."""
        return [given.token for given in self._given]

    def begin(self, counts: ModelCounts, noisy: bool, free: list[Node], one_leaf: bool) -> None:
        """A step begins with the free draft."""
        self._counts, self._noisy, self._one_leaf = counts, noisy, one_leaf
        self._free, self._under, self._given = free, [], []
        self._place = counts.first(noisy, free[0][2] if free else 0.0)

    def foresee(self, others: Sequence[AskedChain] = ()) -> Foresight:
        """What is expected of the next calls."""
        tokens, sure = self._claims()
        expected = self._counts.expected_beside(self._noisy, sure[:FORESEEN])
        first, later = self._counts.forecast(self._place), self._counts.later(self._noisy)
        draft = [] if self._one_leaf else self._merged(others)
        return Foresight(
            tokens, sure, expected, first, later, self._below.hazards(), draft, self.tokens,
            self._hazards(), self._source,
        )  # fmt: skip

    def add(self, tokens: Sequence[int], margins: Sequence[float]) -> bool:
        """It has given these tokens. Returns whether there is a chain now, and nothing below it in the free
        draft."""
        counts, noisy = self._counts, self._noisy
        claimed = [*zip(*self._claims(), strict=True)]
        for i, (token, margin) in enumerate(zip(tokens, margins, strict=True)):
            free, sure = claimed[i] if i < len(claimed) else (UNKNOWN, 0.0)
            agreement = SILENT if free == UNKNOWN else AGREES if free == token else OTHER
            cell = counts.cell(noisy, margin, len(self._given) + 1, agreement)
            self._given.append(Given(token, counts.hazard(cell), cell, self._place, free, sure))
            self._place = counts.following(noisy, margin)
            if free != UNKNOWN:
                counts.score_said(noisy, sure, free == token)
        self._under = []
        return bool(self._given) and not claims_after(self._free, self.tokens)[0]

    def draft(self, below: list[Node] | None = None, others: Sequence[AskedChain] = ()) -> list[Node]:
        """The free draft, the chains, and what the free drafters say below."""
        if below is not None:
            self._under = below
            self._below.observe(claims_after(below, [])[1])
        whole = merge_chain(self._merged(others), self.tokens, self._hazards(), self._source)
        return graft(whole, self.tokens, self._under) if self._under else whole

    def score(self, emitted: Sequence[int]) -> list[tuple[float, bool]]:
        """Learn up to the first token that was wrong, and forget the step."""
        scored = []
        for given, token in zip(self._given, emitted, strict=False):
            right = given.token == token
            self._counts.score(given.cell, given.place, right)
            if given.claimed != UNKNOWN:
                self._counts.score_beside(self._noisy, given.sure, given.claimed == token, right)
            scored.append((given.hazard, right))
            if not right:
                break
        self._free, self._under, self._given = [], [], []
        return scored

    def _hazards(self) -> list[float]:
        return [given.hazard for given in self._given]

    def _claims(self) -> tuple[list[int], list[float]]:
        return claims_after(self._under, []) if self._under else claims_after(self._free, self.tokens)

    def _merged(self, others: Sequence[AskedChain]) -> list[Node]:
        draft = self._free
        for other in others:
            if other.tokens:
                draft = merge_chain(draft, other.tokens, other._hazards(), other._source)
        return draft
