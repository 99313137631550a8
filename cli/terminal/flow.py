"""Words as they stream to a terminal: one that does not fit into the line begins the next.

What has come of a word is shown at once. Where the rest does not fit, it is taken away and written anew.
"""

from __future__ import annotations

import os
import re
import sys

from specx.backends.printable import printable
from specx.cli.terminal.console import stdout, write

__all__ = ["Flow"]

PIECES = re.compile(r"\n|[^\S\n]+|\S+")
TAB = 4  # columns
NARROWEST = 20  # columns below which lines end anywhere
SKIN, VARIANT, JOINER = "\U0001f3fb-\U0001f3ff", "\ufe0f", "\u200d"
JOINED = re.compile(f"[{SKIN}{VARIANT}{JOINER}]")
"""What makes one emoji of several characters on some terminals, and not on others."""


class Flow:
    """A text on standard output, in lines that end between words; a pipe gets it as it is."""

    def __init__(self) -> None:
        self._able = sys.stdout.isatty() and not stdout().is_dumb_terminal
        self._width = 0
        self._column = 0  # of the cursor
        self._word = ""  # what the line ends with, as far as it can be taken away
        self._gap = ""  # blanks that are written when something follows them in their line

    def add(self, text: str) -> None:
        """More of the text."""
        width = self._columns() if self._able else 0
        if width < NARROWEST:
            write(text)
            return
        for piece in PIECES.findall(printable(text)):
            if piece == "\n":
                self._begin_line()
            elif piece.isspace():
                before = " " * ((self._column + _width(self._gap)) % TAB)
                blanks = (before + piece).expandtabs(TAB).removeprefix(before)
                self._gap, self._word = self._gap + blanks, ""
            else:
                self._go_on(piece, width)

    def _go_on(self, piece: str, width: int) -> None:
        """More of a word, or a new one after `_gap`."""
        shown, word = _width(self._word), self._word + piece
        full = self._column + _width(self._gap + piece) > width
        if full and self._column > shown and not JOINED.search(self._word):
            if _width(word) <= width:  # it has room in a line of its own
                if shown:
                    sys.stdout.write(f"\x1b[{shown}D\x1b[K")
                piece = word
                self._begin_line()
            elif self._gap:
                self._begin_line()
        line, begun = self._gap, False
        for char in piece:
            if self._column + _width(line + char) > width:
                self._write(line)
                self._begin_line()
                line, begun = char, True
            else:
                line += char
        self._write(line)
        self._word = line if begun else word  # what is in the line before cannot be taken away any more

    def _write(self, text: str) -> None:
        write(text)
        self._column += _width(text)
        self._gap = ""

    def _begin_line(self) -> None:
        write("\n")
        self._column, self._word, self._gap = 0, "", ""

    def _columns(self) -> int:
        """Columns that a line may fill: all but the last one, where terminals differ."""
        width = os.get_terminal_size(sys.stdout.fileno()).columns - 1
        if width != self._width:  # the line may go on elsewhere now: what is shown of it stays
            self._width, self._word = width, ""
        return width


def _width(text: str) -> int:
    """Columns that it takes at most, which it does where no emoji are joined."""
    from rich.cells import cell_len

    if text.isascii():
        return len(text)
    return sum(_alone(char) if JOINED.match(char) else cell_len(char) for char in text)


def _alone(char: str) -> int:
    return {VARIANT: 1, JOINER: 0}.get(char, 2)
