"""What is kept and turns out far from real steps is measured again, and nothing else is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.engine.cost.contradiction import FAR, WINDOW, Contradiction, contradicts
from specx.engine.cost.staircase import Staircase
from specx.engine.cost.timing import unwatched
from specx.engine.learned.knowledge import Learned
from specx.engine.setup.basis import is_contradicted

STEPS = {1: 10.0, 2: 11.0, 4: 13.0, 8: 20.0, 32: 50.0}


def kept(max_width=32, watch=unwatched):
    staircase = Staircase(max_width, watch=watch)
    depth = {"32": None, **{str(n): [ms, 0.01] for n, ms in STEPS.items()}}
    staircase.load_json({"0": depth, "288": depth})
    return staircase


def real_steps(staircase, ratio, count=3 * WINDOW):
    rng = np.random.default_rng(0)
    for i in range(count):
        n = (1, 4, 1, 8)[i % 4]
        staircase.observe(n, 100, STEPS[n] * ratio * float(rng.normal(1, 0.03)))


@pytest.mark.parametrize("ratio", [0.2, 0.6, 1.6, 3.0, 20.0])
def test_steps_that_are_far_off_contradict_what_was_measured(ratio):
    staircase = kept()
    assert not staircase.needs_measuring(100)
    real_steps(staircase, ratio)
    assert staircase.contradicted
    assert staircase.needs_measuring(100) and staircase.needs_measuring(300)
    assert staircase.to_json() == {}
    assert staircase.costs(100)[1] == pytest.approx(10.0 * ratio, rel=0.1)  # until then steps are believed


@pytest.mark.parametrize("ratio", [0.75, 1.0, 1.3])
def test_noise_and_drifts_do_not(ratio):
    staircase = kept()
    real_steps(staircase, ratio, 10 * WINDOW)
    assert not staircase.contradicted and set(staircase.to_json()) == {"0", "288"}


def test_other_work_is_to_blame_first():
    staircase = kept(watch=lambda: lambda: True)
    real_steps(staircase, 3.0)
    assert not staircase.contradicted and not staircase.needs_measuring(100)
    assert set(staircase.to_json()) == {"0", "288"}


def test_others_are_looked_for_once_a_stretch_and_when_something_is_odd():
    looked = []

    def watch():
        looked.append(1)
        return lambda: True

    staircase = kept(watch=watch)
    real_steps(staircase, 1.0, 10 * WINDOW)
    assert len(looked) == 10
    real_steps(staircase, 3.0, 3 * WINDOW)
    assert len(looked) == 16


@given(st.lists(st.floats(0.2, 5.0), max_size=WINDOW - 1))
def test_a_few_steps_are_never_enough(ratios):
    contradiction = Contradiction(unwatched)
    assert not any(contradiction.observe(ratio) for ratio in ratios)


def test_a_burst_and_steps_to_both_sides_are_not_enough():
    contradiction = Contradiction(unwatched)
    mixed = [3.0, 0.3] * (5 * WINDOW)
    burst = [3.0] * (WINDOW // 2) + [1.0] * WINDOW
    assert not any(contradiction.observe(ratio) for ratio in mixed)
    contradiction.restart()
    assert not any(contradiction.observe(ratio) for ratio in burst * 3)


def test_what_is_far_beyond_the_measured_depths_contradicts_nothing():
    staircase = kept()
    for _ in range(3 * WINDOW):
        staircase.observe(1, 3000, 50.0)
    assert not staircase.contradicted
    for _ in range(WINDOW):
        staircase.observe(1, 500, 500.0)
    assert staircase.contradicted


def test_it_is_measured_again_and_replaces_what_was_wrong():
    clock = SimulatedClock()
    slower = {n: 3 * ms for n, ms in STEPS.items()}
    cache = ScriptedModel(8, max_leaves=1, step_costs=slower, clock=clock).open()
    staircase = kept()
    real_steps(staircase, 3.0)
    cache.prefill([1] * 50)
    staircase.measure(cache, clock=clock)
    assert staircase.depths == [50] and not staircase.needs_measuring(50)
    assert staircase.costs(50)[8] == pytest.approx(60.0, rel=0.01)
    assert set(staircase.to_json()) == {"50"} and staircase.contradicted
    real_steps(staircase, 3.0)
    assert not staircase.needs_measuring(50)


def test_a_new_measurement_beside_other_work_does_not_bring_the_wrong_one_back():
    clock = SimulatedClock()
    cache = ScriptedModel(8, max_leaves=1, step_costs=STEPS, clock=clock).open()
    staircase = kept()
    real_steps(staircase, 3.0)
    staircase.watch = lambda: lambda: True
    staircase.measure(cache, clock=clock)
    assert (staircase.depths, staircase.to_json(), staircase.disturbed) == ([0], {}, True)


def learned(path):
    return Learned(Store(path), model_key="model", cost_key="cost")


@pytest.mark.parametrize("max_width", [32, 4])
def test_the_store_forgets_what_was_wrong(tmp_path, max_width):
    learned(tmp_path).save_staircase(kept())
    staircase = learned(tmp_path).load_staircase(Staircase(max_width, watch=unwatched))
    assert staircase.depths == [0, 288]
    for _ in range(3 * WINDOW):
        staircase.observe(1, 100, 3.0)
    learned(tmp_path).save_staircase(staircase)
    assert learned(tmp_path).load_staircase(Staircase(32)).depths == []


times = st.dictionaries(st.sampled_from((1, 2, 4, 8)), st.floats(0.1, 100.0), min_size=1)


@given(times, st.floats(0.1, 10.0))
def test_what_a_choice_rests_on_is_held_against_later_times(steps, ratio):
    later = {n: ms * ratio for n, ms in steps.items()}
    if abs(np.log(ratio) - np.log(FAR)) > 1e-6 and abs(np.log(ratio) + np.log(FAR)) > 1e-6:
        assert contradicts(steps, later) == (not 1 / FAR < ratio < FAR)
    assert not contradicts(steps, {}) and not contradicts({}, later)
    assert not contradicts(steps, {**steps, 64: 1e9})


def test_the_kept_table_says_whether_a_choice_still_holds(tmp_path):
    store = Store(tmp_path)
    assert not is_contradicted(store, "cost", 256, STEPS)  # nothing is known
    store.save_json("staircase", "cost", {"steps": json.loads(json.dumps(kept().to_json()))})
    assert not is_contradicted(store, "cost", 256, STEPS)
    assert is_contradicted(store, "cost", 256, {n: 4 * ms for n, ms in STEPS.items()})
    assert is_contradicted(store, "cost", 0, {n: ms / 4 for n, ms in STEPS.items()})
    for damage in ({"steps": {"0": 3}}, {"steps": [1]}, {}):
        store.save_json("staircase", "cost", damage)
        assert not is_contradicted(store, "cost", 256, {1: 1000.0})
