"""How many threads a model runs on: measured, the narrowest of the fastest taken, remembered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from specx.backends.base import Want
from specx.backends.machine.machine import CPU, this_cpu
from specx.backends.scripted import ScriptedCache, ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.engine.cost.timing import unwatched
from specx.engine.settings import Asked, AskedModel
from specx.engine.setup.kernel_times import DEPTH
from specx.engine.setup.threads import (
    BATCH,
    ThreadTimes,
    candidates,
    choose_threads,
    load_threads,
    measure_threads,
    save_threads,
    warn_of_threads,
)


class Text(ScriptedCache):
    """Reading it takes time, too."""

    def prefill(self, tokens, **options):
        self.model.spend(len(tokens))
        super().prefill(tokens, **options)


class Machine(ScriptedModel):
    """Takes what `cost(tokens, threads)` says, in milliseconds."""

    def __init__(self, cost, **options):
        super().__init__(8, cache_class=Text, **{"max_width": 64, "max_texts": 1, **options})
        self.cost, self.clock, self.calls = cost, SimulatedClock(), []
        self.threads = None

    def set_threads(self, decode, batch):
        self.threads = (decode, batch)

    def spend(self, n):
        if self.threads is None:  # the context is read before anything is tried
            return
        threads = self.threads[0 if n == 1 else 1]
        self.calls.append((n, threads))
        self.clock.sleep(self.cost(n, threads) / 1e3)

    def forward(self, trees, want=Want.LOGITS):
        self.spend(sum(map(len, trees)))
        return super().forward(trees, want)


def measure(cost, counts, **options):
    machine = Machine(cost, **options)
    times = measure_threads(machine, counts, clock=machine.clock, watch=unwatched)
    assert machine.open().length == 0  # there is room for one text: that of the measurement is closed
    return times, machine


def saturated(n, threads):
    """Memory is saturated by 4 threads, arithmetic is not."""
    return max(40.0 / threads, 10.0) if n == 1 else 20.0 * n / threads


def test_more_threads_than_processors_are_told():
    told, cpu = [], CPU("x", (0, 1), (0, 1))
    for asked in ({}, {"threads": 2, "threads_batch": 2}):
        warn_of_threads(Asked(Path("model.gguf"), **asked), told.append, cpu)
    assert told == []
    for asked in ({"threads": 8}, {"threads_batch": 8}, {"draft": AskedModel(threads=8)}):
        warn_of_threads(Asked(Path("model.gguf"), **asked), told.append, cpu)
    assert told == ["8 threads share 2 usable CPUs: slower than with 2"] * 3


@pytest.mark.parametrize("most", [1, 2, 8])
def test_1_2_and_n_threads(most):
    counts = candidates(CPU("x", tuple(range(most)), tuple(range(most))))
    times, _ = measure(saturated, counts)
    assert times.decode == min(most, 4) and times.batch == most
    assert times.ms_per_token == pytest.approx(saturated(1, times.decode))
    assert not times.disturbed and times.depth == DEPTH


def test_a_narrower_count_wins_a_near_tie():
    times, _ = measure(lambda n, t: {8: 10.0, 6: 10.2, 4: 10.4, 2: 12.0}[t], (2, 4, 6, 8))
    assert times.decode == times.batch == 6


def test_all_widths_of_a_batch_count():
    cost = {(8, 4): 9.0, (8, 8): 10.0, (32, 4): 40.0, (32, 8): 20.0, (1, 4): 5.0, (1, 8): 9.0}
    times, _ = measure(lambda n, t: cost[n, t], (4, 8))
    assert (times.decode, times.batch) == (4, 8)


def test_hopeless_counts_cost_one_visit_at_most():
    times, machine = measure(lambda n, t: 1000.0 * n / t, (1, 2, 4, 8, 16))
    assert times.decode == times.batch == 16
    tried = [threads for n, threads in machine.calls if n == 32]
    assert 8 in tried and min(tried) == 8  # it is twice as slow, so that nothing narrower was tried
    assert tried.count(8) <= 3


def test_a_wide_count_that_is_slow_does_not_end_the_search():
    times, _ = measure(lambda n, t: {16: 100.0, 8: 30.0, 4: 50.0, 2: 90.0}[t], (2, 4, 8, 16))
    assert times.decode == times.batch == 8


def test_one_hiccup_changes_nothing():
    calls = iter(range(10**6))
    times, _ = measure(lambda n, t: 10.0 / t + (300.0 if next(calls) == 5 else 0.0), (1, 2, 4))
    assert times.decode == 4 and not times.disturbed


def test_a_busy_machine_is_noticed():
    calls = iter(range(10**6))
    times, _ = measure(lambda n, t: 10.0 / t * (1 + (next(calls) // 2 % 3)), (1, 2, 4))
    assert times.disturbed


def test_a_model_that_decodes_plainly():
    times, machine = measure(saturated, (1, 2, 4), max_width=1, max_leaves=1, can_rewind=False)
    assert (times.decode, times.batch) == (4, 4)
    assert {n for n, _ in machine.calls} == {1, *BATCH} and times.depth == 0


def test_a_slow_model_takes_as_long_as_it_must_and_says_how_far_it_is():
    fractions = []
    machine = Machine(lambda n, t: 900.0)
    measure_threads(machine, (1, 2), clock=machine.clock, watch=unwatched, progress=fractions.append)
    assert machine.clock() < 20
    assert fractions and all(0 <= f <= 1 for f in fractions)
    assert fractions == sorted(fractions)


def test_candidates_are_few_and_within_what_can_be_used():
    shared = tuple((i, i + 8) for i in range(8))
    cpu = CPU("x", tuple(range(16)), tuple(range(16)), shared)
    assert candidates(cpu) == [1, 2, 4, 8, 12, 16]
    hybrid = CPU("x", tuple(range(14)), tuple(range(14)), None, tuple(range(6, 14)))
    assert 6 in candidates(hybrid) and max(candidates(hybrid)) == 14
    large = CPU("x", tuple(range(128)), tuple(range(128)))
    assert candidates(large) == [8, 16, 32, 64, 96, 128]
    assert candidates(CPU("x", tuple(range(128)), tuple(range(128)), quota=2.5)) == [1, 2, 3]


def test_what_was_measured_is_used_unless_the_user_says_otherwise(tmp_path):
    store = Store(tmp_path)

    def chosen(key="k", **asked):
        return [(c.value, c.why) for c in choose_threads(Asked(Path("model.gguf"), **asked), store, key)]

    rule = (this_cpu().default_threads, "by rule, one for each usable core (`specx probe MODEL` measures)")
    assert chosen() == [rule, rule]
    times, _ = measure(saturated, (2, 4, 8))
    save_threads(store, "k", times)
    assert chosen() == [(4, "as measured"), (8, "as measured")]
    assert chosen(threads=2) == [(2, "as asked"), (2, "as many as for one token")]
    assert chosen(threads_batch=3) == [(4, "as measured"), (3, "as asked")]
    assert chosen(threads=4, threads_batch=8) == [(4, "as asked"), (8, "as asked")]
    assert chosen("another machine") == [rule, rule]


def test_threads_for_a_batch_write_the_most_tokens_with_one_read_for_each():
    def times(verifying, reading):
        return ThreadTimes({1: {4: 5.0, 8: 5.0}, 8: verifying, 32: reading})

    assert times({4: 9.0, 8: 10.0}, {4: 40.0, 8: 40.0}).batch == 4  # drafts are verified faster
    assert times({4: 9.0, 8: 10.0}, {4: 40.0, 8: 20.0}).batch == 8  # prompts are read so much faster
    # Where drafts do not pay on any, the time they take is of no account.
    assert times({4: 100.0, 8: 900.0}, {4: 40.0, 8: 20.0}).batch == 8


def test_it_survives_the_store_unless_it_was_disturbed(tmp_path):
    store = Store(tmp_path)
    times, _ = measure(saturated, (1, 2, 4))
    save_threads(store, "k", times)
    assert load_threads(store, "k") == times
    save_threads(store, "busy", replace(times, disturbed=True))
    assert load_threads(store, "busy") is None


@pytest.mark.parametrize("busy", [False, True])
def test_steady_work_beside_it_is_noticed(tmp_path, busy):
    machine, store = Machine(lambda n, t: 60.0 / t), Store(tmp_path)
    times = measure_threads(machine, (1, 2, 4), clock=machine.clock, watch=lambda: lambda: busy)
    save_threads(store, "k", times)
    assert times.disturbed == busy
    assert (load_threads(store, "k") is None) == busy


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1.3, True), (4.0, False), (0.2, False)])
@pytest.mark.parametrize("kernels", ["auto", "specx"])
def test_numbers_whose_times_are_contradicted_are_not_used(tmp_path, kernels, factor, holds):
    store, key = Store(tmp_path), f"model-machine-{kernels}"
    times, _ = measure(saturated, (2, 4, 8))
    save_threads(store, key, times)
    setup = f"model-machine-t{times.decode}-b{times.batch}"
    store.save_json("kernels", setup, {"choice": "specx"})
    assert load_threads(store, key) == times
    steps = {str(n): factor * ms for n, ms in ((1, 10.0), (8, 20.0), (32, 80.0))}
    store.save_json("staircase", f"{setup}-specx", {"steps": {"0": steps, "288": steps}})
    assert (load_threads(store, key) is not None) == holds
    decode, _ = choose_threads(Asked(Path("model.gguf")), store, key)
    assert (decode.why == "as measured") == holds


GOOD = {
    "depth": 0,
    "threads": 1,
    "threads_batch": 1,
    "steps": {"1": {"1": 2.0}, "8": {"1": 3.0}, "32": {"1": 4.0}},
}
BAD = [
    {},
    {**GOOD, "threads": 2},
    {**GOOD, "threads_batch": "1"},
    {**GOOD, "steps": {}},
    {**GOOD, "steps": {"1": {"1": 2.0}}},
    {**GOOD, "steps": {**GOOD["steps"], "8": {"1": -3.0}}},
    {**GOOD, "steps": {**GOOD["steps"], "8": {"0": 3.0}}},
    {**GOOD, "steps": {**GOOD["steps"], "8": {"2": 3.0}}},
    {**GOOD, "steps": {**GOOD["steps"], "8": {}}},
    {**GOOD, "steps": {**GOOD["steps"], "x": {"1": 3.0}}},
    {**GOOD, "steps": [1]},
    {**GOOD, "depth": None},
]


@pytest.mark.parametrize("data", BAD, ids=lambda data: json.dumps(data)[:40])
def test_foreign_entries_are_set_aside(tmp_path, data):
    notices = []
    store = Store(tmp_path, notices.append)
    store.save_json("threads", "k", GOOD)
    assert load_threads(store, "k").decode == 1
    store.save_json("threads", "k", data)
    assert load_threads(store, "k") is None
    assert len(notices) == 1 and not (tmp_path / "threads" / "k.json").exists()
