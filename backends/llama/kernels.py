"""specx's own kernels: the ggml device of kernels/ggml, loaded into the llama.cpp of this process.

The device offers two things that can be switched separately: attention over the KV cache, and weights kept in
a layout of its own. With both it also takes what lies between them: norms, activations and the like. Which of
them is faster than llama.cpp's own kernels depends on the machine and on the model, so it is measured
(engine/setup/kernels.py).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from specx.backends.llama.libllama import lib, recent_log

__all__ = [
    "ATTENTION",
    "ATTENTION_TYPES",
    "KERNELS",
    "SPECX",
    "STOCK",
    "Kernels",
    "Packing",
    "begin_packing",
    "describe",
    "device_fingerprint",
    "enable",
    "end_packing",
    "instruction_set",
    "library",
    "unavailable",
]


@dataclass(frozen=True, slots=True)
class Kernels:
    """Which kernels a model runs on.

    Attributes:
        name: what to call them.
        attention: attention is computed by specx.
        weights: weights are repacked and multiplied by specx.
    """

    name: str
    attention: bool
    weights: bool


@dataclass(frozen=True, slots=True)
class Packing:
    """What became of a model's weights while it was loaded.

    Attributes:
        packed: bytes that were packed.
        found: bytes that a file had already.
        seconds: CPU time of all threads for that.
        complete: a file was written, and holds all of them.
        large_pages: bytes of that file that are in large pages.
    """

    packed: int
    found: int
    seconds: float
    complete: bool
    large_pages: int


STOCK = Kernels("stock", attention=False, weights=False)
ATTENTION_TYPES = frozenset({"f16", "q8_0"})  # of KV caches that specx's attention reads
ATTENTION = Kernels("attention", attention=True, weights=False)
SPECX = Kernels("specx", attention=True, weights=True)
_enabled = STOCK
KERNELS = {kernels.name: kernels for kernels in (STOCK, ATTENTION, SPECX)}


def library() -> Path | None:
    """The shared library, if it was built with this installation."""
    native = importlib.util.find_spec("specx.kernels._native")
    if native is None or native.origin is None:
        return None
    path = Path(native.origin).with_name("libspecx-ggml.so")
    return path if path.is_file() else None


@functools.cache
def device_fingerprint() -> str:
    """Short hex digest that tells this build of the device from others, for keys of measurements."""
    path = library()
    if path is None:
        return ""
    built = path.stat()
    return hashlib.sha256(f"{built.st_size}:{built.st_mtime_ns}".encode()).hexdigest()[:8]


@functools.cache
def unavailable() -> str | None:
    """Load the device; why it cannot be used (one clause), or None if it can."""
    path = library()
    if path is None:
        return "they were not built on this machine"
    # Through libllama's handle: the wheel's libggml.so and libggml.so.0 are two files, not a file and a link
    # to it, and a device that is registered in the one that libllama does not use is never asked anything.
    load = lib().llama_cpp._lib.ggml_backend_load
    load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    if not load(os.fsencode(path)):
        told = [line for line in recent_log() if "specx" in line]
        return told[-1].strip() if told else "this llama.cpp is of another version than they were made for"
    _device().specx_ggml_enable(0, 0)
    return None


@functools.cache
def _device() -> ctypes.CDLL:
    device = ctypes.CDLL(str(library()))
    device.specx_ggml_enable.argtypes = [ctypes.c_int, ctypes.c_int]
    device.specx_ggml_enable.restype = None
    device.specx_ggml_describe.restype = ctypes.c_char_p
    device.specx_ggml_begin_packing.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    device.specx_ggml_end_packing.argtypes = [ctypes.POINTER(ctypes.c_int64)]
    device.specx_ggml_end_packing.restype = None
    return device


def enable(kernels: Kernels) -> None:
    """Use `kernels`: attention from the next graph on that llama.cpp builds, which it does when the width of
    a step changes, whatever the model; weights from the next model on that is loaded.

    Raises:
        RuntimeError: the device is not available.
    """
    global _enabled  # noqa: PLW0603 -- the device has one switch for the whole process
    if kernels is _enabled:
        return
    if reason := unavailable():
        raise RuntimeError(f"these kernels cannot be used: {reason}")
    _device().specx_ggml_enable(int(kernels.attention), int(kernels.weights))
    _enabled = kernels


def begin_packing(descriptor: int = -1, key: str = "", *, writing: bool = False) -> bool:
    """Until `end_packing`, the weights of the model that is loaded come from an open file, or are written
    there.

    Args:
        descriptor: the file; -1 is none.
        key: 64 characters that say what it holds.
        writing: whether it is empty yet.

    Returns:
        Whether that can be: the file holds weights of this key, or can be written.
    """
    return bool(_device().specx_ggml_begin_packing(descriptor, key.encode("ascii"), int(writing)))


def end_packing() -> Packing:
    """What became of the weights since `begin_packing`."""
    numbers = (ctypes.c_int64 * 5)()
    _device().specx_ggml_end_packing(numbers)
    packed, found, microseconds, complete, large_pages = numbers
    return Packing(packed, found, microseconds / 1e6, bool(complete), large_pages)


def instruction_set() -> str:
    """The instructions that the device computes with on this machine; empty without it."""
    return describe().rpartition(", ")[2]


def describe() -> str:
    """One line about what is on, and on which instruction set; empty without the device."""
    if not unavailable.cache_info().currsize or unavailable():
        return ""
    text: bytes = _device().specx_ggml_describe()
    return text.decode()
