"""A GGUF model run by libllama: one committed sequence and token trees beyond it.

A tree is one batch over a unified KV cache. Each leaf has a sequence id, and a node carries the ids of the
leaves below it, so attention sees exactly the path to the root. Committed tokens live in the *main*
sequence; another sequence is brought up to date only when a tree needs it, and only by the range it
misses, because every sequence operation walks all cells of the cache.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Output, Progress, RowSink
from specx.backends.errors import ContextFullError, ModelError, RollbackError
from specx.backends.llama.callbacks import called_by_c
from specx.backends.llama.devices import device_pointer
from specx.backends.llama.kernels import STOCK, Kernels, enable
from specx.backends.llama.library import forget_log, lib, recent_log, set_verbose
from specx.backends.llama.vocab import LlamaVocab
from specx.backends.machine.machine import this_cpu
from specx.backends.settings import ALL_LAYERS, CACHE_TYPES, LoadSettings

__all__ = ["LlamaBackend", "check_cache_type", "decode_threads", "wanted_context"]

MAX_WIDTH = 64  # from here on llama.cpp's attention works in tiles: a step can cost less than one of 16
LARGE_VOCAB = 1 << 17  # tokens; beyond, the logits of 64 rows take too much memory
MAX_WIDTH_LARGE_VOCAB = 32
MAX_LEAVES = 8
WATCHED = 64  # tokens per call; below, asking after every operation costs more than it is worth
PROMPT_ROWS = 64  # at most this many prompt rows have their logits computed
DEFAULT_CTX = 4096
FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}


class LlamaBackend:
    """Runs one GGUF model. Implements `Backend`.

    Attributes:
        kernels: what attention is computed with from the next step of another width on; the weights stay as
            they were loaded.

    Args:
        settings: how to load it.
        progress: called with the loaded fraction, 0 to 1.
        kernels: what attention and weights are computed with.
        repack: let llama.cpp rearrange weights for this CPU (off only for builds that crash with it).

    Raises:
        ModelError: the file cannot be loaded, or there is not enough memory.
        KeyboardInterrupt: the user interrupted loading.
    """

    def __init__(
        self,
        settings: LoadSettings,
        *,
        progress: Callable[[float], None] | None = None,
        kernels: Kernels = STOCK,
        repack: bool = True,
    ) -> None:
        set_verbose(settings.verbose)
        self._lib = lib()
        self.kernels = kernels
        enable(kernels)
        self._model: Any = None
        self._ctx: Any = None
        self._model = self._load(settings, progress, repack)
        self.vocab = LlamaVocab(self._model)
        self.plain_reason = self._why_plain()
        self.n_swa: int = 0 if settings.swa_full else self._lib.llama_model_n_swa(self._model)
        # A sequence that lags behind would keep cells of the sliding window from being reused. And where all
        # widths give the same bits, chains keep the text the same to the last bit; an accepted branch would
        # leave the cells in another order, and sums of floats depend on it.
        chains = self.plain_reason or self.n_swa or kernels.attention
        self.max_leaves = 1 if chains else MAX_LEAVES
        self._ctx = self._create_context(settings)
        self._memory = self._lib.llama_get_memory(self._ctx)
        self.n_ctx: int = self._lib.llama_n_ctx(self._ctx)
        self.n_ubatch: int = self._lib.llama_n_ubatch(self._ctx)
        self._piece = min(self._lib.llama_n_batch(self._ctx), self.n_ubatch)
        # llama.cpp ends the process when a call is wider than its n_batch.
        self.max_width = 1 if self.plain_reason else min(self._widest(), self._lib.llama_n_batch(self._ctx))
        self._batch = _Batch(self._lib, self._piece, self.max_leaves)
        self._length = 0
        self._main = 0
        self._synced = [0] * self.max_leaves  # committed tokens each sequence holds
        self._pending: _Tree | None = None

    @property
    def length(self) -> int:
        """Number of committed tokens."""
        return self._length

    @property
    def n_ctx_train(self) -> int:
        """Context length the model was trained for, in tokens."""
        return int(self._lib.llama_model_n_ctx_train(self._model))

    @property
    def n_threads(self) -> int:
        """CPU threads used for decoding one token."""
        return int(self._lib.llama_n_threads(self._ctx))

    @property
    def n_threads_batch(self) -> int:
        """CPU threads used for more than one token: prompts, and drafts."""
        return int(self._lib.llama_n_threads_batch(self._ctx))

    def set_threads(self, decode: int, batch: int) -> None:
        """Use so many CPU threads for one token, and for more than one, from the next call on."""
        self._lib.llama_set_n_threads(self._ctx, decode, batch)

    @property
    def can_shift(self) -> bool:
        """Whether old tokens can be dropped from the front of the cache."""
        return bool(self._lib.llama_memory_can_shift(self._memory)) and not self.plain_reason

    def prefill(
        self, tokens: Sequence[int], *, progress: Progress | None = None, rows: RowSink | None = None
    ) -> None:
        """Commit `tokens` after the present sequence; `rows` gets the logits after the last few of them.

        Raises:
            ContextFullError: they do not fit.
            Exception: what `progress` raises; the tokens that were finished before stay committed.
        """
        self._check_idle()
        everything = np.asarray(tokens, np.int32)
        total = len(everything)
        if self._length + total > self.n_ctx:
            raise ContextFullError.of_prompt(self._length + total, self.n_ctx, self.n_ctx_train)
        done = 0
        while done < total:
            piece = everything[done : done + self._piece]
            with self._watched(progress if len(piece) >= WATCHED else None, done, total):
                self._decode_committed(piece, rows if done + len(piece) == total else None)
            done += len(piece)
            if progress is not None:
                progress(done, total)

    def forward(self, tokens: NDArray[np.int32], parents: NDArray[np.int32]) -> Output:
        """Compute a tree of tokens beyond the committed sequence, committing nothing.

        Raises:
            ContextFullError: there is no room for it.
            ValueError: it is not a tree, or wider or bushier than this backend takes.
            RuntimeError: the forward call before was not followed by `keep`.
        """
        self._check_idle()
        n = len(tokens)
        if not 1 <= n <= self.max_width or len(parents) != n:
            raise ValueError(f"a forward call takes 1 to {self.max_width} tokens and as many parents")
        if self._length + n > self.n_ctx:
            raise ContextFullError(
                f"the context of {self.n_ctx} tokens is full",
                "give it more room with -c, or use --context-shift to forget the oldest tokens",
            )
        tree = _Tree(parents, self._main, self.max_leaves)
        for seq in tree.sequences:
            self._bring_up_to_date(seq)
        self._batch.fill_tree(tokens, self._length, tree)
        self._pending = tree
        try:
            self._decode(n)
            return Output(self._logits(n))
        except BaseException:
            self._pending = None
            self._drop_uncommitted()
            raise

    def keep(self, rows: Sequence[int]) -> None:
        """Commit a path of the last forward call, root first, and forget the rest of the tree.

        Raises:
            ValueError: the rows are not a path from the root.
            RuntimeError: there was no forward call.
            RollbackError: the cache cannot forget the rest.
        """
        tree = self._pending
        if tree is None:
            raise RuntimeError("keep was called without forward")
        tree.check_path(rows)
        self._pending = None
        length = self._length + len(rows)
        if tree.height > len(rows):
            self._remove(-1, length)
        last = rows[-1]
        if tree.sequences:
            holders = tree.sequences_of(last)
            for seq in (*tree.sequences, self._main):
                shared = tree.shared_with(rows, seq)
                self._synced[seq] = self._length + shared
                if shared < len(rows):
                    self._remove(seq, self._length + shared)
            if self._main not in holders:
                self._main = holders[0]
        self._length = length
        self._synced[self._main] = length

    def reusable(self, length: int) -> int:
        """Largest length not above `length` that `rewind` can go back to."""
        length = min(length, self._length)
        if length == self._length:
            return length
        if self.plain_reason:
            return 0
        if self.n_swa:
            # The token at `length` sees n_swa tokens, itself included.
            oldest = self._lib.llama_memory_seq_pos_min(self._memory, self._main)
            if oldest > max(0, length - self.n_swa + 1):
                return 0
        return length

    def rewind(self, length: int) -> None:
        """Forget committed tokens from `length` on.

        Raises:
            RollbackError: the cache no longer holds what that needs.
        """
        self._check_idle()
        if not 0 <= length <= self._length or self.reusable(length) != length:
            raise RollbackError(
                f"the KV cache cannot go back from {self._length} to {length} tokens",
                "this is a fault in specx; --drafter none avoids it",
            )
        if length == 0:
            self._clear()
        elif length < self._length:
            self._remove(-1, length)
            self._length = length
            self._synced = [min(held, length) for held in self._synced]

    def shift(self, keep: int, discard: int) -> None:
        """Forget `discard` tokens after the first `keep` and move the rest forward.

        Raises:
            ContextFullError: this model's cache cannot be shifted.
            ValueError: there are not so many tokens.
        """
        self._check_idle()
        if keep < 0 or discard < 0 or keep + discard > self._length:
            raise ValueError(f"{discard} tokens after {keep} cannot be forgotten: there are {self._length}")
        if not self.can_shift:
            raise ContextFullError(
                f"the context of {self.n_ctx} tokens is full and this model cannot shift it",
                "give it more room with -c",
            )
        for seq in range(self.max_leaves):
            if seq != self._main:
                self._remove(seq, 0)
                self._synced[seq] = 0
        self._remove(self._main, keep, keep + discard)
        self._lib.llama_memory_seq_add(self._memory, self._main, keep + discard, -1, -discard)
        self._length -= discard
        self._synced[self._main] = self._length

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        if self._ctx is not None:
            self._lib.llama_free(self._ctx)
            self._ctx = None
        if self._model is not None:
            self._lib.llama_model_free(self._model)
            self._model = None

    def __del__(self) -> None:
        if hasattr(self, "_ctx"):
            self.close()

    @contextmanager
    def _watched(self, progress: Progress | None, done: int, total: int) -> Iterator[None]:
        """Call `progress` after every operation of llama.cpp's as well: raising there ends a call that takes
        seconds. Only the CPU backend asks."""
        if progress is None:
            yield
            return
        raised: list[BaseException] = []

        @called_by_c
        def on_operation(_data: Any) -> bool:
            try:
                progress(done, total)
            except BaseException as error:  # noqa: BLE001 -- ctypes would swallow it; raised again below
                raised.append(error)
            return bool(raised)

        callback = self._lib.ggml_abort_callback(on_operation)
        self._lib.llama_set_abort_callback(self._ctx, callback, None)
        try:
            yield
        except ModelError:
            if raised:
                raise raised[0] from None
            raise
        finally:
            self._lib.llama_set_abort_callback(self._ctx, self._lib.ggml_abort_callback(), None)

    def _decode_committed(self, piece: NDArray[np.int32], rows: RowSink | None) -> None:
        count = min(len(piece), PROMPT_ROWS) if rows is not None else 0
        self._batch.fill_chain(piece, self._length, self._main, count)
        try:
            self._decode(len(piece))
        except BaseException:
            self._drop_uncommitted()
            raise
        self._length += len(piece)
        self._synced[self._main] = self._length
        if rows is not None and count:
            rows(piece[-count:], self._logits(count))

    def _decode(self, n: int) -> None:
        enable(self.kernels)
        code = self._lib.llama_decode(self._ctx, self._batch.sized(n))
        if code == 0:
            return
        if code == 1:
            raise ContextFullError(
                f"no room in the KV cache for {n} more tokens after {self._length}",
                "give it more room with -c",
            )
        raise ModelError(
            f"llama.cpp could not compute a batch of {n} tokens (code {code})",
            "run again with --verbose to see its messages",
        )

    def _logits(self, n: int) -> NDArray[np.float32]:
        pointer = self._lib.llama_get_logits(self._ctx)
        size = self.vocab.size
        rows = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * (n * size))).contents
        logits: NDArray[np.float32] = np.ctypeslib.as_array(rows).reshape(n, size)
        return logits

    def _bring_up_to_date(self, seq: int) -> None:
        held = self._synced[seq]
        if held < self._length:
            self._lib.llama_memory_seq_cp(self._memory, self._main, seq, held, self._length)
            self._synced[seq] = self._length

    def _check_idle(self) -> None:
        if self._pending is not None:
            raise RuntimeError("the last forward call was not followed by keep")

    def _clear(self) -> None:
        self._lib.llama_memory_clear(self._memory, False)
        self._length = self._main = 0
        self._synced = [0] * self.max_leaves

    def _drop_uncommitted(self) -> None:
        """Remove what a call that failed left beyond the committed tokens; all tokens, if that is refused."""
        if not self._lib.llama_memory_seq_rm(self._memory, -1, self._length, -1):
            self._clear()

    def _remove(self, seq: int, start: int, end: int = -1) -> None:
        if not self._lib.llama_memory_seq_rm(self._memory, seq, start, end):
            raise RollbackError(
                f"the KV cache could not be cut back to {start} tokens",
                "this model's cache cannot take tokens back; use --drafter none",
            )

    def _widest(self) -> int:
        return MAX_WIDTH if self.vocab.size <= LARGE_VOCAB else MAX_WIDTH_LARGE_VOCAB

    def _why_plain(self) -> str | None:
        if self._lib.llama_model_is_recurrent(self._model):
            return "its recurrent state cannot be taken back"
        if self._lib.llama_model_is_hybrid(self._model):
            return "part of its state is recurrent and cannot be taken back"
        return None

    def _load(self, settings: LoadSettings, progress: Callable[[float], None] | None, repack: bool) -> Any:
        raised: list[BaseException] = []

        @called_by_c
        def on_progress(fraction: float, _data: Any) -> bool:
            try:
                if progress is not None:
                    progress(fraction)
            except BaseException as error:  # noqa: BLE001 -- ctypes would swallow it; raised again below
                raised.append(error)
            return not raised

        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = ALL_LAYERS if settings.n_gpu_layers is None else settings.n_gpu_layers
        kept = _divide(self._lib, params, settings.offload)
        params.load_mode = _load_mode(self._lib, settings)
        params.use_extra_bufts = repack
        callback = self._lib.llama_progress_callback(on_progress)
        params.progress_callback = callback
        forget_log()
        model = self._lib.llama_model_load_from_file(os.fsencode(settings.model), params)
        del kept
        if raised:
            if model:
                self._lib.llama_model_free(model)
            raise raised[0]
        if not model:
            raise _load_error(settings)
        if not self._lib.llama_model_has_decoder(model) or self._lib.llama_model_has_encoder(model):
            self._lib.llama_model_free(model)
            raise _not_a_decoder(settings)
        return model

    def _create_context(self, settings: LoadSettings) -> Any:
        params = self._lib.llama_context_default_params()
        wanted = wanted_context(settings, self.n_ctx_train)
        params.n_ctx = wanted
        params.n_batch = max(1, min(settings.n_batch, wanted))
        params.n_ubatch = max(1, min(settings.n_ubatch, settings.n_batch))
        params.n_seq_max = self.max_leaves
        params.kv_unified = True
        params.n_outputs_max = max(MAX_WIDTH, PROMPT_ROWS)
        params.n_threads = decode_threads(settings)
        params.n_threads_batch = settings.threads_batch or decode_threads(settings)
        # "auto" looks at which device computes attention, and gives it up for any but the layer's own.
        auto = "on" if self.kernels.attention else "auto"
        params.flash_attn_type = FLASH_ATTN[auto if settings.flash_attn == "auto" else settings.flash_attn]
        params.type_k = _cache_type(self._lib, settings.type_k)
        params.type_v = _cache_type(self._lib, settings.type_v)
        params.swa_full = settings.swa_full
        params.no_perf = True
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            reason = (recent_log("error") or recent_log("fail") or ["no reason given"])[-1]
            self.close()
            raise ModelError(
                f"no context of {wanted} tokens could be created for {settings.model.name}: {reason.strip()}",
                "try a smaller context (-c 2048) or another KV cache type (-ctk f16 -ctv f16)",
            )
        if not self._lib.llama_get_memory(context):
            self._lib.llama_free(context)
            self.close()
            raise _not_a_decoder(settings)
        return context


class _Tree:
    """Which sequences the rows of one batch belong to."""

    def __init__(self, parents: NDArray[np.int32], main: int, max_leaves: int) -> None:
        self.parents: list[int] = parents.tolist()
        n = len(self.parents)
        if self.parents[0] != -1:
            raise ValueError("row 0 is the root; its parent is -1")
        depths = [0] * n
        inner = [False] * n
        for row in range(1, n):
            parent = self.parents[row]
            if not 0 <= parent < row:
                raise ValueError(f"row {row} has parent {parent}; parents come first")
            depths[row] = depths[parent] + 1
            inner[parent] = True
        self.depths = depths
        self.height = max(depths) + 1
        leaves = [row for row in range(n) if not inner[row]]
        if len(leaves) > max_leaves:
            raise ValueError(f"a tree with {len(leaves)} leaves; at most {max_leaves} are possible")
        self.main = main
        self.sequences: tuple[int, ...] = ()
        self.members: list[list[int]] = []
        if len(leaves) > 1:
            others = [seq for seq in range(max_leaves) if seq != main]
            self.sequences = tuple(others[: len(leaves) - 1])
            self.members = self._assign(leaves)

    def _assign(self, leaves: list[int]) -> list[list[int]]:
        members: list[list[int]] = [[] for _ in self.parents]
        for leaf, seq in zip(leaves, (self.main, *self.sequences), strict=True):
            row = leaf
            while row >= 0:
                members[row].append(seq)
                row = self.parents[row]
        return members

    def check_path(self, rows: Sequence[int]) -> None:
        """Raise ValueError unless `rows` is a path from the root."""
        expected = -1
        for row in rows:
            if not 0 <= row < len(self.parents) or self.parents[row] != expected:
                raise ValueError(f"{list(rows)} is not a path from the root")
            expected = row
        if not rows:
            raise ValueError("at least the root is kept")

    def sequences_of(self, row: int) -> list[int]:
        """The sequences that hold `row`."""
        return self.members[row] if self.members else [self.main]

    def shared_with(self, rows: Sequence[int], seq: int) -> int:
        """How many of the path's rows sequence `seq` holds."""
        return sum(seq in self.members[row] for row in rows)


