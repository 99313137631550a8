"""How far a head's chains are right, as decoding would find it: the head goes on from its own states.

A draft is right as far as its tokens are those that the target chose. Up to there what the head is given are
the target's tokens, so all chains of a text are computed side by side; decoding then passes over those that
start where the one before ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from specx.drafters.train.batches import Batch
from specx.drafters.train.head import Head, Keys

__all__ = ["DEPTH", "Acceptance", "deviations", "measure_chains", "right_lengths"]

DEPTH = 8  # tokens of a chain
BLOCK = 32  # places that are one in a comparison: those beside each other are right of the same tokens


@dataclass(slots=True)
class Acceptance:
    """What was counted.

    Attributes:
        steps: of decoding.
        tokens: that they gave, each with one more than was drafted right.
        reached, right: of the d-th drafted tokens how many all before were right of, and how many were right.
        lengths: of the chains from all places, decoding passes over them or not, how many tokens were right.
    """

    steps: int
    tokens: int
    reached: NDArray[np.int64]
    right: NDArray[np.int64]
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def length(self) -> float:
        """Mean tokens of a step."""
        return self.tokens / self.steps if self.steps else 1.0

    def to_json(self) -> dict[str, Any]:
        """For files."""
        shares = self.right / np.maximum(self.reached, 1)
        by_step = [round(float(share), 4) for share in shares]
        return {"length": round(self.length, 4), "by_step": by_step, "reached": self.reached.tolist()}


@torch.no_grad()
def right_lengths(head: Head, batch: Batch, ids: NDArray[np.int32], depth: int = DEPTH) -> NDArray[np.int64]:
    """(B, N) how many tokens of the chain from each start are those of the text, N = T - 1; at most `depth`.

    The chain from p drafts the tokens from p + 2 on. Where the text ends, a chain ends. Chains whose first
    token the target did not choose are not computed, and those that went wrong not on.
    """
    device = head.device
    tokens = torch.from_numpy(batch.tokens).to(device)
    n = tokens.shape[1] - 1
    padded = functional.pad(tokens, (0, depth + 1), value=-1)
    known = Keys()
    hidden = head.encode(torch.from_numpy(batch.features).to(device).float())[:, :n]
    first = head.step(tokens[:, 1:], hidden, known, torch.arange(n, device=device))
    lengths = np.zeros((len(tokens), n), np.int64)
    named = torch.from_numpy(ids.astype(np.int64)).to(device)
    for i, text in enumerate(padded):
        own = Keys([known.keys[0][i : i + 1]], [known.values[0][i : i + 1]])
        starts = torch.from_numpy(np.flatnonzero(batch.chosen[i, :n])).to(device)
        state = first[i : i + 1, starts]
        for k in range(depth):
            if k:
                state = head.step(text[None, starts + k + 1], state, own, starts)
            right = named[head.logits(state[0]).argmax(-1)] == text[starts + k + 2]
            starts, state = starts[right], state[:, right]
            own.keys[1:] = [key[:, :, right] for key in own.keys[1:]]
            own.values[1:] = [value[:, :, right] for value in own.values[1:]]
            lengths[i, starts.cpu().numpy()] += 1
            if not len(starts):
                break
    return lengths


def measure_chains(
    head: Head, batches: Iterable[Batch], ids: NDArray[np.int32], depth: int = DEPTH
) -> Acceptance:
    """Decode the texts with drafts of `depth` tokens and count.

    Args:
        head: the head.
        batches: of texts that are not trained on.
        ids: (R,) int32, the tokens that it scores.
        depth: tokens of a chain.
    """
    found = Acceptance(0, 0, np.zeros(depth, np.int64), np.zeros(depth, np.int64))
    every: list[NDArray[np.int64]] = []
    for batch in batches:
        for lengths, chosen in zip(right_lengths(head, batch, ids, depth), batch.chosen, strict=True):
            places = np.flatnonzero(chosen)
            every.append(lengths[places])
            if len(places):
                _decode(found, lengths, int(places[0]), int(places[-1]))
    found.lengths = np.concatenate([found.lengths, *every])
    return found


def deviations(before: Acceptance, after: Acceptance) -> float:
    """By how many standard deviations of the mean difference chains of the same text are longer than before.

    Both go from the same places, so that most of what differs between places is in neither.
    """
    differences = (after.lengths - before.lengths).astype(np.float64)
    count = len(differences) // BLOCK
    if count < 2:
        return 0.0
    means = differences[: count * BLOCK].reshape(count, BLOCK).mean(1)
    deviation = float(means.std(ddof=1)) / count**0.5
    mean = float(means.mean())
    return mean / deviation if deviation > 0 else float(np.sign(mean)) * np.inf if mean else 0.0


def _decode(found: Acceptance, lengths: NDArray[np.int64], first: int, last: int) -> None:
    """Count the steps of one window, whose drafts begin behind tokens `first` + 1 to `last`."""
    at = first
    while at < last:  # the token at + 1 is known; the next ones are drafted
        right = int(min(lengths[at], last - at))
        whole = at + len(found.right) < last
        if whole or right < last - at:
            found.steps += 1
            found.tokens += right + 1
            found.reached[: right + 1] += 1
            found.right[:right] += 1
        at += right + 1
