"""`specx drafter train`: a head that drafts from what its target computes, trained on this machine."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specx.backends.places import expanded
from specx.cli import SIGNALLED
from specx.cli.drafter.steps import Steps
from specx.cli.options.values import byte_count, duration
from specx.cli.terminal.console import notice, stdout, write
from specx.cli.terminal.files import read_text
from specx.cli.terminal.interrupts import on_end, on_interrupt

if TYPE_CHECKING:
    from specx.engine.making.train import TrainReport

__all__ = ["register"]

ROWS = 16384


Data = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="FILE", help="Text to read besides; may be repeated."),
]
SelfTokens = Annotated[
    int | None,
    typer.Option(
        "--self", metavar="N", min=0, help="Tokens that the model writes for it.", show_default="by --time"
    ),
]
StepCount = Annotated[
    int | None, typer.Option("--steps", metavar="N", min=1, help="Batches to learn from, whatever the time.")
]
Threads = Annotated[
    int | None,
    typer.Option("-t", "--threads", metavar="N", min=1, help="CPU threads.", show_default="all cores"),
]
Disk = Annotated[
    str, typer.Option("--disk", metavar="SIZE", help="Disk to use at most, for what was computed.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="FILE", help="The file to write.", show_default="TARGET-head.gguf"
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="auto|cpu|cuda|mps", help="What the head is trained on.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace a file that is there, and an unfinished training.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a training that was interrupted.")]


def register(group: typer.Typer) -> None:
    """Add the command to `group`."""
    group.command()(train)


def train(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The model to train a head for.")],
    data: Data = None,
    self_tokens: SelfTokens = None,
    time: Annotated[str, typer.Option("--time", metavar="TIME", help="For everything: 90s, 10m, 1h.")] = "1h",
    steps: StepCount = None,
    vocab: Annotated[
        int, typer.Option("--vocab", metavar="N", min=1, help="How many tokens it shall score.")
    ] = ROWS,
    threads: Threads = None,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Memory to use at most.")] = "4G",
    disk: Disk = "8G",
    device: Device = "auto",
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of everything that is drawn.")] = 0,
    output: Output = None,
    force: Force = False,
    resume: Resume = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Train a draft head: it reads the model's own states, and learns from text that the model writes."""
    from specx.backends.hub.models import find_model
    from specx.engine.making.train import TrainTold, Wanted
    from specx.engine.making.train import train as make
    from specx.engine.settings import Asked

    wanted = Wanted(
        texts=tuple(read_text(expanded(path)) for path in data or ()),
        self_tokens=self_tokens,
        seconds=duration("--time", time, least=1),
        steps=steps,
        rows=vocab,
        memory=byte_count("--memory", memory),
        disk=byte_count("--disk", disk),
        seed=seed,
        device=device,
        output=None if output is None else expanded(output),
        force=force,
        resume=resume,
    )
    model, stop = find_model(target), _Stop()
    with Steps(remaining=True) as bars, on_interrupt(stop.set), on_end(stop.set):
        shown = _Shown(bars, quiet=quiet)
        told = TrainTold(shown.progress, notice, stop.is_set)
        try:
            report = make(Asked(model, threads=threads), wanted, told)
        except KeyboardInterrupt:
            bars.close()
            notice(f"what was done is kept; go on with: {_again()}")
            if stop.ended_by:
                raise typer.Exit(SIGNALLED + stop.ended_by) from None
            raise
    if json:
        write(json_module.dumps(report.to_json()) + "\n")
    else:
        _show(report)


class _Stop:
    """Whether it is to end.

    Attributes:
        ended_by: SIGTERM or SIGHUP, if one of them came.
    """

    ended_by = 0

    def __init__(self) -> None:
        self._set = False

    def set(self, number: int = 0) -> None:
        """It is: Ctrl-C was pressed, or the signal of this number came."""
        self._set, self.ended_by = True, number

    def is_set(self) -> bool:
        """Whether it is."""
        return self._set


class _Shown:
    """What is shown meanwhile: bars on a terminal, elsewhere a line for each measurement."""

    def __init__(self, bars: Steps, *, quiet: bool) -> None:
        self._bars, self._quiet, self._last = bars, quiet, ""

    def progress(self, what: str, fraction: float, detail: str) -> None:
        """`fraction` of `what` is done, of which `detail` is to be said."""
        if self._quiet:
            return
        self._bars.update(what, fraction, detail)
        if what == "training" and detail != self._last and not sys.stderr.isatty():
            self._last = detail
            notice(f"{fraction:.0%} of the training: {detail}")


def _again() -> str:
    """The command line that goes on."""
    words = ["specx", *sys.argv[1:]]
    return shlex.join([word for word in words if word not in ("--resume", "--force")] + ["--resume"])


def _show(report: TrainReport) -> None:
    ended = ", which ended when nothing more was gained" if report.no_longer_paid else ""
    stdout().print(
        f"learned from {report.learned:,} tokens ({report.captured:,} different ones{ended}); "
        f"scores {report.rows:,} tokens"
    )
    speed = "" if report.speedup is None else f"; predicted: {report.speedup:.2f}x plain speed"
    stdout().print(f"on text it has not seen: {report.length:.2f} tokens a step{speed}")
    stdout().print(f"written: {report.path}; delete it to undo this")
