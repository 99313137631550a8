"""When steps are timed: one process at a time, and not beside other work.

Two that time their steps at once measure each other. So one does, and the other takes what it found. Where
the machine is never quiet, what was measured first is used at every start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from specx.backends.base import Cache
from specx.engine.cost.staircase import Staircase
from specx.engine.cost.timing import Clock, Stopped, busy_now

__all__ = ["WAITING", "BetweenSteps", "Keeper", "give_up_provisional", "measure_steps", "reading_s"]

SHARE = 0.3  # of the time, for measurements between steps
LONGEST_MS = 200.0  # of one of these steps: those who are written wait so long
ALIKE, MORE = 1.15, 256  # so many times as deep, and so many tokens, are texts that one depth is measured in
WAITING = "another specx measures this machine: waiting for what it finds"


class Keeper(Protocol):
    """Where measurements are kept."""

    def measuring(
        self, staircase: Staircase, waiting: Callable[[], None], stopped: Stopped
    ) -> AbstractContextManager[None]:
        """Keep other processes from measuring; what one has found meanwhile is taken over."""

    def save_staircase(self, staircase: Staircase) -> None:
        """Keep what was measured."""


def give_up_provisional(staircase: Staircase) -> None:
    """Forget what was measured beside other work if the machine is quiet now; this is asked once."""
    if staircase.provisional:
        staircase.provisional = False
        if not busy_now(staircase.watch):
            staircase.forget()


def reading_s(staircase: Staircase, tokens: int) -> float | None:
    """Seconds that reading so many tokens takes, by the widest step that was timed; None if none was."""
    if not staircase.depths:
        return None
    widest = max(staircase.steps(staircase.depths[0]))
    return tokens / widest * staircase.cost(widest, tokens // 2) / 1e3


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
    with keeper.measuring(staircase, lambda: notice(WAITING), stopped):
        if stopped() or not staircase.needs_measuring(cache.length):
            return
        measure = staircase.measure if cache.length or not first else staircase.measure_first
        seconds = measure(cache, clock=clock, stopped=stopped)
        if first and staircase.depths:
            keeper.save_staircase(staircase)  # before others go on, who may wait for it
    if first and staircase.depths:
        notice(f"measured this model on this machine in {seconds:.1f} s: {staircase.describe()}")
    if staircase.disturbed and not disturbed:
        notice("something else kept the machine busy: this is measured again when it is quiet")


class BetweenSteps:
    """Times the steps at a new depth while texts are written, one step at a time.

    A measurement goes on in another text that is about as deep when its own is finished. Other processes are
    not kept from measuring meanwhile; what they disturb is noticed and not kept.

    Args:
        staircase: gets the times.
        clock: seconds.

    Attributes:
        share: of the time since a measurement began, that it may take.
    """

    def __init__(self, staircase: Staircase, clock: Clock) -> None:
        self.share = SHARE
        self._staircase, self._clock = staircase, clock
        self._turns: Iterator[int] | None = None
        self._cache: Cache | None = None
        self._length = 0
        self._began = self._spent_s = 0.0

    def go_on(self, caches: Sequence[Cache]) -> int:
        """Time one step if that is due and a text of `caches` is new in its depth; returns its width or 0."""
        start = self._clock()
        if not self._place(caches, start) or self._spent_s > self.share * (start - self._began):
            return 0
        assert self._turns is not None
        width = next(self._turns, 0)
        self._spent_s += self._clock() - start
        if not width:  # that was all
            self._turns = self._cache = None
        return width

    def _place(self, caches: Sequence[Cache], now: float) -> bool:
        """Whether there is a text to measure in, and this is not the first measurement of all."""
        if not self._staircase.depths:
            return False
        if self._turns is not None:
            if not any(cache is self._cache for cache in caches) or not self._is_alike(self._cache):
                self._cache = next((cache for cache in caches if self._is_alike(cache)), None)
            if self._cache is not None:
                return True
            self._turns = None
        widest, needed = self._staircase.max_width, self._staircase.needs_measuring
        for cache in caches:
            if needed(cache.length) and cache.room >= widest:
                self._cache = cache
                break
        else:
            return False
        self._length, self._began, self._spent_s = self._cache.length, now, 0.0
        self._turns = self._staircase.measuring(self._present, self._clock, longest_ms=LONGEST_MS, rounds=0)
        return True

    def _is_alike(self, cache: Cache | None) -> bool:
        """Whether it is as deep as where the measurement began, and has room."""
        if cache is None or not self._length <= cache.length <= self._length * ALIKE + MORE:
            return False
        return cache.room >= self._staircase.max_width

    def _present(self) -> Cache:
        assert self._cache is not None
        return self._cache
