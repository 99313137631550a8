"""Ctrl-C and what else tells specx to end: what it does in every command, and its exit code."""

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
from specx.cli.terminal.heard import hearing, times
from specx.cli.terminal.restore import end_by, restore

__all__ = ["interruptible", "on_end", "on_interrupt", "on_stop", "stopping"]

ENDING = ("SIGTERM", "SIGHUP")

GRACE_S = 8.0
"""Seconds in which something may be finished once specx is told to end."""

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
    with hearing():
        before = times(signal.SIGINT)

        def handle(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, _raise)
            action()
            if times(number) > before + 1:  # the second one came as well, while C was at work
                _raise(number, frame)

        with _handling(handle):
            yield


@contextmanager
def on_stop(action: Callable[[int], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP inside, as far as they are not ignored, run `action` with their number: the
    first two of them. What comes then is as it was before."""
    handled = [] if threading.current_thread() is not threading.main_thread() else _heeded("SIGINT", *ENDING)
    before = {number: signal.getsignal(number) for number in handled}

    def restored() -> None:
        for number, handler in before.items():
            signal.signal(number, _raise if number == signal.SIGINT else handler)

    with hearing():
        begun = {number: times(number) for number in handled}
        called, acted = dict.fromkeys(handled, 0), dict.fromkeys(handled, 0)

        def handle(number: int, _frame: FrameType | None) -> None:
            called[number] += 1  # once for all that came while C was at work
            while acted[number] < max(called[number], times(number) - begun[number]):
                acted[number] += 1
                if sum(acted.values()) > 2:
                    signal.raise_signal(number)
                    return
                if sum(acted.values()) == 2:
                    restored()
                action(number)

        for number in handled:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def on_end(action: Callable[[int], None]) -> Iterator[None]:
    """The first SIGTERM or SIGHUP inside, as far as they are not ignored, runs `action` with its number.

    A second one ends specx at once, whatever it is busy with, and so do `GRACE_S` seconds after the first.
    """
    handled = [] if threading.current_thread() is not threading.main_thread() else _heeded(*ENDING)
    before = {number: signal.getsignal(number) for number in handled}
    timers: list[threading.Timer] = []
    heard: list[int] = []  # by a thread, while C is at work too
    called: list[int] = []  # between two instructions of Python

    def count(number: int, so_far: list[int]) -> None:
        so_far.append(number)
        if len(so_far) > 1:
            end_by(number)
        if not timers:
            timer = threading.Timer(GRACE_S, end_by, (number,))
            timer.daemon = True
            timers.append(timer)
            timer.start()  # not timers[0]: the other thread may be here as well

    def handle(number: int, _frame: FrameType | None) -> None:
        count(number, called)
        action(number)
        if sum(map(times, handled)) > begun + 1:
            end_by(number)

    begun = sum(map(times, handled))
    for number in handled:
        signal.signal(number, handle)
    try:
        with hearing(dict.fromkeys(handled, lambda number: count(number, heard))):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()


def _heeded(*names: str) -> list[int]:
    """Numbers of the signals that there are here, without those that are ignored."""
    numbers = [int(getattr(signal, name)) for name in names if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


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
