"""The devices of llama.cpp, and copying memory to one."""

from __future__ import annotations

from specx.backends.llama import kernels as ggml_device
from specx.backends.llama.devices import Device, list_devices, measure_transfer


def test_the_processor_is_a_device_and_specxs_kernels_are_none():
    reason = ggml_device.unavailable()
    devices = list_devices()
    names = [device.name for device in devices]
    assert "CPU" in names and not [name for name in names if "specx" in name.lower()], reason
    cpu = devices[names.index("CPU")]
    assert cpu.type == "CPU" and cpu.unified and not cpu.is_gpu and cpu.description
    assert cpu.memory_total is None or 0 < cpu.memory_free <= cpu.memory_total
    assert cpu.to_json()["name"] == "CPU"


def test_layers_go_to_gpus_only():
    kinds = {
        kind: Device("x", "y", kind, None, None, False).is_gpu for kind in ("GPU", "iGPU", "ACCEL", "CPU")
    }
    assert kinds == {"GPU": True, "iGPU": True, "ACCEL": False, "CPU": False}


def test_a_copy_is_timed():
    ticks = iter(range(100))
    transfer = measure_transfer("CPU", 1 << 20, clock=lambda: next(ticks) / 1000)
    assert round(transfer.bytes_per_s) == (1 << 20) * 1000 and not transfer.skipped
    assert measure_transfer("CPU").bytes_per_s > 0


def test_what_cannot_be_copied_has_a_reason():
    assert measure_transfer("no such device").skipped == "there is no such device"
    full = measure_transfer("CPU", 1 << 55)
    assert full.bytes_per_s is None and "MiB of memory free" in full.skipped
