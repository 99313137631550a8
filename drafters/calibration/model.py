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

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.drafters.calibration.merging import Merging
from specx.kernels._native import BesideCounts

__all__ = ["AGREES", "OTHER", "SILENT", "Cell", "ModelCalibration", "Place"]

Cell = tuple[int, int, int, int]
"""Index of a cell of hazards."""

Place = tuple[int, int]
"""Index of a cell of the forecast."""

SILENT, OTHER, AGREES = range(3)
"""What the free drafters propose at the place of a token: nothing, another token, the same one."""

MARGINS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)
DEPTHS = (2, 4)  # depths from which on the next cell applies: 1, 2 and 3, 4 and more
CONFIDENCE = (0.01, 0.4, 0.8)  # of the free drafters' first token: no probability, low, middling, high
ORDERS = 2  # greedy, with noise
SHAPE = (ORDERS, len(MARGINS) + 1, len(DEPTHS) + 1, 3)
FORECAST_SHAPE = (ORDERS, len(CONFIDENCE) + 1 + len(MARGINS) + 1)
PRIOR_TRIALS = 8.0  # weight of what a cell leans on
KEEP = 0.99  # what a trial leaves of those before it, as in kernels/drafts/calibration.hpp
PLACE_TRIALS, PLACE_KEEP = 4.0, 0.98  # of one place of the forecast, which leans on all of them

# Guesses before anything is seen: log odds that grow with the margin, by what the free drafters say.
INTERCEPT, SLOPE = -0.2, 0.8
AGREEMENT = (0.0, -0.4, 1.2)
RIGHT = 0.7  # of all tokens
SURE = (0.4, 0.7, 0.9)  # of the free drafters' token: hazards from which on the next cell applies
BESIDE_SHAPE = (ORDERS, len(SURE) + 1, 2)  # the last: whether the free drafters are right
BESIDE = (0.4, 0.85)  # how often the model is right where the free drafters are not, and where they are
SAID = (0.2, 0.85)  # how often it says what they say, likewise
SURE_EDGES: NDArray[np.float64] = np.array(SURE)
BESIDE_PRIORS: NDArray[np.float64] = np.array([*BESIDE, *SAID, PRIOR_TRIALS])


