"""How one model is loaded: values that were decided. Plain values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ALL_LAYERS",
    "CACHE_TYPES",
    "DEFAULT_CTX",
    "FLOAT_CACHES",
    "HEAD_HELD",
    "HEAD_READ",
    "HEAD_ROWS",
    "MAX_ROWS",
    "MAX_THREADS",
    "Load",
]

ALL_LAYERS = -1
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
FLOAT_CACHES = frozenset({"f32", "f16", "bf16"})
DEFAULT_CTX = 4096  # tokens of context where nobody asks for a number, if the model was trained for as many
HEAD_ROWS = 32  # most rows of a call of a draft head: more take memory, and are no faster
HEAD_HELD = 64  # tokens that a draft head begins with: older ones tell it little, and each takes time
HEAD_READ = 256  # the most that one trained by specx begins with: it copies from the text
MAX_ROWS = 64  # of a call that verifies drafts, over all its texts
MAX_THREADS = 512  # of llama.cpp: its GGML_MAX_N_THREADS


@dataclass(frozen=True, slots=True)
class Load:
    """How one model is loaded.

    Attributes:
        path: the GGUF file.
        threads, threads_batch: CPU threads for one token, and for more than one.
        n_ctx: tokens of context of each text, more than 0; llama.cpp rounds it up.
        texts: how many texts there is room for at once.
        n_batch, n_ubatch: most tokens per libllama call and per compute graph while a prompt is read.
        n_gpu_layers: layers on GPUs; -1 is all of them.
        offload: layers by GPU in the order of the layers, the head counting as one; None leaves their
            division to llama.cpp.
        flash_attn: "on", "off" or "auto".
        type_k, type_v: KV cache types by ggml name ("f16", "q8_0", ...).
        mmap, mlock: as in llama.cpp.
        packed_copy: keep weights as they are multiplied in the cache directory, where that makes starts
            faster.
        swa_full: keep the whole history of sliding-window layers.
        snapshots: most earlier states of the recurrent layers that are kept of a text, to go back to.
        mtp: load the layers that only draft as well.
        log: a file that llama.cpp's own messages are added to; "-" is standard error, "" none.
    """

    path: Path
    threads: int
    threads_batch: int
    n_ctx: int = DEFAULT_CTX
    texts: int = 1
    n_batch: int = 2048
    n_ubatch: int = 512
    n_gpu_layers: int = ALL_LAYERS
    offload: tuple[tuple[str, int], ...] | None = None
    flash_attn: str = "on"
    type_k: str = "f16"
    type_v: str = "f16"
    mmap: bool = True
    mlock: bool = False
    packed_copy: bool = True
    swa_full: bool = False
    snapshots: int = 0
    mtp: bool = False
    log: str = ""

    @property
    def kept_states(self) -> int:
        """Earlier states that are kept of each text: a call of many texts has fewer rows for each."""
        # llama.cpp ends the process where a graph's tokens are not more than the states and one.
        graph = min(self.n_ctx, self.n_batch, self.n_ubatch)
        return max(0, min(self.snapshots, MAX_ROWS // self.texts - 1, graph - 2))
