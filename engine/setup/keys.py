"""What kept measurements of a model depend on: the keys they are found by in the store."""

from __future__ import annotations

import re

from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama import libllama
from specx.backends.llama.kernels import device_fingerprint
from specx.backends.machine.machine import machine_fingerprint
from specx.backends.settings import Load

__all__ = ["any_threads", "cost_key", "devices_key", "kernels_key", "threads_key"]

THREADS = re.compile(r"-t\d+-b\d+(?=-|$)")
OPEN = "gNone"  # in place of where the layers are, while that is still to be decided


def devices_key(info: GGUFInfo, load: Load, wanted: str) -> str:
    """What times of a model's layers depend on, but for the devices.

    Args:
        info: the model.
        load: how it is loaded.
        wanted: the kernels that were asked for.
    """
    return f"{_step_key(info, load, OPEN)}-{wanted}"


def threads_key(info: GGUFInfo, load: Load, wanted: str) -> str:
    """What the best number of threads depends on; `wanted` are the kernels that were asked for."""
    return f"{_step_key(info, load, _layers(load))}-{wanted}"


def kernels_key(info: GGUFInfo, load: Load) -> str:
    """What the choice of kernels depends on."""
    return f"{_step_key(info, load, _layers(load))}-t{load.threads}-b{load.threads_batch}"


def cost_key(info: GGUFInfo, load: Load, kernels: str) -> str:
    """What the time of a step on the kernels of that name depends on, but the context."""
    return f"{kernels_key(info, load)}-{kernels}"


def any_threads(key: str) -> str | None:
    """What a key has in common with those of other numbers of threads; None if it names none."""
    common, found = THREADS.subn("-any", key)
    return common if found else None


def _layers(load: Load) -> str:
    """Which layers are on which GPU."""
    if not load.offload:
        return f"g{load.n_gpu_layers}"
    return "g" + "+".join(f"{count}{name}" for name, count in load.offload)


def _step_key(info: GGUFInfo, load: Load, layers: str) -> str:
    """What the time of a step depends on but the context, the kernels and the threads.

    How many texts there is room for is no part of it: a step of one of them takes as long beside idle room.
    """
    parts = (
        info.fingerprint,
        libllama.build_fingerprint(),
        device_fingerprint(),
        machine_fingerprint(),
        f"u{load.n_ubatch}",
        layers,
        f"{load.type_k}{load.type_v}",
        f"fa{load.flash_attn}",
        "swa" if load.swa_full else "",
        *((f"rs{load.snapshots}",) if load.snapshots else ()),
    )
    return "-".join(parts)
