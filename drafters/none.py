"""The drafter that does not draft: plain decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Output
from specx.drafters.base import EMPTY_DRAFT, NO_TRUNCATION, Draft, Truncation

__all__ = ["NoDrafter"]


class NoDrafter:
    """Proposes nothing, learns nothing, costs nothing."""

    source_names: tuple[str, ...] = ("padding",)  # what the plan fills a batch up with can turn out right
    cost_ms: float = 0.0

    def begin(
        self,
        context: Sequence[int],
        *,
        seed: int = 0,
        temperature: float = 0.0,
        position: int | None = None,
        truncation: Truncation = NO_TRUNCATION,
    ) -> None:
        """See `Drafter.begin`."""

    def propose(self, limit: int, leaves: int) -> Draft:
        """The empty draft."""
        return EMPTY_DRAFT

    def offer(self) -> None:
        """Nothing here costs time."""

    def observe_rows(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """See `Drafter.observe_rows`."""

    def observe(self, tokens: Sequence[int], draft: Draft, output: Output) -> None:
        """See `Drafter.observe`."""
