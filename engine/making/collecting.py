"""What a head is trained on: the target writes text, and what it computes of that is captured.

Everything on the way lies in a folder beside the head, so that an interruption costs little: texts, captured
states and checkpoints. It is removed when the head is written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import FileError, UsageError
from specx.backends.gguf.cache_size import layer_cache_bytes
from specx.backends.gguf.file import GGUFInfo
from specx.backends.machine.machine import this_cpu
from specx.drafters.train.capture import read_states
from specx.drafters.train.shape import HeadShape
from specx.drafters.train.states import Layout, StatesFile, StatesWriter, unwritable
from specx.engine.making.written import ANSWER, WrittenTexts, plain_texts, write_texts
from specx.engine.session import Session
from specx.engine.settings import Asked
from specx.engine.setup.texts import UNTIMED

__all__ = ["TrainTold", "Wanted", "Work", "begin", "clear", "collect", "texts_that_fit"]

N_CTX = 768  # tokens of a text
AT_ONCE = 64  # texts that are written together, at most
HOST_MS = 0.1  # of each text in a step: its token is drawn
LIBRARIES = 400 << 20  # bytes of llama.cpp's buffers, NumPy and Python
WRITING, CAPTURING = 0.3, 0.5
"""Shares of the time after which no more is written, and captured: what is captured is read three times or so
in the rest, and a second time nearly counts as new text."""
WRITING_FOR_GPU, CAPTURING_FOR_GPU = 0.5, 0.8
"""The same where a GPU learns, some fifty times as fast."""
TEXTS, STATES, CHECKPOINT, SETTINGS, DONE = (
    "texts.jsonl",
    "states.bin",
    "checkpoint",
    "settings.json",
    "collected",
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for.

    Attributes:
        texts: of people, to be read besides what the model writes.
        self_tokens: how many the model is to write; None for as many as there is time for.
        seconds: for everything.
        steps: batches, in place of a time.
        rows: tokens that the head scores.
        memory: bytes that may be used.
        disk: bytes that captured states may take.
        seed: of everything that is drawn.
        device: what the head is trained on, as `drafters.train.device.training_device` takes it.
        output: the file to write; None for one beside the model.
        force: replace a file that is there, and what an earlier training has left.
        resume: go on with a training that was interrupted.
    """

    texts: Sequence[str] = ()
    self_tokens: int | None = None
    seconds: float = 3600.0
    steps: int | None = None
    rows: int = 16384
    memory: int = 4 << 30
    disk: int = 8 << 30
    seed: int = 0
    device: str = "auto"
    output: Path | None = None
    force: bool = False
    resume: bool = False


@dataclass(frozen=True, slots=True)
class TrainTold:
    """Who is told meanwhile.

    Attributes:
        progress: what is being done, the finished fraction of it, and what is to be said of it.
        notice: what a person should know.
        interrupted: whether to stop.
        clock: seconds.
    """

    progress: Callable[[str, float, str], None] = lambda _what, _fraction, _detail: None
    notice: Callable[[str], None] = lambda _text: None
    interrupted: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class Work:
    """A training under way.

    Attributes:
        info: the target.
        wanted, told: as they were given.
        shape: of the head.
        output: the head.
        folder: of what is on the way.
        threads: CPU threads.
        begun: when it began, earlier runs counted in.
        writing, capturing: shares of the time after which no more is written, and captured.
        costs: (W + 1,) milliseconds of the target's steps; None if they are not known.
        layout: of what is captured.
    """

    info: GGUFInfo
    wanted: Wanted
    told: TrainTold
    shape: HeadShape
    output: Path
    folder: Path
    threads: int
    begun: float
    writing: float = WRITING
    capturing: float = CAPTURING
    costs: NDArray[np.float64] | None = None
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        self.layout = Layout(self.info.fingerprint, self.shape.target_layers, self.shape.target_width)

    def share(self) -> float:
        """Of the time that is over; 0 where steps are counted."""
        if self.wanted.steps is not None:
            return 0.0
        return (self.told.clock() - self.begun) / self.wanted.seconds

    def stop_if_interrupted(self) -> None:
        """Raises KeyboardInterrupt."""
        if self.told.interrupted():
            self.note_time()
            raise KeyboardInterrupt

    def note_time(self) -> None:
        """Keep how long it has been going on."""
        seconds = self.told.clock() - self.begun
        costs = None if self.costs is None else self.costs.tolist()
        settings = {**_settings(self.info, self.shape, self.wanted), "seconds": seconds, "costs": costs}
        _write_settings(self.folder / SETTINGS, settings)

    @property
    def collected(self) -> bool:
        """Whether everything was captured that will be."""
        return (self.folder / DONE).exists() and (self.folder / STATES).exists()


