"""`specx cache`: what specx keeps on this machine, and how to be rid of it."""

from __future__ import annotations

import json as json_module
from datetime import UTC, datetime
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="Show or clear what specx keeps on this machine.", no_args_is_help=True)
    group.command()(show)
    group.command()(clear)
    app.add_typer(group, name="cache")


def show(json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False) -> None:
    """List what is kept: measurements, calibrations, and the text of earlier answers (kind: history)."""
    from specx.backends.store import Store, cache_dir
    from specx.cli.console import show_table, write

    entries = Store(cache_dir()).entries()
    if json:
        records = [
            {"kind": e.kind, "key": e.key, "bytes": e.size, "modified": e.modified, "path": str(e.path)}
            for e in entries
        ]
        write(json_module.dumps({"directory": str(cache_dir()), "entries": records}) + "\n")
        return
    if not entries:
        write(f"nothing is kept in {cache_dir()}\n")
        return
    write(f"{cache_dir()}\n")
    rows = [(e.kind, f"{e.size:,}", _when(e.modified), e.key) for e in entries]
    show_table(("kind", "bytes", "last used", "key"), rows)


def _when(modified: float) -> str:
    return datetime.fromtimestamp(modified, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def clear(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="Only this kind of entry.")] = None,
) -> None:
    """Remove what is kept."""
    from specx.backends.errors import UsageError
    from specx.backends.store import KINDS, Store, cache_dir
    from specx.cli.console import notice

    if kind is not None and kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r} of cache entry", f"choose one of {', '.join(KINDS)}")
    removed = Store(cache_dir()).clear(kind)
    notice(f"removed {removed} {'entry' if removed == 1 else 'entries'} from {cache_dir()}")
