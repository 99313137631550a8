"""The devices that llama.cpp can compute on, as ggml lists them, and how fast memory is copied to them."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from specx.backends.errors import ModelError
from specx.backends.llama.libllama import lib
from specx.backends.settings import Load

__all__ = [
    "TRANSFER_BYTES",
    "Device",
    "Transfer",
    "device_pointer",
    "devices_fingerprint",
    "list_devices",
    "measure_transfer",
    "on_gpu",
]

TYPES = ("CPU", "GPU", "iGPU", "ACCEL", "META")  # enum ggml_backend_dev_type of ggml-backend.h
OWN_REGISTRY = "specx"  # the kernels of kernels/ggml are devices to ggml; what they run on is the CPU
METAL = "MTL"
TRANSFER_BYTES = 64 << 20
TRANSFER_REPEATS = 5
OVERHEAD_BYTES = 4096  # for the one tensor of a ggml context
GGML_TYPE_I8 = 24


@dataclass(frozen=True, slots=True)
class Device:
    """One device.

    Attributes:
        name: what llama.cpp calls it ("CPU", "CUDA0", ...).
        description: what its driver calls it.
        type: "CPU", "GPU", "iGPU" (an integrated GPU), "ACCEL" (helps the CPU) or "META" (several in one).
        memory_free, memory_total: bytes; None where the device does not say.
        unified: it computes in main memory, so that what it uses is missing there.
    """

    name: str
    description: str
    type: str
    memory_free: int | None
    memory_total: int | None
    unified: bool

    @property
    def is_gpu(self) -> bool:
        """Whether layers of a model can be offloaded to it."""
        return self.type in ("GPU", "iGPU")

    def to_json(self) -> dict[str, Any]:
        """A plain value for `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Transfer:
    """How fast main memory is copied to a device.

    Attributes:
        bytes_per_s: the best of several copies; None if it could not be measured.
        skipped: why not; empty if it was.
    """

    bytes_per_s: float | None
    skipped: str = ""


def on_gpu(load: Load) -> bool:
    """Whether a GPU computes layers of a model."""
    return load.n_gpu_layers != 0 and any(device.is_gpu for device in list_devices())


def list_devices() -> list[Device]:
    """Every device of this llama.cpp, in its order, specx's own kernels left out."""
    ggml = _ggml()
    found = []
    for i in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(i)
        registry = _text(ggml.ggml_backend_reg_name(ggml.ggml_backend_dev_backend_reg(device)))
        if registry == OWN_REGISTRY:
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        kind = ggml.ggml_backend_dev_type(device)
        name = TYPES[kind] if 0 <= kind < len(TYPES) else f"type {kind}"
        found.append(
            Device(
                name=_text(ggml.ggml_backend_dev_name(device)),
                description=_text(ggml.ggml_backend_dev_description(device)),
                type=name,
                memory_free=free.value if total.value else None,
                memory_total=total.value or None,
                unified=name in ("CPU", "iGPU", "ACCEL")
                or (registry == METAL and platform.machine() == "arm64"),
            )
        )
    return found


def devices_fingerprint(devices: Sequence[Device]) -> str:
    """16 hex digits, a key for what was measured on them: "CUDA0" can be another GPU tomorrow."""
    names = "|".join(f"{device.name} {device.description} {device.memory_total}" for device in devices)
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def device_pointer(name: str) -> int:
    """What ggml calls the device `name`.

    Raises:
        ModelError: there is none.
    """
    pointer: int | None = _ggml().ggml_backend_dev_by_name(name.encode())
    if not pointer:
        known = ", ".join(device.name for device in list_devices())
        raise ModelError(f"there is no device {name!r} here", f"there are {known}")
    return pointer


def measure_transfer(
    name: str, nbytes: int = TRANSFER_BYTES, *, clock: Callable[[], float] = time.perf_counter
) -> Transfer:
    """Copy `nbytes` of main memory into a buffer on the device `name`, several times."""
    ggml = _ggml()
    with ExitStack() as owned:
        device = ggml.ggml_backend_dev_by_name(name.encode())
        if not device:
            return Transfer(None, "there is no such device")
        backend = ggml.ggml_backend_dev_init(device, None)
        if not backend:
            return Transfer(None, "the device cannot be opened")
        owned.callback(ggml.ggml_backend_free, backend)
        context = ggml.ggml_init(_InitParams(OVERHEAD_BYTES, None, True))
        owned.callback(ggml.ggml_free, context)
        tensor = ggml.ggml_new_tensor_1d(context, GGML_TYPE_I8, nbytes)
        buffer = ggml.ggml_backend_alloc_ctx_tensors(context, backend)
        if not buffer:
            return Transfer(None, f"it has no {nbytes >> 20} MiB of memory free")
        owned.callback(ggml.ggml_backend_buffer_free, buffer)
        data = np.ones(nbytes, np.int8)
        best = np.inf
        for _ in range(TRANSFER_REPEATS + 1):  # the first one maps the pages
            start = clock()
            ggml.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, nbytes)
            ggml.ggml_backend_synchronize(backend)
            best = min(best, clock() - start)
        return Transfer(nbytes / max(best, 1e-9))


class _InitParams(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def _ggml() -> ctypes.CDLL:
    """ggml's functions, through libllama's handle (kernels.py says why), with their types."""
    handle: ctypes.CDLL = lib().llama_cpp._lib
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    sizes = ctypes.POINTER(size)
    for name, result, arguments in (
        ("ggml_backend_dev_count", size, ()),
        ("ggml_backend_dev_get", pointer, (size,)),
        ("ggml_backend_dev_by_name", pointer, (ctypes.c_char_p,)),
        ("ggml_backend_dev_name", ctypes.c_char_p, (pointer,)),
        ("ggml_backend_dev_description", ctypes.c_char_p, (pointer,)),
        ("ggml_backend_dev_memory", None, (pointer, sizes, sizes)),
        ("ggml_backend_dev_type", ctypes.c_int, (pointer,)),
        ("ggml_backend_dev_backend_reg", pointer, (pointer,)),
        ("ggml_backend_reg_name", ctypes.c_char_p, (pointer,)),
        ("ggml_backend_dev_init", pointer, (pointer, ctypes.c_char_p)),
        ("ggml_backend_free", None, (pointer,)),
        ("ggml_backend_synchronize", None, (pointer,)),
        ("ggml_init", pointer, (_InitParams,)),
        ("ggml_free", None, (pointer,)),
        ("ggml_new_tensor_1d", pointer, (pointer, ctypes.c_int, ctypes.c_int64)),
        ("ggml_backend_alloc_ctx_tensors", pointer, (pointer, pointer)),
        ("ggml_backend_buffer_free", None, (pointer,)),
        ("ggml_backend_tensor_set", None, (pointer, pointer, size, size)),
    ):
        function = getattr(handle, name)
        function.restype, function.argtypes = result, arguments
    return handle


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
