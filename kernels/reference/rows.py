"""What a layer does to rows of floats between multiplications, in 64 bits: kernels/ggml/layers/rows.hpp."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rotation", "gelu", "rms_norm", "rotate", "silu"]

Array = NDArray[np.float64]


def silu(x: Array) -> Array:
    """x times the logistic function of x (Elfwing et al., 2017)."""
    activated: Array = x / (1 + np.exp(-x))
    return activated


def gelu(x: Array) -> Array:
    """The form with a hyperbolic tangent (Hendrycks and Gimpel, 2016): (1 + tanh u) / 2 = 1 / (1 + e^-2u)."""
    activated: Array = x / (1 + np.exp(-np.sqrt(8 / np.pi) * (x + 0.044715 * x**3)))
    return activated


def rms_norm(x: Array, epsilon: float) -> Array:
    """Rows of `x`, (..., n), over the root of the mean of their squares (Zhang and Sennrich, 2019)."""
    normed: Array = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)
    return normed


@dataclass(frozen=True, slots=True)
class Rotation:
    """What rotary embeddings depend on (Su et al., 2021; YaRN: Peng et al., 2023), in ggml's terms.

    Attributes:
        halves: pairs are x[i] and x[i + dims / 2], and not neighbours.
        dims: elements of a head that are rotated.
        base, scale: an angle is scale * position / base^(2 pair / dims).
        extrapolation: the share of YaRN; 0 is none of it.
        magnitude: cosines and sines are multiplied by it.
        beta_fast, beta_slow: turns in `trained_context` positions between which YaRN goes from angles that
            are not scaled to those that are.
    """

    halves: bool
    dims: int
    base: float = 10000.0
    scale: float = 1.0
    extrapolation: float = 0.0
    magnitude: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    trained_context: int = 4096


def _angles(rotation: Rotation, position: int, factors: Array | None) -> tuple[Array, float]:
    """Of every pair, and what cosines and sines are multiplied by."""
    pair = np.arange(rotation.dims // 2, dtype=np.float64)
    far = position * np.float64(rotation.base) ** (-2 * pair / rotation.dims)
    far = far / (1 if factors is None else factors)
    if rotation.extrapolation == 0:
        return far * rotation.scale, rotation.magnitude

    def pair_of_turns(turns: float) -> float:
        waves = np.log(rotation.trained_context / (turns * 2 * np.pi))
        return float(rotation.dims * waves / (2 * np.log(rotation.base)))

    low = max(0.0, np.floor(pair_of_turns(rotation.beta_fast)))
    high = min(rotation.dims - 1.0, np.ceil(pair_of_turns(rotation.beta_slow)))
    ramp = 1 - np.clip((pair - low) / max(0.001, high - low), 0, 1)
    mix = ramp * rotation.extrapolation
    magnitude = rotation.magnitude * (1 + 0.1 * np.log(1 / rotation.scale))
    return far * rotation.scale * (1 - mix) + far * mix, magnitude


def rotate(x: Array, rotation: Rotation, position: int, factors: Array | None = None) -> Array:
    """One head, (dims,), at a position; `factors`, (dims / 2,), divide the frequencies."""
    angle, magnitude = _angles(rotation, position, factors)
    cosine, sine = np.cos(angle) * magnitude, np.sin(angle) * magnitude
    pairs = x.reshape(2, -1) if rotation.halves else x.reshape(-1, 2).T
    turned = np.stack([pairs[0] * cosine - pairs[1] * sine, pairs[0] * sine + pairs[1] * cosine])
    return turned.reshape(-1) if rotation.halves else turned.T.reshape(-1)
