"""`specx cache`: what specx keeps on this machine, and how to be rid of it."""

from __future__ import annotations

import json as json_module
from datetime import UTC, datetime
from typing import Annotated

import typer

__all__ = ["register"]

DAMAGED = "damaged"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="Show or clear what specx keeps on this machine.", no_args_is_help=True)
    group.command()(show)
    group.command()(clear)
    app.add_typer(group, name="cache")


def show(json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False) -> None:
    """List what is kept: measurements, calibrations, and the text of earlier answers (kind: history)."""
    from specx.backends.places import NO_HOME
    from specx.backends.store import Store, cache_dir
    from specx.cli.terminal.console import notice, show_table, write

    root = cache_dir()
    entries = Store(root).entries()
    if json:
        records = [
            {
                "kind": e.kind,
                "key": e.key,
                "damaged": e.damaged,
                "bytes": e.size,
                "modified": e.modified,
                "path": str(e.path),
            }
            for e in entries
        ]
        write(json_module.dumps({"directory": root and str(root), "entries": records}) + "\n")
        return
    if not entries:
        write("nothing is kept" + (f": {NO_HOME}\n" if root is None else f" in {root}\n"))
        return
    write(f"{root}\n")
    rows = [
        (e.kind, f"{e.size:,}", _when(e.modified), "damaged" if e.damaged else "", e.key) for e in entries
    ]
    show_table(("kind", "bytes", "last written", "state", "key"), rows)
    if any(entry.damaged for entry in entries):
        notice(f"damaged entries are not used; `specx cache clear {DAMAGED}` removes them")


def _when(modified: float) -> str:
    return datetime.fromtimestamp(modified, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def clear(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help="Only this kind of entry, or damaged: what could not be read."),
    ] = None,
) -> None:
    """Remove what is kept."""
    from specx.backends.errors import UsageError
    from specx.backends.places import NO_HOME
    from specx.backends.store import KINDS, Store, cache_dir
    from specx.cli.terminal.console import notice

    kinds = (*KINDS, DAMAGED)
    if kind is not None and kind not in kinds:
        raise UsageError(f"there is no kind {kind!r} of cache entry", f"choose one of {', '.join(kinds)}")
    only_damaged = kind == DAMAGED
    root = cache_dir()
    removed = Store(root, notice).clear(None if only_damaged else kind, only_damaged=only_damaged)
    if root is None:
        notice(f"nothing is kept: {NO_HOME}")
    else:
        notice(f"removed {removed} {'entry' if removed == 1 else 'entries'} from {root}")
