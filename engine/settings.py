"""What a person can ask of one generation. Plain values, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from specx.backends.settings import LoadSettings

__all__ = ["LoadSettings", "SamplingSettings"]

_GREEDY_BELOW = 1e-250
"""No noise overturns a difference of two logits divided by less; and far below, the quotient overflows."""

_MOST_KEPT = 2**31 - 1
"""More tokens than any vocabulary has, and the largest number that native code is told."""


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next token is chosen; the defaults are llama.cpp's.

    Applied in this order to the logits of a position: logit bias and penalties, top-k, typical-p, top-p,
    min-p, temperature. A value in parentheses switches a setting off.

    Attributes:
        seed: key of the noise; None lets specx choose one and say which.
        temperature: 0 is plain argmax, and so is what is too small to choose anything else.
        top_k: keep the k most likely tokens (0).
        top_p: keep the smallest set of most likely tokens with this mass (1).
        min_p: keep tokens at least this likely relative to the most likely one (0).
        typical_p: keep the locally typical set with this mass (1).
        repeat_penalty: divides positive and multiplies negative logits of recent tokens (1).
        repeat_last_n: how many recent tokens the penalties look at (0 none, -1 the whole context).
        frequency_penalty: subtracted once per occurrence (0).
        presence_penalty: subtracted once if present (0).
        logit_bias: token id -> added to its logit; -inf forbids the token.
    """

    seed: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Values beyond these choose what the value at the limit chooses, and can be computed with.
        if not self.temperature >= _GREEDY_BELOW:
            object.__setattr__(self, "temperature", 0.0)
        object.__setattr__(self, "top_k", min(max(self.top_k, 0), _MOST_KEPT))
