"""Heads that go on from their own output, asked in pairs of a token and a hidden state.

The state of a pair is that of the token before its token. Where the target has computed that one, the state
comes from the target (EAGLE, Li et al. 2024; from three of its layers in EAGLE-3, 2025; from the last one in
MTP layers). Beyond, it is what the head gave for the pair before. So pairs of drafted tokens are forgotten
once the target's states of the same tokens are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specx.backends.settings import HEAD_HELD
from specx.drafters.head import SlottedHead, SlottedModel, SlottedRunner

__all__ = ["PairModel", "PairRunner", "pair_head"]


class PairModel(SlottedModel, Protocol):
    """A loaded head that is asked in pairs, shared by the texts it follows: of each `n_ctx` of them."""

    def encode(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states (n, d) of what the target gives for n tokens (n, k * d_t)."""

    def step(
        self, slot: int, tokens: NDArray[np.int32], hidden: NDArray[np.float32], position: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compute consecutive pairs of the text `slot` after the first `position` ones.

        Args:
            slot: the text.
            tokens: (n,) of each pair.
            hidden: (n, d) the state of the token before.
            position: pairs before.

        Returns:
            Logits (R,) of the token after the last pair, and its hidden state (d,); borrowed.
        """

    def forget(self, slot: int, position: int) -> None:
        """Forget the pairs of a text from `position` on."""


def pair_head(model: PairModel) -> SlottedHead:
    """A head that is asked in pairs, with room for some texts."""
    return SlottedHead(model, partial(PairRunner, model))


class PairRunner(SlottedRunner):
    """Follows one text with a head that is asked in pairs.

    Pair i is the token i + 1 with the state of token i. The last one of the tokens held waits for the text's
    last token, which is the first that is drafted from.

    Args:
        model: the head.
        slot: which of its texts this is.
    """

    def __init__(self, model: PairModel, slot: int) -> None:
        super().__init__(model, slot)
        self._model = model
        self._states: NDArray[np.float32] = np.empty((0, 0), np.float32)  # of the tokens held, and room
        self._pairs = 0  # that the head holds, of `first` and those after it
        self._path: list[int] = []  # tokens of the pairs that were drafted, the last one of the text first
        self._given: list[NDArray[np.float32]] = []  # states after each of them

    def accept(self, at: int, tokens: Sequence[int], features: NDArray[np.float32]) -> None:
        """Hold what the target gives for `tokens`."""
        if at != self.length or self.first == self.length:
            self._forget_all(at)
        certain = bool(self._path) and self._path[0] == tokens[0]
        self._cut(self.length - self.first - (0 if certain else 1))
        count = self.length - self.first
        states = self._model.encode(features)
        if len(self._states) < count + len(tokens):
            room = np.empty((max(2 * count, count + len(tokens), HEAD_HELD), states.shape[1]), np.float32)
            if count:
                room[:count] = self._states[:count]
            self._states = room
        self._states[count : count + len(tokens)] = states
        self._tokens += tokens
        self.length += len(tokens)
        self._path, self._given = [], []  # all that is left of them was right

    def unread(self, drafted: Sequence[int], more: int = 0) -> int:
        """Pairs that are missing."""
        held = self.length - self.first - 1
        agreed = min(self._pairs, held + 1) if more else self._agreed(drafted)
        return max(held + more + len(drafted) - agreed, 1)

    def logits(self, drafted: Sequence[int]) -> NDArray[np.float32]:
        """Logits (R,) after what it holds and `drafted`; borrowed."""
        if self.first == self.length:
            raise ValueError("a head has nothing to go on from")
        if self.length - self.first + len(drafted) > self._model.n_ctx:
            self._start_later(max(min(HEAD_HELD, self._model.n_ctx // 2), 1))
        held = self.length - self.first - 1  # pairs before those that are drafted
        self._cut(min(self._agreed(drafted), held + len(drafted) - 1))
        logits: NDArray[np.float32] | None = None
        if self._pairs <= held:
            tokens = [*self._tokens[self._pairs + 1 :], drafted[0]]
            logits = self._step(tokens, self._states[self._pairs : held + 1])
        for token in drafted[self._pairs - held :]:
            logits = self._step([token], self._given[-1][None])
        assert logits is not None
        return logits

    def rewind(self, length: int) -> None:
        """Forget the tokens from the index `length` on; everything if it is not above `first`."""
        if length <= self.first:
            self._forget_all(length)
        elif length < self.length:
            self._cut(length - self.first - 1)
            del self._tokens[length - self.first :]
            self.length = length

    def _step(self, tokens: list[int], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute pairs of which the last one is drafted."""
        logits, state = self._model.step(self.slot, np.array(tokens, np.int32), hidden, self._pairs)
        self._given.append(state.copy())
        self._path.append(tokens[-1])
        self._pairs += len(tokens)
        return logits

    def _agreed(self, drafted: Sequence[int]) -> int:
        """How many pairs it holds that are those of the text and `drafted`."""
        held = self.length - self.first - 1
        if self._pairs <= held:
            return self._pairs
        same = next((i for i, (a, b) in enumerate(zip(self._path, drafted, strict=False)) if a != b), None)
        return held + (min(len(self._path), len(drafted)) if same is None else same)

    def _cut(self, pairs: int) -> None:
        """Hold no more than so many pairs."""
        pairs = max(pairs, 0)
        if pairs < self._pairs:
            self._model.forget(self.slot, pairs)
            self._pairs = pairs
        drafted = max(self._pairs - (self.length - self.first - 1), 0)
        del self._path[drafted:], self._given[drafted:]

    def _forget_all(self, at: int) -> None:
        self._cut(0)
        self._tokens, self.first, self.length = [], at, at

    def _start_later(self, count: int) -> None:
        """Hold the last `count` tokens only: there is no room for more."""
        start = len(self._tokens) - min(count, len(self._tokens))
        self._cut(0)
        self._states = self._states[start : self.length - self.first].copy()
        del self._tokens[:start]
        self.first += start
