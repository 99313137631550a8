"""What is measured while a person types."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from specx.backends.errors import SpecxError, unexpected

if TYPE_CHECKING:
    from specx.cli.resident.remote import Remote
    from specx.engine.session import Session

__all__ = ["idle"]


@contextmanager
def idle(session: Session | Remote) -> Iterator[None]:
    """Let a model be measured in another thread, up to the end of the present step.

    What there is to tell is told then, and not into a line that is being typed.
    """
    if not hasattr(session, "staircase"):  # in a server, which was measured when it began
        yield
        return
    from specx.engine.idle import measure_idle

    local = cast("Session", session)
    stop, told, notice = threading.Event(), list[str](), local.notice

    def measure() -> None:
        try:
            measure_idle(local, stop.is_set)
        except SpecxError as problem:  # a message is answered without it, or tells the same
            told.append(problem.message)
        except Exception as problem:  # noqa: BLE001 -- a thread would write a traceback into the line
            told.append(unexpected(problem, "").message)

    local.notice = told.append
    thread = threading.Thread(target=measure, name="idle", daemon=True)
    try:
        thread.start()
        yield
    finally:
        try:
            _end(thread, stop)
        finally:
            local.notice = notice
            for text in told:
                notice(text)


def _end(thread: threading.Thread, stop: threading.Event) -> None:
    """Stop it and wait for its end. A Ctrl-C comes after that: nobody else may use the model before."""
    interrupted = False
    while not stop.is_set() or thread.is_alive():
        try:
            stop.set()
            if thread.is_alive():
                thread.join()
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt
