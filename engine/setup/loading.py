"""From a file name to a session: check the file, load it, and find what was kept of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from specx.backends.errors import ModelError
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama import library as libllama
from specx.backends.llama.cache_types import check_cache_of_model
from specx.backends.llama.kernels import Kernels
from specx.backends.llama.model import LlamaModel
from specx.backends.llama.params import decode_threads
from specx.backends.machine.machine import machine_fingerprint
from specx.backends.settings import LoadSettings
from specx.backends.store import Store, user_store
from specx.drafters import registry
from specx.engine.drafting import DraftModels
from specx.engine.learned.knowledge import Learned
from specx.engine.setup.draft_files import DraftFiles, named_draft
from specx.engine.setup.explain import Explain, explainer
from specx.engine.setup.finder import Candidate
from specx.engine.setup.fit import Fit, fit_here
from specx.engine.setup.kernels import Chosen, choose_kernels
from specx.engine.setup.layers import step_bytes
from specx.engine.setup.offloading import with_measured_placement, with_placed_draft
from specx.engine.setup.threads import warn_of_threads, with_measured_threads

if TYPE_CHECKING:
    from specx.engine.session import Session

__all__ = [
    "cost_key",
    "fit_and_place",
    "kernels_key",
    "load_library",
    "load_on_best_kernels",
    "loader",
    "open_session",
    "threads_key",
]

REBUILD_HINT = (
    "this llama.cpp was compiled with AMX code that crashes here, so its slower kernels are used; rebuild: "
    'CMAKE_ARGS="-DCMAKE_C_FLAGS=-fno-dse -DCMAKE_CXX_FLAGS=-fno-dse" '
    "pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python==0.3.36"
)


FLOAT_CACHES = {"f16", "bf16", "f32"}

_asked: dict[str, bool | None] = {}  # by build: the answer costs a load of the model


def open_session(
    kind: type[Session],
    settings: LoadSettings,
    progress: Callable[[float], None] | None,
    notice: Callable[[str], None],
) -> Session:
    """Load a GGUF file into a session of class `kind`.

    Raises:
        DoesNotFitError: there is not enough memory for it.
        ModelError: it cannot be loaded; what can be said from the file itself is said first.
    """
    info = read_runnable(settings.model)
    store = user_store(settings.store, notice)
    explain = explainer(settings, notice)
    warn_of_threads(settings, notice)
    devices_key = threads_key(info, settings)
    named = named_draft(info, settings)
    header = named.header if named else None
    fitted = fit_and_place(info, settings, store, progress, notice, draft=header)
    settings = fitted.settings
    settings = with_measured_threads(settings, store, threads_key(info, settings), explain)
    chosen = load_on_best_kernels(info, settings, store, progress, notice)
    draft = named.candidate if named and fitted.draft else None
    wanted = registry.find(settings.drafter).guessers
    if named and draft is None:  # there is not enough memory for it, which was told
        wanted, settings = False, replace(settings, drafter="auto")

    def load_draft(of: LoadSettings) -> LlamaModel:
        placed = with_placed_draft(of, store, devices_key)
        return loader(placed, store, None, notice)(chosen.kernels)

    def draft_models(session: Session) -> DraftModels:
        files = DraftFiles(info, settings, chosen.kernels, session.n_ctx, store, load_draft)
        return _draft_models(session, info, files, draft, notice, explain)

    return kind(
        chosen.model,
        settings,
        Learned(store, model_key=info.fingerprint, cost_key=cost_key(info, settings, chosen.kernels.name)),
        name=_name(info),
        chat_template=info.chat_template,
        notice=notice,
        draft_models=draft_models if wanted else None,
    )


def _draft_models(
    session: Session,
    info: GGUFInfo,
    files: DraftFiles,
    forced: Candidate | None,
    notice: Callable[[str], None],
    explain: Explain,
) -> DraftModels:
    settings = session.settings
    return DraftModels(
        files,
        session.learned,
        session.staircase,
        step_bytes=step_bytes(info),
        n_ctx=session.n_ctx,
        forced=forced,
        quantized_cache=not {settings.draft_type_k, settings.draft_type_v} <= FLOAT_CACHES,
        notice=notice,
        explain=explain,
        clock=session.clock,
    )


def fit_and_place(
    info: GGUFInfo,
    settings: LoadSettings,
    store: Store,
    progress: Callable[[float], None] | None,
    notice: Callable[[str], None],
    *,
    draft: GGUFInfo | None = None,
) -> Fit:
    """How a model is loaded so that memory suffices, and its layers are where they are computed the fastest.

    Raises:
        DoesNotFitError: there is not enough memory for it.
        ModelError: it cannot be loaded, or llama.cpp itself cannot.
        UsageError: its cache cannot be of the types that `settings` name.
    """
    check_cache_of_model(info, settings)
    settings = _placed(info, settings, store, progress, notice)  # then main memory need not hold it all
    return fit_here(info, settings, notice, explainer(settings, notice), draft=draft)


def _placed(
    info: GGUFInfo,
    settings: LoadSettings,
    store: Store,
    progress: Callable[[float], None] | None,
    notice: Callable[[str], None],
) -> LoadSettings:
    """`settings` with the layers that go to each GPU, if there is one and they leave it open."""
    return with_measured_placement(
        info,
        settings,
        store,
        threads_key(info, settings),
        lambda placed: load_on_best_kernels(info, placed, store, progress, notice),
        notice=notice,
        explain=explainer(settings, notice),
    )


def load_on_best_kernels(
    info: GGUFInfo,
    settings: LoadSettings,
    store: Store,
    progress: Callable[[float], None] | None,
    notice: Callable[[str], None],
) -> Chosen:
    """Load the model of `settings` on the kernels that they name, or that are the fastest for it.

    Raises:
        ModelError: it cannot be loaded.
    """
    load = loader(settings, store, progress, notice)
    key, explain = kernels_key(info, settings), explainer(settings, notice)
    return choose_kernels(
        settings.kernels, load, store, key, notice, measure=settings.measure, explain=explain
    )


def loader(
    settings: LoadSettings,
    store: Store,
    progress: Callable[[float], None] | None,
    notice: Callable[[str], None],
) -> Callable[[Kernels], LlamaModel]:
    """What loads the model of `settings` on given kernels.

    Raises:
        ModelError: llama.cpp itself cannot be loaded.
    """
    load_library()
    repack = _repack(settings, store, notice)

    def load(kernels: Kernels) -> LlamaModel:
        return LlamaModel(settings, progress=progress, kernels=kernels, repack=repack)

    return load


def load_library() -> None:
    """Load llama.cpp.

    Raises:
        ModelError: it cannot be loaded.
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


