"""What `ModelCounts` computes, in plain Python."""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from specx.kernels.reference.foresight import Beside, beside

__all__ = ["AGREES", "OTHER", "SILENT", "SURE", "Cell", "ModelCounts", "Place"]

Cell = tuple[int, int, int, int]
"""Index of a cell of hazards."""

Place = tuple[int, int]
"""Index of a cell of the forecast."""

SILENT, OTHER, AGREES = range(3)
"""What the free drafters propose at the place of a token: nothing, another token, the same one."""

MARGINS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)
DEPTHS = (2, 4)  # depths from which on the next cell applies: 1, 2 and 3, 4 and more
CONFIDENCE = (0.01, 0.4, 0.8)  # of the free drafters' first token: no probability, low, middling, high
SURE = (0.4, 0.7, 0.9)  # of any token of theirs: hazards from which on the next cell applies
PRIOR_TRIALS = 8.0  # weight of what a cell leans on
KEEP = 0.99  # what a trial leaves of those before it
PLACE_TRIALS, PLACE_KEEP = 4.0, 0.98  # of one place of the forecast, which leans on all of them

# Guesses before anything is seen: log odds that grow with the margin, by what the free drafters say.
INTERCEPT, SLOPE = -0.2, 0.8
AGREEMENT = (0.0, -0.4, 1.2)
RIGHT = 0.7  # of all tokens
BESIDE = (0.4, 0.85)  # how often the model is right where the free drafters are not, and where they are
SAID = (0.2, 0.85)  # how often it says what they say, likewise
BESIDE_PRIORS: NDArray[np.float64] = np.array([*BESIDE, *SAID, PRIOR_TRIALS])


class ModelCounts:
    """Hits and trials; the last axis of every array, which are learned further in place.

    Args:
        cells: by noise, margin, depth and agreement.
        margins: the same of all cells of a margin.
        forecasts: by noise and place.
        all: by noise.
        beside: by noise, by how sure the free drafters were, and whether they were right.
        agreed: how often the source said their token.
        tokens: of all, not decayed.
    """

    def __init__(
        self,
        cells: NDArray[np.float64],
        margins: NDArray[np.float64],
        forecasts: NDArray[np.float64],
        all: NDArray[np.float64],
        beside: NDArray[np.float64],
        agreed: NDArray[np.float64],
        tokens: NDArray[np.float64],
    ) -> None:
        self.cells, self.margins, self.forecasts, self.all = cells, margins, forecasts, all
        self.beside, self.agreed, self.tokens = beside, agreed, tokens

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
        return _mean(self.cells[cell], shifted)

    def forecast(self, place: Place) -> float:
        """Probability that the next token will be right, before it is known."""
        return _mean(self.forecasts[place], self.later(bool(place[0])), PLACE_TRIALS)

    def later(self, noisy: bool) -> float:
        """Probability that a token further on will be right if those before it are."""
        return _mean(self.all[int(noisy)], RIGHT)

    def expected_beside(self, noisy: bool, hazards: list[float]) -> list[Beside]:
        """What to expect where the free drafters propose tokens of these hazards."""
        right, agreed = self.beside[int(noisy)], self.agreed[int(noisy)]
        return [beside(right, agreed, np.array(SURE), BESIDE_PRIORS, hazard) for hazard in hazards]

    def score(self, cell: Cell, place: Place, right: bool) -> None:
        """A token of `cell`, forecast from `place`, was `right` or not."""
        _count(self.tokens, right, 1.0)
        _count(self.cells[cell], right, KEEP)
        _count(self.margins[cell[:2]], right, KEEP)
        _count(self.forecasts[place], right, PLACE_KEEP)
        _count(self.all[place[0]], right, KEEP)

    def score_beside(self, noisy: bool, free: float, free_right: bool, right: bool) -> None:
        """A token was `right` or not where the free drafters' was, which was thought right with `free`."""
        _count(self.beside[int(noisy), bisect_right(SURE, free), int(free_right)], right, KEEP)

    def score_said(self, noisy: bool, free: float, said: bool) -> None:
        """It `said` what the free drafters did, which was thought right with `free`, or something else."""
        _count(self.agreed[int(noisy), bisect_right(SURE, free)], said, KEEP)


def _count(counts: NDArray[np.float64], right: bool, keep: float) -> None:
    counts *= keep
    counts += right, 1


def _mean(counts: NDArray[np.float64], prior: float, weight: float = PRIOR_TRIALS) -> float:
    hits, trials = counts.tolist()
    return float((weight * prior + hits) / (weight + trials))


def _prior(margin: int) -> float:
    """Hazard of a margin's bucket before anything is seen, from its lower edge."""
    edge = MARGINS[margin - 1] if margin else 0.0
    return 1 / (1 + math.exp(-INTERCEPT - SLOPE * edge))


def _log_odds(p: float) -> float:
    p = min(max(p, 1e-4), 1 - 1e-4)
    return math.log(p / (1 - p))
