"""One training from its beginning, or from a checkpoint, to its end: limits, measurements, the best head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specx.backends.errors import ModelError, SpecxError
from specx.backends.gguf.file import GGUFInfo
from specx.drafters.train.batches import Batches, Rows, Window
from specx.drafters.train.chains import Acceptance, measure_chains
from specx.drafters.train.checkpoint import save_checkpoint
from specx.drafters.train.export import target_matrix
from specx.drafters.train.head import Head
from specx.drafters.train.loop import Learning, Trainer
from specx.drafters.train.memory import batch_that_fits
from specx.drafters.train.shape import HeadShape
from specx.drafters.train.start import last_layer, start
from specx.drafters.train.states import StatesFile

__all__ = ["Limits", "Measured", "Training", "best_weights", "new_trainer", "restored_rows"]

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"

MEASURED_TOKENS = 4000  # of held-out text
MEASURED_SHARE = 0.05  # of the time that measuring may take
EVERY_STEPS = 20  # batches between two measurements where batches are counted
SAVED_S = 60.0  # seconds between two checkpoints
PATIENCE = 8  # measurements without a gain after which it no longer pays
GAIN = 0.002  # of the mean length


@dataclass(frozen=True, slots=True)
class Limits:
    """When a training ends: one of both is given.

    Attributes:
        seconds: of training, those before an interruption included.
        steps: batches.
    """

    seconds: float | None = None
    steps: int | None = None

    def done(self, step: int, seconds: float) -> float:
        """The share that is over."""
        if self.steps is not None:
            return step / self.steps
        assert self.seconds is not None
        return seconds / self.seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement on held-out text.

    Attributes:
        tokens: that were learned from before it.
        seconds: of training before it.
        loss: mean of the batches since the last one.
        found: what was accepted.
    """

    tokens: int
    seconds: float
    loss: float
    found: Acceptance

    def to_json(self) -> dict[str, Any]:
        """For files."""
        return {
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "loss": round(self.loss, 4),
            **self.found.to_json(),
        }


@dataclass(slots=True)
class Training:
    """A training that can be interrupted.

    Attributes:
        trainer: what learns.
        held: texts that are not learned from.
        rows: the tokens that the head scores.
        limits: when it ends.
        path: of the checkpoint.
        clock: seconds.
        measured: every measurement so far.
        best: the weights that were best on held-out text.
        seconds: of training so far.
        no_longer_pays: whether the last measurements brought nothing.
    """

    trainer: Trainer
    held: Batches
    rows: Rows
    limits: Limits
    path: Path
    clock: Callable[[], float]
    measured: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    no_longer_pays: bool = False
    _losses: list[float] = field(default_factory=list)
    _measuring_s: float = 0.0

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.trainer.load(state["trainer"])
        self.measured, self.best = state["measured"], state["best"]
        self.seconds, self._losses = state["seconds"], state["losses"]
        self._measuring_s, self.no_longer_pays = state["measuring"], state["no_longer_pays"]

    def run(
        self, progress: Callable[[float, Measured | None], None], interrupted: Callable[[], bool]
    ) -> None:
        """Train to the end. A checkpoint is written now and then, and when it is interrupted.

        Args:
            progress: called with the share that is over, and each measurement.
            interrupted: whether to stop, asked between two batches.

        Raises:
            FileError: a checkpoint cannot be written.
            KeyboardInterrupt: it was interrupted; a checkpoint was written.
        """
        begun, saved = self.clock() - self.seconds, self.clock()
        while (done := self._done(begun)) < 1 and not self.no_longer_pays:
            self._losses.append(self.trainer.learn(done))
            progress(self._done(begun), self._measure_if_due(begun))
            if interrupted():
                self._save()
                raise KeyboardInterrupt
            if self.clock() - saved > SAVED_S:
                self._save()
                saved = self.clock()
        if not self.measured or self.measured[-1]["tokens"] != self.trainer.tokens:
            progress(1.0, self._measure())
        self._save()

    def _done(self, begun: float) -> float:
        self.seconds = self.clock() - begun
        return self.limits.done(self.trainer.step, self.seconds)

    def _measure_if_due(self, begun: float) -> Measured | None:
        """Measure every so many batches, or as often as takes a small share of the time."""
        self.seconds = self.clock() - begun
        if self.limits.steps is not None:
            return self._measure() if self.trainer.step % EVERY_STEPS == 0 else None
        last = self.measured[-1]["seconds"] if self.measured else 0.0
        if (self.seconds - last) * MEASURED_SHARE < self._measuring_s:
            return None
        return self._measure()

    def _measure(self) -> Measured:
        """Count on held-out text, and keep the best weights."""
        start = self.clock()
        head = self.trainer.head
        head.eval()
        with self.trainer.precision():
            found = measure_chains(head, self.held.each(self._windows()), self.rows.ids)
        head.train()
        self._measuring_s = self.clock() - start
        loss = float(np.mean(self._losses)) if self._losses else 0.0
        self._losses = []
        measured = Measured(self.trainer.tokens, self.seconds, loss, found)
        lengths = [each["length"] for each in self.measured]
        if found.length >= max(lengths, default=0.0):
            self.best = {name: weight.clone() for name, weight in self.trainer.weights().items()}
        self.measured.append(measured.to_json())
        earlier, recent = lengths[: 1 - PATIENCE], [*lengths[1 - PATIENCE :], found.length]
        self.no_longer_pays = bool(earlier) and max(recent) < max(earlier) + GAIN
        return measured

    def _windows(self) -> list[Window]:
        """Held-out windows of about so many tokens, always the same."""
        chosen: list[Window] = []
        tokens = 0
        for window in self.held.windows:
            if tokens >= MEASURED_TOKENS:
                break
            chosen.append(window)
            tokens += window.end - window.begin
        return chosen

    def _save(self) -> None:
        save_checkpoint(
            self.path,
            {
                "ids": torch.from_numpy(self.rows.ids),
                "trainer": self.trainer.state(),
                "measured": self.measured,
                "best": self.best,
                "seconds": self.seconds,
                "losses": self._losses,
                "measuring": self._measuring_s,
                "no_longer_pays": self.no_longer_pays,
            },
        )


