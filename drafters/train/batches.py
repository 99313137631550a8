"""What a head is trained on: windows of captured texts, in an order that a seed decides."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specx.drafters.train.states import StatesFile

__all__ = ["BATCH", "BATCH_ON_GPU", "Batch", "Batches", "Rows", "Window", "token_scores"]

WINDOW = 256  # tokens: further back a head of one layer hardly looks, and attention costs their square
BATCH = 1024  # tokens, padding included: fewer teach more each, but a step takes as long as 300 of them
BATCH_ON_GPU = 4096  # there a step takes as long whether it has hundreds or thousands
GIVEN = 0.3  # weight of what the target would have said in a text that it was given
SORTED = 16  # batches whose windows are sorted by length together, so that little is padding


class Rows:
    """Which tokens a head scores.

    Args:
        ids: (R,) int32, rising.
        vocabulary: V, all tokens.

    Attributes:
        ids: as given.
        row: (V,) int64, the row of each token; -1 for none.
    """

    def __init__(self, ids: NDArray[np.int32], vocabulary: int) -> None:
        self.ids = ids
        self.row: NDArray[np.int64] = np.full(vocabulary, -1, np.int64)
        self.row[ids] = np.arange(len(ids))


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text: tokens `begin` to `end` of text `text`."""

    text: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows side by side, padded to the longest.

    Attributes:
        tokens: (B, T) int64.
        features: (B, T, 3 d_t) float16.
        rows: (B, T, K) int64, the best tokens of each position as rows of the head; -1 for none.
        likely: (B, T, K) float32, their probabilities among those that have rows; all 0 where the
            best has none.
        weights: (B, T) float32, how much it matters what is said of the token that follows.
        chosen: (B, T) bool: the target chose that token, and it is in the window.
    """

    tokens: NDArray[np.int64]
    features: NDArray[np.float16]
    rows: NDArray[np.int64]
    likely: NDArray[np.float32]
    weights: NDArray[np.float32]
    chosen: NDArray[np.bool_]


def token_scores(states: StatesFile, vocabulary: int) -> NDArray[np.float64]:
    """(V,) how much a row for each token is worth: how often the target chose it, and the sum of the
    probabilities that it gave it (as in `drafters.make.trim`)."""
    scores = np.zeros(vocabulary)
    for index in range(len(states)):
        text = states[index]
        scores += np.bincount(text.tokens[text.start :], minlength=vocabulary)
        likely = np.exp(text.scores.astype(np.float64))
        likely /= likely.sum(1, keepdims=True)
        scores += np.bincount(text.best.ravel(), likely.ravel(), minlength=vocabulary)
    return scores


class Batches:
    """Batches of some texts.

    Args:
        states: captured texts.
        texts: indices of those to use.
        rows: which tokens the head scores.
        seed: of the order.
        size: tokens of a batch, padding included.
    """

    def __init__(
        self, states: StatesFile, texts: Sequence[int], rows: Rows, seed: int, size: int = BATCH
    ) -> None:
        self._states, self._rows, self._seed, self._size = states, rows, seed, size
        self.windows = [window for text in texts for window in _windows(states, text)]

    def epoch(self, number: int) -> list[list[Window]]:
        """The batches of one pass over all windows, in order."""
        chance = random.Random(f"{self._seed} {number}")
        order = list(self.windows)
        chance.shuffle(order)
        batches: list[list[Window]] = []
        size = max(SORTED * self._size // WINDOW, 1)
        for at in range(0, len(order), size):
            near = sorted(order[at : at + size], key=_longest_first)
            batches += _filled(near, self._size)
        chance.shuffle(batches)
        return batches

    def load(self, windows: Sequence[Window]) -> Batch:
        """Read windows."""
        longest = max(window.end - window.begin for window in windows)
        shape = len(windows), longest
        texts = [self._states[window.text] for window in windows]
        best, wide = texts[0].best.shape[1], texts[0].features.shape[1]
        tokens = np.zeros(shape, np.int64)
        features = np.zeros((*shape, wide), np.float16)
        rows = np.full((*shape, best), -1, np.int64)
        likely = np.zeros((*shape, best), np.float32)
        weights = np.zeros(shape, np.float32)
        chosen = np.zeros(shape, np.bool_)
        for i, (window, text) in enumerate(zip(windows, texts, strict=True)):
            n, here = window.end - window.begin, slice(window.begin, window.end)
            tokens[i, :n] = text.tokens[here]
            features[i, :n] = text.features[here]
            rows[i, :n] = self._rows.row[text.best[here]]
            likely[i, :n] = _likely(text.scores[here].astype(np.float32), rows[i, :n])
            own = np.arange(window.begin + 1, window.end + 1) >= text.start
            weights[i, :n] = np.where(own, 1.0, GIVEN) * likely[i, :n].any(1)
            chosen[i, : n - 1] = own[:-1]
        return Batch(tokens, features, rows, likely, weights, chosen)

    def each(self, windows: Sequence[Window]) -> Iterator[Batch]:
        """All `windows`, in batches of about the same length."""
        for batch in _filled(sorted(windows, key=_longest_first), self._size):
            yield self.load(batch)


def _likely(scores: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, K) probabilities of those tokens that have rows; 0 where the best one has none."""
    known = np.where((rows >= 0) & (rows[:, :1] >= 0), np.exp(scores), 0.0)
    total: NDArray[np.float32] = known.sum(1, keepdims=True)
    return (known / np.maximum(total, 1e-9)).astype(np.float32)


def _windows(states: StatesFile, text: int) -> list[Window]:
    """Parts of a text, as long as each other, without those of which the target chose nothing."""
    n, start = states.length(text), states.start(text)
    count = -(-n // WINDOW)
    ends = [n * (i + 1) // count for i in range(count)]
    parts = zip([0, *ends], ends, strict=False)
    return [Window(text, begin, end) for begin, end in parts if end > start and end - begin > 1]


def _longest_first(window: Window) -> int:
    return window.begin - window.end


def _filled(windows: Sequence[Window], size: int) -> list[list[Window]]:
    """Batches of `windows`, which are sorted, the longest first."""
    batches: list[list[Window]] = []
    for window in windows:
        if batches:
            longest = batches[-1][0].end - batches[-1][0].begin
            if longest * (len(batches[-1]) + 1) <= size:
                batches[-1].append(window)
                continue
        batches.append([window])
    return batches
