"""What a person can ask of one generation and of a loaded model. Plain values, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["LoadSettings", "SamplingSettings"]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next token is chosen; the defaults are llama.cpp's.

    Applied in this order to the logits of a position: logit bias and penalties, top-k, typical-p, top-p,
    min-p, temperature. A value in parentheses switches a setting off.

    Attributes:
        seed: key of the noise; None lets specx choose one and say which.
        temperature: 0 is plain argmax.
        top_k: keep the k most likely tokens (0).
        top_p: keep the smallest set of most likely tokens with this mass (1).
        min_p: keep tokens at least this likely relative to the most likely one (0).
        typical_p: keep the locally typical set with this mass (1).
        repeat_penalty: divides positive and multiplies negative logits of recent tokens (1).
        repeat_last_n: how many recent tokens the penalties look at (0 none, -1 the whole context).
        frequency_penalty: subtracted once per occurrence (0).
        presence_penalty: subtracted once if present (0).
        logit_bias: token id -> added to its logit; -inf forbids the token.
    """

    seed: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How a model is loaded. None means: let specx decide.

    Attributes:
        model: the GGUF file.
        n_ctx: context length in tokens; None takes min(4096, what the model was trained for); 0 the
            model's own.
        n_batch, n_ubatch: most tokens per libllama call and per compute graph while a prompt is read.
        threads, threads_batch: CPU threads for decoding and for prompts.
        n_gpu_layers: layers to offload; -1 is all of them.
        flash_attn: "on", "off" or "auto".
        type_k, type_v: KV cache types by ggml name ("f16", "q8_0", ...).
        mmap, mlock: as in llama.cpp.
        swa_full: keep the whole history of sliding-window layers.
        drafter: "auto", "none", "suffix" or "recycle".
        draft_max: most drafted tokens per step; None means the staircase decides.
        exact: use only batch widths and orders whose logits are bit-identical.
        context_shift: forget the oldest tokens instead of stopping when the context is full.
        store: keep and use measurements, calibrations and caches under the cache directory.
        verbose: show llama.cpp's own messages.
    """

    model: Path
    n_ctx: int | None = None
    n_batch: int = 2048
    n_ubatch: int = 512
    threads: int | None = None
    threads_batch: int | None = None
    n_gpu_layers: int = -1
    flash_attn: str = "on"
    type_k: str = "f16"
    type_v: str = "f16"
    mmap: bool = True
    mlock: bool = False
    swa_full: bool = False
    drafter: str = "auto"
    draft_max: int | None = None
    exact: bool = False
    context_shift: bool = False
    store: bool = True
    verbose: bool = False
