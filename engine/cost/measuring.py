"""When steps are timed: one process at a time, and not beside other work.

Two that time their steps at once measure each other. So one does, and the other takes what it found. Where
the machine is never quiet, what was measured first is used at every start.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from specx.backends.base import Cache
from specx.engine.cost.staircase import Staircase
from specx.engine.cost.timing import Clock, Stopped, busy_now

__all__ = ["WAITING", "Keeper", "give_up_provisional", "measure_steps"]

WAITING = "another specx measures this machine: waiting for what it finds"


class Keeper(Protocol):
    """Where measurements are kept."""

    def measuring(self, staircase: Staircase, waiting: Callable[[], None]) -> AbstractContextManager[None]:
        """Keep other processes from measuring; what one has found meanwhile is taken over."""

    def save_staircase(self, staircase: Staircase) -> None:
        """Keep what was measured."""


def give_up_provisional(staircase: Staircase) -> None:
    """Forget what was measured beside other work if the machine is quiet now; this is asked once."""
    if staircase.provisional:
        staircase.provisional = False
        if not busy_now(staircase.watch):
            staircase.forget()


def measure_steps(
    staircase: Staircase,
    cache: Cache,
    keeper: Keeper,
    notice: Callable[[str], None],
    *,
    clock: Clock,
    stopped: Stopped,
) -> None:
    """Time the steps at the present length of `cache`, unless another process does it meanwhile.

    Args:
        staircase: gets the times.
        cache: the same afterwards.
        keeper: where they are kept.
        notice: told what was found, or what stood in the way.
        clock: seconds.
        stopped: whether to stop at once; then nothing is known.
    """
    first, disturbed = not staircase.depths, staircase.disturbed
    with keeper.measuring(staircase, lambda: notice(WAITING)):
        if not staircase.needs_measuring(cache.length):
            return
        measure = staircase.measure if cache.length or not first else staircase.measure_first
        seconds = measure(cache, clock=clock, stopped=stopped)
        if first and staircase.depths:
            keeper.save_staircase(staircase)  # before others go on, who may wait for it
    if first and staircase.depths:
        notice(f"measured this model on this machine in {seconds:.1f} s: {staircase.describe()}")
    if staircase.disturbed and not disturbed:
        notice("something else kept the machine busy: this is measured again when it is quiet")
