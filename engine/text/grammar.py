"""A GBNF grammar as a constraint, over llama.cpp's own grammar sampler."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import GrammarError
from specx.backends.llama.libllama import lib, recent_log
from specx.engine.text.grammar_check import check_grammar

__all__ = ["GrammarConstraint"]

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class GrammarConstraint:
    """Follows the emitted tokens through a grammar.

    End-of-generation tokens are allowed exactly where the grammar is complete.

    Args:
        vocab: the llama_vocab pointer of a loaded model; must outlive this object.
        grammar: GBNF text.
        root: name of the rule that the whole text must match.

    Raises:
        GrammarError: the grammar does not parse, has no such rule, or is more than llama.cpp bears.
    """

    def __init__(self, vocab: Any, grammar: str, root: str = "root") -> None:
        self._sampler: Any = None
        self._lib = lib()
        if not grammar.strip():
            raise GrammarError("the grammar is empty", 'the smallest one is: root ::= "text"')
        check_grammar(grammar, root)
        self._sampler, printed = _capturing_stderr(
            lambda: self._lib.llama_sampler_init_grammar(vocab, grammar.encode(), root.encode())
        )
        if not self._sampler:
            raise GrammarError(
                f"the grammar cannot be used: {_reason(printed)}",
                f"it needs a rule `{root} ::= ...`; the syntax is GBNF, as for llama.cpp",
            )

    def allowed(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of the tokens `ids` (m,) int32 may come next, as (m,) bool."""
        candidates = np.zeros(len(ids), _CANDIDATE)
        candidates["id"] = ids
        row = self._lib.llama_token_data_array(
            data=candidates.ctypes.data_as(self._lib.llama_token_data_p),
            size=len(ids),
            selected=-1,
            sorted=False,
        )
        self._lib.llama_sampler_apply(self._sampler, ctypes.byref(row))
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

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        if self._sampler:
            self._lib.llama_sampler_free(self._sampler)
        self._sampler = None

    def __del__(self) -> None:
        self.close()


def _capturing_stderr(call: Callable[[], Any]) -> tuple[Any, str]:
    """The result of `call` and what it wrote to the process's stderr: where llama.cpp's grammar parser
    reports errors, past its own log."""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            result = call()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        file.seek(0)
        return result, file.read().decode("utf-8", "replace")


def _reason(printed: str) -> str:
    """What is wrong, in llama.cpp's words: the parser's if it spoke, else the last line of the log."""
    _, marker, rest = printed.partition("error parsing grammar: ")
    text = rest if marker else "".join(recent_log("grammar")[-1:])
    line = next((line.strip() for line in text.splitlines() if line.strip()), "it does not parse")
    return f"{line} its end" if line.endswith(" at") else line