def threads_key(info: GGUFInfo, settings: LoadSettings) -> str:
    """Everything the best number of threads depends on.

    Raises:
        ModelError: llama.cpp itself cannot be loaded.
    """
    load_library()
    return f"{_cost_key(info, settings)}-{settings.kernels}"


def cost_key(info: GGUFInfo, settings: LoadSettings, kernels: str) -> str:
    """Everything the time of a step on the kernels of that name depends on, but the context."""
    return f"{kernels_key(info, settings)}-{kernels}"


def kernels_key(info: GGUFInfo, settings: LoadSettings) -> str:
    """Everything that the choice of kernels depends on."""
    decode = decode_threads(settings)
    return f"{_cost_key(info, settings)}-t{decode}-b{settings.threads_batch or decode}"


def _offload_key(settings: LoadSettings) -> str:
    """Which layers are on which GPU."""
    if not settings.offload:
        return f"g{settings.n_gpu_layers}"
    return "g" + "+".join(f"{count}{name}" for name, count in settings.offload)


def _cost_key(info: GGUFInfo, settings: LoadSettings) -> str:
    """Everything the time of a step depends on but the context, the kernels and the threads."""
    return "-".join(
        (
            info.fingerprint,
            libllama.build_fingerprint(),
            machine_fingerprint(),
            f"u{settings.n_ubatch}",
            _offload_key(settings),
            f"{settings.type_k}{settings.type_v}",
            f"fa{settings.flash_attn}",
            "swa" if settings.swa_full else "",
        )
    )


def _name(info: GGUFInfo) -> str:
    return info.name or info.path.stem
