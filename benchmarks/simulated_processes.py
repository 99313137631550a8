"""Processes that follow each other on a simulated clock, with what is kept in between, for economics.py."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Model
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.drafters.head import LoadedHead
from specx.engine.cost.timing import unwatched
from specx.engine.drafting import DraftModels
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Chunk, Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.setup.finder import Candidate

ALLOWED = 1.03  # times the wall time without drafts, in the median
VOCAB = 64
ORDER = 5  # tokens back that the next one depends on: more than free drafts look at
STEP_MS = {1: 20.0, 2: 21.0, 4: 23.0, 8: 26.0, 16: 32.0, 64: 80.0}  # of a target of a billion weights
SAMPLING = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)

Draw = Callable[[random.Random], int]
LENGTHS: dict[str, Draw] = {
    "short": lambda _choice: 19,
    "long": lambda _choice: 300,
    "geometric": lambda choice: 1 + int(choice.expovariate(1 / 100)),
    "bimodal": lambda choice: choice.choice((12, 12, 12, 300)),
}


@dataclass(frozen=True, slots=True)
class Disk:
    """A draft model: what it costs in milliseconds, and how often it is right."""

    open_ms: float
    token_ms: float
    acceptance: float
    look_ms: float = 30.0  # into its file, once


DISKS: dict[str, Disk | None] = {
    "none": None,
    "usual": Disk(300.0, 2.5, 0.75),
    "quick to load": Disk(60.0, 2.5, 0.75),
    "slow to load": Disk(1500.0, 2.5, 0.75),
    "dear": Disk(300.0, 8.0, 0.75),
    "poor": Disk(300.0, 2.5, 0.1),
}


class Target(ScriptedModel):
    """Never ends an answer by itself."""

    def logits(self, context: Sequence[int]) -> NDArray[np.float32]:
        row = super().logits(context).copy()
        row[0] = -1e4
        return row


class Follower(Target):
    """Says what the target says, but for a part of the contexts."""

    acceptance = 1.0

    def logits(self, context: Sequence[int]) -> NDArray[np.float32]:
        row = super().logits(context)
        spread = hash(tuple(context[-ORDER:])) % 1009 / 1009  # of numbers: the same in every process
        return row if spread < self.acceptance else np.roll(row, 7)


class Files:
    """What is on the disk of a simulation. Implements `ModelSource`."""

    def __init__(self, disk: Disk | None, clock: SimulatedClock) -> None:
        self.disk, self.clock, self.known = disk, clock, False

    def search(self) -> Iterator[Candidate | None]:
        """The one model, if there is one; its file is looked into once."""
        if self.disk is None:
            return
        if not self.known:
            self.known = True
            self.clock.sleep(self.disk.look_ms / 1e3)
            yield None
        yield Candidate(Path("draft.gguf"), "draft", "draft", VOCAB, 12, int(self.disk.open_ms * 0.4e6))

    def obstacle(self, _candidate: Candidate) -> str | None:
        """None."""
        return None

    def load(self, _candidate: Candidate) -> Model:
        """Takes its time."""
        assert self.disk is not None
        self.clock.sleep(self.disk.open_ms / 1e3)
        token_ms = self.disk.token_ms
        model = Follower(
            VOCAB, ORDER, step_costs={1: token_ms, 8: 1.3 * token_ms, 64: 3 * token_ms}, clock=self.clock
        )
        model.acceptance = self.disk.acceptance
        return model

    def load_head(self, _candidate: Candidate) -> LoadedHead:
        """There is none."""
        raise NotImplementedError

    def watch(self, _layers: Sequence[int]) -> None:
        """Nobody reads hidden states."""


class Machine:
    """Processes that follow each other, and what is kept between them.

    Args:
        root: folder of the store.
        disk: the draft model beside the target.
        drafter: as in `--drafter`.
        at_once: whether the draft model is loaded at once, as one that was named.
    """

    def __init__(
        self, root: Path, disk: Disk | None, drafter: str = "auto", *, at_once: bool = False
    ) -> None:
        self.clock, self._root, self._drafter = SimulatedClock(), root, drafter
        self._files, self._at_once = Files(disk, self.clock), at_once

    def process(self, length: int, number: int, n_predict: int = 2048) -> float:
        """Seconds of one that writes an answer of that length to its own prompt."""
        start = self.clock()
        target = Target(VOCAB, ORDER, step_costs=STEP_MS, clock=self.clock)
        prompt = [1 + number * 7919 % (VOCAB - 1), 1 + number * 104729 % (VOCAB - 1)]
        asked = Asked(Path("simulated.gguf"), drafter=self._drafter, answers=1)
        learned = Learned(Store(self._root), model_key="model", cost_key="cost")
        with Session(
            target, asked, learned, name="simulated", draft_models=self._draft_models, clock=self.clock
        ) as session:
            session.staircase.watch = unwatched
            steps = {str(n): ms for n, ms in STEP_MS.items()}
            session.staircase.load_json({"0": steps, "288": steps})
            generation = session.generate(prompt, replace(SAMPLING, seed=number), n_predict=n_predict)
            with closing(cast(Generator[Chunk], iter(generation))) as chunks:  # it ends where it is left
                while len(generation.result.tokens) < length:
                    next(chunks)
        return self.clock() - start

    def _draft_models(self, session: Session) -> DraftModels:
        forced = next(filter(None, self._files.search()), None) if self._at_once else None
        return DraftModels(
            self._files,
            session.learned,
            session.staircase,
            step_bytes=100,
            n_ctx=session.n_ctx,
            forced=forced,
            clock=self.clock,
        )


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of one kind of answers and one draft model.

    Attributes:
        ratio: median wall time over that without drafts, once lengths are remembered.
        of_free: the same over that with free drafts alone: what the draft model cost.
        first_loss_ms: most that a process took longer than without drafts, before they are.
        loss_ms: the same from then on.
        gain_kept: of what loading at once saves; None where that saves nothing.
    """

    ratio: float
    of_free: float
    first_loss_ms: float
    loss_ms: float
    gain_kept: float | None


