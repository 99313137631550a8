"""Trimmed draft models in libllama, which wants as many rows as there are tokens.

The file is loaded without its tokenizer, as a model of so many unnamed tokens as its head has rows. What it
reads is given to it as rows of the embedding, taken from the table of the whole vocabulary behind its tensors
(backends/gguf/trim.py) and turned into floats as libllama would: logits are those of the whole model, bit for
bit. Never as tokens: a change between the two makes libllama build its graph anew, 1.8 ms each.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import ModelError
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import GGUFInfo
from specx.backends.gguf.trim import is_trimmed
from specx.backends.llama.libllama import lib

__all__ = ["ARCHITECTURES", "EmbeddingTable", "overrides", "trimmed_file"]

ARCHITECTURES = frozenset(
    {"gemma", "gemma2", "gemma3", "granite", "llama", "phi3", "qwen2", "qwen3", "smollm3"}
)
"""Whose logits were compared with those of the whole model, bit for bit."""
UNSCALED = frozenset({"gemma3"})
"""Which multiply the embedding of a token by the root of its width, but not a row that is given to them."""
_OVERRIDE_INT, _OVERRIDE_TEXT = 0, 3


def trimmed_file(path: Path) -> GGUFInfo | None:
    """The header of a trimmed model; None if the file is none.

    Raises:
        ModelError: it is damaged, or of an architecture that cannot be trimmed.
    """
    if not is_trimmed(path):
        return None
    info = read_runnable(path, drafting=True)
    if info.architecture not in ARCHITECTURES:
        raise ModelError(
            f"{path.name} is a trimmed {info.architecture} model, which is not known to work",
            "trim another model: specx drafter trim",
        )
    return info


def overrides(module: Any, info: GGUFInfo) -> Any:
    """The array of llama_model_kv_override that a trimmed file is loaded with."""
    found = (module.llama_model_kv_override * 3)()  # the last one has no key
    found[0].tag, found[0].key = _OVERRIDE_TEXT, b"tokenizer.ggml.model"
    found[0].value.val_str = b"none"
    found[1].tag, found[1].key = _OVERRIDE_INT, f"{info.architecture}.vocab_size".encode()
    found[1].value.val_i64 = info.head_rows
    return found


class _Traits(ctypes.Structure):
    """ggml_type_traits."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float", ctypes.c_void_p),
    )


@functools.cache
def _traits(kind: int) -> _Traits:
    """What ggml says of a type."""
    get = lib().llama_cpp._lib.ggml_get_type_traits
    get.restype, get.argtypes = ctypes.POINTER(_Traits), [ctypes.c_int]
    found: _Traits = get(kind).contents
    return found


class EmbeddingTable:
    """The embedding of the whole vocabulary, of which only the rows that are used are read.

    Args:
        info: the header of a trimmed model.

    Attributes:
        width: values of a row.
        ids: (R,) int32, the tokens that the model scores.
        rows: (V, bytes of a row), as they lie in the file.
    """

    def __init__(self, info: GGUFInfo) -> None:
        import gguf

        assert info.trim is not None
        self.width = info.embedding_length
        self.ids: NDArray[np.int32] = np.array(info.trim.ids(info.path), np.int32)
        self._row_bytes, self._count = info.trim.row_bytes, info.vocabulary_size
        self._scale = np.sqrt(np.float32(self.width)) if info.architecture in UNSCALED else None
        with info.path.open("rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = np.frombuffer(whole, np.uint8, self._count * self._row_bytes, info.trim.table_at)
        self.rows: NDArray[np.uint8] = table.reshape(self._count, self._row_bytes)
        self._start = self.rows.ctypes.data
        kind = gguf.GGMLQuantizationType[info.trim.table_type]
        to_float = _traits(int(kind)).to_float
        signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        if to_float:
            self._to_float: Any = signature(to_float)
        elif kind == gguf.GGMLQuantizationType.F32:
            self._to_float = lambda row, out, n: ctypes.memmove(out, row, 4 * n)
        else:
            raise ModelError(
                f"{info.path.name} keeps its embedding as {kind.name}, which ggml does not read",
                "trim the model again: specx drafter trim",
            )

    def fill(self, tokens: NDArray[np.int32], out: NDArray[np.float32]) -> None:
        """Put the rows of `tokens` (n,) into `out` (n, width).

        Raises:
            ValueError: there is no such token.
        """
        at, step = out.ctypes.data, out.strides[0]
        start, row_bytes, width, to_float = self._start, self._row_bytes, self.width, self._to_float
        for i, token in enumerate(tokens.tolist()):
            if not 0 <= token < self._count:
                raise ValueError(f"token {token} is not in a vocabulary of {self._count}")
            to_float(start + token * row_bytes, at + i * step, width)
        if self._scale is not None:
            out[: len(tokens)] *= self._scale
