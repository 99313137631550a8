"""Multiplication with quantized weights in NumPy: what kernels/ggml/matmul/matmul.hpp computes, said plainly.

A weight is `scale * quant + minimum`, with the scale and minimum of its block; types are ggml's numbers.
Activations are quantized in blocks of 32, x ~ d * q with d = max |x| / 127. The kernels multiply the integers
exactly and add up the blocks in float32; here everything after the quantization is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TYPES", "Weights", "decode", "multiply", "quantize", "rounding"]

BLOCK = 32
SMALLEST = np.float32(2.0**-119)  # a block of smaller activations counts as zero
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Weights:
    """Decoded weights: `scale * quant + minimum`, all of shape (rows, k)."""

    quant: Ints
    scale: Floats
    minimum: Floats


def _half(block: Bytes, at: int) -> Floats:
    """The half float at byte `at` of each block, (blocks, 1)."""
    return np.ascontiguousarray(block[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(low: Bytes) -> Ints:
    """The low halves of the bytes, then the high ones."""
    return np.concatenate([low & 15, low >> 4], axis=-1).astype(np.int64)


def _bit_four(block: Bytes, at: int) -> Ints:
    """Bit 4 of the 32 quants, from the four bytes at `at`."""
    return np.unpackbits(block[:, at : at + 4], axis=1, bitorder="little").astype(np.int64) << 4


def _plain(zero: int, quants: Callable[[Bytes], Ints]) -> Callable[[Bytes], tuple[Ints, Floats, Floats]]:
    return lambda block: (quants(block) - zero, _half(block, 0), np.zeros((1, 1), np.float32))


def _with_minimum(quants: Callable[[Bytes], Ints]) -> Callable[[Bytes], tuple[Ints, Floats, Floats]]:
    return lambda block: (quants(block), _half(block, 0), _half(block, 2))


def _k_scales(block: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima of the eight blocks of 32 of a Q4_K or Q5_K block, each (blocks, 256)."""
    low, high, both = block[:, 4:8], block[:, 8:12], block[:, 12:16]
    scale = np.concatenate([low & 63, both & 15 | (low >> 6) << 4], axis=1).astype(np.float32)
    minimum = np.concatenate([high & 63, both >> 4 | (high >> 6) << 4], axis=1).astype(np.float32)
    return (_half(block, 0) * scale).repeat(BLOCK, 1), (-_half(block, 2) * minimum).repeat(BLOCK, 1)


def _q4_k(block: Bytes) -> tuple[Ints, Floats, Floats]:
    return _nibbles(block[:, 16:].reshape(-1, 4, 32)).reshape(-1, 256), *_k_scales(block)


def _q5_k(block: Bytes) -> tuple[Ints, Floats, Floats]:
    high = (block[:, None, 16:48] >> np.arange(8)[:, None] & 1).reshape(-1, 256).astype(np.int64)
    return _nibbles(block[:, 48:].reshape(-1, 4, 32)).reshape(-1, 256) | high << 4, *_k_scales(block)


def _q6_k(block: Bytes) -> tuple[Ints, Floats, Floats]:
    low = _nibbles(block[:, :128].reshape(-1, 2, 64))
    high = block[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2)[:, None] & 3
    quant = low.reshape(-1, 256) | high.reshape(-1, 256).astype(np.int64) << 4
    scale = _half(block, 208) * block[:, 192:208].view(np.int8).astype(np.float32)
    return quant - 32, scale.repeat(16, 1), np.zeros((1, 1), np.float32)


# ggml's number: (name, weights a block, bytes a block, decoder of blocks)
TYPES: dict[int, tuple[str, int, int, Callable[[Bytes], tuple[Ints, Floats, Floats]]]] = {
    2: ("Q4_0", 32, 18, _plain(8, lambda b: _nibbles(b[:, 2:]))),
    3: ("Q4_1", 32, 20, _with_minimum(lambda b: _nibbles(b[:, 4:]))),
    6: ("Q5_0", 32, 22, _plain(16, lambda b: _nibbles(b[:, 6:]) | _bit_four(b, 2))),
    7: ("Q5_1", 32, 24, _with_minimum(lambda b: _nibbles(b[:, 8:]) | _bit_four(b, 4))),
    8: ("Q8_0", 32, 34, _plain(0, lambda b: b[:, 2:].view(np.int8).astype(np.int64))),
    12: ("Q4_K", 256, 144, _q4_k),
    13: ("Q5_K", 256, 176, _q5_k),
    14: ("Q6_K", 256, 210, _q6_k),
    20: ("IQ4_NL", 32, 18, _plain(0, lambda b: IQ4_VALUES[_nibbles(b[:, 2:])])),
}


def decode(ggml_type: int, data: Bytes) -> Weights:
    """Decode `data` (rows, bytes of a row) as ggml stores it."""
    _, weights, size, decoder = TYPES[ggml_type]
    quant, scale, minimum = decoder(np.ascontiguousarray(data).reshape(-1, size))
    shape = (len(data), data.shape[1] // size * weights)
    return Weights(
        quant.reshape(shape),
        np.broadcast_to(scale, quant.shape).reshape(shape),
        np.broadcast_to(minimum, quant.shape).reshape(shape),
    )


def quantize(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Activations x (n, k) as q (n, k) and scales (n, k / 32).

    A block without an entry of at least 2^-119 becomes zeros; one that is not finite gets the scale NaN.
    """
    blocks = x.reshape(len(x), -1, BLOCK)
    largest = np.abs(blocks).max(axis=2)
    finite = np.isfinite(largest)
    usable = finite & (largest >= SMALLEST)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=usable)
    clean = np.where(usable[..., None], blocks, np.float32(0))
    q = np.rint(clean * inverse[..., None]).astype(np.int8)
    d = np.where(usable, largest / np.float32(127), np.where(finite, np.float32(0), np.float32(np.nan)))
    return q.reshape(x.shape), d.astype(np.float32)


def multiply(ggml_type: int, data: Bytes, x: Floats) -> Doubles:
    """x (n, k) times the weights (rows, bytes of a row), transposed: (n, rows)."""
    weights = decode(ggml_type, data)
    q, d = quantize(x)
    values: Doubles = weights.scale.astype(np.float64) * weights.quant + weights.minimum
    return _product(q, d, values)


def rounding(ggml_type: int, data: Bytes, x: Floats) -> Doubles:
    """A bound (n, rows) on how far float32 sums, block after block, can be from `multiply`."""
    weights = decode(ggml_type, data)
    q, d = quantize(x)
    terms: Doubles = np.abs(weights.scale.astype(np.float64) * weights.quant) + np.abs(weights.minimum)
    # Each block is rounded some four times on its way into the sum, and the sum once for each block after it.
    roundings = 2 * x.shape[1] // BLOCK + 8
    bound: Doubles = _product(np.abs(q), d, terms) * (roundings * 2.0**-24) + 2.0**-126
    return bound


def _product(q: NDArray[np.int8], d: Floats, weights: Doubles) -> Doubles:
    activations = q.astype(np.float64) * d.repeat(BLOCK, axis=1).astype(np.float64)
    product: Doubles = activations @ weights.T
    return product
