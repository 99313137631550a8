"""Timing devices with a model, and where its layers go: on simulated devices that keep to the cost model."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from specx.backends.llama.devices import Device, Transfer
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.settings import Load
from specx.backends.store import Store
from specx.engine.cost.timing import unwatched
from specx.engine.settings import Asked
from specx.engine.setup import offloading
from specx.engine.setup.choice import Choice
from specx.engine.setup.devices import DeviceCost, measure_devices, unmixed
from specx.engine.setup.here import Here
from specx.engine.setup.kernels import Chosen
from specx.engine.setup.layers import Layers
from specx.engine.setup.placement import DraftKind, fastest_device, place

GIB = 1 << 30
ROW_BYTES = 4096
LAYERS = Layers((GIB // 10,) * 11, (GIB // 10,) * 11, (0,) * 11, row_bytes=ROW_BYTES)
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
HOST = {n: 40.0 + 4 * n for n in WIDTHS}  # milliseconds with everything there
FAST = {n: 5.0 + 0.1 * n for n in WIDTHS}
LATENCY_MS, BYTES_PER_S = 0.5, 1e8


def device(name, kind, free, *, unified=False):
    return Device(name, f"a {name}", kind, free, free, unified)


CPU = device("CPU", "CPU", 8 * GIB)


class Machine:
    """Loads models whose steps take what the cost model says of their division."""

    def __init__(self, speeds):
        self.speeds = speeds
        self.clock = SimulatedClock()
        self.loaded = []
        self.watch = unwatched
        self.host_rate = 1e13  # bytes per second

    def load(self, division):
        self.loaded.append(division)
        return ScriptedModel(8, n_ctx=512, step_costs=self.steps(division), clock=self.clock)

    def steps(self, division):
        """Milliseconds by width."""
        total, steps = sum(count for _, count in division), {}
        for n in WIDTHS:
            steps[n] = sum(self.speeds[name][n] * count / total for name, count in division)
            steps[n] += sum(self.handing(n) for name, _ in division if name != "CPU")
        return steps

    @staticmethod
    def handing(n):
        return LATENCY_MS + n * ROW_BYTES / BYTES_PER_S * 1e3

    @staticmethod
    def transfer(_name, nbytes):
        return Transfer(nbytes / (LATENCY_MS / 1e3 + nbytes / BYTES_PER_S))

    def measure(self, devices, layers=LAYERS, watch=unwatched):
        return measure_devices(
            layers,
            devices,
            self.load,
            host_rate=lambda: self.host_rate,
            transfer=self.transfer,
            clock=self.clock,
            watch=watch,
        )


def test_a_device_that_holds_everything():
    machine = Machine({"CPU": HOST, "GPU": FAST})
    (host, gpu), disturbed = machine.measure([CPU, device("GPU", "GPU", 4 * GIB)])
    assert not disturbed
    assert machine.loaded == [(("GPU", 11),), (("CPU", 11),)] and not host.estimated
    assert {n: host.steps[n] for n in (1, 8)} == pytest.approx({n: HOST[n] for n in (1, 8)})
    assert {n: gpu.steps[n] for n in (1, 8)} == pytest.approx({n: FAST[n] for n in (1, 8)}, rel=0.02)
    assert gpu.handing_ms(4, ROW_BYTES) == pytest.approx(machine.handing(4), rel=0.1)


@pytest.mark.parametrize("gib", [0.3, 0.55, 0.85])
def test_a_mixture_tells_what_the_device_alone_would_take(gib):
    machine = Machine({"CPU": HOST, "GPU": FAST})
    (_, gpu), _ = machine.measure([CPU, device("GPU", "GPU", int(gib * GIB))])
    assert len(machine.loaded[1]) == 2
    for n in (1, 2, 4, 8):
        assert gpu.steps[n] == pytest.approx(FAST[n], rel=0.05)


def test_predictions_for_other_divisions_come_true():
    """Measured with everything and with half of it: every division in between follows."""
    machine = Machine({"CPU": HOST, "GPU": FAST})
    costs, _ = machine.measure([CPU, device("GPU", "GPU", GIB // 2 + 10)])
    for layers in range(12):
        gpu = replace(costs[1], memory_free=layers * (GIB // 10))
        best = place(LAYERS, [DraftKind("none", 0.0)], [costs[0], gpu]).best
        division = (("CPU", 11 - layers), ("GPU", layers))
        real = machine.steps(tuple((name, count) for name, count in division if count))[1]
        assert best.offloaded("CPU") == layers  # a fast one takes what fits
        assert 1e3 / best.rate == pytest.approx(real, rel=0.02)


def test_devices_without_room_are_left_out():
    machine = Machine({"CPU": HOST, "GPU": FAST})
    costs, _ = machine.measure([CPU, device("GPU", "GPU", 1000), device("GPU", "GPU", None)])
    assert [cost.name for cost in costs] == ["CPU"]


@pytest.mark.parametrize(("factor", "timed"), [(1.0, True), (0.5, False)])
def test_a_host_that_could_not_be_as_fast_as_a_device_that_holds_everything_is_not_timed(factor, timed):
    """One that reads the weights within three GPU steps of two tokens might be."""
    machine = Machine({"CPU": HOST, "GPU": FAST})
    machine.host_rate = factor * sum(LAYERS.read) / 8e-3
    (host, gpu), disturbed = machine.measure([CPU, device("GPU", "GPU", 4 * GIB)])
    assert not disturbed and gpu.steps[1] == pytest.approx(FAST[1], rel=0.02)
    assert ((("CPU", 11),) in machine.loaded, host.estimated) == (timed, not timed)
    assert host.steps[16] == pytest.approx(HOST[16] if timed else 16.0)
    machine.watch = lambda: lambda: True
    assert machine.measure([CPU, device("GPU", "GPU", 4 * GIB)], watch=machine.watch)[1]


def test_a_host_that_cannot_hold_the_model_is_judged_by_its_memory():
    machine = Machine({"CPU": HOST, "GPU": FAST})
    machine.host_rate = 1e10
    costs, _ = machine.measure([device("CPU", "CPU", GIB // 2), device("GPU", "GPU", GIB)])
    assert all(sum(count for name, count in division if name == "CPU") < 11 for division in machine.loaded)
    assert costs[0].steps[1] == costs[0].steps[16] == pytest.approx(sum(LAYERS.read) / 1e10 * 1e3)
    assert [cost.estimated for cost in costs] == [True, False]


def test_noise_never_makes_a_device_free():
    gpu = DeviceCost("GPU", GIB, {}, 100)
    assert unmixed({1: 10.0}, {1: 30.0}, 0.5, gpu, ROW_BYTES)[1] == pytest.approx(0.01 * 10 / 0.5)


def test_json_and_damage():
    cost = DeviceCost("GPU", GIB, {1: 2.0, 4: 3.0}, 100, 0.5, 1e9, unified=True)
    assert DeviceCost.from_json(cost.to_json(), GIB) == cost
    endless = replace(cost, transfer=math.inf)
    assert DeviceCost.from_json(endless.to_json(), 7) == replace(endless, memory_free=7)
    for damage in ({"steps": {}}, {"steps": {"1": -1}}, {"measured_bytes": 0}, {"handing_over_ms": math.nan}):
        with pytest.raises(ValueError, match="positive"):
            DeviceCost.from_json({**cost.to_json(), **damage}, GIB)


def test_a_draft_model_goes_where_it_drafts_the_fastest():
    small = Layers((100,) * 3, (100,) * 3, (10,) * 3)
    cpu, gpu = DeviceCost("CPU", 1000, {1: 10.0}, 300), DeviceCost("GPU", 1000, {1: 1.0}, 300)
    assert fastest_device(small, [cpu, gpu]).name == "GPU"
    assert fastest_device(small, [cpu, replace(gpu, memory_free=329)]).name == "CPU"
    assert fastest_device(small, [cpu, replace(gpu, handing_over_ms=20.0)]).name == "CPU"


# --- in a session -------------------------------------------------------------------------------------------


@pytest.fixture
def decide(tmp_path, monkeypatch):
    """`place_layers` of a model of eleven layers, on simulated devices."""
    monkeypatch.setattr(offloading, "model_layers", lambda _info, _settings: LAYERS)
    machine = Machine({"CPU": HOST, "GPU": FAST})
    monkeypatch.setattr(
        offloading,
        "measure_devices",
        lambda target, devices, load, **rest: measure_devices(
            target,
            devices,
            load,
            **{**rest, "host_rate": lambda: machine.host_rate},
            transfer=machine.transfer,
            watch=machine.watch,
        ),
    )

    def open_on(load, _kernels):
        rest = 11 - load.n_gpu_layers
        division = (("CPU", rest), *load.offload)
        return Chosen(machine.load(tuple((name, n) for name, n in division if n)), Choice("stock", "fast"))

    def decide(devices, *, store=True, timing=True, **asked):
        told, explained = [], []
        here = Here(Store(tmp_path if store else None), told.append, explained.append, clock=machine.clock)
        placed = offloading.place_layers(
            SimpleNamespace(),
            Asked(Path("model.gguf"), **asked),
            Load(Path("model.gguf"), 1, 1),
            "key",
            open_on if timing else None,
            here,
            devices,
        )
        where = (placed.where.value, placed.where.why)
        return SimpleNamespace(
            load=placed.load, where=where, kernels=placed.kernels, told=told, explained=explained
        )

    decide.machine = machine
    return decide


GPU = device("GPU", "GPU", 4 * GIB)


def test_without_a_gpu_nothing_is_loaded(decide):
    found = decide([CPU])
    assert found.load.n_gpu_layers == 0 and found.where == ("all on CPU", "there is no GPU")
    assert decide.machine.loaded == [] and found.told == []
    for layers in (-1, 3):  # what is kept of it is found by the same keys
        assert decide([CPU], n_gpu_layers=layers).load == found.load


def test_what_a_person_says_counts(decide):
    found = decide([CPU, GPU], n_gpu_layers=3)
    assert found.load.n_gpu_layers == 3 and found.where == ("3 layers on GPUs", "as asked")
    found = decide([CPU, GPU], n_gpu_layers=-1)
    assert found.load.offload is None and found.where == ("all layers on GPUs", "as asked")
    assert decide.machine.loaded == []


def test_it_is_measured_once_and_decided_each_time(decide):
    first = decide([CPU, GPU])
    assert first.load.offload == (("GPU", 11),) and first.load.n_gpu_layers == 11
    assert first.where == ("all on GPU", "as measured")
    assert first.kernels == offloading.IDLE
    assert len(first.told) == 1 and first.told[0].startswith("timed this model's layers in ")
    assert first.told[0].endswith(": one token takes 44.0 ms on CPU, 5.1 ms on GPU")
    assert "placement: all on CPU: 0.1" in " ".join(first.explained)
    loads = len(decide.machine.loaded)
    again = decide([CPU, replace(GPU, memory_free=GIB // 2)])  # somebody else uses the GPU now
    assert again.load.offload == (("GPU", 5),)
    assert str(again.kernels) == "stock, as measured"  # those that the host was timed with
    assert again.told == [] and len(decide.machine.loaded) == loads
    assert decide([CPU, GPU], store=False).told


def test_a_host_that_was_not_timed_is_when_its_time_counts(decide):
    decide.machine.host_rate = 1e10
    first = decide([CPU, GPU])
    assert first.load.offload == (("GPU", 11),) and first.kernels == offloading.IDLE
    assert first.told[0].endswith(": one token takes at least 118.1 ms on CPU, 5.1 ms on GPU")
    assert decide([CPU, GPU]).told == [] and len(decide.machine.loaded) == 1
    again = decide([CPU, replace(GPU, memory_free=GIB // 2)])  # somebody else uses the GPU now
    assert again.load.offload == (("GPU", 5),) and str(again.kernels) == "stock, fast"
    assert re.search(r": one token takes 44\.0 ms on CPU, 5\.\d ms on GPU$", again.told[0])
    assert decide([CPU, GPU]).told == []


@pytest.mark.parametrize(("lacking", "gib", "layers"), [("CPU", 0.55, 5), ("GPU", 4.0, 11)])
def test_a_device_that_had_no_room_is_timed_once_it_has(decide, lacking, gib, layers):
    both = CPU, replace(GPU, memory_free=int(gib * GIB))
    full = [replace(each, memory_free=1 << 20) if each.name == lacking else each for each in both]
    decide.machine.host_rate = 1e10
    assert decide(full).told and not decide(full).told
    known = decide(both, timing=False)  # what is known has to do
    assert bool(known.load.offload) == (lacking == "CPU")
    decide.machine.host_rate = 1e13
    decide.machine.watch = lambda: lambda: True
    assert "busy" in decide(both).told[0]
    assert decide(both, timing=False).load == known.load
    decide.machine.watch = unwatched
    freed = decide(both)
    assert len(freed.told) == 1 and freed.load.offload == (("GPU", layers),)
    assert re.search(r": one token takes 44\.0 ms on CPU, 5\.\d ms on GPU$", freed.told[0])
    assert not decide(both).told and not decide(full).told  # what was timed stays known


def test_nothing_is_timed_where_that_is_not_allowed(decide):
    found = decide([CPU, GPU], timing=False)
    assert found.where == ("all on CPU", "the GPUs were not timed with this model")
    assert found.load.n_gpu_layers == 0 and decide.machine.loaded == []


def test_no_kernels_follow_from_times_of_nothing(decide):
    """Neither the host nor the GPU has room, so nothing was loaded to be timed."""
    tiny = [device("CPU", "CPU", 1 << 20), device("GPU", "GPU", 1 << 20)]
    for _ in range(2):  # measured, and as kept
        assert decide(tiny).kernels is None
    assert decide.machine.loaded == []


def test_a_slow_gpu_is_left_alone(decide):
    decide.machine.speeds["GPU"] = dict.fromkeys(WIDTHS, 100.0)
    found = decide([CPU, GPU])
    assert found.load.offload == () and found.load.n_gpu_layers == 0


def test_a_damaged_entry_is_measured_again(decide, tmp_path):
    decide([CPU, GPU])
    (path,) = (tmp_path / "devices").glob("*.json")
    path.write_text('{"version": 1, "devices": [{"name": "GPU"}]}')
    assert decide([CPU, GPU]).load.offload == (("GPU", 11),)


def test_a_draft_model_is_placed_by_the_same_costs(decide, tmp_path, monkeypatch):
    decide([CPU, GPU])
    monkeypatch.setattr(offloading, "usable_devices", lambda: [CPU, GPU])
    info, wanted = SimpleNamespace(), Load(Path("draft.gguf"), 1, 1)
    place_draft = offloading.place_draft
    assert place_draft(info, wanted, Store(tmp_path), "key").offload == (("GPU", 11),)
    assert place_draft(info, wanted, Store(tmp_path), "other key").n_gpu_layers == 0


def test_what_was_timed_beside_other_work_is_not_kept(decide, tmp_path):
    decide.machine.watch = lambda: lambda: True
    told = decide([CPU, GPU]).told
    assert len(told) == 1 and "the machine was busy" in told[0]
    assert decide([CPU, GPU]).told == []  # it is said once
    (kept,) = (tmp_path / "devices").glob("*.json")
    assert "put_off" in kept.read_text() and '"devices"' not in kept.read_text()
    decide.machine.watch = unwatched
    assert "busy" not in decide([CPU, GPU]).told[0]
    assert decide([CPU, GPU]).told == []


@pytest.mark.parametrize(("name", "disturbs"), [("RPC0", False), ("GPU", True)])
def test_the_work_of_a_remote_device_is_not_that_of_others(name, disturbs):
    machine = Machine({"CPU": HOST, name: FAST})

    def watch():
        return lambda: machine.loaded[-1] == ((name, 11),)  # while the remote one computes

    _, disturbed = machine.measure([CPU, device(name, "GPU", 4 * GIB)], watch=watch)
    assert (disturbed, len(machine.loaded)) == (disturbs, 2)