class Simulation:
    """One kind of answers.

    Args:
        kind: in `LENGTHS`.
        processes: how many, one after the other.
        first: how many of them come before their lengths count as remembered.
    """

    def __init__(self, kind: str, *, processes: int = 40, first: int = 12) -> None:
        choice = random.Random(11)
        self.lengths = [LENGTHS[kind](choice) for _ in range(processes)]
        self.first = first
        self.plain = self._seconds(None, "none")
        self.free = self._seconds(None)

    def run(self, disk: Disk | None) -> Simulated:
        """With one draft model."""
        plain, free, first = self.plain, self.free, self.first
        auto = self._seconds(disk) if disk else free
        lost = [(a - b) * 1e3 for a, b in zip(auto, plain, strict=True)]
        kept = None
        if disk is not None:
            possible = sum(plain[first:]) - sum(self._seconds(disk, at_once=True)[first:])
            saved = sum(plain[first:]) - sum(auto[first:])
            kept = saved / possible if possible > 0.01 * sum(plain[first:]) else None
        ratio = statistics.median(a / b for a, b in zip(auto[first:], plain[first:], strict=True))
        of_free = statistics.median(a / b for a, b in zip(auto[first:], free[first:], strict=True))
        return Simulated(ratio, of_free, max(lost[:first]), max(lost[first:]), kept)

    def _seconds(self, disk: Disk | None, drafter: str = "auto", *, at_once: bool = False) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            machine = Machine(Path(folder), disk, drafter, at_once=at_once)
            return [machine.process(length, number) for number, length in enumerate(self.lengths)]


def print_simulation(processes: int) -> bool:
    """A line for each kind of answers and draft model, then JSON; returns whether all is as it should be."""
    print(
        f"{'answers':<12}{'draft model':<16}{'ratio':>7}{'of free':>9}{'lost at first':>15}{'lost later':>12}"
        f"{'gain kept':>11}"
    )
    figures = {}
    for kind in LENGTHS:
        simulation = Simulation(kind, processes=processes)
        for name, disk in DISKS.items():
            found = figures[f"{kind}, {name}"] = simulation.run(disk)
            kept = "-" if found.gain_kept is None else f"{found.gain_kept:.2f}"
            print(
                f"{kind:<12}{name:<16}{found.ratio:>7.3f}{found.of_free:>9.3f}{found.first_loss_ms:>12.0f} ms"
                f"{found.loss_ms:>9.0f} ms{kept:>11}",
                flush=True,
            )
    print(json.dumps({name: asdict(found) for name, found in figures.items()}))
    return all(max(found.of_free, found.ratio) <= ALLOWED for found in figures.values())
