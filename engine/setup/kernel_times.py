"""How long a model's steps take on each of the kernels: all of them, or as few as a choice needs.

Two bounds make a choice cheap. What steps take in an empty context, the multiplications alone, is the least
that they take in any. And a wider step takes at least as long as a narrower one. So a few narrow steps in an
empty context bound the rate that llama.cpp's multiplication can have, with whatever attention.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from specx.backends.base import Cache, Model
from specx.backends.llama import kernels as ggml_device
from specx.backends.llama.kernels import ATTENTION, SPECX, STOCK, Kernels
from specx.engine.cost.rate import chain_rate
from specx.engine.cost.staircase import FIRST_DEPTH, Staircase
from specx.engine.cost.timing import (
    TILES,
    Clock,
    Measurement,
    Stopped,
    Watch,
    never,
    powers,
    time_step,
    watch_others,
)

__all__ = ["DEPTH", "KernelTimes", "SwitchableModel", "compare_kernels", "time_multiplication"]

DEPTH = FIRST_DEPTH  # tokens of context at which kernels are compared
WIDTHS = powers(16)
BUDGET_S = 1.0  # for each of the kernels
LEAST, MOST = 3, 8  # visits to each width: of three one is undisturbed, and after eight the least stays
CLEARLY = 1.03  # times as fast: less may be noise
NARROW = powers(8)  # widths that bound what wider ones take
LONG_MS = 60.0  # a step that building its graph adds little to
ALONE_S = 0.7  # for them on both attentions
ALONE_VISITS = 2  # two attentions, and what they have in common is timed four times then


class SwitchableModel(Model, Protocol):
    """A model whose kernels of attention, and whose threads, can be changed between two steps."""

    kernels: Kernels

    def set_threads(self, decode: int, batch: int) -> None:
        """Use so many threads for one token, and for more than one."""


Load = Callable[[Kernels], SwitchableModel]
Steps = dict[int, float]


@dataclass(slots=True)
class KernelTimes:
    """Milliseconds of a step by kernels, depth and width.

    Attributes:
        steps: by name of the kernels and depth; what was not measured is not there.
        disturbed: whether something else kept the machine busy.
    """

    steps: dict[str, dict[int, Steps]] = field(default_factory=dict)
    disturbed: bool = False

    def add(self, kernels: Kernels, staircase: Staircase) -> None:
        """Take over what was measured of all steps on `kernels`."""
        timed = [n for n in WIDTHS if n in staircase.steps(staircase.depths[0])]
        self.steps[kernels.name] = {
            depth: {n: staircase.quiet_cost(n, depth) for n in timed} for depth in staircase.depths
        }

    def best(self) -> Kernels:
        """The kernels of the highest expected rate; what replaces less wins a near tie."""
        best = STOCK
        for kernels in (ATTENTION, SPECX):
            if kernels.name in self.steps and self.rate(kernels.name) > CLEARLY * self.rate(best.name):
                best = kernels
        return best

    @property
    def most_of_stock(self) -> float:
        """The highest rate that llama.cpp's multiplication allows, by its steps in an empty context."""
        least: Steps = {}
        for name in (STOCK.name, ATTENTION.name):
            for n, ms in self.steps.get(name, {}).get(0, {}).items():
                least[n] = min(ms, least.get(n, np.inf))
        known = sorted(least)
        # A step takes at least as long as the widest known one that is not wider.
        below = [after - 1 for after in known[1:]] + [max(TILES, known[-1])]
        return chain_rate({1: least[1]} | {n: least[m] for m, n in zip(known, below, strict=True)}).rate

    def least_rate(self, name: str) -> float:
        """Expected tokens per millisecond on the kernels `name` at the depth where that is least."""
        return min(chain_rate(steps).rate for steps in self.steps[name].values())

    def rate(self, name: str) -> float:
        """Expected tokens per millisecond on the kernels `name`, the mean over the depths."""
        depths = self.steps[name].values()
        return float(np.mean([chain_rate(steps).rate for steps in depths]))

    def margin(self, best: Kernels) -> float:
        """How many times the highest rate that others can have the rate on `best` is."""
        depth = max(self.steps[best.name])
        timed = [name for name in self.steps if name != best.name and depth in self.steps[name]]
        others = [chain_rate(self.steps[name][depth]).rate for name in timed]
        return self.least_rate(best.name) / (max(others) if others else self.most_of_stock)

    def explained(self, kernels: Kernels) -> str:
        """How much faster than llama.cpp's kernels `kernels` are, in words."""
        depth, stock = next(iter(self.steps[STOCK.name].items()))
        steps = self.steps[kernels.name][depth]
        gains = ", ".join(
            f"{n}: {stock[n] / steps[n]:.1f}x" for n in (1, 4, 8, 16) if n in steps and n in stock
        )
        return f"{gains} the speed of llama.cpp's by tokens per step"


