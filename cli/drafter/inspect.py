"""`specx drafter inspect`: how well one model can draft for another, before either is loaded."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specx.backends.errors import UsageError
from specx.backends.places import expanded
from specx.cli.drafter.listing import percent
from specx.cli.terminal.console import notice, write
from specx.cli.terminal.tables import show_fields

if TYPE_CHECKING:
    from specx.engine.report.overlap import Inspection

__all__ = ["register"]


def register(group: typer.Typer) -> None:
    """Add the command to `group`."""
    group.command()(inspect)


def inspect(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The model to draft for.")],
    draft: Annotated[str, typer.Argument(metavar="DRAFT", help="The model that would draft.")],
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", metavar="FILE", help="Text to compare on.", show_default="the built-in prompts"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Say how well one model can draft for another: vocabularies, memory, what is predicted."""
    from specx.backends.hub.models import find_model
    from specx.cli.terminal.files import read_text
    from specx.engine.report.overlap import inspect_drafter, sample_text
    from specx.engine.settings import Asked

    sample = sample_text() if text is None else read_text(expanded(text))
    if not sample.strip():
        raise UsageError(f"there is no text in {text}", "give a file with some lines of it")
    found = inspect_drafter(Asked(find_model(target)), find_model(draft), sample, notice)
    if json:
        write(json_module.dumps(found.to_json()) + "\n")
    else:
        _show(found)


def _show(found: Inspection) -> None:
    show_fields((*_files(found), *_prospects(found)))


def _files(found: Inspection) -> list[tuple[str, str]]:
    """What the two files are, and have in common."""
    overlap = found.overlap
    if overlap is None:
        return [("target", found.target.name), ("draft head", f"{found.draft.name}: {found.head}")]
    return [
        ("target", f"{found.target.name}, {overlap.target_size:,} tokens"),
        ("draft", f"{found.draft.name}, {overlap.draft_size:,} tokens"),
        ("common tokens", f"{percent(overlap.common)} of the target's, by their bytes"),
        ("one to one", f"{overlap.one_to_one:.1%} of {overlap.sample_tokens:,} tokens of the sample"),
        ("draft tokens", f"{overlap.draft_per_target:.2f} for each token of the target"),
        ("lost", f"{overlap.lost:.1%} of the tokens, there and back"),
    ]


def _prospects(found: Inspection) -> list[tuple[str, str]]:
    """What is known of it as a drafter."""
    usable = found.usable
    if usable is None:
        return [("cannot draft", found.reason or "")]
    forecast = usable.forecast
    counted = f"counted on {forecast.remembered:,} tokens" if forecast.remembered else "assumed"
    timed = "measured" if usable.measured else "by its size"
    rows = [
        ("made", usable.made),
        ("memory", f"{usable.memory / 2**20:.0f} MiB beside the target"),
        ("right", f"{percent(forecast.acceptance)} of its tokens, {counted}"),
    ]
    if found.known or usable.measured:
        rows.append(("time", f"{forecast.token_ms:.1f} ms a token, {timed}"))
    if found.known:
        rows.append(("predicted", f"{usable.speedup:.2f}x the speed of plain decoding"))
    else:
        rows.append(("predicted", "nothing before the target was timed on a quiet machine (specx plan)"))
    return [row for row in rows if row[1]]
