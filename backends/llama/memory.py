"""What a run will take of the memory, told from a model's header before anything is loaded.

The sizes follow llama.cpp's: weights as they are multiplied, the cache (cache_size.py), the buffer its graphs
are computed in, logits. How they come together at the peak was measured; tests hold it to real runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from specx.backends.gguf.cache_size import cells, layer_cache_bytes, window_cells, windowed_layers
from specx.backends.gguf.file import GGUFInfo, Tensor, type_bytes
from specx.backends.gguf.heads import HEADS
from specx.backends.gguf.mtp import mtp_layer
from specx.backends.gguf.vocab_match import FEW
from specx.backends.llama.kernels import SPECX, STOCK, Kernels, library
from specx.backends.llama.params import MAX_WIDTH, PROMPT_ROWS, check_cache_type
from specx.backends.llama.state_memory import kept_states, state_compute_bytes, state_copies
from specx.backends.settings import DEFAULT_CTX, HEAD_READ, HEAD_ROWS, Load

__all__ = [
    "NOTHING", "MemoryNeed", "cache_bytes", "predict_memory", "repacked_types", "translation_bytes",
    "wanted_context",
]  # fmt: skip

MIB = 1 << 20
PROCESS_BYTES = 53 * MIB
"""Python, its modules and llama.cpp's libraries, and bookkeeping of graphs: what no buffer accounts for."""
DRIVER_BYTES = 180 * MIB
"""Main memory that CUDA takes in a process, wherever the layers are."""
GPU_BYTES = 76 * MIB
"""Of each GPU: what its driver loads of llama.cpp's kernels when they are first used, and their scratch."""
TOKEN_BYTES, MERGED_TOKEN_BYTES = 165, 350
"""llama.cpp's tables for each token of the vocabulary: with scores, and with merges (BPE)."""
PIECE_BYTES = 80
"""Of each token of two vocabularies that are translated: what it writes, and where that is found."""
ROW_BYTES, CONTEXT_BYTES, TEXT_BYTES = 65, 72 << 16, 100
"""The drafter's tables: recycled continuations of a token, those of pairs, and a token of searched text."""
HISTORY_TOKENS = 1 << 16  # of earlier answers, if they are kept
LOOKUP_BYTES = 32 << 10
"""Resident after the first look at a row of the embedding: 64 KiB around it, shared by neighbours."""
PACKED_ROWS = 16  # specx's kernels keep rows in groups of so many
PACKED = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"})
COPIED = frozenset({"F16", "BF16"})  # by specx's kernels, as they are, if they are not weights of experts
AMX_TYPES = {
    "Q4_0": 1.0,
    "Q4_1": 1.0,
    "Q8_0": 38 / 34,
    "Q4_K": 148 / 144,
    "Q5_K": 180 / 176,
    "Q6_K": 1.0,
    "IQ4_XS": 138 / 136,
    "F16": 1.0,
}
"""What llama.cpp's AMX kernels rearrange: bytes of a block there by those in the file."""
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
LOOKED_UP = frozenset(
    {EMBEDDING, "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"}
)
NOTHING: Mapping[str, float] = MappingProxyType({})
LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that a run takes.

    Attributes:
        n_ctx: tokens of context it is for.
        weights: of the model, as they are multiplied.
        kv: the cache of keys and values, and recurrent states.
        compute: the buffer that graphs are computed in.
        logits: of the rows that are wanted at once.
        drafter: tables and texts that drafts come from.
        draft: a second model that drafts, with everything that is its own.
        base: the process: Python, libraries, the vocabulary.
        repack: pages of the model file that are resident beside rearranged weights, or only while it is
            loaded. The system takes them back when it needs memory.
        mapped: of the weights, pages of the model file that are used where they are. The system can drop
            those too, but every step reads them again.
        locked: nothing may be dropped (--mlock).
        gpu_weights, gpu_kv, gpu_compute: the same on GPUs, all together.
    """

    n_ctx: int
    weights: int
    kv: int
    compute: int
    logits: int
    drafter: int
    draft: int
    base: int
    repack: int
    mapped: int = 0
    locked: bool = False
    gpu_weights: int = 0
    gpu_kv: int = 0
    gpu_compute: int = 0

    @property
    def total(self) -> int:
        """Main memory that is resident at the peak, if nobody else wants it."""
        return self.working + self.repack

    @property
    def working(self) -> int:
        """Main memory that is in use all the time: with less, steps wait for the disk."""
        parts = (self.weights, self.kv, self.compute, self.logits, self.drafter, self.draft, self.base)
        return sum(parts)

    @property
    def required(self) -> int:
        """Main memory that the system cannot take back: with less, it ends a process."""
        return self.total if self.locked else self.working - self.mapped

    @property
    def gpu(self) -> int:
        """Memory of GPUs."""
        return self.gpu_weights + self.gpu_kv + self.gpu_compute

    def to_json(self) -> dict[str, Any]:
        """A plain value for `--json`."""
        return {**asdict(self), "total": self.total, "working": self.working, "required": self.required}


def predict_memory(
    info: GGUFInfo,
    load: Load,
    *,
    kernels: Kernels | None = None,
    repacked: Mapping[str, float] = NOTHING,
    gpus: int = 0,
    drafting: bool = True,
    history: bool = True,
    draft: tuple[GGUFInfo, Load] | None = None,
) -> MemoryNeed:
    """What loading `info` as `load` says, reading prompts that fill the context, and decoding take.

    Args:
        info: the header of the model.
        load: how it is loaded; the file it names is not looked at.
        kernels: what multiplies; specx's by default, where there are any.
        repacked: what llama.cpp rearranges itself (`repacked_types`).
        gpus: how many GPUs with memory of their own layers go to.
        drafting: whether tokens are drafted.
        history: whether drafts come from earlier answers as well.
        draft: a second model that drafts, and how it is loaded.

    Raises:
        ModelError: a cache cannot have the type that it is to have.
    """
    kernels = kernels or (SPECX if library() else STOCK)
    n_ubatch = _ubatch(load)
    first = _first_offloaded(info, load) if gpus else info.blocks + 1
    weights = _Weights(info, load, kernels, repacked, first)
    cache = cache_bytes(info, load)
    compute = _compute_bytes(info, load, n_ubatch)
    drafting = drafting and info.plain_reason is None
    rows = max(PROMPT_ROWS, MAX_WIDTH) if drafting else 1
    need = MemoryNeed(
        n_ctx=load.n_ctx,
        weights=weights.working,
        kv=sum(cache[:first]) + state_copies(info, load),
        compute=compute if first > 0 else 0,
        logits=rows * info.head_rows * 4,
        drafter=_drafter_bytes(info, load, history=history) if drafting else 0,
        draft=_mtp_bytes(info, load, n_ubatch) if load.mtp else 0,
        base=_process_bytes(gpus) + _vocabulary_bytes(info),
        repack=0,
        mapped=weights.mapped,
        locked=load.mlock,
        gpu_weights=weights.gpu,
        gpu_kv=sum(cache[first:]),
        gpu_compute=(compute + GPU_BYTES) * gpus if first <= info.blocks else 0,
    )
    need = replace(need, repack=weights.repack(need))
    if draft is None:
        return need
    other, its = draft
    alone = predict_memory(other, its, kernels=kernels, repacked=repacked, gpus=gpus, drafting=False)
    return _with_draft(need, _as_draft(alone, info, other, its, n_ubatch), _process_bytes(gpus))


def _as_draft(
    need: MemoryNeed, target: GGUFInfo, draft: GGUFInfo, load: Load, target_rows: int
) -> MemoryNeed:
    """What a draft model needs that alone would need `need`; a call of its target has so many rows."""
    if draft.architecture in HEADS:
        return replace(need, logits=_head_bytes(draft, load, max(target_rows, MAX_WIDTH)))
    if not _another_vocabulary(target, draft):
        return need
    tables = translation_bytes(target, draft)  # made once the file is loaded, and its pages are given back
    return replace(need, base=need.base + tables, repack=max(0, need.repack - tables))


def wanted_context(asked: int | None, trained: int) -> int:
    """Tokens of context, as llama.cpp rounds them up: those `asked` for, 0 being what the model was `trained`
    for, and None that or the usual number, whichever is less."""
    if asked is None:
        return cells(min(DEFAULT_CTX, trained or DEFAULT_CTX))
    return cells(asked or trained or DEFAULT_CTX)


def repacked_types(system_info: str) -> dict[str, float]:
    """Types of weights that llama.cpp rearranges for this CPU, and how many times as large it makes them.

    Args:
        system_info: llama.cpp's line about itself ("CPU : AVX2 = 1 | ...").
    """
    found: dict[str, float] = {}
    if "REPACK = 1" in system_info:
        if "AVX2 = 1" in system_info:
            found |= dict.fromkeys(("Q4_0", "Q4_K", "IQ4_NL", "MXFP4"), 1.0)
        if "AVX512 = 1" in system_info:
            found |= {"Q2_K": 1.0}
        if "DOTPROD = 1" in system_info or "MATMUL_INT8 = 1" in system_info:
            found |= dict.fromkeys(("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"), 1.0)
    return found | AMX_TYPES if "AMX_INT8 = 1" in system_info else found


class _Weights:
    """Where the bytes of the weights are.

    Attributes:
        working: in main memory, as they are multiplied or looked up.
        mapped: of those, pages of the file.
        gpu: on GPUs.
        cold: pages of the file from which llama.cpp copied weights.
        largest: the largest tensor that is copied out of the file.
        appended: what lies behind the tensors; llama.cpp gives its pages back once it has loaded them.
    """

    def __init__(
        self,
        info: GGUFInfo,
        load: Load,
        kernels: Kernels,
        repacked: Mapping[str, float],
        first: int,
    ) -> None:
        self.size = info.size
        self.ours = kernels.weights
        self.repacked = repacked
        self.in_file = load.mmap or load.mlock
        self.working = self.mapped = self.gpu = self.cold = self.largest = self.appended = 0
        tied = not any(tensor.name == HEAD for tensor in info.tensors)
        left_out = -1 if load.mtp else mtp_layer(info)
        for tensor in info.tensors:
            in_place = False
            if 0 <= left_out <= _layer(tensor, info) < info.blocks:
                continue
            if tensor.name not in LOOKED_UP:
                self._add_multiplied(tensor, offloaded=_layer(tensor, info) >= first)
                continue
            if tied and tensor.name == EMBEDDING:
                in_place = self._add_multiplied(tensor, offloaded=info.blocks >= first)
            if in_place:
                continue
            if info.trim is not None and tensor.name == EMBEDDING:  # it is looked up behind the tensors
                self.working += 0 if self.in_file else tensor.nbytes
            else:
                self._add_in_place(_looked_up(tensor.nbytes, load) if self.in_file else tensor.nbytes)
        if info.trim is not None:
            self.appended = info.vocabulary_size * info.trim.row_bytes
            resident = _looked_up(self.appended, load)
            self.working, self.mapped = self.working + resident, self.mapped + resident

    def repack(self, need: MemoryNeed) -> int:
        """Pages of the file beyond the ones in use, for good or while it is loaded.

        llama.cpp makes the whole file resident at first, and keeps it so, but for what specx's kernels give
        back once they have copied it.
        """
        if not self.in_file:
            return max(0, need.base + self.working + self.largest - need.working)
        loading = need.base + self.size + self.largest
        kept = self.cold if self.ours else self.size - self.appended - self.mapped
        return max(0, kept, loading - need.working)

    def _add_multiplied(self, tensor: Tensor, *, offloaded: bool) -> bool:
        """Count a matrix; whether it is used where it lies in the file."""
        ours = self._is_ours(tensor)
        if offloaded:
            self.gpu += tensor.nbytes
        elif ours:
            self.working += _packed_bytes(tensor)
        elif tensor.type in self.repacked and len(tensor.shape) > 1:
            self.working += round(tensor.nbytes * self.repacked[tensor.type])
            self.cold += tensor.nbytes
        else:
            self._add_in_place(tensor.nbytes)
            return True
        self.largest = max(self.largest, tensor.nbytes)
        return False

    def _is_ours(self, tensor: Tensor) -> bool:
        """Whether specx's kernels keep it in a buffer of their own."""
        dimensions = len(tensor.shape)
        packed = tensor.type in PACKED and dimensions > 1
        return self.ours and (packed or (tensor.type in COPIED and dimensions == 2))

    def _add_in_place(self, nbytes: int) -> None:
        self.working += nbytes
        if self.in_file:
            self.mapped += nbytes


