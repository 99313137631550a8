"""The vocabulary of a GGUF model, as bytes."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specx.backends.base import SpecialToken
from specx.backends.errors import ModelError
from specx.backends.llama.deep_stack import on_deep_stack
from specx.backends.llama.last_words import working_on
from specx.backends.llama.libllama import forget_log, lib
from specx.backends.llama.params import load_error
from specx.kernels._native import Pieces, ending_tokens, tokens_of_kind

__all__ = ["LlamaVocab", "load_vocabulary"]

_UNKNOWN, _CONTROL, _USER_DEFINED, _LSTRIP, _RSTRIP = 1, 8, 16, 128, 256  # llama_token_attr
_KNOWN = (
    "bos",
    "eos",
    "eot",
    "sep",
    "pad",
    *(f"fim_{part}" for part in ("pre", "suf", "mid", "pad", "rep", "sep")),
)
_PIECE_BYTES = 256  # llama.cpp reports the size it needs when a piece is longer
STACK_PER_BYTE = 1024
"""Bytes of stack: what llama.cpp splits a text with calls itself for every character of a run. On x86-64 that
takes at most 450 bytes for a byte of text, with the pre-tokenizers of GPT-4o and Granite."""


class LlamaVocab:
    """Tokens of a loaded model. Pieces are looked up when first needed: a table of 262,144 costs seconds.

    Args:
        model: the llama_model pointer; must outlive this object.
    """

    def __init__(self, model: Any) -> None:
        self._lib = lib()
        self._pointer = self._lib.llama_model_get_vocab(model)
        self._size: int = self._lib.llama_vocab_n_tokens(self.pointer)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._eog: frozenset[int] | None = None
        self._all: Pieces | None = None

    @property
    def pointer(self) -> Any:
        """The llama_vocab.

        Raises:
            ModelError: the model was closed.
        """
        if self._pointer is None:
            raise ModelError("the model was closed", "open it again")
        return self._pointer

    def close(self) -> None:
        """The model is closed. Safe to call twice."""
        self._pointer = None

    @property
    def size(self) -> int:
        """Number of tokens, V."""
        return self._size

    @property
    def eog(self) -> frozenset[int]:
        """Every token that ends a generation (end of sequence, of turn, of message, ...)."""
        if self._eog is None:
            self._eog = frozenset(ending_tokens(self._address("vocab_is_eog"), int(self.pointer), self._size))
        return self._eog

    @property
    def bos(self) -> int | None:
        """Token that begins a sequence, if the model has one."""
        return self._token_or_none(self._lib.llama_vocab_bos(self.pointer))

    @property
    def added_bos(self) -> int | None:
        """Token that `tokenize` begins with where it is asked to add special ones, if there is one."""
        return self.bos if self._lib.llama_vocab_get_add_bos(self.pointer) else None

    @property
    def eos(self) -> int | None:
        """Token that ends a sequence, if the model has one."""
        return self._token_or_none(self._lib.llama_vocab_eos(self.pointer))

    @property
    def eot(self) -> int | None:
        """Token that ends a turn or a text, beside `eos`, if the model has one."""
        return self._token_or_none(self._lib.llama_vocab_eot(self.pointer))

    @property
    def pieces(self) -> Pieces:
        """All tokens as bytes; control tokens are empty."""
        if self._all is None:
            self._all = Pieces(self._address("token_to_piece"), int(self.pointer), self._size)
        return self._all

    @property
    def fingerprint(self) -> str:
        """Hex digest of the token list."""
        digest = hashlib.sha256(str(self._size).encode())
        for token in range(self._size):
            digest.update(self._lib.llama_vocab_get_text(self.pointer, token) or b"")
            digest.update(b"\0")
        return digest.hexdigest()[:16]

    def special_tokens(self, typed: Iterable[int] | None = None) -> tuple[SpecialToken, ...]:
        """The tokens that are taken out of a text before it is split into words.

        Args:
            typed: tokens that the model file says are not ordinary; None looks at all of them.
        """
        ids: Iterable[int]
        if typed is None:
            kinds = self._address("vocab_get_attr")
            ids = tokens_of_kind(kinds, int(self.pointer), self._size, _UNKNOWN | _CONTROL | _USER_DEFINED)
        else:  # llama.cpp itself makes control tokens of those that it knows by their texts
            known = (getattr(self._lib, f"llama_vocab_{name}")(self.pointer) for name in _KNOWN)
            ids = sorted({i for i in (*typed, *self.eog, *known) if 0 <= i < self._size})
        attribute, found = self._lib.llama_vocab_get_attr, []
        for i in ids:
            kind = attribute(self.pointer, i)
            if kind & (_UNKNOWN | _CONTROL | _USER_DEFINED):
                text = (self._lib.llama_vocab_get_text(self.pointer, i) or b"").decode(errors="replace")
                control = bool(kind & (_UNKNOWN | _CONTROL))
                found.append(SpecialToken(i, text, control, bool(kind & _LSTRIP), bool(kind & _RSTRIP)))
        return tuple(found)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token. Control tokens are empty unless `special`."""
        key = (token, special)
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = self._look_up(token, special)
        return piece

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of UTF-8 `text`. It is to be continued: EOS is not added, whatever the metadata says.

        Args:
            text: UTF-8 bytes.
            add_special: begin with BOS if the model's metadata wants it.
            parse_special: turn the text of control tokens into those tokens.

        Raises:
            ModelError: there is no token for a part of it, nor one for what is unknown.
            UsageError: it is longer than this machine can tokenize.
        """
        bos = self.added_bos if add_special else None
        start = [] if bos is None else [bos]
        tokens = on_deep_stack(lambda: self._tokenize(text, parse_special), STACK_PER_BYTE * len(text))
        if tokens and min(tokens) < 0:
            raise ModelError(
                "this model's tokenizer has no token for a part of the text", "the model file may be damaged"
            )
        return start + tokens

    def _tokenize(self, text: bytes, parse_special: bool) -> list[int]:
        room = len(text) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            count: int = self._lib.llama_tokenize(
                self.pointer, text, len(text), tokens, room, False, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def _look_up(self, token: int, special: bool, room: int = _PIECE_BYTES) -> bytes:
        if not 0 <= token < self._size:
            raise IndexError(f"token {token} is not in a vocabulary of {self._size}")
        buffer = ctypes.create_string_buffer(room)  # not shared: several threads may ask
        size: int = self._lib.llama_token_to_piece(self.pointer, token, buffer, room, 0, special)
        return self._look_up(token, special, -size) if size < 0 else buffer.raw[:size]

    def _address(self, name: str) -> int:
        """Of a function of libllama's, for native code that calls it for every token."""
        function = getattr(self._lib.llama_cpp._lib, f"llama_{name}")
        return ctypes.cast(function, ctypes.c_void_p).value or 0

    @staticmethod
    def _token_or_none(token: int) -> int | None:
        return token if token >= 0 else None


@contextmanager
def load_vocabulary(path: Path) -> Iterator[LlamaVocab]:
    """The vocabulary of a GGUF file, loaded without its weights; it can be used until the block ends.

    Takes some tens of milliseconds, of 262,144 tokens most of a second.

    Raises:
        ModelError: the file cannot be loaded.
    """
    llama = lib()
    params = llama.llama_model_default_params()
    params.vocab_only = True
    forget_log()
    working_on(path.name)
    model = llama.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise load_error(path)
    try:
        yield LlamaVocab(model)
    finally:
        llama.llama_model_free(model)