class _Batch:
    """A llama_batch over NumPy buffers that live as long as it does."""

    def __init__(self, module: Any, capacity: int, max_leaves: int) -> None:
        capacity = max(capacity, MAX_WIDTH)
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self.counts = np.ones(capacity, np.int32)
        self.members = np.zeros((capacity, max_leaves), np.int32)
        self.wanted = np.zeros(capacity, np.int8)
        rows = self.members.ctypes.data + np.arange(capacity, dtype=np.uintp) * self.members.strides[0]
        self._rows = rows
        self._struct = module.llama_batch()
        self._point("token", self.tokens, ctypes.c_int32)
        self._point("pos", self.positions, ctypes.c_int32)
        self._point("n_seq_id", self.counts, ctypes.c_int32)
        self._point("logits", self.wanted, ctypes.c_int8)
        pointer = ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
        self._struct.seq_id = ctypes.cast(rows.ctypes.data, pointer)

    def _point(self, name: str, array: NDArray[Any], kind: Any) -> None:
        setattr(self._struct, name, ctypes.cast(array.ctypes.data, ctypes.POINTER(kind)))

    def sized(self, n: int) -> Any:
        """The C struct, for its first `n` rows."""
        self._struct.n_tokens = n
        return self._struct

    def fill_chain(self, tokens: NDArray[np.int32], start: int, seq: int, rows: int) -> None:
        """Consecutive tokens of one sequence; the last `rows` have their logits computed."""
        n = len(tokens)
        self.tokens[:n] = tokens
        self.positions[:n] = np.arange(start, start + n)
        self.counts[:n] = 1
        self.members[:n, 0] = seq
        self.wanted[: n - rows] = 0
        self.wanted[n - rows : n] = 1

    def fill_tree(self, tokens: NDArray[np.int32], start: int, tree: _Tree) -> None:
        """A tree whose root is at position `start`; every row has its logits computed."""
        n = len(tokens)
        if not tree.sequences:
            self.fill_chain(tokens, start, tree.main, n)
            return
        self.tokens[:n] = tokens
        self.positions[:n] = tree.depths
        self.positions[:n] += start
        for row, members in enumerate(tree.members):
            self.counts[row] = len(members)
            self.members[row, : len(members)] = members
        self.wanted[:n] = 1


