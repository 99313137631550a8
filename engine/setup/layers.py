"""What of a model goes where its layers go: bytes of weights, of cache and of buffers, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from specx.backends.gguf.file import GGUFInfo, Tensor
from specx.backends.llama.memory import cache_bytes, predict_memory
from specx.backends.settings import ALL_LAYERS, Load

__all__ = ["Division", "Layers", "model_layers", "step_bytes", "step_products"]

ACTIVATION_BYTES = 4  # of each number that is handed from device to device
EXPERTS = "_exps."  # in the names of tensors that hold all experts of a layer
EMBEDDING, HEAD = "token_embd.weight", "output.weight"

Division = tuple[tuple[str, int], ...]
"""Layers by device, in the order of the layers; the head, which comes last, counts as one."""


@dataclass(frozen=True, slots=True)
class Layers:
    """A model as layers that can be on different devices.

    Attributes:
        weights: (L + 1,) bytes of the weights of each layer, the head last.
        read: (L + 1,) bytes of them that decoding one token reads, see `step_bytes`.
        cache: (L + 1,) bytes of each layer's KV cache.
        buffers: bytes that computing takes on every device that holds a layer.
        host: bytes in the host's memory wherever the layers are.
        row_bytes: bytes of one token that are handed from device to device.
    """

    weights: tuple[int, ...]
    read: tuple[int, ...]
    cache: tuple[int, ...]
    buffers: int = 0
    host: int = 0
    row_bytes: int = 0

    def __len__(self) -> int:
        return len(self.weights)

    def needed(self, first: int, last: int) -> int:
        """Bytes of layers `first` to `last` (exclusive) on one device."""
        return sum(self.weights[first:last]) + sum(self.cache[first:last]) + self.buffers * (last > first)

    def most_that_fit(self, nbytes: int) -> int:
        """How many of the last layers, the head included, fit into `nbytes`."""
        end = len(self)
        return max((n for n in range(end + 1) if self.needed(end - n, end) <= nbytes), default=0)


def model_layers(info: GGUFInfo, load: Load) -> Layers:
    """The layers of a GGUF model that is loaded as `load` says.

    What is not in layers is what is left in main memory when all of them are on a GPU.
    """
    weights, read = _weight_bytes(info)
    cache = cache_bytes(info, load)
    elsewhere = predict_memory(info, replace(load, n_gpu_layers=ALL_LAYERS, offload=None), gpus=1)
    return Layers(
        weights=weights,
        read=read,
        cache=(*cache, *[0] * (len(weights) - len(cache))),
        buffers=elsewhere.gpu_compute,
        host=elsewhere.working,
        row_bytes=ACTIVATION_BYTES * info.embedding_length,
    )


def step_bytes(info: GGUFInfo, tokens: int = 1) -> int:
    """Bytes of weights that a step reads: of the embedding nothing unless it is the head as well, of layers
    that only draft nothing either, and of the experts those that its tokens use.

    How many different experts several tokens use depends on the text. Counted is what comes of tokens that
    choose independently, which is the most that is to be expected.

    Args:
        info: the model.
        tokens: of the step.
    """
    return sum(_weight_bytes(info, tokens)[1])


def step_products(info: GGUFInfo) -> int:
    """How many weights a token is multiplied with, in a step of whatever width."""
    used = info.experts_used / info.experts if info.experts else 1.0
    total = 0.0
    for tensor, layer in _tensors(info):
        if layer is not None and len(tensor.shape) > 1 and _is_read(info, layer):
            total += tensor.elements * (used if EXPERTS in tensor.name else 1.0)
    return round(total)


def _weight_bytes(info: GGUFInfo, tokens: int = 1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(L + 1,) bytes of the weights of each layer, the head last, and those of them that a step reads."""
    blocks = info.blocks
    weights, read = [0] * (blocks + 1), [0] * (blocks + 1)
    used = 1.0 - (1.0 - info.experts_used / info.experts) ** tokens if info.experts else 1.0
    for tensor, layer in _tensors(info):
        if layer is not None:
            weights[layer] += tensor.nbytes
            if _is_read(info, layer):
                read[layer] += round(tensor.nbytes * (used if EXPERTS in tensor.name else 1.0))
    return tuple(weights), tuple(read)


def _is_read(info: GGUFInfo, layer: int) -> bool:
    """Whether a layer does not only draft."""
    return not info.blocks - info.nextn_layers <= layer < info.blocks


def _tensors(info: GGUFInfo) -> Iterator[tuple[Tensor, int | None]]:
    """Every tensor, and the index of its layer: an embedding that is the head as well counts as that."""
    tied = not any(tensor.name == HEAD for tensor in info.tensors)
    for tensor in info.tensors:
        is_head = tied and tensor.name == EMBEDDING
        yield tensor, info.blocks if is_head else _layer_of(tensor, info.blocks)


def _layer_of(tensor: Tensor, blocks: int) -> int | None:
    """Index of the layer a tensor belongs to; None for those that stay in main memory."""
    if match := re.match(r"blk\.(\d+)\.", tensor.name):
        return min(int(match[1]), blocks)
    return blocks if tensor.name.startswith("output") else None