def begin(
    info: GGUFInfo, asked: Asked, wanted: Wanted, told: TrainTold, output: Path, *, on_gpu: bool = False
) -> Work:
    """The folder of a training, a new one or one that is gone on with.

    Args:
        info: the target.
        asked, wanted, told: as they were given.
        output: the head.
        on_gpu: whether a GPU learns.

    Raises:
        UsageError: it was begun otherwise.
        FileError: there is one, and nothing was said of it; or nothing can be written.
    """
    folder = output.absolute().with_name(f"{output.stem}.training")
    shape = HeadShape.of_target(info, wanted.rows)
    settings, seconds, costs = _settings(info, shape, wanted), 0.0, None
    if folder.exists() and wanted.resume:
        _check_files(folder)
        known = _read_settings(folder / SETTINGS, told.notice)
        seconds, costs = float(known.pop("seconds", 0.0)), known.pop("costs", None)
        differing = sorted(key for key in settings if key in known and known[key] != settings[key])
        if differing:
            raise UsageError(
                f"the training in {folder} was begun otherwise: {', '.join(differing)}",
                "say the same again, or begin anew with --force",
            )
    elif folder.exists() and not wanted.force:
        raise FileError(
            f"there is an unfinished training in {folder}", "go on with it: --resume; or begin anew: --force"
        )
    elif folder.exists():
        clear(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    threads = asked.threads or this_cpu().default_threads
    work = Work(info, wanted, told, shape, output, folder, threads, told.clock() - seconds)
    if on_gpu:
        work.writing, work.capturing = WRITING_FOR_GPU, CAPTURING_FOR_GPU
    work.costs = None if costs is None else np.array(costs)
    work.note_time()
    return work


def clear(folder: Path) -> None:
    """Remove the folder of a training.

    Raises:
        FileError: it holds something else, which stays with everything there, or cannot be removed.
    """
    _own_files(folder)
    try:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    except OSError as error:
        raise FileError(f"cannot remove {folder}: {error.strerror or error}") from error


def _check_files(folder: Path) -> None:
    """Raise FileError if something in the folder of a training is no file: a pipe would be waited for."""
    for path in _own_files(folder):
        if not path.is_file():
            raise FileError(f"{path} is no file", "begin anew: --force")


def _own_files(folder: Path) -> list[Path]:
    """The files of a training. Raises FileError if there are others, which must not be removed."""
    from specx.drafters.train.checkpoint import before

    own = {TEXTS, STATES, CHECKPOINT, before(Path(CHECKPOINT)).name, SETTINGS, DONE}
    try:
        found = list(folder.iterdir())
    except OSError as error:
        raise FileError(f"cannot read {folder}: {error.strerror or error}", "choose another -o") from error
    for path in found:
        if path.name not in own and not (path.name.startswith(".") and path.suffix == ".tmp"):
            raise FileError(f"{path} is none of a training's files", "move it away, or choose another -o")
    return found


def _settings(info: GGUFInfo, shape: HeadShape, wanted: Wanted) -> dict[str, Any]:
    """What must be the same where a training is gone on with."""
    return {"target": info.fingerprint, "seed": wanted.seed, "vocab": wanted.rows, "shape": shape.to_json()}


def _read_settings(path: Path, notice: Callable[[str], None]) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(known, dict) and isinstance(known.get("seconds", 0.0), int | float):
            np.array(known.get("costs") or [], np.float64)
            known["shape"] = HeadShape.from_json(known["shape"]).to_json()
            return known
    except (OSError, ValueError, KeyError, TypeError):
        pass
    notice(f"{path.name} is damaged and is written again")
    return {}


def _write_settings(path: Path, settings: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(settings), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def collect(work: Work, asked: Asked) -> None:
    """Let the target write, and capture what it computes."""
    wanted, told = work.wanted, work.told
    n_ctx = min(N_CTX, work.info.context_length or N_CTX)
    asked = replace(
        asked,
        n_ctx=n_ctx,
        texts=texts_that_fit(work.info, n_ctx, wanted.memory),
        drafter="none",
        threads=work.threads,
        threads_batch=work.threads,
    )
    with Session.open(
        asked,
        notice=told.notice,
        progress=lambda done, what=None: told.progress(what or f"loading {work.info.path.name}", done, ""),
    ) as session:
        session.model.extract(work.shape.target_layers)
        texts = WrittenTexts(work.folder / TEXTS)
        if texts.dropped:
            told.notice(f"{texts.dropped} damaged bytes of written text were dropped")
        _measure(work, asked, session)
        if wanted.self_tokens != 0:
            at_once = _best_at_once(work, session)
            write_texts(session, texts, wanted.seed, lambda chosen: _is_enough(work, chosen), at_once)
        work.stop_if_interrupted()
        work.note_time()
        _capture(work, session, texts)
        work.note_time()
    try:
        (work.folder / DONE).touch()
    except OSError as error:
        raise unwritable(work.folder / DONE, error) from error


def texts_that_fit(info: GGUFInfo, n_ctx: int, memory: int) -> int:
    """How many texts of so many tokens are written together within `memory` bytes; at least one."""
    room = memory - info.weight_bytes - LIBRARIES
    return min(max(room // max(sum(layer_cache_bytes(info, n_ctx)), 1), 1), AT_ONCE)


def _measure(work: Work, asked: Asked, session: Session) -> None:
    """What steps cost is known: how many texts are best written together depends on it, and what is told."""
    if asked.measure:
        session.set_drafter("free")  # of a model that drafts nothing no steps are timed
        session.measure_staircase()
        session.set_drafter("none")
    if session.staircase.depths and not session.staircase.disturbed:
        work.costs = session.staircase.costs(0)


def _best_at_once(work: Work, session: Session) -> int:
    """How many texts are written together so that most is finished: what is not, in the end, is left out.

    Where a number of tokens is asked for, no measurement decides: with llama.cpp's own kernels a text has
    other bits in other company.
    """
    usual = min(UNTIMED, session.at_once)
    if work.wanted.self_tokens is not None:
        return usual
    rates = session.plan.company.rates(session.at_once, ANSWER, HOST_MS)
    ms = max(work.wanted.seconds * (work.writing - work.share()), 1.0) * 1e3
    return max(rates, key=lambda n: rates[n] * ms - n * ANSWER / 2, default=usual)


def _is_enough(work: Work, chosen: int) -> bool:
    """Whether the target has written enough; tells how far it is."""
    goal, share = work.wanted.self_tokens, work.share() / work.writing
    done = max(share, chosen / goal if goal else 0.0)
    work.told.progress("writing text", min(done, 1.0), f"{chosen:,} tokens")
    return done >= 1 or work.told.interrupted()


def _capture(work: Work, session: Session, texts: WrittenTexts) -> None:
    """Read all texts that were not read yet, as far as there is time and room."""
    written = ((text.tokens, text.start) for text in texts.texts)
    read = ((tuple(piece), 1) for piece in plain_texts(iter(work.wanted.texts), session, session.n_ctx))
    every: list[tuple[Sequence[int], int]] = [*written, *read]
    done = _captured(work)
    with StatesWriter(work.folder / STATES, work.layout) as states:
        for number, (tokens, start) in enumerate(every[done:], done):
            work.stop_if_interrupted()
            room = states.bytes + len(tokens) * work.layout.token_bytes < work.wanted.disk
            if work.share() >= work.capturing or not room:
                why = "--disk has no room for more" if not room else "more would take too long"
                work.told.notice(f"{number:,} of {len(every):,} texts were captured: {why}")
                break
            states.append(read_states(session.cache, tokens, start))
            work.told.progress("capturing states", number / len(every), f"{states.bytes >> 20:,} MiB")


def _captured(work: Work) -> int:
    """How many texts were captured by an earlier run."""
    path = work.folder / STATES
    return len(StatesFile(path, work.layout)) if path.exists() and path.stat().st_size else 0
