"""Heads that draft a block of tokens at once, from keys and values that the target's states become.

Nothing of a draft is read before the next token is drafted, so one call gives all (DFlash, Chen et al. 2026;
DSpark, whose bias by the token before follows the likeliest ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specx.drafters.head import SlottedHead, SlottedModel, SlottedRunner

__all__ = ["BlockModel", "BlockRunner", "block_head"]


class BlockModel(SlottedModel, Protocol):
    """A loaded head that drafts a block at once, shared by the texts it follows.

    Attributes:
        size: tokens of a block, the last one of the text included; `n_ctx` includes them.
        most: tokens that are drafted.
    """

    size: int
    most: int

    def accept(self, slot: int, features: NDArray[np.float32], position: int) -> None:
        """Hold what the target gives (n, k * d_t) for consecutive tokens of the text `slot`."""

    def draft(self, slot: int, token: int, position: int) -> NDArray[np.float32]:
        """Logits (most, R) of the tokens after the last one of a text, which has this position."""

    def forget(self, slot: int, position: int, end: int = -1) -> None:
        """Forget what a text holds from `position` on, or up to `end`."""


def block_head(model: BlockModel) -> SlottedHead:
    """A head that drafts a block at once, with room for some texts."""
    return SlottedHead(model, partial(BlockRunner, model))


class BlockRunner(SlottedRunner):
    """Follows one text with a head that drafts a block at once.

    Args:
        model: the head.
        slot: which of its texts this is.
    """

    def __init__(self, model: BlockModel, slot: int) -> None:
        super().__init__(model, slot)
        self.most = model.most
        self._model = model
        self._start = 0  # index of the token whose position is 0
        self._block: tuple[int, NDArray[np.float32]] | None = None  # after which token, and its logits

    def accept(self, at: int, tokens: Sequence[int], features: NDArray[np.float32]) -> None:
        """Hold what the target gives for `tokens`, the latest of them if there is no room for all."""
        if at != self.length or self.first == self.length:
            self._forget_all(at)
        self._block = None
        room = self._model.n_ctx - self._model.size
        if len(tokens) > room:
            self._forget_all(at + len(tokens) - room)
            tokens, features = tokens[-room:], features[-room:]
        elif (over := self.length - self.first + len(tokens) - room) > 0:
            self._drop(min(max(over, room // 2), self.length - self.first))
        self._model.accept(self.slot, features, self.length - self._start)
        self._tokens += tokens
        self.length += len(tokens)

    def unread(self, drafted: Sequence[int], more: int = 0) -> int:
        """Tokens of a block that was not computed yet, and those accepted before."""
        if not more and self._block is not None and self._block[0] == drafted[0]:
            return 1
        return self._model.size + more

    def logits(self, drafted: Sequence[int]) -> NDArray[np.float32]:
        """Logits (R,) after what it holds and `drafted`, at most `most` tokens; borrowed."""
        if self.first == self.length:
            raise ValueError("a head has nothing to go on from")
        if self._block is None or self._block[0] != drafted[0]:
            rows = self._model.draft(self.slot, drafted[0], self.length - self._start)
            self._block = drafted[0], rows
        row: NDArray[np.float32] = self._block[1][len(drafted) - 1]
        return row

    def rewind(self, length: int) -> None:
        """Forget the tokens from the index `length` on; everything if it is not above `first`."""
        self._block = None
        if length <= self.first:
            self._forget_all(length)
        elif length < self.length:
            self._model.forget(self.slot, length - self._start)
            del self._tokens[length - self.first :]
            self.length = length

    def _drop(self, count: int) -> None:
        """Forget the first tokens that are held; others keep their positions."""
        self._model.forget(self.slot, 0, self.first - self._start + count)
        del self._tokens[:count]
        self.first += count

    def _forget_all(self, at: int) -> None:
        if self._tokens:
            self._model.forget(self.slot, 0)
        self._block = None
        self._tokens, self.first, self.length, self._start = [], at, at, at
