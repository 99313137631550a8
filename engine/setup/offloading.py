"""How many layers go to which GPU: the devices are timed with the model once, and the layers are placed each
time it is loaded, by the memory that is free then. A machine without a GPU is asked nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from specx.backends.base import Model
from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama.devices import Device, devices_fingerprint, list_devices
from specx.backends.llama.kernels import KERNELS, STOCK
from specx.backends.machine.machine import available_memory, bytes_to_read, read_memory
from specx.backends.settings import ALL_LAYERS, Load
from specx.backends.store import Store
from specx.engine.cost.rate import ACCEPTANCE
from specx.engine.settings import Asked
from specx.engine.setup.choice import ASKED, MEASURED, Choice
from specx.engine.setup.devices import DeviceCost, measurable, measure_devices, outdoes
from specx.engine.setup.explain import Explain
from specx.engine.setup.fit import GPU_MARGIN
from specx.engine.setup.here import Here
from specx.engine.setup.kernels import Chosen
from specx.engine.setup.layers import Division, Layers, model_layers
from specx.engine.setup.placement import DraftKind, Placed, fastest_device, place
from specx.kernels._native import read_bandwidth

__all__ = [
    "FREE_DRAFTS",
    "LayersPlaced",
    "MeasuredDevices",
    "load_costs",
    "place_draft",
    "place_layers",
    "usable_devices",
]

KIND = "devices"  # of the entries in the store
FREE_DRAFTS = DraftKind("free drafts", ACCEPTANCE)
"""What devices are compared by, as kernels are: drafts that cost nothing."""
IDLE = Choice(STOCK.name, "no layer is on the CPU")
"""The kernels of a model that uses none: those that allow token trees with branches."""
BANDWIDTH_BYTES, BANDWIDTH_REPEATS = 1 << 28, 3


@dataclass(frozen=True, slots=True)
class MeasuredDevices:
    """What was measured.

    Attributes:
        costs: of the host and the GPUs that have room for a layer.
        kernels: the kernels that the host was timed with.
    """

    costs: list[DeviceCost]
    kernels: Choice[str]

    def covers(self, target: Layers, devices: Sequence[Device]) -> bool:
        """Whether each of `devices` was timed that has room to be: once there was less, and now there may be
        more. The host may do without where another one is faster anyway that has room for the whole model."""
        host, *others = self.costs
        timed = {cost.name for cost in self.costs if not cost.estimated}
        whole = (cost for cost in others if target.most_that_fit(cost.memory_free) == len(target))
        if any(cost.name in timed and outdoes(cost.steps, host.steps) for cost in whole):
            timed.add(host.name)
        return measurable(target, devices) <= timed


@dataclass(frozen=True, slots=True)
class LayersPlaced:
    """Where the layers of a model go.

    Attributes:
        load: how it is loaded, layers included.
        where: the same in words, with the reason.
        kernels: the kernels that this rests on; None if it rests on none.
    """

    load: Load
    where: Choice[str]
    kernels: Choice[str] | None = None


def usable_devices() -> list[Device]:
    """The host with the memory that it has available, and the GPUs."""
    devices = [device for device in list_devices() if device.type == "CPU" or device.is_gpu]
    devices.sort(key=lambda device: device.type != "CPU")
    free = available_memory()
    return [
        replace(device, memory_free=free or device.memory_free)
        if device.type == "CPU"
        else replace(device, memory_free=max(0, (device.memory_free or 0) - GPU_MARGIN))
        for device in devices
    ]


def place_layers(
    info: GGUFInfo,
    asked: Asked,
    load: Load,
    key: str,
    open_on: Callable[[Load, str], Chosen] | None,
    here: Here,
    devices: Sequence[Device] | None = None,
) -> LayersPlaced:
    """Where the layers of a model go: as asked, or where they let expect the most tokens per second.

    Args:
        info: the model.
        asked: what was said.
        load: how it is loaded, but for its layers.
        key: what times depend on, but for the devices.
        open_on: loads the model so, on the kernels of that name; None where nothing may be timed.
        here: where times are kept, and who is told.
        devices: the host and the GPUs; those of this machine by default.

    Raises:
        ModelError: the model cannot be loaded.
    """
    devices = usable_devices() if devices is None else devices
    count, host = asked.n_gpu_layers, f"all on {devices[0].name}"
    if len(devices) < 2:
        return LayersPlaced(replace(load, n_gpu_layers=0), Choice(host, "there is no GPU"))
    target = model_layers(info, load)
    if count is not None:
        which = "all layers" if count == ALL_LAYERS else f"{count} layers"
        where = Choice(f"{which} on GPUs" if count else host, ASKED)
        whole = count == ALL_LAYERS or count >= len(target)
        return LayersPlaced(replace(load, n_gpu_layers=count), where, IDLE if whole else None)
    measured = load_costs(here.store, key, devices)
    if open_on is not None and (measured is None or not measured.covers(target, devices)):
        measured = _measure(target, asked.kernels, load, key, open_on, here, devices)
    if measured is None:
        why = "the GPUs were not timed with this model"
        return LayersPlaced(replace(load, n_gpu_layers=0), Choice(host, why))
    placed = place(target, [FREE_DRAFTS], measured.costs)
    _explain(placed, here.explain)
    best = placed.best or placed.alternatives[0]
    # Where nothing had room, nothing was loaded, and no kernels were chosen for it.
    kernels = measured.kernels if measured.kernels.value in KERNELS else None
    where = Choice(best.described(), MEASURED)
    divided = _divided(load, best.target, devices[0].name)
    return LayersPlaced(divided, where, kernels if best.offloaded(devices[0].name) < len(target) else IDLE)


def place_draft(info: GGUFInfo, load: Load, store: Store, key: str) -> Load:
    """`load` of a draft model with all of it on the device that drafts the fastest.

    Args:
        info: the draft model.
        load: how it is loaded; the target is loaded already.
        store: where times are kept.
        key: that of the target's `place_layers`.
    """
    devices = usable_devices()
    measured = load_costs(store, key, devices) if len(devices) > 1 else None
    if measured is None:
        return replace(load, n_gpu_layers=0)
    layers = model_layers(info, load)
    name = fastest_device(layers, measured.costs).name
    return _divided(load, ((name, len(layers)),), devices[0].name)


def load_costs(store: Store, key: str, devices: Sequence[Device]) -> MeasuredDevices | None:
    """What was measured of `devices` before, with the memory that they have now; None if nothing was."""
    entry = _entry(key, devices)
    free = {device.name: device.memory_free or 0 for device in devices}

    def parse(data: Mapping[str, Any]) -> MeasuredDevices | None:
        if "put_off" in data and "devices" not in data:
            return None
        costs = [DeviceCost.from_json(each, free[each["name"]]) for each in data["devices"]]
        if not costs or costs[0].name != devices[0].name:
            raise ValueError("the host comes first")
        return MeasuredDevices(costs, Choice(str(data["kernels"]), MEASURED))

    return store.load_parsed(KIND, entry, parse)


def _measure(
    target: Layers,
    wanted: str,
    base: Load,
    key: str,
    open_on: Callable[[Load, str], Chosen],
    here: Here,
    devices: Sequence[Device],
) -> MeasuredDevices:
    """Time the devices, keep what was found, and tell it."""
    kernels = Choice(wanted, ASKED)

    def divided(division: Division) -> Model:
        nonlocal kernels  # compared on the host, where they compute, and then the same everywhere
        if all(name != devices[0].name for name, _ in division):
            return open_on(_divided(base, division, devices[0].name), IDLE.value).model
        chosen = open_on(_divided(base, division, devices[0].name), kernels.value)
        if kernels.value != chosen.kernels.value:
            kernels = chosen.kernels
        return chosen.model

    def host_rate() -> float:
        return read_bandwidth(bytes_to_read(read_memory(), BANDWIDTH_BYTES), base.threads, BANDWIDTH_REPEATS)

    start = here.clock()
    costs, disturbed = measure_devices(target, devices, divided, host_rate=host_rate, clock=here.clock)
    read = sum(target.read)
    least = {True: "at least ", False: ""}
    times = ", ".join(
        f"{least[cost.estimated]}{cost.reading_ms(1, read):.1f} ms on {cost.name}" for cost in costs
    )
    took = f"timed this model's layers in {here.clock() - start:.1f} s: one token takes {times}"
    if disturbed:
        why = f"{took}; the machine was busy: this will be measured again next time"
        here.put_off(KIND, _entry(key, devices), why)
    else:
        here.notice(took)
        kept = {"devices": [cost.to_json() for cost in costs], "kernels": kernels.value}
        here.store.save_json(KIND, _entry(key, devices), kept)
    return MeasuredDevices(costs, kernels)


def _divided(load: Load, division: Division, host: str) -> Load:
    """`load` with the layers divided so."""
    layers = tuple((name, count) for name, count in division if name != host)
    return replace(load, offload=layers, n_gpu_layers=sum(count for _, count in layers))


def _explain(placed: Placed, explain: Explain) -> None:
    for option in placed.alternatives:
        reason = placed.reason(option) or f"taken: {option.rate:.1f} tokens/s expected"
        explain(f"placement: {option.described()}: {reason}")


def _entry(key: str, devices: Sequence[Device]) -> str:
    return f"{key}-{devices_fingerprint(devices)}"
