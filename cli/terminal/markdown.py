"""Markdown that is rendered while it streams."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import accumulate, takewhile
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import Heading, HorizontalRule, Markdown
from rich.segment import Segment, Segments
from rich.text import Text

from specx.backends.printable import printable
from specx.cli.terminal.console import REFRESH_EVERY, stdout

__all__ = ["MarkdownStream", "finished", "rendered"]

RULE = 40  # characters of a line between two parts


class MarkdownStream:
    """Blocks are printed for good once they are finished; only the last one is drawn again and again."""

    def __init__(self) -> None:
        self._open = ""
        self._tail = Tail()
        self._drawn = 0.0
        self._begun = False

    def add(self, text: str) -> None:
        """More of the text."""
        self._open += printable(text)
        while done := finished(self._open):
            self._settle(self._open[:done])
            self._open = self._open[done:]
        if self._open.strip() and time.monotonic() - self._drawn >= REFRESH_EVERY:
            self._tail.draw(self._block(self._open))
            self._drawn = time.monotonic()

    def close(self) -> None:
        """Print what is left."""
        self._settle(self._open)
        self._open = ""

    def _settle(self, text: str) -> None:
        if text.strip():
            self._tail.settle(self._block(text))
            self._begun = True

    def _block(self, text: str) -> Sequence[RenderableType]:
        return (Text(""), rendered(text)) if self._begun else (rendered(text),)


class Tail:
    """The end of what is on the terminal, which is taken away and drawn anew as long as it changes.

    What has no room on the screen stays as it was drawn. A terminal that became narrower may have broken the
    lines in two (most do): they are taken away whatever they have become.
    """

    def __init__(self) -> None:
        self._drawn: list[str] = []
        self._lengths: list[int] = []  # columns of these lines
        self._kept = 0  # lines before them that stay
        self._characters = 0  # of those lines, blanks not counted
        self._width = 0

    def draw(self, parts: Sequence[RenderableType]) -> None:
        """Show `parts` in place of what was drawn before."""
        console = stdout()
        width, height = console.size
        lines = [line for part in parts for line in _lines(console, part)]
        if width != self._width and self._kept:  # the same characters are other lines now
            self._kept = sum(count <= self._characters for count in accumulate(map(_characters, lines)))
        shown = lines[self._kept :]
        coded = [_coded(console, line) for line in shown]
        same = 0 if width != self._width else _common(self._drawn[:-1], coded[:-1])
        console.file.write(self._back(same, width) + "\n".join(coded[same:]))
        console.file.flush()
        leaving = max(len(shown) - max(height - 1, 1), 0)
        self._kept += leaving
        self._characters += sum(map(_characters, shown[:leaving]))
        self._drawn = coded[leaving:]
        self._lengths = [Segment.get_line_length(line) for line in shown[leaving:]]
        self._width = width

    def settle(self, parts: Sequence[RenderableType]) -> None:
        """Show `parts` for good."""
        self.draw(parts)
        stdout().file.write("\n")
        stdout().file.flush()
        self._drawn, self._lengths, self._kept, self._characters = [], [], 0, 0

    def _back(self, same: int, width: int) -> str:
        """What takes the cursor back to the drawn line number `same`, and that and all after it away."""
        broken = 0 < width < self._width and _reflows()
        rows = sum(max(1, -(-length // width)) if broken else 1 for length in self._lengths[same:])
        # Line by line: all of the screen at once, tmux would keep.
        return "\x1b[1A".join(["\r\x1b[2K"] * rows)


def _lines(console: Console, part: RenderableType) -> list[list[Segment]]:
    """The lines of `part` without the blanks that they end in."""
    return [_stripped(line) for line in console.render_lines(part, console.options, pad=False)]


def _stripped(line: list[Segment]) -> list[Segment]:
    kept = list(line)
    while kept and not kept[-1].text.rstrip():
        kept.pop()
    if kept:
        kept[-1] = Segment(kept[-1].text.rstrip(), kept[-1].style)
    return kept


def _characters(line: list[Segment]) -> int:
    return sum(len("".join(segment.text.split())) for segment in line)


def _coded(console: Console, line: Sequence[Segment]) -> str:
    with console.capture() as text:
        console.print(Segments(line), end="")
    return text.get()


def _common(before: Sequence[str], now: Sequence[str]) -> int:
    """How many lines the two begin with in common."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(before, now, strict=False))
    return sum(1 for _ in alike)


def _reflows() -> bool:
    """Whether the terminal breaks lines in two where it becomes narrower, instead of cutting them off."""
    term = os.environ.get("TERM", "")
    cuts = "XTERM_VERSION" in os.environ or term == "linux"
    return not cuts and not (term.startswith("screen") and "TMUX" not in os.environ)


class _PlainHeading(Heading):
    """In bold, at the left: a frame would be broken where the terminal becomes narrower."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _ShortRule(HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("─" * min(RULE, options.max_width), style="markdown.hr")


class _Plain(Markdown):
    elements: ClassVar = {**Markdown.elements, "heading_open": _PlainHeading, "hr": _ShortRule}


def rendered(text: str) -> Markdown:
    """Markdown in which the address of a link is shown: nothing leads elsewhere than it says.

    Nothing in it is as wide as the terminal unless text is.
    """
    return _Plain(text, hyperlinks=False, code_theme="ansi_dark")


def finished(text: str) -> int:
    """Length of the first part that later text cannot change: up to a blank line outside a fence."""
    position = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        position += len(line)
        mark = line.lstrip()[:3]
        if mark in ("```", "~~~") and fence in ("", mark):
            fence = "" if fence else mark
        elif not fence and line.endswith("\n") and not line.strip():
            return position
    return 0
