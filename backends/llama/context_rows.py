"""Rows of a trimmed model's head for the tokens of the present context.

What a text has said once it often says again, names above all, whether or not a row was kept for it. Those
rows are in the embedding of the whole vocabulary where that is the head as well, so they are multiplied here
with the hidden state that libllama's head has got, and put among its logits.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama.libllama import lib
from specx.backends.llama.trimmed import EmbeddingTable
from specx.kernels._native import dot_rows

__all__ = ["MOST", "ContextRows", "context_rows"]

MOST = 4096
"""Rows; those that came first make room. More would take as long as the whole head of a small vocabulary."""
HEAD = "output.weight"


class _CpuTraits(ctypes.Structure):
    """ggml_type_traits_cpu."""

    _fields_ = (
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("rows", ctypes.c_int64),
    )


@functools.cache
def _cpu_traits(kind: int) -> _CpuTraits:
    """How ggml multiplies rows of a type on the CPU."""
    get: Any = lib().llama_cpp._lib.ggml_get_type_traits_cpu
    get.restype, get.argtypes = ctypes.POINTER(_CpuTraits), [ctypes.c_int]
    found: _CpuTraits = get(kind).contents
    return found


def context_rows(info: GGUFInfo, table: EmbeddingTable) -> ContextRows | None:
    """Rows for a trimmed model; None if its head is another matrix than its embedding, of which there are no
    more rows than were kept, or ggml multiplies none of its type."""
    import gguf

    assert info.trim is not None
    if any(tensor.name == HEAD for tensor in info.tensors):
        return None
    kind = gguf.GGMLQuantizationType[info.trim.table_type]
    rows = _cpu_traits(int(kind))
    if not rows.vec_dot:
        return None
    quantize = _cpu_traits(rows.vec_dot_type).from_float
    if not quantize:
        return None
    blocks = (gguf.GGML_QUANT_SIZES[each] for each in (kind, gguf.GGMLQuantizationType(rows.vec_dot_type)))
    return ContextRows(table, (rows.vec_dot, quantize, *blocks), *_after_head(info))


def _after_head(info: GGUFInfo) -> tuple[float, float]:
    """What logits are divided by, and the cap that they are bent to then; 0 for none."""

    def value(key: str) -> float:
        found = info.metadata.get(f"{info.architecture}.{key}", 0.0)
        return float(found) if isinstance(found, int | float) else 0.0

    scale = value("logit_scale") if info.architecture == "granite" else 0.0
    cap = value("final_logit_softcapping") if info.architecture in ("gemma2", "gemma3") else 0.0
    return scale or 1.0, cap


class ContextRows:
    """What the head has beyond the rows that were kept.

    Args:
        table: the embedding of the whole vocabulary.
        multiplied: the last arguments of `dot_rows`.
        scale: what logits are divided by.
        cap: what they are bent to afterwards; 0 for none.

    Attributes:
        head: (R + E,) int32, the tokens of the columns that `widen` gives, rising.
    """

    def __init__(
        self,
        table: EmbeddingTable,
        multiplied: tuple[int, int, tuple[int, int], tuple[int, int]],
        scale: float,
        cap: float,
    ) -> None:
        self._table = table
        self._multiplied = multiplied
        self._scale, self._cap = scale, cap
        self._has_row = np.zeros(len(table.rows), np.bool_)
        self._has_row[table.ids] = True
        self._further: NDArray[np.int32] = np.zeros(0, np.int32)  # in the order they came
        self._arrange()

    def see(self, tokens: NDArray[np.int32]) -> bool:
        """Tokens that the context has; returns whether there is a new one among them."""
        new = tokens[~self._has_row[tokens]]
        if not len(new):
            return False
        unique = np.array(list(dict.fromkeys(new.tolist())), np.int32)
        self._further = np.concatenate([self._further, unique])
        gone, self._further = self._further[:-MOST], self._further[-MOST:]
        self._has_row[self._further] = True
        self._has_row[gone] = False
        self._arrange()
        return True

    def widen(self, logits: NDArray[np.float32], hidden: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """The columns of `head`.

        Args:
            logits: (n, R) of the rows that were kept.
            hidden: (n, d) that they were computed from; None leaves the others at -inf.
        """
        if not len(self._further):
            return logits
        sums = np.full((len(logits), len(self._further)), -np.inf, np.float32)
        if hidden is not None:
            dot_rows(self._table.rows, self._further, hidden, sums, *self._multiplied)
            sums /= self._scale
            if self._cap:
                sums = self._cap * np.tanh(sums / self._cap)
        wide = np.empty((len(logits), len(self.head)), np.float32)
        wide[:, self._kept_at] = logits
        wide[:, self._further_at] = sums
        return wide

    def _arrange(self) -> None:
        kept = self._table.ids
        self.head = np.sort(np.concatenate([kept, self._further]))
        self._kept_at = np.searchsorted(self.head, kept)
        self._further_at = np.searchsorted(self.head, self._further)
