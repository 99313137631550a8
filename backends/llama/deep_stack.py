"""A stack for what calls itself once for every character of a text."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from specx.backends.errors import UsageError

__all__ = ["on_deep_stack"]

SHALLOW = 1 << 20
"""Bytes of stack up to which work is done in the caller's thread: a few hundred bytes of text."""
_LEFT = 1 << 20  # for all else in a thread
_PAGE = 1 << 16

T = TypeVar("T")

_starting = threading.Lock()


def on_deep_stack(work: Callable[[], T], nbytes: int) -> T:
    """What `work` returns, in a thread with `nbytes` of stack if that is more than `SHALLOW`.

    Pages of it that are not touched take no memory. Ctrl-C waits for the end of the work, as it would for a
    call of C.

    Raises:
        UsageError: there is no room for such a stack.
        BaseException: what `work` raises.
    """
    if nbytes <= SHALLOW:
        return work()
    return _Work(work).result(nbytes)


class _Work(Generic[T]):
    """One call in a thread of its own, not joined: an interrupted `Thread.join` takes it for ended."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._begun = self._given_up = False
        self._results: list[T] = []
        self._raised: list[BaseException] = []

    def result(self, nbytes: int) -> T:
        interrupt: BaseException | None = None
        try:
            self._start(nbytes)
        except UsageError:
            raise
        except BaseException as error:
            if not self._has_begun():
                raise
            interrupt = error
        while not self._done.is_set():
            try:
                self._done.wait()
            except BaseException as error:  # noqa: BLE001 -- what the thread uses must not be freed under it
                interrupt = error
        if interrupt is not None:
            raise interrupt
        if self._raised:
            raise self._raised[0]
        return self._results[0]

    def _start(self, nbytes: int) -> None:
        thread = threading.Thread(target=self._run, daemon=True)
        with _starting:  # the size is one for the whole process
            before = threading.stack_size(-(-(_LEFT + nbytes) // _PAGE) * _PAGE)
            try:
                thread.start()
            except RuntimeError:
                raise UsageError(
                    f"the text is too long: splitting it into tokens may take {nbytes >> 20:,} MiB of stack",
                    "shorten it, or allow the process more memory (ulimit -v)",
                ) from None
            finally:
                threading.stack_size(before)

    def _has_begun(self) -> bool:
        """Whether the thread is at work; if not, it will not be."""
        with self._lock:
            self._given_up = not self._begun
        return self._begun

    def _run(self) -> None:
        with self._lock:
            if self._given_up:
                return
            self._begun = True
        try:
            self._results.append(self._work())
        except BaseException as error:  # noqa: BLE001 -- raised again in the caller's thread
            self._raised.append(error)
        finally:
            self._done.set()
