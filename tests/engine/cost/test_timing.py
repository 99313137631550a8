"""How anything is timed: beside no other work, in turns, within a budget."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.backends.base import Want
from specx.backends.machine.machine import this_cpu
from specx.backends.machine.other_work import OtherWork, Work
from specx.backends.scripted import ScriptedCache, ScriptedModel, SimulatedClock
from specx.engine.cost.timing import (
    PATIENCE,
    Measurement,
    busy_now,
    disturbs,
    relative_noise,
    time_step,
    unsettled,
    unwatched,
    watch_others,
)

TICK = 0.01


def work(others, *, waited=0.0, seconds=1.0, cpus=2):
    return Work(seconds, cpus, others, waited, TICK)


@pytest.mark.parametrize(
    ("seen", "disturbed"),
    [
        (work(0.0), False),
        (work(0.05), False),  # what the system itself does
        (work(0.66), True),  # a busy loop beside two threads on two CPUs
        (work(0.033, seconds=0.05), True),  # of a short time, too
        (work(0.0033, seconds=0.005), False),  # but not within what ticks are off by
        (work(1.9, seconds=10.0, cpus=2), False),
        (work(2.1, seconds=10.0, cpus=2), True),
        (work(0.9, cpus=64), True),  # one process that reads memory slows all threads down
        (work(0.3, cpus=64), False),
        (work(0.15, waited=0.15), True),  # little work, but this process had to wait for all of it
        (work(0.0, waited=1.8), False),  # more threads than CPUs wait for each other
        (work(0.05, waited=0.9, cpus=16), False),
        (work(None), False),  # nobody knows
        (work(None, waited=0.9), False),
        (work(5.0, seconds=0.0), False),
        (replace(work(0.0), throttled_s=0.2), True),  # a quota holds it up
        (replace(work(None), throttled_s=0.2), True),
        (replace(work(0.0), throttled_s=0.05), False),
    ],
)
def test_what_disturbs(seen, disturbed):
    assert disturbs(seen) == disturbed


LOOP = "import os\nprint(flush=True)\nwhile os.getppid() == {}: pass"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is read")
def test_a_real_process_that_does_nothing_but_run_disturbs():
    cpus = this_cpu().allowed
    busy, others = watch_others(), OtherWork(cpus)
    loop = subprocess.Popen(
        [sys.executable, "-c", LOOP.format(__import__("os").getpid())], stdout=subprocess.PIPE
    )
    try:
        loop.stdout.readline()
        limit = time.monotonic() + 60
        while not (disturbed := busy()) and time.monotonic() < limit:
            time.sleep(0.05)
        assert disturbed, others.so_far()
    finally:
        loop.kill()
        loop.communicate()


class Timed(ScriptedModel):
    """Steps that take what `cost` says, on a simulated clock."""

    def __init__(self, cost, **options):
        super().__init__(options.pop("vocab_size", 8), max_leaves=1, **options)
        self.cost, self.simulated, self.calls = cost, SimulatedClock(), []

    def forward(self, trees, want=Want.LOGITS):
        self.calls.append(sum(map(len, trees)))
        self.simulated.sleep(self.cost(len(self.calls)) / 1e3)
        return super().forward(trees, want)


def test_a_step_is_timed_and_leaves_nothing_behind():
    model = Timed(lambda call: 10.0 * call)
    cache = model.open()
    cache.prefill([1, 2, 3])
    assert time_step(cache, 4, model.simulated) == pytest.approx(10.0)
    assert time_step(cache, 4, model.simulated, calls=2) == pytest.approx(20.0)  # the lesser
    assert (cache.tokens, model.calls) == ((1, 2, 3), [4] * 3)
    long = Timed(lambda _call: 900.0)
    assert time_step(long.open(), 1, long.simulated, calls=2) == pytest.approx(900.0)
    assert len(long.calls) == 1
    plain = Timed(lambda _call: 1.0, max_width=1)
    cache = plain.open()
    assert time_step(cache, 8, plain.simulated) > 0  # read, as it cannot be a step
    assert (cache.length, plain.calls) == (0, [])


def test_a_step_is_of_different_tokens():
    seen = []

    class Seen(Timed):
        def forward(self, trees, want=Want.LOGITS):
            seen.extend(tree.tokens.tolist() for tree in trees)
            return super().forward(trees, want)

    time_step(Seen(lambda _call: 1.0, vocab_size=4096).open(), 32, SimulatedClock())
    assert len(set(seen[0])) == 32 and max(seen[0]) < 4096


class Turns:
    """A measurement of two arms at widths 1 and 2 that take `ms`."""

    def __init__(self, ms, *, busy=False, visits=5, budget_s=1.0, **options):
        self.clock, self.told = SimulatedClock(), []
        self.measurement = Measurement(
            budget_s,
            clock=self.clock,
            watch=lambda: lambda: busy,
            progress=self.told.append,
            turns=4,
            **{"least": 2, "most": visits, **options},
        )
        order = [(visit, arm, n) for visit in range(visits) for arm in "ab" for n in (1, 2)]
        self.measurement.take(order, lambda arm, n: self.step(ms))

    def step(self, ms):
        self.clock.sleep(ms / 1e3)
        return ms

    @property
    def counts(self):
        return {arm: {n: len(ms) for n, ms in times.items()} for arm, times in self.measurement.times.items()}


def every(count):
    return {"a": {1: count, 2: count}, "b": {1: count, 2: count}}


def test_all_are_visited_alike_while_the_budget_lasts():
    quick = Turns(10.0)
    assert quick.counts == every(5)
    assert quick.measurement.least() == {"a": {1: 10, 2: 10}, "b": {1: 10, 2: 10}}
    assert not quick.measurement.disturbed and not quick.measurement.stopped
    assert Turns(80.0).counts["a"][1] in (3, 4)


def test_a_slow_model_is_given_the_time_for_the_least_visits():
    assert Turns(400.0).counts == every(2)  # 3.2 s
    slow = Turns(2000.0)
    assert slow.counts == every(1)
    assert not slow.measurement.disturbed


def test_beside_other_work_it_ends_and_nothing_follows_from_it():
    ended = Turns(2000.0, busy=True)
    assert ended.counts == {"a": {1: 1, 2: 1}, "b": {1: 1}}  # one of each arm at least
    assert ended.measurement.ended and ended.measurement.disturbed
    within = Turns(10.0, busy=True)
    assert within.counts == every(5)  # steady and in time, and all the same
    assert within.measurement.disturbed


def test_other_work_after_its_end_disturbs_nothing():
    state = [False]
    measurement = Measurement(1.0, clock=SimulatedClock(), watch=lambda: lambda: state[0])
    measurement.take([(0, "a", 1)], lambda _arm, _n: 1.0)
    state[0] = True
    assert not measurement.disturbed


def test_repetitions_that_disagree_are_no_measurement():
    values = iter([1.0, 2.0, 3.0, 4.0] * 5)
    measurement = Measurement(9.0, clock=SimulatedClock(), watch=unwatched, least=3)
    measurement.take([(i, "a", 1) for i in range(5)], lambda _arm, _n: next(values))
    assert measurement.disturbed


@given(st.floats(0.1, 5000.0), st.floats(0.01, 5.0), st.booleans())
def test_no_measurement_takes_longer_than_it_may(ms, budget_s, busy):
    turns = Turns(ms, budget_s=budget_s, busy=busy)
    forced = 4 * ms / 1e3
    assert turns.clock() <= max(PATIENCE * budget_s, forced) + ms / 1e3 + 1e-6
    assert turns.told == sorted(turns.told) and 0 < turns.told[-1] <= 1


@pytest.mark.parametrize("busy", [False, True])
def test_reading_a_prompt_ends_beside_other_work_only(busy):
    clock = SimulatedClock()

    class Slow(ScriptedCache):
        def prefill(self, tokens, *, progress):
            for done in range(0, len(tokens), 4):
                clock.sleep(1.0)
                progress(done, len(tokens))

    cache = ScriptedModel(8, cache_class=Slow).open()
    measurement = Measurement(1.0, clock=clock, watch=lambda: lambda: busy)
    assert measurement.prefill(cache, 100) != busy
    assert clock() == (4.0 if busy else 25.0)


def test_widths_that_disagree_or_cannot_be_so_dear():
    assert unsettled({1: [1, 1.1], 2: [2, 2.1], 4: [3, 3.2]}) == []
    assert unsettled({1: [1, 1.1], 2: [1.5, 2.1], 4: [3, 9, 8]}) == [2, 4]
    assert unsettled({1: [1], 2: [9], 4: [3]}) == [2]
    assert unsettled({1: [1], 32: [60], 64: [20]}) == []  # attention in tiles


def test_noise_is_what_is_usual_or_more():
    noise = relative_noise({1: [10.0, 10.2], 2: [20.0, 20.4, 20.2], 4: [30.0, 33.0], 8: [40.0]})
    assert noise == pytest.approx({1: 0.02, 2: 0.02, 4: 0.1, 8: 0.02})
    once = relative_noise({1: [5.0], 2: [6.0]})
    assert once[1] == once[2] > 0  # nothing is sure that was not repeated
    assert relative_noise({1: [5.0, 5.0]})[1] > 0


def test_a_glance_tells_whether_others_are_busy_now():
    assert busy_now(lambda: lambda: True)
    assert not busy_now(lambda: lambda: False)
