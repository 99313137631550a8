"""Tables of comma- or tab-separated values, row by row, and rows that are written in the same dialect."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from specx.backends.errors import UsageError
from specx.backends.printable import is_text
from specx.engine.batch.source import LONGEST, Line

__all__ = ["Dialect", "Row", "Table"]

KEPT = "surrogateescape"
"""Bytes that are not UTF-8 pass through a table as they are."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a table is written: what stands between cells, and what ends a row."""

    delimiter: str = ","
    end: str = "\n"

    def row(self, cells: Sequence[str]) -> bytes:
        """A row as a table has it; a cell is quoted where it must be."""
        text = io.StringIO()
        # By itself the writer leaves a lone carriage return unquoted, which a reader takes for the row's end.
        quoting: Literal[0, 1] = csv.QUOTE_ALL if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL
        writer = csv.writer(text, delimiter=self.delimiter, lineterminator=self.end, quoting=quoting)
        writer.writerow(cells)
        return text.getvalue().encode(errors=KEPT)


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        line: where it begins, from 1.
        cells: as many as there are columns.
        problem: what is wrong with it, if anything is.
    """

    line: int
    cells: tuple[str, ...]
    problem: str | None = None


class Table:
    """The rows of a table, below its header.

    Args:
        lines: of the input; the first one that is not empty has the names of the columns.
        name: what messages call it.
        tabs: tabs stand between the cells. Otherwise commas do, or semicolons if the header has more of them.

    Attributes:
        columns: names, each once; only an empty one may be there several times, as behind the last cell.
        dialect: how it is written.

    Raises:
        UsageError: there is no header, or it cannot be one, or a quote is left open in it.
    """

    def __init__(self, lines: Iterator[Line], *, name: str, tabs: bool) -> None:
        self._lines, self._name = lines, name
        self._line = 0  # the last one that was read
        self._ended = False  # somebody wanted another line
        csv.field_size_limit(LONGEST)
        first = next((line for line in lines if line.content.strip()), None)
        if first is None:
            raise UsageError(f"{name} is empty", "a table begins with the names of its columns")
        data = first.content
        semicolons = data.count(b";") > data.count(b",")
        delimiter = "\t" if tabs else ";" if semicolons else ","
        self.dialect = Dialect(delimiter, "\r\n" if first.data.endswith(b"\r\n") else "\n")
        self._reader = csv.reader(self._texts(first), delimiter=delimiter)
        try:
            self.columns = tuple(self._next() or ())
        except csv.Error as problem:
            raise UsageError(f"{name} has no header: {problem}", "check that it is a table") from problem
        for column in self.columns:
            if column and self.columns.count(column) > 1:
                raise UsageError(f"{name} has two columns {column!r}", "give each a name of its own")
            if not is_text(column):
                raise UsageError(f"a column of {name} is not UTF-8", "convert it first: `iconv -t UTF-8`")

    def __iter__(self) -> Iterator[Row]:
        n = len(self.columns)
        while True:
            begin = self._line + 1
            try:
                cells = self._next()
            except csv.Error as problem:
                yield Row(begin, ("",) * n, str(problem))
                continue
            if cells is None:
                return
            if not cells:
                continue  # an empty line
            wrong = None
            if len(cells) != n:
                has = "one cell" if len(cells) == 1 else f"{len(cells)} cells"
                wrong = f"it has {has}, and the table has {n} columns"
            elif not all(map(is_text, cells)):
                wrong = "it is not UTF-8"
            yield Row(begin, tuple([*cells, *[""] * n][:n]), wrong)

    def _next(self) -> list[str] | None:
        """The cells of the next row, none of an empty line; None at the end.

        Raises:
            UsageError: a quote is left open, so that all behind it would be one cell.
        """
        cells = next(self._reader, None)
        if cells and self._ended:  # within a row no more lines are wanted but for what is quoted
            open_cell = cells[-1]
            lines = open_cell.count("\n") + (not open_cell.endswith("\n"))
            raise UsageError(
                f"line {self._line - lines + 1} of {self._name} opens a quote that is never closed",
                'close it; within quotes a quote is written twice: ""',
            )
        return cells

    def _texts(self, first: Line) -> Iterator[str]:
        yield self._text(first)
        for line in self._lines:
            yield self._text(line)
        self._ended = True

    def _text(self, line: Line) -> str:
        if not line.whole:
            raise UsageError(
                f"line {line.number} of {self._name} is longer than {LONGEST:,} bytes",
                "is a quote left open?",
            )
        self._line = line.number
        return line.data.decode(errors=KEPT)
