"""From a decided way of loading to a loaded model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from specx.backends.errors import ModelError
from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama import libllama
from specx.backends.llama.kernels import Kernels
from specx.backends.llama.model import LlamaModel
from specx.backends.llama.packed import PackedCopy
from specx.backends.settings import Load
from specx.engine.setup import keys
from specx.engine.setup.choice import Choice
from specx.engine.setup.here import Here, Stages
from specx.engine.setup.kernels import Chosen, load_on_chosen

__all__ = ["load_chosen", "load_library", "loader", "repack_works"]

REBUILD_HINT = (
    "this llama.cpp was compiled with AMX code that crashes here, so its slower kernels are used; rebuild: "
    'CMAKE_ARGS="-DCMAKE_C_FLAGS=-fno-dse -DCMAKE_CXX_FLAGS=-fno-dse" '
    "pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python==0.3.36"
)

_asked: dict[str, bool | None] = {}  # by build: the answer costs a load of the model


def load_chosen(info: GGUFInfo, load: Load, kernels: Choice[str | None], here: Here) -> Chosen:
    """Load the model on the kernels that were chosen, or on those that turn out to be the fastest.

    Raises:
        ModelError: it cannot be loaded.
    """
    stages = Stages(here.progress)
    told = replace(here, progress=stages.update) if here.progress is not None else here
    packed = None
    if load.packed_copy and load.path == info.path:
        packed = PackedCopy(here.store, info.fingerprint, load, here.notice)
    return load_on_chosen(kernels, loader(load, told, packed), keys.kernels_key(info, load), here, stages)


def loader(load: Load, here: Here, packed: PackedCopy | None = None) -> Callable[[Kernels], LlamaModel]:
    """What loads a model on given kernels, and with a copy of packed weights, if it may have one.

    Raises:
        ModelError: llama.cpp itself cannot be loaded.
    """
    load_library()
    repack = repack_works(load, here)

    def on(kernels: Kernels) -> LlamaModel:
        copy = packed if kernels.weights else None
        return LlamaModel(load, progress=here.progress, kernels=kernels, repack=repack, packed=copy)

    return on


def load_library(rpc: Sequence[str] = ()) -> None:
    """Load llama.cpp, and make the devices of the RPC servers `rpc` some of its own.

    Raises:
        ModelError: it cannot be loaded, or a server cannot be used.
    """
    try:
        libllama.lib()
    except (ImportError, OSError, RuntimeError) as error:
        place = os.environ.get("LLAMA_CPP_LIB_PATH")
        raise ModelError(
            f"llama.cpp cannot be loaded: {error}",
            f"LLAMA_CPP_LIB_PATH is {place}: name a folder with its libraries, or unset it"
            if place
            else "install it again: pip install --force-reinstall --no-deps llama-cpp-python==0.3.36",
        ) from error
    if rpc:
        from specx.backends.llama.rpc import add_servers

        add_servers(rpc)


def repack_works(load: Load, here: Here) -> bool:
    """Whether llama.cpp's rearranged weights can be trusted; the answer is kept per build."""
    if "AMX_INT8 = 1" not in libllama.system_info():
        return True
    key = libllama.build_fingerprint()
    works = (here.store.load_json("build", key) or {}).get("works")
    if not isinstance(works, bool):
        if key not in _asked:
            _asked[key] = libllama.runs_here(load.path)
        works = _asked[key]
        if works is not None:
            here.store.save_json("build", key, {"works": works})
    if works is False:
        here.notice(REBUILD_HINT)
    return works is not False
