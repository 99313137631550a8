"""Layers of the target itself that predict the token after the next one, run in a context of their own.

They share the weights of the loaded target, read what its last layer hands on, and keep keys and values of
their own. Their bits decide nothing but what is drafted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import ModelError
from specx.backends.llama.extraction import nextn_functions
from specx.backends.llama.head import LlamaHead, Rows
from specx.backends.llama.kernels import STOCK, Kernels, enable
from specx.backends.llama.libllama import lib, set_log
from specx.backends.llama.params import create_context
from specx.backends.settings import Load

__all__ = ["LlamaMtp"]


class LlamaMtp(LlamaHead):
    """The MTP layer of a loaded target, shared by the texts it follows. Implements `PairModel`.

    Args:
        target: the target's llama_context, whose model was loaded with these layers; must outlive this.
        load: for so many texts of so many tokens, `HEAD_ROWS` at once.
        kernels: what it is computed with.

    Raises:
        ModelError: this build of llama.cpp does not run them, or there is no memory for its cache.
    """

    def __init__(self, target: Any, load: Load, *, kernels: Kernels = STOCK) -> None:
        functions = nextn_functions()
        if functions is None:
            raise ModelError("MTP layers are not available in this build of llama.cpp")
        switch, get = functions
        set_log(load.log)
        self._lib, self._get, self._kernels = lib(), get, kernels
        self._model = None  # it is the target's, whose memory is not given back here
        model = self._lib.llama_get_model(target)
        self._width = self.features = int(self._lib.llama_model_n_embd(model))
        self._vocabulary = int(self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(model)))
        self.layers, self.n_ctx, self.max_texts = (), load.n_ctx, load.texts
        self.columns = None
        enable(kernels)
        self._ctx = create_context(self._lib, model, load, kernels, leaves=1, streams=False, mtp=True)
        self._memory = self._lib.llama_get_memory(self._ctx)
        switch(self._ctx, True, True)
        self._pairs = Rows(self._lib, self._width, tokens=True)

    def encode(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the target hands on is what the layer reads."""
        return features
