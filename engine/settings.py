"""What a person can ask of a run and of one generation. Plain values, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Asked", "AskedModel", "SamplingSettings"]


@dataclass(frozen=True, slots=True)
class AskedModel:
    """What was said about one model. None means that it was left open.

    Attributes:
        model: the GGUF file.
        threads, threads_batch: CPU threads for one token, and for more than one.
        n_gpu_layers: layers on GPUs; -1 is all of them.
        type_k, type_v: KV cache types by ggml name ("f16", "q8_0", ...).
    """

    model: Path | None = None
    threads: int | None = None
    threads_batch: int | None = None
    n_gpu_layers: int | None = None
    type_k: str | None = None
    type_v: str | None = None


@dataclass(frozen=True, slots=True)
class Asked(AskedModel):
    """What a person said about a run. Nothing is ever written back into it: what follows from it is decided
    in `specx.engine.setup.decide`.

    Attributes:
        model: the GGUF file.
        n_ctx: tokens of context of each text; None leaves it open, 0 is what the model was trained for.
        texts: how many texts there is room for at once; None lets memory and the objective decide.
        answers: how many the process writes in all, if that is known.
        longest: the most tokens that a text of the process can have, its prompt included, if that is known.
        n_batch, n_ubatch: most tokens per libllama call and per compute graph while a prompt is read.
        flash_attn: "on", "off" or "auto".
        rpc: llama.cpp's RPC servers whose devices are used as well, "HOST:PORT" each.
        mmap, mlock: as in llama.cpp.
        packed_copy: keep weights as they are multiplied in the cache directory, where that makes starts
            faster.
        swa_full: keep the whole history of sliding-window layers.
        kernels: "auto" (whichever is measured to be the fastest), "specx", "attention" (of specx's only that)
            or "stock".
        drafter: "auto", "none", "free" (the two that follow), "suffix", "recycle", "model", or what another
            package registers.
        draft_max: most drafted tokens per step; None means the staircase decides.
        draft: of the draft model, named or found.
        adapt: let a draft head learn from what is written, while nothing is asked.
        exact: use only batch widths and orders whose logits are bit-identical.
        context_shift: forget the oldest tokens instead of stopping when the context is full.
        parse_special: what messages say may be control tokens, as it is with llama.cpp.
        store: keep and use measurements, calibrations and caches under the cache directory.
        measure: time what was never timed here, on this machine; not worth it where nothing is decoded.
        idle: there will be time for that while nobody waits (`measure_idle`), so that opening takes none.
        verbose: tell every decision.
        log: a file that llama.cpp's own messages are added to; "-" is standard error, "" none.
    """

    model: Path
    n_ctx: int | None = None
    texts: int | None = 1
    answers: int | None = None
    longest: int | None = None
    n_batch: int = 2048
    n_ubatch: int = 512
    flash_attn: str | None = None
    rpc: tuple[str, ...] = ()
    mmap: bool = True
    mlock: bool = False
    packed_copy: bool = True
    swa_full: bool = False
    kernels: str = "auto"
    drafter: str = "auto"
    draft_max: int | None = None
    draft: AskedModel = AskedModel()
    adapt: bool = False
    exact: bool = False
    context_shift: bool = False
    parse_special: bool = False
    store: bool = True
    measure: bool = True
    idle: bool = False
    verbose: bool = False
    log: str = ""


_GREEDY_BELOW = 1e-250
"""No noise overturns a difference of two logits divided by less; and far below, the quotient overflows."""

_MOST_KEPT = 2**31 - 1
"""More tokens than any vocabulary has, and the largest number that native code is told."""


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next token is chosen; the defaults are llama.cpp's.

    Applied in this order to the logits of a position: logit bias and penalties, top-k, typical-p, top-p,
    min-p, temperature. A value in parentheses switches a setting off.

    Attributes:
        seed: key of the noise; None lets specx choose one and say which.
        temperature: 0 is plain argmax, and so is what is too small to choose anything else.
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

    def __post_init__(self) -> None:
        # Values beyond these choose what the value at the limit chooses, and can be computed with.
        if not self.temperature >= _GREEDY_BELOW:
            object.__setattr__(self, "temperature", 0.0)
        object.__setattr__(self, "top_k", min(max(self.top_k, 0), _MOST_KEPT))
