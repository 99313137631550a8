"""How anything is timed: in turns, within a budget, and beside no other work.

Whatever else the machine does only ever adds time. So what is compared takes turns, of repeated times the
least counts, and what was measured while other processes kept the machine busy is neither kept nor decides
anything, however steady it looks: steady work beside it makes every repetition equally slow. That is watched
over a measurement as a whole, and over each of its steps, which is taken again if it was held up: what comes
and goes in between is too short to be seen in the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from specx.backends.base import Cache
from specx.backends.machine.machine import this_cpu
from specx.backends.machine.other_work import OtherWork, Work

__all__ = [
    "PATIENCE",
    "ROUNDS",
    "Busy",
    "Clock",
    "Measurement",
    "Stopped",
    "Watch",
    "busy_now",
    "disturbs",
    "doubtful",
    "in_proportion",
    "median",
    "never",
    "powers",
    "relative_noise",
    "time_step",
    "unsettled",
    "unwatched",
    "visits",
    "watch_others",
]

# A system that is left alone takes some hundredths of a CPU. One busy loop takes its fair share: a third of a
# CPU or more beside two threads on two CPUs, and nearly a whole one on many.
MOST_SHARE = 0.1  # of the CPUs' time that others may have
MOST_OTHERS = 0.5  # CPUs' worth of it at most: one process that reads memory slows down all threads of a step
MOST_WAITED = 0.1  # of the time that threads of this process may wait while others run
GLANCE_S = 0.1  # in which one other process is told from none: ten ticks of the system's accounts
GLANCES = 2  # that must agree
PATIENCE = 3.0  # times the budget: then a measurement ends if others are the reason
# Repetitions on a quiet machine differ by some percent, beside bursts of other work severalfold.
AGREE = 1.3  # repetitions agree if half of them are at most this many times the least
ODD = 2.0  # a width is implausible if other ways to compute as many tokens are this many times cheaper
TILES = 32  # tokens: llama.cpp's attention computes more of them in tiles, which can be cheaper than fewer
UNSETTLED = 0.25  # a larger share of such widths means that something else kept the machine busy
JUMP = 1.15  # times what its neighbours say: such a width is timed once more, as it may have been unlucky
CERTAIN = 3  # times; a width that is as dear every time is so
LEAST_NOISE = 0.005  # of a time: two repetitions that agree better do so by chance
ONE_TIME_NOISE = 0.03  # of times that were not repeated: what two repetitions of a step usually differ by
SPREAD = 7919  # a prime: so many ids lie between two tokens of a step
LONG_MS = 500.0  # a step to which building its graph is nothing
AGAIN = 2  # times a step is taken again at once if others held it up
LATE = 1 << 30  # a visit that is made within the budget only
RETRIES = 3  # rounds over the widths whose repetitions disagree, or that are implausible
# Of processors that were idle the first tenth of a second of steps is a quarter slower, and whole tenths are
# off by a tenth, all widths alike. So each is timed in several, which small models have the time for.
ROUNDS = 2  # there and back
WIDE = 16  # tokens: wider steps take long and are seldom the best, so all others are repeated before them

Arm = TypeVar("Arm", bound=Hashable)
Clock = Callable[[], float]
Stopped = Callable[[], bool]
Busy = Callable[[], bool]
"""Whether other work has kept the machine busy since a moment."""
Watch = Callable[[], Busy]
"""Begins to watch for other work."""


class _EndedError(Exception):
    """A prompt is not read to its end."""


def never() -> bool:
    """False."""
    return False


def powers(most: int) -> tuple[int, ...]:
    """Widths that tell the most about all others: powers of two up to `most`."""
    return tuple(1 << i for i in range(most.bit_length()))


def unwatched() -> Busy:
    """A `Watch` that sees nothing: for what is shown and told to be unreliable, whatever it is beside."""
    return never


def watch_others() -> Busy:
    """A `Watch` for other processes on the CPUs that this one may use."""
    others = OtherWork(this_cpu().allowed)
    return lambda: disturbs(others.so_far())


def busy_now(watch: Watch = watch_others) -> bool:
    """Whether other work keeps the machine busy at this moment; this takes `GLANCE_S`, or twice as long."""
    for _ in range(GLANCES):  # what is over by then was a burst
        busy = watch()
        time.sleep(GLANCE_S)
        if not busy():
            return False
    return True


def disturbs(work: Work) -> bool:
    """Whether what was measured meanwhile is neither kept nor decides anything."""
    if work.seconds <= 0:
        return False
    if work.throttled_s > MOST_WAITED * work.seconds:
        return True
    if work.others_s is None:
        return False
    if work.others_s - work.tick_s > min(MOST_SHARE * work.cpus, MOST_OTHERS) * work.seconds:
        return True
    # More threads than CPUs wait for each other, too: no longer than others ran is their fault.
    waited = min(work.waited_s or 0.0, work.others_s + work.tick_s)
    return waited > MOST_WAITED * work.seconds


def time_step(cache: Cache, n: int, clock: Clock, *, calls: int = 1) -> float:
    """Milliseconds of a step of `n` tokens, of which nothing is kept; wider ones than possible are read.

    They are different tokens: where layers have experts, equal ones share them, and those of a text do not.

    Args:
        cache: its committed tokens are the same afterwards.
        n: tokens.
        clock: seconds.
        calls: the least of so many counts, as the first builds the graph and wakes threads up; of long ones
            the first.
    """
    length, least = cache.length, np.inf
    tokens = np.arange(1, n + 1, dtype=np.int64) * SPREAD % cache.model.vocab.size
    for _ in range(calls):
        start = clock()
        if n <= cache.max_width:
            cache.forward(tokens.astype(np.int32), np.arange(-1, n - 1, dtype=np.int32))
            took = (clock() - start) * 1e3
            cache.keep([0])
        else:  # a model that decodes plainly
            cache.prefill(tokens.tolist())
            took = (clock() - start) * 1e3
        cache.rewind(length)
        least = min(least, took)
        if took > LONG_MS:
            break
    return max(float(least), 1e-6)


class Measurement(Generic[Arm]):
    """Times of steps of several widths on several arms, taken in turns.

    It is watched from the moment that it is made. A slow model is given the time that it takes. But beside
    other work every step can take a hundred times as long, and what comes out is not kept: after `PATIENCE`
    times the budget such a measurement ends, and makes do with what it has.

    Args:
        budget_s: seconds it should take.
        clock: seconds.
        watch: how other work is watched for.
        stopped: whether to stop at once, asked before each step.
        progress: called with the fraction done, 0 to 1.
        turns: arms times widths.
        needed: widths of each arm that are timed in any case.
        least: visits to each that may take `PATIENCE` times the budget; the first visit always is made.
        most: visits to each.
    """

    def __init__(
        self,
        budget_s: float,
        *,
        clock: Clock = time.perf_counter,
        watch: Watch = watch_others,
        stopped: Stopped = never,
        progress: Callable[[float], None] | None = None,
        turns: int = 1,
        needed: int = 1,
        least: int = 1,
        most: int = 1,
    ) -> None:
        self.times: dict[Arm, dict[int, list[float]]] = {}
        self.stopped = False
        self.busy = False
        self._budget_s, self._clock, self._start = budget_s, clock, clock()
        self._watched, self._asked, self._progress = watch(), stopped, progress
        self._turns, self._needed, self._least, self._most = turns, needed, least, most
        self._ended = False
        self._watch = watch
        self._spoiled: set[tuple[Arm, int]] = set()  # arms and widths of which no step was left alone
        self._told = 0.0
        self._began = self._start

    @property
    def ended(self) -> bool:
        """Whether it has taken `PATIENCE` times the budget, and something else is the reason."""
        late = self._ended or self._clock() - self._start > PATIENCE * self._budget_s
        self._ended = late and (self._ended or self._watched())
        return self._ended

    @property
    def disturbed(self) -> bool:
        """Whether what was measured is neither kept nor decides anything; known once `take` is done."""
        odd = sum(len(unsettled(times)) for times in self.times.values())
        return self.busy or odd > UNSETTLED * sum(map(len, self.times.values()))

    def sound(self, arm: Arm) -> dict[int, list[float]]:
        """Times by width of an arm, but for the few widths of which every step was held up.

        Where it is not few, threads of this process may wait for each other, and nothing is left out.
        """
        times = self.times[arm]
        spoiled = {n for n in sorted(times)[self._needed :] if (arm, n) in self._spoiled}
        few = len(spoiled) <= UNSETTLED * len(times)
        return {n: taken for n, taken in times.items() if not few or n not in spoiled}

    def least(self) -> dict[Arm, dict[int, float]]:
        """The least milliseconds by arm and width."""
        return {arm: {n: min(taken) for n, taken in times.items()} for arm, times in self.times.items()}

    def prefill(self, cache: Cache, length: int, stopped: Stopped = never) -> bool:
        """Commit `length` tokens, which counts for nothing in the budget; false if it ended meanwhile, or was
        `stopped`.
        """

        def check(_done: int, _total: int) -> None:
            if self.ended or stopped():
                raise _EndedError

        try:
            cache.prefill([0] * length, progress=check)
        except _EndedError:
            return False
        return True

    def take(
        self,
        order: Iterable[tuple[int, Arm, int]],
        step: Callable[[Arm, int], float],
        guess: Callable[[int], float] = lambda _n: 0.0,
    ) -> None:
        """Time what comes next in `order`, as far as there is time for it.

        Args:
            order: (visit, arm, width); what it has not yielded yet may follow from `times`.
            step: milliseconds of a step of an arm and a width.
            guess: milliseconds that a step of a width may take.
        """
        for _ in self.turn_by_turn(order, step, guess):
            pass

    def turn_by_turn(
        self,
        order: Iterable[tuple[int, Arm, int]],
        step: Callable[[Arm, int], float],
        guess: Callable[[int], float],
    ) -> Iterator[int]:
        """The same, one step at a time: yields the width of each. What goes by in between does not count."""
        self._began = self._clock()
        for visit, arm, n in order:
            if self._asked():
                break
            known = self.times.setdefault(arm, {})
            if (visit or len(known) >= self._needed) and not self._has_time(visit, guess(n)):
                continue
            self._add(arm, n, step)
            self._tell(visit)
            left = self._clock()
            yield n
            away = self._clock() - left
            self._start, self._began = self._start + away, self._began + away
        self.finish()
        self.stopped = self._asked()

    def _add(self, arm: Arm, n: int, step: Callable[[Arm, int], float]) -> None:
        """Time a step, and again if others held it up and there is time; one left alone replaces these."""
        for again in range(AGAIN, -1, -1):
            busy = self._watch()
            ms = step(arm, n)
            held_up = busy()
            if not held_up or not again or not self._has_time(LATE, ms):
                break
        taken = self.times[arm].setdefault(n, [])
        if held_up and taken and (arm, n) not in self._spoiled:
            return
        if not held_up and (arm, n) in self._spoiled:
            self._spoiled.remove((arm, n))
            taken.clear()
        elif held_up:
            self._spoiled.add((arm, n))
        taken.append(ms)

    def finish(self) -> None:
        """The end of what counts: other work from now on disturbs nothing."""
        self.busy = self.busy or self._ended or self._watched()

    def _has_time(self, visit: int, guess_ms: float) -> bool:
        if self.ended:
            return False
        spent_s = self._clock() - self._began
        if visit < self._least:
            return not visit or spent_s <= PATIENCE * self._budget_s
        return spent_s + guess_ms / 1e3 <= self._budget_s

    def _tell(self, visit: int) -> None:
        if self._progress is None:
            return
        spent = (self._clock() - self._began) / self._budget_s
        count = sum(len(taken) for times in self.times.values() for taken in times.values())
        visits = max(visit, count / self._turns)
        self._told = min(max(self._told, visits / self._most, min(spent, visits / self._least)), 1.0)
        self._progress(self._told)


def unsettled(times: Mapping[int, Sequence[float]]) -> list[int]:
    """Widths of which half of the times are not close to the least, or are dearer than they can be.

    Args:
        times: milliseconds by width.
    """
    least = {n: min(taken) for n, taken in times.items()}
    single = min((least[n] / n for n in (1, 2) if n in least), default=np.inf)
    found = []
    for n, taken in times.items():
        wider = min((ms for m, ms in least.items() if n < m <= TILES), default=np.inf)
        middle = sorted(taken)[len(taken) // 2]
        if middle > AGREE * least[n] or least[n] > ODD * min(n * single, wider):
            found.append(n)
    return found


def doubtful(times: Mapping[int, Sequence[float]]) -> list[int]:
    """Widths that are dearer than their neighbours let expect, and were not timed often enough to be sure.

    Something that holds up a single step is too short to be noticed, and few widths are timed often. Real
    steps of a staircase look like that as well, and are found to be real.

    Args:
        times: milliseconds by width.
    """
    least = {n: min(taken) for n, taken in times.items()}
    known, found = sorted(least), []
    for i, n in enumerate(known[1:], 1):
        before, after = known[i - 1], known[i + 1] if i + 1 < len(known) else None
        expected = least[before] * n / before
        if after is not None:
            share = (n - before) / (after - before)
            expected = min(expected, least[before] + max(0.0, least[after] - least[before]) * share)
        if least[n] > JUMP * expected and len(times[n]) < CERTAIN:
            found.append(n)
    return found


def median(values: Iterable[float]) -> float:
    """The median; NumPy's imports masked arrays first, for milliseconds."""
    ordered = sorted(values)
    half, even = len(ordered) // 2, len(ordered) % 2 == 0
    return (ordered[half - 1] + ordered[half]) / 2 if even else ordered[half]


