"""Placements on simulated devices: against an exhaustive search, and where the answer is known."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.engine.setup.devices import DeviceCost
from specx.engine.setup.layers import Layers
from specx.engine.setup.placement import DraftKind, place

GIB = 1 << 30
WIDTHS = (1, 2, 4, 8)
FREE = DraftKind("free", 0.7)


def device(name, speed, memory, *, slope=0.05, transfer=math.inf, handing=0.0, unified=False, read=1000):
    """One that reads `speed` bytes a millisecond with one row, and a `slope` slower with each further one."""
    steps = {n: read / speed * (1 + slope * (n - 1)) for n in WIDTHS}
    return DeviceCost(name, memory, steps, read, handing, transfer, unified)


def model(layers=10, size=GIB // 10, cache=0, head=None, **rest):
    weights = (*[size] * layers, size if head is None else head)
    return Layers(weights, weights, (*[cache] * layers, 0), **{"row_bytes": 4096, **rest})


# --- known answers ------------------------------------------------------------------------------------------


def test_without_a_gpu_everything_is_on_the_cpu():
    placed = place(model(), [FREE], [device("CPU", 1000, 4 * GIB)])
    assert placed.best.target == (("CPU", 11),) and placed.best.offloaded("CPU") == 0
    assert placed.alternatives == (placed.best,)


def test_a_fast_gpu_with_room_takes_everything():
    placed = place(model(), [FREE], [device("CPU", 1000, 8 * GIB), device("GPU", 10_000, 8 * GIB)])
    assert placed.best.target == (("GPU", 11),)
    on_cpu = next(p for p in placed.alternatives if p.target == (("CPU", 11),))
    assert placed.reason(on_cpu) == "0.10x" and placed.reason(placed.best) == ""


def test_a_small_gpu_takes_as_many_layers_as_fit():
    gpu = device("GPU", 10_000, GIB // 2 + 10)
    placed = place(model(), [FREE], [device("CPU", 1000, 8 * GIB), gpu])
    assert placed.best.target == (("CPU", 6), ("GPU", 5))
    everything = next(p for p in placed.alternatives if p.target == (("GPU", 11),))
    assert everything.excess == 11 * (GIB // 10) - gpu.memory_free
    assert placed.reason(everything) == f"does not fit by {everything.excess / 2**20:.0f} MiB"


def test_buffers_and_cache_take_room_too():
    gpu = device("GPU", 10_000, GIB // 2 + 10)
    roomy, tight = model(), model(cache=GIB // 40, buffers=GIB // 10)
    cpu = device("CPU", 1000, 8 * GIB)
    assert place(roomy, [FREE], [cpu, gpu]).best.offloaded("CPU") == 5
    assert place(tight, [FREE], [cpu, gpu]).best.offloaded("CPU") == 3


def test_a_gpu_that_holds_only_the_draft_model_gets_it():
    """Where the target's layers are too large for it."""
    draft = DraftKind("draft", 0.9, model(layers=4, size=GIB // 100))
    devices = [device("CPU", 1000, 16 * GIB), device("GPU", 10_000, GIB // 4)]
    placed = place(model(size=GIB), [FREE, draft], devices)
    assert placed.best.target == (("CPU", 11),)
    assert (placed.best.draft, placed.best.draft_device) == ("draft", "GPU")
    assert placed.best.drafted > 0


def test_the_draft_model_stays_on_the_cpu_where_the_gpu_is_full():
    target = model(size=GIB)
    draft = DraftKind("draft", 0.95, model(layers=4, size=GIB // 200))
    devices = [device("CPU", 1000, 16 * GIB), device("GPU", 2000, 11 * GIB + 10)]
    placed = place(target, [FREE, draft], devices)
    assert placed.best.target == (("GPU", 11),)
    assert (placed.best.draft, placed.best.draft_device) == ("draft", "CPU")


def test_a_draft_model_that_is_too_slow_is_left_out():
    draft = DraftKind("draft", 0.6, model(size=GIB // 12))
    placed = place(model(), [DraftKind("none", 0.0), draft], [device("CPU", 1000, 8 * GIB)])
    assert placed.best.draft == "none" and placed.best.drafted == 0


def test_slow_handing_over_makes_a_gpu_not_worth_it():
    target = model(size=10_000)
    cpu, gpu = device("CPU", 1000, GIB), device("GPU", 1500, GIB)
    assert place(target, [FREE], [cpu, gpu]).best.target == (("GPU", 11),)
    slow = device("GPU", 1500, GIB, handing=50.0)
    assert place(target, [FREE], [cpu, slow]).best.target == (("CPU", 11),)
    narrow = device("GPU", 1500, GIB, transfer=1000 * 4096 / 50)
    assert place(target, [FREE], [cpu, narrow]).best.target == (("CPU", 11),)


def test_memory_that_is_shared_is_counted_once():
    """What a GPU in main memory takes is missing there."""
    cpu, gpu = device("CPU", 1000, 2 * GIB), device("iGPU", 3000, 2 * GIB, unified=True)
    assert place(model(), [FREE], [cpu, gpu]).best.target == (("iGPU", 11),)
    draft = DraftKind("draft", 0.9, model(layers=9, size=GIB // 10))
    placed = place(model(), [draft], [cpu, gpu])
    assert placed.best is None
    assert all(option.excess > 0 for option in placed.alternatives)
    discrete = device("GPU", 3000, 2 * GIB)
    assert place(model(), [draft], [cpu, discrete]).best is not None


def test_an_integrated_gpu_is_left_alone_beside_another():
    devices = [
        device("CPU", 1000, 8 * GIB),
        device("iGPU", 99_000, 8 * GIB, unified=True),
        device("GPU", 3000, 8 * GIB),
    ]
    placed = place(model(), [FREE, DraftKind("draft", 0.9, model(layers=1))], devices)
    names = {name for option in placed.alternatives for name, _ in option.target}
    assert names | {option.draft_device for option in placed.alternatives} == {"CPU", "GPU", ""}


def test_two_gpus_share_what_neither_holds():
    devices = [
        device("CPU", 1000, 8 * GIB),
        device("slow", 5000, GIB // 2 + 10),
        device("fast", 20_000, GIB // 2 + 10),
    ]
    best = place(model(), [FREE], devices).best
    assert dict(best.target) == {"CPU": 1, "slow": 5, "fast": 5}


def test_what_stays_on_the_host_is_counted_there():
    target = model(layers=2, host=GIB)
    placed = place(target, [FREE], [device("CPU", 1000, 8 * GIB), device("GPU", 10_000, 8 * GIB)])
    assert placed.best.memory == {"CPU": GIB, "GPU": 3 * (GIB // 10)}
    assert place(target, [FREE], [device("CPU", 1000, GIB - 1), device("GPU", 1000, 8 * GIB)]).best is None


def test_nothing_fits():
    placed = place(model(), [FREE], [device("CPU", 1000, GIB // 2), device("GPU", 1000, GIB // 4)])
    assert placed.best is None
    assert all(placed.reason(option).startswith("does not fit by ") for option in placed.alternatives)


@pytest.mark.parametrize(("drafts", "devices"), [([], [device("CPU", 1, 1)]), ([FREE], [])])
def test_nothing_to_choose_from(drafts, devices):
    with pytest.raises(ValueError, match="needs a device"):
        place(model(), drafts, devices)


def test_devices_without_a_common_time_of_single_tokens():
    odd = DeviceCost("GPU", GIB, {2: 1.0}, 1000)
    with pytest.raises(ValueError, match="single tokens"):
        place(model(), [FREE], [device("CPU", 1000, GIB), odd])


def test_only_widths_that_every_device_was_timed_at_count():
    cpu = DeviceCost("CPU", 8 * GIB, {1: 1.0, 2: 1.0, 3: 0.001}, 1000)
    gpu = DeviceCost("GPU", 0, {1: 1.0, 2: 1.0}, 1000)
    best = place(model(size=1000), [DraftKind("sure", 1.0)], [cpu, gpu]).best
    assert best.drafted == 1


def test_the_search_takes_few_steps_for_a_large_model_on_two_gpus():
    """80 layers, 14 widths: a loose bound on calls, to notice an explosion and not a busy machine."""
    widths = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64)
    steps = {n: 10.0 + n for n in widths}
    devices = [DeviceCost(name, 20 * GIB, steps, 40 * GIB) for name in ("CPU", "GPU0", "GPU1")]
    calls = itertools.count()
    sys.setprofile(lambda *_event: next(calls))
    try:
        placed = place(model(layers=80, size=GIB // 2), [FREE], devices)
    finally:
        sys.setprofile(None)
    assert placed.best is not None
    assert next(calls) < 50_000  # 11,000


# --- against an exhaustive search ---------------------------------------------------------------------------


def divisions(total, names):
    """Every way to divide `total` layers among devices in any order, the first device of `names` first."""
    host, *others = names
    for size in range(len(others) + 1):
        for order in itertools.permutations(others, size):
            for cuts in itertools.combinations(range(total + 1), size):
                bounds = (*cuts, total)
                counts = [cuts[0] if cuts else total, *(b - a for a, b in itertools.pairwise(bounds))]
                division = [(host, counts[0]), *zip(order, counts[1:], strict=True)]
                yield tuple((name, count) for name, count in division if count)


def rate(division, target, draft, where, devices):
    """The objective, written down once more."""
    by_name = {d.name: d for d in devices}
    best = 0.0
    for n in WIDTHS:
        ms, first = 0.0, 0
        for name, count in division:
            d = by_name[name]
            ms += d.steps[n] * sum(target.read[first : first + count]) / d.measured_bytes
            if d is not devices[0]:
                ms += d.handing_over_ms + n * target.row_bytes / d.transfer * 1e3
            first += count
        if draft.layers is not None:
            each = where.steps[1] * sum(draft.layers.read) / where.measured_bytes
            if where is not devices[0]:
                each += where.handing_over_ms + draft.layers.row_bytes / where.transfer * 1e3
            ms += (n - 1) * each
        best = max(best, sum(draft.acceptance**i for i in range(n)) / ms)
    return best * 1e3


def fits(division, target, draft, where, devices):
    host = devices[0]
    memory = dict.fromkeys((d.name for d in devices), 0)
    memory[host.name] = target.host
    first = 0
    for name, count in division:
        held = (*target.weights[first : first + count], *target.cache[first : first + count])
        memory[name] += sum(held) + target.buffers
        first += count
    if draft.layers is not None:
        layers = draft.layers
        memory[host.name] += layers.host
        memory[where.name] += sum(layers.weights) + sum(layers.cache) + layers.buffers
    pool = sum(memory[d.name] for d in devices if d.unified or d is host)
    return pool <= host.memory_free and all(memory[d.name] <= d.memory_free for d in devices[1:])


def exhaustive(target, drafts, devices):
    rates = [
        rate(division, target, draft, where, devices)
        for division in divisions(len(target), [d.name for d in devices])
        for draft in drafts
        for where in (devices if draft.layers else devices[:1])
        if fits(division, target, draft, where, devices)
    ]
    return max(rates, default=None)


SIZES = st.integers(1, 40)


@st.composite
def models(draw, most=4):
    count = draw(st.integers(1, most))
    weights = tuple(draw(st.lists(SIZES, min_size=count + 1, max_size=count + 1)))
    read = tuple(max(1, w // draw(st.integers(1, 2))) for w in weights)
    cache = (*draw(st.lists(st.integers(0, 10), min_size=count, max_size=count)), 0)
    buffers, host, row_bytes = (draw(st.integers(low, 10)) for low in (0, 0, 1))
    return Layers(weights, read, cache, buffers, host, row_bytes)


@st.composite
def machines(draw):
    unified = draw(st.booleans())
    devices = []
    for name in ("CPU", "GPU0", "GPU1")[: draw(st.integers(1, 3))]:
        costs = draw(st.lists(st.floats(0.1, 20), min_size=len(WIDTHS), max_size=len(WIDTHS)))
        handing, transfer = draw(st.floats(0, 5)), draw(st.sampled_from([math.inf, 1e4, 1e3]))
        memory, steps = draw(st.integers(0, 300)), dict(zip(WIDTHS, costs, strict=True))
        shared = unified and name != "CPU"
        devices.append(DeviceCost(name, memory, steps, 100, handing, transfer, shared))
    return devices


@st.composite
def draft_sources(draw):
    sources = [DraftKind("free", draw(st.floats(0, 1)))]
    if draw(st.booleans()):
        sources.append(DraftKind("model", draw(st.floats(0, 1)), draw(models(most=2))))
    return sources


@settings(max_examples=300)
@given(models(), draft_sources(), machines())
def test_it_is_the_best_of_all_placements(target, drafts, devices):
    best, wanted = place(target, drafts, devices).best, exhaustive(target, drafts, devices)
    if wanted is None:
        assert best is None
        return
    assert best.rate == pytest.approx(wanted, rel=1e-5)
    draft = next(d for d in drafts if d.name == best.draft)
    where = next((d for d in devices if d.name == best.draft_device), devices[0])
    assert fits(best.target, target, draft, where, devices)
    assert sum(count for _, count in best.target) == len(target)


@settings(max_examples=200)
@given(models(), draft_sources(), machines(), st.integers(0, 2), st.integers(0, 100))
def test_more_memory_never_lowers_the_rate(target, drafts, devices, which, more):
    before = place(target, drafts, devices).best
    i = which % len(devices)
    larger = [*devices]
    larger[i] = replace(devices[i], memory_free=devices[i].memory_free + more)
    after = place(target, drafts, larger).best
    assert before is None or after.rate >= before.rate * (1 - 1e-9)


@settings(max_examples=50)
@given(models(), draft_sources(), machines())
def test_the_answer_is_always_the_same(target, drafts, devices):
    assert place(target, drafts, devices) == place(target, drafts, devices)
