"""Draft heads: small networks that read the target's hidden states and say what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["HeadRunner"]


class HeadRunner(Protocol):
    """Follows one text with a head: what a guesser asks, whatever kind of head it is.

    Tokens have indices in the text, the first one 0. The hidden states of a token are known once the target
    has computed it: those of the text's last token are not, so it is always among what is drafted from.

    Attributes:
        first, length: it holds the tokens with the indices `first <= i < length`, and their hidden states.
        columns: (R,) int32 tokens that the columns of its logits stand for, rising; None where there is one
            for each token.
    """

    first: int
    length: int
    columns: NDArray[np.int32] | None

    def accept(self, at: int, tokens: NDArray[np.int32], features: NDArray[np.float32]) -> None:
        """The target has committed `tokens` (n,), the first one with the index `at`.

        Where that is not `length`, what it held before is forgotten and it begins there.

        Args:
            at: index of the first one.
            tokens: (n,).
            features: (n, k * d) what entered the layers that the head reads.
        """

    def logits(self, drafted: Sequence[int]) -> NDArray[np.float32]:
        """Logits (R,) float32 after what it holds and `drafted`, at least one token; borrowed.

        What is the same as in the call before is not computed again.

        Args:
            drafted: the text's last token, of which there are no hidden states yet, and what is drafted.

        Raises:
            SpecxError: they cannot be computed.
        """

    def rewind(self, length: int) -> None:
        """Forget the tokens from the index `length` on; everything if it is not above `first`."""

    def close(self) -> None:
        """The text is finished. Safe to call twice."""