def relative_noise(times: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Standard deviation of each least time, as a part of it.

    Few repetitions say little of their width alone, so each is given at least what is usual for all.

    Args:
        times: milliseconds by width.
    """
    spreads = {n: sorted(taken)[len(taken) // 2] / min(taken) - 1 for n, taken in times.items()}
    repeated = [spreads[n] for n, taken in times.items() if len(taken) > 1]
    usual = max(median(repeated), LEAST_NOISE) if repeated else ONE_TIME_NOISE
    return {n: max(spread, usual) for n, spread in spreads.items()}


def visits(
    widths: list[int], times: Mapping[int, list[float]], forced: int = 2, rounds: int = ROUNDS
) -> Iterator[tuple[int, None, int]]:
    """Which width is timed next: all of them twice, then those that do not settle, then all several times.

    Those that their neighbours contradict come before what only is repeated.

    Args:
        widths: the most informative first.
        times: what has been measured so far, as it grows.
        forced: so many are visited once whatever the budget.
        rounds: how often all are visited once more, there and back, at the end.

    Returns:
        (visit, arm, width): the narrowest are visited whatever the budget, all others as far as it reaches.
    """
    narrow, others = widths[:2], [n for n in widths[2:] if n <= WIDE]
    yield from ((0, None, n) for n in widths[:forced])
    seen = set(widths[:forced])
    once = [*narrow * 2, *(n for n in others if n not in seen)]
    yield from ((1 if i == 0 else 2, None, n) for i, n in enumerate(once))
    yield from ((2, None, n) for n in doubtful(times))
    yield from ((2, None, n) for n in (*others, *(n for n in widths[2:] if n > WIDE)))
    for _ in range(RETRIES):
        yield from ((2, None, n) for n in dict.fromkeys((*unsettled(times), *doubtful(times))))
    for _ in range(rounds):  # never one twice in a row: of a second time its graph is built already
        yield from ((2, None, n) for n in (*widths, *widths[-2:0:-1]))


def in_proportion(times: Mapping[int, list[float]], n: int) -> float:
    """Milliseconds that width `n` may take: in proportion to the widest known one that is not wider."""
    known = max((m for m in times if m <= n), default=0)
    return min(times[known]) * n / known if known else 0.0
