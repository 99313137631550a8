"""The objective where nothing was drafted yet: expected tokens per millisecond with a chain of drafts.

    rate = (1 + sum of a^i for i in 1..k) / (k * t_draft + t_verify(1 + k)), at the best k

Whatever is chosen before a session has numbers of its own is chosen by this: kernels, threads, where layers
go, which draft model to try, what would be worth having.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ACCEPTANCE", "Chain", "Pace", "chain_rate"]

RECENT = 32  # steps that tell how fast a text is written at present

ACCEPTANCE = 0.7
"""Probability that a further drafted token is right, where nothing better is known: between what draft
models of one family are reported to reach on prose (0.6) and on code (0.8)."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A step with the best number of drafted tokens.

    Attributes:
        drafted: tokens drafted.
        tokens: expected number of emitted tokens.
        ms: expected milliseconds, drafting included.
    """

    drafted: int
    tokens: float
    ms: float

    @property
    def rate(self) -> float:
        """Expected tokens per millisecond."""
        return self.tokens / self.ms


class Pace:
    """How fast the last steps were: what any other kind of steps has to surpass."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def add(self, speed: float, tokens: float) -> None:
        """A step of so many expected tokens, at so many times the speed of plain decoding."""
        self._steps.append((speed, tokens))

    def saved(self, chain: Chain, plain_ms: float) -> float:
        """Milliseconds saved for each token of the text by `chain` in place of steps that are slower.

        Args:
            chain: the step.
            plain_ms: of a plain step. Before any step was added, all are plain.
        """
        saved_ms = written = 0.0
        for speed, tokens in self._steps or ((1.0, 1.0),):
            gain_ms = chain.tokens * plain_ms / speed - chain.ms
            saved_ms += max(gain_ms, 0.0)
            written += chain.tokens if gain_ms > 0 else tokens
        return saved_ms / written


def chain_rate(
    steps: Mapping[int, float] | NDArray[np.float64],
    *,
    draft_ms: float = 0.0,
    acceptance: float | Sequence[float] = ACCEPTANCE,
) -> Chain:
    """The step of the highest rate, plain decoding included.

    Args:
        steps: milliseconds of a step by its tokens: a mapping, or (W + 1,) by index. What is not known is not
            there, or infinite; single tokens must be known.
        draft_ms: milliseconds to draft one token.
        acceptance: probability that each further token comes true: of all, or of each; beyond the last one
            none does.
    """
    known = steps.items() if isinstance(steps, Mapping) else enumerate(steps.tolist())
    options = (
        Chain(n - 1, _expected(n, acceptance), ms + (n - 1) * draft_ms)
        for n, ms in sorted(known)
        if n >= 1 and math.isfinite(ms)
    )
    return max(options, key=lambda chain: chain.rate)


def _expected(n: int, acceptance: float | Sequence[float]) -> float:
    """Emitted tokens of a step of `n` tokens."""
    if not isinstance(acceptance, float | int):
        reached = total = 1.0
        for share in acceptance[: n - 1]:
            reached *= share
            total += reached
        return total
    return float(n) if acceptance == 1 else (1 - acceptance**n) / (1 - acceptance)
