"""A model as it would be without some of its layers, without a file of its own.

The layers are computed all the same, and what comes out is what went in: llama.cpp reports every value of
its graph to a callback, which may write over it. So each trial costs one pass over a text, and gives the bits
that a file without these layers would give.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import ContextFullError, ModelError
from specx.backends.llama.batch import Batch
from specx.backends.llama.callbacks import called_by_c
from specx.backends.llama.kernels import STOCK, enable
from specx.backends.llama.libllama import floats_at, lib, set_log
from specx.backends.llama.params import PROMPT_ROWS, create_context, load_weights
from specx.backends.llama.vocab import LlamaVocab
from specx.backends.settings import Load

__all__ = ["SkippingModel"]

LAYER_OUTPUT = b"l_out-"  # llama.cpp's name for what a layer gives to the next one, before its number


class SkippingModel:
    """A GGUF model of which layers can be skipped, for measurements.

    Args:
        load: how to load it; texts have room for `load.n_ctx` tokens.
        repack: let llama.cpp rearrange weights for this CPU.

    Raises:
        ModelError: the file cannot be loaded, or there is not enough memory.
    """

    def __init__(self, load: Load, *, repack: bool = True) -> None:
        set_log(load.log)
        self._lib = lib()
        self._ctx: Any = None
        enable(STOCK)
        self._model = load_weights(self._lib, load, None, repack=repack)
        self.vocab = LlamaVocab(self._model)
        self._n_ctx = load.n_ctx
        self._skipped: frozenset[int] = frozenset()
        self._input = np.empty(0, np.uint8)  # of the layer that is computed
        self._observer = self._made_observer()
        try:
            self._ctx = create_context(
                self._lib, self._model, load, STOCK, leaves=1, streams=False, observer=(self._observer, None)
            )
        except BaseException:
            self.close()
            raise
        self._memory = self._lib.llama_get_memory(self._ctx)
        self._batch = Batch(self._lib, min(PROMPT_ROWS, load.n_batch, load.n_ubatch), 1)

    def logits(self, tokens: Sequence[int], skipped: frozenset[int]) -> list[NDArray[np.float32]]:
        """Logits after each token of a text, in pieces of (at most 64, V), copied.

        Args:
            tokens: the text.
            skipped: layers, not the last one.

        Raises:
            ContextFullError: it is too long.
            ModelError: it cannot be computed.
        """
        return [piece.copy() for piece in self._pieces(tokens, skipped)]

    def predictions(self, tokens: Sequence[int], skipped: frozenset[int]) -> NDArray[np.int32]:
        """(n,) int32: the most likely token after each of a text.

        Args:
            tokens: (n,) the text.
            skipped: layers, not the last one.

        Raises:
            ContextFullError: it is too long.
            ModelError: it cannot be computed.
        """
        found = [piece.argmax(axis=1) for piece in self._pieces(tokens, skipped)]
        return np.concatenate(found).astype(np.int32)

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        if self._ctx is not None:
            self._lib.llama_free(self._ctx)
            self._ctx = None
        if self._model is not None:
            self._lib.llama_model_free(self._model)
            self._model = None

    def _pieces(self, tokens: Sequence[int], skipped: frozenset[int]) -> Any:
        """Logits (m, V) of one call after the other; borrowed."""
        if len(tokens) > self._n_ctx:
            raise ContextFullError.of_prompt(len(tokens), self._n_ctx)
        text = np.asarray(tokens, np.int32)
        self._skipped = skipped
        self._lib.llama_memory_clear(self._memory, False)
        for start in range(0, len(text), self._batch.capacity):
            piece = text[start : start + self._batch.capacity]
            self._batch.fill_chain(piece, start, 0, len(piece))
            enable(STOCK)
            if self._lib.llama_decode(self._ctx, self._batch.sized(len(piece))):
                raise ModelError("llama.cpp could not compute a text", "run again with --log-file -")
            yield floats_at(self._lib.llama_get_logits(self._ctx), len(piece), self.vocab.size)

    def _made_observer(self) -> Any:
        name_of, nbytes_of, read, write = _tensor_functions(self._lib.llama_cpp._lib)

        def wanted(tensor: int) -> int | None:
            """The layer that `tensor` is the output of, if it is skipped or comes before one that is."""
            name: bytes = name_of(tensor)
            if not name.startswith(LAYER_OUTPUT):
                return None
            number = name[len(LAYER_OUTPUT) :]
            layer = int(number) if number.isdigit() else -2
            return layer if layer in self._skipped or layer + 1 in self._skipped else None

        @called_by_c
        def on_tensor(tensor: int, ask: bool, _data: Any) -> bool:
            layer = wanted(tensor)
            if ask or layer is None:
                return layer is not None
            nbytes = nbytes_of(tensor)
            if layer in self._skipped:
                write(tensor, self._input.ctypes.data, 0, nbytes)
            else:
                self._input = np.empty(nbytes, np.uint8)
                read(tensor, self._input.ctypes.data, 0, nbytes)
            return True

        return self._lib.ggml_backend_sched_eval_callback(on_tensor)


def _tensor_functions(handle: ctypes.CDLL) -> tuple[Any, Any, Any, Any]:
    """ggml's functions for the name and the bytes of a tensor, and for reading and writing it."""
    name, nbytes = handle.ggml_get_name, handle.ggml_nbytes
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    nbytes.restype, nbytes.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    read, write = handle.ggml_backend_tensor_get, handle.ggml_backend_tensor_set
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for copy in (read, write):
        copy.restype, copy.argtypes = None, [pointer, pointer, size, size]
    return name, nbytes, read, write
