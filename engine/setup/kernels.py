"""Which kernels a model runs on here: llama.cpp's own, specx's attention, or specx's weights as well.

The one of the highest expected rate is taken: the objective of the plan, for drafts of which each further
token comes true with a fixed probability. Steps are timed on the loaded model, but for those that cannot
change the choice (kernel_times.py). It is kept by model, build, threads and cache types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from specx.backends.llama import kernels as ggml_device
from specx.backends.llama.kernels import ATTENTION, SPECX, STOCK, Kernels
from specx.backends.store import Store
from specx.engine.cost.filling import read_table
from specx.engine.cost.measuring import WAITING
from specx.engine.cost.staircase import BUDGET_S, FIRST_DEEPER_S, FIRST_DEPTH, Staircase
from specx.engine.cost.timing import Stopped, Watch, busy_now, never, watch_others
from specx.engine.learned.knowledge import keep_staircase
from specx.engine.setup import keys
from specx.engine.setup.basis import is_contradicted
from specx.engine.setup.choice import ASKED, MEASURED, Choice
from specx.engine.setup.here import Here, Stages
from specx.engine.setup.kernel_times import (
    ALONE_S,
    KernelTimes,
    SwitchableModel,
    compare_kernels,
    time_multiplication,
)

__all__ = [
    "LATER",
    "Chosen",
    "choice_of_auto",
    "choose_kernels",
    "compare_idle",
    "load_on_chosen",
    "remembered_choice",
]

LATER = "compared while nobody waits"
BUSY = "for the machine was busy when they were to be compared"
CARRIED = "as measured with another number of threads"
CLEAR = 1.25  # times the rate of the next best: then another number of threads is not thought to change it
READ_ROWS = 8  # tokens of a prompt that are read in the time of one token, roughly
SURE = 1.1  # times the rate that others can have at most: then these are not timed any further

Load = Callable[[Kernels], SwitchableModel]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A loaded model and the kernels it runs on."""

    model: SwitchableModel
    kernels: Choice[str]


