"""A GGUF model run by libllama: weights that several texts share, and token trees beyond each of them.

Where texts are computed by specx's kernels, each has a *stream* of the KV cache to itself, whose rows are
then the same to the last bit in any company. Elsewhere they share the cells of one cache, where a tree may
branch and texts may take steps of different widths. A tree of the only text may branch everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Facts, Output, Progress, Tree, Want
from specx.backends.errors import ContextFullError, ModelError
from specx.backends.gguf.cache_size import cells
from specx.backends.gguf.file import HYBRID, RECURRENT
from specx.backends.llama.batch import Batch
from specx.backends.llama.cache import LlamaCache
from specx.backends.llama.callbacks import interruptible
from specx.backends.llama.context_rows import context_rows
from specx.backends.llama.devices import on_gpu
from specx.backends.llama.extraction import Extraction, extraction_of
from specx.backends.llama.kernels import ATTENTION_TYPES, STOCK, Kernels, enable
from specx.backends.llama.libllama import computing_here, floats_at, lib, set_log
from specx.backends.llama.packed import PackedCopy
from specx.backends.llama.params import (
    MAX_WIDTH,
    PROMPT_ROWS,
    create_context,
    load_weights,
    read_architecture,
    sequences_per_text,
)
from specx.backends.llama.states import States
from specx.backends.llama.trimmed import EmbeddingTable, trimmed_file
from specx.backends.llama.vocab import LlamaVocab, load_vocabulary
from specx.backends.settings import Load

__all__ = ["LlamaModel"]

LARGE_VOCAB = 1 << 17  # tokens; beyond, the logits of 64 rows take too much memory
MAX_WIDTH_LARGE_VOCAB = 32
MAX_LEAVES = 8
SETTLES_ON_GPU = 3  # CUDA runs the first step of a width as it is, records the second, and repeats that
COPIES = 64  # a stream is copied as fast as a part of so many of its tokens is read, or faster
WHOLE_ONLY = frozenset({"deepseek4"})  # architectures whose state of a part of a text cannot be copied
NO_MEMORY = -2  # of llama_decode
FILLER = 0  # token of the rows that fill up a text which takes no part in a step


class LlamaModel:
    """Runs one GGUF model. Implements `Model`.

    Attributes:
        facts: as in `Model`.
        trimmed: the header of a trimmed model, None of a whole one.
        kernels: what attention is computed with from the next step of another width on; the weights stay as
            they were loaded.

    Args:
        load: how to load it.
        progress: called with the loaded fraction, 0 to 1.
        kernels: what attention and weights are computed with.
        repack: let llama.cpp rearrange weights for this CPU (off only for builds that crash with it).
        packed: the copy of specx's packed weights on disk, if it may have one.

    Raises:
        ModelError: the file cannot be loaded, or there is not enough memory.
        KeyboardInterrupt: the user interrupted loading.
    """

    def __init__(
        self,
        load: Load,
        *,
        progress: Callable[[float], None] | None = None,
        kernels: Kernels = STOCK,
        repack: bool = True,
        packed: PackedCopy | None = None,
    ) -> None:
        set_log(load.log)
        self._lib = lib()
        self.kernels = kernels
        enable(kernels)
        self._ctx: Any = None
        self._model: Any = None
        self._names = ExitStack()  # keeps the vocabulary of a trimmed model loaded
        self._extracting = False
        self._caches: list[LlamaCache | None] = []
        self.trimmed = trimmed = trimmed_file(load.path)
        table = EmbeddingTable(trimmed) if trimmed is not None else None
        self._model = load_weights(self._lib, load, progress, repack=repack, trimmed=trimmed, packed=packed)
        tokens = LlamaVocab(self._model)  # unnamed ones, if it is trimmed
        self._vocab = tokens if trimmed is None else None
        self._path, self._columns = load.path, tokens.size
        self._recurrent = self._lib.llama_model_is_recurrent(self._model)
        self._stateful = self._recurrent or self._lib.llama_model_is_hybrid(self._model)
        self.n_swa: int = 0 if load.swa_full else self._lib.llama_model_n_swa(self._model)
        streams = load.texts > 1 and kernels.attention
        # A sequence that lags behind would keep cells of the sliding window from being reused, and a stream
        # has one sequence only.
        leaves = 1 if self._stateful or self.n_swa or streams else MAX_LEAVES
        computed = load.flash_attn != "off" and {load.type_k, load.type_v} <= ATTENTION_TYPES
        self.in_order = kernels.attention and computed
        architecture = read_architecture(self._lib, self._model)
        try:
            leaves = min(leaves, sequences_per_text(self._lib, load.texts))
            whole = trimmed is None
            self._inputs = extraction_of(self._model, architecture, on_gpu=on_gpu(load)) if whole else None
            observer = self._inputs.observer if self._inputs is not None else None
            self._ctx = create_context(
                self._lib, self._model, load, kernels, leaves=leaves, streams=streams, observer=observer
            )
        except BaseException:
            self.close()
            raise
        self.memory = self._lib.llama_get_memory(self._ctx)
        self._whole_only = architecture in WHOLE_ONLY
        self._rows = context_rows(trimmed, table) if trimmed is not None and table is not None else None
        head = table.ids if table is not None else None
        self.piece: int = min(self._lib.llama_n_batch(self._ctx), self._lib.llama_n_ubatch(self._ctx))
        self.facts = self._facts(load, leaves, streams=streams, head=head)
        window = cells(self.n_swa + int(self._lib.llama_n_ubatch(self._ctx))) if self.n_swa else 0
        self.ring: int = window if kernels.attention and window < self.facts.n_ctx else 0
        self._batch = Batch(self._lib, max(self.piece, self.facts.max_rows), leaves, table)
        self._caches = [None] * load.texts

    @property
    def vocab(self) -> LlamaVocab:
        """The model's vocabulary; that of a trimmed model is read when it is first asked for."""
        if self._vocab is None:
            self._vocab = self._names.enter_context(load_vocabulary(self._path))
        return self._vocab

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
        """Whether old tokens can be dropped from the front of a cache."""
        return bool(self._lib.llama_memory_can_shift(self.memory)) and not self._stateful

    @property
    def loaded(self) -> bool:
        """Whether it has not been closed."""
        return self._ctx is not None

    @property
    def context(self) -> Any:
        """The llama_context, for draft heads that read the model's matrices."""
        return self._ctx

    @property
    def alone(self) -> bool:
        """Whether there is room for one text only: then every sequence is one of its own."""
        return len(self._caches) == 1

    def open(self) -> LlamaCache:
        """Room for one more text.

        Raises:
            RuntimeError: there are `max_texts` already, or the model was closed.
        """
        if not self.loaded:
            raise RuntimeError("the model was closed")
        slot = next((i for i, cache in enumerate(self._caches) if cache is None), None)
        if slot is None:
            raise RuntimeError(f"there is room for {len(self._caches)} texts at once")
        cache = self._caches[slot] = self._cache(slot)
        return cache

    def copyable(self, cache: LlamaCache) -> bool:
        """Whether another text can take over what `cache` holds.

        Cells of a sliding window that two texts hold are not used again, so windows must not share theirs.
        """
        return not (self._stateful or self._whole_only) and (self.facts.even or not self.n_swa)

    def states(self) -> States | None:
        """The recurrent states of one more text; None where layers keep none."""
        if not self._stateful:
            return None
        kept = int(self._lib.llama_n_rs_seq(self._ctx))
        return States(self._lib, self._ctx, kept, marking=not self.n_swa and not self._whole_only)

    def closed(self, cache: LlamaCache) -> None:
        """`cache` holds a text no longer."""
        self._caches[cache.slot] = None

    def extract(self, layers: Sequence[int]) -> None:
        """Give what enters these layers wherever hidden states are wanted; with none, no more.

        Raises:
            ValueError: there is no such layer, or others are given already.
            ModelError: this model gives no hidden states.
        """
        if self._inputs is None:
            if layers:
                raise ModelError("this model gives no hidden states", "draft heads cannot be used with it")
            return
        given = self._inputs.layers
        if layers and given not in ((), tuple(layers)):
            raise ValueError(f"the inputs of layers {given} are given already")
        if given != tuple(layers):
            self._inputs.watch(self._ctx, layers)

    def forward(self, trees: Sequence[Tree], want: Want = Want.LOGITS) -> list[Output]:
        """Compute a tree of tokens beyond each of some texts, committing nothing.

        Raises:
            ContextFullError: a text has no room for its tree.
            ValueError: something is not a tree, or wider or bushier than this model takes, or hidden states
                are wanted of no layer.
            RuntimeError: a call before was not followed by `keep`.
        """
        extraction = self._extraction if Want.HIDDEN in want else None
        caches = [self._checked(tree) for tree in trees]
        computed = sum(map(len, trees))
        if len(trees) > 1:
            self._check_together(trees, caches, computed)
        fillers: list[LlamaCache] = []
        begun = False
        try:
            rows, starts, places = self._fill(trees, caches, fillers)
            self._extract(hidden := self._rows is not None and not fillers)
            begun = True
            inputs = self._decode(rows, extraction)
            logits = self._logits(computed, hidden=hidden)
        except BaseException:
            for cache in caches:
                cache.abandon(begun=begun)
            raise
        finally:
            for filler in fillers:
                filler.drop_filler()
        return [
            Output(
                logits[start : start + len(tree)],
                inputs[place : place + len(tree)] if inputs is not None else None,
            )
            for start, place, tree in zip(starts, places, trees, strict=True)
        ]

    def read(
        self, cache: LlamaCache, tokens: NDArray[np.int32], wanted: int, *, features: bool = False
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """Compute consecutive tokens of a text, at most `piece`.

        Returns:
            Logits (m, V) after the last `wanted` of them, or of as many as are cheap; None for none. And the
            hidden states (n, k * d) of all of them, if they are wanted. Both are borrowed.
        """
        count = min(len(tokens), PROMPT_ROWS, wanted)
        extraction = self._extraction if features else None
        self._batch.fill_chain(tokens, cache.length, cache.main, count)
        self._extract(False)
        inputs = self._decode(len(tokens), extraction)
        return self._logits(count) if count else None, inputs

    @contextmanager
    def watched(self, progress: Progress | None, done: int, total: int) -> Iterator[None]:
        """Call `progress` after every operation of llama.cpp's as well: raising there ends a call that takes
        seconds. GPUs do not ask."""
        if progress is None:
            yield
            return
        with interruptible(self._lib, self._ctx, lambda: progress(done, total)) as raised:
            try:
                yield
            except ModelError:
                if raised:
                    raise raised[0] from None
                raise

    def close(self) -> None:
        """Give the memory back, that of the caches included. Safe to call twice."""
        if (vocab := getattr(self, "_vocab", None)) is not None:
            vocab.close()
        if self._ctx is not None:
            for cache in self._caches:
                if cache is not None:
                    cache.close()
            self._lib.llama_free(self._ctx)
            self._ctx = None
        if self._model is not None:
            self._lib.llama_model_free(self._model)
            self._model = None
        self._names.close()

    def __del__(self) -> None:
        if hasattr(self, "_ctx"):
            self.close()

    def _cache(self, slot: int) -> LlamaCache:
        leaves = self.facts.max_leaves
        return LlamaCache(self, self._lib, slot, range(slot * leaves, (slot + 1) * leaves))

    def _checked(self, tree: Tree) -> LlamaCache:
        cache, n = tree.cache, len(tree)
        if not isinstance(cache, LlamaCache) or self._caches[cache.slot] is not cache:
            raise ValueError("the text is not one of this model's")
        cache.check_idle()
        if not 1 <= n <= self.facts.max_width or len(tree.parents) != n:
            raise ValueError(f"a forward call takes 1 to {self.facts.max_width} tokens and as many parents")
        if cache.length + n > self.facts.n_ctx:
            raise ContextFullError(
                f"the context of {self.facts.n_ctx} tokens is full",
                "give it more room with -c, or use --context-shift to forget the oldest tokens",
            )
        return cache

    def _check_together(self, trees: Sequence[Tree], caches: Sequence[LlamaCache], rows: int) -> None:
        if rows > self.facts.max_rows or len({cache.slot for cache in caches}) < len(trees):
            raise ValueError(f"a call takes one tree a text, and {self.facts.max_rows} tokens in all")
        if self.facts.even and len({len(tree) for tree in trees}) > 1:
            raise ValueError("all trees of a call have the same width")

    def _fill(
        self, trees: Sequence[Tree], caches: Sequence[LlamaCache], fillers: list[LlamaCache]
    ) -> tuple[int, list[int], list[int]]:
        """Put the trees into the batch, in the order of their slots.

        llama.cpp computes streams together if these are consecutive. Others in between are filled up with
        rows that nobody wants, as far as the batch has room, which costs less than to read the weights once
        more.

        Args:
            trees, caches: one tree for each cache.
            fillers: takes the texts that were filled up.

        Returns:
            The rows of the batch, and for each tree the first of its rows among those that are wanted, and
            among all.
        """
        shapes = [cache.expect(tree, self.piece) for tree, cache in zip(trees, caches, strict=True)]
        by_slot = {cache.slot: i for i, cache in enumerate(caches)}
        starts, places, at, wanted = [0] * len(trees), [0] * len(trees), 0, 0
        spare = self._batch.capacity - sum(map(len, trees))
        for slot in range(min(by_slot), max(by_slot) + 1):
            i = by_slot.get(slot)
            if i is not None:
                tree, cache, shape = trees[i], caches[i], shapes[i]
                first = at + len(cache.again)
                self._batch.fill_again(cache.again, cache.length, shape, at)
                self._batch.fill_tree(tree.tokens, cache.length, shape, first)
                starts[i], places[i], at, wanted = wanted, first, first + len(tree), wanted + len(tree)
            elif self.facts.even and not self._stateful:  # a state cannot go back to before the call
                width = len(trees[0])
                filler = self._caches[slot] or self._cache(slot)
                if width <= min(spare, filler.room):
                    fillers.append(filler)
                    tokens = np.full(width, FILLER, np.int32)
                    self._batch.fill_chain(tokens, filler.end, filler.main, 0, at)
                    at, spare = at + width, spare - width
        return at, starts, places

    @property
    def _extraction(self) -> Extraction:
        """What takes hidden states out.

        Raises:
            ValueError: they are wanted of no layer.
        """
        if self._inputs is None or not self._inputs.layers:
            raise ValueError("hidden states are wanted of no layer")
        return self._inputs

    def _decode(self, rows: int, extraction: Extraction | None) -> NDArray[np.float32] | None:
        """Compute the first `rows` rows of the batch.

        Returns:
            Hidden states (rows, k * d), if there is an `extraction`; borrowed.

        Raises:
            ContextFullError: there is no room for them.
            ModelError: they cannot be computed.
        """
        computing_here()
        enable(self.kernels)
        batch = self._batch.sized(rows)
        if self._rows is not None and self._rows.see(self._batch.tokens[:rows]):
            self.facts = replace(self.facts, head=self._rows.head)
        if extraction is not None:
            extraction.begin(rows)
        code = self._lib.llama_decode(self._ctx, batch)
        if code == 0:
            return extraction.take(self._ctx, rows) if extraction is not None else None
        if extraction is not None:
            extraction.drop()
        if code == 1:
            raise ContextFullError(
                f"no room in the KV cache for {rows} more tokens", "give it more room with -c"
            )
        why = "there is too little memory" if code == NO_MEMORY else f"code {code}"
        hint = "a smaller context (-c) takes less memory; --log-file - shows llama.cpp's messages"
        raise ModelError(f"llama.cpp could not compute a batch of {rows} tokens ({why})", hint)

    def _extract(self, hidden: bool) -> None:
        """Whether hidden states are wanted of the next call; all its rows have logits then."""
        if hidden != self._extracting:
            self._lib.llama_set_embeddings(self._ctx, hidden)
            self._extracting = hidden

    def _logits(self, n: int, *, hidden: bool = False) -> NDArray[np.float32]:
        """Logits (n, R) of the rows that are wanted, in the order of the batch; borrowed."""
        logits = floats_at(self._lib.llama_get_logits(self._ctx), n, self._columns)
        if self._rows is None:
            return logits
        width = self._batch.embeddings.shape[1]
        states = floats_at(self._lib.llama_get_embeddings(self._ctx), n, width) if hidden else None
        return self._rows.widen(logits, states)

    def _facts(
        self,
        load: Load,
        leaves: int,
        *,
        streams: bool,
        head: NDArray[np.int32] | None,
    ) -> Facts:
        widest = MAX_WIDTH if self._columns <= LARGE_VOCAB else MAX_WIDTH_LARGE_VOCAB
        texts = load.texts
        # llama.cpp ends the process when a call is wider than its n_batch.
        widest = min(widest, int(self._lib.llama_n_batch(self._ctx)))
        kept = int(self._lib.llama_n_rs_seq(self._ctx)) if self._stateful else widest
        return Facts(
            n_ctx=int(self._lib.llama_n_ctx(self._ctx)) // texts,
            max_width=min(widest, kept + 1),
            max_leaves=leaves,
            max_texts=texts,
            max_rows=max(widest, texts),
            even=streams or (texts > 1 and self._stateful),
            shared=texts > 1 and not streams,
            prompt_rows=min(PROMPT_ROWS, self.piece),
            copy_tokens=int(self._lib.llama_n_ctx(self._ctx)) // texts // COPIES if streams else 0,
            plain_reason=None if kept else RECURRENT if self._recurrent else HYBRID,
            n_ctx_train=int(self._lib.llama_model_n_ctx_train(self._model)),
            head=head,
            extractable=Want.LOGITS if self._inputs is None else Want.LOGITS | Want.HIDDEN,
            settles=SETTLES_ON_GPU if on_gpu(load) else 1,
        )
