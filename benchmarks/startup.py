"""Seconds of a whole process that writes one token, beside llama.cpp's own program on the same file.

    python -P benchmarks/startup.py MODEL.gguf... --peer PATH/llama-completion [--runs 20] [--files 20]

The two take turns, after runs of specx that fill a store of its own: what is timed is the second use. Of the
first model also a shell loop over small files, a server in the background, and `--help`. Printed are medians,
and the median of the paired differences (of the loop: of the ratios) with its 95% interval, in seconds of
wall time and of CPU time of all threads. CPU time is comparable beside other work, though waiting threads
count in it. Both have specx's context, unless `--peer-context 0` leaves the peer its own.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import specx.cli
from specx.engine.bench.intervals import median_interval

PROMPT = "Once upon a time"
WARM_RUNS = 4  # at most: until nothing is said of measuring
MEASURED = ("compared kernels", "measured this model", "busy")
SPECX = Path(sys.executable).with_name("specx")


class Taken(NamedTuple):
    """What processes took, in seconds."""

    wall: float
    cpu: float


class Row(NamedTuple):
    """One line of the table: medians, and the median of what is paired with its interval."""

    what: str
    own: Taken
    peer: Taken | None
    paired: Taken | None
    interval: tuple[float | None, float | None]


def main() -> int:
    arguments = _parser().parse_args()
    layers = Path(specx.cli.__file__).parents[1]
    for layer in ("cli", "engine", "drafters", "backends", "kernels"):  # as an installation does
        compileall.compile_dir(layers / layer, quiet=2)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "SPECX_CACHE": str(Path(folder) / "store")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        rows = list(_rows(arguments, Path(folder), environment))
    print(_table(rows))
    print(json.dumps([row._asdict() for row in rows]))
    return 0


def _rows(arguments: argparse.Namespace, folder: Path, environment: dict[str, str]) -> Iterator[Row]:
    runs, first = arguments.runs, arguments.models[0]
    for model in arguments.models:
        _warm(model, environment)
        own, peer = own_command(model, "-p", PROMPT), peer_command(arguments, model, "-p", PROMPT)
        yield _compared(model.name, runs, _timer(own, environment), _timer(peer, environment))
    files = _files(folder, arguments.files)
    own = _loop([own_command(first, "-f", str(file), "</dev/null") for file in files])
    peer = None
    if arguments.peer:
        peer = _loop([peer_command(arguments, first, "-f", str(file), "</dev/null") or [] for file in files])
    loops = max(2, runs // 4)
    yield _compared(
        f"{len(files)} files",
        loops,
        _timer(own, environment),
        _timer(peer, environment),
        ratio=True,
    )
    with _server(first, environment):
        served = [str(SPECX), "complete", str(first), "-p", PROMPT, "-n", "1", "--temp", "0", "-q"]
        yield _compared("with a server", runs, _timer(served, environment), None)
    yield _compared("--help", runs, _timer([str(SPECX), "--help"], environment), None)


def own_command(model: Path, *prompt: str) -> list[str]:
    """The command that loads a model and writes one token."""
    return [str(SPECX), "complete", str(model), *prompt, "-n", "1", "--temp", "0", "-q", "--server", "no"]


def peer_command(arguments: argparse.Namespace, model: Path, *prompt: str) -> list[str] | None:
    """The same of llama.cpp's program, if there is one."""
    if arguments.peer is None:
        return None
    context = ["-c", str(arguments.peer_context)] if arguments.peer_context else []
    return [str(arguments.peer), "-m", str(model), *prompt, "-n", "1", "--temp", "0", "-no-cnv", *context]


def timed(command: Sequence[str], environment: dict[str, str]) -> Taken:
    """Run a command to its end, its children included.

    Raises:
        SystemExit: it failed.
    """
    began = time.perf_counter()
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} ended with exit code {process.returncode}: {' '.join(command)}")
    return Taken(time.perf_counter() - began, used.ru_utime + used.ru_stime)


