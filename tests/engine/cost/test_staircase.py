"""The staircase: what a call costs is measured within a budget, follows the machine, and survives a run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.backends.scripted import ScriptedCache, ScriptedModel
from specx.engine.cost.contradiction import ENOUGH
from specx.engine.cost.staircase import (
    BUDGET_S,
    DEEPER_BUDGET_S,
    DEEPER_WIDTHS,
    FIRST_DEPTH,
    MARKS,
    WIDTHS,
    Staircase,
)
from specx.engine.cost.timing import PATIENCE, unwatched
from specx.kernels._native import IN_A_ROW

STAIRS = {1: 7.2, 2: 10.6, 3: 14.1, 4: 14.4, 6: 22.4, 8: 19.1, 12: 25.5, 16: 29.8, 32: 54.7}


class Clocked(ScriptedCache):
    """A text whose steps take as long as `cost(width)` milliseconds says, on a clock of its own."""

    def __init__(self, model):
        super().__init__(model)
        self.cost, self.now, self.calls = float, 0.0, []

    def forward(self, tokens, parents):
        output = super().forward(tokens, parents)
        self.calls.append(len(tokens))
        self.now += self.cost(len(tokens)) / 1e3
        return output

    def clock(self):
        return self.now


def clocked(cost, **options):
    cache = ScriptedModel(8, max_leaves=1, **{"cache_class": Clocked, **options}).open()
    cache.cost = cost
    return cache


def beside_others():
    """Watches on a machine that others keep busy all the time."""
    return lambda: True


def alone(max_width=32):
    """A staircase on a machine that has nothing else to do."""
    return Staircase(max_width, watch=unwatched)


def measured(cache, staircase=None, **options):
    staircase = staircase or alone()
    return staircase, staircase.measure(cache, clock=cache.clock, **options)


NARROW = [n for n in WIDTHS if n <= 32]  # what a staircase of 32 measures
NARROW_DEEPER = [n for n in DEEPER_WIDTHS if n <= 32]


def of(steps, max_width=32):
    """Measured at depth 0 only."""
    staircase = alone(max_width)
    staircase.load_json({"0": {str(n): ms for n, ms in steps.items()}})
    return staircase


def test_a_step_is_timed_as_one_of_a_row_where_steps_settle():
    """A GPU repeats what it recorded from the third step of a width on; other widths are in between."""
    for settles, more in ((1, 3.0), (3, 0.0)):
        cache = clocked(None)
        cache.cost = lambda n, cache=cache: n + (0.0 if cache.calls[-3:] == [n, n, n] else 3.0)
        cache.model.facts = replace(cache.model.facts, settles=settles)
        steps = measured(cache)[0].steps(0)
        assert steps[1] == pytest.approx(1 + more)
        assert steps[8] == pytest.approx(8 + more)


def test_without_measurements_a_call_costs_its_width():
    costs = Staircase(4).costs(100)
    assert costs.tolist() == [np.inf, 1, 2, 3, 4]
    assert Staircase(4).needs_measuring(0)


def test_measuring_finds_every_step_and_restores_the_text():
    cache = clocked(lambda n: 3 + n**1.5)
    cache.prefill([1, 2, 3])
    staircase, seconds = measured(cache)
    assert staircase.steps(3) == pytest.approx({n: 3 + n**1.5 for n in NARROW})
    assert [staircase.costs(3)[n] for n in NARROW] == pytest.approx([3 + n**1.5 for n in NARROW])
    assert seconds == cache.now
    assert cache.tokens == (1, 2, 3)
    cache.forward(np.array([4], np.int32), np.array([-1], np.int32))  # nothing is pending


def test_each_stretch_between_two_marks_is_measured_once():
    cache = clocked(lambda n: 1.0 + n)
    staircase = alone()
    for length in (0, 5, MARKS[1] - 1, MARKS[1], MARKS[2] - 1, MARKS[2], 4000):
        cache.prefill([1] * (length - cache.length))
        if staircase.needs_measuring(length):
            measured(cache, staircase)
        assert not staircase.needs_measuring(length)
    assert staircase.depths == [0, *MARKS[1:3]]
    assert staircase.needs_measuring(MARKS[3])
    assert staircase.needs_measuring(10**9)


def test_the_first_time_two_depths_are_measured_in_an_empty_text():
    cache = clocked(lambda n: n + cache.length / 100)
    staircase = alone()
    assert staircase.measure_first(cache, clock=cache.clock) == cache.now
    assert cache.length == 0
    assert len(staircase.depths) == 2
    low, high = staircase.depths
    assert low == 0 < MARKS[1] <= high < MARKS[2]
    for n in NARROW_DEEPER:
        assert staircase.costs(high)[n] == pytest.approx(n + high / 100)
        assert staircase.costs(high // 2)[n] == pytest.approx(n + high // 2 / 100)  # interpolated
        assert staircase.costs(2 * high)[n] == pytest.approx(n + 2 * high / 100)  # and beyond
    small = clocked(float, n_ctx=64)
    staircase = Staircase(32)
    staircase.measure_first(small, clock=small.clock)
    assert (staircase.depths, small.length) == ([0], 0)


def test_measuring_on_a_model_that_really_takes_time():
    cache = ScriptedModel(8, max_leaves=1, step_costs={1: 1, 8: 2, 32: 4}).open()
    cache.prefill([1] * 600)
    staircase = alone()
    assert staircase.measure(cache) > 0
    assert staircase.depths == [600]
    steps = staircase.steps(600)
    assert all(steps[n] >= (1 if n == 1 else 2 if n <= 8 else 4) for n in NARROW)
    assert len(cache.tokens) == 600


def test_the_first_call_and_outliers_do_not_count():
    cache = clocked(lambda n: n + (100 if len(cache.calls) in {1, 5, 9} else 0))
    staircase, _ = measured(cache)
    assert staircase.steps(0) == pytest.approx({n: float(n) for n in NARROW})


def test_repetitions_that_disagree_are_taken_once_more():
    def cost(n):  # 4 and 16 are hit the first two times
        times = cache.calls.count(n)
        return n + (120 / times if n in {4, 16} and times < 3 else 0)

    cache = clocked(cost)
    staircase, _ = measured(cache)
    assert staircase.steps(0) == pytest.approx({n: float(n) for n in NARROW})
    assert not staircase.disturbed


def kept(staircase):
    return sorted(map(int, staircase.to_json()))


@pytest.mark.parametrize("seed", range(5))
def test_a_disturbed_measurement_is_used_and_not_kept(seed):
    rng = np.random.default_rng(seed)
    noise = {"quiet": lambda: 1 + 0.05 * rng.random(), "busy": lambda: 10 ** (2 * rng.random())}
    cache = clocked(lambda n: (3 + n) * noise[state]())
    state = "busy"
    staircase, seconds = measured(cache)
    assert seconds < 3 * BUDGET_S
    assert staircase.disturbed
    assert staircase.depths == [0]
    assert not staircase.needs_measuring(0)
    assert kept(staircase) == []
    state = "quiet"
    cache.prefill([1] * MARKS[1])
    measured(cache, staircase)
    assert kept(staircase) == [MARKS[1]]
    again, _ = measured(clocked(cache.cost))
    assert not again.disturbed
    assert kept(again) == [0]


def test_one_implausible_width_is_taken_once_more_and_many_are_not_kept():
    def cost(n):
        return n / 2 * (50 if n in dear and cache.calls.count(n) < 4 else 1)

    dear, cache = {6}, clocked(cost)
    staircase, _ = measured(cache)
    assert (staircase.steps(0)[6], staircase.disturbed) == (pytest.approx(3), False)
    dear, cache = set(NARROW[2:]), clocked(lambda n: n * (50 if n > 2 else 1))
    staircase, _ = measured(cache)
    assert staircase.disturbed


def test_a_disturbance_of_the_second_depth_makes_the_first_one_doubtful():
    rng = np.random.default_rng(0)
    cache = clocked(lambda n: n * (10 ** (2 * rng.random()) if cache.length else 1))
    staircase = alone()
    staircase.measure_first(cache, clock=cache.clock)
    assert len(staircase.depths) == 2
    assert kept(staircase) == []


def test_a_measurement_on_a_busy_machine_ends():
    cache = clocked(lambda n: 1000.0 * n)
    staircase, seconds = measured(cache, Staircase(32, watch=beside_others), budget_s=0.5)
    assert (set(staircase.steps(0)), staircase.disturbed, seconds) == ({1, 2}, True, pytest.approx(4.0))
    unbothered, _ = measured(cache, budget_s=0.5)  # it is the model that is slow
    assert not unbothered.disturbed


@pytest.mark.parametrize("busy", [False, True])
def test_reading_on_a_busy_machine_ends(busy):
    class Slow(Clocked):
        def prefill(self, tokens, *, progress):
            for done in range(0, len(tokens), 4):
                self.now += 1.0
                progress(done, len(tokens))
            super().prefill(tokens)

    cache = clocked(float, cache_class=Slow)
    staircase = Staircase(32, watch=beside_others if busy else unwatched)
    seconds = staircase.measure_first(cache, clock=cache.clock)
    assert cache.length == 0
    assert staircase.disturbed == busy
    assert len(staircase.depths) == (1 if busy else 2)
    assert (seconds < PATIENCE * (BUDGET_S + DEEPER_BUDGET_S) + 1) == busy
    assert kept(staircase) == ([] if busy else [0, FIRST_DEPTH])


def test_a_slow_model_that_leaves_no_time_for_repetitions_is_kept():
    staircase, seconds = measured(clocked(lambda n: 1000.0 + n))
    assert set(staircase.steps(0)) == {1, 2}
    assert seconds < 5
    assert kept(staircase) == [0]


@pytest.mark.parametrize("calls", [0, 1, 5, 12])
def test_a_measurement_that_is_stopped_leaves_nothing(calls):
    cache = clocked(float)
    staircase, _ = measured(cache)
    before = staircase.to_json()
    cache.prefill([1] * MARKS[1])
    cache.calls.clear()
    measured(cache, staircase, stopped=lambda: len(cache.calls) >= calls)
    assert len(cache.calls) <= calls + 1
    assert (staircase.to_json(), cache.length) == (before, MARKS[1])
    cache.calls.clear()
    measured(cache, staircase, budget_s=0, stopped=lambda: len(cache.calls) == 3)  # during the last call
    assert (staircase.to_json(), len(cache.calls)) == (before, 3)
    cache.rewind(0)
    fresh = alone()
    cache.calls.clear()
    fresh.measure_first(cache, clock=cache.clock, stopped=lambda: len(cache.calls) >= calls)
    assert (fresh.depths, cache.length) == ([], 0)


@given(
    budget=st.floats(0.001, 2),
    rise=st.floats(0, 1),
    first=st.floats(0.5, 60),
    max_width=st.integers(1, 40),
)
def test_measuring_keeps_to_its_budget(budget, rise, first, max_width):
    # Any cost but one that grows faster than the width.
    rise *= first
    cache = clocked(lambda n: first + rise * (n - 1))
    staircase, seconds = measured(cache, alone(max_width), budget_s=budget)
    steps = staircase.steps(0)
    needed = [n for n in (1, 2) if n <= max_width]
    assert set(needed) <= set(steps) <= set(range(1, max_width + 1))
    forced = (3 * first + (first + rise if max_width > 1 else first)) / 1e3  # the first call is a warm-up
    assert seconds <= max(budget, forced) * (1 + 1e-9)
    if budget > 100:
        assert set(steps) == {n for n in WIDTHS if n <= max_width}


def test_a_deeper_measurement_is_shorter_and_keeps_the_shape():
    def cost(n):  # steps of four, and wider calls grow faster with the depth
        return 10 + 4 * -(-n // 4) + cache.length * (1 + n) / 1000

    cache = clocked(cost)
    staircase, first = measured(cache)
    cache.prefill([1] * 1500)
    _, second = measured(cache, staircase)
    assert second < first
    assert set(staircase.steps(1500)) == set(NARROW_DEEPER)
    for n in NARROW:
        assert staircase.costs(1500)[n] == pytest.approx(cost(n), rel=0.02)


def test_near_the_end_of_the_context_nothing_is_measured():
    cache = clocked(lambda n: 5.0 * n, n_ctx=300)
    staircase, _ = measured(cache)
    cache.prefill([1] * 295)
    calls = len(cache.calls)
    assert measured(cache, staircase)[1] == 0
    assert (len(cache.calls), staircase.depths) == (calls, [0])
    assert staircase.costs(295)[4] == pytest.approx(20)
    full = clocked(lambda n: 1.0, n_ctx=4)
    full.prefill([1] * 4)
    staircase, seconds = measured(full)
    assert (seconds, staircase.depths) == (0, [])


def test_between_and_beyond_the_measured_widths():
    costs = of({1: 10, 2: 12, 4: 20, 8: 16, 16: 32}, 24).costs(0)
    assert costs[3] == pytest.approx(16)
    assert costs[6] == pytest.approx(18)  # not monotonic, and kept so
    assert costs[24] == pytest.approx(48)  # along the last step
    assert of({1: 10, 4: 40, 8: 30}, 16).costs(0)[16] == pytest.approx(30)  # never cheaper for being wider
    assert of({1: 10}, 4).costs(0)[1:].tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize("factor", [2.5, 0.4])
def test_it_follows_a_change_of_speed_within_fifty_steps(factor):
    staircase = of(STAIRS)
    for _ in range(50):
        for n in (1, 8):
            staircase.observe(n, 100, STAIRS[n] * factor)
    costs = staircase.costs(100)
    for n in (1, 8):
        assert costs[n] == pytest.approx(STAIRS[n] * factor, rel=0.05)
    # The whole machine changed, so widths not in use are expected to have changed, too.
    assert 0.1 < np.log(costs[32] / STAIRS[32]) / np.log(factor) < 1.1


def test_one_width_that_was_measured_wrong_is_put_right():
    staircase = of({**STAIRS, 8: 60.0})
    for _ in range(50):
        for n in (1, 4, 8):
            staircase.observe(n, 100, STAIRS[n])
    for n in (1, 4, 8):
        assert staircase.costs(100)[n] == pytest.approx(STAIRS[n], rel=0.1)


def test_a_width_between_the_measured_ones_is_learned():
    staircase = of(STAIRS)
    for _ in range(50):
        staircase.observe(5, 100, 12.0)
        staircase.observe(1, 100, STAIRS[1])
    assert staircase.costs(100)[5] == pytest.approx(12, rel=0.05)


@pytest.mark.parametrize("factor", [1000.0, 3.0, 0.3, 1e-3, 0.0])
@pytest.mark.parametrize("n", [1, 8])
def test_outliers_count_for_nothing(n, factor):
    staircase = of(STAIRS)
    for i in range(200):
        odd = i % IN_A_ROW
        staircase.observe(n, 100, STAIRS[n] * (factor if odd else 1.0))
    assert staircase.costs(100).tolist() == pytest.approx(of(STAIRS).costs(100).tolist())


FEW = IN_A_ROW + 1


def step(staircase, times, count=FEW):
    """Real steps of each of some widths, in turns."""
    for _ in range(count):
        for n, ms in times.items():
            staircase.observe(n, 100, ms)


def check(staircase, expected):
    costs = staircase.costs(100)
    assert {n: costs[n] for n in expected} == {n: pytest.approx(ms, rel=0.05) for n, ms in expected.items()}


@pytest.mark.parametrize(
    ("n", "factor"), [(2, 50.0), (2, 2.5), *((n, f) for n in (8, 32) for f in (50.0, 2.5, 0.4, 0.02))]
)
def test_a_width_remembered_wrong_is_right_after_a_few_steps_of_its_own(n, factor):
    staircase = of({**STAIRS, n: STAIRS[n] * factor})
    step(staircase, {1: STAIRS[1], n: STAIRS[n]})
    check(staircase, STAIRS)


def times_of(factor):
    return {n: ms * factor for n, ms in STAIRS.items()}


@pytest.mark.parametrize("factor", [50.0, 10.0, 2.5])
def test_a_memory_that_is_too_dear_is_given_up_for_all_widths_after_a_few_single_tokens(factor):
    staircase = of(times_of(factor))
    step(staircase, {1: STAIRS[1]})
    check(staircase, STAIRS)
    step(staircase, {1: STAIRS[1]}, 3000)  # for good, although nothing wider was ever tried
    check(staircase, STAIRS)
    check(of(dict(staircase.steps(0))), STAIRS)


def test_widths_that_spoke_for_themselves_do_not_follow_single_tokens():
    staircase = of(times_of(10))
    step(staircase, {8: STAIRS[8], 16: STAIRS[16]})
    step(staircase, {1: STAIRS[1]})
    check(staircase, STAIRS)


@pytest.mark.parametrize("also", [{}, {8: STAIRS[8]}], ids=["plain", "drafting"])
def test_a_busy_machine_is_followed_and_forgotten_when_it_is_over(also):
    staircase, used = of(STAIRS), {1: STAIRS[1], **also}
    staircase.watch = beside_others
    step(staircase, used, 100)
    step(staircase, {n: 10 * ms for n, ms in used.items()})
    check(staircase, times_of(10))  # else widths not in use would look cheap, and each would be tried
    assert staircase.to_json()["0"]["32"] == pytest.approx(STAIRS[32])  # which is not worth keeping
    step(staircase, {n: 10 * ms for n, ms in used.items()}, 200)
    check(staircase, {n: 10 * ms for n, ms in used.items()})
    step(staircase, used)
    check(staircase, STAIRS)


def test_a_machine_that_becomes_quiet_between_two_depths():
    staircase = Staircase(8)
    staircase.load_json({"0": {"1": 100, "8": 200}, "1000": {"1": 300, "8": 600}})
    for _ in range(FEW):
        staircase.observe(1, 500, 20.0)
    assert staircase.costs(500)[[1, 8]] == pytest.approx([20, 40], rel=0.05)
    assert staircase.costs(1000)[8] == pytest.approx(60, rel=0.05)


def test_corrections_fade_and_are_kept_by_half():
    staircase = of({1: 10.0, 8: 20.0})
    staircase.observe(1, 100, 10.0)
    for _ in range(100):
        staircase.observe(8, 100, 28.0)
    assert staircase.costs(100)[8] == pytest.approx(28, rel=0.1)
    kept = staircase.to_json()["0"]
    assert kept["1"] == 10
    assert 21.5 < kept["8"] < (20 * 28) ** 0.5  # part of it is thought to be the machine's speed
    for _ in range(2000):
        staircase.observe(1, 100, 10.0)
    assert staircase.costs(100)[1] == pytest.approx(10, rel=0.03)
    assert staircase.costs(100)[8] < 21  # worth trying again


def test_corrections_made_beside_others_are_followed_and_not_kept():
    staircase, busy = of({1: 10.0, 8: 20.0}), True
    staircase.watch = lambda: lambda: busy
    for _ in range(100):
        staircase.observe(1, 100, 10.0)
        staircase.observe(8, 100, 38.0)
    assert staircase.costs(100)[8] == pytest.approx(38, rel=0.1)
    assert staircase.to_json()["0"]["8"] == 20.0
    busy = False
    staircase.observe(8, 100, 38.0)
    for _ in range(ENOUGH - 2):
        staircase.observe(8, 100, 25.0)
    assert staircase.to_json()["0"]["8"] == 20.0  # too few: what others did is still in the estimate
    for _ in range(5 * ENOUGH):
        staircase.observe(8, 100, 25.0)
    assert 21.5 < staircase.to_json()["0"]["8"] < (20 * 28) ** 0.5


def test_corrections_survive_another_measurement():
    cache = clocked(lambda n: 10.0 + n)
    staircase, _ = measured(cache)
    for _ in range(200):
        staircase.observe(8, 0, 40.0)
        staircase.observe(1, 0, 11.0)
    cache.prefill([1] * MARKS[1])
    measured(cache, staircase)
    assert staircase.costs(0)[8] > 30


def test_a_step_between_two_depths_corrects_both():
    staircase = Staircase(8)
    staircase.load_json({"0": {"1": 10, "8": 20}, "1000": {"1": 30, "8": 60}})
    assert staircase.costs(500)[8] == pytest.approx(40)
    for _ in range(60):
        staircase.observe(8, 500, 80.0)
    assert staircase.costs(500)[8] == pytest.approx(80, rel=0.05)
    assert staircase.costs(0)[8] > 25
    assert staircase.costs(1000)[8] > 75


def test_a_noisy_slope_is_not_followed_downwards():
    staircase = Staircase(8)
    staircase.load_json({"0": {"1": 10, "8": 20}, "300": {"1": 9, "8": 19.5}})
    for length in (0, 300, 3000, 300_000):
        assert (staircase.costs(length)[1:] > 8).all()
    assert staircase.costs(300_000)[1] == pytest.approx(9)


def test_steps_do_not_pass_for_a_measurement():
    staircase = Staircase(8)
    staircase.observe(1, 100, 5.0)
    assert staircase.needs_measuring(100)
    staircase = of(STAIRS)
    staircase.observe(1, 600, 10.0)
    assert staircase.needs_measuring(600)
    assert staircase.costs(600)[1] > STAIRS[1]


times = st.floats(1e-3, 1e6)


stairs = st.dictionaries(st.integers(1, 64), times).map(lambda s: {1: 1.0, **s})


@given(st.dictionaries(st.integers(0, 100_000), stairs, max_size=4), st.integers(1, 64))
def test_json_round_trip(depths, max_width):
    data = {str(d): {str(n): ms for n, ms in steps.items()} for d, steps in depths.items()}
    staircase = Staircase(max_width)
    staircase.load_json(json.loads(json.dumps(data)))
    assert json.loads(json.dumps(staircase.to_json())) == data
    assert staircase.depths == sorted(depths)
    assert (staircase.costs(700)[1:] > 0).all()


GARBAGE = [
    [],
    3,
    "x",
    {"a": {"1": 1}},
    {"0": 1},
    {"0": []},
    {"0": {"x": 1}},
    {"0": {"1": "x"}},
    {"0": {"1": None}},
    {"0": {"1": 0}},
    {"0": {"1": -2}},
    {"0": {"1": float("nan")}},
    {"0": {"1": float("inf")}},
    {"0": {"0": 1, "1": 1}},
    {"0": {}},
    {"0": {"2": 5.0}},
    {"-1": {"1": 5.0}},
    {"0": {"1": [5.0]}},
    {"0": {"1": [5.0, "x"]}},
    {"0": {"1": [5.0, 0.0]}},
    {"0": {"1": [5.0, float("nan")]}},
    {"0": {"1": [5.0, 0.1, 0.1]}},
]


@pytest.mark.parametrize("data", GARBAGE, ids=repr)
def test_garbage_is_refused_and_changes_nothing(data):
    staircase = of(STAIRS)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        staircase.load_json(data)
    assert staircase.steps(0) == STAIRS


def test_beyond_the_interpolated_widths_only_measured_ones_are_used():
    cache = clocked(lambda n: 5.0 + n if n < 64 else 20.0)  # attention in tiles
    staircase, _ = measured(cache, alone(64))
    costs = staircase.costs(0)
    assert costs[64] == pytest.approx(20)
    assert np.isinf(costs[33:64]).all()
    assert np.isfinite(costs[1:33]).all()
    assert Staircase(32).costs(0)[32] == 32


def kept_and_loaded(staircase, max_width):
    """What a later run with steps of up to `max_width` makes of what is kept."""
    loaded = alone(max_width)
    loaded.load_kept(json.loads(json.dumps(staircase.to_json())))
    return loaded


def test_what_a_narrow_run_measured_is_measured_again_where_wider_steps_are_possible():
    cache = clocked(lambda n: 3.0 + n)
    narrow, _ = measured(cache, alone(3))
    assert kept_and_loaded(narrow, 3).depths == [0]
    wide = kept_and_loaded(narrow, 32)
    assert (wide.depths, wide.needs_measuring(0)) == ([], True)
    measured(cache, wide)
    assert set(wide.steps(0)) == set(NARROW)
    assert kept_and_loaded(wide, 3).steps(0) == wide.steps(0)  # a narrow run can use it
    assert kept_and_loaded(wide, 64).depths == []
    assert kept_and_loaded(kept_and_loaded(wide, 3), 32).steps(0) == wide.steps(0)  # and leaves it as it is


def test_widths_that_there_was_no_time_for_are_not_measured_again():
    slow, _ = measured(clocked(lambda n: 1000.0 + n))
    again = kept_and_loaded(slow, 32)
    assert (set(again.steps(0)), again.needs_measuring(0)) == ({1, 2}, False)
    assert kept_and_loaded(again, 32).depths == [0]


def test_a_narrow_run_replaces_nothing_that_a_wide_one_kept():
    wide, narrow = (measured(clocked(lambda n: 3.0 + n), alone(n))[0].to_json() for n in (32, 1))
    beside = Staircase(1).with_wider({**narrow, "300": narrow["0"]}, wide)
    assert beside == {"0": wide["0"], "300": narrow["0"]}
    assert Staircase(32).with_wider(wide, narrow) == wide


def test_how_far_a_time_may_be_off_is_known_and_kept():
    rng = np.random.default_rng(0)
    cache = clocked(lambda n: (10.0 + n) * (1 + 0.05 * rng.random()))
    staircase, _ = measured(cache)
    for n in (1, 8, 9, 32):
        assert 0.005 < staircase.noise(n, 0) / staircase.cost(n, 0) < 0.06
        assert staircase.noise(n, 5000) > 0
    again = kept_and_loaded(staircase, 32)
    assert again.to_json() == staircase.to_json()
    assert again.noise(8, 0) == pytest.approx(staircase.noise(8, 0))
    steady, _ = measured(clocked(lambda n: 10.0 + n))
    assert 0 < steady.noise(1, 0) < staircase.noise(1, 0)
    assert alone().noise(1, 0) == float("inf")
    before = of(STAIRS)  # as earlier versions kept it: times alone
    assert before.noise(1, 0) == pytest.approx(0.02 * STAIRS[1])
    assert 0 < before.noise(20, 100) < before.cost(20, 100)


def test_noise_never_makes_more_tokens_cheaper_than_one():
    hit = iter([0, 0, 0, 0.4])  # the warm-up, and the first single tokens are slow by chance

    def cost(n):
        return 10.0 + 0.01 * n + (next(hit, 0.0) if n == 1 else 0) - (0.06 if n == 4 else 0)

    staircase, _ = measured(clocked(cost))
    assert staircase.steps(0)[4] < staircase.steps(0)[1]
    costs = staircase.costs(0)
    assert (np.diff(costs[1:33]) >= 0).all()
    assert costs[1] == pytest.approx(10.0, abs=0.05)


def test_a_time_in_the_store_has_its_noise_beside_it():
    data = {"0": {"32": None, "1": [10.0, 0.02], "8": 20.0}}
    staircase = alone()
    staircase.load_json(data)
    assert (dict(staircase.steps(0)), staircase.to_json()) == ({1: 10.0, 8: 20.0}, data)
    assert staircase.noise(1, 0) == pytest.approx(0.2)


@pytest.mark.parametrize("seed", range(5))
def test_steady_work_beside_a_measurement_makes_it_slow_and_not_kept(seed):
    rng = np.random.default_rng(seed)
    cache = clocked(lambda n: 3 * (3 + n) * (1 + 0.02 * rng.random()))
    staircase = Staircase(32, watch=beside_others)
    seconds = staircase.measure_first(cache, clock=cache.clock)
    assert seconds < BUDGET_S + DEEPER_BUDGET_S  # within the budget, repetitions agree, and yet
    assert staircase.disturbed and kept(staircase) == []
    assert staircase.costs(0)[1] == pytest.approx(12, rel=0.05)  # for this run it counts
