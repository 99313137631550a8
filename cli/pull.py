"""`specx pull`: fetch a model from Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from specx.backends.printable import one_line
from specx.cli.terminal.console import BAR_GONE, notice, stderr, write
from specx.cli.terminal.restore import changed

if TYPE_CHECKING:
    from specx.backends.hub.download import PullProgress

__all__ = ["pull", "register", "transfer_bar"]


def register(app: typer.Typer) -> None:
    """Add `pull` to `app`."""
    app.command("pull")(pull)


def pull(
    spec: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="ORG/REPO, ORG/REPO:QUANT, ORG/REPO/FILE.gguf or an address."),
    ],
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="This file of the repository.")
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option(
            "--quant",
            metavar="QUANT",
            help="This quantization.",
            show_default="Q4_K_M, or the nearest there is",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="NAME", help="A branch, tag or commit.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token", metavar="TOKEN", help="Access token.", show_default="HF_TOKEN, or your saved login"
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only look for what is already here.")] = False,
) -> None:
    """Download a model once, into the cache that llama.cpp and Hugging Face tools use too."""
    from specx.backends.hub import download

    with transfer_bar() as progress:
        path = download.pull(
            spec, file=file, quant=quant, revision=revision, token=token, offline=offline, progress=progress
        )
    write(f"{path}\n")


@contextmanager
def transfer_bar() -> Iterator[PullProgress]:
    """A bar on stderr with size, speed and remaining time; without a terminal, one line for each file."""
    from rich.filesize import decimal
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from specx.backends.hub.transfer import CHECKING

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    terminal = stderr().is_terminal
    seen = ""
    with (
        changed(lambda: BAR_GONE) if terminal else nullcontext(),
        Progress(*columns, console=stderr(), transient=True, disable=not terminal) as bar,
    ):
        task = bar.add_task("", total=None, visible=False)

        def progress(file: str, done: int, total: int) -> None:
            nonlocal seen
            if not terminal and file != seen and not file.startswith(CHECKING):
                notice(f"fetching {file} ({decimal(total)} in all)")
            if file != seen:
                bar.update(task, description=one_line(file), visible=True)
                seen = file
            bar.update(task, completed=done, total=total)

        yield progress
