"""How often the target writes as one token what a draft model writes as two.

A target token that is proposed at the end of what was drafted may turn out to be the beginning of a longer
one, which the draft model does not have. How often that happened is counted for each target token (the cache
of OmniDraft, Kumar et al. 2025, by what it is needed for) and for all that have as many longer ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Merging"]

BUCKETS = 12  # of the number of longer tokens, by powers of two
PRIOR, PRIOR_TRIALS = 0.15, 8.0  # before anything was counted
POOLED_TRIALS = 4.0  # weight of all tokens of a bucket beside what was counted of one
KEEP = 0.99  # what a trial leaves of those before it


class Merging:
    """Counts of one pair of models."""

    def __init__(self) -> None:
        self._pooled: NDArray[np.float64] = np.zeros((BUCKETS, 2))  # merged, trials
        self._tokens: dict[int, list[float]] = {}

    def risk(self, token: int, longer: int) -> float:
        """Probability that `token`, which `longer` tokens begin with, is the beginning of one of them."""
        if not longer:
            return 0.0
        merged, trials = self._pooled[_bucket(longer)].tolist()
        pooled: float = (PRIOR_TRIALS * PRIOR + merged) / (PRIOR_TRIALS + trials)
        own = self._tokens.get(token)
        if own is None:
            return pooled
        return (POOLED_TRIALS * pooled + own[0]) / (POOLED_TRIALS + own[1])

    def observe(self, token: int, longer: int, merged: bool) -> None:
        """What followed `token` showed whether it was `merged` with it."""
        pooled = self._pooled[_bucket(longer)]
        pooled *= KEEP
        pooled += merged, 1.0
        own = self._tokens.setdefault(token, [0.0, 0.0])
        own[0], own[1] = KEEP * own[0] + merged, KEEP * own[1] + 1.0

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` needs."""
        tokens = np.array(list(self._tokens), np.int32)
        counts = np.array(list(self._tokens.values()), np.float64).reshape(-1, 2)
        return {"merging_pooled": self._pooled.copy(), "merging_tokens": tokens, "merging_counts": counts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Merging:
        """The counts that `to_arrays` described.

        Raises:
            ValueError: the arrays hold no such counts.
        """
        made = cls()
        try:
            pooled, tokens, counts = (arrays[f"merging_{name}"] for name in ("pooled", "tokens", "counts"))
        except KeyError as error:
            raise ValueError(f"the saved counts of merged tokens lack {error}") from error
        fits = pooled.shape == made._pooled.shape and tokens.ndim == 1 and counts.shape == (len(tokens), 2)
        if not (fits and all(np.isfinite(each).all() and (each >= 0).all() for each in (pooled, counts))):
            raise ValueError("the saved counts of merged tokens cannot be")
        made._pooled[:] = pooled
        made._tokens = {int(token): row for token, row in zip(tokens, counts.tolist(), strict=True)}
        return made


def _bucket(longer: int) -> int:
    return min(longer.bit_length() - 1, BUCKETS - 1)