class ModelCalibration:
    """Hits and trials of every cell. One per pair of models.

    Attributes:
        counts: (*SHAPE, 2) float64 hits and trials, decayed.
        margins: (ORDERS, buckets, 2) the same of all cells of a margin.
        forecasts: (*FORECAST_SHAPE, 2) the same of the places of the forecast.
        all: (ORDERS, 2) the same of all of them.
        beside: (*BESIDE_SHAPE, 2) the same where the free drafters proposed a token for the same place, by
            how sure they were of it and whether they were right.
        agreed: (*BESIDE_SHAPE[:2], 2) how often the model said that token.
        tokens: scored tokens in all, and how many of them were right; not decayed.
        merging: how often the target writes as one token what the model writes as two; of models with another
            vocabulary.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.float64] = np.zeros((*SHAPE, 2))
        self.margins: NDArray[np.float64] = np.zeros((ORDERS, SHAPE[1], 2))  # over depths and agreement
        self.forecasts: NDArray[np.float64] = np.zeros((*FORECAST_SHAPE, 2))
        self.all: NDArray[np.float64] = np.zeros((ORDERS, 2))
        self.beside: NDArray[np.float64] = np.zeros((*BESIDE_SHAPE, 2))
        self.agreed: NDArray[np.float64] = np.zeros((*BESIDE_SHAPE[:2], 2))
        self.tokens: NDArray[np.float64] = np.zeros(2)
        self.merging = Merging()
        self._beside_free = [
            BesideCounts(self.beside[order], self.agreed[order], SURE_EDGES, BESIDE_PRIORS)
            for order in range(ORDERS)
        ]

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

    @staticmethod
    def cell(noisy: bool, margin: float, depth: int, agreement: int) -> Cell:
        """Index of the cell of a proposed token; the first of a draft has depth 1."""
        return int(noisy), bisect_right(MARGINS, margin), bisect_right(DEPTHS, depth), agreement

    @staticmethod
    def first(noisy: bool, free: float) -> Place:
        """Index of the forecast of the first token, where the free drafters' best has probability `free`."""
        return int(noisy), bisect_right(CONFIDENCE, free)

    @staticmethod
    def following(noisy: bool, margin: float) -> Place:
        """Index of the forecast of the token after one of `margin`."""
        return int(noisy), len(CONFIDENCE) + 1 + bisect_right(MARGINS, margin)

    def hazard(self, cell: Cell) -> float:
        """Probability that a token of the cell is right if those before it are."""
        noisy, margin, _, agreement = cell
        pooled = _mean(self.margins[noisy, margin], _prior(margin))
        shifted = 1 / (1 + math.exp(-_log_odds(pooled) - AGREEMENT[agreement]))
        return _mean(self.counts[cell], shifted)

    def forecast(self, at: Place) -> float:
        """Probability that the next token will be right, before it is known."""
        return _mean(self.forecasts[at], self.later(bool(at[0])), PLACE_TRIALS)

    def later(self, noisy: bool) -> float:
        """Probability that a token further on will be right if those before it are."""
        return _mean(self.all[int(noisy)], RIGHT)

    def beside_free(self, noisy: bool) -> BesideCounts:
        """What to expect where the free drafters propose tokens, by how sure these are."""
        return self._beside_free[int(noisy)]

    def score_beside(self, noisy: bool, free: float, free_right: bool, right: bool) -> None:
        """A token was `right` or not where the free drafters' was, which was thought right with `free`."""
        _count(self.beside[int(noisy), bisect_right(SURE, free), int(free_right)], right, KEEP)

    def score_said(self, noisy: bool, free: float, said: bool) -> None:
        """It `said` what the free drafters did, which was thought right with `free`, or something else."""
        _count(self.agreed[int(noisy), bisect_right(SURE, free)], said, KEEP)

    def score(self, cell: Cell, at: Place, right: bool) -> None:
        """A token of `cell`, forecast from `at`, was `right` or not."""
        _count(self.tokens, right, 1.0)
        _count(self.counts[cell], right, KEEP)
        _count(self.margins[cell[:2]], right, KEEP)
        _count(self.forecasts[at], right, PLACE_KEEP)
        _count(self.all[at[0]], right, KEEP)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` needs; copies."""
        return {**{name: getattr(self, name).copy() for name in _FIELDS}, **self.merging.to_arrays()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ModelCalibration:
        """The calibration that `to_arrays` described.

        Raises:
            ValueError: the arrays do not describe a calibration of this version.
        """
        made = cls()
        for name in _FIELDS:
            mine, given = getattr(made, name), arrays.get(name)
            if given is None or given.shape != mine.shape or given.dtype != mine.dtype:
                raise ValueError(f"the saved calibration of a draft model has another {name}")
            hits, trials = given[..., 0], given[..., 1]
            if not (np.isfinite(given).all() and (hits >= 0).all() and (hits <= trials).all()):
                raise ValueError("the saved calibration of a draft model holds counts that cannot be")
            mine[:] = given
        made.merging = Merging.from_arrays(arrays)
        return made


_FIELDS = ("counts", "margins", "forecasts", "all", "beside", "agreed", "tokens")


def _count(counts: NDArray[np.float64], right: bool, keep: float) -> None:
    hits, trials = counts.tolist()  # plain numbers: NumPy takes longer to begin than they to be added up
    counts[0], counts[1] = keep * hits + right, keep * trials + 1


def _mean(counts: NDArray[np.float64], prior: float, weight: float = PRIOR_TRIALS) -> float:
    return _shrunk(counts.tolist(), prior, weight)


def _shrunk(counts: list[float], prior: float, weight: float = PRIOR_TRIALS) -> float:
    hits, trials = counts
    return (weight * prior + hits) / (weight + trials)


def _prior(margin: int) -> float:
    """Hazard of a margin's bucket before anything is seen, from its lower edge."""
    edge = MARGINS[margin - 1] if margin else 0.0
    return 1 / (1 + math.exp(-INTERCEPT - SLOPE * edge))


def _log_odds(p: float) -> float:
    p = min(max(p, 1e-4), 1 - 1e-4)
    return math.log(p / (1 - p))