def compare_kernels(
    load: Load,
    *,
    depths: Sequence[int] = (DEPTH,),
    widths: Sequence[int] = WIDTHS,
    budget_s: float = BUDGET_S,
    clock: Clock = time.perf_counter,
    watch: Watch = watch_others,
    progress: Callable[[float], None] | None = None,
    groups: Sequence[Sequence[Kernels]] = ((STOCK, ATTENTION), (SPECX,)),
    calls: int = 2,
) -> tuple[KernelTimes, SwitchableModel, Kernels]:
    """Time a model on each of the kernels.

    Args:
        load: loads the model on given kernels.
        depths: tokens of context; those that do not fit are left out; if none does, the empty context
            is taken.
        widths: tokens of a step.
        budget_s: seconds for each of the kernels and depths, reading the context excluded.
        clock: seconds.
        watch: how other work is watched for. Beside it a depth that takes too long to reach is measured in
            the empty context, not all widths are, and what comes after it is left out.
        progress: called with the fraction done, 0 to 1, reading the context excluded.
        groups: the kernels, those together that share the weights and take turns on one loaded model.
        calls: of a width in a row, of which the least counts: after the first the graph is built. Single
            tokens follow each other in any case.

    Returns:
        The times, and the model as it was loaded last, empty, with the kernels it was loaded on.
    """
    comparison = KernelTimes()
    if ggml_device.unavailable():
        groups = ((STOCK,),)
    loaded = groups[0][0]
    done, model = 0.0, load(loaded)
    for arms in groups:
        if arms[0] != loaded:
            model.close()
            model, loaded = load(arms[0]), arms[0]
        share = len(arms) / sum(map(len, groups))
        timing = _Timing(
            model, model.open(), arms, budget_s, clock, watch, _part(progress, done, share), calls
        )
        done += share
        try:
            busy = timing.at(depths, widths, comparison)
        except BaseException:
            model.close()
            raise
        if busy:  # nothing follows from it, whatever the others would take
            break
    return comparison, model, loaded


@dataclass(frozen=True, slots=True)
class _Timing:
    """How the kernels that share a loaded model are timed."""

    model: SwitchableModel
    cache: Cache
    arms: Sequence[Kernels]
    budget_s: float
    clock: Clock
    watch: Watch
    progress: Callable[[float], None]
    calls: int

    def at(self, depths: Sequence[int], widths: Sequence[int], comparison: KernelTimes) -> bool:
        """Time steps at each of the depths, and put them into `comparison`; true if others were busy."""
        fitting = [n for n in widths if n <= self.cache.max_width]
        reached = [d for d in depths if d + max(fitting) <= self.cache.n_ctx] or [0]
        for i, depth in enumerate(reached):
            progress = _part(self.progress, i / len(reached), 1 / len(reached))
            measurement = self._measure(depth, fitting, progress)
            comparison.disturbed |= measurement.disturbed
            for name, steps in measurement.least().items():
                comparison.steps.setdefault(name, {})[self.cache.length] = steps
            if measurement.busy:
                break
        self.cache.close()
        return measurement.busy

    def _measure(
        self, depth: int, widths: Sequence[int], progress: Callable[[float], None]
    ) -> Measurement[str]:
        """Each width on each of the kernels, as often as the budget allows; the first time always."""
        measurement: Measurement[str] = Measurement(
            self.budget_s * len(self.arms),
            clock=self.clock,
            watch=self.watch,
            progress=progress,
            turns=len(self.arms) * len(widths),
            least=LEAST,
            most=MOST,
        )
        self.cache.rewind(0)
        if not measurement.prefill(self.cache, depth):
            self.cache.rewind(0)
        if not self.cache.mark():
            self.cache.rewind(0)
        by_name = {kernels.name: kernels for kernels in self.arms}

        def step(name: str, n: int) -> float:
            self.model.kernels = by_name[name]
            return time_step(self.cache, n, self.clock, calls=self.calls if n > 1 else 2)

        order = ((visit, name, n) for visit in range(MOST) for name in by_name for n in widths)
        measurement.take(order, step)
        return measurement


def _part(progress: Callable[[float], None] | None, done: float, share: float) -> Callable[[float], None]:
    """What is told the fraction of a `share` of the work, which begins when `done` of all of it is."""
    return lambda fraction: None if progress is None else progress(done + share * fraction)


def time_multiplication(
    model: SwitchableModel,
    *,
    clock: Clock = time.perf_counter,
    watch: Watch = watch_others,
    stopped: Stopped = never,
) -> KernelTimes:
    """Time narrow steps in an empty context, on llama.cpp's multiplication with either attention.

    Args:
        model: loaded on llama.cpp's kernels; no text is open.
        clock: seconds.
        watch: how other work is watched for.
        stopped: whether to stop at once; then nothing follows from it.
    """
    cache = model.open()
    widths = [n for n in NARROW if n <= cache.max_width]
    options: Any = {"clock": clock, "watch": watch, "stopped": stopped}
    measurement: Measurement[str] = Measurement(ALONE_S, turns=2 * len(widths), most=ALONE_VISITS, **options)

    def step(name: str, n: int) -> float:
        model.kernels = ggml_device.KERNELS[name]
        if not measurement.times[name]:
            time_step(cache, n, clock)  # a warm-up: weights may have to come from a disk
        ms = time_step(cache, n, clock)
        return ms if ms > LONG_MS else min(ms, time_step(cache, n, clock))

    def order() -> Iterator[tuple[int, str, int]]:
        for visit in range(ALONE_VISITS):
            yield from ((visit, kernels.name, n) for n in widths for kernels in (STOCK, ATTENTION))

    measurement.take(order(), step)
    cache.close()
    times = {name: {0: steps} for name, steps in measurement.least().items()}
    return KernelTimes(times, disturbed=measurement.disturbed)
