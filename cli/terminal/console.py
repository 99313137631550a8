"""The two streams: generated text on stdout, everything else on stderr. Rich is imported on first use."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TextIO

from specx.backends.errors import SpecxError
from specx.backends.printable import one_line, printable
from specx.cli.terminal.restore import changed

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.progress import Progress as RichProgress

__all__ = [
    "Progress",
    "StatusLine",
    "abandon",
    "end_line",
    "error",
    "notice",
    "settle",
    "stderr",
    "stdout",
    "write",
]

SHOW_AFTER = 0.4
"""Seconds of work before a progress bar appears; shorter waits need no explanation."""

BAR_GONE = "\r\x1b[2K\x1b[?25h"
"""Sent to a terminal, it takes the line of a bar away and shows the cursor again, which Rich has hidden."""

TYPED = 4  # columns that a bar leaves free at the end of its line

REFRESH_EVERY = 0.1
"""Seconds between two drawings of a bar or a status line."""


@cache
def stdout() -> Console:
    """The console for results (tables, Markdown)."""
    return _console(stderr=False)


@cache
def stderr() -> Console:
    """The console for notices, progress and statistics."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    """Lines end between words at the edge of a terminal; pipes and files get them whole."""
    from rich.console import Console
    from rich.segment import Segment

    class Piped(Console):
        def on_broken_pipe(self) -> None:  # Rich's own ends with exit code 1
            raise BrokenPipeError

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for segment in super().render(renderable, options):  # of tables, bars and Markdown, too
                text = segment.text if segment.control else printable(segment.text)
                yield segment if text == segment.text else Segment(text, segment.style)

    stream = sys.stderr if stderr else sys.stdout
    return Piped(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=not stream.isatty())


class _Shown:
    """What is stdout and stderr at once: a terminal, or a file that both are sent to."""

    line_open = False
    """The text so far ends in the middle of a line."""

    owed = False
    """The text has ended so, and in a file: whatever is told next begins a line."""

    held: ClassVar[list[str]] = []
    """Notices that wait for the end of the line."""


def write(text: str) -> None:
    """Generated text to stdout, at once: as it is, but to a terminal without control characters."""
    terminal = sys.stdout.isatty()
    sys.stdout.write(printable(text) if terminal else text)
    sys.stdout.flush()
    if text:
        _Shown.line_open, _Shown.owed = text[-1] != "\n" and (terminal or _one_file()), False


def end_line() -> None:
    """The text is finished: on a terminal, end its line, and show the notices that waited for that."""
    if _Shown.line_open and sys.stdout.isatty():
        write("\n")
    _Shown.line_open, _Shown.owed = False, _Shown.line_open
    while _Shown.held:
        notice(_Shown.held.pop(0))


def notice(text: str) -> None:
    """One line on stderr, never within a line of generated text."""
    if _Shown.line_open and (sys.stderr.isatty() or _one_file()):
        _Shown.held.append(text)
    else:
        _tell(printable(text), style="dim")


def error(problem: SpecxError) -> None:
    """What is wrong, and what to do about it, on stderr."""
    with suppress(OSError):  # the text may be what cannot be written
        end_line()
    _tell(printable(problem.message), ("error: ", "bold red"))
    if problem.hint:
        _tell(printable(problem.hint), ("hint: ", "bold cyan"))


def _tell(text: str, label: tuple[str, str] = ("", ""), style: str = "") -> None:
    """Print on stderr; if nobody takes it, that is no reason to lose the text on stdout.

    Args:
        text: what to say.
        label: what comes before it, and the style of that.
        style: of the text.
    """
    begun, _Shown.owed = "\n" if _Shown.owed else "", False
    try:
        sys.stderr.write(begun)
        if _coloured():
            from rich.text import Text

            stderr().print(Text.assemble(label, (text, style)))
        else:
            sys.stderr.write(f"{label[0]}{text}\n")
            sys.stderr.flush()
    except OSError:
        abandon(sys.stderr)


def _one_file() -> bool:
    """Whether stdout and stderr go to the same place, as by `2>&1`."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or not a file at all
        return False


def settle(stream: TextIO) -> None:
    """Write what is left in a stream, if anybody takes it."""
    try:
        stream.flush()
    except OSError:
        abandon(stream)


