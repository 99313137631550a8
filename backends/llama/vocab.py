"""The vocabulary of a GGUF model, as bytes."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any

from specx.backends.llama.library import lib

__all__ = ["LlamaVocab"]

_PIECE_BYTES = 256  # llama.cpp reports the size it needs when a piece is longer


class LlamaVocab:
    """Tokens of a loaded model. Pieces are looked up when first needed: a table of 262,144 costs seconds.

    Args:
        model: the llama_model pointer; must outlive this object.
    """

    def __init__(self, model: Any) -> None:
        self._lib = lib()
        self.pointer = self._lib.llama_model_get_vocab(model)
        self._size: int = self._lib.llama_vocab_n_tokens(self.pointer)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        self._eog: frozenset[int] | None = None

    @property
    def size(self) -> int:
        """Number of tokens, V."""
        return self._size

    @property
    def eog(self) -> frozenset[int]:
        """Every token that ends a generation (end of sequence, of turn, of message, ...)."""
        if self._eog is None:
            is_eog = self._lib.llama_vocab_is_eog
            self._eog = frozenset(i for i in range(self._size) if is_eog(self.pointer, i))
        return self._eog

    @property
    def bos(self) -> int | None:
        """Token that begins a sequence, if the model has one."""
        return self._token_or_none(self._lib.llama_vocab_bos(self.pointer))

    @property
    def eos(self) -> int | None:
        """Token that ends a sequence, if the model has one."""
        return self._token_or_none(self._lib.llama_vocab_eos(self.pointer))

    @property
    def fingerprint(self) -> str:
        """Hex digest of the token list."""
        digest = hashlib.sha256(str(self._size).encode())
        for token in range(self._size):
            digest.update(self._lib.llama_vocab_get_text(self.pointer, token) or b"")
            digest.update(b"\0")
        return digest.hexdigest()[:16]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token. Control tokens are empty unless `special`."""
        key = (token, special)
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = self._look_up(token, special)
        return piece

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of UTF-8 `text`.

        Args:
            text: UTF-8 bytes.
            add_special: add BOS (and EOS) as the model's metadata wants it.
            parse_special: turn the text of control tokens into those tokens.
        """
        room = len(text) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            count: int = self._lib.llama_tokenize(
                self.pointer, text, len(text), tokens, room, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def _look_up(self, token: int, special: bool) -> bytes:
        if not 0 <= token < self._size:
            raise IndexError(f"token {token} is not in a vocabulary of {self._size}")
        size: int = self._lib.llama_token_to_piece(
            self.pointer, token, self._buffer, len(self._buffer), 0, special
        )
        if size < 0:
            self._buffer = ctypes.create_string_buffer(-size)
            return self._look_up(token, special)
        return self._buffer.raw[:size]

    @staticmethod
    def _token_or_none(token: int) -> int | None:
        return token if token >= 0 else None
