"""The staircase: what one forward call of n tokens costs on this machine, measured.

It is neither a line nor monotonic in n (kernels work in groups of rows), and it grows with the depth of the
context, faster for wider calls, because every row attends to everything before it. So it is measured at a
few depths: in the empty context and a little deeper at first use, then whenever a generation first passes a
*mark*, on the spot, by computing guesses that are then forgotten. Between measured depths it is
interpolated, and every real step corrects the depths on both sides of it. Corrections fade: a width that was
dear while something else kept the machine busy is tried again some time later.

Whatever else the machine does only ever adds time. So of repeated measurements the least counts, and one
whose repetitions disagree is used but not kept. A step that is far off counts for nothing until it has
happened several times in a row: then it is the memory that is wrong, and it is moved at once. Single tokens,
which are taken all the time, speak for every width, so that one nobody tries, because it is remembered as
too dear, becomes cheaper with them; other widths speak for themselves. Several of them in a row that are too
dear speak for all wide steps, for a while: something else takes what they lived on.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache
from specx.engine.cost.patience import Busy, Patience

__all__ = ["MARKS", "UNSETTLED", "Staircase", "unsettled"]

# Depths in tokens. llama.cpp's attention takes another path from 512 padded cells (256 tokens) on.
MARKS = (0, 272, 1024, 4096, 16384, 65536)
WIDTHS = (1, 2, 4, 8, 16, 64, 3, 6, 5, 7, 12, 10, 24, 32)  # most informative first
DEEPER_WIDTHS = (1, 2, 64, 4, 8, 16)  # at later depths, where the shape is known from the one before
INTERPOLATED = 32  # beyond, attention in tiles makes wider steps cheaper again: only measured widths are used
AGREE = 1.3  # repetitions agree if half of them are at most this many times the least
ODD = 2.0  # a width is implausible if other ways to compute as many tokens are this many times cheaper
RETRIES = 3  # rounds over the widths whose repetitions disagree, or that are implausible
UNSETTLED = 0.25  # a larger share of such widths means that something else kept the machine busy
FIRST_DEPTH = 288  # tokens; where the growth with depth is measured at first use
BUDGET_S = 1.6  # for the first depth; a 1B model on two cores gets through most widths in that time
DEEPER_BUDGET_S = 0.8
STEP_RATE = 0.15  # weight of one real step in the running estimate of its width
REGIME_RATE = 0.1  # weight of one real step in the estimate of the machine's present speed
SPEED_LEAK = 0.003  # per step: what one width says of all others is forgotten, so that they are tried again
DEAR_RATE = 0.3  # weight of one wide step that is cheaper than thought in what makes wide steps dear
FADE = 0.001  # per step: what was learned of a width is forgotten, too, unless the width is seen again
FADE_EVERY = 16  # steps are faded at once: NumPy took half of the time that a step is observed in
CLIP = 2.0  # a step more than this many times off is a hiccup
SURE = 3  # unless it was as many in a row

Steps = dict[int, float]
Weights = tuple[tuple[int, float], tuple[int, float]]
Clock = Callable[[], float]
Stopped = Callable[[], bool]


def _never() -> bool:
    return False


class Staircase:
    """Milliseconds of one forward call by width and depth.

    Args:
        max_width: largest width that will be asked for.
    """

    def __init__(self, max_width: int) -> None:
        self.max_width = max_width
        self._depths: dict[int, Steps] = {}
        self._reach: dict[int, int] = {}  # by depth: the widest step that was possible there
        self._speed = 1.0  # present time of a step relative to the recorded one
        self._measured: dict[int, NDArray[np.float64]] = {}  # (max_width + 1,) at each of the depths
        self._filled: dict[int, NDArray[np.float64]] = {}  # the same, corrected by real steps
        self._sorted: list[int] = []
        self._disturbed: set[int] = set()  # depths
        self._off: dict[int, list[float]] = {}  # by width, its latest steps if all were far off to one side
        self._plain = max_width  # the narrowest width that steps have had
        self._observed = 0  # steps
        self._weighed: tuple[int, Weights] | None = None  # `_weights` of a length, since the last step
        self._apart: set[int] = set()  # widths that turned out far off since single tokens last did
        self._dear = np.ones(max_width + 1)  # by width: present time of wide steps, beyond that of all
        self._strays: list[tuple[int, float]] = []  # the latest wide steps, if all were far too dear

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
        """Whether nothing has been timed between the last mark before `length` and the next."""
        i = bisect_right(MARKS, length)
        upper = MARKS[i] if i < len(MARKS) else float("inf")
        return not any(MARKS[i - 1] <= depth < upper for depth in self._depths)

    def costs(self, length: int) -> NDArray[np.float64]:
        """(max_width + 1,) milliseconds of a call of n tokens at index n; infinite where unknown, as at 0.

        Without any measurement a call costs as much as its width.
        """
        if not self._depths:
            costs = np.arange(self.max_width + 1, dtype=np.float64)
        else:
            (low, below), (high, above) = self._weights(length)
            costs = self._filled[low] * (below * self._speed)
            if above:
                costs += self._filled[high] * (above * self._speed)
            costs *= self._dear
        costs[0] = np.inf
        costs[INTERPOLATED + 1 : -1] = np.inf
        return costs

    def cost(self, n: int, length: int) -> float:
        """Milliseconds of a call of `n` tokens, as in `costs`; of widths that are not used, too."""
        return self._expected(n, length) if self._depths else float(n)

    def noise(self, n: int, length: int) -> float:
        """Milliseconds by which the cost of a call of `n` tokens at `length` is uncertain."""
        return 0.02 * self.cost(n, length)

    def measure_first(
        self,
        cache: Cache,
        *,
        clock: Clock = time.perf_counter,
        stopped: Stopped = _never,
        busy: Busy | None = None,
    ) -> float:
        """Time the widths in an empty cache and, if the context is long enough, at `FIRST_DEPTH`.

        Returns the seconds it took. The cache is empty afterwards. Nothing is known if it was stopped.
        """
        start = clock()
        patience = Patience(BUDGET_S + DEEPER_BUDGET_S, clock, busy)
        self.measure(cache, clock=clock, stopped=stopped, busy=busy)
        roomy = cache.n_ctx >= FIRST_DEPTH + max(DEEPER_WIDTHS)
        if roomy and not stopped() and not patience.ended:
            if patience.prefill(cache, FIRST_DEPTH):
                self.measure(cache, clock=clock, stopped=stopped, busy=busy)
            cache.rewind(0)
        if self._disturbed or patience.ended:
            self._disturbed.update(self._depths)
        if stopped():
            self.load_json({})
        return clock() - start

    def measure(
        self,
        cache: Cache,
        *,
        clock: Clock = time.perf_counter,
        budget_s: float | None = None,
        stopped: Stopped = _never,
        busy: Busy | None = None,
    ) -> float:
        """Time the widths at the cache's present length; returns the seconds it took.

        Widths are taken in the order of what they tell, until the budget is spent; at least 1 and 2 are.
        `busy` says whether something else keeps the machine busy, as in `Patience`.
        The committed sequence is as before afterwards. Near the end of the context not every width fits:
        nothing is measured then. Nor is anything known if `stopped` says so, asked before each call.
        """
        start = clock()
        length = cache.length
        first = not self._depths
        budget = (BUDGET_S if first else DEEPER_BUDGET_S) if budget_s is None else budget_s
        widths = [n for n in (WIDTHS if first else DEEPER_WIDTHS) if n <= self.max_width]
        if max(widths) > cache.n_ctx - length:
            return 0.0
        expected = self.costs(length)
        patience = Patience(budget, clock, busy)
        times: dict[int, list[float]] = {}
        steps: Steps = {}
        for i, n in enumerate(_order(widths, times)):
            guess = _guess(steps, n) if first else float(expected[n])
            if i > 2 and clock() - start + guess / 1e3 > budget:
                continue
            if stopped() or (i > 1 and patience.ended):
                break
            times.setdefault(n, []).append(_time(cache, n, clock, warm_up=not steps))
            steps[n] = min(times[n])
        if stopped():
            return clock() - start
        if patience.ended or len(unsettled(times)) > UNSETTLED * len(times):
            self._disturbed.add(length)
        self._depths[length] = steps
        self._reach[length] = self._needed
        self._fill_all()
        self._dear.fill(1.0)
        self._restart()
        return clock() - start

    def observe(self, n: int, length: int, ms: float) -> None:
        """A real step of `n` tokens at `length` took `ms` milliseconds."""
        if not self._depths:
            return
        self._plain = min(self._plain, n)
        self._fade(length)
        expected = self._expected(n, length)
        ratio = max(ms, 1e-6) / expected
        if 1 / CLIP <= ratio <= CLIP:
            self._off.pop(n, None)
            for depth, weight in self._weights(length):
                self._filled[depth][n] *= ratio ** (STEP_RATE * min(weight, 1.0))
            self._speed *= ratio**REGIME_RATE
            if n != self._plain:
                self._strays.clear()
                if ratio < 1:
                    self._dear = np.maximum(self._dear * ratio**DEAR_RATE, 1.0)
        else:
            off = [r for r in self._off.get(n, []) if (r > 1) == (ratio > 1)] + [ratio]
            self._off[n] = off
            if len(off) >= SURE:
                least = min(off) if ratio > 1 else max(off)
                self._move(n, length, least * expected)
            elif n != self._plain:
                self._stray(n, ratio)
        self._speed **= 1 - SPEED_LEAK
        self._weighed = None

    def _fade(self, length: int) -> None:
        """Forget a little of what steps told; several steps' worth now and then, which takes less time."""
        self._observed += 1
        if self._observed % FADE_EVERY:
            return
        for depth, weight in self._weights(length):
            if weight > 0:
                change = self._measured[depth] / self._filled[depth]
                self._filled[depth] *= change ** (1 - (1 - FADE) ** FADE_EVERY)
        self._dear **= (1 - SPEED_LEAK) ** FADE_EVERY

    def _stray(self, n: int, ratio: float) -> None:
        """A step of `n` tokens took `ratio` times as long as expected: after a few, wide steps are dear now.

        How much is interpolated between the widths seen, and down to nothing at the narrowest.
        """
        if ratio < 1:
            self._strays.clear()
            self._dear.fill(1.0)
            return
        self._strays.append((n, ratio))
        if len(self._strays) < SURE:
            return
        least: dict[int, float] = {self._plain: 1.0}
        for width, times in self._strays:
            least[width] = min(times, least.get(width, np.inf))
        known = sorted(least)
        widths = np.arange(self.max_width + 1)
        self._dear *= np.exp(np.interp(widths, known, np.log([least[width] for width in known])))
        self._strays.clear()
        self._off.clear()

    def _expected(self, n: int, length: int) -> float:
        """Milliseconds that a step is expected to take at present."""
        (low, below), (high, above) = self._weights(length)
        mean = self._filled[low].item(n) * below + self._filled[high].item(n) * above
        return mean * self._speed * self._dear.item(n)

    def _move(self, n: int, length: int, ms: float) -> None:
        """Steps of width `n` surely take `ms` milliseconds at `length`, which is far from what was known."""
        factor = ms / self._expected(n, length)
        if n != self._plain:
            self._off.pop(n)
            self._apart.add(n)
            for depth, weight in self._weights(length):
                if weight > 0:
                    self._filled[depth][n] *= factor
            return
        apart = list(self._apart)
        if factor > 1:  # the machine is slower, for now
            self._speed *= factor
            self._dear = np.maximum(self._dear / factor, 1.0)
            for filled in self._filled.values():
                filled[apart] /= factor
        else:
            self._forget_dearness(n, apart)
            factor = ms / self._expected(n, length)
            if factor < 1 / CLIP:  # the machine cannot be too fast: it was not at its best when measured
                self._scale(factor, apart)
        self._restart(self._speed)

    def _forget_dearness(self, n: int, apart: list[int]) -> None:
        """Width `n` goes back to its measured time, and others to theirs where they were thought dearer."""
        for depth, filled in self._filled.items():
            present = filled[apart] * self._speed
            np.minimum(filled, self._measured[depth], out=filled)
            filled[n] = self._measured[depth][n]
            filled[apart] = present
        self._speed = 1.0
        self._dear.fill(1.0)

    def _scale(self, factor: float, apart: list[int]) -> None:
        """Multiply what was measured, and the present times of all widths but those in `apart`."""
        for depth, filled in self._filled.items():
            present = filled[apart]
            np.multiply(filled, factor, out=filled)
            filled[apart] = present
            self._measured[depth] *= factor
            self._depths[depth] = {width: ms * factor for width, ms in self._depths[depth].items()}

    def _restart(self, speed: float = 1.0) -> None:
        """Nothing is pending about how far off anything might be."""
        self._speed = speed
        self._off.clear()
        self._apart.clear()
        self._strays.clear()

    def to_json(self) -> dict[str, Any]:
        """A plain value for the store: the measured times, moved half of the way to what they are now.

        Depths whose measurement was disturbed are left out, and a width that is far dearer now, as on a busy
        machine, counts as little dearer. The widest step there could have been is null if it was not timed.
        """
        return {
            str(depth): {
                str(self._reach[depth]): None,
                **{str(n): ms * min(self._change(depth, n), CLIP) ** 0.5 for n, ms in steps.items()},
            }
            for depth, steps in self._depths.items()
            if depth not in self._disturbed
        }

    def _change(self, depth: int, n: int) -> float:
        """What real steps made of the time of width `n`: a factor."""
        known = n <= self.max_width
        return self._filled[depth].item(n) / self._measured[depth].item(n) if known else 1.0

    def load_json(self, data: Mapping[str, Any]) -> None:
        """Take over what `to_json` gave.

        Raises:
            ValueError, TypeError, AttributeError: it is something else.
        """
        reach = {int(d): _widest(s) for d, s in data.items()}
        depths = {
            int(d): {int(n): float(ms) for n, ms in s.items() if ms is not None} for d, s in data.items()
        }
        if any(n < 1 or not 0 < ms < float("inf") for s in depths.values() for n, ms in s.items()):
            raise ValueError("a staircase holds positive times of positive widths")
        if any(d < 0 or 1 not in s for d, s in depths.items()):
            raise ValueError("a staircase begins with the time of one token")
        self._depths, self._reach = depths, reach
        self._measured.clear()
        self._filled.clear()
        self._disturbed.clear()
        self._fill_all()
        self._dear.fill(1.0)
        self._restart()

    def load_kept(self, data: Mapping[str, Any]) -> None:
        """`load_json` without the depths that were measured when only narrower steps were possible: they are
        measured again.

        Raises:
            ValueError, TypeError, AttributeError: it is something else.
        """
        self.load_json({depth: s for depth, s in data.items() if _widest(s) >= self._needed})

    def with_wider(self, steps: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
        """`steps` as `to_json` gave them, and of those `kept` the depths where wider ones were possible.

        A run that allows narrow steps only says nothing about what others measured.
        """
        return {**steps, **{depth: s for depth, s in kept.items() if _widest(s) > self._needed}}

    def _weights(self, length: int) -> Weights:
        """The two measured depths that speak for `length`, and how much each does."""
        if self._weighed is None or self._weighed[0] != length:  # a step asks several times
            self._weighed = length, self._weigh(length)
        return self._weighed[1]

    def _weigh(self, length: int) -> Weights:
        depths = self._sorted
        i = min(bisect_right(depths, length), len(depths) - 1)
        low, high = depths[max(i - 1, 0)], depths[i]
        if low == high or length <= low:
            return (low, 1.0), (low, 0.0)
        share = (length - low) / (high - low)  # above 1 beyond the deepest: along its slope
        if share > 1.0 and (self._filled[high] < self._filled[low]).any():
            return (high, 1.0), (high, 0.0)  # a noisy slope must not be followed downwards
        return (low, 1.0 - share), (high, share)

    def _fill_all(self) -> None:
        """Fill in the widths that were not measured.

        At the depth with most widths they are interpolated; elsewhere the difference to that depth is,
        which keeps the shape of the steps.
        """
        self._sorted = sorted(self._depths)
        self._weighed = None
        if not self._depths:
            return
        base = max(self._sorted, key=lambda d: (len(self._depths[d]), -d))
        shape = self._interpolate(self._depths[base])
        for depth, steps in self._depths.items():
            known = {n: ms - float(shape[n]) for n, ms in steps.items() if n <= self.max_width}
            measured = np.maximum(shape + self._interpolate(known), 0.5 * shape)
            change = self._filled[depth] / self._measured[depth] if depth in self._measured else 1.0
            self._measured[depth], self._filled[depth] = measured, measured * change

    def _interpolate(self, steps: Mapping[int, float]) -> NDArray[np.float64]:
        """Values at 0..max_width, from those at some widths; beyond the widest along the last step."""
        widths = np.arange(self.max_width + 1, dtype=np.float64)
        known = sorted(steps)
        values = [steps[n] for n in known]
        if len(known) == 1:
            return values[0] * np.maximum(widths / known[0], 1.0)
        slope = (values[-1] - values[-2]) / (known[-1] - known[-2])
        beyond = values[-1] + (widths - known[-1]) * max(slope, 0.0)
        return np.where(widths > known[-1], beyond, np.interp(widths, known, values))


def _widest(steps: Mapping[str, Any]) -> int:
    """The widest step there could have been when a depth was measured, in the form of the store."""
    return max(int(n) for n in steps)


def _order(widths: list[int], times: Mapping[int, Sequence[float]]) -> Iterator[int]:
    """Which width is timed next: all of them twice, the narrowest more often, then those that do not settle.

    Args:
        widths: the most informative first.
        times: what has been measured so far, as it grows.
    """
    yield from [*widths[:2] * 3, *widths[2:] * 2]
    for _ in range(RETRIES):
        yield from unsettled(times)


def unsettled(times: Mapping[int, Sequence[float]]) -> list[int]:
    """Widths of which half of the times are not close to the least, or are dearer than they can be."""
    least = {n: min(taken) for n, taken in times.items()}
    single = min((least[n] / n for n in (1, 2) if n in least), default=np.inf)
    found = []
    for n, taken in times.items():
        wider = min((ms for m, ms in least.items() if n < m <= INTERPOLATED), default=np.inf)
        median = sorted(taken)[len(taken) // 2]
        if median > AGREE * least[n] or least[n] > ODD * min(n * single, wider):
            found.append(n)
    return found


def _time(cache: Cache, n: int, clock: Clock, *, warm_up: bool) -> float:
    tokens = np.zeros(n, np.int32)
    parents = np.arange(-1, n - 1, dtype=np.int32)
    length = cache.length
    took = 0.0
    for _ in range(2 if warm_up else 1):
        start = clock()
        cache.forward(tokens, parents)
        took = (clock() - start) * 1e3
        cache.keep([0])
        cache.rewind(length)
    return max(took, 1e-6)


def _guess(steps: Mapping[int, float], n: int) -> float:
    """Milliseconds that width `n` may take: in proportion to the widest known one that is not wider."""
    known = max((m for m in steps if m <= n), default=0)
    return steps[known] * n / known if known else 0.0