def choose_kernels(
    wanted: str,
    store: Store,
    key: str,
    notice: Callable[[str], None],
    *,
    measure: bool = True,
    idle: bool = False,
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
        idle: `compare_idle` does that later, unless it was found to leave the choice open.
    """
    reason = None if wanted == STOCK.name else ggml_device.unavailable()
    if reason:
        if wanted != "auto":
            notice(f"llama.cpp's own kernels are used, not those of specx: {reason}")
        return Choice(STOCK.name, f"for those of specx cannot be used: {reason}")
    if wanted != "auto":
        return Choice(wanted, ASKED)
    kept, why = remembered_choice(store, key), MEASURED
    if kept is None:
        kept, why = _with_other_threads(store, key), CARRIED
    if kept is None:
        kept, why = _without_comparison(store, key, measure=measure, idle=idle)
    return Choice(kept, why)


def _without_comparison(store: Store, key: str, *, measure: bool, idle: bool) -> tuple[str | None, str]:
    """Name of the kernels, and why, where nothing was compared; None if that is done now."""
    if store.root is None:
        return SPECX.name, "for nothing is kept that could be compared"
    if not measure:
        return SPECX.name, "for nothing is decoded that would be worth a comparison"
    if idle and "open" not in (store.load_json("kernels", key) or {}):
        return SPECX.name, LATER
    return None, "compared when it is loaded"


def load_on_chosen(
    kernels: Choice[str | None],
    load: Load,
    key: str,
    here: Here,
    stages: Stages | None = None,
    *,
    watch: Watch = watch_others,
) -> Chosen:
    """Load a model on the `kernels` that were chosen, or compare them on it if none were.

    One process compares at a time, and another takes what it found. Beside other work nothing is compared.

    Args:
        kernels: what `choose_kernels` gave.
        load: loads the model on given kernels.
        key: what the choice depends on.
        here: where it is kept, and who is told.
        stages: told what is done.
        watch: how other work is watched for.
    """
    if kernels.value is not None:
        return Chosen(load(ggml_device.KERNELS[kernels.value]), Choice(kernels.value, kernels.why))
    with here.store.measuring(lambda: here.notice(WAITING)) as waited:
        kept = remembered_choice(here.store, key) if waited else None
        if kept is None and not busy_now(watch):
            return _FirstUse(load, key, here, stages or Stages(None), watch).chosen()
    if kept is not None:
        return Chosen(load(ggml_device.KERNELS[kept]), Choice(kept, MEASURED))
    here.put_off(
        "kernels", key, "the machine is busy: specx's own kernels are used, and compared when it is not"
    )
    return Chosen(load(SPECX), Choice(SPECX.name, BUSY))


def _with_other_threads(store: Store, key: str) -> str | None:
    """Name of the kernels that were chosen for another number of threads, if that was so clear."""
    common = keys.any_threads(key)
    other = None if common is None else (store.load_json("kernels", common) or {}).get("latest")
    margin = (store.load_json("kernels", other) or {}).get("margin") if isinstance(other, str) else None
    if not isinstance(other, str) or not isinstance(margin, float) or margin < CLEAR:
        return None
    return remembered_choice(store, other)


def compare_idle(
    load: Load,
    key: str,
    here: Here,
    staircase: Staircase,
    *,
    stopped: Stopped,
    watch: Watch = watch_others,
) -> None:
    """Compare llama.cpp's kernels with specx's, on which a model is loaded and was timed.

    What is found is kept for later runs: this one goes on as it began, for its last bits depend on them.
    Where a few steps leave the choice open, that is kept, and the next run compares when it loads the model.

    Args:
        load: loads the model once more, on given kernels; there is memory for it.
        key: what the choice depends on.
        here: where it is kept, and who is told.
        staircase: of specx's kernels.
        stopped: whether to stop at once.
        watch: how other work is watched for.
    """
    with here.store.measuring(stopped=stopped):
        if stopped() or staircase.disturbed or not staircase.depths or remembered_choice(here.store, key):
            return
        first = _FirstUse(load, key, here, Stages(None), watch, stopped)
        if busy_now(watch) or (times := first.on_stock()).disturbed or stopped():
            return
        times.add(SPECX, staircase)
        if first.is_sure(times):
            first.keep(SPECX, times)
        else:
            here.store.save_json("kernels", key, {"open": True})


def remembered_choice(store: Store, key: str) -> str | None:
    """Name of the kernels that were chosen before; None if they never were, or by times that proved wrong."""
    data = store.load_json("kernels", key) or {}
    kept = data.get("choice")
    if not isinstance(kept, str) or kept not in ggml_device.KERNELS:
        return None
    try:
        basis, _ = read_table(data.get("steps", {}).get(kept, {}))
    except (ValueError, TypeError, AttributeError, OverflowError):
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


@dataclass(frozen=True, slots=True)
class _FirstUse:
    """The kernels are compared, and the steps of a model timed, when it is used for the first time.

    First what llama.cpp's multiplication may reach, in a few short steps, then all that is kept of specx's
    steps. Only where that leaves it open, llama.cpp's kernels are timed in a context as well.
    """

    load: Load
    key: str
    here: Here
    stages: Stages
    watch: Watch
    stopped: Stopped = never

    def chosen(self) -> Chosen:
        """The model, loaded on the kernels of the highest expected rate."""
        start = self.here.clock()
        times, model = self._on_specx(self.on_stock())
        best, loaded = SPECX, SPECX
        if not times.disturbed and not self.is_sure(times):
            times, model, loaded = self._in_context(times, model)
            best = SPECX if times.disturbed else times.best()
        if best != loaded:
            model.close()
            model = self.load(best)
        model.kernels = best  # others had their turns on it
        took = f"compared kernels in {self.here.clock() - start:.1f} s"
        if times.disturbed:
            why = f"{took}, but the machine was busy: specx's own are used, and compared when it is not"
            self.here.put_off("kernels", self.key, why)
            return Chosen(model, Choice(best.name, BUSY))
        self.keep(best, times)
        if best == STOCK:
            self.here.notice(f"{took}: llama.cpp's own are the fastest for this model here")
        else:
            what = "attention" if best == ATTENTION else "attention and multiplication"
            self.here.notice(f"{took}: specx's own for {what}, {times.explained(best)}")
        return Chosen(model, Choice(best.name, MEASURED))

    def is_sure(self, times: KernelTimes) -> bool:
        """Whether nothing else can be faster than specx's kernels."""
        return times.least_rate(SPECX.name) > SURE * times.most_of_stock

    def keep(self, best: Kernels, times: KernelTimes) -> None:
        """Keep the choice, with what it rests on."""
        kept = {"choice": best.name, "steps": times.steps, "margin": times.margin(best)}
        self.here.store.save_json("kernels", self.key, kept)
        if (common := keys.any_threads(self.key)) is not None:
            self.here.store.save_json("kernels", common, {"latest": self.key})

    def on_stock(self) -> KernelTimes:
        """Times of llama.cpp's multiplication."""
        self.stages.next(0.15, "first use: loading with llama.cpp's kernels")
        model = self.load(STOCK)
        try:
            self.stages.next(0.3, "first use: timing llama.cpp's kernels")
            start, clock = self.here.clock(), self.here.clock
            while True:  # it may be so short that one burst is a large part of it
                times = time_multiplication(model, clock=clock, watch=self.watch, stopped=self.stopped)
                if not times.disturbed or self.stopped() or clock() - start > ALONE_S or busy_now(self.watch):
                    return times
        finally:
            model.close()

    def _on_specx(self, times: KernelTimes) -> tuple[KernelTimes, SwitchableModel]:
        """The same times with those of specx's kernels, and the model on them."""
        self.stages.next(0.45, "first use: loading")
        model = self.load(SPECX)
        if times.disturbed:
            return times, model
        try:
            staircase = Staircase(model.facts.max_width, watch=self.watch)
            self.stages.next(1.0, f"first use: timing steps, {_about(times.steps[STOCK.name][0][1])}")
            cache = model.open()
            staircase.measure_first(cache, clock=self.here.clock, progress=self.stages.update)
            cache.close()
        except BaseException:
            model.close()
            raise
        keep_staircase(self.here.store, f"{self.key}-{SPECX.name}", staircase)
        times.add(SPECX, staircase)
        times.disturbed = staircase.disturbed
        return times, model

    def _in_context(
        self, times: KernelTimes, model: SwitchableModel
    ) -> tuple[KernelTimes, SwitchableModel, Kernels]:
        """All kernels in a context, and a model that is loaded on some of them."""
        ours = times.steps[SPECX.name]
        depth = max(ours)
        model.close()
        self.stages.next(1.0, "first use: comparing kernels in a context")
        both = ((STOCK, ATTENTION),)
        options: Any = {"clock": self.here.clock, "watch": self.watch}
        # As specx's steps were timed: each width once, and then another one.
        found, model, loaded = compare_kernels(self.load, depths=(depth,), groups=both, calls=1, **options)
        found.steps[SPECX.name] = {depth: ours[depth]}
        return found, model, loaded


def _about(plain_ms: float) -> str:
    """How long the steps of a model are timed of which one token takes so long, in words."""
    read_s = FIRST_DEPTH * plain_ms / 1e3 / READ_ROWS
    return f"about {max(1, round(BUDGET_S + FIRST_DEEPER_S + read_s))} s"
