"""The drafters that read no weights: suffix matches and token recycling, merged into one tree."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Output
from specx.drafters.base import EMPTY_DRAFT, NO_TRUNCATION, Draft, Truncation
from specx.drafters.calibration.free import Calibration
from specx.kernels._native import FreeTrie

__all__ = ["FreeDrafter"]

SOURCES = frozenset({"suffix", "recycle"})
MAX_TEXT = 1 << 18
"""Tokens of conversations and history that are searched, about 100 bytes each; then the older half goes."""
COST_WEIGHT = 0.05
"""Weight of a new measurement in the mean cost."""


class FreeDrafter:
    """Best-first tree of suffix matches (SAM-Decoding) with recycled branches (Token Recycling, Goose).

    At temperature 0 recycled candidates are ranked by their logit. Above, either by that or with the noise
    of their position added, which is how the target chooses: whichever order has lately ranked the right
    tokens higher.

    Args:
        vocab_size: V, number of tokens.
        calibration: hit counts, learned further in place; a new one by default.
        sources: which of "suffix" and "recycle" to use.
    """

    source_names: tuple[str, ...] = ("suffix", "recycle", "history")

    def __init__(
        self,
        vocab_size: int,
        calibration: Calibration | None = None,
        sources: Collection[str] = SOURCES,
    ) -> None:
        unknown = set(sources) - SOURCES
        if unknown or not sources:
            raise ValueError(f"sources are 'suffix' and 'recycle', not {sorted(sources)}")
        self.calibration = calibration or Calibration()
        self._trie = FreeTrie(
            vocab_size,
            self.calibration.counts,
            self.calibration.prior,
            use_suffix="suffix" in sources,
            use_recycle="recycle" in sources,
        )
        self._recycles = "recycle" in sources
        self._seed, self._temperature, self._coupled = 0, 0.0, False
        self._previous = self._last = -1
        self._position = 0
        self._cost_ms = 0.0

    @property
    def cost_ms(self) -> float:
        """Mean measured time of `propose`, in milliseconds; 0 before the first."""
        return self._cost_ms

    def begin(
        self,
        context: Sequence[int],
        *,
        seed: int = 0,
        temperature: float = 0.0,
        position: int | None = None,
        truncation: Truncation = NO_TRUNCATION,
    ) -> None:
        """A generation starts after `context`; what was generated before becomes history unless it is its
        beginning."""
        tokens = np.asarray(context, np.int32)
        self._make_room(len(tokens))
        self._trie.begin(tokens)
        self._seed, self._temperature = seed, temperature
        self._previous, self._last = [-1, -1, *tokens[-2:].tolist()][-2:]
        self._position = len(tokens) if position is None else position
        self._choose_order()

    def preload(self, tokens: NDArray[np.int32]) -> None:
        """Earlier outputs (n,) int32, -1 between them, as history; before `begin`."""
        self._trie.preload(tokens)

    def history(self) -> NDArray[np.int32]:
        """All the text that is searched, (n,) int32, -1 between conversations: what `preload` takes."""
        return self._trie.automaton.text()

    def propose(self, limit: int, leaves: int) -> Draft:
        """The best tree of at most `limit` nodes and `leaves` leaves."""
        if limit <= 0 or leaves <= 0:
            return EMPTY_DRAFT
        start = perf_counter()
        draft = Draft(
            *self._trie.grow(limit, leaves, self._seed, self._position, self._temperature, self._coupled)
        )
        cost = (perf_counter() - start) * 1e3
        self._cost_ms += (cost - self._cost_ms) * (COST_WEIGHT if self._cost_ms else 1.0)
        return draft

    def offer(self) -> None:
        """Nothing here costs time."""

    def observe_rows(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Logits (n, V) that follow each of `tokens` (n,), which are consecutive tokens of a prompt."""
        if self._recycles and len(tokens):
            previous = np.empty_like(tokens)
            previous[0], previous[1:] = -1, tokens[:-1]
            self._trie.update_rows(previous, tokens, logits)

    def observe(self, tokens: Sequence[int], draft: Draft, output: Output) -> None:
        """Score every source on the emitted tokens, then learn the rows of the whole verified tree."""
        # Scoring comes first: the rows already tell what was emitted.
        self._trie.observe(tokens, self._seed, self._position, self._temperature)
        if self._recycles and self._last >= 0:
            self._trie.update_tree(self._previous, self._last, draft.tokens, draft.parents, output.rows)
        self._position += len(tokens)
        self._previous, self._last = [self._previous, self._last, *tokens[-2:]][-2:]
        self._choose_order()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The recycled rows of single tokens; logits as float16."""
        tokens, ids, logits = self._trie.table.export()
        return {"tokens": tokens, "ids": ids, "logits": logits.astype(np.float16)}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the rows of `to_arrays` back.

        Raises:
            ValueError: the arrays do not describe rows of this vocabulary.
        """
        try:
            tokens, ids = (np.ascontiguousarray(arrays[name], np.int32) for name in ("tokens", "ids"))
            self._trie.table.restore(tokens, ids, np.ascontiguousarray(arrays["logits"], np.float32))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"the saved rows do not fit: {error}") from error

    def _choose_order(self) -> None:
        if self._temperature > 0:
            plain, coupled = self._trie.order_scores
            self._coupled = coupled >= plain
        else:
            self._coupled = False

    def _make_room(self, coming: int) -> None:
        """Drop the older half of the text when `coming` more tokens would be too many."""
        if len(self._trie.automaton) + coming <= MAX_TEXT:
            return
        text = self._trie.automaton.text()
        self._trie.clear_text()
        self._trie.preload(text[-(MAX_TEXT // 2) :])
