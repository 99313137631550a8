"""A constraint that begins where a call of a tool does: text is free, and a call is as its schema has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Vocab
from specx.backends.errors import GrammarError
from specx.drafters.base import Forcing
from specx.engine.api.parsing import Tags
from specx.engine.sampling import Constraint

__all__ = ["Guard"]


class Guard:
    """Follows the emitted tokens, and a grammar from each opening of a block of calls to the block's end.

    What stands in one token with the opening is put to the grammar as well; if it does not fit, that block is
    left free. Implements `Constraint` and `Forcing`.

    Args:
        vocab: of the model.
        opens: what a block begins with.
        make: a constraint of what follows an opening, up to the end of the block.
        tags, inside: of the reasoning, in which nothing is a call, as in `AnswerParser`.
        once: whether the text ends after a block.
    """

    def __init__(
        self,
        vocab: Vocab,
        opens: Sequence[str],
        make: Callable[[], Constraint],
        *,
        tags: Tags | None = None,
        inside: bool = False,
        once: bool = False,
    ) -> None:
        self._vocab, self._make, self._once = vocab, make, once
        self._opens = [opening.encode() for opening in opens]
        self._opening = tags.opening.encode() if tags is not None and not inside else b""
        self._closing = tags.closing.encode() if tags is not None else b""
        self._thinks = inside and tags is not None
        self._longest = max(map(len, [*self._opens, self._closing]))
        self._tail = b""  # of the free text: what something may have begun in
        self._ends = np.array(sorted(vocab.eog), np.int32)
        self._within: Constraint | None = None
        self._over = False

    def allowed(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of the tokens `ids` (m,) int32 may come next, as (m,) bool."""
        if self._within is not None:
            return self._within.allowed(ids)
        return np.isin(ids, self._ends) if self._over else np.ones(len(ids), np.bool_)

    def forced(self) -> bytes:
        """Bytes that everything which may come next begins with."""
        return self._within.forced() if isinstance(self._within, Forcing) else b""

    def accept(self, token: int) -> None:
        """`token` was emitted."""
        if self._within is None:
            self._follow(self._tail + self._vocab.piece(token, special=True))
            return
        self._within.accept(token)
        if self._within.allowed(self._ends).any():  # only where the block is complete
            self._within, self._over = None, self._once

    def _follow(self, text: bytes) -> None:
        """`text` is the end of what was free so far."""
        if self._opening:
            begun = text.lstrip()
            if self._opening.startswith(begun) and begun != self._opening:
                self._tail = text
                return
            self._thinks, self._opening = begun.startswith(self._opening), b""
        if self._thinks:
            _, found, rest = text.partition(self._closing)
            if not found:
                self._tail = text[-self._longest :]
                return
            self._thinks, text = False, rest
        found_at = [at + len(each) for each in self._opens if (at := text.find(each)) >= 0]
        self._tail = b"" if found_at else text[-self._longest :]
        if found_at:
            self._enter(text[min(found_at) :])

    def _enter(self, rest: bytes) -> None:
        try:
            within = self._make()
            for token in self._vocab.tokenize(rest, add_special=False, parse_special=False) if rest else ():
                within.accept(token)
        except GrammarError:
            return
        self._within = within
