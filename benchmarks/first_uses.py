"""Several first uses at once: is the text the same, and is anything kept that a quiet machine would not have?

    python -P benchmarks/first_uses.py MODEL [--at-once 2] [--rounds 20] [--load N]

Each round begins with an empty cache and starts so many `specx complete` of one prompt at the same time,
beside `--load` processes that do nothing but run. A first run alone says what is right.
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

FAR = 1.5  # times as long, or as short: no noise of an undisturbed measurement
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
    parser.add_argument("--load", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        [text], [alone_s] = run(options.model, Path(folder), 1, options.tokens)
        kernels, right = kept(Path(folder))
        [_], [later_s] = run(options.model, Path(folder), 1, options.tokens)
    single = right.get("1", 0.0)
    print(f"alone: {alone_s:.1f} s, then {later_s:.1f} s; kernels {kernels}, one token {single:.2f} ms")
    other_texts = wrong_kernels = wrong_steps = nothing = 0
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder, load(options.load):
            texts, times = run(options.model, Path(folder), options.at_once, options.tokens)
            chosen, steps = kept(Path(folder))
        other_texts += sum(each != text for each in texts)
        wrong_kernels += chosen not in (None, kernels)
        off = {n: ms / right[n] for n, ms in steps.items() if n in right}
        wrong_steps += any(not 1 / FAR <= ratio <= FAR for ratio in off.values())
        nothing += not steps
        worst = max(off.values(), key=lambda r: max(r, 1 / r), default=1.0)
        took = ", ".join(f"{seconds:.1f}" for seconds in times)
        print(f"round {number + 1}: {took} s, kernels {chosen}, {len(off)} widths, the farthest {worst:.2f}x")
    print(
        f"{options.rounds} rounds of {options.at_once}, load {options.load}: {other_texts} other texts, "
        f"{wrong_kernels} wrong kernels and {wrong_steps} wrong tables kept, nothing kept {nothing} times"
    )


if __name__ == "__main__":
    main()
