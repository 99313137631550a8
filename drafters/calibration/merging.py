"""How often the target writes as one token what a draft model writes as several.

What was drafted may turn out to be the beginning of a token that the draft model does not have. How often
that happened is counted by the bytes that stood at the end of a draft (the cache of OmniDraft, Kumar et al.
2025, by what it is needed for), and for all that as many such tokens begin with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Merging"]

BUCKETS = 12  # of the number of longer tokens, by powers of two
PRIOR, PRIOR_TRIALS = 0.3, 8.0  # before anything was counted
POOLED_TRIALS = 2.0  # weight of all of a bucket beside what was counted of one text
FIRST = 2  # trials of a text that count for its bucket: one that is frequent says nothing of the others
KEEP = 0.99  # what a trial leaves of those before it
MOST = 1 << 14  # texts that are counted one by one; then the older half goes


class Merging:
    """Counts of one pair of models."""

    def __init__(self) -> None:
        self._pooled: NDArray[np.float64] = np.zeros((BUCKETS, 2))  # merged, trials
        self._texts: dict[bytes, list[float]] = {}

    def risk(self, text: bytes, longer: int) -> float:
        """Probability that `text`, which `longer` such tokens begin with, is the beginning of one."""
        if not longer:
            return 0.0
        merged, trials = self._pooled[_bucket(longer)].tolist()
        pooled: float = (PRIOR_TRIALS * PRIOR + merged) / (PRIOR_TRIALS + trials)
        own = self._texts.get(text)
        if own is None:
            return pooled
        return (POOLED_TRIALS * pooled + own[0]) / (POOLED_TRIALS + own[1])

    def observe(self, text: bytes, longer: int, merged: bool) -> None:
        """What followed `text` showed whether it was `merged` with it."""
        own = self._texts.setdefault(text, [0.0, 0.0])
        if own[1] < FIRST:
            pooled = self._pooled[_bucket(longer)]
            pooled *= KEEP
            pooled += merged, 1.0
        own[0], own[1] = KEEP * own[0] + merged, KEEP * own[1] + 1.0
        if len(self._texts) > MOST:
            self._texts = dict(list(self._texts.items())[MOST // 2 :])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` needs."""
        return {
            "merging_pooled": self._pooled.copy(),
            "merging_texts": np.frombuffer(b"".join(self._texts), np.uint8),
            "merging_lengths": np.array([len(text) for text in self._texts], np.int32),
            "merging_counts": np.array(list(self._texts.values()), np.float64).reshape(-1, 2),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Merging:
        """The counts that `to_arrays` described.

        Raises:
            ValueError: the arrays hold no such counts.
        """
        made = cls()
        names = ("pooled", "texts", "lengths", "counts")
        try:
            pooled, texts, lengths, counts = (arrays[f"merging_{name}"] for name in names)
        except KeyError as error:
            raise ValueError(f"the saved counts of merged tokens lack {error}") from error
        fits = (
            pooled.shape == made._pooled.shape
            and counts.shape == (len(lengths), 2)
            and texts.dtype == np.uint8
            and bool((lengths >= 0).all())
            and int(lengths.sum()) == len(texts)
        )
        if not (fits and all(np.isfinite(each).all() and (each >= 0).all() for each in (pooled, counts))):
            raise ValueError("the saved counts of merged tokens cannot be")
        made._pooled[:] = pooled
        ends = np.cumsum(lengths).tolist()
        whole = texts.tobytes()
        for start, end, row in zip([0, *ends[:-1]], ends, counts.tolist(), strict=False):
            made._texts[whole[start:end]] = row
        return made


def _bucket(longer: int) -> int:
    return min(longer.bit_length() - 1, BUCKETS - 1)
