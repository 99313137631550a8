"""Tokens that a grammar forces: where only one text may follow, it is the draft.

A grammar or a JSON schema often leaves exactly one way on, such as the rest of a property's name. These bytes
are certain, and how the target splits them into tokens almost is: it mostly chooses the tokens that its
tokenizer would, except at the end, where a token may reach beyond what is forced.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Vocab, Want
from specx.drafters.base import Draft, Drafter, Drafting, Forcing, Offer, Room, Text, Verified

__all__ = ["ForcedCalibration", "ForcedDrafter", "ForcedDrafting", "tokens_of"]

SOURCE = "grammar"
AROUND = 8  # tokens before, which what is forced is tokenized with
PRIOR = (0.95, 0.6)  # of a token, and of the last one, which may reach beyond what is forced
PRIOR_TRIALS = 8.0
KEEP = 0.99  # what a trial leaves of those before it


class ForcedCalibration:
    """How often forced bytes were split into the tokens that were expected.

    Attributes:
        counts: (2, 2) float64 hits and trials, decayed: of tokens, and of the last ones of what is forced.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.float64] = np.zeros((2, 2))

    def hazard(self, last: bool) -> float:
        """Probability that a token is right if those before it are."""
        hits, trials = self.counts[int(last)].tolist()
        return float((PRIOR_TRIALS * PRIOR[last] + hits) / (PRIOR_TRIALS + trials))

    def score(self, last: bool, right: bool) -> None:
        """A token was `right` or not."""
        counts = self.counts[int(last)]
        counts *= KEEP
        counts += right, 1


class ForcedDrafter(Drafter):
    """Adds what a grammar forces to the drafts of another drafter. Implements `Drafter`.

    Args:
        inner: drafts of texts without a grammar are its own.
        vocab: of the target.
    """

    def __init__(self, inner: Drafter, vocab: Vocab) -> None:
        self.inner, self.vocab = inner, vocab
        self.source_names = (*inner.source_names, SOURCE)
        self.calibration = ForcedCalibration()

    @property
    def needs(self) -> Want:  # type: ignore[override]
        """What the inner drafter wants of the target."""
        return self.inner.needs

    def start(self, text: Text) -> Drafting:
        """Follow a text, which holds its prompt."""
        inner = self.inner.start(text)
        return inner if text.forcing is None else ForcedDrafting(self, inner, text, text.forcing)


class ForcedDrafting(Drafting):
    """Follows one text with a grammar."""

    def __init__(self, drafter: ForcedDrafter, inner: Drafting, text: Text, forcing: Forcing) -> None:
        self._drafter, self._inner, self._text, self._forcing = drafter, inner, text, forcing
        self._proposed: list[tuple[int, bool]] = []  # forced tokens of this step, and which is the last one

    def propose(self, room: Room, after: Sequence[int] = ()) -> Draft:
        """The inner draft with what is forced, below which it goes on."""
        inner = self._inner
        if after or room.limit <= 0:
            return inner.propose(room, after)
        self._proposed = self._forced()[: room.limit]
        if not self._proposed:
            return inner.propose(room)
        tokens = [token for token, _ in self._proposed]
        hazards = [self._drafter.calibration.hazard(last) for _, last in self._proposed]
        index = len(self._drafter.source_names) - 1
        draft = inner.propose(Room(room.limit, max(room.leaves - 1, 1))).merged(tokens, hazards, index)
        if draft.best_after(tokens) is None:
            draft = draft.grafted(tokens, inner.propose(Room(room.limit - len(tokens), 1), tokens))
        draft = draft.head(room.limit)
        return draft.likeliest_chain() if room.leaves == 1 else draft

    def offers(self, room: Room) -> Sequence[Offer]:
        """What the inner sources that cost time would add."""
        return self._inner.offers(room)

    def observe_prompt(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Logits (n, V) that followed each of `tokens` (n,), which are consecutive tokens of the prompt."""
        self._inner.observe_prompt(tokens, logits)

    def observe_features(self, at: int, features: NDArray[np.float32]) -> None:
        """Hidden states (n, k * d) of tokens of the prompt from the index `at` on."""
        self._inner.observe_features(at, features)

    def observe(self, seen: Verified) -> None:
        """Learn how forced bytes were split, whether they were verified or not."""
        for (mine, last), token in zip(self._proposed, seen.tokens, strict=False):
            self._drafter.calibration.score(last, mine == token)
            if mine != token:
                break
        self._proposed = []
        self._inner.observe(seen)

    def close(self) -> None:
        """The text is finished."""
        self._inner.close()

    def _forced(self) -> list[tuple[int, bool]]:
        """Tokens of the bytes that are forced now, each with whether it is the last."""
        run = self._forcing.forced()
        if not run:
            return []
        tokens = tokens_of(self._drafter.vocab, self._text.tokens[-AROUND:], run)
        return [(token, n == len(tokens)) for n, token in enumerate(tokens, 1)]


def tokens_of(vocab: Vocab, before: Sequence[int], text: bytes) -> list[int]:
    """The tokens that the bytes `text` are split into after the tokens `before`.

    Bytes at the end that are no whole character are left out. With those before they are tokenized as the
    tokenizer does it in a text; if that has no boundary between them, alone.
    """
    whole = text.decode("utf-8", "ignore").encode()
    if not text.startswith(whole):  # something in the middle is no character
        return []
    pieces = [vocab.piece(token) for token in before]
    for context in (b"".join(pieces), b""):
        tokens = vocab.tokenize(context + whole, add_special=False, parse_special=False)
        ends = [0, *accumulate(len(vocab.piece(token)) for token in tokens)]
        start = ends[-1] - len(whole)  # some tokenizers put a space before a text
        if start in ends:
            found = tokens[ends.index(start) :]
            if b"".join(map(vocab.piece, found)) == whole:
                return found
    return []
