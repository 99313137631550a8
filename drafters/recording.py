"""What a head could learn from: the states of texts as they are written, with what the target said of each.

Nothing is computed for it. The states are those that a head reads anyway, and the best scores of a row are
found in logits that were read through to choose a token.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specx.drafters.base import NO_TRUNCATION, Text, Verified
from specx.drafters.train.states import States

__all__ = ["RECORDED", "Recorder", "TextRecord"]

RECORDED = 8  # scores that are kept of each token, as many as a loss sums over
LEAST = 8  # tokens of a stretch that is worth keeping
WIDEST = 65504.0  # of float16


class Recorder:
    """Holds what texts have shown until somebody takes it.

    Args:
        layers: how many layers of the target the states are of.
        width: d_t, values of each that mean something.
        scale: what states are divided by.
        most: tokens that are held, and of a text that is still written; of more, the oldest go.
    """

    def __init__(self, layers: int, width: int, scale: float = 1.0, most: int = 1 << 13) -> None:
        self.layers, self.width, self.scale, self.most = layers, width, scale, most
        self._held: list[States] = []

    def follow(self, text: Text) -> TextRecord:
        """Record a text, which holds its prompt."""
        return TextRecord(self, text)

    def add(self, states: States) -> None:
        """Hold a stretch of a text."""
        self._held.append(states)
        while len(self._held) > 1 and sum(len(each.tokens) for each in self._held) > self.most:
            del self._held[0]

    def take(self) -> list[States]:
        """What was held, oldest first; it is held no more."""
        held, self._held = self._held, []
        return held


class TextRecord:
    """Records one text."""

    def __init__(self, recorder: Recorder, text: Text) -> None:
        self._recorder, self._text = recorder, text
        self._chosen = len(text.tokens)  # index of the first token that the target chooses
        self._begin = self._end = 0
        self._features: list[NDArray[np.float16]] = []
        self._best: list[NDArray[np.int32]] = []
        self._scores: list[NDArray[np.float16]] = []

    def read(self, at: int, features: NDArray[np.float32]) -> None:
        """The target has computed given tokens from the index `at` on, with these states (n, k * d)."""
        shape = len(features), RECORDED
        nothing = np.full(shape, -np.inf, np.float16)  # it was not asked what comes next
        self._add(at, features, np.zeros(shape, np.int32), nothing)

    def observe(self, at: int, seen: Verified, rows: list[int]) -> None:
        """A step was verified; its rows that the text has kept are of the tokens from the index `at` on."""
        assert seen.output.hidden is not None
        best = np.zeros((len(rows), RECORDED), np.int32)
        scores = np.full((len(rows), RECORDED), -np.inf, np.float16)
        for i, row in enumerate(rows):
            found, values = seen.output.rows.rank(row, 0, 0, 0.0, *NO_TRUNCATION, RECORDED)
            best[i, : len(found)] = found
            scores[i, : len(found)] = values - values[0]
        self._add(at, seen.output.hidden[rows], best, scores)

    def finish(self) -> None:
        """Nothing follows what was recorded last."""
        n = self._end - self._begin
        if n >= LEAST and self._end > self._chosen:
            tokens = np.array(self._text.tokens[self._begin : self._end], np.int32)
            start = max(self._chosen - self._begin, 0)
            features, best = np.concatenate(self._features), np.concatenate(self._best)
            self._recorder.add(States(tokens, start, features, best, np.concatenate(self._scores)))
        self._features, self._best, self._scores = [], [], []

    def _add(
        self,
        at: int,
        features: NDArray[np.float32],
        best: NDArray[np.int32],
        scores: NDArray[np.float16],
    ) -> None:
        recorder = self._recorder
        if at != self._end or not self._features or self._end - self._begin >= recorder.most:
            self.finish()
            self._begin = self._end = at
        own = features.reshape(len(features), recorder.layers, -1)[:, :, : recorder.width]
        scaled = own.reshape(len(features), -1) / np.float32(recorder.scale)
        self._features.append(np.clip(scaled, -WIDEST, WIDEST).astype(np.float16))
        self._best.append(best)
        self._scores.append(scores)
        self._end += len(features)
