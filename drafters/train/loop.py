"""The training loop: the head learns what the target would say, over several steps of its own chains.

The loss of step k is the cross-entropy with the target's probabilities, renormalized on the tokens that the
head scores, times `DECAY`^k (EAGLE-3, arXiv 2503.01840). Its sum over those tokens is estimated: the likely
tokens of the whole batch are all in it, others are drawn and weighed by how many they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specx.drafters.train.batches import Batch, Batches, Window
from specx.drafters.train.head import Head, Keys
from specx.drafters.train.muon import Muon

__all__ = ["Learning", "Trainer", "batch_loss", "has_bf16"]

DECAY = 0.8
SHARE = 3  # one chain in so many goes on beyond its first token
DRAWN = 1024  # tokens of the sum beyond those that are likely somewhere in the batch


@dataclass(frozen=True, slots=True)
class Learning:
    """How it is learned.

    Attributes:
        steps: of the chains.
        rate: the highest learning rate.
        warm_up: share of the training after which that is reached; it falls along a cosine from there.
        least: share of the rate at the end.
        decay: of weights.
        clip: most that the norm of a gradient may be.
        orthogonal: whether steps of matrices are Muon's, not AdamW's: of little text these are better.
        bf16: multiply in bfloat16.
        seed: of everything that is drawn.
    """

    steps: int = 4
    rate: float = 6e-4
    warm_up: float = 0.05
    least: float = 0.05
    decay: float = 0.01
    clip: float = 1.0
    orthogonal: bool = True
    bf16: bool = False
    seed: int = 0

    def rate_at(self, done: float) -> float:
        """The learning rate when a share `done` of the training is over."""
        if done < self.warm_up:
            return self.rate * (done / self.warm_up * 0.99 + 0.01)
        along = min((done - self.warm_up) / (1 - self.warm_up), 1.0)
        return self.rate * (self.least + (1 - self.least) * (1 + math.cos(math.pi * along)) / 2)


class _Epoch(NamedTuple):
    """One pass over all windows. Their order decides into how many batches they are divided.

    Attributes:
        number: how many there were before.
        first: step of its first batch.
        batches: the windows of each.
    """

    number: int
    first: int
    batches: list[list[Window]]

    @property
    def end(self) -> int:
        """The step after its last batch."""
        return self.first + len(self.batches)


class Trainer:
    """Trains a head, batch by batch. What it holds can be saved and loaded.

    Args:
        head: the head.
        batches: what is learned from.
        learning: how.

    Attributes:
        step: batches so far.
        tokens: tokens in them, padding left out.
    """

    def __init__(self, head: Head, batches: Batches, learning: Learning) -> None:
        self.head, self._batches, self._learning = head, batches, learning
        matrices = [p for p in head.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in head.parameters() if p.requires_grad and p.ndim == 1]
        self._parameters = matrices + others
        rate, decay = learning.rate, learning.decay
        stepped: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
        self._optimizers: list[torch.optim.Optimizer] = []
        if learning.orthogonal:
            self._optimizers.append(Muon(matrices, rate, decay, learning.bf16))
        else:
            stepped.append({"params": matrices, "weight_decay": decay})
        self._optimizers.append(torch.optim.AdamW(stepped, lr=rate, betas=(0.9, 0.95), fused=True))
        self.step = self.tokens = 0
        self._epoch = _Epoch(0, 0, batches.epoch(0))
        self._loads_ahead = head.device.type != "cpu"
        self._loader = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[Batch]] | None = None

    def learn(self, done: float) -> float:
        """Learn from the next batch.

        Args:
            done: share of the training that is over.

        Returns:
            The loss.
        """
        learning = self._learning
        batch = self._loaded()
        torch.manual_seed(learning.seed * 1_000_003 + self.step)
        for group in (group for each in self._optimizers for group in each.param_groups):
            group["lr"] = learning.rate_at(done)
        with self.precision():
            loss = batch_loss(self.head, batch, learning.steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, learning.clip)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += int((batch.weights > 0).sum())
        return float(loss.detach())

    def precision(self) -> AbstractContextManager[object]:
        """What it is computed in."""
        return torch.autocast(self.head.device.type, torch.bfloat16, enabled=self._learning.bf16)

    def weights(self) -> dict[str, Tensor]:
        """What is trained."""
        return {name: p.detach() for name, p in self.head.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Any]:
        """What `load` takes."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "head": self.weights(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            KeyError, ValueError, RuntimeError, TypeError: it is one of another head.
        """
        with torch.no_grad():
            for name, weight in self.weights().items():
                weight.copy_(state["head"][name])
        for optimizer, known in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        self.step, self.tokens = state["step"], state["tokens"]

    def _loaded(self) -> Batch:
        """The next batch. A GPU learns from it while the one after it is loaded."""
        if not self._loads_ahead:
            return self._batches.load(self._windows(self.step))
        if self._ahead is None or self._ahead[0] != self.step:
            self._ahead = self.step, self._loader.submit(self._batches.load, self._windows(self.step))
        batch = self._ahead[1].result()
        self._ahead = self.step + 1, self._loader.submit(self._batches.load, self._windows(self.step + 1))
        return batch

    def _windows(self, step: int) -> list[Window]:
        """The windows of a batch."""
        if step < self._epoch.first:  # a checkpoint from before was loaded
            self._epoch = _Epoch(0, 0, self._batches.epoch(0))
        while step >= self._epoch.end:
            number = self._epoch.number + 1
            self._epoch = _Epoch(number, self._epoch.end, self._batches.epoch(number))
        return self._epoch.batches[step - self._epoch.first]


def has_bf16(device: str = "cpu") -> bool:
    """Whether a device multiplies bfloat16 faster than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def batch_loss(head: Head, batch: Batch, steps: int) -> Tensor:
    """The loss of a batch, over chains of `steps` tokens.

    Step 0 is computed everywhere, as chains attend to it; further steps of some chains, which are drawn.
    """
    device = head.device
    tokens, weights, rows, likely, features = (
        torch.from_numpy(array).to(device)
        for array in (batch.tokens, batch.weights, batch.rows, batch.likely, batch.features)
    )
    steps = min(steps, tokens.shape[1] - 1)
    n = tokens.shape[1] - steps
    candidates, offsets, place = _candidates(rows, weights, len(head.output))
    output = head.output[candidates]
    if torch.is_autocast_enabled(device.type):
        output = output.to(torch.get_autocast_dtype(device.type))  # once, not in each step
    hidden, known = head.encode(features[:, :n].float()), Keys()
    starts, total = torch.arange(n, device=device), torch.zeros((), device=device)
    for k in range(steps):
        if k == 1:
            starts = torch.randperm(n, device=device)[: -(-n // SHARE)].sort().values
            hidden = hidden[:, starts]
        here = starts + k + 1
        hidden = head.step(tokens[:, here], hidden, known, starts)
        weight = weights[:, here]
        wanted = weight > 0
        logits = head.logits(hidden[wanted], output).float() + offsets
        said = logits.log_softmax(-1).gather(-1, place[rows[:, here][wanted].clamp(min=0)])
        losses = -(said * likely[:, here][wanted]).sum(-1)
        total = total + DECAY**k * (losses * weight[wanted]).sum() / weight.sum().clamp(min=1.0)
    return total / sum(DECAY**k for k in range(steps))


def _candidates(rows: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that are scored in a batch.

    Args:
        rows: (B, T, K) the likely rows of each position; -1 for none.
        weights: (B, T), 0 where a position does not matter.
        count: R, all rows.

    Returns:
        (C,) the rows, (C,) what to add to their logits, (R,) the place of each row among them; of one that
        is not there a place all the same.
    """
    device = rows.device
    seen = torch.zeros(count, dtype=torch.bool, device=device)
    best = rows[weights > 0]
    seen[best[best >= 0]] = True
    unseen = torch.nonzero(~seen)[:, 0]
    drawn = unseen[torch.randperm(len(unseen), device=device)[:DRAWN]]
    candidates = torch.cat([torch.nonzero(seen)[:, 0], drawn])
    offsets = torch.zeros(len(candidates), device=device)
    if len(drawn):
        offsets[-len(drawn) :] = math.log(len(unseen) / len(drawn))
    place = torch.zeros(count, dtype=torch.int64, device=device)
    place[candidates] = torch.arange(len(candidates), device=device)
    return candidates, offsets, place
