"""Sources that cost time beside the drafters that cost nothing.

The free draft comes first. Then the plan may ask each of the sources for one token after another; their
chains and the free draft become one tree, in which tokens that two propose are one node, and surer for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from specx.drafters.base import EMPTY_DRAFT, Draft, Drafter, Drafting, Offer, Room, Text, Verified
from specx.drafters.calibration.model import AGREES, OTHER, SILENT, Cell, Place
from specx.drafters.guesser import Guesser, GuesserSource
from specx.drafters.merge import best_after, merge

__all__ = ["MixtureDrafter"]

UNKNOWN = -1  # a token that is not known yet
FORESEEN = 16  # further tokens that a chain is forecast with at once: as many as the plan weighs


class MixtureDrafter(Drafter):
    """`free` with sources that cost time, which may come and go. Implements `Drafter`.

    Args:
        free: the drafter that costs nothing.
        names: of the sources that there may be.

    Attributes:
        guessers: the sources that are asked from the next step on.
    """

    def __init__(self, free: Drafter, names: Sequence[str] = ("model",)) -> None:
        self.free = free
        self.guessers: list[GuesserSource] = []
        self.source_names = (*free.source_names, *names)
        self.needs = free.needs

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
        self.place: Place = (0, 0)  # where the next token is forecast from
        self.foreseen = EMPTY_DRAFT  # the chain with tokens to come, since the last offer

    def begin(self, place: Place) -> None:
        """A step begins."""
        self.tokens, self.hazards, self.cells, self.place = [], [], [], place


class MixtureDrafting(Drafting):
    """Follows one text."""

    def __init__(self, drafter: MixtureDrafter, text: Text) -> None:
        self._drafter, self._text = drafter, text
        self._free = drafter.free.start(text)
        self._chains: dict[GuesserSource, _Chain] = {}
        self._emitted = False  # whether this generation has given a token
        self._draft = EMPTY_DRAFT  # of the free drafter, in this step
        self._room = Room(0, 1)

    def propose(self, room: Room) -> Draft:
        """The free draft, with room for a leaf of each source."""
        asked = sum(chain.guesser.usable for chain in self._present())
        leaves = room.leaves if room.leaves == 1 else max(room.leaves - asked, 1)
        self._draft, self._room = self._free.propose(Room(room.limit, leaves)), room
        best = float(self._draft.probs[0]) if len(self._draft) else 0.0
        for chain in self._chains.values():
            chain.begin(chain.source.calibration.first(self._noisy, best))
        return self._draft

    def offers(self, room: Room) -> Sequence[Offer]:
        """What each source would add to its chain of this step."""
        return [offer for chain in self._present() if (offer := self._offer(chain)) is not None]

    def observe_prompt(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Logits (n, V) that followed each of `tokens` (n,), which are consecutive tokens of the prompt."""
        self._free.observe_prompt(tokens, logits)

    def observe(self, seen: Verified) -> None:
        """Let every source learn from the emitted tokens."""
        self._free.observe(seen)
        self._emitted = True
        for chain in self._chains.values():
            source = chain.source
            proposed = zip(chain.cells, chain.hazards, chain.tokens, seen.tokens, strict=False)
            for (cell, place), hazard, mine, token in proposed:
                source.calibration.score(cell, place, mine == token)
                source.collapse.observe(hazard, mine == token)
                if mine != token:
                    break
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

    def _offer(self, chain: _Chain) -> Offer | None:
        source, guesser = chain.source, chain.guesser
        most = self._room.limit - len(chain.tokens)
        if most <= 0 or guesser.ended or not guesser.usable or not (source.loaded or self._emitted):
            return None  # nothing is loaded before the first token is out
        costs, calibration = source.costs, source.calibration
        invest_ms, open_ms = 0.0, 0.0 if source.loaded else costs.open_ms
        if not chain.tokens:
            invest_ms = costs.reading(guesser.unread(())) + open_ms
        expected = calibration.forecast(chain.place), calibration.later(self._noisy)
        chain.foreseen = EMPTY_DRAFT
        return Offer(
            source.name,
            partial(self._forecast, chain, *expected),
            partial(self._take, chain),
            most,
            costs.token_ms,
            invest_ms,
            source.loaded,
            open_ms,
            costs.reading(2),
        )

    def _forecast(self, chain: _Chain, first: float, later: float, further: int) -> Draft:
        """The draft with `further` tokens of the source, the first of them right with probability `first`."""
        if self._room.leaves > 1:
            return self._with_unknown(self._merged(chain), chain, first, later, further)
        if len(chain.foreseen) < len(chain.tokens) + further:  # shorter chains are its beginnings
            at_once = max(further, FORESEEN)
            chain.foreseen = self._with_unknown(EMPTY_DRAFT, chain, first, later, at_once)
        return chain.foreseen.head(len(chain.tokens) + further)

    def _with_unknown(self, draft: Draft, chain: _Chain, first: float, later: float, further: int) -> Draft:
        tokens = [*chain.tokens, *[UNKNOWN] * further]
        hazards = [*chain.hazards, first, *[later] * (further - 1)]
        return merge(draft, tokens, hazards, chain.index)

    def _take(self, chain: _Chain) -> Draft:
        guess = chain.guesser.guess(chain.tokens)
        if guess is not None:
            calibration = chain.source.calibration
            depth, agreement = len(chain.tokens) + 1, self._agreement(chain, guess.token)
            cell = calibration.cell(self._noisy, guess.margin, depth, agreement)
            chain.tokens.append(guess.token)
            chain.hazards.append(calibration.hazard(cell))
            chain.cells.append((cell, chain.place))
            chain.place = calibration.following(self._noisy, guess.margin)
        return merge(self._merged(chain), chain.tokens, chain.hazards, chain.index)

    def _merged(self, without: _Chain) -> Draft:
        """The free draft with the chains of all sources but one."""
        draft = self._draft
        for chain in self._chains.values():
            if chain is not without and chain.tokens:
                draft = merge(draft, chain.tokens, chain.hazards, chain.index)
        return draft

    def _agreement(self, chain: _Chain, token: int) -> int:
        """What the free draft says at the place of the chain's next token, which is `token`."""
        best = best_after(self._draft, chain.tokens)
        if best is None:
            return SILENT
        return AGREES if best == token else OTHER
