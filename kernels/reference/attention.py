"""Attention in NumPy: what the ggml device's attention kernel computes, in float64.

The logit of a query and a cell is scale * (q . k), softened to softcap * tanh(logit / softcap) if there is
a softcap, plus the mask, which ALiBi (Press et al., 2022) multiplies by a slope for each head. A sink is one
more logit for its head, without a value. Rows that see nothing are zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["attention", "dequantize_q8_0", "quantize_q8_0", "slopes"]

Float64 = NDArray[np.float64]
Q8_BLOCK = 32


def slopes(heads: int, max_bias: float) -> Float64:
    """The factor of each head's mask, shape (heads,): ones without ALiBi."""
    if max_bias <= 0:
        return np.ones(heads)
    power = 2 ** int(math.log2(heads))
    first = [2 ** (-max_bias / power * (head + 1)) for head in range(power)]
    rest = [2 ** (-max_bias / 2 / power * (2 * head + 1)) for head in range(heads - power)]
    return np.array(first + rest)


def attention(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    mask: NDArray[Any] | None,
    *,
    scale: float,
    max_bias: float = 0.0,
    softcap: float = 0.0,
    sinks: NDArray[Any] | None = None,
) -> Float64:
    """Attention of q (streams, heads, rows, k_size) over k and v (streams, kv_heads, cells, k_ or v_size).

    `mask` is (1 or streams, 1 or heads, rows, cells), minus infinity where a row must not look; `sinks`
    is (heads,). Returns (streams, rows, heads, v_size), which is the order in which ggml stores it.
    """
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    heads = q.shape[1]
    k, v = (np.repeat(x, heads // x.shape[1], axis=1) for x in (k, v))
    logits = np.einsum("shrd,shcd->shrc", q, k) * scale
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    if mask is not None:
        logits = logits + np.asarray(mask, dtype=np.float64) * slopes(heads, max_bias)[None, :, None, None]
    lowest = np.full(heads, -1e30) if sinks is None else np.asarray(sinks, dtype=np.float64)
    sink = lowest[None, :, None, None]
    top = np.maximum(np.max(logits, axis=-1, keepdims=True), sink)
    weights = np.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True) + (0 if sinks is None else np.exp(sink - top))
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    result: Float64 = np.einsum("shrc,shcd->srhd", weights, v)
    return result


def quantize_q8_0(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """ggml's Q8_0 of rows of floats: 32 weights are a float16 scale and 32 signed bytes, 34 bytes in all."""
    blocks = x.reshape(*x.shape[:-1], -1, Q8_BLOCK)
    scale = (np.abs(blocks).max(axis=-1, keepdims=True) / 127).astype(np.float16)
    divisor = np.where(scale > 0, scale, 1).astype(np.float32)
    quants = np.clip(np.rint(blocks / divisor), -127, 127).astype(np.int8)
    packed = np.concatenate([scale.view(np.uint8), quants.view(np.uint8)], axis=-1)
    return packed.reshape(*x.shape[:-1], -1)


def dequantize_q8_0(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The inverse of `quantize_q8_0`, up to rounding."""
    blocks = packed.reshape(*packed.shape[:-1], -1, Q8_BLOCK + 2)
    scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    values = scale * blocks[..., 2:].view(np.int8).astype(np.float32)
    return values.reshape(*packed.shape[:-1], -1)
