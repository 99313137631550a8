"""Ctrl-C: what it does in every command, and its exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from specx.backends.llama.callbacks import within_c

__all__ = ["INTERRUPTED", "interruptible", "on_interrupt"]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells report a program that SIGINT ended."""

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C inside raises KeyboardInterrupt, or ends specx at once where that would be lost.

    If it is ignored, as in a shell's background jobs, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with _handling(_raise):
            yield
    else:
        yield


@contextmanager
def on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C inside runs `action`, a second one is as in `interruptible`."""

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, _raise)
        action()

    with _handling(handle):
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
    if not within_c(frame):
        raise KeyboardInterrupt
    # libllama, which may be loading for minutes, has called back: no file is being written meanwhile.
    if sys.stderr.isatty():
        os.write(2, b"\r\x1b[2K\x1b[?25h")
    os._exit(INTERRUPTED)
