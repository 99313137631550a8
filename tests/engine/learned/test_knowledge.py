"""What is kept of a model: whatever lies in the store ends no run, and what was found wrong goes."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.drafters.guesser import GuessCosts
from specx.engine.cost.staircase import Staircase
from specx.engine.cost.timing import unwatched
from specx.engine.learned.knowledge import Learned, keep_staircase, kept_identity, kept_staircase
from specx.engine.learned.lengths import RANGES, Lengths
from specx.engine.learned.records import TrackRecords
from specx.engine.setup.kernels import remembered_choice
from specx.engine.setup.threads import load_threads

COSTS = "key-t2-b2-specx"
LIFE = {"ended": [0.0] * RANGES, "passed": [0.0] * RANGES}
STEPS = {"0": {"1": 10.0, "4": [11.0, 0.01], "64": 20.0}, "288": {"1": 10.5, "4": [12.0, 0.02], "64": 30.0}}
KEPT = {
    ("staircase", COSTS): {"steps": STEPS},
    ("lengths", "model"): {"answers": LIFE, "processes": LIFE},
    ("record", "cost"): {
        "drafters": {"auto": dict.fromkeys(("tokens", "ms", "plain_ms", "promised", "promised_ms"), 2.0)}
    },
    ("identity", "cost"): {"classes": [[1, 2]], "branches": True, "difference": 0.0, "depths": [64]},
    ("threads", "key-auto"): {
        "threads": 1, "threads_batch": 1, "ms_per_token": 1.0, "depth": 0,
        "steps": {"1": {"1": 1.0}, "8": {"1": 1.0}, "32": {"1": 1.0}},
    },
    ("pairs", "model-draft"): {"cost": GuessCosts(1.0, 0.1, 0.1, 50.0).to_json()},
    ("kernels", "key-t2-b2"): {"choice": "specx", "steps": {"specx": {"0": {"1": 10.0, "2": 10.3}}}},
}  # fmt: skip
ODD = (None, True, "x", -1, 0, 1e308, 1e-308, float("inf"), float("nan"), [], {}, [1e308, 1e300], 10**400)


def places(value, path=()):
    """Paths to everything in a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inside:
        yield (*path, name)
        yield from places(each, (*path, name))


def changed(value, path, odd):
    made = copy.deepcopy(value)
    at = made
    for name in path[:-1]:
        at = at[name]
    if path[-1] in ("0", "1") and isinstance(odd, int) and abs(odd) > 1:
        at[str(odd)[:20]] = at.pop(path[-1])  # another depth or width
    else:
        at[path[-1]] = odd
    return made


def use(store):
    """Everything that a run does with what is kept."""
    staircase = kept_staircase(store, COSTS, Staircase(64, watch=unwatched))
    if staircase.depths:
        staircase.costs(100), staircase.noise(2, 0), staircase.cost(3, 500)
        staircase.observe(1, 10, 2.0)
    keep_staircase(store, COSTS, staircase)
    lengths = Lengths(store, "model")
    outlook = lengths.begin(100)
    outlook.worth(1.0, 5.0), outlook.value(1.0, 2.0)
    lengths.add(5, ended=True)
    lengths.save()
    for record in TrackRecords(store, "cost").all().values():
        assert record.speedup > 0 and record.promised_speedup > 0
    if (identity := kept_identity(store, "cost")) is not None:
        identity.covers(100)
    load_threads(store, "key-auto")
    remembered_choice(store, "key-t2-b2")
    _, costs = Learned(store, model_key="model", cost_key="cost").load_pair("draft")
    assert costs is None or costs.reading(4) < float("inf")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_kept_ends_no_run(tmp_path, data):
    store = Store(tmp_path)
    for (kind, key), value in KEPT.items():
        store.save_json(kind, key, value)
    kind, key = data.draw(st.sampled_from(list(KEPT)))
    value = KEPT[kind, key]
    path = data.draw(st.sampled_from(list(places(value))))
    store.save_json(kind, key, changed(value, path, data.draw(st.sampled_from(ODD))))
    use(store)
    use(store)  # what was set aside, or saved since, is no harm either


def test_what_is_kept_is_used(tmp_path):
    store = Store(tmp_path)
    for (kind, key), value in KEPT.items():
        store.save_json(kind, key, value)
    assert kept_staircase(store, COSTS, Staircase(64, watch=unwatched)).depths == [0, 288]
    assert TrackRecords(store, "cost").all()["auto"].speedup == 1
    assert kept_identity(store, "cost").covers(64)
    assert load_threads(store, "key-auto").decode == 1
    assert remembered_choice(store, "key-t2-b2") == "specx"
    use(store)
    assert not list(tmp_path.rglob("*.damaged"))


def test_a_number_too_large_for_anything_is_set_aside(tmp_path):
    told = []
    store = Store(tmp_path, told.append)
    store.save_json("lengths", "model", {"answers": {**LIFE, "ended": [10**400] * RANGES}, "processes": LIFE})
    Lengths(store, "model").begin(100)
    assert store.load_json("lengths", "model") is None
    assert "set aside" in told[0]


def test_steps_that_turned_out_wrong_go_even_if_they_were_measured_again_beside_other_work(tmp_path):
    store = Store(tmp_path)
    flat = {str(n): 10.0 + n / 100 for n in range(1, 65)}
    store.save_json("staircase", COSTS, {"steps": {"0": flat}})
    staircase = kept_staircase(store, COSTS, Staircase(64, watch=unwatched))
    for _ in range(80):
        staircase.observe(1, 10, 30.0)
    assert staircase.contradicted
    clock = SimulatedClock()
    model = ScriptedModel(step_costs={n: 30.0 + n / 50 for n in range(1, 65)}, clock=clock)
    staircase.watch = lambda: lambda: True  # something else has the processors
    staircase.measure_first(model.open(), clock=clock)
    keep_staircase(store, COSTS, staircase)
    kept = kept_staircase(store, COSTS, Staircase(64, watch=unwatched))
    assert kept.provisional and kept.cost(1, 0) == pytest.approx(30, rel=0.1)


def test_what_is_timed_anew_takes_the_place_of_all_that_was_kept(tmp_path):
    store = Store(tmp_path)
    store.save_json("staircase", COSTS, {"steps": {**STEPS, "4096": STEPS["288"]}})
    staircase = kept_staircase(store, COSTS, Staircase(64, watch=unwatched))
    staircase.forget()
    clock = SimulatedClock()
    model = ScriptedModel(step_costs={n: 30.0 + n / 50 for n in range(1, 65)}, clock=clock)
    staircase.measure_first(model.open(), clock=clock)
    keep_staircase(store, COSTS, staircase)
    kept = kept_staircase(store, COSTS, Staircase(64, watch=unwatched))
    assert kept.depths == staircase.depths and 4096 not in kept.depths
    assert min(kept.cost(1, depth) for depth in kept.depths) > 20


def test_two_processes_keep_the_depths_that_each_has_measured(tmp_path):
    store = Store(tmp_path)
    first = kept_staircase(store, COSTS, Staircase(64, watch=unwatched))
    first.load_json({"0": STEPS["0"]})
    other = Staircase(64, watch=unwatched)
    other.load_json({"0": STEPS["0"], "4096": STEPS["288"]})
    keep_staircase(store, COSTS, other)
    keep_staircase(store, COSTS, first)
    assert kept_staircase(store, COSTS, Staircase(64, watch=unwatched)).depths == [0, 4096]
