"""Rows of a head, multiplied by ggml's arithmetic, against what the quantized values stand for."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from specx.backends.llama.context_rows import _cpu_traits
from specx.kernels._native import dot_rows
from specx.kernels.reference.dot_rows import dot_rows as reference

WIDTH, ROWS = 128, 40
IDS = np.array([3, 39, 0, 3, 17, 21, 8, 9, 10, 11, 12], np.int32)
F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0


def functions(kind):
    rows = _cpu_traits(int(kind))
    vector = gguf.GGMLQuantizationType(rows.vec_dot_type)
    blocks = (gguf.GGML_QUANT_SIZES[each] for each in (kind, vector))
    return vector, (rows.vec_dot, _cpu_traits(int(vector)).from_float, *blocks)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q4_1"])
@pytest.mark.parametrize("count", [1, 3])
def test_against_the_values(name, count):
    kind = gguf.GGMLQuantizationType[name]
    rng = np.random.default_rng(4)
    values = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    vectors = rng.standard_normal((count, WIDTH)).astype(np.float32)
    table = gguf.quants.quantize(values, kind).view(np.uint8).reshape(ROWS, -1)
    vector, found = functions(kind)
    sums = np.zeros((count, len(IDS)), np.float32)
    dot_rows(table, IDS, vectors, sums, *found)
    exact = gguf.GGMLQuantizationType.Q8_0 if vector.name == "Q8_1" else vector  # the same values
    read = gguf.quants.dequantize(gguf.quants.quantize(vectors, exact), exact)
    expected = reference(gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind), IDS, read)
    assert np.ptp(expected) > 1
    # Q8_1 keeps the sum of a block in 16 bits: of four blocks, times their least values.
    assert np.abs(sums - expected).max() < (5e-2 if vector.name == "Q8_1" else 1e-4)


@pytest.mark.parametrize(
    ("ids", "shape", "width", "row"),
    [
        ([ROWS], (1, 1), WIDTH, 136),
        ([-1], (1, 1), WIDTH, 136),
        ([0, 1], (1, 1), WIDTH, 136),
        ([0], (2, 1), WIDTH, 136),
        ([0], (1, 1), WIDTH, 135),
        ([0], (1, 1), WIDTH, 102),
        ([0], (1, 1), WIDTH + 32, 136),
        ([0], (1, 1), WIDTH + 1, 136),
    ],
)
def test_what_does_not_go_together_is_refused(ids, shape, width, row):
    _, found = functions(Q8_0)
    table, vectors = np.zeros((ROWS, row), np.uint8), np.zeros((1, width), np.float32)
    with pytest.raises(ValueError, match=r"row|sums|blocks"):
        dot_rows(table, np.array(ids, np.int32), vectors, np.zeros(shape, np.float32), *found)