def _looked_up(nbytes: int, load: Load) -> int:
    """Of a table of `nbytes`, the rows of the tokens that occur: 8 n^0.58 different ones in n of text or code
    (Heaps' law)."""
    tokens = float(load.texts * load.n_ctx)
    rows: int = round(8 * tokens**0.58)
    return min(nbytes, rows * LOOKUP_BYTES)


def _packed_bytes(tensor: Tensor) -> int:
    if tensor.type not in PACKED:
        return tensor.nbytes
    rows = tensor.shape[1]
    return tensor.nbytes * (-(-rows // PACKED_ROWS) * PACKED_ROWS) // rows


def _layer(tensor: Tensor, info: GGUFInfo) -> int:
    """Index of the layer a tensor belongs to: the head comes last; -1 for what stays in main memory."""
    if match := LAYER.match(tensor.name):
        return int(match[1])
    return info.blocks if tensor.name.startswith("output") else -1


def _first_offloaded(info: GGUFInfo, load: Load) -> int:
    """Index of the first layer on a GPU: the last ones are offloaded, the head counting as the very last."""
    wanted = load.n_gpu_layers
    if load.offload is not None:
        wanted = sum(count for _, count in load.offload)
    return 0 if wanted < 0 else max(0, info.blocks + 1 - wanted)


def _ubatch(load: Load) -> int:
    return max(1, min(load.n_ctx, load.n_batch, load.n_ubatch))


def cache_bytes(info: GGUFInfo, load: Load) -> tuple[int, ...]:
    """Bytes (layers,) of the caches of all texts that `info` has room for when it is loaded as `load` says.

    Raises:
        ModelError: a cache cannot have the type that it is to have.
    """
    for name in (load.type_k, load.type_v):
        check_cache_type(name)
    layers = layer_cache_bytes(
        info,
        load.n_ctx,
        type_k=load.type_k,
        type_v=load.type_v,
        n_ubatch=_ubatch(load),
        swa_full=load.swa_full,
        flash_attn=load.flash_attn != "off",
        states=1 + kept_states(info, load),
    )
    return tuple(load.texts * nbytes for nbytes in layers)


def _compute_bytes(info: GGUFInfo, load: Load, n_ubatch: int) -> int:
    """The buffer for the graph of `n_ubatch` tokens: what lives at its widest moment, in a feed-forward part,
    in attention or in the head. Derived from what llama.cpp reports for models of six shapes."""
    flash = load.flash_attn != "off"
    everything, windowed = cells(load.n_ctx), windowed_layers(info)
    masked = 0 if info.state == "recurrent" else everything
    if windowed:
        masked += everything if load.swa_full else window_cells(info, load.n_ctx, n_ubatch)
    width, queries = info.embedding_length, info.heads * info.key_length
    keys = max(info.kv_heads, default=0) * info.key_length
    inner = max(info.feed_forward_length, 2 * info.integer("ssm.inner_size"))
    hidden, outputs = inner, width
    if info.experts_used:
        hidden = (info.integer("expert_feed_forward_length") or inner) * info.experts_used
        outputs = width * info.experts_used
    row = max(
        3 * max(inner, hidden) + 3 * width + queries,
        hidden + 2 * outputs + 3 * width,
        0 if flash else everything * info.heads + 3 * width + 2 * queries + 2 * keys,
    )
    mask = n_ubatch * masked * (2 if flash else 4)
    layers = mask + max(n_ubatch * 4 * row, state_compute_bytes(info, load, n_ubatch))
    rows = min(n_ubatch, max(MAX_WIDTH, PROMPT_ROWS))
    return max(layers, rows * 4 * (info.head_rows + 2 * width))


def _drafter_bytes(info: GGUFInfo, load: Load, *, history: bool) -> int:
    text = load.texts * load.n_ctx + (HISTORY_TOKENS if history else 0)
    return info.vocabulary_size * ROW_BYTES + CONTEXT_BYTES + text * TEXT_BYTES


def _head_bytes(head: GGUFInfo, load: Load, target_rows: int) -> int:
    """What a draft head gives and is given: logits of all rows of a call, what enters the target's layers in
    a call and of the tokens that wait, and the states of all tokens."""
    layers = head.metadata.get(f"{head.architecture}.target_layers")
    read = len(layers) if isinstance(layers, tuple) else 1
    read *= head.integer("target_hidden_size") or head.embedding_length
    states = load.texts * (HEAD_READ * read + load.n_ctx * head.embedding_length)
    return 4 * (HEAD_ROWS * head.vocabulary_size + target_rows * read + states)


def _mtp_bytes(info: GGUFInfo, load: Load, n_ubatch: int) -> int:
    """What layers that only draft take beside their weights: keys and values, a buffer in which every row of
    a call is scored, and a row of what the last layer hands on for each of a call of the target."""
    heads = max(info.kv_heads, default=0)
    keys, values = heads * info.key_length, heads * info.value_length
    row = type_bytes(load.type_k, keys) + type_bytes(load.type_v, values)
    scores = HEAD_ROWS * info.vocabulary_size * 4
    graph = _compute_bytes(info, replace(load, snapshots=0, texts=1), HEAD_ROWS)
    handed = max(n_ubatch, MAX_WIDTH) * info.embedding_length * 4
    return load.texts * cells(load.n_ctx) * row + scores + graph + handed


def translation_bytes(target: GGUFInfo, draft: GGUFInfo) -> int:
    """What drafting through another vocabulary takes beside both models: texts of all tokens, and the
    tokenizer of a trimmed draft model, which is loaded without it."""
    own = draft.vocabulary_size * TOKEN_BYTES if draft.trim is not None else 0
    return (target.vocabulary_size + draft.vocabulary_size) * PIECE_BYTES + own


def _another_vocabulary(target: GGUFInfo, draft: GGUFInfo) -> bool:
    """Whether the vocabularies differ, as far as headers tell."""
    alike = (target.tokenizer, target.pre_tokenizer) == (draft.tokenizer, draft.pre_tokenizer)
    return not alike or abs(target.vocabulary_size - draft.vocabulary_size) > FEW * target.vocabulary_size


def _vocabulary_bytes(info: GGUFInfo) -> int:
    if info.trim is not None or info.architecture in HEADS:  # asked for only where it is translated
        return 0
    return info.vocabulary_size * (MERGED_TOKEN_BYTES if info.tokenizer == "gpt2" else TOKEN_BYTES)


def _process_bytes(gpus: int) -> int:
    return PROCESS_BYTES + (DRIVER_BYTES if gpus else 0)


def _with_draft(need: MemoryNeed, draft: MemoryNeed, process: int) -> MemoryNeed:
    """Both models in one process, which takes `process` bytes itself."""
    return replace(
        need,
        draft=need.draft + draft.working - process,
        repack=need.repack + draft.repack,
        mapped=need.mapped + draft.mapped,
        gpu_weights=need.gpu_weights + draft.gpu_weights,
        gpu_kv=need.gpu_kv + draft.gpu_kv,
        gpu_compute=need.gpu_compute + draft.gpu_compute,
    )
