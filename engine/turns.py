"""Threads that write with one model take turns: libllama may be called by one of them at a time."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["Turns"]

T = TypeVar("T")


class Turns:
    """Who writes. What one thread has begun it finishes before another one begins, which waits meanwhile.

    What a thread begins that writes already goes on beside it.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._owner: int | None = None
        self._begun = 0
        self._step = threading.RLock()

    def of(self, written: Generator[T, None, None]) -> Generator[T, None, None]:
        """What is `written`, when it is this thread's turn."""
        with self._turn():
            try:
                while True:
                    with self._step:
                        found = next(written, None)
                    if found is None:
                        return
                    yield found
            finally:
                with self._step:
                    written.close()

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """While nobody computes, whoever's turn it is."""
        with self._step:
            yield

    @contextmanager
    def _turn(self) -> Iterator[None]:
        here = threading.get_ident()
        with self._free:
            self._free.wait_for(lambda: self._owner in (None, here))
            self._owner = here
            self._begun += 1
        try:
            yield
        finally:  # by whatever thread ends it
            with self._free:
                self._begun -= 1
                if not self._begun:
                    self._owner = None
                    self._free.notify_all()
