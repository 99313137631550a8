"""A draft, and where drafts come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Output

__all__ = ["EMPTY_DRAFT", "Draft", "Drafter"]


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of guessed tokens, most promising first.

    Every prefix `[:n]` of the arrays is itself a tree, and the best tree of n nodes: probabilities never
    rise along the arrays, and a parent comes before its children.

    Attributes:
        tokens: (n,) int32.
        parents: (n,) int32 index of the parent node; -1 hangs below the last token of the sequence.
        probs: (n,) float32 estimated probability that the whole path to the node is accepted.
        sources: (n,) uint8 index into the drafter's `source_names`.
    """

    tokens: NDArray[np.int32]
    parents: NDArray[np.int32]
    probs: NDArray[np.float32]
    sources: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.tokens)

    def head(self, n: int) -> Draft:
        """The best tree of `n` nodes."""
        return Draft(self.tokens[:n], self.parents[:n], self.probs[:n], self.sources[:n])


EMPTY_DRAFT = Draft(
    np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.uint8)
)


class Drafter(Protocol):
    """Guesses what comes next, and learns from what came."""

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources that `Draft.sources` indexes."""

    @property
    def cost_ms(self) -> float:
        """Measured time of one `propose`, in milliseconds."""

    def begin(
        self, context: Sequence[int], *, seed: int = 0, temperature: float = 0.0, position: int | None = None
    ) -> None:
        """A generation starts after `context` (all tokens of the sequence so far).

        `seed` and `temperature` are those the target samples with, and `position` is the absolute position
        of the next token (`len(context)` unless older tokens were forgotten): the noise of a position is
        known, so a drafter may guess with it.
        """

    def propose(self, limit: int, leaves: int) -> Draft:
        """At most `limit` nodes with at most `leaves` leaves, best first."""

    def observe_rows(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Logits (n, V) that followed each of `tokens` (n,), which are consecutive tokens of a prompt."""

    def observe(self, tokens: Sequence[int], draft: Draft, output: Output) -> None:
        """`tokens` were emitted after `draft` was verified; row 0 of `output` is the root, row i+1 node i."""
