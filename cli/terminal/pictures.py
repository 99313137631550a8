"""Pictures in files, written whole or not at all. They need matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from specx.cli.terminal.files import write_atomically

__all__ = ["picture"]

DOTS = 150  # an inch


@contextmanager
def picture(path: Path, style: Mapping[str, Any] | None = None, **options: Any) -> Iterator[Any]:
    """A matplotlib Figure to draw into, which is written to `path` at the end.

    Text is drawn as it is: names of models and of prompts may have dollar signs, between which matplotlib
    would read a formula.

    Args:
        path: PNG, SVG or PDF by its ending.
        style: of matplotlib's parameters, what differs from those of the user.
        options: of the figure.

    Raises:
        SpecxError: it cannot be written; an older file is left as it was.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False, **(style or {})}):
        figure = Figure(layout="constrained", **options)
        yield figure
        drawn = BytesIO()
        figure.savefig(drawn, dpi=DOTS, format=path.suffix[1:].lower())
    write_atomically(path, drawn.getvalue())
