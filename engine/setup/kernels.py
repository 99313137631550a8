"""Which kernels a model runs on here: llama.cpp's own, specx's attention, or specx's weights as well.

Each is measured on the loaded model, and the one of the highest expected rate is taken: the objective of the
plan, for drafts of which each further token comes true with a fixed probability. The choice is kept by model,
build, threads and cache types.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from specx.backends.base import Cache, Model
from specx.backends.llama import kernels as ggml_device
from specx.backends.llama.kernels import ATTENTION, SPECX, STOCK, Kernels
from specx.backends.store import Store
from specx.engine.cost.measuring import WAITING
from specx.engine.cost.rate import chain_rate
from specx.engine.cost.timing import (
    Clock,
    Measurement,
    Watch,
    busy_now,
    powers,
    time_step,
    watch_others,
)
from specx.engine.setup.basis import is_contradicted
from specx.engine.setup.choice import ASKED, MEASURED, Choice
from specx.engine.setup.here import Here

__all__ = [
    "DEPTH",
    "Chosen",
    "KernelTimes",
    "choice_of_auto",
    "choose_kernels",
    "compare_kernels",
    "load_on_chosen",
]

DEPTH = 256  # tokens of context at which kernels are compared
WIDTHS = powers(16)
BUDGET_S = 1.0  # for each of the kernels
LEAST, MOST = 3, 8  # visits to each width: of three one is undisturbed, and after eight the least stays
BUSY = "for the machine was busy when they were to be compared"
CLEARLY = 1.03  # times as fast: less may be noise


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

    def best(self) -> Kernels:
        """The kernels of the highest expected rate; what replaces less wins a near tie."""
        best = STOCK
        for kernels in (ATTENTION, SPECX):
            if kernels.name in self.steps and self.rate(kernels.name) > CLEARLY * self.rate(best.name):
                best = kernels
        return best

    def rate(self, name: str) -> float:
        """Expected tokens per millisecond on the kernels `name`, the mean over the depths."""
        depths = self.steps[name].values()
        return float(np.mean([chain_rate(steps).rate for steps in depths]))

    def explained(self, kernels: Kernels) -> str:
        """How much faster than llama.cpp's kernels `kernels` are, in words."""
        depth, stock = next(iter(self.steps[STOCK.name].items()))
        steps = self.steps[kernels.name][depth]
        gains = ", ".join(
            f"{n}: {stock[n] / steps[n]:.1f}x" for n in (1, 4, 8, 16) if n in steps and n in stock
        )
        return f"{gains} the speed of llama.cpp's by tokens per step"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A loaded model and the kernels it runs on."""

    model: SwitchableModel
    kernels: Choice[str]


def choose_kernels(
    wanted: str, store: Store, key: str, notice: Callable[[str], None], *, measure: bool = True
) -> Choice[str | None]:
    """The kernels to load a model on; None if they are to be compared on it first.

    The last bits of the logits depend on the kernels, so "auto" must not choose now these, now those: what
    cannot be measured undisturbed, or remembered, runs on specx's.

    Args:
        wanted: "auto", or the name of some kernels.
        store: where the choice is kept.
        key: what it depends on.
        notice: told what a person should know.
        measure: compare them if that was never done.
    """
    reason = None if wanted == STOCK.name else ggml_device.unavailable()
    if reason:
        if wanted != "auto":
            notice(f"llama.cpp's own kernels are used, not those of specx: {reason}")
        return Choice(STOCK.name, f"for those of specx cannot be used: {reason}")
    if wanted != "auto":
        return Choice(wanted, ASKED)
    if kept := remembered_choice(store, key):
        return Choice(kept, MEASURED)
    if store.root is None:
        return Choice(SPECX.name, "for nothing is kept that could be compared")
    if not measure:
        return Choice(SPECX.name, "for nothing is decoded that would be worth a comparison")
    return Choice(None, "compared when it is loaded")


def load_on_chosen(
    kernels: Choice[str | None], load: Load, key: str, here: Here, *, watch: Watch = watch_others
) -> Chosen:
    """Load a model on the `kernels` that were chosen, or compare them on it if none were.

    One process compares at a time, and another takes what it found. Beside other work nothing is compared.

    Args:
        kernels: what `choose_kernels` gave.
        load: loads the model on given kernels.
        key: what the choice depends on.
        here: where it is kept, and who is told.
        watch: how other work is watched for.
    """
    if kernels.value is not None:
        return Chosen(load(ggml_device.KERNELS[kernels.value]), Choice(kernels.value, kernels.why))
    with here.store.measuring(lambda: here.notice(WAITING)) as waited:
        kept = remembered_choice(here.store, key) if waited else None
        if kept is None and not busy_now(watch):
            return _compare_and_choose(load, key, here, watch)
    if kept is not None:
        return Chosen(load(ggml_device.KERNELS[kept]), Choice(kept, MEASURED))
    _put_off(here, key)
    return Chosen(load(SPECX), Choice(SPECX.name, BUSY))


def remembered_choice(store: Store, key: str) -> str | None:
    """Name of the kernels that were chosen before; None if they never were, or by times that proved wrong."""
    data = store.load_json("kernels", key) or {}
    kept = data.get("choice")
    if not isinstance(kept, str) or kept not in ggml_device.KERNELS:
        return None
    try:
        by_depth = data.get("steps", {}).get(kept, {})
        basis = {int(d): {int(n): float(ms) for n, ms in steps.items()} for d, steps in by_depth.items()}
    except (ValueError, TypeError, AttributeError):
        basis = {}  # of an earlier version, or of none
    wrong = any(is_contradicted(store, f"{key}-{kept}", depth, steps) for depth, steps in basis.items())
    return None if wrong else kept


def choice_of_auto(times: KernelTimes, store: Store, key: str) -> Kernels:
    """The kernels that "auto" takes: those chosen before, or else what `times` let expect."""
    if ggml_device.unavailable():
        return STOCK
    if kept := remembered_choice(store, key):
        return ggml_device.KERNELS[kept]
    return SPECX if times.disturbed or store.root is None else times.best()


def _put_off(here: Here, key: str) -> None:
    """Tell once that nothing is compared now: it may be so at every start."""
    if "put_off" not in (here.store.load_json("kernels", key) or {}):
        here.store.save_json("kernels", key, {"put_off": True})
        here.notice("the machine is busy: specx's own kernels are used, and compared when it is not")


def _compare_and_choose(load: Load, key: str, here: Here, watch: Watch) -> Chosen:
    start = here.clock()
    times, model, loaded = compare_kernels(load, clock=here.clock, watch=watch)
    best = choice_of_auto(times, here.store, key)
    if best != loaded:
        model.close()
        model = load(best)
    took = f"compared kernels in {here.clock() - start:.1f} s"
    if times.disturbed:
        here.notice(f"{took}, but the machine was busy: specx's own are used, and compared when it is not")
        return Chosen(model, Choice(best.name, BUSY))
    here.store.save_json("kernels", key, {"choice": best.name, "steps": times.steps})
    if best == STOCK:
        here.notice(f"{took}: llama.cpp's own are the fastest for this model here")
    else:
        what = "attention" if best == ATTENTION else "attention and multiplication"
        here.notice(f"{took}: specx's own for {what}, {times.explained(best)}")
    return Chosen(model, Choice(best.name, MEASURED))


def compare_kernels(
    load: Load,
    *,
    depths: Sequence[int] = (DEPTH,),
    widths: Sequence[int] = WIDTHS,
    budget_s: float = BUDGET_S,
    clock: Clock = time.perf_counter,
    watch: Watch = watch_others,
    progress: Callable[[float], None] | None = None,
) -> tuple[KernelTimes, SwitchableModel, Kernels]:
    """Time a model on each of the kernels.

    Args:
        load: loads the model on given kernels.
        depths: tokens of context; those that do not fit are left out, unless none does.
        widths: tokens of a step.
        budget_s: seconds for each of the kernels and depths, reading the context excluded.
        clock: seconds.
        watch: how other work is watched for. Beside it a depth that takes too long to reach is measured in
            the empty context, not all widths are, and what comes after it is left out.
        progress: called with the fraction done, 0 to 1, reading the context excluded.

    Returns:
        The times, and the model as it was loaded last, empty, with the kernels it was loaded on.
    """
    comparison = KernelTimes()
    # Stock kernels and specx's attention share the weights, so they take turns on one loaded model.
    ours = not ggml_device.unavailable()
    groups = ((STOCK, ATTENTION), (SPECX,)) if ours else ((STOCK,),)
    done, model, loaded = 0.0, load(STOCK), STOCK
    for arms in groups:
        if arms[0] != loaded:
            model.close()
            model, loaded = load(arms[0]), arms[0]
        share = len(arms) / sum(map(len, groups))
        timing = _Timing(model, model.open(), arms, budget_s, clock, watch, _part(progress, done, share))
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
            return time_step(self.cache, n, self.clock, calls=2)

        order = ((visit, name, n) for visit in range(MOST) for name in by_name for n in widths)
        measurement.take(order, step)
        return measurement


def _part(progress: Callable[[float], None] | None, done: float, share: float) -> Callable[[float], None]:
    """What is told the fraction of a `share` of the work, which begins when `done` of all of it is."""
    return lambda fraction: None if progress is None else progress(done + share * fraction)
