"""The tokens of the scripted model, as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from specx.backends.base import SpecialToken
from specx.kernels._native import Pieces

__all__ = ["ScriptedVocab"]

_SPLIT_CHARACTERS = (b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98\x80")  # of an accented letter and an emoji
_WORDS = (b" the", b" and", b" of", b" a", b"ing", b"er", b" in", b"tion", b" cat", b" sat", b" on", b" mat")


class ScriptedVocab:
    """Token ids as bytes: 0 ends the generation, then letters, parts of split characters, words, the
    remaining single bytes, and numbered words.

    Args:
        size: number of tokens, at least 2. From 300 on every text can be tokenized.
    """

    def __init__(self, size: int) -> None:
        if size < 2:
            raise ValueError("a vocabulary has at least 2 tokens")
        letters = [bytes([byte]) for byte in b" etaoinshrdlcumwfgypbvkjxqz.\n"]
        first = [*letters, *_SPLIT_CHARACTERS, *_WORDS]
        rest = [bytes([byte]) for byte in range(256) if bytes([byte]) not in first]
        pieces = [b"", *first, *rest][:size]
        pieces += [b" w%d" % number for number in range(size - len(pieces))]
        self._pieces = pieces
        self._ids = {piece: token for token, piece in enumerate(pieces) if token}
        self._longest = max(map(len, pieces))
        self.bos: int | None = None
        self.eos: int | None = None
        self.eot: int | None = None
        self.added_bos: int | None = None
        self.pieces = Pieces(pieces)

    @property
    def size(self) -> int:
        """Number of tokens, V."""
        return len(self._pieces)

    @property
    def eog(self) -> frozenset[int]:
        """Token 0."""
        return frozenset({0})

    def special_tokens(self, typed: Iterable[int] | None = None) -> tuple[SpecialToken, ...]:
        """Token 0, which `<eog>` stands for."""
        del typed  # it is the only one
        return (SpecialToken(0, "<eog>", control=True),)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the token list."""
        return hashlib.sha256(b"\0".join(self._pieces)).hexdigest()

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token; token 0 is empty, or `<eog>` if `special`."""
        if not 0 <= token < self.size:
            raise ValueError(f"there is no token {token}")
        return b"<eog>" if special and token == 0 else self._pieces[token]

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`, the longest match first. Nothing is added for `add_special`.

        Raises:
            ValueError: a byte of the text is not in the vocabulary.
        """
        del add_special  # this model has no token that begins a sequence
        tokens: list[int] = []
        start = 0
        while start < len(text):
            if parse_special and text.startswith(b"<eog>", start):
                tokens.append(0)
                start += len(b"<eog>")
                continue
            lengths = range(min(self._longest, len(text) - start), 0, -1)
            length = next((n for n in lengths if text[start : start + n] in self._ids), None)
            if length is None:
                raise ValueError(f"byte {text[start]:#04x} is not among the {self.size} tokens")
            tokens.append(self._ids[text[start : start + length]])
            start += length
        return tokens
