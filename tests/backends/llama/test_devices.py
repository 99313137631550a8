"""The devices of llama.cpp, and copying memory to one."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from specx.backends.llama import kernels as ggml_device
from specx.backends.llama import params as params_module
from specx.backends.llama.devices import Device, devices_fingerprint, list_devices, measure_transfer
from specx.backends.llama.libllama import lib
from specx.backends.settings import Load


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is shared")
def test_all_libraries_use_one_cxx_library():
    """Whatever was loaded before: it is looked up before anything that a libggml-cuda may export."""
    code = """if True:
        import ctypes
        import specx.kernels._native
        from specx.backends.llama.libllama import lib
        lib()
        ctypes.CDLL(None)._ZSt13set_terminatePFvvE
    """
    subprocess.run([sys.executable, "-P", "-c", code], timeout=60, check=True)


@pytest.mark.parametrize("options", [{"n_gpu_layers": 0}, {"offload": ()}])
def test_without_layers_there_no_gpu_is_opened(options):
    wanted = lib().llama_model_default_params()
    assert not wanted.devices  # llama.cpp takes them all
    kept = params_module._divide(lib(), wanted, Load(Path("m.gguf"), 1, 1, **options))
    assert kept and wanted.n_gpu_layers == 0
    assert ctypes.cast(wanted.devices, ctypes.POINTER(ctypes.c_void_p))[0] is None


def test_another_gpu_of_the_same_name_is_another():
    one = Device("CUDA0", "one", "GPU", 1, 8, unified=False)
    assert devices_fingerprint([one]) == devices_fingerprint([replace(one, memory_free=2)])
    others = [replace(one, description="two"), replace(one, memory_total=9)]
    assert len({devices_fingerprint(each) for each in ([one], [others[0]], [others[1]], [one, one])}) == 4


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
