"""The drafters that read no weights: suffix matches and token recycling, merged into one tree."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.drafters.base import EMPTY_DRAFT, Draft, Drafter, Drafting, Room, Text, Verified
from specx.drafters.calibration.free import Calibration
from specx.kernels._native import Corpus, FreeTrie, RecycleTable

__all__ = ["FreeDrafter"]

SOURCES = frozenset({"suffix", "recycle"})
MAX_TEXT = 1 << 18
"""Tokens of conversations and history that are searched, about 120 bytes each; then the older half goes."""
SEPARATOR: NDArray[np.int32] = np.array([-1], np.int32)
NO_TOKENS: NDArray[np.int32] = np.empty(0, np.int32)


class FreeDrafter(Drafter):
    """Best-first tree of suffix matches (SAM-Decoding) with recycled branches (Token Recycling, Goose).

    All texts share the recycled rows, the calibration and what was written before. Each has an automaton of
    its own, because the place where its matches end moves with it.

    At temperature 0 recycled candidates are ranked by their logit. Above, either by that or with the noise
    of their position added, which is how the target chooses: whichever order has lately ranked the right
    tokens higher.

    Args:
        vocab_size: V, number of tokens.
        calibration: hit counts, learned further in place; a new one by default.
        sources: which of "suffix" and "recycle" to use.
        corpus: texts that do not change and are searched as well, if suffixes are.
        max_text: most tokens that a text is searched in.
    """

    source_names = ("suffix", "recycle", "history", "corpus")

    def __init__(
        self,
        vocab_size: int,
        calibration: Calibration | None = None,
        sources: Collection[str] = SOURCES,
        *,
        corpus: Corpus | None = None,
        max_text: int = MAX_TEXT,
    ) -> None:
        unknown = set(sources) - SOURCES
        if unknown or not sources:
            raise ValueError(f"sources are 'suffix' and 'recycle', not {sorted(sources)}")
        self.calibration = calibration or Calibration()
        self.table = RecycleTable(vocab_size)
        self.recycles = "recycle" in sources
        self.max_text = max_text
        self._matches = "suffix" in sources
        self._corpus = corpus
        self._history = NO_TOKENS
        self._idle: list[_Searched] = []  # those whose text is finished, the latest last
        self._all: list[_Searched] = []
        self._finished: list[tuple[_Searched, NDArray[np.int32]]] = []  # texts that some have not seen

    def start(self, text: Text) -> FreeDrafting:
        """Follow a text; what was written before becomes history unless it is its beginning."""
        searched = self._take(text.tokens)
        for writer, tokens in self._finished[searched.seen :]:
            if writer is not searched:
                searched.trie.preload(tokens)
        searched.seen = len(self._finished)
        searched.begin(text.tokens, self._share)
        return FreeDrafting(self, searched, text)

    def preload(self, tokens: NDArray[np.int32]) -> None:
        """Earlier outputs (n,) int32, -1 between them, as history; before `start`."""
        self._history = tokens

    def history(self) -> NDArray[np.int32]:
        """What the next text is searched in, (n,) int32, -1 between conversations: what `preload` takes."""
        if not self._all:
            return self._history
        latest = self._all[-1]
        parts = [latest.trie.automaton.text()]
        for writer, tokens in self._finished[latest.seen :]:
            if writer is not latest:
                parts += [SEPARATOR, tokens]
        return np.concatenate(parts)

    def finish(self, searched: _Searched, text: Text) -> None:
        """A text is complete: others may draft from it."""
        if len(self._all) > 1:
            written = np.array(text.tokens[searched.begun :], np.int32)
            if len(written):
                self._finished.append((searched, written))
            seen = min(other.seen for other in self._all)  # by all
            kept = sum(len(tokens) for _, tokens in self._finished[seen:])
            while kept > self._share:  # where nobody writes any more, nobody needs them
                kept -= len(self._finished[seen][1])
                seen += 1
            del self._finished[:seen]
            for other in self._all:
                other.seen = max(other.seen - seen, 0)
        searched.text = text.tokens
        self._idle.append(searched)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The recycled rows of single tokens; logits as float16."""
        tokens, ids, logits = self.table.export()
        return {"tokens": tokens, "ids": ids, "logits": logits.astype(np.float16)}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the rows of `to_arrays` back.

        Raises:
            ValueError: the arrays do not describe rows of this vocabulary.
        """
        try:
            tokens, ids = (np.ascontiguousarray(arrays[name], np.int32) for name in ("tokens", "ids"))
            self.table.restore(tokens, ids, np.ascontiguousarray(arrays["logits"], np.float32))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"the saved rows do not fit: {error}") from error

    @property
    def _share(self) -> int:
        """Most tokens that each text is searched in, so that many of them take no more memory than a few."""
        return self.max_text // max(len(self._all) // 2, 1)

    def _take(self, tokens: list[int]) -> _Searched:
        """An automaton that no text uses: the one that holds the beginning of `tokens`, or the latest one."""
        for searched in reversed(self._idle):
            if tokens[: len(searched.text)] == searched.text:
                self._idle.remove(searched)
                return searched
        if self._idle:
            return self._idle.pop()
        counts, prior = self.calibration.counts, self.calibration.prior
        trie = FreeTrie(self.table, counts, prior, self._matches, self.recycles, self._corpus)
        searched = _Searched(trie)
        known = self._history
        if self._all:  # which has what was written while there was one text at a time
            known, searched.seen = self._all[-1].before(), self._all[-1].seen
        self._all.append(searched)
        if len(known):
            trie.preload(known[-self._share // 2 :] if len(known) > self._share else known)
        return searched


class _Searched:
    """What one text at a time is searched in.

    Attributes:
        trie: history, texts that were finished, and the present one.
        text: tokens of the latest text.
        seen: how many of the texts that were finished elsewhere it holds.
        begun: length of the prompt of the present text.
    """

    def __init__(self, trie: FreeTrie) -> None:
        self.trie = trie
        self.text: list[int] = []
        self.seen = self.begun = 0

    def before(self) -> NDArray[np.int32]:
        """What it holds from before the present conversation."""
        return self.trie.automaton.text()[: self.trie.conversation_start]

    def begin(self, tokens: list[int], max_text: int) -> None:
        """A generation starts after `tokens`."""
        if len(self.trie.automaton) + len(tokens) > max_text:
            text = self.trie.automaton.text()
            self.trie.clear_text()
            self.trie.preload(text[-(max_text // 2) :])
        self.trie.begin(np.asarray(tokens, np.int32))
        self.begun = len(tokens)


class FreeDrafting(Drafting):
    """Follows one text."""

    def __init__(self, drafter: FreeDrafter, searched: _Searched, text: Text) -> None:
        self._drafter, self._searched, self._text = drafter, searched, text
        self._trie = searched.trie
        self._open = True
        self._previous, self._last = [-1, -1, *text.tokens[-2:]][-2:]
        self._coupled = False
        self._choose_order()

    def propose(self, room: Room, after: Sequence[int] = ()) -> Draft:
        """The best tree that fits `room`, below the text and the tokens `after` it.

        Probabilities are given that `after` is right.
        """
        if room.limit <= 0 or room.leaves <= 0:
            return EMPTY_DRAFT
        text = self._text
        grown = self._trie.grow(
            room.limit, room.leaves, text.seed, text.position, text.temperature, self._coupled, after
        )
        return Draft(*grown)

    def observe_prompt(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Logits (n, V) that follow each of `tokens` (n,), which are consecutive tokens of the prompt."""
        if self._drafter.recycles and len(tokens):
            previous = np.empty_like(tokens)
            previous[0], previous[1:] = -1, tokens[:-1]
            self._drafter.table.update(previous, tokens, logits)

    def observe(self, seen: Verified) -> None:
        """Score every source on the emitted tokens, then learn the rows of the whole verified tree."""
        text, tokens, draft = self._text, seen.tokens, seen.draft
        # Scoring comes first: the rows already tell what was emitted.
        self._trie.observe(tokens, text.seed, text.position - len(tokens), text.temperature)
        if self._drafter.recycles and self._last >= 0:
            self._trie.update_tree(self._previous, self._last, draft.tokens, draft.parents, seen.output.rows)
        self._previous, self._last = [self._previous, self._last, *tokens[-2:]][-2:]
        self._choose_order()

    def close(self) -> None:
        """The text is finished."""
        if self._open:
            self._open = False
            self._drafter.finish(self._searched, self._text)

    def _choose_order(self) -> None:
        if self._text.temperature > 0:
            plain, coupled = self._trie.order_scores
            self._coupled = coupled >= plain
