"""Write what every command says of itself into docs/cli.md: `python -P scripts/cli_reference.py`.

The part between the two marks is made anew, the rest of the file is left as it is. `--check` writes nothing
and fails if it would change anything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from specx.cli.commands import app, every_command

__all__ = ["current", "reference"]

DOC = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
BEGIN = "<!-- made by scripts/cli_reference.py: change the code, not this -->\n"
END = "<!-- end of what is made -->\n"
WIDTH = 100


def reference() -> str:
    """The help of every command, as it is shown on a wide terminal."""
    parts = [f"### `{name}`\n\n```text\n{text}\n```\n" for name, text in _helps()]
    return "\n".join(parts)


def current(doc: str) -> str:
    """The document with its made part as it is to be.

    Raises:
        ValueError: it has no marks.
    """
    before, rest = _parted(doc, BEGIN)
    _made, after = _parted(rest, END)
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


def _parted(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    if not found:
        raise ValueError(f"there is no line {mark.strip()}")
    return before, after


def _helps() -> Iterator[tuple[str, str]]:
    group: Any = typer.main.get_command(app)
    with group.make_context("specx", [], resilient_parsing=True, **_WIDE) as root:
        for name, command in every_command().items():
            yield from _help_of(name, command, root)


_WIDE = {"terminal_width": WIDTH, "max_content_width": WIDTH}


def _help_of(name: str, command: Any, parent: Any) -> Iterator[tuple[str, str]]:
    context = command.context_class(command, info_name=name, parent=parent, **_WIDE)
    below = getattr(command, "commands", {})
    if not below:
        lines = command.get_help(context).splitlines()
        yield context.command_path, "\n".join(line.rstrip() for line in lines)
    for inner, each in below.items():
        yield from _help_of(inner, each, context)


def main() -> int:
    """Write or check; returns the exit code."""
    doc = DOC.read_text(encoding="utf-8")
    wanted = current(doc)
    if "--check" not in sys.argv[1:]:
        DOC.write_text(wanted, encoding="utf-8")
    elif wanted != doc:
        print("docs/cli.md is not current: python -P scripts/cli_reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
