"""What is measured while nobody waits: in a chat, while a person types."""

from __future__ import annotations

from contextlib import suppress

from specx.backends.machine.machine import available_memory
from specx.engine.cost.timing import Stopped
from specx.engine.session import Session
from specx.engine.setup.here import Here
from specx.engine.setup.kernels import LATER, compare_idle
from specx.engine.setup.load import loader

__all__ = ["measure_idle"]

LOADED_FAST = 1 << 30  # bytes of weights that are loaded once more before anybody has typed a message


class _StoppedError(Exception):
    """A model is not loaded to its end."""


def measure_idle(session: Session, stopped: Stopped) -> None:
    """Measure what opening a model left for later: its steps, then its kernels, if a second one fits.

    Args:
        session: no text of it is written meanwhile.
        stopped: ends it, after the present step or while the model is loaded.
    """
    session.measure_staircase(stopped=stopped)
    setup = session.setup
    if setup is None or setup.kernels.why != LATER or stopped():
        return
    available = available_memory()
    if setup.need.weights > LOADED_FAST or (available is not None and available < 2 * setup.need.working):
        return

    def check(_fraction: float, _label: str | None = None) -> None:
        if stopped():
            raise _StoppedError

    here = Here.of(session.asked, notice=session.notice, progress=check)
    with suppress(_StoppedError):
        compare_idle(loader(setup.load, here), setup.kernels_key, here, session.staircase, stopped=stopped)
