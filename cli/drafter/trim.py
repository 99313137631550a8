"""`specx drafter trim`: a draft model that scores the tokens a target writes, and no others."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from specx.backends.places import expanded
from specx.cli.drafter.steps import Steps
from specx.cli.terminal.console import notice, stdout, write
from specx.cli.terminal.files import read_text

__all__ = ["register"]

KEEP, TOKENS = 16384, 6000


def register(group: typer.Typer) -> None:
    """Add the command to `group`."""
    group.command()(trim)


def trim(
    draft: Annotated[str, typer.Argument(metavar="DRAFT", help="The draft model.")],
    target: Annotated[
        str, typer.Option("--for", metavar="TARGET", help="The model that it is to draft for.")
    ],
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", min=1, help="How many tokens it shall score.")
    ] = KEEP,
    tokens: Annotated[
        int,
        typer.Option("--tokens", metavar="N", min=1, help="Text that the target writes for it, in tokens."),
    ] = TOKENS,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE", help="More text to count tokens in; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The file to write.", show_default="DRAFT.trim16k.gguf"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Make a draft model faster: it scores only the tokens that the target is likely to write."""
    from specx.backends.hub.models import find_model
    from specx.engine.making.trim import Trimming, Wanted
    from specx.engine.making.trim import trim as make

    wanted = Wanted(
        keep=keep,
        tokens=tokens,
        texts=tuple(read_text(path) for path in text or ()),
        output=None if output is None else expanded(output),
        force=force,
    )
    with Steps() as bars:
        report = make(find_model(draft), find_model(target), wanted, Trimming(bars.update, notice))
    if json:
        write(json_module.dumps(report.to_json()) + "\n")
        return
    stdout().print(
        f"{report.rows:,} of {report.vocabulary:,} tokens, chosen on {report.counted:,} tokens of text "
        f"(a draft reads {report.step_bytes / 1e6:.0f} MB, before {report.whole_step_bytes / 1e6:.0f} MB)"
    )
    stdout().print(f"written: {report.path}; delete it to undo this")
