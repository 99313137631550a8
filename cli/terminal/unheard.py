"""What is typed while specx writes waits, unseen, for the line editor: it is how the next message begins."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from specx.cli.terminal.console import stdout
from specx.cli.terminal.restore import changed

__all__ = ["typing_waits"]

PASTED = "\x1b[?25;2004h"
"""Sent to a terminal, it shows the cursor, and has it say where a paste begins and ends: an end of line in it
does not send a message."""

UNMARKED = "\x1b[?2004l"


@contextmanager
def typing_waits() -> Iterator[None]:
    """Inside, a terminal keeps what is typed and shows nothing of it. Ctrl-C and Ctrl-Z are as always."""
    if sys.platform == "win32" or not sys.stdin.isatty() or not sys.stdout.isatty():
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    iflag, oflag, cflag, lflag, *rest = before
    iflag &= ~termios.ICRNL  # Enter is what the line editor takes for it
    waiting = [iflag, oflag, cflag, lflag & ~(termios.ECHO | termios.ICANON), *rest]

    dumb = stdout().is_dumb_terminal

    def send(codes: str) -> None:
        sys.stdout.write("" if dumb else codes)
        sys.stdout.flush()

    with changed(lambda: "" if dumb else UNMARKED, lambda: send(PASTED)):
        try:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, waiting)
            send(PASTED)
            yield
        finally:
            with suppress(termios.error, OSError):  # a terminal that is gone
                termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
                send(UNMARKED)
