"""Training a draft head for a model: it writes text, and a head learns from what it computes of that."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import FileError, ModelError, SpecxError, UsageError
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import GGUFInfo, read_gguf
from specx.backends.llama.libllama import lib
from specx.drafters.make.trim import check_rows, kept_rows
from specx.drafters.train.batches import Rows, token_scores
from specx.drafters.train.shape import HeadShape
from specx.drafters.train.states import Layout, StatesFile
from specx.engine.cost.rate import chain_rate
from specx.engine.making.collecting import CHECKPOINT, STATES, TrainTold, Wanted, Work, begin, clear, collect
from specx.engine.making.output import check_output, check_room
from specx.engine.settings import Asked
from specx.engine.setup.layers import step_bytes
from specx.engine.setup.torch import check_torch

if TYPE_CHECKING:
    from specx.drafters.train.run import Measured, Training

__all__ = ["TrainReport", "TrainTold", "Wanted", "default_output", "train"]

LEAST_TOKENS = 2000  # of captured text
HELD = 16  # one text in so many is not learned from


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What was made.

    Attributes:
        path: the file.
        rows: tokens that it scores.
        captured: tokens that were captured.
        learned: tokens that were learned from, repetitions counted.
        length: mean tokens of a step on held-out text, drafted `chain` at a time.
        chain: tokens of a draft.
        speedup: predicted, in times of plain decoding; None where nothing is known of the model's steps.
        no_longer_paid: whether it ended early because nothing was gained.
        curve: every measurement.
    """

    path: Path
    rows: int
    captured: int
    learned: int
    length: float
    chain: int
    speedup: float | None
    no_longer_paid: bool
    curve: Sequence[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**asdict(self), "path": str(self.path)}


def default_output(model: Path) -> Path:
    """Where a head goes if nobody says: beside the model, where `auto` finds it."""
    return model.with_name(f"{model.stem}-head.gguf")


def train(asked: Asked, wanted: Wanted, told: TrainTold) -> TrainReport:
    """Train a head for a model.

    Args:
        asked: the model, and how it is run.
        wanted: what is to become of it.
        told: who is told meanwhile.

    Raises:
        UsageError: what is wanted makes no sense.
        FileError: a file is there already, or cannot be written.
        ModelError: the model cannot be loaded, or gives no states.
        SpecxError: torch is not installed, memory does not suffice, or there is too little text.
        KeyboardInterrupt: it was interrupted; it can be gone on with.
    """
    check_torch("training")
    info = read_runnable(asked.model)
    if info.plain_reason is not None:
        raise ModelError(
            f"{info.path.name} decodes plainly: {info.plain_reason}", "train a head for another model"
        )
    if wanted.rows >= info.vocabulary_size:
        wanted = replace(wanted, rows=info.vocabulary_size)
    output = wanted.output or default_output(info.path)
    check_output(output, (info,), force=wanted.force, least=0)
    device = _checked(info, wanted, output)
    work = begin(info, asked, wanted, told, output, on_gpu=device != "cpu")
    if not work.collected:
        collect(work, asked)
    report = _learn(work, device)
    with suppress(FileError):  # somebody has put something there: that stays
        clear(work.folder)
    return report


def _checked(info: GGUFInfo, wanted: Wanted, output: Path) -> str:
    """What is trained on. Raises what speaks against the training, before anything that takes long."""
    lib()  # before torch, which takes the OpenMP that is loaded, and this one does not spin
    from specx.drafters.train.device import training_device
    from specx.drafters.train.export import head_bytes
    from specx.drafters.train.loop import Learning
    from specx.drafters.train.memory import batch_that_fits

    device, shape = training_device(wanted.device), HeadShape.of_target(info, wanted.rows)
    check_rows(info, wanted.rows, "--vocab")
    _check_disk(shape, wanted.disk)
    on_gpu = device != "cpu"
    batch_that_fits(shape, info.vocabulary_size, Learning(), wanted.memory, on_gpu=on_gpu)
    check_room(output, head_bytes(shape))
    return device


def _check_disk(shape: HeadShape, disk: int) -> None:
    """Raises UsageError if the states of the fewest tokens to learn from have no room in `disk` bytes."""
    least = LEAST_TOKENS * Layout("", shape.target_layers, shape.target_width).token_bytes
    if disk < least:
        raise UsageError(
            f"--disk is {disk:,} bytes, and {LEAST_TOKENS:,} tokens, the least to learn from, take {least:,}",
            f"give it at least {-(-least // (1 << 20)) + 1}M",
        )


