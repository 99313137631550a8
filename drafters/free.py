"""The drafters that read no weights: suffix matches and token recycling, merged into one tree."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.drafters.base import EMPTY_DRAFT, Draft, Drafter, Drafting, Room, Text, Verified
from specx.drafters.calibration.free import Calibration
from specx.kernels._native import Corpus, FreeTrie, RecycleTable, SuffixAutomaton

__all__ = ["FreeDrafter"]

SOURCES = frozenset({"suffix", "recycle"})
MAX_WRITTEN = 1 << 18
"""Tokens that all texts are searched in, about 150 bytes each; then the older half goes."""
SHARED_PROMPT = 64
"""Last tokens of a prompt that other texts are searched in: they tell how answers to such prompts begin."""
SEPARATOR = -1
HALF = float(np.finfo(np.float16).max)
"""Logits beyond it, which damaged weights give, are kept as it."""


class FreeDrafter(Drafter):
    """Best-first tree of suffix matches (SAM-Decoding) with recycled branches (Token Recycling, Goose).

    All texts share the recycled rows, the calibration and one automaton of all that was written, in texts
    that are still being written as well. Each has another one of itself: what it said is the better guide.

    At temperature 0 recycled candidates are ranked by their logit. Above, either by that or with the noise
    of their position added, which is how the target chooses: whichever order has lately ranked the right
    tokens higher.

    Args:
        vocab_size: V, number of tokens.
        calibration: hit counts, learned further in place; a new one by default.
        sources: which of "suffix" and "recycle" to use.
        corpus: texts that do not change and are searched as well, if suffixes are.
        max_written: most tokens of all texts that are searched, when one begins.
    """

    source_names = ("suffix", "recycle", "history", "corpus")

    def __init__(
        self,
        vocab_size: int,
        calibration: Calibration | None = None,
        sources: Collection[str] = SOURCES,
        *,
        corpus: Corpus | None = None,
        max_written: int = MAX_WRITTEN,
    ) -> None:
        unknown = set(sources) - SOURCES
        if unknown or not sources:
            raise ValueError(f"sources are 'suffix' and 'recycle', not {sorted(sources)}")
        self.calibration = calibration or Calibration()
        self.table = RecycleTable(vocab_size)
        self.recycles = "recycle" in sources
        self.max_written = max_written
        self._matches = "suffix" in sources
        self._corpus = corpus
        self._written = SuffixAutomaton(apart=True)
        self._idle: list[tuple[FreeTrie, list[int]]] = []  # with the text that was finished, the latest last

    def start(self, text: Text) -> FreeDrafting:
        """Follow a text; what was written before is history unless it is its beginning."""
        if len(self._written) > self.max_written:
            self._written.forget(self.max_written // 2)
        trie = self._take(text.tokens)
        trie.begin(np.array(text.tokens, np.int32), SHARED_PROMPT)
        return FreeDrafting(self, trie, text)

    def preload(self, tokens: NDArray[np.int32]) -> None:
        """Earlier outputs (n,) int32, -1 between them, as history."""
        if not self._matches:
            return
        self._written.reserve(len(tokens))
        for piece in np.split(tokens, np.flatnonzero(tokens == SEPARATOR)):
            text = self._written.begin()
            self._written.append(text, piece[piece != SEPARATOR])
            self._written.end(text)

    def history(self) -> NDArray[np.int32]:
        """What texts are searched in beside themselves, (n,) int32, -1 between them: what `preload` takes."""
        tokens, texts = self._written.tokens()
        order = np.argsort(texts, kind="stable")
        ends = np.flatnonzero(np.diff(texts[order])) + 1
        return np.insert(tokens[order], ends, SEPARATOR)

    def finish(self, trie: FreeTrie, text: Text) -> None:
        """A text is complete; another may go on from it."""
        self._idle.append((trie, text.tokens))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The recycled rows of single tokens; logits as float16."""
        tokens, ids, logits = self.table.export()
        return {"tokens": tokens, "ids": ids, "logits": logits.clip(-HALF, HALF).astype(np.float16)}

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

    def _take(self, tokens: list[int]) -> FreeTrie:
        """A trie that no text uses: the one that holds the beginning of `tokens`, or the latest one."""
        for i, (trie, held) in reversed(list(enumerate(self._idle))):
            if tokens[: len(held)] == held:
                del self._idle[i]
                return trie
        if self._idle:
            return self._idle.pop()[0]
        counts, prior = self.calibration.counts, self.calibration.prior
        return FreeTrie(self.table, counts, prior, self._matches, self.recycles, self._written, self._corpus)


class FreeDrafting(Drafting):
    """Follows one text."""

    def __init__(self, drafter: FreeDrafter, trie: FreeTrie, text: Text) -> None:
        self._drafter, self._trie, self._text = drafter, trie, text
        self._open = True
        self._previous, self._last = [-1, -1, *text.tokens[-2:]][-2:]
        self._coupled = False
        if text.temperature > 0:
            self._choose_order()

    def propose(self, room: Room, after: Sequence[int] = ()) -> Draft:
        """The best tree that fits `room`, below the text and the tokens `after` it.

        Probabilities are given that `after` is right.
        """
        if room.limit <= 0 or room.leaves <= 0:
            return EMPTY_DRAFT
        text = self._text
        return self._trie.grow(
            room.limit, room.leaves, text.seed, text.position, text.temperature, self._coupled, after
        )

    def observe_prompt(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Logits (n, V) that follow each of `tokens` (n,), which are consecutive tokens of the prompt."""
        if self._drafter.recycles and len(tokens):
            previous = np.empty_like(tokens)
            previous[0], previous[1:] = -1, tokens[:-1]
            self._drafter.table.update(previous, tokens, logits)

    def observe(self, seen: Verified) -> None:
        """Score every source on the emitted tokens, then learn the rows of the whole verified tree."""
        text, tokens = self._text, seen.tokens
        # Scoring comes first: the rows already tell what was emitted.
        self._trie.observe(tokens, text.seed, text.position - len(tokens), text.temperature)
        if self._drafter.recycles and self._last >= 0:
            self._trie.update_tree(self._previous, self._last, seen.draft, seen.output.rows)
        self._previous, self._last = tokens[-2] if len(tokens) > 1 else self._last, tokens[-1]
        if text.temperature > 0:
            self._choose_order()

    def close(self) -> None:
        """The text is finished."""
        if self._open:
            self._open = False
            self._drafter.finish(self._trie, self._text)

    def _choose_order(self) -> None:
        plain, coupled = self._trie.order_scores
        self._coupled = coupled >= plain
