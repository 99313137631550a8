"""How a drafter ranks what a model gives: by the target's own rule, with the noise of the target's tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specx.drafters.base import Text
from specx.kernels._native import gumbel, rank_tokens

__all__ = ["ranked"]

CANDIDATES = 64
"""Rows that are ranked where a row takes the noise of another token.

What is less likely than so many others is hardly ever chosen.
"""


def ranked(
    row: NDArray[np.float32], text: Text, position: int, count: int, noise: NDArray[np.int32] | None
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """What `rank_tokens` gives where entries of a row take the noise of other tokens.

    Args:
        row: (n,) float32 logits.
        text: how the target samples.
        position: of the token.
        count: how many to return at most.
        noise: (n,) or more int32: for each entry the token whose noise it takes; None for its own index.

    Returns:
        (m,) int32 indices into `row` and (m,) float64 scores, by decreasing score, m <= count.

    Raises:
        ValueError: no logit is above -inf.
    """
    seed = text.seed
    if noise is None or text.temperature <= 0:
        return rank_tokens(row, seed, position, text.temperature, *text.truncation, count)
    rows, logits = rank_tokens(row, 0, 0, 0.0, *text.truncation, max(CANDIDATES, count))
    scores = logits / text.temperature + gumbel(seed, position, noise[rows])
    order = np.argsort(-scores, kind="stable")[:count]
    return rows[order], scores[order]