def _learn(work: Work, device: str) -> TrainReport:
    """Train the head on what was captured, and write it."""
    from specx.drafters.train.export import head_bytes, write_head
    from specx.drafters.train.run import best_weights

    states = StatesFile(work.folder / STATES, work.layout)
    if states.lost:
        work.told.notice(f"{states.lost:,} damaged bytes of captured states were left out")
    if states.tokens < LEAST_TOKENS:
        raise SpecxError(
            f"only {states.tokens:,} tokens of finished texts were captured in time, and at least "
            f"{LEAST_TOKENS:,} are needed to learn from",
            "give it more --time, or text with --data",
        )
    training = _training(work, states, device)
    cost = head_bytes(work.shape) / step_bytes(work.info)
    label = ""

    def progress(done: float, measured: Measured | None) -> None:
        nonlocal label
        if measured is not None:
            label = _said(measured.to_json(), _speedup(work.costs, cost, measured.to_json()))
        work.told.progress("training", min(done, 1.0), label)

    training.run(progress, work.told.interrupted)
    best = max(training.measured, key=lambda each: float(each["length"]))
    told = {
        "tokens": training.trainer.tokens,
        "captured": states.tokens,
        "seed": work.wanted.seed,
        "seconds": round(training.seconds),
        "length": best["length"],
        "by_step": best["by_step"],
        "reached": best["reached"],
    }
    weights = best_weights(training)
    write_head(work.output, weights, work.shape, training.rows.ids, work.info, trained=told)
    return TrainReport(
        path=work.output,
        rows=len(training.rows.ids),
        captured=states.tokens,
        learned=training.trainer.tokens,
        length=best["length"],
        chain=len(best["by_step"]),
        speedup=_speedup(work.costs, step_bytes(read_gguf(work.output)) / step_bytes(work.info), best),
        no_longer_paid=training.no_longer_pays,
        curve=training.measured,
    )


def _training(work: Work, states: StatesFile, device: str) -> Training:
    """The training, gone on with if there is a checkpoint."""
    from specx.drafters.train.checkpoint import load_checkpoint
    from specx.drafters.train.loop import Learning, has_bf16
    from specx.drafters.train.run import Limits, Training, new_trainer, restored_rows

    wanted, told = work.wanted, work.told
    saved = load_checkpoint(work.folder / CHECKPOINT, told.notice)
    if saved is not None:
        rows = restored_rows(saved, work.info.vocabulary_size)
    else:
        told.progress("ranking tokens", 0.0, "")
        scores = token_scores(states, work.info.vocabulary_size)
        rows = Rows(kept_rows(work.info, scores, wanted.rows), work.info.vocabulary_size)
    held = [text for text in range(len(states)) if text % HELD == HELD - 1]
    others = [text for text in range(len(states)) if text % HELD != HELD - 1]
    learning = Learning(seed=wanted.seed, bf16=has_bf16(device))
    trainer, measured = new_trainer(
        work.info, work.shape, states, (others, held), rows, learning, wanted.memory, work.threads,
        device, fresh=saved is None,
    )  # fmt: skip
    seconds = None if wanted.steps is not None else max(wanted.seconds * (1 - work.share()), 1.0)
    limits = Limits(seconds, wanted.steps)
    training = Training(trainer, measured, rows, limits, work.folder / CHECKPOINT, told.clock)
    if saved is not None:
        training.restore(saved)
    return training


def _speedup(costs: NDArray[np.float64] | None, cost: float, measured: dict[str, Any]) -> float | None:
    """Predicted, in times of plain decoding.

    Args:
        costs: (W + 1,) milliseconds of the target's steps.
        cost: of a drafted token, in steps of the target.
        measured: how often drafts were right.
    """
    if costs is None:
        return None
    plain_ms = float(costs[1])
    return chain_rate(costs, draft_ms=cost * plain_ms, acceptance=measured["by_step"]).rate * plain_ms


def _said(measured: dict[str, Any], speedup: float | None) -> str:
    """What is shown of a measurement."""
    speed = "" if speedup is None else f", {speedup:.2f}x"
    return f"{measured['length']:.2f} tokens a step{speed}"
