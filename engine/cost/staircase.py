"""The staircase: what one forward call of n tokens costs on this machine, measured.

It is no line (kernels work in groups of rows), and it grows with the depth of the context, faster for wider
calls, because every row attends to everything before it. So it is measured at a few depths: in the empty
context and a little deeper at first use, then whenever a generation first passes a *mark*, between its steps,
by computing guesses that are then forgotten. Between measured depths it is interpolated, and every real step
corrects the depths on both sides of it (`regimes.py`).

What was measured beside other work, or disagrees with itself, is used for want of better and kept apart,
until it can be measured undisturbed. What is kept and turns out far from real steps is forgotten and measured
again.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache
from specx.engine.cost.contradiction import Calm, Contradiction
from specx.engine.cost.filling import Steps, corrected, filled, following, read_table, widest
from specx.engine.cost.timing import (
    ROUNDS,
    TILES,
    Clock,
    Measurement,
    Stopped,
    Watch,
    busy_now,
    in_proportion,
    never,
    relative_noise,
    time_step,
    visits,
    watch_others,
)
from specx.kernels._native import CLIP, Regimes

__all__ = ["CLIP", "MARKS", "Staircase"]

# Depths in tokens. llama.cpp's attention takes another path from 512 padded cells (256 tokens) on.
MARKS = (0, 272, 1024, 4096, 16384, 65536)
WIDTHS = (1, 2, 4, 8, 16, 64, 3, 6, 5, 7, 12, 10, 24, 32)  # most informative first
DEEPER_WIDTHS = (1, 2, 64, 4, 8, 16)  # at later depths, where the shape is known from the one before
FIRST_DEPTH = 288  # tokens; where the growth with depth is measured at first use
FIRST_WIDTHS = (1, 2, 16, 4, 8)  # there; what attention adds grows in proportion to the rows
LIKE_WIDTHS = (1, 2, 16, 4)  # where steps are known with another number of threads: the others follow
LIKE_NOISE = 0.05  # of the times that follow from those
BUDGET_S = 1.2  # for the first depth; a 1B model on two cores gets through most widths in that time
DEEPER_BUDGET_S = 0.8
FORCED = 4  # widths at first use, and one less at the second depth: what the choice of kernels rests on
READ_S = 3.0  # to get to the second depth at first use; a slower model is timed there when a text is there
FIRST_DEEPER_S = 0.4  # at the first use, where somebody waits
LIKE_S = 0.4
NEAR = 2  # times the deepest: beyond, a slope and not a measurement says what steps cost


class Staircase:
    """Milliseconds of one forward call by width and depth.

    Args:
        max_width: largest width that will be asked for.
        watch: how other work is watched for while anything is measured.
    """

    def __init__(self, max_width: int, *, watch: Watch = watch_others) -> None:
        self.max_width = max_width
        self._depths: dict[int, Steps] = {}
        self._noise: dict[int, Steps] = {}  # by depth and width, relative to the time, where it is known
        self._reach: dict[int, int] = {}  # by depth: the widest step that was possible there
        self._near = 0  # the longest context that the depths say something reliable of
        self._disturbed: set[int] = set()  # depths
        self._kept: frozenset[str] = frozenset()  # depths that were in the store when it was read
        self._wrong: set[int] = set()  # depths whose times turned out far from real steps
        self._regimes = Regimes(max_width)
        self._noises: dict[int, NDArray[np.float64]] = {}  # (max_width + 1,) relative, at each of the depths
        self._scaled = 1.0  # what real steps have multiplied the whole table with
        self._contradiction = Contradiction(watch)
        self._calm = Calm(watch)
        self._sound: dict[int, Steps] = {}  # by depth and width: what real steps made of a time, a factor
        self.contradicted = False
        self.like: Staircase | None = None  # what is known of steps with another number of threads
        self.provisional = False  # whether what was taken over was disturbed

    @property
    def watch(self) -> Watch:
        """How other work is watched for."""
        return self._contradiction.watch

    @watch.setter
    def watch(self, watch: Watch) -> None:
        self._contradiction, self._calm = Contradiction(watch), Calm(watch)

    @property
    def _needed(self) -> int:
        """The widest step that is timed if there is time for it."""
        return min(self.max_width, max(WIDTHS))

    @property
    def disturbed(self) -> bool:
        """Whether something else kept the machine busy when a depth was measured; it is not kept."""
        return bool(self._disturbed)

    @property
    def depths(self) -> list[int]:
        """Depths that have been measured, in tokens."""
        return sorted(self._depths)

    def steps(self, depth: int) -> Mapping[int, float]:
        """Measured milliseconds by width at one of `depths`."""
        return dict(sorted(self._depths[depth].items()))

    def needs_measuring(self, length: int) -> bool:
        """Whether nothing that is right has been timed between the last mark before `length` and the next."""
        i = bisect_right(MARKS, length)
        lower, upper = MARKS[i - 1], MARKS[i] if i < len(MARKS) else float("inf")
        for depth in self._depths:  # at every step: a generator takes longer
            if depth not in self._wrong and lower <= depth < upper:
                break
        else:
            return True
        return False

    def costs(self, length: int, before: int = 0, switch_ms: float = 0.0) -> NDArray[np.float64]:
        """(max_width + 1,) milliseconds of a call of n tokens at index n; infinite where unknown, as at 0.

        Without any measurement a call costs as much as its width.

        Args:
            length: tokens before it.
            before: width of the call before.
            switch_ms: what leaving single tokens costs: charged to a wider call after a single token, and not
                to one that keeps its width.
        """
        return self._regimes.step_costs(length, TILES + 1, before, switch_ms)

    def cost(self, n: int, length: int) -> float:
        """Milliseconds of a call of `n` tokens, as in `costs`; of widths that are not used, too."""
        return self._regimes.cost(n, length)

    def quiet_cost(self, n: int, length: int) -> float:
        """Milliseconds of a call of `n` tokens as it was measured, whatever real steps take now."""
        return self._regimes.quiet(min(n, self.max_width), length)

    def all_costs(self, length: int) -> NDArray[np.float64]:
        """`cost` of every width: (max_width + 1,) milliseconds; what is at 0 means nothing."""
        return self._regimes.costs(length)

    def total_costs(self, lengths: Sequence[int]) -> NDArray[np.float64]:
        """`all_costs` of several lengths, added up."""
        return self._regimes.total_costs(lengths)

    def noise(self, n: int, length: int) -> float:
        """Milliseconds by which `cost` is easily off: the standard deviation of its measurement.

        Without any measurement nothing is known, and it is infinite.
        """
        if not self._depths:
            return float("inf")
        return self._regimes.cost(n, length) * self._noises[self._regimes.nearest(length)].item(n)

    def describe(self) -> str:
        """In words: the price of one token, and of more at once, in a short context.

        Widths that were not timed, as there was no time, are not told.
        """
        costs, timed = self.costs(0), self.steps(self.depths[0])
        wide = [f"{n} cost {costs[n] / costs[1]:.1f}x" for n in (4, 8, 16) if n < len(costs) and n in timed]
        return f"one token {costs[1]:.1f} ms" + "".join(f", {text}" for text in wide)

    def measure_first(
        self,
        cache: Cache,
        *,
        clock: Clock = time.perf_counter,
        stopped: Stopped = never,
        progress: Callable[[float], None] = lambda _fraction: None,
    ) -> float:
        """Time the widths in an empty cache and, with room, at `FIRST_DEPTH`; returns the seconds it took.

        Where they are known with another number of threads, a few are timed and the others follow. Once more
        if others kept the machine busy and do so no longer: a few bursts are much of a short measurement.

        Args:
            cache: empty, and empty afterwards.
            clock, progress: seconds; told the fraction that is done.
            stopped: whether to stop at once; then nothing is known.
        """
        start, like = clock(), self.like
        self._measure_depths(cache, clock, stopped, progress)
        soon = clock() - start < BUDGET_S + DEEPER_BUDGET_S
        if self._disturbed and soon and not stopped() and not busy_now(self.watch):
            self.forget()
            self.like = like
            self._measure_depths(cache, clock, stopped, progress)
        if stopped():
            self.forget()
        progress(1.0)
        return clock() - start

    def _measure_depths(
        self, cache: Cache, clock: Clock, stopped: Stopped, progress: Callable[[float], None]
    ) -> None:
        whole: Measurement[None] = Measurement(BUDGET_S + DEEPER_BUDGET_S, clock=clock, watch=self.watch)
        roomy = cache.n_ctx >= FIRST_DEPTH + max(WIDTHS) and self.like is None
        first: Any = {"forced": FORCED, "progress": lambda done: progress(0.5 * done)}
        self.measure(cache, clock=clock, stopped=stopped, **first)
        soon = self.quiet_cost(8, 0) / 8 * FIRST_DEPTH < READ_S * 1e3
        if soon and roomy and not stopped() and not whole.ended:
            if whole.prefill(cache, FIRST_DEPTH, stopped):
                progress(0.8)
                budget: Any = {"budget_s": FIRST_DEEPER_S, "widths": FIRST_WIDTHS, "forced": FORCED - 1}
                self.measure(cache, clock=clock, stopped=stopped, **budget)
            cache.rewind(0)
        whole.finish()
        if self._disturbed or whole.busy:
            self._disturbed.update(self._depths)

    def measure(
        self,
        cache: Cache,
        *,
        clock: Clock = time.perf_counter,
        budget_s: float | None = None,
        stopped: Stopped = never,
        widths: Sequence[int] = DEEPER_WIDTHS,
        progress: Callable[[float], None] | None = None,
        forced: int = 2,
    ) -> float:
        """Time the widths at the cache's present length, which stays; returns the seconds it took.

        The most telling come first, until the budget is spent. Nothing is measured where not all of them fit.
        """
        start = clock()
        told: Any = {"stopped": stopped, "progress": progress, "forced": forced}
        for _ in self.measuring(lambda: cache, clock, budget_s=budget_s, deeper=widths, **told):
            pass
        return clock() - start

    def measuring(
        self,
        cache_of: Callable[[], Cache],
        clock: Clock,
        *,
        budget_s: float | None = None,
        longest_ms: float = np.inf,
        stopped: Stopped = never,
        deeper: Sequence[int] = DEEPER_WIDTHS,
        progress: Callable[[float], None] | None = None,
        forced: int = 2,
        rounds: int = ROUNDS,
    ) -> Iterator[int]:
        """`measure`, one step at a time: yields the width of each. What goes by in between does not count.

        Args:
            cache_of: where the next step is computed, always about as deep as at first.
            clock, budget_s, stopped: as for `measure`.
            longest_ms: widths that are expected to take longer are left out, but for the narrowest two.
            deeper: widths that are timed where those of another depth are known.
            progress: told the fraction that is done.
            forced: so many widths are timed once whatever the budget.
            rounds: how often all are timed once more at the end, there and back.
        """
        length, room = cache_of().length, cache_of().room
        first = self._depths.keys() <= self._wrong
        every, usual_s = (WIDTHS, BUDGET_S) if first else (deeper, DEEPER_BUDGET_S)
        if first and self.like is not None:
            every, usual_s = LIKE_WIDTHS, LIKE_S
        budget = usual_s if budget_s is None else budget_s
        widths = [n for n in every if n <= self.max_width]
        if max(widths) > room or not cache_of().mark():
            return
        expected = self.costs(length)
        options: Any = {"clock": clock, "watch": self.watch, "stopped": stopped, "progress": progress}
        measurement: Measurement[None] = Measurement(budget, **options, turns=len(widths), needed=2, least=2)

        def guess(n: int) -> float:
            return in_proportion(measurement.times[None], n) if first else float(expected[n])

        def step(_arm: None, n: int) -> float:
            if (cache := cache_of()).length != length:  # it has grown, or is another text
                cache.mark()
            if not measurement.times[None]:
                time_step(cache, n, clock)  # a warm-up: weights may have to come from a disk
            return time_step(cache, n, clock, calls=cache.model.facts.settles)

        measurement.times[None] = {}
        widths = [*widths[:2], *(n for n in widths[2:] if first or expected[n] <= longest_ms)]
        order = visits(widths, measurement.times[None], forced, rounds)
        yield from measurement.turn_by_turn(order, step, guess)
        if not measurement.stopped:
            self._take_over(length, measurement.sound(None), disturbed=measurement.disturbed)

    def _take_over(self, length: int, times: Mapping[int, list[float]], *, disturbed: bool) -> None:
        """What was measured at a depth is known from now on, in place of what was wrong."""
        for depth in self._wrong:
            for by_depth in (self._depths, self._noise, self._reach):
                by_depth.pop(depth, None)
        for depth in (length, *self._wrong):
            self._sound.pop(depth, None)
        self._disturbed -= self._wrong
        self._wrong.clear()
        if disturbed:
            self._disturbed.add(length)
        self._depths[length] = {n: min(taken) for n, taken in times.items()}
        self._noise[length] = relative_noise(times)
        self._reach[length] = self._needed
        if self.like is not None:
            self._follow(self.like, length)
        self._fill_all()
        self._regimes.reset()
        self._contradiction.restart()

    def _follow(self, like: Staircase, length: int) -> None:
        """Steps that were not timed follow from those with another number of threads, depth by depth."""
        timed = dict(self._depths[length])
        for depth in {length, *like.depths}:
            table = {n: like.quiet_cost(n, depth) for n in like.steps(like.depths[0]) if n <= self.max_width}
            steps = following(timed, lambda n: like.quiet_cost(n, length), table)
            here = timed if depth == length else {}
            self._depths[depth] = steps | here
            self._noise[depth] = dict.fromkeys(steps, LIKE_NOISE) | (self._noise[length] if here else {})
            self._reach[depth] = self._needed
        self._disturbed.update(like.depths if length in self._disturbed else ())
        self.like = None

    def observe(self, n: int, length: int, ms: float) -> None:
        """A real step of `n` tokens at `length` took `ms` milliseconds."""
        if not self._depths:
            return
        regimes = self._regimes
        if length <= self._near and self._contradiction.observe(ms / regimes.quiet(n, length) * self._scaled):
            self.contradicted = True
            self._wrong.update(self._depths)
        factor = regimes.observe(n, length, ms)
        if factor != 1.0:
            self._scaled *= factor
            for depth, steps in self._depths.items():
                self._depths[depth] = {width: ms * factor for width, ms in steps.items()}
        if self._calm.observe(n):
            self._settle()

    def to_json(self) -> dict[str, Any]:
        """A plain value for the store: measured times, moved half of the way to what undisturbed steps take.

        Depths whose measurement was disturbed, or turned out wrong, are left out. A time is in milliseconds,
        and beside it is its relative noise where that is known. The widest step there could have been is null
        if it was not timed.
        """
        return self._to_json(self._depths.keys() - self._disturbed - self._wrong)

    def disturbed_json(self) -> dict[str, Any]:
        """The same of the depths whose measurement was disturbed."""
        return self._to_json(self._disturbed - self._wrong)

    def _to_json(self, depths: Set[int]) -> dict[str, Any]:
        self._settle()
        return {
            str(depth): {
                str(self._reach[depth]): None,
                **corrected(self._depths[depth], self._noise[depth], self._sound.get(depth, {})),
            }
            for depth in sorted(depths)
        }

    def _settle(self) -> None:
        """What real steps say now is to be kept, of the widths that they speak for."""
        for n in self._calm.widths():
            for depth, factor in self._regimes.corrections(n).items():
                self._sound.setdefault(depth, {})[n] = factor

    def load_json(self, data: Mapping[str, Any]) -> None:
        """Take over what `to_json` gave.

        Raises:
            ValueError, TypeError, AttributeError: it is something else.
        """
        reach = {int(d): widest(s) for d, s in data.items()}
        depths, noise = read_table(data)
        self._depths, self._noise, self._reach = depths, noise, reach
        self._regimes.rebase({})
        self._sound.clear()
        self._disturbed.clear()
        self._wrong.clear()
        self.provisional = False
        self._scaled = 1.0
        self._fill_all()
        self._regimes.reset()
        self._contradiction.restart()

    def load_kept(self, data: Mapping[str, Any], disturbed: Mapping[str, Any] | None = None) -> None:
        """`load_json` without the depths that were measured when only narrower steps were possible: they are
        measured again.

        Args:
            data: what `to_json` gave.
            disturbed: what `disturbed_json` gave; where there is nothing else, it is `provisional`.

        Raises:
            ValueError, TypeError, AttributeError: it is something else.
        """
        self._kept = frozenset(data)
        self.load_json({depth: s for depth, s in data.items() if widest(s) >= self._needed})
        if disturbed and not self._depths:
            self.load_json({depth: s for depth, s in disturbed.items() if widest(s) >= self._needed})
            self._disturbed.update(self._depths)
            self.provisional = self.disturbed

    def forget(self) -> None:
        """Nothing is known any more."""
        self.load_json({})

    def with_wider(self, steps: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
        """`steps` as `to_json` gave them, and of those `kept` the depths that others measured meanwhile, or
        where wider ones were possible.

        A run that allows narrow steps only says nothing about these, unless it found them to be wrong.
        """
        if self.contradicted:
            return dict(steps)
        reach = {depth: widest(s) for depth, s in kept.items()}
        wider = {depth: s for depth, s in kept.items() if reach[depth] > self._needed}
        new = {d: s for d, s in kept.items() if reach[d] == self._needed and d not in self._kept}
        return {**new, **steps, **wider}

    def _fill_all(self) -> None:
        """Fill in the widths that were not measured."""
        if not self._depths:
            return
        self._near = max(NEAR * max(self._depths), MARKS[1])
        both = filled(self._depths, self._noise, self.max_width)
        self._noises = {depth: noise for depth, (_, noise) in both.items()}
        self._regimes.rebase({depth: table for depth, (table, _) in both.items()})
