"""How often the guesses of the free drafters are right, learned while decoding.

A candidate falls into a cell by what is known of it (how long the match is, whether the recycled row
agrees, ...). A cell estimates its hazard, the probability that the candidate is the next token given that
the candidates before it are not, as a Beta mean with forgetting; the native trie reads and writes the counts.
Before a cell has seen anything it predicts the shipped prior, an additive model of the log odds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.kernels._native import RECYCLE_SHAPE, SUFFIX_SHAPE

__all__ = ["CELLS", "PRIOR_TRIALS", "Calibration"]

LAYOUT = 2
"""Which cells there are and what they mean; what was kept of other ones cannot be used."""

PRIOR_TRIALS = 8.0
"""Weight of the prior in trials, as in kernels/drafts/calibration.hpp."""

TEXT_EVIDENCE = ("new", "streak 0", "streak 1", "streak 2", "streak 3+", "frequent <50%", "frequent >=50%")
SUFFIX_AXES: Mapping[str, tuple[str, ...]] = {
    "order": ("greedy", "plain", "coupled"),
    "place": ("1st", "2nd", "3rd"),
    "match length": ("1", "2", "3", "4", "5-6", "7-10", "11-20", "21+"),
    "recycled row": ("clear best", "best", "rank 1-2", "rank 3-7", "not in it", "no row"),
    "evidence": (
        *(f"{where}, {what}" for where in ("conversation", "history") for what in TEXT_EVIDENCE),
        *(f"corpus, {what}" for what in ("once", "<30%", "<60%", "<90%", "<100%", "always")),
    ),
}
RECYCLE_AXES: Mapping[str, tuple[str, ...]] = {
    "order": ("greedy", "plain", "coupled"),
    "place": ("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th"),
    "margin": ("<0.25", "<0.75", "<1.5", "<3", "<5", ">=5"),
    "row": ("token", "pair"),
    "suffix match": ("none", "1", "2-4", "5+"),
}

# Log odds of the priors: a constant and one term for every value of every axis. Fitted by ridge logistic
# regression (benchmarks/replay.py --fit) to greedy outputs of SmolLM2-135M on 48 prompts of 10 kinds, with
# and without the other prompts as history and the answers to similar ones as a corpus, and rounded.
SUFFIX_LOG_ODDS: tuple[float, tuple[tuple[float, ...], ...]] = (
    0.1,
    (
        (0, 0, 0),
        (0.2, -0.15, -0.05),
        (-1.6, -0.9, -0.6, -0.1, -0.1, 0.3, 1.0, 2.0),
        (1.0, 0.1, 0, -0.2, -1.0, 0.15),
        (
            *(0.6, -0.4, 0.8, 1.4, 1.5, -0.6, 0.1),  # conversation
            *(-0.6, -1.5, -0.3, -0.1, 0.0, -0.4, 0.1),  # history
            *(-0.1, -0.7, -0.6, -0.2, 0.1, 0.7),  # corpus
        ),
    ),
)
RECYCLE_LOG_ODDS: tuple[float, tuple[tuple[float, ...], ...]] = (
    -2.1,
    (
        (0, 0, 0),
        (1.3, 0.5, 0.2, 0, -0.2, -0.3, -0.5, -1.0),
        (-0.6, -0.3, 0, 0.2, 0.3, 0.5),
        (-0.5, 0.5),
        (0, 0.1, -0.3, 0.2),
    ),
)

SUFFIX_CELLS = math.prod(SUFFIX_SHAPE)
CELLS = SUFFIX_CELLS + math.prod(RECYCLE_SHAPE)


@cache
def _prior() -> NDArray[np.float32]:
    """(CELLS,) float32 shipped hazards."""
    tables = []
    for constant, effects in (SUFFIX_LOG_ODDS, RECYCLE_LOG_ODDS):
        grids = np.meshgrid(*(np.array(effect, np.float64) for effect in effects), indexing="ij")
        tables.append(1 / (1 + np.exp(-constant - sum(grids))).ravel())
    prior = np.concatenate(tables).astype(np.float32)
    prior.setflags(write=False)
    return prior


class Calibration:
    """Hits and trials of every cell. One per model; shared with the native trie without copying.

    Attributes:
        counts: (CELLS, 2) float32 hits and trials, decayed; suffix cells first, then recycled ones, each
            block in C order of its axes.
        prior: (CELLS,) float32 hazards before anything is seen.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.float32] = np.zeros((CELLS, 2), np.float32)
        self.prior: NDArray[np.float32] = _prior()

    def hazards(self) -> NDArray[np.float32]:
        """(CELLS,) float32: what the trie uses for each cell now."""
        return (PRIOR_TRIALS * self.prior + self.counts[:, 0]) / (PRIOR_TRIALS + self.counts[:, 1])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` needs; a copy."""
        return {"counts": self.counts.copy(), "layout": np.array(LAYOUT)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Calibration:
        """The calibration that `to_arrays` described; a new one if its cells were others.

        Raises:
            ValueError: the arrays do not describe a calibration.
        """
        layout = arrays.get("layout", np.array(1))
        if layout.shape or layout.dtype.kind not in "iu":
            raise ValueError("the saved calibration has no layout")
        if layout != LAYOUT:
            return cls()
        counts = arrays.get("counts")
        if counts is None or counts.shape != (CELLS, 2) or counts.dtype != np.float32:
            raise ValueError("the saved calibration has other cells")
        if not (
            np.isfinite(counts).all() and (counts[:, 0] >= 0).all() and (counts[:, 0] <= counts[:, 1]).all()
        ):
            raise ValueError("the saved calibration holds counts that cannot be")
        calibration = cls()
        calibration.counts[:] = counts
        return calibration

    def summary(self) -> str:
        """How often candidates were right, along each axis; a table for people."""
        suffix = self.counts[:SUFFIX_CELLS].reshape(*SUFFIX_SHAPE, 2)
        recycle = self.counts[SUFFIX_CELLS:].reshape(*RECYCLE_SHAPE, 2)
        lines = ["suffix candidates", *_lines(suffix, SUFFIX_AXES)]
        return "\n".join([*lines, "recycled candidates", *_lines(recycle, RECYCLE_AXES)])


def _lines(counts: NDArray[np.float32], axes: Mapping[str, Sequence[str]]) -> list[str]:
    """One line an axis: the hit rate and the trials of each of its values that was seen."""
    lines = []
    for i, (axis, values) in enumerate(axes.items()):
        sums = counts.sum(axis=tuple(j for j in range(len(axes)) if j != i))
        seen = [
            f"{value} {hits / trials:.0%} of {trials:.0f}"
            for value, (hits, trials) in zip(values, sums, strict=True)
            if trials > 0
        ]
        lines.append(f"  {axis}: {', '.join(seen) or 'none seen'}")
    return lines
