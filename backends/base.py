"""What runs a model, as the decode loop sees it.

A backend holds one growing sequence of committed tokens and verifies a tree of guesses beyond it in one
call. `LlamaBackend` runs GGUF files; `ScriptedBackend` is a tiny language model with known probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specx.kernels._native import LogitRows

__all__ = ["Backend", "Output", "Progress", "RowSink", "Vocab"]

Progress = Callable[[int, int], None]
"""Called with (tokens done, tokens in all) while a prompt is read."""

RowSink = Callable[[NDArray[np.int32], NDArray[np.float32]], None]
"""Called with tokens (n,) and the logits (n, V) that follow each of them; the logits are borrowed."""


@dataclass(frozen=True, slots=True)
class Output:
    """What one forward call computed.

    Attributes:
        logits: (n, V) float32, row i follows token i of the call. Borrowed: valid until the next call.
        hidden: (n, d) float32 hidden states, if the backend was asked for them.
        rows: `logits` with what is known of them: each is read through once, whoever asks first.
    """

    logits: NDArray[np.float32]
    hidden: NDArray[np.float32] | None = None
    rows: LogitRows = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", LogitRows(self.logits))


class Vocab(Protocol):
    """The tokens of a model, as bytes."""

    @property
    def size(self) -> int:
        """Number of tokens, V."""

    @property
    def eog(self) -> frozenset[int]:
        """Every token that ends a generation."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the token list: equal for two models exactly when their ids mean the same."""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token. Control tokens are empty unless `special`."""

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of UTF-8 `text`; `add_special` adds BOS (and EOS) as the model wants it."""


class Backend(Protocol):
    """One sequence of committed tokens, and guesses beyond it."""

    @property
    def vocab(self) -> Vocab:
        """The model's vocabulary."""

    @property
    def n_ctx(self) -> int:
        """Largest number of tokens the sequence may hold, drafted ones included."""

    @property
    def length(self) -> int:
        """Number of committed tokens."""

    @property
    def max_width(self) -> int:
        """Most tokens one forward call takes; 1 if the model cannot take guesses back."""

    @property
    def max_leaves(self) -> int:
        """Most leaves of a token tree in one forward call; 1 means chains only."""

    @property
    def plain_reason(self) -> str | None:
        """Why this model decodes plainly (one clause), or None if it can speculate."""

    def prefill(
        self, tokens: Sequence[int], *, progress: Progress | None = None, rows: RowSink | None = None
    ) -> None:
        """Commit `tokens` after the present sequence. `rows` receives logits, as far as they are cheap.

        Raises:
            ContextFullError: they do not fit.
        """

    def forward(self, tokens: NDArray[np.int32], parents: NDArray[np.int32]) -> Output:
        """Compute a tree of tokens beyond the committed sequence, committing nothing.

        Args:
            tokens: (n,) int32, row 0 is the root: the next token of the sequence.
            parents: (n,) int32, parents[0] == -1 and 0 <= parents[i] < i for the others.

        Raises:
            ContextFullError: there is no room for n more tokens.
        """

    def keep(self, rows: Sequence[int]) -> None:
        """Commit a path of the last forward call (root first, each row the child of the one before)
        and forget the rest of the tree. Exactly one `keep` follows each `forward`."""

    def reusable(self, length: int) -> int:
        """Largest length not above `length` that `rewind` can go back to (0 always can)."""

    def rewind(self, length: int) -> None:
        """Forget committed tokens from `length` on.

        Raises:
            RollbackError: the backend cannot go back that far.
        """

    def shift(self, keep: int, discard: int) -> None:
        """Forget `discard` tokens after the first `keep` and move the rest forward.

        Raises:
            ContextFullError: this model's cache cannot be shifted.
        """

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
