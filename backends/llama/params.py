"""How libllama is told to load a model and to create its context, and what it says when it cannot."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from specx.backends.errors import ModelError
from specx.backends.gguf.cache_size import CELLS
from specx.backends.gguf.file import ROLLBACK, GGUFInfo
from specx.backends.llama.callbacks import called_by_c
from specx.backends.llama.devices import device_pointer
from specx.backends.llama.extraction import Observer
from specx.backends.llama.kernels import Kernels
from specx.backends.llama.last_words import working_on
from specx.backends.llama.libllama import computing_here, forget_log, recent_errors, recent_log
from specx.backends.llama.packed import PackedCopy
from specx.backends.llama.trimmed import overrides
from specx.backends.settings import CACHE_TYPES, MAX_ROWS, Load

__all__ = [
    "MAX_WIDTH",
    "PROMPT_ROWS",
    "check_cache_type",
    "create_context",
    "load_error",
    "load_weights",
    "read_architecture",
    "sequences_per_text",
]

MAX_WIDTH = MAX_ROWS  # from here on llama.cpp's attention works in tiles: a step can cost less than one of 16
PROMPT_ROWS = 64  # at most this many prompt rows have their logits computed
FAILED = re.compile(r"^(?:error loading model(?: hyperparameters| vocabulary| architecture)?: )+")
FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}


def load_weights(
    module: Any,
    load: Load,
    progress: Callable[[float], None] | None,
    *,
    repack: bool,
    trimmed: GGUFInfo | None = None,
    head: bool = False,
    packed: PackedCopy | None = None,
) -> Any:
    """The llama_model of `load`.

    Args:
        module: llama_cpp.
        load: how it is to be loaded.
        progress: called with the loaded fraction, 0 to 1.
        repack: let llama.cpp rearrange weights for this CPU.
        trimmed: the header of a model that is loaded without its tokenizer.
        head: whether it is a draft head, whose encoder reads the target's hidden states.
        packed: the copy of specx's packed weights on disk, if it may have one.

    Raises:
        ModelError: the file cannot be loaded, or models not in this process.
        BaseException: what `progress` raises.
    """
    raised: list[BaseException] = []

    @called_by_c
    def on_progress(fraction: float, _data: Any) -> bool:
        try:
            if progress is not None:
                progress(fraction)
        except BaseException as error:  # noqa: BLE001 -- ctypes would swallow it; raised again below
            raised.append(error)
        return not raised

    params, kept = _model_params(module, load, repack=repack, trimmed=trimmed)
    callback = module.llama_progress_callback(on_progress)
    params.progress_callback = callback
    computing_here()
    forget_log()
    working_on(load.path.name)
    with packed.used() if packed is not None else nullcontext():
        model = module.llama_model_load_from_file(os.fsencode(load.path), params)
    del kept
    if raised:
        if model:
            module.llama_model_free(model)
        raise raised[0]
    if not model:
        raise load_error(load.path)
    if not module.llama_model_has_decoder(model) or module.llama_model_has_encoder(model) != head:
        module.llama_model_free(model)
        raise _not_a_decoder(load)
    return model


def _model_params(module: Any, load: Load, *, repack: bool, trimmed: GGUFInfo | None) -> tuple[Any, Any]:
    """The llama_model_params of `load`, and what has to live as long as they are used."""
    params = module.llama_model_default_params()
    kept = _divide(module, params, load)
    params.load_mode = _load_mode(module, load)
    params.load_mtp = load.mtp
    params.use_extra_bufts = repack
    if trimmed is not None:
        params.kv_overrides = overrides(module, trimmed)
    # Else what stays in main memory beside a GPU's layers lies in buffers of its driver, and is not
    # rearranged: steps of 8 tokens then took more than twice as long as without the GPU.
    params.no_host = True
    return params, kept


def create_context(
    module: Any,
    model: Any,
    load: Load,
    kernels: Kernels,
    *,
    leaves: int,
    streams: bool,
    observer: Observer | None = None,
    other: Any = None,
    mtp: bool = False,
) -> Any:
    """A llama_context for the texts of `load`.

    Args:
        module: llama_cpp.
        model: the llama_model.
        load: how it is loaded.
        kernels: what attention is computed with.
        leaves: of a token tree; each takes a sequence.
        streams: whether each text has cells of its own, in a stream of the KV cache.
        observer: C callback that is told every value that is computed, and its user data; must outlive the
            context.
        other: the context of a target whose matrices are read; must outlive the context.
        mtp: whether it computes the layers that only draft.

    Raises:
        ModelError: it cannot be created.
    """
    params = _context_params(module, model, load, kernels, leaves=leaves, streams=streams)
    if observer is not None:
        params.cb_eval, params.cb_eval_user_data = observer
    if other is not None:
        params.ctx_other = other
    if mtp:
        params.ctx_type, params.n_rs_seq = module.LLAMA_CONTEXT_TYPE_MTP, 0
    context = module.llama_init_from_model(model, params)
    if not context:
        reason = (recent_errors() or ["no reason given"])[-1]
        raise ModelError(
            f"no context of {load.n_ctx} tokens could be created for {load.path.name}: {reason}",
            "try a smaller context (-c 2048) or another KV cache type (-ctk f16 -ctv f16)",
        )
    if not module.llama_get_memory(context):
        module.llama_free(context)
        raise _not_a_decoder(load)
    return context


def _context_params(
    module: Any, model: Any, load: Load, kernels: Kernels, *, leaves: int, streams: bool
) -> Any:
    """The llama_context_params of `load`."""
    params = module.llama_context_default_params()
    wanted = load.n_ctx
    # Streams divide the cells evenly, in steps of CELLS.
    per_text = -(-wanted // CELLS) * CELLS if load.texts > 1 else wanted
    params.n_ctx = per_text * load.texts
    # No call is wider than a piece of a prompt or a step, and hidden states take memory for each row of one.
    widest = max(load.n_ubatch, MAX_WIDTH)
    params.n_batch = max(1, min(load.n_batch, wanted, widest), load.texts)
    params.n_ubatch = max(1, min(load.n_ubatch, load.n_batch), load.texts)
    params.n_seq_max = load.texts * leaves
    params.kv_unified = not streams
    params.n_outputs_max = max(MAX_WIDTH, PROMPT_ROWS, params.n_seq_max)
    params.n_threads = load.threads
    params.n_threads_batch = load.threads_batch
    # "auto" looks at which device computes attention, and gives it up for any but the layer's own.
    auto = "on" if kernels.attention else "auto"
    params.flash_attn_type = FLASH_ATTN[auto if load.flash_attn == "auto" else load.flash_attn]
    params.type_k = _cache_type(module, load.type_k)
    params.type_v = _cache_type(module, load.type_v)
    params.swa_full = load.swa_full
    params.n_rs_seq = min(load.kept_states, ROLLBACK.get(read_architecture(module, model), 0))
    params.no_perf = True
    return params


def read_architecture(module: Any, model: Any) -> str:
    """Name of a loaded model's architecture, as llama.cpp has it."""
    name = ctypes.create_string_buffer(64)
    module.llama_model_meta_val_str(model, b"general.architecture", name, len(name))
    return name.value.decode(errors="replace")


