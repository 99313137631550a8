"""Signals as they come, also while C is at work.

Python runs a handler between two of its instructions only, once for all signals of a number that came
meanwhile, and libllama may compute for minutes. What it notes at once is a byte for each, in a pipe: there
they can be counted, and a thread that waits at it hears of them at any time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

__all__ = ["hearing", "times"]

Watch = Mapping[int, Callable[[int], None]]
"""What is called in another thread for each signal of a number."""

NUDGE = 0  # no signal has this number: it wakes the thread
AT_ONCE = 1024  # bytes

_numbers: list[int] = []  # of all signals so far
_pipe: list[int] = []  # its two ends
_watches: list[Watch] = []
_threads: list[threading.Thread] = []


@contextmanager
def hearing(watch: Watch | None = None) -> Iterator[None]:
    """Inside, `times` counts, and each signal of a number in `watch` calls what it has for it.

    In other threads than the main one, where no signal is handled, it does nothing.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _pipe:
        _pipe[:] = os.pipe()
        for end in _pipe:
            os.set_blocking(end, False)
    before = signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    if watch is not None:
        _watches.append(watch)
        if not _threads:
            _threads.append(threading.Thread(target=_wait, name="signals", daemon=True))
            _threads[0].start()
    try:
        yield
    finally:
        if watch is not None:
            _watches[:] = [each for each in _watches if each is not watch]
        try:
            signal.set_wakeup_fd(before)
        except (ValueError, OSError):  # whoever had it has closed it meanwhile
            signal.set_wakeup_fd(-1)


def times(number: int) -> int:
    """How many signals of that number have come so far, as far as anybody was `hearing`."""
    _take()
    if _threads:
        with suppress(OSError):
            os.write(_pipe[1], bytes([NUDGE]))  # what was taken here is heard there as well
    return _numbers.count(number)


def _take() -> None:
    if not _pipe:
        return
    with suppress(BlockingIOError):
        while data := os.read(_pipe[0], AT_ONCE):
            _numbers.extend(each for each in data if each != NUDGE)


def _wait() -> None:
    from select import select

    heard = len(_numbers)
    while True:
        select([_pipe[0]], [], [])
        _take()
        for number in _numbers[heard:]:
            heard += 1
            for watch in tuple(_watches):
                if (call := watch.get(number)) is not None:
                    call(number)


def _forget() -> None:
    """In a process that was forked: the pipe is its parent's, and the thread has stayed there."""
    for end in _pipe:
        os.close(end)
    for each in (_numbers, _pipe, _watches, _threads):
        each.clear()
    signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
