"""Tokens per second beside other processes: with a number of threads that follows them, and a fixed one.

    python benchmarks/neighbour.py MODEL [--loads 0,1,2,4] [--rounds 5] [--nice N] [--llama-server PATH]

The ways take turns within a round, another one first in each, beside as many processes that do nothing but
run. Each decodes one text of `--tokens` plainly. Ratios are to the same way alone and to llama-server beside
the same load, round by round; texts of a way that are not those of `follows` in the first round are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from traffic import Spread

from specx.backends.llama.server import LlamaServer
from specx.engine.session import Session, load
from specx.engine.settings import SamplingSettings
from specx.engine.setup.threads import governor_of

PROMPT = "Once upon a time there was a small machine that"
SETTLE_S = 0.5  # in which the system divides the processors among those that run


@contextlib.contextmanager
def load_of(count: int, nice: int) -> Iterator[None]:
    """So many processes that do nothing but run, of low priority if `nice` is positive."""
    command = [
        sys.executable,
        "-c",
        f"import os\nos.nice({nice})\nparent = os.getppid()\nwhile os.getppid() == parent: pass",
    ]
    busy = [subprocess.Popen(command) for _ in range(count)]
    try:
        time.sleep(SETTLE_S)
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def speed_of(session: Session, tokens: int, *, governed: bool) -> tuple[float, list[int]]:
    """Tokens per second of one text, and the text."""
    setup = session.setup
    assert setup is not None
    session.plan.governor = governor_of(session.model, setup) if governed else None
    session.model.set_threads(setup.threads.value, setup.threads_batch.value)  # type: ignore[attr-defined]
    session.forget_conversation()
    generation = session.generate(
        PROMPT, SamplingSettings(temperature=0.0), n_predict=tokens, ignore_eos=True
    )
    for _ in generation:
        pass
    timings = generation.result.timings
    return 1e3 * timings.predicted_n / timings.predicted_ms, generation.result.tokens


Ways = dict[str, Callable[[], tuple[float, list[int]]]]
Seen = dict[tuple[str, int], list[float]]


def main() -> None:
    """Measure and print a table."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("model", type=Path)
    parser.add_argument("--loads", default="0,1,2,4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--llama-server", type=Path)
    options = parser.parse_args()
    loads = [int(count) for count in options.loads.split(",")]
    seen: Seen = defaultdict(list)
    first: list[int] | None = None
    other: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        ways = _ways(stack, options.model, options.tokens, options.llama_server)
        for number in range(options.rounds):
            for count in loads:
                with load_of(count, options.nice):
                    for name in in_turn(list(ways), number):
                        speed, text = ways[name]()
                        seen[name, count].append(speed)
                        first = text if first is None else first
                        other[name] += text != first
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    for count in loads:
        for name in ways:
            print(_line(seen, name, count, loads[0]))
    print("other texts: " + ", ".join(f"{other[name]} of {name}" for name in ways))


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: nobody is always the first."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def _ways(stack: contextlib.ExitStack, model: Path, tokens: int, program: Path | None) -> Ways:
    """What takes turns, ready to write."""
    threads = len(os.sched_getaffinity(0))
    asked = {"n_ctx": 1024, "drafter": "none", "kernels": "specx"}
    session = stack.enter_context(load(model, **asked, threads=threads, threads_batch=threads))
    session.measure_staircase()
    ways: Ways = {
        "follows": lambda: speed_of(session, tokens, governed=True),
        "fixed": lambda: speed_of(session, tokens, governed=False),
    }
    if program is not None:
        arguments = ["-m", str(model), "-c", "1024", "-t", str(threads), "-fa", "on", "-np", "1"]
        server = stack.enter_context(LlamaServer(program, arguments, frozenset()))
        prompt = session.tokenize(PROMPT, add_special=True, parse_special=True)

        def served() -> tuple[float, list[int]]:
            reply = server.complete(prompt, tokens, {"temperature": 0.0}, ignore_eos=True)
            return 1e3 * (reply.predicted_n - 1) / reply.predicted_ms, reply.tokens

        ways["llama-server"] = served
    return ways


def _line(seen: Seen, name: str, count: int, alone: int) -> str:
    speeds = seen[name, count]

    def over(others: list[float]) -> Spread:
        return Spread.of([one / other for one, other in zip(speeds, others, strict=True)])

    line = f"{count} busy, {name:12}: {Spread.of(speeds)} tokens/s, of alone {over(seen[name, alone])}"
    peer = seen.get(("llama-server", count))
    return f"{line}, of llama-server {over(peer)}" if peer else line


if __name__ == "__main__":
    main()
