"""What enters some layers of a model, as draft heads read it: hidden states of every token of a call.

libllama gives them where the graph of an architecture notes them, through functions of C++ that are no part
of its stable interface. Elsewhere they are copied by a callback that is told every value that is computed
(kernels/src/layer_tap.cpp); the graph is then computed in as many pieces more as there are layers.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import ModelError
from specx.backends.gguf.layer_inputs import LAYER_INPUTS, LAYER_OUTPUTS
from specx.backends.gguf.mtp import MTP
from specx.backends.llama.libllama import floats_at, lib
from specx.kernels._native import LayerTap

__all__ = ["Extraction", "Observer", "cxx_function", "extraction_of", "nextn_functions"]

Observer = tuple[Any, Any]
"""A `cb_eval` of C, and its user data."""


@functools.cache
def cxx_function(name: str, returns: Any, *takes: Any) -> Callable[..., Any] | None:
    """A function of C++ that libllama exports under its mangled `name`; None if this build has none."""
    try:
        function = getattr(lib().llama_cpp._lib, name)
    except AttributeError:
        return None
    function.restype, function.argtypes = returns, list(takes)
    found: Callable[..., Any] = function
    return found


def nextn_functions() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """What lets a context give what its last layer hands on, and what gets it; None in builds without."""
    switch = cxx_function(
        "_Z26llama_set_embeddings_nextnP13llama_contextbb",
        None, ctypes.c_void_p, ctypes.c_bool, ctypes.c_bool,
    )  # fmt: skip
    get = cxx_function("_Z26llama_get_embeddings_nextnP13llama_context", ctypes.c_void_p, ctypes.c_void_p)
    return (switch, get) if switch and get else None


class Extraction(Protocol):
    """Takes the inputs of layers out of one context.

    Attributes:
        observer: what the context is to be created with, if anything.
        layers: whose inputs are taken.
    """

    observer: Observer | None
    layers: tuple[int, ...]

    def watch(self, context: Any, layers: Sequence[int]) -> None:
        """Take the inputs of these layers from the next call on; of none, nothing.

        Raises:
            ValueError: there is no such layer.
        """

    def begin(self, rows: int) -> None:
        """The next call computes so many rows, whose inputs are wanted."""

    def take(self, context: Any, rows: int) -> NDArray[np.float32]:
        """Inputs (rows, k * d) of the call, in the order of its batch; borrowed.

        Raises:
            ModelError: they are not there.
        """

    def drop(self) -> None:
        """The call has failed: what `begin` announced does not come."""


def extraction_of(model: Any, architecture: str, *, on_gpu: bool) -> Extraction | None:
    """How inputs of layers are taken out of a model; None if they cannot be.

    Args:
        model: the llama_model.
        architecture: by its name in the file.
        on_gpu: whether a GPU computes layers, whose steps could not be recorded if a callback saw them.
    """
    n_layer, width = lib().llama_model_n_layer(model), lib().llama_model_n_embd(model)
    if architecture in LAYER_INPUTS:
        switch = cxx_function(
            "_Z30llama_set_embeddings_layer_inpP13llama_contextjb",
            None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool,
        )  # fmt: skip
        get = cxx_function(
            "_Z30llama_get_embeddings_layer_inpP13llama_contextj",
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32,
        )  # fmt: skip
        last = nextn_functions() if architecture in MTP else None
        return _Noted(n_layer, width, switch, get, last) if switch and get else None
    return _Tapped(n_layer, width) if architecture in LAYER_OUTPUTS and not on_gpu else None


class _Extraction(Extraction):
    """What both ways share.

    Args:
        layers: that have an input to be had.
        width: values of a hidden state.
    """

    def __init__(self, layers: range, width: int) -> None:
        self.observer: Observer | None = None
        self.layers: tuple[int, ...] = ()
        self._possible, self._width = layers, width
        self._rows: NDArray[np.float32] = np.empty((0, 0), np.float32)

    def watch(self, context: Any, layers: Sequence[int]) -> None:
        """Check and note the layers."""
        if any(layer not in self._possible for layer in layers) or len(set(layers)) < len(layers):
            span = f"{self._possible.start} to {self._possible.stop - 1}"
            raise ValueError(f"the inputs of layers {list(layers)} cannot be taken, only of {span}")
        self.layers = tuple(layers)
        self._rows = np.empty((0, len(layers) * self._width), np.float32)

    def begin(self, rows: int) -> None:
        """Make room."""
        if len(self._rows) < rows:
            self._rows = np.empty((rows, len(self.layers) * self._width), np.float32)

    def drop(self) -> None:
        """Nothing is held back."""


class _Noted(_Extraction):
    """By libllama, in architectures whose graphs note what enters a layer.

    The input of the last layer always is, of all rows. What the last one hands on, normalized, is noted in
    architectures with layers that go on from there.

    Args:
        switch, get: of the input of a layer.
        last: the same of what the last layer hands on, if it is noted.
    """

    def __init__(
        self,
        n_layer: int,
        width: int,
        switch: Callable[..., Any],
        get: Callable[..., Any],
        last: tuple[Callable[..., Any], Callable[..., Any]] | None,
    ) -> None:
        super().__init__(range(n_layer + (last is not None)), width)
        self._n_layer, self._last = n_layer, last
        self._switch, self._get = switch, get

    def watch(self, context: Any, layers: Sequence[int]) -> None:
        """Each change makes libllama divide its memory anew."""
        before = set(self.layers)
        super().watch(context, layers)
        for layer in before ^ set(layers):
            if layer == self._n_layer and self._last is not None:
                self._last[0](context, layer in layers, False)
            else:
                self._switch(context, layer, layer in layers)

    def take(self, context: Any, rows: int) -> NDArray[np.float32]:
        """Put them side by side."""
        for i, layer in enumerate(self.layers):
            columns = slice(i * self._width, (i + 1) * self._width)
            if layer == self._n_layer and self._last is not None:
                pointer = self._last[1](context)
            else:
                pointer = self._get(context, layer)
            self._rows[:rows, columns] = floats_at(pointer, rows, self._width)
        return self._rows[:rows]


class _Tapped(_Extraction):
    """By a callback, from what a layer hands on to the next one. Calls have one batch without reordering."""

    def __init__(self, n_layer: int, width: int) -> None:
        super().__init__(range(1, n_layer), width)
        functions = lib().llama_cpp._lib
        names = ("ggml_get_name", "ggml_nbytes", "ggml_backend_tensor_get")
        addresses = [ctypes.cast(getattr(functions, name), ctypes.c_void_p).value or 0 for name in names]
        self._tap = LayerTap(*addresses)
        callback = lib().ggml_backend_sched_eval_callback(self._tap.callback)
        self.observer = callback, self._tap.address

    def watch(self, context: Any, layers: Sequence[int]) -> None:
        """From the next `begin` on."""
        super().watch(context, layers)
        self._tap.watch(self.layers)

    def begin(self, rows: int) -> None:
        """Let the callback write there."""
        super().begin(rows)
        self._tap.begin(self._rows)

    def take(self, context: Any, rows: int) -> NDArray[np.float32]:
        """What it has written."""
        arrived = self._tap.end()
        if arrived != rows:
            raise ModelError(f"llama.cpp gave the hidden states of {arrived} tokens, not of {rows}")
        return self._rows[:rows]

    def drop(self) -> None:
        """The callback writes nothing of calls that nobody wants inputs of."""
        self._tap.end()
