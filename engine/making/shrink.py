"""Shrinking a model into its own drafter: which layers stay is measured, and what that is worth predicted.

A trial leaves some layers out and reads what the model itself has written, once: the share of tokens that
the rest predicts is what a chain of drafts can hope for. With the times of the model's steps and the bytes
that the rest reads, that gives the rate of the pair, by the same objective as everywhere. Trials are kept as
they are made, so a search that was interrupted goes on where it was.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import SpecxError, UsageError
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama.quantize import QUANTIZATIONS, requantize
from specx.backends.llama.skipping import SkippingModel
from specx.backends.store import user_store
from specx.drafters.make.gguf_writing import made_entries
from specx.drafters.make.shrink import Stage, Unit, backward_search, check_dropped, droppable, prune
from specx.drafters.make.trim import check_trimmable
from specx.engine.learned.knowledge import Learned
from specx.engine.making.output import check_output
from specx.engine.making.prospects import Prospects, ShrinkStage
from specx.engine.making.samples import Sample, prompts, write_samples
from specx.engine.making.trials import Trials
from specx.engine.making.trim import Trimming, trim
from specx.engine.making.trim import Wanted as TrimWanted
from specx.engine.session import Session
from specx.engine.settings import Asked
from specx.engine.setup.here import Here
from specx.engine.setup.load import repack_works
from specx.engine.setup.wanted import wanted_load

__all__ = [
    "AUTO",
    "KEEP",
    "ShrinkReport",
    "Shrinking",
    "Wanted",
    "check_quant",
    "default_output",
    "shrink",
]

AUTO, KEEP = "auto", "keep"
"""In place of a quantization: what is fit for a drafter, and the model's own."""
AUTO_TYPE, AUTO_BITS = "Q4_0", 6.5
"""What a drafter is quantized as unless it has no more bits a weight than that already: to quantize 4 bits as
4 other bits took 27% of agreement for 7% of the bytes (SmolLM2-135M, Q4_1 as Q4_0)."""
EVERY = 5  # of the built-in prompts, one in so many is answered: fifteen, of all kinds
TOKENS = 512  # of all answers; they tell a difference of two percent
N_CTX = 1024  # tokens; a prompt and an answer fit


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for.

    Attributes:
        layers: how many to keep; None for as many as give the highest rate.
        quant: one of `QUANTIZATIONS`, `KEEP` or `AUTO`.
        trim: rows that the head is to keep; None for all.
        seconds: limit of the search.
        output: the file to write; None for one beside the model.
        force: replace a file that is there.
        resume: use the trials of an earlier search.
    """

    layers: int | None = None
    quant: str = AUTO
    trim: int | None = None
    seconds: float = 600.0
    output: Path | None = None
    force: bool = False
    resume: bool = True


@dataclass(frozen=True, slots=True)
class ShrinkReport:
    """How it went.

    Attributes:
        model: the target.
        quant: how what is left is quantized.
        blocks: layers of the target.
        step_ms: milliseconds of one of its tokens; None if the machine was too busy to say.
        scored: tokens that each agreement was counted on.
        trials: passes that were made, those of earlier searches included.
        complete: whether the search came to its end within the time.
        stages: from the whole model on.
        chosen: the one that was written, or the best if none was worth it.
        path: the file that was written, if one was.
    """

    model: Path
    quant: str
    blocks: int
    step_ms: float | None
    scored: int
    trials: int
    complete: bool
    stages: tuple[ShrinkStage, ...]
    chosen: ShrinkStage
    path: Path | None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**asdict(self), "model": str(self.model), "path": self.path and str(self.path)}


@dataclass(frozen=True, slots=True)
class Shrinking:
    """Who is told meanwhile.

    Attributes:
        progress: what is being done, and the finished fraction of it.
        notice: what a person should know.
        clock: seconds.
    """

    progress: Callable[[str, float], None] = lambda _what, _fraction: None
    notice: Callable[[str], None] = lambda _text: None
    clock: Callable[[], float] = time.monotonic


class _TimeIsUp(Exception):  # noqa: N818 -- no error
    """The search has had its time."""


def default_output(model: Path) -> Path:
    """Where a shrunk drafter goes if nobody says: beside the model, where `auto` finds it."""
    return model.with_name(f"{model.stem}-shrunk.gguf")


def shrink(asked: Asked, wanted: Wanted, told: Shrinking) -> ShrinkReport:
    """Make a drafter of fewer layers and bits from a model.

    Args:
        asked: the model, and how it is run.
        wanted: what is to become of it.
        told: who is told meanwhile.

    Raises:
        UsageError: what is wanted makes no sense.
        FileError: the file is there already, or cannot be written.
        ModelError: the model cannot be shrunk or loaded.
        SpecxError: the machine is too busy to tell what pays, or the search did not get as far as that in its
            time.
    """
    info = read_runnable(asked.model)
    units = droppable(info)
    wanted = replace(wanted, quant=_quant(info, wanted.quant))
    _check_layers(info, units, wanted.layers)
    if wanted.trim is not None:
        check_trimmable(info, wanted.trim)
    output = wanted.output or default_output(info.path)
    check_output(output, (info,), force=wanted.force, least=_least_bytes(info))
    store = user_store(asked.store, told.notice)
    trials = Trials(store, f"{info.fingerprint}-{wanted.quant}", resume=wanted.resume)
    costs, texts = _costs_and_texts(asked, told, wanted=not trials.texts, needed=wanted.layers is None)
    if not trials.texts:
        with _opened(info, asked, told) as whole:
            trials.begin(texts, whole)
    if not trials.scored:
        raise SpecxError("the model wrote nothing that layers could be compared on", "shrink another model")
    with _requantized(info, wanted, output, asked, told) as small:
        prospects = Prospects(info, small, costs, wanted.trim)
        found, complete = _search(small, units, wanted, trials, prospects, asked, told)
        chosen = _chosen(found, wanted, complete=complete)
        pays = wanted.layers is not None or (chosen.speedup or 0.0) > 1
        if pays:
            _write(info, small, chosen, wanted, output, told)
    if pays and wanted.trim is None:  # nothing was tried with a trimmed head
        known = Learned(store, model_key=info.fingerprint, cost_key="")
        made = read_runnable(output)
        known.save_trial(made.fingerprint, round(chosen.agreement * trials.scored), trials.scored)
    return ShrinkReport(
        model=info.path,
        quant=wanted.quant,
        blocks=info.blocks,
        step_ms=None if costs is None else float(costs[1]),
        scored=trials.scored,
        trials=len(trials.right),
        complete=complete,
        stages=tuple(found),
        chosen=chosen,
        path=output if pays else None,
    )


def _write(
    info: GGUFInfo, small: GGUFInfo, chosen: ShrinkStage, wanted: Wanted, output: Path, told: Shrinking
) -> None:
    """The drafter of the chosen layers, its head trimmed if that is wanted."""
    parameters = {
        "layers": chosen.layers,
        "dropped": ",".join(map(str, chosen.dropped)),
        "quant": wanted.quant,
    }
    made = made_entries("shrink", info, info, parameters)
    dropped = frozenset(chosen.dropped)
    if wanted.trim is None:
        prune(small, dropped, output, made)
        return
    with tempfile.TemporaryDirectory(prefix=".specx-", dir=output.absolute().parent) as folder:
        whole = Path(folder) / output.name
        prune(small, dropped, whole, made)
        trim(
            whole,
            info.path,
            TrimWanted(keep=wanted.trim, output=output, force=True),
            Trimming(told.progress, told.notice),
        )


def _quant(info: GGUFInfo, asked: str) -> str:
    """The quantization that was asked for; `KEEP` if nothing changes."""
    if asked == AUTO:
        asked = AUTO_TYPE if 8 * info.weight_bytes > AUTO_BITS * info.parameters else KEEP
    return KEEP if asked == info.file_type else asked


def _least_bytes(info: GGUFInfo) -> int:
    """Bytes of a file that keeps what is in no layer: no quantization makes less than two bits of a value."""
    return sum(tensor.elements for tensor in info.tensors if not tensor.name.startswith("blk.")) // 4


def _check_layers(info: GGUFInfo, units: list[Unit], layers: int | None) -> None:
    least, size = info.blocks - sum(map(len, units)), len(units[0])
    if layers is None or (least <= layers < info.blocks and (info.blocks - layers) % size == 0):
        return
    of_each = f", in steps of {size}" if size > 1 else ""
    raise UsageError(
        f"{info.path.name} cannot be shrunk to {layers} of its {info.blocks} layers",
        f"give --layers a number from {max(least, 2)} to {info.blocks - size}{of_each}, or auto",
    )


def _costs_and_texts(
    asked: Asked, told: Shrinking, *, wanted: bool, needed: bool
) -> tuple[NDArray[np.float64] | None, list[Sample]]:
    """(W + 1,) milliseconds of the model's steps, None if they cannot be had now; and if they are wanted,
    texts of its own.

    Raises:
        SpecxError: the steps are needed and cannot be had, which is said before any text is written.
    """
    target = replace(asked, n_ctx=N_CTX, drafter="free")
    with Session.open(
        target, notice=told.notice, progress=lambda done, what=None: told.progress(what or "loading", done)
    ) as session:
        session.measure_staircase()
        if needed and session.staircase.disturbed:
            raise SpecxError(
                "how many layers pay depends on what steps cost, and the machine was busy while they were "
                "timed",
                "run it again when nothing else runs, or give a number of --layers",
            )
        texts: list[Sample] = []
        if wanted:
            texts = write_samples(
                session, TOKENS, lambda f: told.progress("writing text", f), prompts()[::EVERY]
            )
        if session.staircase.disturbed:  # it decides nothing
            return None, texts
        return session.staircase.costs(0), texts


@contextmanager
def _opened(info: GGUFInfo, asked: Asked, told: Shrinking) -> Iterator[SkippingModel]:
    """A model whose layers can be skipped."""
    load = replace(wanted_load(info, replace(asked, model=info.path)), n_ctx=N_CTX, texts=1)
    model = SkippingModel(load, repack=repack_works(load, Here.of(asked, notice=told.notice)))
    try:
        yield model
    finally:
        model.close()


@contextmanager
def _requantized(
    info: GGUFInfo, wanted: Wanted, output: Path, asked: Asked, told: Shrinking
) -> Iterator[GGUFInfo]:
    """The whole model quantized as its drafter is to be: what is measured is what is written."""
    if wanted.quant == KEEP:
        yield info
        return
    with tempfile.TemporaryDirectory(prefix=".specx-", dir=output.absolute().parent) as folder:
        path = Path(folder) / info.path.name
        told.progress(f"quantizing as {wanted.quant}", 0.0)
        requantize(info.path, path, wanted.quant, wanted_load(info, asked).threads_batch)
        yield read_runnable(path)


def _search(
    small: GGUFInfo,
    units: list[Unit],
    wanted: Wanted,
    trials: Trials,
    prospects: Prospects,
    asked: Asked,
    told: Shrinking,
) -> tuple[list[ShrinkStage], bool]:
    """What each number of layers is worth, as far as the time goes, and whether it was enough."""
    begun = told.clock()
    found: list[ShrinkStage] = []
    everything = frozenset(layer for unit in units for layer in unit)
    with _opened(small, asked, told) as model:

        def agreement(dropped: frozenset[int], *, ranking: bool = False) -> float:
            late = told.clock() - begun > wanted.seconds
            if late and dropped and not trials.is_known(dropped, ranking=ranking):
                raise _TimeIsUp
            return trials.agreement(model, dropped, ranking=ranking)

        stages = backward_search(
            units, agreement, partial(agreement, ranking=True), lambda dropped: check_dropped(small, dropped)
        )
        try:
            for stage in stages:
                found.append(prospects.of(stage))
                done = max((told.clock() - begun) / wanted.seconds, len(stage.dropped) / len(everything))
                told.progress(f"{found[-1].layers} layers, {stage.agreement:.0%} right", done)
                if _is_enough(found, prospects.of(Stage(everything, stage.agreement)), wanted):
                    break
        except _TimeIsUp:
            return found, False
    return found, True


def _is_enough(found: list[ShrinkStage], bound: ShrinkStage, wanted: Wanted) -> bool:
    """Whether there is nothing more to find: so many layers were asked for, or fewer cannot be worth more.

    Args:
        found: so far.
        bound: as few layers as possible, if they agreed as often as the last ones.
        wanted: what was asked for.
    """
    if wanted.layers is not None:
        return found[-1].layers <= wanted.layers
    if bound.speedup is None:
        return False
    return bound.speedup <= max(1.0, *(stage.speedup or 0.0 for stage in found))


def _chosen(found: list[ShrinkStage], wanted: Wanted, *, complete: bool) -> ShrinkStage:
    """The stage that was asked for, or the one of the highest rate; the whole model only if it was found at
    once that no number of layers can pay.

    Raises:
        SpecxError: the search did not get there.
    """
    stages = found[1:]
    if wanted.layers is not None:
        stages = [stage for stage in stages if stage.layers == wanted.layers]
    if not stages and wanted.layers is None and complete:
        return found[0]
    if not stages:
        reached = found[-1].layers if found else "all"
        raise SpecxError(
            f"in {wanted.seconds:.0f} s the search came to {reached} layers",
            "run it again: it goes on from there; or give it more --time",
        )
    return max(stages, key=lambda stage: stage.speedup or 0.0)


def check_quant(name: str) -> str:
    """The name of a quantization as llama.cpp writes it, `KEEP` or `AUTO`.

    Raises:
        UsageError: there is no such quantization.
    """
    if name.lower() in (AUTO, KEEP):
        return name.lower()
    if name.upper() in QUANTIZATIONS:
        return name.upper()
    raise UsageError(f"--quant is {name!r}", f"allowed are {AUTO}, {KEEP}, {', '.join(QUANTIZATIONS)}")
