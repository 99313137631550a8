"""Several first uses at once: is the text the same, and is anything kept that a quiet machine would not have?

    python -P benchmarks/first_uses.py MODEL [--at-once 2] [--rounds 20] [--load 0 1 2 4] [--then-quiet]

Each round begins with an empty cache and starts so many `specx complete` of one prompt at the same time,
beside `--load` processes that do nothing but run. With `--then-quiet` another one follows alone, and what is
kept after it decides as the cache of the first run of all, which was made in peace: how many tokens per
second the width that is thought best brings, by the times that were measured in peace, at several rates
of acceptance. A machine that is not quiet between the rounds says nothing.
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
from pathlib import Path
from typing import Any

from specx.engine.cost.rate import chain_rate

FAR = 1.5  # times as long, or as short: no noise of an undisturbed measurement
LOST = 1.03  # times as slow as by the cache that was made in peace
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


def kept(cache: Path) -> tuple[str | None, dict[str, float]]:
    """The kernels that were chosen, if any, and the kept milliseconds of steps in a short context."""
    chosen = [_read(path).get("choice") for path in (cache / "kernels").glob("*.json")]
    steps: dict[str, float] = {}
    for path in (cache / "staircase").glob("*.json"):
        first = _read(path).get("steps", {}).get("0", {})
        steps |= {n: value[0] if isinstance(value, list) else value for n, value in first.items() if value}
    return next((name for name in chosen if name), None), steps


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def lost(right: dict[str, float], steps: dict[str, float]) -> float:
    """How many times slower than by `right` the widths are that `steps` say are best, in the worst case."""
    true = {int(n): ms for n, ms in right.items() if n in steps}
    if 1 not in true:
        return float("inf")
    worst = 1.0
    for acceptance in ACCEPTANCES:
        thought = chain_rate({n: steps[str(n)] for n in true}, acceptance=acceptance)
        best = chain_rate(true, acceptance=acceptance)
        worst = max(worst, best.rate * true[thought.drafted + 1] / thought.tokens)
    return worst


@contextlib.contextmanager
def load(count: int) -> Iterator[None]:
    """So many processes that do nothing but run."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        [text], [alone_s] = run(options.model, Path(folder), 1, options.tokens)
        kernels, right = kept(Path(folder))
        [_], [later_s] = run(options.model, Path(folder), 1, options.tokens)
    single = right.get("1", 0.0)
    print(f"alone: {alone_s:.1f} s, then {later_s:.1f} s; kernels {kernels}, one token {single:.2f} ms")
    for busy in options.load:
        rounds(options, busy, text, kernels, right)


def rounds(
    options: argparse.Namespace, busy: int, text: str, kernels: str | None, right: dict[str, float]
) -> None:
    """Rounds beside so many busy processes; `text`, `kernels` and `right` are what came of peace."""
    other_texts = wrong_kernels = wrong_steps = nothing = slow = 0
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            with load(busy):
                texts, times = run(options.model, Path(folder), options.at_once, options.tokens)
            if options.then_quiet:
                quiet, alone = run(options.model, Path(folder), 1, options.tokens)
                texts, times = texts + quiet, times + alone
            chosen, steps = kept(Path(folder))
        other_texts += sum(each != text for each in texts)
        wrong_kernels += chosen not in (None, kernels)
        off = {n: ms / right[n] for n, ms in steps.items() if n in right}
        wrong_steps += any(not 1 / FAR <= ratio <= FAR for ratio in off.values())
        nothing += not steps
        slower = lost(right, steps) if options.then_quiet else 1.0
        slow += slower > LOST or (options.then_quiet and chosen != kernels)
        worst = max(off.values(), key=lambda r: max(r, 1 / r), default=1.0)
        took = ", ".join(f"{seconds:.1f}" for seconds in times)
        print(
            f"load {busy}, round {number + 1}: {took} s, kernels {chosen}, {len(off)} widths, "
            f"the farthest {worst:.2f}x, decisions {slower:.3f}x"
        )
    print(
        f"{options.rounds} rounds of {options.at_once}, load {busy}: {other_texts} other texts, "
        f"{wrong_kernels} wrong kernels and {wrong_steps} wrong tables kept, nothing kept {nothing} times"
        + (f", {slow} decide more than {LOST - 1:.0%} worse than in peace" if options.then_quiet else "")
    )


if __name__ == "__main__":
    main()
