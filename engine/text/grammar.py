"""A GBNF grammar as a constraint, over llama.cpp's own grammar sampler."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import GrammarError
from specx.backends.llama.libllama import lib, recent_log
from specx.engine.text.alphabet import Alphabet
from specx.engine.text.grammar_check import check_grammar

__all__ = ["GrammarConstraint"]

MOST_FORCED = 64  # bytes that are looked for at once
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class GrammarConstraint:
    """Follows the emitted tokens through a grammar.

    End-of-generation tokens are allowed exactly where the grammar is complete.

    Args:
        vocab: the llama_vocab pointer of a loaded model; must outlive this object.
        grammar: GBNF text.
        root: name of the rule that the whole text must match.
        alphabet: tokens of one byte, to find out what the grammar forces with; without it, nothing is forced.

    Raises:
        GrammarError: the grammar does not parse, has no such rule, or is more than llama.cpp bears.
    """

    def __init__(
        self, vocab: Any, grammar: str, root: str = "root", *, alphabet: Alphabet | None = None
    ) -> None:
        self._sampler: Any = None
        self._alphabet = alphabet
        self._run: bytes | None = None  # what is forced now; None if that is not known
        self._lib = lib()
        if not grammar.strip():
            raise GrammarError("the grammar is empty", 'the smallest one is: root ::= "text"')
        check_grammar(grammar, root, partial(_is_token, self._lib, vocab))
        self._sampler = self._lib.llama_sampler_init_grammar(vocab, grammar.encode(), root.encode())
        if not self._sampler:
            raise GrammarError(
                f"the grammar cannot be used: {_reason()}",
                f"it needs a rule `{root} ::= ...`; the syntax is GBNF, as for llama.cpp",
            )

    def allowed(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of the tokens `ids` (m,) int32 may come next, as (m,) bool."""
        return self._allowed(self._sampler, ids)

    def forced(self) -> bytes:
        """Bytes that everything which may come next begins with, at most MOST_FORCED of them.

        Single bytes are tried on a copy of the state until there is a choice. What was found is used up
        before that is done again.
        """
        if self._run is None:
            self._run = self._probe() if self._alphabet is not None else b""
        return self._run

    def _probe(self) -> bytes:
        assert self._alphabet is not None
        copy, run = self._lib.llama_sampler_clone(self._sampler), bytearray()
        try:
            while len(run) < MOST_FORCED and (token := self._only(copy, self._alphabet)) is not None:
                run += self._alphabet.byte(token)
                self._lib.llama_sampler_accept(copy, token)
        finally:
            self._lib.llama_sampler_free(copy)
        return bytes(run)

    def _only(self, sampler: Any, alphabet: Alphabet) -> int | None:
        """The only token of one byte that may come next, if there is one and no end; a few are asked about
        first, of which a choice mostly allows several."""
        for ids in (alphabet.few, alphabet.all):
            allowed = ids[self._allowed(sampler, ids)]
            if len(allowed) > 1:
                return None
        token = int(allowed[0]) if len(allowed) else None
        return None if token is None or token in alphabet.ends else token

    def _allowed(self, sampler: Any, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        candidates = np.zeros(len(ids), _CANDIDATE)
        candidates["id"] = ids
        row = self._lib.llama_token_data_array(
            data=candidates.ctypes.data_as(self._lib.llama_token_data_p),
            size=len(ids),
            selected=-1,
            sorted=False,
        )
        self._lib.llama_sampler_apply(sampler, ctypes.byref(row))
        forbidden: NDArray[np.bool_] = np.isneginf(candidates["logit"])
        return ~forbidden

    def accept(self, token: int) -> None:
        """`token` was emitted.

        Raises:
            GrammarError: the grammar does not allow it.
        """
        # llama.cpp ends the process on a token that the grammar does not allow.
        if not self.allowed(np.array([token], np.int32))[0]:
            raise GrammarError(
                f"the grammar does not allow token {token} here",
                "check that the grammar can be completed with the text so far",
            )
        self._lib.llama_sampler_accept(self._sampler, token)
        if self._alphabet is not None:
            piece, run = self._alphabet.piece(token), self._run
            self._run = run[len(piece) :] or None if run and piece and run.startswith(piece) else None

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        if self._sampler:
            self._lib.llama_sampler_free(self._sampler)
        self._sampler = None

    def __del__(self) -> None:
        self.close()


def _is_token(library: Any, vocab: Any, text: str) -> bool:
    """Whether a text is one token, as llama.cpp's grammar parser finds out."""
    data, tokens = text.encode(), (library.llama_token * 2)()
    return bool(library.llama_tokenize(vocab, data, len(data), tokens, 2, False, True) == 1)


def _reason() -> str:
    """What is wrong, in llama.cpp's words: the last line of its log."""
    lines = [line.strip() for line in "".join(recent_log("grammar")[-1:]).splitlines() if line.strip()]
    return lines[0] if lines else "it does not parse"
