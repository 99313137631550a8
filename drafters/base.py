"""A draft, and where drafts come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Output

__all__ = ["EMPTY_DRAFT", "NO_TRUNCATION", "Draft", "Drafter", "Offer", "Truncation"]

Truncation = tuple[int, float, float, float]
"""Top-k, top-p, min-p and typical-p, as `rank_tokens` takes them."""

NO_TRUNCATION: Truncation = (0, 1.0, 0.0, 1.0)


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
        if n == len(self.tokens):
            return self
        return Draft(self.tokens[:n], self.parents[:n], self.probs[:n], self.sources[:n])

    def chain(self, leaf: int) -> Draft:
        """The path from the root to the node `leaf`, as a draft."""
        parents = self.parents.tolist()
        path = [leaf]
        while (above := parents[path[-1]]) >= 0:
            path.append(above)
        nodes = np.array(path[::-1])
        row = np.arange(-1, len(path) - 1, dtype=np.int32)
        return Draft(self.tokens[nodes], row, self.probs[nodes], self.sources[nodes])


EMPTY_DRAFT = Draft(
    np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.uint8)
)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a source that costs time would give, if it were asked for more.

    Attributes:
        forecast: the draft as it would be after so many further tokens of the source, with the probabilities
            that are expected before it is asked; these tokens are not known, and -1. Where only chains are
            possible, it is the source's chain.
        take: ask for the next token; returns the draft with it. Like a forecast it may have a leaf more than
            `propose` was allowed: where only chains are possible, it is two that share their beginning, of
            which one is taken.
        most: most further tokens that can be had.
        token_ms: expected milliseconds of each.
        invest_ms: expected milliseconds before the first of them, of work that serves later steps as well:
            reading tokens that the source has not read, loading it.
        explorable: whether it may be asked only to learn how good it is.
    """

    forecast: Callable[[int], Draft]
    take: Callable[[], Draft]
    most: int
    token_ms: float
    invest_ms: float = 0.0
    explorable: bool = True


class Drafter(Protocol):
    """Guesses what comes next, and learns from what came."""

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources that `Draft.sources` indexes."""

    @property
    def cost_ms(self) -> float:
        """Measured time of one `propose`, in milliseconds."""

    def begin(
        self,
        context: Sequence[int],
        *,
        seed: int = 0,
        temperature: float = 0.0,
        position: int | None = None,
        truncation: Truncation = NO_TRUNCATION,
    ) -> None:
        """A generation starts after `context` (all tokens of the sequence so far).

        `seed`, `temperature` and `truncation` are those the target samples with, and `position` is the
        absolute position of the next token (`len(context)` unless older tokens were forgotten): the noise of
        a position is known, so a drafter may guess with it.
        """

    def propose(self, limit: int, leaves: int) -> Draft:
        """At most `limit` nodes with at most `leaves` leaves, best first: what costs next to nothing."""

    def offer(self) -> Offer | None:
        """What a source that costs time would add to the draft of this step, if there is one."""

    def observe_rows(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Logits (n, V) that followed each of `tokens` (n,), which are consecutive tokens of a prompt."""

    def observe(self, tokens: Sequence[int], draft: Draft, output: Output) -> None:
        """`tokens` were emitted after `draft` was verified; row 0 of `output` is the root, row i+1 node i."""
