"""The staircase: what a call costs is measured within a budget, follows the machine, and survives a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.scripted import ScriptedBackend
from specx.engine.staircase import CLIP, ORDER, REGIME_RATE, STEP_RATE, Staircase, bucket_of

STAIRS = {1: 7.2, 2: 10.6, 3: 14.1, 4: 14.4, 6: 22.4, 8: 19.1, 12: 25.5, 16: 29.8, 32: 54.7}


class Clocked(ScriptedBackend):
    """Takes as long as `cost(width)` milliseconds says, on a clock of its own."""

    def __init__(self, cost, **options):
        super().__init__(8, max_leaves=1, **options)
        self.cost, self.now, self.calls = cost, 0.0, []

    def forward(self, tokens, parents):
        output = super().forward(tokens, parents)
        self.calls.append(len(tokens))
        self.now += self.cost(len(tokens)) / 1e3
        return output

    def clock(self):
        return self.now


def measured(backend, staircase=None, **options):
    staircase = staircase or Staircase(32)
    seconds = staircase.measure(backend, clock=backend.clock, **options)
    return staircase, seconds


def of(steps, max_width=32, bucket=0):
    staircase = Staircase(max_width)
    staircase.load_json({str(bucket): {str(n): ms for n, ms in steps.items()}})
    return staircase


def test_buckets_double():
    assert [bucket_of(n) for n in (0, 511, 512, 1023, 1024, 2047, 2048, 65536)] == [0, 0, 1, 1, 2, 2, 3, 8]


def test_without_measurements_a_call_costs_its_width():
    costs = Staircase(4).costs(100)
    assert costs.tolist() == [np.inf, 1, 2, 3, 4]
    assert Staircase(4).needs_measuring(0)


def test_measuring_finds_every_step_and_restores_the_backend():
    backend = Clocked(lambda n: 3 + n**1.5)
    backend.prefill([1, 2, 3])
    staircase, seconds = measured(backend)
    assert staircase.steps(0) == pytest.approx({n: 3 + n**1.5 for n in ORDER})
    assert seconds == backend.now
    assert backend.tokens == (1, 2, 3)
    backend.forward(np.array([4], np.int32), np.array([-1], np.int32))  # nothing is pending
    assert (staircase.buckets, staircase.needs_measuring(3), staircase.needs_measuring(512)) == (
        [0],
        False,
        True,
    )


def test_measuring_on_a_backend_that_really_takes_time():
    backend = ScriptedBackend(8, max_leaves=1, step_costs={1: 1, 8: 2, 32: 4})
    backend.prefill([1] * 600)
    staircase = Staircase(32)
    assert staircase.measure(backend) > 0
    assert staircase.buckets == [1]
    steps = staircase.steps(1)
    assert all(steps[n] >= (1 if n == 1 else 2 if n <= 8 else 4) for n in ORDER)
    assert len(backend.tokens) == 600


def test_the_first_call_and_hiccups_do_not_count():
    backend = Clocked(lambda n: n + (100 if len(backend.calls) in {1, 5, 9} else 0))
    staircase, _ = measured(backend)
    assert staircase.steps(0) == pytest.approx({n: float(n) for n in ORDER})


@settings(deadline=None)
@given(
    budget=st.floats(0.001, 2),
    rise=st.floats(0, 1),
    first=st.floats(0.5, 60),
    max_width=st.integers(1, 40),
)
def test_measuring_keeps_to_its_budget(budget, rise, first, max_width):
    # Any cost but one that grows faster than the width.
    rise *= first
    backend = Clocked(lambda n: first + rise * (n - 1))
    staircase, seconds = measured(backend, Staircase(max_width), budget_s=budget)
    steps = staircase.steps(0)
    needed = [n for n in (1, 2) if n <= max_width]
    assert set(needed) <= set(steps) <= set(range(1, max_width + 1))
    forced = (2 * first + (first + rise) * (max_width > 1)) / 1e3  # the first call is a warm-up
    assert seconds <= max(budget, forced) * (1 + 1e-9)
    if budget > 100:
        assert set(steps) == {n for n in ORDER if n <= max_width}


def test_a_deeper_bucket_gets_a_smaller_budget_and_its_own_steps():
    backend = Clocked(lambda n: 20.0 + backend.length / 100)
    staircase, first = measured(backend)
    backend.prefill([1] * 1500)
    _, second = measured(backend, staircase)
    assert staircase.buckets == [0, 2]
    assert second <= 1.0 < first + 1.0
    assert staircase.costs(1500)[1] == pytest.approx(35)
    assert staircase.costs(5)[1] == pytest.approx(20)
    assert staircase.costs(700)[1] == pytest.approx(20)  # the nearest bucket, the shallower of two


def test_near_the_end_of_the_context_a_deeper_bucket_goes_without():
    backend = Clocked(lambda n: 5.0 * n, n_ctx=520)
    staircase, _ = measured(backend)
    backend.prefill([1] * 515)
    calls = len(backend.calls)
    assert measured(backend, staircase)[1] == 0
    assert (len(backend.calls), staircase.buckets) == (calls, [0])
    assert staircase.costs(515)[4] == pytest.approx(20)


def test_what_was_measured_without_room_is_used_but_not_kept():
    backend = Clocked(lambda n: 5.0 + n, n_ctx=10)
    backend.prefill([1] * 6)
    staircase, _ = measured(backend)
    assert set(staircase.steps(0)) == {1, 2, 3, 4}
    assert not staircase.needs_measuring(6)
    assert staircase.to_json() == {}
    full = Clocked(lambda n: 1.0, n_ctx=4)
    full.prefill([1] * 4)
    staircase, seconds = measured(full)
    assert (seconds, staircase.buckets) == (0, [])


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
        assert costs[n] == pytest.approx(STAIRS[n] * factor, rel=0.02)
    # The whole machine changed, so widths not in use are expected to have changed, too.
    assert abs(np.log(costs[4] / STAIRS[4])) > 0.3 * abs(np.log(factor))
    assert np.sign(np.log(costs[4] / STAIRS[4])) == np.sign(np.log(factor))


def test_one_width_that_was_measured_wrong_is_put_right():
    staircase = of({**STAIRS, 8: 60.0})
    for _ in range(50):
        for n in (1, 4, 8):
            staircase.observe(n, 100, STAIRS[n])
    for n in (1, 4, 8):
        assert staircase.costs(100)[n] == pytest.approx(STAIRS[n], rel=0.05)


def test_a_width_between_the_measured_ones_is_learned():
    staircase = of(STAIRS)
    for _ in range(50):
        staircase.observe(5, 100, 12.0)
        staircase.observe(1, 100, STAIRS[1])
    assert staircase.costs(100)[5] == pytest.approx(12, rel=0.05)


@pytest.mark.parametrize("factor", [1000.0, 1e-3, 0.0])
def test_one_outlier_counts_as_a_small_one(factor):
    staircase = of(STAIRS)
    staircase.observe(8, 100, STAIRS[8] * factor)
    worst = CLIP ** (STEP_RATE + REGIME_RATE) * (1 + 1e-9)
    assert 1 / worst <= staircase.costs(100)[8] / STAIRS[8] <= worst


def test_the_speed_of_the_machine_is_the_same_in_every_bucket():
    staircase = of({1: 10, 8: 20})
    staircase.load_json({"0": {"1": 10, "8": 20}, "1": {"1": 30, "8": 60}})
    assert staircase.costs(600)[1] == pytest.approx(30)
    for _ in range(50):
        staircase.observe(1, 100, 20)
        staircase.observe(8, 100, 40)
    assert staircase.costs(600)[1] > 36


def test_steps_do_not_pass_for_a_measurement():
    staircase = Staircase(8)
    staircase.observe(1, 100, 5.0)
    assert staircase.needs_measuring(100)
    staircase = of(STAIRS)
    staircase.observe(1, 600, 50.0)
    assert staircase.needs_measuring(600)
    assert staircase.costs(600)[1] > STAIRS[1]


times = st.floats(1e-3, 1e6)


@given(
    st.dictionaries(
        st.integers(0, 12),
        st.dictionaries(st.integers(1, 64), times).map(lambda s: {1: 1.0, **s}),
        max_size=4,
    )
)
def test_json_round_trip(steps):
    data = json.loads(json.dumps({str(b): {str(n): ms for n, ms in s.items()} for b, s in steps.items()}))
    staircase = Staircase(64)
    staircase.load_json(data)
    assert json.loads(json.dumps(staircase.to_json())) == data
    assert staircase.buckets == sorted(steps)


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
]


@pytest.mark.parametrize("data", GARBAGE, ids=repr)
def test_garbage_is_refused_and_changes_nothing(data):
    staircase = of(STAIRS)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        staircase.load_json(data)
    assert staircase.steps(0) == STAIRS
