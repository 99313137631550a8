"""How a model is loaded. Plain values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ALL_LAYERS", "CACHE_TYPES", "MAX_THREADS", "LoadSettings"]

ALL_LAYERS = -1
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
MAX_THREADS = 512  # of llama.cpp: its GGML_MAX_N_THREADS


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How a model is loaded. None means: let specx decide.

    Attributes:
        model: the GGUF file.
        n_ctx: context length in tokens; None takes min(4096, what the model was trained for); 0 the
            model's own.
        texts: how many texts are decoded at once, each with a context of its own.
        n_batch, n_ubatch: most tokens per libllama call and per compute graph while a prompt is read.
        threads, threads_batch: CPU threads for decoding and for prompts.
        n_gpu_layers: layers to offload; -1 is all of them, None those that are measured to pay.
        offload: layers by GPU in the order of the layers, the head counting as one; None leaves their
            division to llama.cpp.
        flash_attn: "on", "off" or "auto".
        type_k, type_v: KV cache types by ggml name ("f16", "q8_0", ...).
        mmap, mlock: as in llama.cpp.
        swa_full: keep the whole history of sliding-window layers.
        drafter: "auto", "none", "free" (the two that follow), "suffix", "recycle" or "model".
        draft_model: the draft model, if it is named.
        draft_threads, draft_threads_batch, draft_gpu_layers, draft_type_k, draft_type_v: of the draft model,
            as for the model.
        kernels: "auto" (whichever is measured to be the fastest), "specx", "attention" (of specx's only that)
            or "stock".
        draft_max: most drafted tokens per step; None means the staircase decides.
        exact: use only batch widths and orders whose logits are bit-identical.
        context_shift: forget the oldest tokens instead of stopping when the context is full.
        store: keep and use measurements, calibrations and caches under the cache directory.
        measure: time what was never timed here, on this machine; not worth it where nothing is decoded.
        verbose: show llama.cpp's own messages.
    """

    model: Path
    n_ctx: int | None = None
    texts: int = 1
    n_batch: int = 2048
    n_ubatch: int = 512
    threads: int | None = None
    threads_batch: int | None = None
    n_gpu_layers: int | None = None
    offload: tuple[tuple[str, int], ...] | None = None
    flash_attn: str = "on"
    type_k: str = "f16"
    type_v: str = "f16"
    mmap: bool = True
    mlock: bool = False
    swa_full: bool = False
    drafter: str = "auto"
    kernels: str = "auto"
    draft_max: int | None = None
    draft_model: Path | None = None
    draft_threads: int | None = None
    draft_threads_batch: int | None = None
    draft_gpu_layers: int | None = None
    draft_type_k: str = "f16"
    draft_type_v: str = "f16"
    exact: bool = False
    context_shift: bool = False
    store: bool = True
    measure: bool = True
    verbose: bool = False