def decode_threads(settings: LoadSettings) -> int:
    """CPU threads for decoding one token: what the settings say, or else one for each usable core."""
    return settings.threads or this_cpu().default_threads


def _divide(module: Any, params: Any, offload: tuple[tuple[str, int], ...] | None) -> tuple[Any, ...]:
    """Let the last layers go to the GPUs of `offload`; returns what must live until the model is loaded."""
    if offload is None:
        return ()
    params.n_gpu_layers = sum(count for _, count in offload)
    if not offload:
        return ()
    pointers = [device_pointer(name) for name, _ in offload]
    devices = (ctypes.c_void_p * (len(offload) + 1))(*pointers, None)
    # A layer goes to the first device whose share, added to those before, is larger than its place.
    shares = (ctypes.c_float * module.llama_max_devices())(*(float(count) for _, count in offload))
    params.devices = ctypes.cast(devices, ctypes.c_void_p)
    params.tensor_split = shares
    return devices, shares


def wanted_context(settings: LoadSettings, trained: int) -> int:
    """Tokens of context that `settings` ask for, of a model trained for `trained`; llama.cpp rounds it up."""
    if settings.n_ctx is None:
        return min(DEFAULT_CTX, trained or DEFAULT_CTX)
    return settings.n_ctx or trained


def check_cache_type(name: str) -> None:
    """Raise ModelError unless keys or values can be kept as the ggml type `name`."""
    if name not in CACHE_TYPES:
        raise ModelError(f"unknown KV cache type {name!r}", f"use one of {', '.join(CACHE_TYPES)}")


def _cache_type(module: Any, name: str) -> int:
    check_cache_type(name)
    return int(getattr(module, f"GGML_TYPE_{name.upper()}"))


def _load_mode(module: Any, settings: LoadSettings) -> int:
    if settings.mlock:
        return int(module.LLAMA_LOAD_MODE_MLOCK)
    return int(module.LLAMA_LOAD_MODE_MMAP if settings.mmap else module.LLAMA_LOAD_MODE_NONE)


def _load_error(settings: LoadSettings) -> ModelError:
    name = settings.model.name
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
    reason = (recent_log("error") or ["no reason given"])[-1].strip()
    return ModelError(
        f"llama.cpp could not load {name}: {reason}", "run again with --verbose to see its messages"
    )


def _not_a_decoder(settings: LoadSettings) -> ModelError:
    return ModelError(
        f"{settings.model.name} is not a decoder-only language model",
        "specx runs models that continue text; encoders, embedding and diffusion models are not supported",
    )
