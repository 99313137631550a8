"""`specx drafter list`: what on this machine can draft for a model, and what cannot."""

from __future__ import annotations

import json as json_module
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from specx.cli.terminal.console import notice, stdout, write
from specx.cli.terminal.tables import show_table

if TYPE_CHECKING:
    from specx.engine.report.drafters import DrafterReport, Usable

__all__ = ["percent", "register", "shortened"]

NAME = 30  # characters of a name in a table that fits into 80 columns


def register(group: typer.Typer) -> None:
    """Add the command to `group`."""
    group.command("list")(list_them)


def list_them(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The model to draft for, by file or name.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """List what on this machine can draft for a model, best first, and why the rest cannot."""
    from specx.backends.hub.models import find_model
    from specx.engine.report.drafters import list_drafters
    from specx.engine.settings import Asked

    found = list_drafters(Asked(find_model(model)), notice)
    if json:
        write(json_module.dumps(found.to_json()) + "\n")
    else:
        _show(found, model)


def _show(found: DrafterReport, model: str | None) -> None:
    stdout().print(f"drafters for {found.model.name}")
    if found.plain_reason:
        stdout().print(f"none: it decodes plainly, because {found.plain_reason}")
        return
    if found.usable:
        show_table(
            ("name", "predicted", "right", "ms", "memory"),
            [_row(usable, known=found.known) for usable in found.usable],
        )
    else:
        stdout().print(
            "no other model on this machine can draft for it; specx drafter shrink makes one of it, and "
            "specx drafter train a head for it"
        )
    for usable in found.usable:
        if notes := _notes(usable):
            stdout().print(f"{shortened(usable.forecast.candidate.name)}: {notes}")
    for unfit in found.unfit:
        stdout().print(f"{unfit.name} cannot draft: {unfit.reason}")
    if not found.known:
        command = "specx plan" if model is None else f"specx plan {shlex.quote(model)}"
        stdout().print(f"nothing is predicted before its steps were timed on a quiet machine: {command}")


def _notes(usable: Usable) -> str:
    """What else there is to know of a drafter."""
    candidate = usable.forecast.candidate
    kind = "a draft head" if candidate.is_head else ""
    translated = "of another vocabulary" if candidate.translated else ""
    return ", ".join(filter(None, (kind, translated, usable.made)))


def _row(usable: Usable, *, known: bool) -> tuple[str, ...]:
    forecast = usable.forecast
    timed = known or usable.measured
    return (
        shortened(forecast.candidate.name),
        f"{usable.speedup:.2f}x" if known else "-",
        f"{percent(forecast.acceptance)} {'counted' if forecast.remembered else 'assumed'}",
        f"{forecast.token_ms:.1f} {'measured' if usable.measured else 'by size'}" if timed else "-",
        f"{usable.memory / 2**20:.0f} MiB",
    )


def percent(share: float) -> str:
    """A share between 0 and 1."""
    return f"{share:.0%}"


def shortened(name: str) -> str:
    """A name that fits into a table: its end tells more than its middle."""
    return name if len(name) <= NAME else f"{name[:10]}...{name[-(NAME - 13) :]}"
