"""How long a measurement goes on while something else keeps the machine busy.

A slow model is given the time it takes. But beside other work every step can take ten or a hundred times as
long, and what comes out is not kept: such a measurement ends, and makes do with what it has seen.
"""

from __future__ import annotations

from collections.abc import Callable

from specx.backends.base import Cache
from specx.backends.machine.machine import OtherWork, this_cpu

__all__ = ["PATIENCE", "Busy", "Patience", "is_busy", "watch_others"]

PATIENCE = 3.0  # times the budget
BUSY = 0.1  # of the processors' time; what is measured beside so much other work is not kept

Busy = Callable[[], bool]


class _EndedError(Exception):
    """A prompt is not read to its end."""


class Patience:
    """The end of one measurement, which begins now.

    Args:
        budget_s: seconds it should take.
        clock: seconds.
        busy: whether something else has kept the machine busy; by default other processes are watched.
    """

    def __init__(self, budget_s: float, clock: Callable[[], float], busy: Busy | None = None) -> None:
        self._clock, self._end = clock, clock() + PATIENCE * budget_s
        self._busy = busy or watch_others()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether it has taken `PATIENCE` times the budget, and something else is the reason."""
        self._ended = self._ended or (self._clock() > self._end and self._busy())
        return self._ended

    def prefill(self, cache: Cache, length: int) -> bool:
        """Commit `length` tokens; false if it ended meanwhile."""

        def check(_done: int, _total: int) -> None:
            if self.ended:
                raise _EndedError

        try:
            cache.prefill([0] * length, progress=check)
        except _EndedError:
            return False
        return True


def watch_others() -> Busy:
    """What tells whether other processes have kept the machine busy from now on."""
    others = OtherWork(this_cpu().allowed)
    return lambda: is_busy(others)


def is_busy(others: OtherWork) -> bool:
    """Whether other processes had much of the processors: steady work disturbs without being noisy."""
    share = others.share()
    return share is not None and share > BUSY