def _timer(command: list[str] | None, environment: dict[str, str]) -> Any:
    return None if command is None else lambda: timed(command, environment)


def _compared(
    what: str,
    runs: int,
    own: Callable[[], Taken],
    peer: Callable[[], Taken] | None,
    *,
    ratio: bool = False,
) -> Row:
    """Time both in turns, the one that begins changing."""
    pairs: list[tuple[Taken, Taken | None]] = []
    for i in range(runs):
        if peer is not None and i % 2:
            other = peer()
            pairs.append((own(), other))
        else:
            mine = own()
            pairs.append((mine, peer() if peer is not None else None))
    return summary(what, pairs, ratio=ratio)


def summary(what: str, pairs: Sequence[tuple[Taken, Taken | None]], *, ratio: bool = False) -> Row:
    """A line of the table from what each pair of runs took."""
    mine = [own for own, _ in pairs]
    both = [(own, peer) for own, peer in pairs if peer is not None]
    if not both:
        interval = median_interval([own.wall for own in mine])
        return Row(what, _median(mine), None, None, (interval.low, interval.high))
    apart = [
        Taken(*(a / b if ratio else a - b for a, b in zip(own, peer, strict=True))) for own, peer in both
    ]
    interval = median_interval([one.wall for one in apart])
    return Row(
        what, _median(mine), _median([p for _, p in both]), _median(apart), (interval.low, interval.high)
    )


def _median(taken: Sequence[Taken]) -> Taken:
    return Taken(*(statistics.median(values) for values in zip(*taken, strict=True)))


def _warm(model: Path, environment: dict[str, str]) -> None:
    """Fill the store, and the file cache with the model."""
    command = [argument for argument in own_command(model, "-p", PROMPT) if argument != "-q"]
    for _ in range(WARM_RUNS):
        told = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=True
        ).stderr
        if not any(words in told for words in MEASURED):
            return
    print(
        f"{model.name}: what steps cost is measured again in every run, as this machine is busy",
        file=sys.stderr,
    )


def _files(folder: Path, count: int) -> list[Path]:
    files = [folder / f"{i}.txt" for i in range(count)]
    for i, file in enumerate(files):
        file.write_text(f"Line {i} of a file begins so: {PROMPT}", encoding="utf-8")
    return files


def _loop(commands: Sequence[Sequence[str]]) -> list[str]:
    return ["sh", "-ec", "\n".join(" ".join(command) for command in commands)]


@contextlib.contextmanager
def _server(model: Path, environment: dict[str, str]) -> Iterator[None]:
    quiet: dict[str, Any] = {"env": environment, "capture_output": True}
    subprocess.run([SPECX, "serve", model, "--background"], check=True, **quiet)
    try:
        yield
    finally:
        subprocess.run([SPECX, "serve", model, "--stop"], check=False, **quiet)


def _table(rows: Sequence[Row]) -> str:
    lines = [f"{'':<28}{'specx':>14}{'peer':>14}{'paired':>15}   95% of the paired wall time"]
    lines.append(f"{'seconds':<28}{'wall   CPU':>14}{'wall   CPU':>14}{'wall    CPU':>15}")
    for row in rows:
        peer = "" if row.peer is None else f"{row.peer.wall:.3f} {row.peer.cpu:.3f}"
        paired = "" if row.paired is None else f"{row.paired.wall:+.3f} {row.paired.cpu:+.3f}"
        low, high = row.interval
        interval = "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"
        own = f"{row.own.wall:.3f} {row.own.cpu:.3f}"
        lines.append(f"{row.what[:27]:<28}{own:>14}{peer:>14}{paired:>15}   {interval}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--peer", type=_program, help="llama.cpp's llama-completion; left out without it")
    parser.add_argument("--peer-context", type=int, default=4096, help="its -c; 0 for its own default")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--files", type=int, default=20)
    return parser


def _program(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise argparse.ArgumentTypeError(f"there is no program {name}")
    return Path(found)


if __name__ == "__main__":
    sys.exit(main())
