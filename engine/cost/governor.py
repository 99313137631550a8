"""How many threads compute the next step, as others use the processors now.

Every operation of a step ends when its last thread is done, so a thread that shares its core holds all others
up, hundreds of times a token: beside one busy process two threads on two cores are far slower than one. The
number that was measured, or asked for, is right on a quiet machine and the most that is used. Beside other
work fewer are tried, for a few steps each, and the number whose steps are the shortest is kept until others'
work changes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from specx.backends.machine.machine import this_cpu
from specx.backends.machine.other_work import OtherWork
from specx.engine.cost.timing import Clock, median

__all__ = ["Governor", "OthersLoad"]

POLL_S = 0.2  # between two looks at what others do: twenty ticks of the system's accounts
BUSY = 0.3  # CPUs' worth of others' work beside which fewer threads are tried
CHANGED = 0.4  # CPUs' worth by which it must differ for all that was tried to count no more
STEPS = 3  # of a trial; the median counts
CLEARLY = 1.05  # times as long: less may be noise
AGAIN_S = 2.0  # until what lost is tried again, doubled each time up to the longest
LONGEST_S = 32.0


class OthersLoad:
    """CPUs' worth of work that other processes do, of late."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._work, self._clock = OtherWork(this_cpu().allowed), clock
        self._seen, self._at = self._work.others_s(), clock()

    def __call__(self) -> float | None:
        """What they have had since this was asked last, a second; None where nobody knows."""
        seen, now = self._work.others_s(), self._clock()
        known = seen is not None and self._seen is not None and now > self._at
        load = (seen - self._seen) / (now - self._at) if known else None  # type: ignore[operator]
        self._seen, self._at = seen, now
        return load


@dataclass(slots=True)
class _Tried:
    """Relative times of the latest steps on a number of threads, and when it is tried again."""

    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS))
    again: float = 0.0
    pause_s: float = AGAIN_S

    @property
    def ratio(self) -> float | None:
        """The median; None while it is being tried."""
        return median(self.ratios) if len(self.ratios) == STEPS else None


class Governor:
    """Chooses the number of threads of each step.

    Args:
        most: threads on a quiet machine.
        apply: called with the number from the next step on.
        load: CPUs' worth of work that others have done since it was asked last.
        clock: seconds.

    Attributes:
        threads: that compute now.
    """

    def __init__(
        self,
        most: int,
        apply: Callable[[int], None],
        load: Callable[[], float | None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.threads = self._most = most
        self._apply, self._clock = apply, clock
        self._load = load or OthersLoad()
        self._polled, self._level = clock(), 0.0
        self._tried: dict[int, _Tried] = {}
        self._settling = False

    def observe(self, ratio: float) -> None:
        """A step took `ratio` times as long as it was measured to take."""
        now = self._clock()
        if now - self._polled >= POLL_S:
            self._polled = now
            self._note(self._load() or 0.0)
        if self._level < BUSY:
            return
        if self._settling:  # the first step on another number of threads wakes or makes them
            self._settling = False
            return
        tried = self._tried.setdefault(self.threads, _Tried())
        tried.ratios.append(ratio)
        if tried.ratio is not None:
            self._use(self._next(now))

    def _note(self, level: float) -> None:
        """Others do so much now."""
        if abs(level - self._level) < CHANGED and (level < BUSY) == (self._level < BUSY):
            return
        self._level = level
        self._tried.clear()
        if level < BUSY:
            self._use(self._most)

    def _next(self, now: float) -> int:
        """The number of threads to go on with: one that is to be tried, or the best."""
        known = {n: tried.ratio for n, tried in self._tried.items() if tried.ratio is not None}
        shortest = min(known.values())
        best = max(n for n, ratio in known.items() if ratio <= CLEARLY * shortest)
        for n in self._neighbours(best):
            tried = self._tried.setdefault(n, _Tried())
            if tried.ratio is not None and n != self.threads and now >= tried.again:
                tried.ratios.clear()
                tried.pause_s = min(2 * tried.pause_s, LONGEST_S)
            if tried.ratio is None:
                return n
        return best

    def _neighbours(self, best: int) -> list[int]:
        """What may be better: as many as there are CPUs that nobody else uses, one more and one less."""
        stride = max(1, self._most // 8)
        free = self._most - max(1, round(self._level))
        return [n for n in (free, best - stride, best + stride) if 1 <= n <= self._most and n != best]

    def _use(self, threads: int) -> None:
        if threads != self.threads:
            if self.threads in self._tried:
                left = self._tried[self.threads]
                left.again = self._clock() + left.pause_s
            self.threads, self._settling = threads, True
            self._apply(threads)
