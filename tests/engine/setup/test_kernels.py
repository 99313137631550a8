"""Which kernels a model runs on: measured once, the faster ones taken, and remembered."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from specx.backends.base import Want
from specx.backends.llama import kernels as ggml_device
from specx.backends.llama.kernels import ATTENTION, SPECX, STOCK
from specx.backends.scripted import ScriptedCache, ScriptedModel
from specx.backends.store import Store
from specx.engine.cost.measuring import WAITING
from specx.engine.cost.staircase import LIKE_S, Staircase
from specx.engine.cost.timing import unwatched
from specx.engine.learned.knowledge import keep_staircase, kept_staircase
from specx.engine.setup.choice import MEASURED, Choice
from specx.engine.setup.here import Here, Stages
from specx.engine.setup.kernel_times import DEPTH, KernelTimes, compare_kernels
from specx.engine.setup.kernels import (
    BUSY,
    CARRIED,
    LATER,
    choice_of_auto,
    choose_kernels,
    compare_idle,
    load_on_chosen,
)

FLAT = {n: 10 + 0.1 * n for n in range(1, 65)}
STEEP = {n: 8.0 * n for n in range(1, 65)}
BUILDING_MS = 3.0  # of the graph, when the width changes
MIDDLE = {n: 5 + 2.0 * n for n in range(1, 65)}


# A model of a billion parameters on two cores, milliseconds as they were measured on a quiet machine.
WIDTHS_1B = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64)
STOCK_1B = (30, 45, 50, 55, 68, 78, 86, 92, 112, 130, 165, 240, 315, 620)
SPECX_1B = (28, 29, 30, 31, 33, 36, 39, 43, 50, 57, 78, 110, 150, 290)
BILLION = {
    "stock": dict(zip(WIDTHS_1B, STOCK_1B, strict=True)),
    "attention": {n: 0.98 * ms for n, ms in zip(WIDTHS_1B, STOCK_1B, strict=True)},
    "specx": dict(zip(WIDTHS_1B, SPECX_1B, strict=True)),
}


class World:
    """A machine on which a step takes what the kernels in use need for it."""

    def __init__(self, monkeypatch, costs, *, missing=None, **options):
        self.costs, self.options = costs, options
        self.now, self.loads, self.closed = 0.0, [], 0
        self.reading, self.read, self.steps = False, 0, 0
        self.hiccups = {}
        monkeypatch.setattr(ggml_device, "unavailable", lambda: missing)

    def clock(self):
        return self.now

    def load(self, kernels):
        self.loads.append(kernels)
        return Machine(self, kernels)


class Reading(ScriptedCache):
    """A text that is read as fast as steps of 64 tokens compute it."""

    def prefill(self, tokens, **options):
        world, name = self.model.world, self.model.kernels.name
        if world.reading:
            world.now += len(tokens) * world.costs[name][64] / 64 / 1e3
            world.read += len(tokens)
        super().prefill(tokens, **options)


class Machine(ScriptedModel):
    def __init__(self, world, kernels):
        super().__init__(8, **{"max_width": 64, "n_ctx": 1024, "cache_class": Reading, **world.options})
        self.world, self.loaded, self.kernels, self.before = world, kernels, kernels, 0

    def forward(self, trees, want=Want.LOGITS):
        n, world = sum(map(len, trees)), self.world
        assert self.kernels.weights == self.loaded.weights  # packed weights are multiplied by their owner
        building = BUILDING_MS if n != self.before else 0.0
        self.before = n
        world.steps += 1
        world.now += (world.costs[self.kernels.name][n] + building + world.hiccups.pop(n, 0)) / 1e3
        return super().forward(trees, want)

    def close(self):
        super().close()
        self.world.closed += 1


def costs(stock=STEEP, attention=MIDDLE, specx=FLAT):
    return {"stock": stock, "attention": attention, "specx": specx}


@pytest.fixture
def choose(tmp_path):
    notices = []

    def run(world, wanted="auto", key="model-machine", *, busy=lambda: False, **options):
        """`busy` is asked first at a glance, and then at the end of what is timed."""
        notices.clear()
        store = Store(tmp_path, notices.append)
        here = Here(store, notices.append, clock=world.clock)
        chosen = choose_kernels(wanted, store, key, notices.append, **options)
        return load_on_chosen(chosen, world.load, key, here, watch=lambda: busy)

    run.notices = notices
    return run


def test_the_times_of_each_are_those_of_its_steps(monkeypatch):
    world = World(monkeypatch, costs())
    world.hiccups = {4: 500.0, 1: 200.0}
    comparison, model, loaded = compare_kernels(
        world.load, depths=(16, 256), widths=(1, 2, 4, 32), clock=world.clock, watch=unwatched
    )
    assert loaded == SPECX and model.open().length == 0
    for name, steps in costs().items():
        for depth in (16, 256):
            assert comparison.steps[name][depth] == pytest.approx({n: steps[n] for n in (1, 2, 4, 32)})
    assert world.loads == [STOCK, SPECX] and world.closed == 1


@pytest.mark.parametrize(
    ("given", "best"),
    [
        (costs(), SPECX),
        (costs(specx=STEEP), ATTENTION),
        (costs(attention=STEEP, specx=STEEP), STOCK),
        (costs(stock=FLAT, attention=FLAT), STOCK),
        (costs(specx={n: 0.99 * ms for n, ms in MIDDLE.items()}), ATTENTION),  # within noise
    ],
)
def test_the_fastest_is_taken_and_remembered(monkeypatch, choose, given, best):
    world = World(monkeypatch, given)
    chosen = choose(world)
    assert chosen.model.loaded == best == chosen.model.kernels
    assert (chosen.kernels.value, chosen.kernels.why) == (best.name, "as measured")
    assert len(choose.notices) == 1 and "compared kernels" in choose.notices[0]
    assert world.closed == len(world.loads) - 1  # nothing but the model in use stays in memory
    again = World(monkeypatch, costs(stock=FLAT, attention=STEEP, specx=STEEP))
    assert choose(again).kernels == chosen.kernels
    assert again.loads == [best] and again.now == 0 and not choose.notices
    assert choose(again, key="another machine").kernels.value == "stock"


@pytest.mark.parametrize("wanted", ["stock", "attention", "specx"])
def test_what_is_wanted_is_not_measured(monkeypatch, choose, wanted):
    world = World(monkeypatch, costs())
    assert str(choose(world, wanted).kernels) == f"{wanted}, as asked"
    assert world.now == 0 and not choose.notices


def test_a_busy_machine_is_not_believed(monkeypatch, choose):
    world = World(monkeypatch, costs(stock=FLAT, attention=STEEP, specx=STEEP))
    held_up = np.random.default_rng(1).choice((0.0, 0.05, 0.2), 10**5).tolist()
    monkeypatch.setattr(world, "clock", lambda: world.now + held_up.pop())
    assert choose(world).kernels == Choice("specx", BUSY)
    assert "busy" in choose.notices[0]
    calm = World(monkeypatch, costs(stock=FLAT, attention=STEEP, specx=STEEP))
    assert choose(calm).kernels.value == "stock"


def test_without_a_store_nothing_is_measured(monkeypatch):
    World(monkeypatch, costs(stock=FLAT, specx=STEEP))
    chosen = choose_kernels("auto", Store(None), "key", print)
    assert chosen == Choice("specx", "for nothing is kept that could be compared")


def test_without_the_library_llama_cpp_is_used(monkeypatch, choose):
    world = World(monkeypatch, costs(), missing="they were not built on this machine")
    why = "for those of specx cannot be used: they were not built on this machine"
    assert choose(world).kernels == Choice("stock", why) and not choose.notices
    assert choose(world, "specx").kernels == Choice("stock", why)
    assert choose.notices == [
        "llama.cpp's own kernels are used, not those of specx: they were not built on this machine"
    ]
    comparison, _, loaded = compare_kernels(world.load, clock=world.clock, watch=unwatched)
    assert loaded == STOCK and list(comparison.steps) == ["stock"] and comparison.best() == STOCK


def test_a_short_context_is_measured_where_it_can_be(monkeypatch):
    world = World(monkeypatch, costs(), n_ctx=128, max_width=8)
    comparison, _, _ = compare_kernels(world.load, clock=world.clock, watch=unwatched)
    assert [list(by_depth) for by_depth in comparison.steps.values()] == [[0]] * 3
    assert list(comparison.steps["stock"][0]) == [1, 2, 4, 8]


def test_an_interrupted_comparison_leaves_no_model_behind(monkeypatch):
    world = World(monkeypatch, costs())
    monkeypatch.setattr(world, "clock", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare_kernels(world.load, clock=world.clock, watch=unwatched)
    assert world.closed == len(world.loads) == 1


def test_the_higher_rate_is_better():
    comparison = KernelTimes(
        {name: {DEPTH: {1: ms, 4: 2 * ms}} for name, ms in (("stock", 10.0), ("specx", 5.0))}
    )
    assert comparison.best() == SPECX
    assert comparison.explained(SPECX).startswith("1: 2.0x, 4: 2.0x")


def test_a_comparison_on_a_busy_machine_ends(monkeypatch, choose):
    slow = {n: 1000.0 * n for n in range(1, 65)}
    world = World(monkeypatch, costs(slow, slow, slow))
    assert choose(world, busy=lambda: world.now > 0).kernels.value == "specx"
    assert 0 < world.now < 20
    assert "the machine was busy" in choose.notices[0]
    world.now = 0.0
    choose(world, busy=lambda: world.now > 0)
    assert not choose.notices  # it is said once
    world.now = 0.0
    choose(world)  # compared again, and it is the model that is slow
    assert world.now > 60
    assert "busy" not in choose.notices[0]


def test_nothing_is_compared_on_a_machine_that_is_busy_at_every_start(monkeypatch, choose, tmp_path):
    world = World(monkeypatch, costs(stock=FLAT, specx=STEEP))
    for start in range(3):
        assert choose(world, busy=lambda: True).kernels == Choice("specx", BUSY)
        assert (world.now, len(choose.notices)) == (0.0, 1 if start == 0 else 0)  # said once
    assert choose(world).kernels.value == "stock"  # quiet at last
    assert choose(world, busy=lambda: True).kernels == Choice("stock", MEASURED)


def test_what_another_process_chose_meanwhile_is_taken(monkeypatch, choose, tmp_path):
    world, store, done = World(monkeypatch, costs(stock=FLAT, specx=STEEP)), Store(tmp_path), []
    with store.measuring():
        thread = threading.Thread(target=lambda: done.append(choose(world)))
        thread.start()
        while WAITING not in choose.notices:
            time.sleep(0.001)
        store.save_json("kernels", "model-machine", {"choice": "attention", "steps": {}})
    thread.join()
    assert done[0].kernels == Choice("attention", MEASURED) and world.loads == [ATTENTION]
    assert (world.now, choose.notices) == (0.0, [WAITING])


def test_nothing_is_compared_where_nothing_is_decoded(monkeypatch, choose):
    world = World(monkeypatch, costs(specx=STEEP))
    assert (choose(world, measure=False).kernels.value, world.now, choose.notices) == ("specx", 0.0, [])
    choose(world)
    assert choose(world, measure=False).kernels.value == "attention"  # as compared before


def test_what_auto_takes_is_what_was_chosen_before(monkeypatch, choose, tmp_path):
    world = World(monkeypatch, costs(specx=STEEP))
    comparison = compare_kernels(world.load, clock=world.clock, watch=unwatched)[0]
    store = Store(tmp_path)
    assert choice_of_auto(comparison, store, "model-machine") == ATTENTION
    assert choice_of_auto(comparison, Store(None), "model-machine") == SPECX  # nothing is compared there
    assert choice_of_auto(KernelTimes(comparison.steps, disturbed=True), store, "model-machine") == SPECX
    choose(World(monkeypatch, costs()))
    assert choice_of_auto(comparison, store, "model-machine") == SPECX
    World(monkeypatch, costs(), missing="they were not built")
    assert choice_of_auto(comparison, store, "model-machine") == STOCK


def test_progress_goes_up_to_the_end(monkeypatch):
    world, told = World(monkeypatch, costs()), []
    compare_kernels(world.load, depths=(0, 64), clock=world.clock, watch=unwatched, progress=told.append)
    assert told == sorted(told)
    assert told[0] > 0 and 0.9 < told[-1] <= 1 + 1e-9


def test_steady_work_beside_a_comparison_decides_nothing(monkeypatch, choose, tmp_path):
    """A busy loop makes all steps slower alike: repetitions agree, within the budget."""
    beside = {n: 3 * ms for n, ms in STEEP.items()}
    world = World(monkeypatch, costs(stock=FLAT, attention=STEEP, specx=beside))
    assert choose(world, busy=lambda: world.now > 0).kernels.value == SPECX.name
    assert "the machine was busy" in choose.notices[0]
    assert Store(tmp_path).load_json("kernels", "model-machine") == {"put_off": True}
    assert world.loads == [STOCK, SPECX]  # it ended with the first that was disturbed
    assert world.closed == 1
    assert choose(world).kernels.value == STOCK.name


def staircase_on(store, name, steps):
    kept = {"64": None, **{str(n): [ms, 0.01] for n, ms in steps.items() if n in (1, 2, 4, 8, 16)}}
    store.save_json("staircase", f"model-machine-{name}", {"steps": {"0": kept, "288": kept}})


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1.3, True), (4.0, False), (0.25, False)])
def test_a_choice_whose_times_are_contradicted_is_made_again(monkeypatch, choose, tmp_path, factor, holds):
    world, store = World(monkeypatch, costs()), Store(tmp_path)
    assert choose(world).kernels.value == SPECX.name
    kept = store.load_json("kernels", "model-machine")
    assert kept["steps"]["specx"][str(DEPTH)]["8"] == pytest.approx(FLAT[8] + BUILDING_MS)
    staircase_on(store, "stock", {n: 100 * ms for n, ms in FLAT.items()})  # of others it says nothing
    staircase_on(store, "specx", {n: factor * ms for n, ms in FLAT.items()})
    now = World(monkeypatch, costs(specx=STEEP))
    assert choose(now).kernels.value == (SPECX if holds else ATTENTION).name
    assert (now.now == 0) == holds
    assert choose(now).kernels.value == (SPECX if holds else ATTENTION).name


@pytest.mark.parametrize(
    "steps", [None, 3, {"specx": 3}, {"specx": {"x": {"1": 1}}}, {"specx": {"0": {"1": None}}}]
)
def test_a_choice_without_the_times_it_rests_on_is_kept(monkeypatch, choose, tmp_path, steps):
    store = Store(tmp_path)
    store.save_json(
        "kernels", "model-machine", {"choice": "attention", **({"steps": steps} if steps else {})}
    )
    staircase_on(store, "attention", FLAT)
    world = World(monkeypatch, costs())
    assert choose(world).kernels.value == ATTENTION.name
    assert world.now == 0


def test_the_first_use_of_a_billion_parameters_takes_less_than_five_seconds(monkeypatch, choose, tmp_path):
    """Two loads excepted; all that a run needs to know of steps is kept after it."""
    world = World(monkeypatch, BILLION)
    world.reading = True
    assert choose(world, key="m-t2-b2").kernels.value == SPECX.name
    assert (world.loads, world.read) == ([STOCK, SPECX], DEPTH)
    assert world.steps <= 55
    assert world.now < 4.2
    staircase = kept_staircase(Store(tmp_path), "m-t2-b2-specx", Staircase(64, watch=unwatched))
    assert not staircase.needs_measuring(0) and not staircase.needs_measuring(DEPTH)
    for n, ms in BILLION["specx"].items():  # wider ones as far as time reaches
        close = 0.02 if n <= 16 else 0.08
        assert staircase.cost(n, 0) == pytest.approx(ms + (BUILDING_MS if n > 1 else 0), rel=close)
    assert Store(tmp_path).load_json("kernels", "m-t2-b2")["margin"] > 1.1


def test_a_model_ten_times_as_large_is_compared_by_the_same_widths(monkeypatch, choose, tmp_path):
    """Budgets reach for two widths only, and reading as far as the second depth would take long."""
    world = World(monkeypatch, {name: {n: 10 * ms for n, ms in by.items()} for name, by in BILLION.items()})
    world.reading = True
    assert choose(world).kernels.value == SPECX.name
    kept = Store(tmp_path).load_json("kernels", "model-machine")
    assert set(kept["steps"]["specx"]["0"]) >= {"1", "2", "4", "8"} and kept["margin"] > 1.1
    assert (world.read, world.loads) == (0, [STOCK, SPECX])
    assert world.now < 14


def test_another_number_of_threads_is_not_compared_and_hardly_measured(monkeypatch, choose, tmp_path):
    choose(World(monkeypatch, BILLION), key="m-t2-b2")
    alone = {name: {n: 1.8 * ms for n, ms in steps.items()} for name, steps in BILLION.items()}
    world, store = World(monkeypatch, alone), Store(tmp_path)
    world.reading = True
    assert choose(world, key="m-t1-b1").kernels == Choice(SPECX.name, CARRIED)
    assert (world.loads, world.steps, world.now) == ([SPECX], 0, 0.0)
    staircase = kept_staircase(store, "m-t1-b1-specx", Staircase(64, watch=unwatched))
    assert not staircase.depths
    staircase.measure_first(world.load(SPECX).open(), clock=world.clock)
    assert world.now < LIKE_S + 0.1 and world.read == 0
    for depth in (0, DEPTH):
        for n, ms in alone["specx"].items():
            assert staircase.cost(n, depth) == pytest.approx(ms, rel=0.12)
    keep_staircase(store, "m-t1-b1-specx", staircase)
    again = kept_staircase(store, "m-t1-b1-specx", Staircase(64, watch=unwatched))
    assert not again.needs_measuring(0) and not again.needs_measuring(DEPTH)


def test_a_narrow_margin_says_nothing_of_other_threads(monkeypatch, choose):
    near = costs(stock=MIDDLE, attention=MIDDLE, specx={n: 0.9 * ms for n, ms in MIDDLE.items()})
    assert choose(World(monkeypatch, near), key="m-t2-b2").kernels.why == MEASURED
    again = World(monkeypatch, near)
    assert choose(again, key="m-t1-b1").kernels.why == MEASURED and again.steps > 0


@pytest.mark.parametrize("given", [costs(), costs(specx=STEEP)])
def test_what_is_done_is_told_and_never_goes_back(monkeypatch, given):
    world, told = World(monkeypatch, given), []
    stages = Stages(lambda fraction, label: told.append((fraction, label)))
    here = Here(Store(None), clock=world.clock)
    load_on_chosen(Choice(None, ""), world.load, "key", here, stages, watch=unwatched)
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions) and 0 == fractions[0] < fractions[-1] <= 1
    assert all(label.startswith("first use: ") for _, label in told)
    assert any("about" in label for _, label in told)


def idle_comparison(monkeypatch, tmp_path, given, *, stopped=lambda: False, busy=False):
    """What is kept after a comparison beside a model that is loaded on specx's kernels and was timed."""
    world, store = World(monkeypatch, given), Store(tmp_path)
    assert choose_kernels("auto", store, "key", print, idle=True) == Choice(SPECX.name, LATER)
    staircase = Staircase(64, watch=unwatched)
    staircase.measure_first(world.load(SPECX).open(), clock=world.clock)
    here, loads = Here(store, clock=world.clock), len(world.loads)
    watch = (lambda: lambda: True) if busy else unwatched
    compare_idle(world.load, "key", here, staircase, stopped=stopped, watch=watch)
    assert set(world.loads[loads:]) <= {STOCK} and world.closed == len(world.loads) - loads
    return store


