"""Sources that cost time beside the drafters that cost nothing.

The free draft comes first. Then the plan may ask each of the sources for one token after another, or to
check what the free drafters say comes next; their chains and the free draft become one tree, in which tokens
that two propose are one node, and surer for it. Below a chain's end the free drafters go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Want
from specx.drafters.base import EMPTY_DRAFT, Draft, Drafter, Drafting, Offer, Room, Text, Verified
from specx.drafters.calibration.model import AGREES, OTHER, SILENT, Cell, Place
from specx.drafters.cascade import Below, Claims, claims_after, graft
from specx.drafters.guesser import Guess, Guesser, GuesserSource
from specx.drafters.merge import merge
from specx.kernels._native import Foresight

__all__ = ["MixtureDrafter"]

UNKNOWN = -1  # a token that is not known yet


class MixtureDrafter(Drafter):
    """`free` with sources that cost time, which may come and go. Implements `Drafter`.

    Args:
        free: the drafter that costs nothing.
        names: of the sources that there may be.

    Attributes:
        guessers: the sources that are asked from the next step on.
        below: how sure the free drafters are below tokens that they did not claim.
    """

    def __init__(self, free: Drafter, names: Sequence[str] = ("model", "head")) -> None:
        self.free = free
        self.guessers: list[GuesserSource] = []
        self.below = Below()
        self.source_names = (*free.source_names, *names)

    @property
    def needs(self) -> Want:  # type: ignore[override]
        """What the free drafter and the sources that are asked now want of the target."""
        needs = self.free.needs
        for source in self.guessers:
            needs |= source.needs
        return needs

    def start(self, text: Text) -> MixtureDrafting:
        """Follow a text, which holds its prompt."""
        return MixtureDrafting(self, text)

    def source(self, guesser: GuesserSource) -> int:
        """The index of a source in `source_names`."""
        return self.source_names.index(guesser.name)


class _Chain:
    """What one source has proposed in the present step."""

    def __init__(self, source: GuesserSource, guesser: Guesser, index: int) -> None:
        self.source, self.guesser, self.index = source, guesser, index
        self.tokens: list[int] = []
        self.hazards: list[float] = []
        self.cells: list[tuple[Cell, Place]] = []
        self.claimed: list[
            tuple[int, float]
        ] = []  # what the free drafters say there, -1 for nothing, and how sure
        self.place: Place = (0, 0)  # where the next token is forecast from
        self.below = EMPTY_DRAFT  # what the free drafters say after it, if their draft does not go on there

    def begin(self, place: Place) -> None:
        """A step begins."""
        self.tokens, self.hazards, self.cells, self.claimed, self.place = [], [], [], [], place
        self.below = EMPTY_DRAFT

    def add(self, guess: Guess, free: tuple[int, float], noisy: bool) -> None:
        """The source proposes its next token; `free` is what the free drafters claim there, and how sure."""
        calibration = self.source.calibration
        agreement = SILENT if free[0] == UNKNOWN else AGREES if free[0] == guess.token else OTHER
        cell = calibration.cell(noisy, guess.margin, len(self.tokens) + 1, agreement)
        self.tokens.append(guess.token)
        self.hazards.append(calibration.hazard(cell))
        self.cells.append((cell, self.place))
        self.claimed.append(free)
        self.place = calibration.following(noisy, guess.margin)

    def score(self, emitted: Sequence[int], noisy: bool) -> None:
        """Learn from what was emitted, up to the first token that was wrong."""
        source = self.source
        proposed = zip(self.cells, self.hazards, self.claimed, self.tokens, emitted, strict=False)
        for (cell, place), hazard, (free, sure), mine, token in proposed:
            source.calibration.score(cell, place, mine == token)
            source.collapse.observe(hazard, mine == token)
            if free != UNKNOWN:
                source.calibration.score_beside(noisy, sure, free == token, mine == token)
            if mine != token:
                break


class MixtureDrafting(Drafting):
    """Follows one text."""

    def __init__(self, drafter: MixtureDrafter, text: Text) -> None:
        self._drafter, self._text = drafter, text
        self._free = drafter.free.start(text)
        self._chains: dict[GuesserSource, _Chain] = {}
        self._emitted = False  # whether this generation has given a token
        self._draft = EMPTY_DRAFT  # of the free drafter, in this step
        self._room = Room(0, 1)

    def propose(self, room: Room, after: Sequence[int] = ()) -> Draft:
        """The free draft, with room for a leaf of each source."""
        if after:
            return self._free.propose(room, after)
        asked = sum(chain.guesser.usable for chain in self._present())
        leaves = room.leaves if room.leaves == 1 else max(room.leaves - asked, 1)
        self._draft, self._room = self._free.propose(Room(room.limit, leaves)), room
        best = float(self._draft.probs[0]) if len(self._draft) else 0.0
        for chain in self._chains.values():
            chain.begin(chain.source.calibration.first(self._noisy, best))
        return self._draft

    def offers(self, room: Room) -> Sequence[Offer]:
        """What each source would add to its chain of this step."""
        return [offer for chain in self._present() for offer in self._offers(chain)]

    def observe_prompt(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Logits (n, V) that followed each of `tokens` (n,), which are consecutive tokens of the prompt."""
        self._free.observe_prompt(tokens, logits)

    def observe_features(self, at: int, features: NDArray[np.float32]) -> None:
        """Hidden states (n, k * d) of tokens of the prompt from the index `at` on, for sources that read
        them."""
        for chain in self._present():
            if Want.HIDDEN in chain.source.needs:
                chain.guesser.read(at, features)

    def observe(self, seen: Verified) -> None:
        """Let every source learn from the emitted tokens."""
        self._free.observe(seen)
        self._emitted = True
        for chain in self._chains.values():
            chain.score(seen.tokens, self._noisy)
            chain.guesser.observe(seen)
            chain.begin(chain.place)

    def close(self) -> None:
        """The text is finished."""
        self._free.close()
        for chain in self._chains.values():
            chain.guesser.close()
        self._chains.clear()

    @property
    def _noisy(self) -> bool:
        """Whether tokens are chosen with noise."""
        return self._text.temperature > 0

    def _present(self) -> list[_Chain]:
        """A chain for each source that is asked now; those that are gone are forgotten."""
        guessers = self._drafter.guessers
        if len(guessers) != len(self._chains) or any(source not in self._chains for source in guessers):
            for source in [source for source in self._chains if source not in guessers]:
                self._chains.pop(source).guesser.close()
            for source in guessers:
                if source not in self._chains:
                    index = self._drafter.source(source)
                    self._chains[source] = _Chain(source, source.follow(self._text), index)
        return list(self._chains.values())

    def _offers(self, chain: _Chain) -> Iterator[Offer]:
        """The next token, and the next ones as far as they are what the free drafters say."""
        source, guesser = chain.source, chain.guesser
        most = self._room.limit - len(chain.tokens)
        if most <= 0 or guesser.ended or not guesser.usable or not (source.loaded or self._emitted):
            return  # nothing is loaded before the first token is out
        costs = source.costs
        invest_ms, open_ms = 0.0, 0.0 if source.loaded else costs.open_ms
        if not chain.tokens:
            invest_ms = costs.reading(guesser.unread(())) + open_ms
        foresight = self._foresee(chain)
        looked_at = min(guesser.most_checked, most - 1)
        for checked in sorted({0, foresight.worth_checking(looked_at, costs.further_ms, costs.token_ms)}):
            yield Offer(
                source.name,
                partial(_forecast, foresight, checked),
                partial(self._take, chain, foresight, checked),
                most - checked,
                costs.token_ms,
                invest_ms,
                source.loaded,
                open_ms,
                costs.reading(2),
                checked * costs.further_ms,
                partial(foresight.expected, checked),
            )

    def _foresee(self, chain: _Chain) -> Foresight:
        """How likely the next tokens of a source are right, before they are known."""
        calibration, noisy = chain.source.calibration, self._noisy
        below = len(chain.below) > 0
        return Foresight(
            calibration.beside_free(noisy),
            chain.below.arrays if below else self._draft.arrays,
            () if below else chain.tokens,
            calibration.forecast(chain.place),
            calibration.later(noisy),
            self._drafter.below.hazards(),
            (self._merged(chain) if self._room.leaves > 1 else EMPTY_DRAFT).arrays,
            chain.tokens,
            chain.hazards,
            chain.index,
        )

    def _take(self, chain: _Chain, foresight: Foresight, checked: int) -> Draft:
        guesser, claims = chain.guesser, Claims(*foresight.claims)
        if checked:
            guesses = guesser.check(chain.tokens, claims.tokens[:checked])
        else:
            guess = guesser.guess(chain.tokens)
            guesses = () if guess is None else (guess,)
        free = [*zip(claims.tokens, claims.hazards, strict=True), (UNKNOWN, 0.0)]
        for guess, claimed in zip(guesses, free, strict=False):
            chain.add(guess, claimed, self._noisy)
            if claimed[0] != UNKNOWN:
                chain.source.calibration.score_said(self._noisy, claimed[1], guess.token == claimed[0])
        draft = merge(self._merged(chain), chain.tokens, chain.hazards, chain.index)
        return self._gone_on(draft, chain)

    def _gone_on(self, draft: Draft, chain: _Chain) -> Draft:
        """`draft` with what the free drafters say below the chain's end, where they said nothing before."""
        chain.below = EMPTY_DRAFT
        left = self._room.limit - len(chain.tokens)
        if left > 0 and chain.tokens and not len(claims_after(self._draft, chain.tokens)):
            chain.below = self._free.propose(Room(left, 1), chain.tokens)
            self._drafter.below.observe(claims_after(chain.below, ()))
        return graft(draft, chain.tokens, chain.below)

    def _merged(self, without: _Chain) -> Draft:
        """The free draft with the chains of all sources but one."""
        draft = self._draft
        for chain in self._chains.values():
            if chain is not without and chain.tokens:
                draft = merge(draft, chain.tokens, chain.hazards, chain.index)
        return draft


def _forecast(foresight: Foresight, checked: int, asked: int) -> list[tuple[float, Draft]]:
    """What may come of `asked` calls of the source, the first of which checks so many claims."""
    return [(probability, Draft(*arrays)) for probability, arrays in foresight.drafts(checked, asked)]
