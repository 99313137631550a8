"""The tokens of a vocabulary that stand for single bytes: what a grammar is probed with."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Vocab
from specx.backends.errors import ModelError

__all__ = ["Alphabet"]

SAMPLED = (*range(0x80, 0x10000, 61), *range(0x10000, 0x110000, 4001))  # characters of every kind of bytes
FEW = b'ab12 \n"-}],'  # what strings, numbers and spaces allow, and what ends them


class Alphabet:
    """The tokens of a vocabulary that stand for one byte, and those that end a text.

    They are found by tokenizing characters, and bytes that are never alone have none.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self.ends = vocab.eog

    @cached_property
    def all(self) -> NDArray[np.int32]:
        """(n,) int32 all of them."""
        return np.array([*self._tokens.values(), *self.ends], np.int32)

    @cached_property
    def few(self) -> NDArray[np.int32]:
        """(m,) int32 of bytes that a choice mostly allows several of, and the ends."""
        known = [self._tokens[byte] for byte in FEW if byte in self._tokens]
        return np.array([*known, *self.ends], np.int32)

    def byte(self, token: int) -> bytes:
        """What a token of one byte stands for."""
        return self._vocab.piece(token)

    piece = byte

    @cached_property
    def _tokens(self) -> dict[int, int]:
        """Byte -> token."""
        found: dict[int, int] = {}
        single = [bytes([byte]) for byte in range(256)]
        characters = "".join(chr(code) for code in SAMPLED if not 0xD800 <= code < 0xE000)
        for text in (*single, characters.encode()):
            with suppress(ModelError):  # there is no token for it
                for token in self._vocab.tokenize(text, add_special=False, parse_special=False):
                    piece = self._vocab.piece(token)
                    if len(piece) == 1:
                        found.setdefault(piece[0], token)
        return found