def test_kernels_are_compared_while_nobody_waits_and_taken_by_the_next_run(monkeypatch, tmp_path):
    store = idle_comparison(monkeypatch, tmp_path, BILLION)
    assert choose_kernels("auto", store, "key", print, idle=True) == Choice(SPECX.name, MEASURED)


def test_what_is_left_open_then_is_compared_when_the_next_run_loads_the_model(monkeypatch, tmp_path):
    store = idle_comparison(monkeypatch, tmp_path, costs(specx=STEEP))
    chosen = choose_kernels("auto", store, "key", print, idle=True)
    assert chosen.value is None
    again = World(monkeypatch, costs(specx=STEEP))
    here = Here(store, clock=again.clock)
    assert load_on_chosen(chosen, again.load, "key", here, watch=unwatched).kernels.value == ATTENTION.name


def test_who_types_fast_or_beside_others_leaves_it_for_later(monkeypatch, tmp_path):
    calls = []

    def stopped():
        calls.append(1)
        return len(calls) > 5

    for options in ({"stopped": stopped}, {"busy": True}, {"stopped": lambda: True}):
        store = idle_comparison(monkeypatch, tmp_path, BILLION, **options)
        assert choose_kernels("auto", store, "key", print, idle=True) == Choice(SPECX.name, LATER)
    assert len(calls) > 5