def new_trainer(
    info: GGUFInfo,
    shape: HeadShape,
    states: StatesFile,
    texts: tuple[Sequence[int], Sequence[int]],
    rows: Rows,
    learning: Learning,
    memory: int,
    threads: int,
    device: str,
    *,
    fresh: bool,
) -> tuple[Trainer, Batches]:
    """What learns, from the beginning, and the batches that it is measured with.

    Args:
        info: the target.
        shape: of the head.
        states: captured texts.
        texts: which of them are learned from, and which are measured with.
        rows: the tokens that the head scores.
        learning: how.
        memory: bytes that may be used.
        threads: CPU threads.
        device: what it is computed on.
        fresh: whether it starts, and is not restored from a checkpoint next.

    Raises:
        ModelError: the target's embedding cannot be decoded.
        SpecxError: the memory does not suffice, or there is no text to learn from or to measure with.
    """
    size = batch_that_fits(shape, info.vocabulary_size, learning, memory, on_gpu=device != "cpu")
    torch.set_num_threads(threads)
    torch.manual_seed(learning.seed)
    learned, held = (Batches(states, each, rows, learning.seed, size) for each in texts)
    if not learned.windows or not held.windows:
        raise SpecxError("there are too few texts to train on", "give it more --time, or text with --data")
    try:
        embedding = torch.from_numpy(target_matrix(info, EMBEDDING))
        names = {tensor.name for tensor in info.tensors}
        output = torch.from_numpy(target_matrix(info, OUTPUT)) if OUTPUT in names else embedding
        last = last_layer(info)
    except (KeyError, NotImplementedError, ValueError) as error:
        raise ModelError(
            f"weights of {info.path.name} cannot be decoded: {error}", "train a head for another model"
        ) from error
    head = Head(shape, embedding, output[torch.from_numpy(rows.ids).long()])
    if fresh and shape.width == shape.target_width:
        start(head, last, states, texts[0], rows)
    return Trainer(head.to(device), learned, learning), held


def restored_rows(state: dict[str, Any], vocabulary: int) -> Rows:
    """The tokens that the head of a checkpoint scores."""
    return Rows(state["ids"].numpy(), vocabulary)


def best_weights(training: Training) -> dict[str, NDArray[np.float32]]:
    """What was best on held-out text, and what was not trained, by the names of `Head`'s parameters."""
    head = training.trainer.head
    weights = {name: parameter.detach() for name, parameter in head.named_parameters()} | training.best
    return {name: weight.float().cpu().numpy() for name, weight in weights.items()}
