"""Draft heads on libllama. In EAGLE-3 what the target gives is encoded, and pairs of a token and a state are
decoded; what drafts a block at once is in `block_head.py`.

A head has a context of its own, small, because it scores all tokens of its vocabulary in every row, wanted or
not. Its bits decide nothing but what is drafted.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import ContextFullError, ModelError
from specx.backends.gguf.heads import HeadFile
from specx.backends.llama.extraction import nextn_functions
from specx.backends.llama.kernels import STOCK, Kernels, enable
from specx.backends.llama.libllama import floats_at, lib, set_log
from specx.backends.llama.params import create_context, load_weights
from specx.backends.settings import HEAD_ROWS as ROWS
from specx.backends.settings import Load

__all__ = ["HeadContext", "LlamaHead", "Rows"]


class HeadContext:
    """A loaded head with a context of its own, shared by the texts it follows.

    Args:
        head: its file.
        load: how it is loaded: for so many texts of so many tokens, `HEAD_ROWS` at once.
        target_context: the target's llama_context, whose matrices it reads if it has none of its own.
        scale: what the target's hidden states are divided by.
        kernels: what it is computed with.
        repack: let llama.cpp rearrange weights for this CPU.

    Attributes:
        columns: (R,) int32 tokens that it scores, rising; None if that is all.
        layers: of the target, whose inputs it reads.
        n_ctx: most pairs of one text.
        max_texts: most texts at once.
        features: values of what the target gives for each token.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(
        self,
        head: HeadFile,
        load: Load,
        *,
        target_context: Any = None,
        scale: float = 1.0,
        kernels: Kernels = STOCK,
        repack: bool = True,
    ) -> None:
        set_log(load.log)
        self._lib, self._kernels = lib(), kernels
        self._ctx: Any = None
        self._model: Any = None
        self.layers, self.n_ctx, self.max_texts = head.layers, load.n_ctx, load.texts
        self._width, self._read, self._scale = head.info.embedding_length, head.target_width, scale
        self._vocabulary = head.info.vocabulary_size
        self.features = len(head.layers) * head.target_width
        self.columns = np.sort(head.ids()).astype(np.int32) if head.trimmed else None
        enable(kernels)
        self._model = load_weights(self._lib, load, None, repack=repack, trimmed=head.info, head=True)
        lent = None if head.own_embedding and head.own_output else target_context
        try:
            self._ctx = create_context(
                self._lib, self._model, load, kernels, leaves=1, streams=False, other=lent
            )
        except BaseException:
            self.close()
            raise
        self._memory = self._lib.llama_get_memory(self._ctx)

    def forget(self, slot: int, position: int, end: int = -1) -> None:
        """Forget what a text holds from `position` on, or up to `end`.

        Raises:
            ModelError: llama.cpp does not.
        """
        if not self._lib.llama_memory_seq_rm(self._memory, slot, position, end):
            raise ModelError(f"llama.cpp does not forget what a head holds from {position} on")

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

    def _known(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """What it reads (n, k * d_t) of what entered the target's layers, which may have been widened."""
        layers = features.reshape(len(features), len(self.layers), -1)[:, :, : self._read]
        read = layers.reshape(len(features), -1)
        return read / np.float32(self._scale) if self._scale != 1.0 else read

    def _check(self, code: int) -> None:
        if code == 1:
            raise ContextFullError("no room in the cache of the draft head", "this is a fault in specx")
        if code:
            raise ModelError(f"llama.cpp could not compute a draft head (code {code})")


class LlamaHead(HeadContext):
    """A loaded EAGLE-3 head, shared by the texts it follows. Implements `PairModel` of `drafters.pairs`.

    Raises:
        ModelError: it cannot be loaded, or this build of llama.cpp runs no heads.
    """

    def __init__(self, head: HeadFile, load: Load, **options: Any) -> None:
        functions = nextn_functions()
        if functions is None:
            raise ModelError(
                "draft heads are not available in this build of llama.cpp",
                "install the llama-cpp-python that specx asks for: pip install -U specx",
            )
        super().__init__(head, load, **options)
        switch, self._get = functions
        switch(self._ctx, True, True)
        self._states = Rows(self._lib, len(self.layers) * self._read, tokens=False)
        self._pairs = Rows(self._lib, self._width, tokens=True)

    def try_out(self) -> None:
        """Compute two pairs and forget them: some of what damages a file shows only then.

        Raises:
            ModelError: they cannot be computed.
        """
        states = self.encode(np.zeros((2, self.features), np.float32))
        self.step(0, np.zeros(2, np.int32), states, 0)
        self.forget(0, 0)

    def encode(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states (n, d) of what entered the target's layers (n, 3 d_t).

        Raises:
            ModelError: they cannot be computed.
        """
        read = self._known(features)
        found = np.empty((len(read), self._width), np.float32)
        for at in range(0, len(read), ROWS):
            piece = read[at : at + ROWS]
            # It takes no place in the cache, but a position after what is there.
            after = self._lib.llama_memory_seq_pos_max(self._memory, 0) + 1
            batch = self._states.filled(None, piece, 0, after)
            self._check(self._lib.llama_encode(self._ctx, batch))
            found[at : at + ROWS] = floats_at(self._get(self._ctx), len(piece), self._width)
        return found

    def step(
        self, slot: int, tokens: NDArray[np.int32], hidden: NDArray[np.float32], position: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compute consecutive pairs of a text.

        Args:
            slot: which of the texts.
            tokens: (n,) of each pair.
            hidden: (n, d) of each pair.
            position: of the first one, the number of pairs before.

        Returns:
            Logits (R,) and hidden state (d,) after the last pair; borrowed until the next call.

        Raises:
            ContextFullError: there is no room.
            ModelError: they cannot be computed.
        """
        n = len(tokens)
        for at in range(0, n, ROWS):
            piece = slice(at, min(at + ROWS, n))
            batch = self._pairs.filled(tokens[piece], hidden[piece], slot, position + at)
            self._check(self._lib.llama_decode(self._ctx, batch))
        last = (n - 1) % ROWS
        states = floats_at(self._get(self._ctx), last + 1, self._width)
        logits = floats_at(self._lib.llama_get_logits(self._ctx), last + 1, self._vocabulary)[last]
        return logits if self.columns is None else logits[self.columns], states[last]


class Rows:
    """A llama_batch of states, of tokens or of both, over buffers that live as long as it does.

    All rows or none may be wanted of a head: with some, llama.cpp gives the wrong ones.

    Args:
        module: llama_cpp.
        width: of a state; 0 if there are none.
        tokens: whether there are tokens.
        wanted: whether rows give logits.
        sections: whether a row has the positions of a model that rotates in sections (M-RoPE).
    """

    def __init__(
        self, module: Any, width: int, *, tokens: bool, wanted: bool = True, sections: bool = False
    ) -> None:
        self._sections = sections
        self._states = np.zeros((ROWS, width), np.float32)
        self._tokens = np.zeros(ROWS, np.int32)
        self._positions = np.zeros(4 * ROWS, np.int32)
        self._counts = np.ones(ROWS, np.int32)
        self._slots = np.zeros((ROWS, 1), np.int32)
        self._wanted = np.full(ROWS, wanted, np.int8)
        self._pointers = self._slots.ctypes.data + 4 * np.arange(ROWS, dtype=np.uintp)
        self._struct = module.llama_batch()
        if tokens:
            self._point("token", self._tokens, ctypes.c_int32)
        if width:
            self._point("embd", self._states, ctypes.c_float)
        self._point("pos", self._positions, ctypes.c_int32)
        self._point("n_seq_id", self._counts, ctypes.c_int32)
        self._point("logits", self._wanted, ctypes.c_int8)
        pointer = ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
        self._struct.seq_id = ctypes.cast(self._pointers.ctypes.data, pointer)

    def filled(
        self,
        tokens: NDArray[np.int32] | None,
        states: NDArray[np.float32] | None,
        slot: int,
        position: int,
    ) -> Any:
        """The C struct for consecutive rows of a text."""
        n = 0
        if states is not None:
            n = len(states)
            self._states[:n] = states
        if tokens is not None:
            n = len(tokens)
            self._tokens[:n] = tokens
        positions = np.arange(position, position + n, dtype=np.int32)
        self._positions[:n] = positions
        if self._sections:  # a row of states has four, of which three are those of a text
            self._positions[: 4 * n] = np.concatenate([positions, positions, positions, 0 * positions])
        self._slots[:n] = slot
        self._struct.n_tokens = n
        return self._struct

    def _point(self, name: str, array: NDArray[Any], kind: Any) -> None:
        setattr(self._struct, name, ctypes.cast(array.ctypes.data, ctypes.POINTER(kind)))
