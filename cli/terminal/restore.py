"""The terminal is left as it was found, whatever ends specx or stops it for a while.

Whoever changes the terminal (a scrolling region, a hidden cursor, a line editor's modes) says what undoes the
change and wraps the time of it in `changed`. What ends in order or with an exception undoes its own change.
Signals do not unwind anything, so that handlers undo what is open; at other times signals do what they always
do. libllama may compute for minutes, so that a thread hears the same signals (`heard.py`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from specx.cli.terminal.heard import hearing

__all__ = ["changed", "end_by", "restore"]

ENDING = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGALRM", "SIGUSR1", "SIGUSR2")
WAIT_S = 1.0  # for a terminal that takes nothing, as after Ctrl-S


class _Change(NamedTuple):
    """What undoes a change of the terminal, and makes it anew."""

    undo: Callable[[], str]
    redo: Callable[[], None]
    attributes: Any
    main: bool
    """Whether the main thread made it: only that one can listen to signals."""


_open: list[_Change] = []
_ending = threading.RLock()


@contextmanager
def changed(undo: Callable[[], str], redo: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside, the terminal may not be as it was found.

    Args:
        undo: what to send to the terminal so that it is again; its line settings are looked after here.
        redo: called when specx goes on after it was stopped.
    """
    if sys.platform == "win32":
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    listening = not main or any(each.main for each in _open)
    change = _Change(undo, redo, _attributes(), main)
    _open.append(change)
    try:
        if listening:
            yield
        else:
            with _listening():
                yield
    finally:
        _open.remove(change)


def restore() -> None:
    """Undo every change that is open, if the terminal is ours to change."""
    terminal = _terminal()
    if terminal is None:
        return
    for change in reversed(_open):
        _send(terminal, change.undo())
        _set_attributes(terminal, change.attributes)


def _terminal() -> int | None:
    """The file descriptor of the terminal, unless there is none or another job has it."""
    for number in (2, 1, 0):
        if os.isatty(number):
            try:
                return number if os.tcgetpgrp(number) == os.getpgrp() else None
            except OSError:  # it is not the one that controls us, so there are no jobs either
                return number
    return None


def _attributes() -> Any:
    import termios

    terminal = _terminal()
    with suppress(termios.error):
        return None if terminal is None else termios.tcgetattr(terminal)
    return None


def _set_attributes(terminal: int, attributes: Any) -> None:
    import termios

    if attributes is not None:
        with suppress(termios.error):
            termios.tcsetattr(terminal, termios.TCSANOW, attributes)


def _send(terminal: int, codes: str) -> None:
    from select import select

    with suppress(OSError):
        if select([], [terminal], [], WAIT_S)[1]:
            os.write(terminal, codes.encode())


@contextmanager
def _listening() -> Iterator[None]:
    handlers = {getattr(signal, name): _end for name in ENDING if hasattr(signal, name)}
    handlers[signal.SIGTSTP] = _stop
    # What is ignored stays so, as SIGHUP under nohup.
    before = [number for number in handlers if signal.getsignal(number) is signal.SIG_DFL]
    for number in before:
        signal.signal(number, handlers[number])
    import ctypes  # noqa: F401 -- not for the first time when the process ends

    ours = {int(number): end_by for number in before if number != signal.SIGTSTP}
    try:
        with hearing(ours):
            yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> None:
    end_by(number)


def end_by(number: int) -> NoReturn:
    """End as the signal ends every other program, with the terminal as it was found. From any thread."""
    import ctypes

    with _ending:
        restore()
        ctypes.CDLL(None).signal(number, None)  # the default action: signal.signal works in one thread only
        signal.raise_signal(number)
        os._exit(128 + number)  # the first process of a container has no default action


def _stop(number: int, _frame: FrameType | None) -> None:
    """Stop as Ctrl-Z stops every other program, and go on where specx was."""
    attributes = _attributes()
    restore()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)  # returns when specx goes on
    signal.signal(number, _stop)
    terminal = _terminal()
    if terminal is not None:
        _set_attributes(terminal, attributes)
        for change in _open:
            change.redo()
