"""Ctrl-C: what it does in every command, and its exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from specx.backends.llama.callbacks import within_c
from specx.cli import INTERRUPTED
from specx.cli.terminal.restore import restore

__all__ = ["interruptible", "on_interrupt", "on_stop", "stopping"]

IMPORTING = "<frozen importlib._bootstrap>"
"""The file of the frames of Python that import a module."""

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C inside raises KeyboardInterrupt, or ends specx at once where that would be lost.

    If it is ignored, as in a shell's background jobs, it stays so.
    """
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield
        return
    before = sys.unraisablehook

    def unraisable(problem: sys.UnraisableHookArgs) -> None:
        """An exception had nowhere to go, as in a finalizer: of a Ctrl-C nobody else would ever hear."""
        if issubclass(problem.exc_type, KeyboardInterrupt):
            _leave()
        before(problem)

    sys.unraisablehook = unraisable
    try:
        with _handling(_raise):
            yield
    finally:
        sys.unraisablehook = before


@contextmanager
def on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C inside runs `action`, a second one is as in `interruptible`."""

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, _raise)
        action()

    with _handling(handle):
        yield


@contextmanager
def on_stop(action: Callable[[int], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP inside, as far as they are not ignored, run `action` with their number: the
    first two of them. What comes then is as it was before."""
    handled = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [number for number in handled if signal.getsignal(number) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        handled = []
    before = {number: signal.getsignal(number) for number in handled}
    times = 0

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal times
        times += 1
        if times == 2:
            restored()
        action(number)

    def restored() -> None:
        for number, handler in before.items():
            signal.signal(number, _raise if number == signal.SIGINT else handler)

    for number in handled:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopping() -> Iterator[None]:
    """Ctrl-C inside raises KeyboardInterrupt, also within `on_interrupt`."""
    with _handling(_raise):
        yield


@contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no signal is handled in another one
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _raise(number: int, frame: FrameType | None) -> None:
    # libllama, which may be loading for minutes, has called back, or a module is imported, which might answer
    # with an error of its own: no file is being written meanwhile.
    if within_c(frame) or _importing(frame):
        _leave()
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            return True
        frame = frame.f_back
    return False


def _leave() -> NoReturn:
    restore()
    if sys.stderr.isatty():
        os.write(2, b"\r\n")
    os._exit(INTERRUPTED)
