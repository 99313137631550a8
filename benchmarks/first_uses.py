"""Several first uses at once: is the text the same, and is anything kept that a quiet machine would not have?

    python -P benchmarks/first_uses.py MODEL [--at-once 2] [--rounds 20] [--load 0 1 2 4] [--then-quiet]

Each round begins with an empty cache and starts so many `specx complete` of one prompt at the same time,
beside `--load` processes that do nothing but run. With `--then-quiet` another one follows alone, and what is
kept after it is compared with caches that were made in peace, `--peace` of them: how many tokens per second
the width brings that is thought best, at several rates of acceptance. What a width truly takes is the median
of these caches, by which the tables made in peace decide worse than the best, too. A machine that is not
quiet between the rounds says nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.engine.cost.rate import chain_rate
from specx.engine.cost.staircase import Staircase
from specx.engine.cost.timing import TILES

FAR = 1.5  # times as long, or as short: no noise of an undisturbed measurement
LOST = 1.03  # times as slow as with the median of the caches that were made in peace
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
WIDEST = 64  # tokens of a step that a table knows of
SHORT = 100  # tokens of a context
ACCEPTANCES = (0.3, 0.6, 0.8, 0.95)
PROMPT = "Once upon a time there was a small machine that"


def run(model: str, cache: Path, count: int, tokens: int) -> tuple[list[str], list[float]]:
    """The texts of `count` processes that begin at once, and the seconds each took."""
    specx = str(Path(sys.executable).with_name("specx"))
    command = [specx, "complete", model, "-p", PROMPT, "-q"]
    command += ["--temp", "0", "-n", str(tokens), "--server", "no"]
    environment = {**os.environ, "SPECX_CACHE": str(cache)}
    begin, texts, times = time.perf_counter(), [], []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(count)]  # type: ignore[call-overload]
    for process in processes:
        out, err = process.communicate()
        if process.returncode:
            sys.exit(f"exit code {process.returncode}: {err.decode()}")
        texts.append(out.decode())
        times.append(time.perf_counter() - begin)
    return texts, times


def kept(cache: Path) -> tuple[str | None, Staircase]:
    """The kernels that were chosen, if any, and the kept table of steps."""
    chosen = [_read(path).get("choice") for path in (cache / "kernels").glob("*.json")]
    staircase = Staircase(WIDEST)
    for path in (cache / "staircase").glob("*.json"):
        if steps := _read(path).get("steps"):  # others say which of them is the latest
            staircase.load_json(steps)
    return next((name for name in chosen if name), None), staircase


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def costs(staircase: Staircase) -> NDArray[np.float64]:
    """(W + 1,) milliseconds of a step, by its tokens, that decisions in a short context rest on."""
    return staircase.costs(SHORT)[: TILES + 1]


def lost(true: NDArray[np.float64], table: NDArray[np.float64]) -> float:
    """How many times slower than the best the widths truly are that `table` says are best, at worst.

    Args:
        true, table: (W + 1,) milliseconds of a step, by its tokens.
    """
    worst = 1.0
    for acceptance in ACCEPTANCES:
        thought, best = (chain_rate(steps, acceptance=acceptance) for steps in (table, true))
        worst = max(worst, best.rate * float(true[thought.drafted + 1]) / thought.tokens)
    return worst


@contextlib.contextmanager
def load(count: int) -> Iterator[None]:
    """So many processes that do nothing but run."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    """Run the rounds and print what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--load", type=int, nargs="+", default=[0])
    parser.add_argument("--then-quiet", action="store_true")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--peace", type=int, default=5)
    options = parser.parse_args()
    peace = [in_peace(options.model, options.tokens) for _ in range(options.peace)]
    texts, names = {each.text for each in peace}, {each.kernels for each in peace}
    if len(texts) > 1 or len(names) > 1:
        sys.exit(f"in peace there were {len(texts)} texts, and the kernels {names}")
    if not all(each.kept for each in peace):
        sys.exit("the machine is not quiet: a first use in peace kept nothing")
    true = np.median([each.costs for each in peace], axis=0)
    seconds = [" and ".join(f"{s:.1f}" for s in each.seconds) for each in peace]
    print(f"in peace: {', '.join(seconds)} s; kernels {peace[0].kernels}, one token {true[1]:.2f} ms")
    decide = [lost(true, each.costs) for each in peace]
    print(f"these decide {', '.join(f'{times:.3f}x' for times in decide)}")
    for busy in options.load:
        rounds(options, busy, peace[0], true, float(np.median(decide)))


@dataclass(frozen=True, slots=True)
class Peace:
    """What comes of a first use in peace, and of a second: (W + 1,) milliseconds by width."""

    text: str
    kept: bool
    kernels: str | None
    costs: NDArray[np.float64]
    seconds: list[float]


def in_peace(model: str, tokens: int) -> Peace:
    """A first use, and a second one."""
    with tempfile.TemporaryDirectory() as folder:
        [text], first = run(model, Path(folder), 1, tokens)
        kernels, staircase = kept(Path(folder))
        _, second = run(model, Path(folder), 1, tokens)
    return Peace(text, bool(staircase.depths), kernels, costs(staircase), first + second)


def rounds(
    options: argparse.Namespace, busy: int, peace: Peace, true: NDArray[np.float64], usual: float
) -> None:
    """Rounds beside so many busy processes.

    Args:
        options: as asked.
        busy: processes.
        peace: one of the first uses that nothing disturbed.
        true: (W + 1,) milliseconds by width.
        usual: how many times slower than the best a table that was made in peace decides.
    """
    other_texts = wrong_kernels = wrong_steps = nothing = slow = 0
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            with load(busy):
                texts, times = run(options.model, Path(folder), options.at_once, options.tokens)
            if options.then_quiet:
                quiet, alone = run(options.model, Path(folder), 1, options.tokens)
                texts, times = texts + quiet, times + alone
            chosen, staircase = kept(Path(folder))
        other_texts += sum(each != peace.text for each in texts)
        wrong_kernels += chosen not in (None, peace.kernels)
        timed = [n for n in staircase.steps(0) if n <= TILES] if 0 in staircase.depths else []
        table = costs(staircase)
        off = [float(table[n] / true[n]) for n in timed]
        wrong_steps += any(not 1 / FAR <= ratio <= FAR for ratio in off)
        nothing += not timed
        slower = lost(true, table) if timed else 1.0
        slow += slower > LOST * usual or (options.then_quiet and chosen != peace.kernels)
        farthest = max(zip(off, timed, strict=True), key=lambda r: max(r[0], 1 / r[0]), default=(1.0, 0))
        took = ", ".join(f"{seconds:.1f}" for seconds in times)
        print(
            f"load {busy}, round {number + 1}: {took} s, kernels {chosen}, {len(off)} widths, "
            f"the farthest {farthest[0]:.2f}x ({farthest[1]} tokens), decisions {slower:.3f}x"
        )
    print(
        f"{options.rounds} rounds of {options.at_once}, load {busy}: {other_texts} other texts, "
        f"{wrong_kernels} wrong kernels and {wrong_steps} wrong tables kept, nothing kept {nothing} times, "
        f"{slow} decide more than {LOST - 1:.0%} worse than the {usual:.3f}x of peace"
    )


if __name__ == "__main__":
    main()
