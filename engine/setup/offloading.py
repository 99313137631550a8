"""How many layers go to which GPU: the devices are timed with the model once, and the layers are placed each
time it is loaded, by the memory that is free then. A machine without a GPU is asked nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from specx.backends.base import Model
from specx.backends.gguf.file import GGUFInfo, read_gguf
from specx.backends.llama.devices import Device, list_devices
from specx.backends.llama.params import decode_threads
from specx.backends.machine.machine import available_memory, bytes_to_read, read_memory
from specx.backends.settings import LoadSettings
from specx.backends.store import Store
from specx.engine.setup.devices import DeviceCost, measure_devices
from specx.engine.setup.explain import Explain, silent
from specx.engine.setup.fit import GPU_MARGIN
from specx.engine.setup.kernels import Chosen
from specx.engine.setup.layers import Division, Layers, model_layers
from specx.engine.setup.placement import ACCEPTANCE, DraftSource, Placed, fastest_device, place
from specx.kernels._native import read_bandwidth

__all__ = [
    "FREE_DRAFTS",
    "MeasuredDevices",
    "load_costs",
    "usable_devices",
    "with_measured_placement",
    "with_placed_draft",
]

KIND = "devices"  # of the entries in the store
FREE_DRAFTS = DraftSource("free drafts", ACCEPTANCE)
"""What devices are compared by, as kernels are: drafts that cost nothing."""
BANDWIDTH_BYTES, BANDWIDTH_REPEATS = 1 << 28, 3


@dataclass(frozen=True, slots=True)
class MeasuredDevices:
    """What was measured.

    Attributes:
        costs: of the host and the GPUs that have room for a layer.
        kernels: name of the kernels that the host was timed with.
    """

    costs: list[DeviceCost]
    kernels: str


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


def with_measured_placement(
    info: GGUFInfo,
    settings: LoadSettings,
    store: Store,
    key: str,
    load: Callable[[LoadSettings], Chosen],
    *,
    notice: Callable[[str], None],
    explain: Explain = silent,
    devices: Sequence[Device] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> LoadSettings:
    """`settings` with the layers that go to each GPU, unless they say how many, or there is no GPU.

    Args:
        info: the model.
        settings: how it is to be loaded.
        store: where times are kept.
        key: what times depend on, but for the devices.
        load: loads the model with given settings, on the kernels that suit it.
        notice: told what a person should know.
        explain: told the reasons.
        devices: the host and the GPUs; those of this machine by default.
        clock: seconds.

    Raises:
        ModelError: the model cannot be loaded.
    """
    if settings.n_gpu_layers is not None:
        return settings
    devices = usable_devices() if devices is None else devices
    if len(devices) < 2:
        return replace(settings, n_gpu_layers=0)
    target = model_layers(info, settings)
    measured = load_costs(store, key, devices)
    if measured is None and not settings.measure:
        return replace(settings, n_gpu_layers=0)
    if measured is None:
        measured = _measure(target, settings, store, key, load, notice, devices, clock)
    placed = place(target, [FREE_DRAFTS], measured.costs)
    _explain(placed, explain)
    best = placed.best or placed.alternatives[0]
    return replace(_divided(settings, best.target, devices[0].name), kernels=measured.kernels)


def with_placed_draft(settings: LoadSettings, store: Store, key: str) -> LoadSettings:
    """`settings` of a draft model with all of it on the device that drafts the fastest, unless they say.

    Args:
        settings: how the draft model is loaded; the target is loaded already.
        store: where times are kept.
        key: that of the target's `with_measured_placement`.
    """
    if settings.n_gpu_layers is not None:
        return settings
    devices = usable_devices()
    measured = load_costs(store, key, devices) if len(devices) > 1 else None
    if measured is None:
        return replace(settings, n_gpu_layers=0)
    layers = model_layers(read_gguf(settings.model), settings)
    name = fastest_device(layers, measured.costs).name
    return _divided(settings, ((name, len(layers)),), devices[0].name)


def load_costs(store: Store, key: str, devices: Sequence[Device]) -> MeasuredDevices | None:
    """What was measured of `devices` before, with the memory that they have now; None if nothing was."""
    entry = _entry(key, devices)
    data = store.load_json(KIND, entry)
    if data is None:
        return None
    free = {device.name: device.memory_free or 0 for device in devices}
    try:
        costs = [DeviceCost.from_json(each, free[each["name"]]) for each in data["devices"]]
        if not costs or costs[0].name != devices[0].name:
            raise ValueError("the host comes first")
        return MeasuredDevices(costs, str(data["kernels"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        store.set_aside(KIND, entry)
        return None


def _measure(
    target: Layers,
    settings: LoadSettings,
    store: Store,
    key: str,
    load: Callable[[LoadSettings], Chosen],
    notice: Callable[[str], None],
    devices: Sequence[Device],
    clock: Callable[[], float],
) -> MeasuredDevices:
    """Time the devices, keep what was found, and tell it."""
    kernels = settings.kernels

    def divided(division: Division) -> Model:
        nonlocal kernels  # compared on the host, where they compute, and then the same everywhere
        chosen = load(replace(_divided(settings, division, devices[0].name), kernels=kernels))
        kernels = chosen.kernels.name
        return chosen.model

    def host_rate() -> float:
        return read_bandwidth(
            bytes_to_read(read_memory(), BANDWIDTH_BYTES), decode_threads(settings), BANDWIDTH_REPEATS
        )

    start = clock()
    costs, disturbed = measure_devices(target, devices, divided, host_rate=host_rate, clock=clock)
    read = sum(target.read)
    times = ", ".join(f"{cost.reading_ms(1, read):.1f} ms on {cost.name}" for cost in costs)
    took = f"timed this model's layers in {clock() - start:.1f} s: one token takes {times}"
    if disturbed:
        notice(f"{took}; the machine was busy: this will be measured again next time")
    else:
        notice(took)
        kept = {"devices": [cost.to_json() for cost in costs], "kernels": kernels}
        store.save_json(KIND, _entry(key, devices), kept)
    return MeasuredDevices(costs, kernels)


def _divided(settings: LoadSettings, division: Division, host: str) -> LoadSettings:
    """`settings` with the layers divided so."""
    layers = tuple((name, count) for name, count in division if name != host)
    return replace(settings, offload=layers, n_gpu_layers=sum(count for _, count in layers))


def _explain(placed: Placed, explain: Explain) -> None:
    for option in placed.alternatives:
        reason = placed.reason(option) or f"taken: {option.rate:.1f} tokens/s expected"
        explain(f"placement: {option.described()}: {reason}")


def _entry(key: str, devices: Sequence[Device]) -> str:
    return "-".join((key, *(device.name for device in devices)))
