"""How often the tokens of a draft model are right, learned while decoding.

What is known of a proposed token is its *margin*: how far ahead of the runner-up it was by log q + G (by the
logits at temperature 0), which is what the target's own, slightly different, choice would have to overturn.
Together with the depth in the draft and with what the free drafters say of the same place it selects a cell,
which estimates a hazard: the probability that the token is right given that those before it are. A cell that
has seen little leans on all cells of the same margin, and these on a shipped prior.

Before a token is asked for, its margin is not known. What is known then selects a cell of the *forecast*: how
sure the free drafters are of the first token, or the margin of the token before. Whether the model will say
what the free drafters say rests on how often both were right, and the model alone, by how sure the free
drafters were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.drafters.calibration.merging import Merging
from specx.kernels._native import BESIDE_SHAPE, MODEL_SHAPE, PLACE_SHAPE, ModelCounts

__all__ = ["ModelCalibration"]

KEEP = 0.99  # what a trial leaves of those before it, as in kernels/drafts/model_counts.cpp


class ModelCalibration:
    """Hits and trials of every cell. One per pair of models.

    Attributes:
        cells: (*MODEL_SHAPE, 2) float64 hits and trials, decayed, by noise, margin, depth, and agreement.
        margins: (*MODEL_SHAPE[:2], 2) the same of all cells of a margin.
        forecasts: (*PLACE_SHAPE, 2) the same of the places of the forecast.
        all: (MODEL_SHAPE[0], 2) the same of all of them.
        beside: (*BESIDE_SHAPE, 2) the same where the free drafters proposed a token for the same place, by
            how sure they were of it and whether they were right.
        agreed: (*BESIDE_SHAPE[:2], 2) how often the model said that token.
        tokens: scored tokens in all, and how many of them were right; not decayed.
        counts: all of these, as they are read and learned further.
        merging: how often the target writes as one token what the model writes as two; of models with another
            vocabulary.
    """

    def __init__(self) -> None:
        self.cells: NDArray[np.float64] = np.zeros((*MODEL_SHAPE, 2))
        self.margins: NDArray[np.float64] = np.zeros((*MODEL_SHAPE[:2], 2))
        self.forecasts: NDArray[np.float64] = np.zeros((*PLACE_SHAPE, 2))
        self.all: NDArray[np.float64] = np.zeros((MODEL_SHAPE[0], 2))
        self.beside: NDArray[np.float64] = np.zeros((*BESIDE_SHAPE, 2))
        self.agreed: NDArray[np.float64] = np.zeros((*BESIDE_SHAPE[:2], 2))
        self.tokens: NDArray[np.float64] = np.zeros(2)
        self.merging = Merging()
        self.counts = ModelCounts(
            self.cells, self.margins, self.forecasts, self.all, self.beside, self.agreed, self.tokens
        )

    @classmethod
    def of_trial(cls, right: int, scored: int) -> ModelCalibration:
        """What is known after `right` of `scored` tokens of a trial came true, and nothing else is."""
        made = cls()
        made.tokens[:] = right, scored
        made.all[:] = made.tokens * min(1.0, 1 / ((1 - KEEP) * max(scored, 1)))
        return made

    @property
    def trials(self) -> int:
        """Tokens scored so far, in all runs."""
        return int(self.tokens[1])

    @property
    def acceptance(self) -> float | None:
        """Share of the scored tokens that were right, given that those before them were; None before any."""
        return float(self.tokens[0] / self.tokens[1]) if self.tokens[1] else None

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` needs; copies."""
        kept = {kept: getattr(self, name).copy() for name, kept in _FIELDS.items()}
        return {**kept, **self.merging.to_arrays()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ModelCalibration:
        """The calibration that `to_arrays` described.

        Raises:
            ValueError: the arrays do not describe a calibration of this version.
        """
        made = cls()
        for name, kept in _FIELDS.items():
            mine, given = getattr(made, name), arrays.get(kept)
            if given is None or given.shape != mine.shape or given.dtype != mine.dtype:
                raise ValueError(f"the saved calibration of a draft model has another {kept}")
            hits, trials = given[..., 0], given[..., 1]
            if not (np.isfinite(given).all() and (hits >= 0).all() and (hits <= trials).all()):
                raise ValueError("the saved calibration of a draft model holds counts that cannot be")
            mine[:] = given
        made.merging = Merging.from_arrays(arrays)
        return made


_FIELDS = {"cells": "counts"} | {
    name: name for name in ("margins", "forecasts", "all", "beside", "agreed", "tokens")
}
"""Attributes, and what they are called where they are kept."""
