"""What of a model goes where its layers go: bytes of weights, of cache and of buffers, layer by layer."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from specx.backends.gguf.file import GGUFInfo, Tensor
from specx.backends.llama.memory import cache_bytes, predict_memory
from specx.backends.settings import ALL_LAYERS, Load

__all__ = ["Division", "Layers", "model_layers", "step_bytes"]

ACTIVATION_BYTES = 4  # of each number that is handed from device to device
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


def step_bytes(info: GGUFInfo) -> int:
    """Bytes of weights that decoding one token reads: of the experts those that a token uses, of the
    embedding nothing unless it is the head as well, and of layers that only draft nothing either."""
    return sum(_weight_bytes(info)[1])


def _weight_bytes(info: GGUFInfo) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(L + 1,) bytes of the weights of each layer, the head last, and those of them that a token reads."""
    blocks = info.blocks
    weights, read = [0] * (blocks + 1), [0] * (blocks + 1)
    used = info.experts_used / info.experts if info.experts else 1.0
    tied = not any(tensor.name == HEAD for tensor in info.tensors)
    for tensor in info.tensors:
        layer = blocks if tied and tensor.name == EMBEDDING else _layer_of(tensor, blocks)
        if layer is not None:
            weights[layer] += tensor.nbytes
            if not blocks - info.nextn_layers <= layer < blocks:
                read[layer] += round(tensor.nbytes * (used if "_exps." in tensor.name else 1.0))
    return tuple(weights), tuple(read)


def _layer_of(tensor: Tensor, blocks: int) -> int | None:
    """Index of the layer a tensor belongs to; None for those that stay in main memory."""
    if match := re.match(r"blk\.(\d+)\.", tensor.name):
        return min(int(match[1]), blocks)
    return blocks if tensor.name.startswith("output") else None