def sequences_per_text(module: Any, texts: int) -> int:
    """How many sequences each of so many texts may have.

    llama.cpp sets a row of logits aside for each sequence, so there are no more than rows of a call.

    Raises:
        ModelError: there are not enough for one each.
    """
    most = int(module.llama_max_parallel_sequences())
    if texts > most:
        raise ModelError(
            f"llama.cpp computes at most {most} texts at once, not {texts}", f"take {most} or fewer at once"
        )
    return max(MAX_WIDTH // texts, 1)


def _divide(module: Any, params: Any, load: Load) -> tuple[Any, ...]:
    """Let the last layers go to GPUs as `load` says; returns what must live until the model is loaded."""
    offload = load.offload
    params.n_gpu_layers = load.n_gpu_layers if offload is None else sum(count for _, count in offload)
    if params.n_gpu_layers == 0:
        # Else llama.cpp opens every GPU, sets a buffer aside there, and lets it multiply with what it copies
        # of the weights from 32 tokens on: other costs than the host's, and other bits.
        offload = ()
    if offload is None:
        return ()
    pointers = [device_pointer(name) for name, _ in offload]
    devices = (ctypes.c_void_p * (len(offload) + 1))(*pointers, None)
    # A layer goes to the first device whose share, added to those before, is larger than its place.
    shares = (ctypes.c_float * module.llama_max_devices())(*(float(count) for _, count in offload))
    params.devices = ctypes.cast(devices, ctypes.c_void_p)
    params.tensor_split = shares
    return devices, shares


def check_cache_type(name: str) -> None:
    """Raise ModelError unless keys or values can be kept as the ggml type `name`."""
    if name not in CACHE_TYPES:
        raise ModelError(f"unknown KV cache type {name!r}", f"use one of {', '.join(CACHE_TYPES)}")


def _cache_type(module: Any, name: str) -> int:
    check_cache_type(name)
    return int(getattr(module, f"GGML_TYPE_{name.upper()}"))


def _load_mode(module: Any, load: Load) -> int:
    if load.mlock:
        return int(module.LLAMA_LOAD_MODE_MLOCK)
    return int(module.LLAMA_LOAD_MODE_MMAP if load.mmap else module.LLAMA_LOAD_MODE_NONE)


def load_error(path: Path) -> ModelError:
    """Why llama.cpp did not load the file, told from its log since `forget_log`."""
    name = path.name
    for line in recent_log("unknown model architecture")[-1:]:
        architecture = line.rsplit(":", 1)[-1].strip().strip("'")
        return ModelError(
            f"{name} has the architecture {architecture!r}, which this llama.cpp does not support",
            "a newer llama.cpp may; `specx show` tells what the file contains",
        )
    if recent_log("unable to allocate") or recent_log("failed to allocate"):
        return ModelError(
            f"{name} does not fit into the memory of this machine",
            "take a smaller quantization, or fewer layers on the GPU (-ngl)",
        )
    reason = FAILED.sub("", (recent_errors() or ["no reason given"])[0])
    return ModelError(
        f"llama.cpp could not load {name}: {reason}", "run again with --log-file - to see its messages"
    )


def _not_a_decoder(load: Load) -> ModelError:
    return ModelError(
        f"{load.path.name} is not a decoder-only language model",
        "specx runs models that continue text; encoders, embedding and diffusion models are not supported",
    )