def abandon(stream: TextIO) -> None:
    """Nobody takes what is left in a stream: make the flush at exit silent."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _coloured() -> bool:
    """Whether Rich might find colours wanted on stderr. It takes long to import, so it is asked only then."""
    named = (os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))
    return sys.stderr.isatty() or any(named)


class Progress:
    """A bar on stderr, only on a terminal and only for work that takes longer than `SHOW_AFTER`.

    Args:
        label: what is done.
        remaining: show the time that is left, too.
        quiet: show nothing at all.
    """

    def __init__(self, label: str, *, remaining: bool = False, quiet: bool = False) -> None:
        self._label = one_line(label)
        self._remaining = remaining
        self._enabled = not quiet and sys.stderr.isatty()  # Rich also says yes to FORCE_COLOR
        self._begun = self._drawn = time.monotonic()
        self._bar: RichProgress | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, fraction: float, label: str | None = None) -> None:
        """`fraction` of the work, 0 to 1, is done, which has a new `label` if one is given."""
        now = time.monotonic()
        if not self._enabled or now - self._begun < SHOW_AFTER or now - self._drawn < REFRESH_EVERY:
            return
        self._drawn = now
        if self._bar is None:
            from rich.constrain import Constrain
            from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
            from rich.progress import TimeRemainingColumn as Remaining

            class Narrow(Progress):  # what is typed meanwhile, as ^C, must not begin another line
                def get_renderable(self) -> RenderableType:
                    return Constrain(super().get_renderable(), stderr().width - TYPED)

            columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
            columns += [TaskProgressColumn(), *([Remaining(compact=True)] if self._remaining else [])]
            self._bar = Narrow(*columns, console=stderr(), transient=True, auto_refresh=False)
            self._bar.add_task(printable(self._label), total=1.0)
            self._open.enter_context(changed(lambda: BAR_GONE))
            self._bar.start()
        shown = None if label is None else printable(one_line(label))
        self._bar.update(self._bar.task_ids[0], completed=fraction, refresh=True, description=shown)

    def count(self, done: int, total: int) -> None:
        """`done` of `total` tokens are done."""
        self.update(done / max(total, 1))

    def close(self) -> None:
        """Take the bar away. Safe to call twice."""
        self._enabled = False
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._open.close()


def _cut(text: str, width: int) -> str:
    """As many of its clauses, which commas end, as fit into `width`; at least as much as fits."""
    if len(text) <= width:
        return text
    clauses = text[: width + 1].rpartition(", ")[0]
    return clauses or text[:width]


class StatusLine:
    """The last line of the terminal, beside text that streams above it.

    The scrolling region (DECSTBM) ends one line higher while this is open, so neither stream can write over
    the other. Does nothing unless stdout and stderr are one terminal that understands it.
    """

    def __init__(self, *, enabled: bool) -> None:
        capable = sys.stdout.isatty() and sys.stderr.isatty() and not stderr().is_dumb_terminal
        self._enabled = enabled and capable and os.name == "posix"
        self._rows = self._columns = 0
        self._drawn = 0.0
        self._changed = False
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rows:
            self._send(self._undo())
        self._open.close()

    def _undo(self) -> str:
        return f"\x1b7\x1b[{self._rows};1H\x1b[2K\x1b[r\x1b8"

    def _forget(self) -> None:
        self._rows = 0  # so that the next drawing sets the region again

    def update(self, text: str) -> None:
        """Show `text`, if the last drawing is old enough."""
        now = time.monotonic()
        if not self._enabled or now - self._drawn < REFRESH_EVERY:
            return
        self._drawn = now
        size = os.get_terminal_size(sys.stderr.fileno())
        if size.lines < 3:
            return
        if (size.lines, size.columns) != (self._rows, self._columns):
            if not self._changed:
                self._changed = True
                self._open.enter_context(changed(self._undo, self._forget))
            # A terminal of another size has no region any more; what was this line is below the text.
            below = "\x1b7\x1b[r\x1b8\x1bD\x1b7\r\x1b[J\x1b8\x1b[1A" if self._rows else ""
            self._rows, self._columns = size.lines, size.columns
            # Index down and up again: a cursor on the last line makes room by scrolling first.
            self._send(f"{below}\x1bD\x1b[1A\x1b7\x1b[1;{size.lines - 1}r\x1b8")
        line = stderr().render_str(_cut(one_line(text), size.columns - 1), style="dim")
        with stderr().capture() as drawn:
            stderr().print(line, end="")
        self._send(f"\x1b7\x1b[{size.lines};1H\x1b[2K{drawn.get()}\x1b8")

    @staticmethod
    def _send(codes: str) -> None:
        sys.stdout.flush()
        sys.stderr.write(codes)
        sys.stderr.flush()
