"""What a model takes to load on each of the kernels: memory and time.

Every arm loads the model in a process of its own, reads a short prompt and writes a few tokens. Then what all
this added to the resident memory of the process is read from /proc (Linux), twice: for a model whose file is
mapped, the default, and for one that is read (--no-mmap). Pages of a mapped file are resident until somebody
else wants the memory, even if they were only read once, to be rearranged; of a file that is read nothing is
resident but what the model needs. The file is read once before, so no arm pays for a cold disk; figures are
the least of the repetitions.

    python benchmarks/kernel_memory.py MODEL.gguf [MODEL.gguf ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from specx.backends.llama.kernels import KERNELS
from specx.backends.llama.model import LlamaModel
from specx.backends.machine.machine import this_cpu
from specx.backends.settings import Load

PROMPT, TOKENS = 64, 8
COLUMNS = {  # heading: figure, unit, digits
    "mapped, MB": ("mapped", 1e6, 0),
    "read, MB": ("read", 1e6, 0),
    "loaded, s": ("load_s", 1.0, 2),
    "prompt read, s": ("ready_s", 1.0, 2),
}
Usage = dict[str, float]


def main() -> int:
    """Measure every model on all kernels, and print a table; or one of them, for the process that asked."""
    arguments = parse(sys.argv[1:])
    if arguments.measure:
        kernels, how = arguments.measure
        print(json.dumps(measure(arguments.models[0], kernels, how)))
        return 0
    found: dict[str, dict[str, Usage]] = {}
    for model in arguments.models:
        with model.open("rb") as file:
            while file.read(1 << 24):
                pass
        runs: dict[str, list[Usage]] = {name: [] for name in KERNELS}
        for _ in range(arguments.repeats):
            for name, usages in runs.items():
                usages.append(in_child(model, name, "mapped") | in_child(model, name, "read"))
        found[model.name] = {name: least(usages) for name, usages in runs.items()}
    print(report(found))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files")
    parser.add_argument("--repeats", type=int, default=5, help="processes for each arm (5)")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def in_child(model: Path, kernels: str, how: str) -> Usage:
    """What `measure` finds in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-P", __file__, str(model), "--measure", kernels, how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{model.name} on {kernels}: {done.stderr.strip()}")
    usage: Usage = json.loads(done.stdout)
    return usage


def measure(model: Path, kernels: str, how: str) -> Usage:
    """Bytes made resident by a model that is "mapped" or "read"; seconds of loading, and with a prompt."""
    before = resident()
    start = time.perf_counter()
    threads = this_cpu().default_threads
    wanted = Load(model, threads, threads, mmap=how == "mapped")
    cache = LlamaModel(wanted, kernels=KERNELS[kernels]).open()
    loaded = time.perf_counter() - start
    cache.prefill([0] * PROMPT)
    ready = time.perf_counter() - start
    for _ in range(TOKENS):
        cache.forward(np.zeros(1, np.int32), np.array([-1], np.int32))
        cache.keep([0])
    times = {"load_s": loaded, "ready_s": ready} if how == "mapped" else {}
    return {how: resident() - before, **times}


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def least(usages: Sequence[Usage]) -> Usage:
    """The smallest of each figure: other processes only ever add."""
    return {name: min(usage[name] for usage in usages) for name in usages[0]}


def report(found: Mapping[str, Mapping[str, Usage]]) -> str:
    """A table in Markdown; in brackets the ratio to llama.cpp's own kernels."""
    lines = ["| " + " | ".join(("model", "kernels", *COLUMNS)) + " |", "|" + "---|" * (2 + len(COLUMNS))]
    for model, by_kernels in found.items():
        stock = by_kernels["stock"]
        for name, usage in by_kernels.items():
            cells = [
                f"{usage[key] / unit:.{digits}f} ({usage[key] / stock[key]:.2f})"
                for key, unit, digits in COLUMNS.values()
            ]
            lines.append("| " + " | ".join((model, name, *cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
