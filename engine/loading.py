"""From a file name to a session: check the file, load it, and find what was kept of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from specx.backends import libllama
from specx.backends.errors import ModelError
from specx.backends.ggml_device import Kernels
from specx.backends.gguf_file import GGUFInfo, read_gguf
from specx.backends.llama import LlamaBackend, decode_threads
from specx.backends.settings import LoadSettings
from specx.backends.store import Store, cache_dir
from specx.engine.kernel_choice import choose_kernels
from specx.engine.learned import Learned

if TYPE_CHECKING:
    from specx.engine.session import Session

__all__ = ["loader", "open_session"]

REBUILD_HINT = (
    "this llama.cpp was compiled with AMX code that crashes here, so its slower kernels are used; rebuild: "
    'CMAKE_ARGS="-DCMAKE_C_FLAGS=-fno-dse -DCMAKE_CXX_FLAGS=-fno-dse" '
    "pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python==0.3.36"
)


_asked: dict[str, bool | None] = {}  # by build: the answer costs a load of the model


def open_session(
    kind: type[Session],
    settings: LoadSettings,
    progress: Callable[[float], None] | None,
    notice: Callable[[str], None],
) -> Session:
    """Load a GGUF file into a session of class `kind`.

    Raises:
        ModelError: it cannot be loaded; what can be said from the file itself is said first.
    """
    info = read_gguf(settings.model)
    store = Store(cache_dir() if settings.store else None, notice)
    load = loader(settings, store, progress, notice)
    key = _machine_key(info, settings)
    chosen = choose_kernels(settings.kernels, load, store, key, notice)
    return kind(
        chosen.backend,
        settings,
        Learned(store, model_key=info.fingerprint, cost_key=f"{key}-{chosen.kernels.name}"),
        name=_name(info),
        chat_template=info.chat_template,
        notice=notice,
    )


def loader(
    settings: LoadSettings,
    store: Store,
    progress: Callable[[float], None] | None,
    notice: Callable[[str], None],
) -> Callable[[Kernels], LlamaBackend]:
    """What loads the model of `settings` on given kernels.

    Raises:
        ModelError: llama.cpp itself cannot be loaded.
    """
    _load_library()
    repack = _repack(settings, store, notice)

    def load(kernels: Kernels) -> LlamaBackend:
        return LlamaBackend(settings, progress=progress, kernels=kernels, repack=repack)

    return load


def _load_library() -> None:
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


def _repack(settings: LoadSettings, store: Store, notice: Callable[[str], None]) -> bool:
    """Whether llama.cpp's rearranged weights can be trusted; the answer is kept per build."""
    if "AMX_INT8 = 1" not in libllama.system_info():
        return True
    key = libllama.build_fingerprint()
    works = (store.load_json("build", key) or {}).get("works")
    if not isinstance(works, bool):
        if key not in _asked:
            _asked[key] = libllama.runs_here(settings.model)
        works = _asked[key]
        if works is not None:
            store.save_json("build", key, {"works": works})
    if works is False:
        notice(REBUILD_HINT)
    return works is not False


def _machine_key(info: GGUFInfo, settings: LoadSettings) -> str:
    """Everything the time of a step depends on but the context and the kernels."""
    return "-".join(
        (
            info.fingerprint,
            libllama.build_fingerprint(),
            f"t{decode_threads(settings)}",
            f"b{settings.threads_batch or decode_threads(settings)}",
            f"u{settings.n_ubatch}",
            f"g{settings.n_gpu_layers}",
            f"{settings.type_k}{settings.type_v}",
            f"fa{settings.flash_attn}",
            "swa" if settings.swa_full else "",
        )
    )


def _name(info: GGUFInfo) -> str:
    return info.name or info.path.stem
