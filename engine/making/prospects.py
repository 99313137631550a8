"""What a drafter of some of a model's layers would be worth: the objective, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specx.backends.gguf.file import GGUFInfo
from specx.drafters.make.shrink import Stage
from specx.engine.cost.rate import chain_rate
from specx.engine.setup.layers import EMBEDDING, HEAD, step_bytes

__all__ = ["Prospects", "ShrinkStage"]


@dataclass(frozen=True, slots=True)
class ShrinkStage:
    """What so many layers would be worth.

    Attributes:
        layers: kept.
        dropped: those left out.
        agreement: share of the model's own tokens that they predict.
        cost: of drafting a token, in times of a step of the target, by the bytes that are read.
        speedup: predicted, in times of plain decoding; None where nothing is known of the model's steps.
    """

    layers: int
    dropped: tuple[int, ...]
    agreement: float
    cost: float
    speedup: float | None


class Prospects:
    """What layers would be worth.

    Args:
        target: the model.
        small: the same as its drafter is quantized.
        costs: (W + 1,) milliseconds of the target's steps; None if they are not known.
        trim: rows that the head is to keep; None for all.
    """

    def __init__(
        self,
        target: GGUFInfo,
        small: GGUFInfo,
        costs: NDArray[np.float64] | None,
        trim: int | None = None,
    ) -> None:
        self._small = small if trim is None else _trimmed(small, trim)
        self._costs = costs
        self._target_bytes = step_bytes(target)

    def of(self, stage: Stage) -> ShrinkStage:
        """The rate of the pair, by the objective."""
        small = self._small
        left = tuple(
            tensor
            for tensor in small.tensors
            if not any(tensor.name.startswith(f"blk.{layer}.") for layer in stage.dropped)
        )
        cost = step_bytes(replace(small, tensors=left)) / self._target_bytes
        return ShrinkStage(
            layers=small.blocks - len(stage.dropped),
            dropped=tuple(sorted(stage.dropped)),
            agreement=stage.agreement,
            cost=cost,
            speedup=self._speedup(cost, stage.agreement),
        )

    def _speedup(self, cost: float, agreement: float) -> float | None:
        if self._costs is None:
            return None
        plain_ms = float(self._costs[1])
        return chain_rate(self._costs, draft_ms=cost * plain_ms, acceptance=agreement).rate * plain_ms


def _trimmed(info: GGUFInfo, rows: int) -> GGUFInfo:
    """A header as if the head had so many rows."""
    share = rows / info.vocabulary_size
    return replace(
        info,
        tensors=tuple(
            replace(tensor, nbytes=round(share * tensor.nbytes))
            if tensor.name in (EMBEDDING, HEAD)
            else tensor
            for tensor in info.tensors
        ),
    )
