"""Markdown that is rendered while it streams."""

from __future__ import annotations

from contextlib import ExitStack

from rich.live import Live
from rich.markdown import Markdown

from specx.backends.printable import printable
from specx.cli.terminal.console import stdout
from specx.cli.terminal.restore import changed

__all__ = ["MarkdownStream", "finished"]


SHOW_CURSOR = "\x1b[?25h"  # which Rich has hidden


class MarkdownStream:
    """Blocks are printed for good once they are finished; only the last one is drawn again and again."""

    def __init__(self) -> None:
        self._open = ""
        self._live = Live(console=stdout(), transient=True, refresh_per_second=8, vertical_overflow="crop")
        self._changed = ExitStack()

    def add(self, text: str) -> None:
        """More of the text."""
        if not self._live.is_started:
            self._changed.enter_context(changed(lambda: SHOW_CURSOR))
            self._live.start()
        self._open += printable(text)
        done = finished(self._open)
        if done:
            self._live.console.print(rendered(self._open[:done]), soft_wrap=False)
            self._open = self._open[done:]
        self._live.update(rendered(self._open))

    def close(self) -> None:
        """Print what is left."""
        self._live.update("")
        self._live.stop()
        self._changed.close()
        if self._open.strip():
            self._live.console.print(rendered(self._open), soft_wrap=False)
        self._open = ""


def rendered(text: str) -> Markdown:
    """Markdown in which the address of a link is shown: nothing leads elsewhere than it says."""
    return Markdown(text, hyperlinks=False)


def finished(text: str) -> int:
    """Length of the part that later text cannot change: up to the last blank line outside a fence."""
    position = end = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        position += len(line)
        mark = line.lstrip()[:3]
        if mark in ("```", "~~~") and fence in ("", mark):
            fence = "" if fence else mark
        elif not fence and line.endswith("\n") and not line.strip():
            end = position
    return end
