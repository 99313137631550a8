"""Columns of text on stdout. On a terminal they are as wide as it is, and long cells go on in the next line,
between two words; a pipe has no width, and gets each row in one line."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import zip_longest

from specx.backends.printable import one_line
from specx.cli.terminal.console import stdout

__all__ = ["LABEL", "field_lines", "show_fields", "show_table"]

LABEL = 15  # columns of the names of fields
GAP = 2  # columns between two cells
NARROWEST, ENOUGH = 8, 24  # columns that a cell keeps, and one in the last column keeps longer
NUMBERS = ("size", "bytes")  # columns that are aligned to the right


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], whole: Collection[str] = ()) -> None:
    """Aligned columns on stdout, the first row of them in bold; those in `whole` are the last to give way."""
    from rich.text import Text

    lines = [[one_line(cell) for cell in line] for line in (columns, *rows)]
    right = [name in NUMBERS for name in columns]
    for i, line in enumerate(_laid_out(lines, right, [name in whole for name in columns])):
        for text in line:
            stdout().print(Text(text, style="bold" if i == 0 else ""))


def show_fields(rows: Iterable[tuple[str, str]], label: int = LABEL) -> None:
    """Names in bold, and what there is to say of each, on stdout."""
    from rich.text import Text

    for line in field_lines(rows, label):
        stdout().print(Text.assemble((line[:label], "bold"), line[label:]))


def field_lines(rows: Iterable[tuple[str, str]], label: int = LABEL) -> Iterator[str]:
    """The same as lines: names in `label` columns, and beside them what there is to say."""
    for name, text in rows:
        beside = _wrapped(one_line(text), None if (width := _width()) is None else width - label)
        for i, line in enumerate(beside):
            yield f"{'' if i else name:<{label}}{line}"


def _width() -> int | None:
    """Columns of the terminal; None for a pipe or a file."""
    return stdout().width if sys.stdout.isatty() else None


def _laid_out(
    lines: Sequence[Sequence[str]], right: Sequence[bool], whole: Sequence[bool]
) -> Iterator[list[str]]:
    """Each of `lines` of cells as the lines of text that it takes."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    narrowed = _narrowed(widths, _width(), whole)
    for line in lines:
        cells = [
            _wrapped(cell, None if width == whole else width)
            for cell, width, whole in zip(line, narrowed, widths, strict=True)
        ]
        yield [
            (" " * GAP).join(map(_padded, beside, narrowed, right)).rstrip()
            for beside in zip_longest(*cells, fillvalue="")
        ]


def _narrowed(widths: list[int], room: int | None, whole: Sequence[bool]) -> list[int]:
    """Widths of columns that have `room` beside each other: the last one gives way first, then the widest."""
    narrowed, last = list(widths), len(widths) - 1
    while room is not None and sum(narrowed) + GAP * last > room:
        ready = [n for n in range(last + 1) if not whole[n] and narrowed[n] > NARROWEST] or range(last + 1)
        widest = last if narrowed[last] > ENOUGH else max(ready, key=narrowed.__getitem__)
        if narrowed[widest] <= NARROWEST:
            break
        narrowed[widest] -= 1
    return narrowed


def _padded(cell: str, width: int, right: bool) -> str:
    from rich.cells import cell_len

    blank = " " * (width - cell_len(cell))
    return blank + cell if right else cell + blank


def _wrapped(text: str, width: int | None) -> list[str]:
    """`text` in lines of `width` columns, broken between words where there are any."""
    if width is None:
        return [text]
    from rich.text import Text

    return [line.plain.rstrip() for line in Text(text).wrap(stdout(), max(width, NARROWEST))] or [""]
