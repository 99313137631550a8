"""Sources that cost time beside the drafters that cost nothing: cascades of drafts.

The free draft comes first. Then the plan may ask each of the sources for one token after another, or to check
what the free drafters say comes next: a model reads these claims in one call, at little more than the price
of one token. What it would have said itself goes on, and its own token replaces the first that it would not
(Chen et al., Cascade Speculative Drafting, 2024). The chains of the sources and the free draft become one
tree, in which tokens that two propose are one node, and surer for it. Below a chain's end the free drafters
go on (Zhao et al., Ouroboros, 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Want
from specx.drafters.base import Draft, Drafter, Drafting, Offer, Room, Text, Verified
from specx.drafters.guesser import Guesser, GuesserSource
from specx.drafters.runners import Runner, beside
from specx.kernels._native import AskedChain, Below, Foresight

__all__ = ["MixtureDrafter"]


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
            if source.needs is not needs:
                needs |= source.needs
        return needs

    def start(self, text: Text) -> MixtureDrafting:
        """Follow a text, which holds its prompt."""
        return MixtureDrafting(self, text)

    def source(self, guesser: GuesserSource) -> int:
        """The index of a source in `source_names`."""
        return self.source_names.index(guesser.name)


class _Source:
    """A source that is asked about one text.

    Attributes:
        source: what is known of it.
        guesser: follows the text.
        chain: what it has given in the present step.
        others: runners-up of each of its tokens.
    """

    __slots__ = ("chain", "guesser", "others", "source")

    def __init__(self, source: GuesserSource, guesser: Guesser, below: Below, index: int) -> None:
        self.source, self.guesser = source, guesser
        self.chain = AskedChain(below, index)
        self.others: list[Sequence[Runner]] = []

    def observe(self, seen: Verified, *, noisy: bool) -> None:
        """Learn from what was emitted, up to the first token that was wrong."""
        collapse, others = self.source.collapse, self.others
        for place, (hazard, right) in enumerate(self.chain.score(seen.tokens)):
            collapse.observe(hazard, right)
            if not right and place < len(others) and others[place]:
                self.source.runners.score(noisy, others[place], seen.tokens[place])
        self.others = []
        self.guesser.observe(seen)


class MixtureDrafting(Drafting):
    """Follows one text."""

    def __init__(self, drafter: MixtureDrafter, text: Text) -> None:
        self._drafter, self._text = drafter, text
        self._free = drafter.free.start(text)
        self._guessers: list[GuesserSource] = []
        self._sources: list[_Source] = []  # in the same order
        self._emitted = False  # whether this generation has given a token
        self._room = Room(0, 1)

    def propose(self, room: Room, after: Sequence[int] = ()) -> Draft:
        """The free draft, with room for a leaf of each source."""
        if after:
            return self._free.propose(room, after)
        sources = self._present()
        leaves = room.leaves
        if leaves > 1:
            leaves = max(leaves - sum(asked.guesser.usable for asked in sources), 1)
        draft, self._room = self._free.propose(Room(room.limit, leaves)), room
        noisy = self._text.temperature > 0
        for asked in sources:
            asked.others = []
            asked.chain.begin(asked.source.calibration.counts, noisy, draft, room.leaves == 1)
        return draft

    def offers(self, room: Room) -> Sequence[Offer]:
        """What each source would add to its chain of this step."""
        offers: list[Offer] = []
        for asked in self._present():
            self._add_offers(asked, offers)
        return offers

    def observe_prompt(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Logits (n, V) that followed each of `tokens` (n,), which are consecutive tokens of the prompt."""
        self._free.observe_prompt(tokens, logits)

    def observe_features(self, at: int, features: NDArray[np.float32]) -> None:
        """Hidden states (n, k * d) of tokens of the prompt from the index `at` on, for sources that read
        them."""
        for asked in self._present():
            if Want.HIDDEN in asked.source.needs:
                asked.guesser.read(at, features)

    def observe(self, seen: Verified) -> None:
        """Let every source learn from the emitted tokens."""
        self._free.observe(seen)
        self._emitted = True
        for asked in self._sources:
            asked.observe(seen, noisy=self._text.temperature > 0)

    def close(self) -> None:
        """The text is finished."""
        self._free.close()
        for asked in self._sources:
            asked.guesser.close()
        self._guessers, self._sources = [], []

    def _present(self) -> list[_Source]:
        """The sources that are asked now; those that are gone are forgotten."""
        drafter, text = self._drafter, self._text
        if drafter.guessers != self._guessers:
            before, self._guessers = self._sources, list(drafter.guessers)
            self._sources = [asked for asked in before if asked.source in self._guessers]
            for asked in before:
                if asked not in self._sources:
                    asked.guesser.close()
            known = [asked.source for asked in self._sources]
            for source in self._guessers:
                if source not in known:
                    followed = source.follow(text)
                    self._sources.append(_Source(source, followed, drafter.below, drafter.source(source)))
        return self._sources

    def _add_offers(self, asked: _Source, offers: list[Offer]) -> None:
        """The next token, and the next ones as far as they are what the free drafters say."""
        source, guesser, given = asked.source, asked.guesser, len(asked.chain)
        most, loaded = self._room.limit - given, source.loaded
        if most <= 0 or guesser.ended or not guesser.usable or not (loaded or self._emitted):
            return  # nothing is loaded before the first token is out
        costs = source.costs
        token_ms, further_ms = costs.token_ms, costs.further_ms
        upkeep_ms = costs.reading(2)
        open_ms = 0.0 if loaded else costs.open_ms
        invest_ms = 0.0 if given else costs.reading(guesser.unread(())) + open_ms
        foresight = asked.chain.foresee(self._others(asked))
        claimed = foresight.worth_checking(min(guesser.most_checked, most - 1), further_ms, token_ms)
        for checked in (0, claimed) if claimed else (0,):
            offers.append(
                Offer(
                    source.name,
                    partial(foresight.drafts, checked),
                    partial(self._take, asked, foresight, checked),
                    most - checked,
                    token_ms,
                    invest_ms,
                    partial(_record, foresight, source) if loaded else None,
                    open_ms,
                    upkeep_ms,
                    checked * further_ms,
                    partial(foresight.gain, checked),
                )
            )

    def _take(self, asked: _Source, foresight: Foresight, checked: int) -> Draft:
        chain, guesser = asked.chain, asked.guesser
        before = chain.tokens
        if checked:
            guesses = guesser.check(before, foresight.claims[0][:checked])
        else:
            guess = guesser.guess(before)
            guesses = () if guess is None else (guess,)
        below, others = None, self._others(asked)
        unclaimed = chain.add([guess.token for guess in guesses], [guess.margin for guess in guesses])
        if unclaimed and (left := self._room.limit - len(chain)) > 0:
            below = self._free.propose(Room(left, 1), chain.tokens)
        draft = chain.draft(below, others)
        asked.others += [guess.others for guess in guesses]
        if self._room.leaves == 1 or not any(asked.others):
            return draft
        source, noisy = self._drafter.source(asked.source), self._text.temperature > 0
        return beside(
            draft, chain.tokens, asked.others, asked.source.runners, source, self._room.leaves, noisy=noisy
        )

    def _others(self, asked: _Source) -> list[AskedChain]:
        """The chains of the other sources."""
        sources = self._sources
        return [] if len(sources) == 1 else [other.chain for other in sources if other is not asked]


def _record(foresight: Foresight, source: GuesserSource) -> tuple[float, int]:
    """How likely the next token of a source is right, and how many of its tokens that rests on."""
    return foresight.likely, source.calibration.trials
