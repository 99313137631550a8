"""A drafter made from the target itself: some of its layers, in their order.

Which ones is found by a greedy backward search: whatever hurts agreement with the whole model least is left
out next, never the first layer or the last. Draft&Verify (arXiv:2309.08168) and SWIFT (arXiv:2410.06916) skip
layers inside the target; here they are left out of a file, which is then a draft model like any other.

What can be left out depends on the architecture, because llama.cpp knows some things by the number of a
layer. What is not known to work is refused.
"""

from __future__ import annotations

import heapq
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from specx.backends.errors import ModelError
from specx.backends.gguf.cache_size import windowed_layers
from specx.backends.gguf.file import GGUFInfo
from specx.drafters.make.gguf_writing import Source, uint32, write_gguf

__all__ = ["Stage", "Unit", "backward_search", "check_dropped", "droppable", "prune"]

Unit = tuple[int, ...]
"""Layers that are left out together."""

PLAIN = ("llama", "qwen2", "qwen3", "phi3", "granite")
WINDOWED = ("gemma2", "gemma3")
RUNS = {"smollm3": 4}
"""Architectures in which every so many layers one is different, by its number."""
SUPPORTED = (*PLAIN, *WINDOWED, *RUNS)
OTHER_SCALE = {("gemma2", 46), ("gemma3", 62)}
"""Architecture and layers by which llama.cpp tells a model that scales attention in another way."""
PER_LAYER = (
    "attention.head_count",
    "attention.head_count_kv",
    "feed_forward_length",
    "attention.sliding_window_pattern",
    "deepstack_mapping",
)
NOT_PER_LAYER = ("rope.dimension_sections",)
PATTERN = "attention.sliding_window_pattern"
BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_ARRAY, _BOOL = 9, 7
_ELEMENT_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the search.

    Attributes:
        dropped: layers left out.
        agreement: share of the target's tokens that the others alone predict.
    """

    dropped: frozenset[int]
    agreement: float


def droppable(info: GGUFInfo) -> list[Unit]:
    """What can be left out of a model, each by itself.

    Raises:
        ModelError: nothing can, or it is not known what.
    """
    arch, blocks, name = info.architecture, info.blocks, info.path.name
    if arch not in SUPPORTED:
        raise ModelError(
            f"layers cannot be left out of {name}: it is not known how llama.cpp treats those of {arch!r}",
            f"it is known for {', '.join(sorted(SUPPORTED))}",
        )
    if (arch, blocks) in OTHER_SCALE:
        raise ModelError(
            f"layers cannot be left out of {name}: llama.cpp scales the attention of a {arch} of {blocks} "
            "layers differently from that of fewer",
            "shrink a smaller model of the family",
        )
    for short in _unknown_arrays(info):
        raise ModelError(
            f"layers cannot be left out of {name}: {short} has a value for each layer, which is not known",
            "a newer version of specx may know it",
        )
    run = RUNS.get(arch, 1)
    starts = range(1, blocks - run, run)
    units = [tuple(range(start, start + run)) for start in starts]
    fed = info.metadata.get(f"{arch}.deepstack_mapping")
    if isinstance(fed, tuple):  # pictures enter the model in these layers
        units = [unit for unit in units if all(int(fed[layer]) < 0 for layer in unit)]
    if not units:
        raise ModelError(
            f"no layer of {name} can be left out: it has {blocks}, and the first and the last stay",
            "draft with another model: specx drafter list",
        )
    return units


def _unknown_arrays(info: GGUFInfo) -> list[str]:
    """Keys of the architecture with as many values as there are layers, of which nothing is known."""
    prefix, known = f"{info.architecture}.", (*PER_LAYER, *NOT_PER_LAYER)
    arrays = (
        key.removeprefix(prefix)
        for key, value in info.metadata.items()
        if key.startswith(prefix) and isinstance(value, tuple) and len(value) == info.blocks
    )
    return [short for short in arrays if short not in known]


def check_dropped(info: GGUFInfo, dropped: frozenset[int]) -> bool:
    """Whether llama.cpp runs what is left: where layers look back a window only, one that does must stay."""
    windowed = windowed_layers(info)
    return not windowed or bool(windowed - dropped)


def backward_search(
    units: Sequence[Unit],
    measure: Callable[[frozenset[int]], float],
    rank: Callable[[frozenset[int]], float] | None = None,
    allowed: Callable[[frozenset[int]], bool] = lambda _dropped: True,
) -> Iterator[Stage]:
    """Leave out one unit after the other, whatever lowers agreement least.

    What a unit costs mostly grows with what is left out already, so the one that cost least when it was last
    tried is tried first, and taken if no other cost less then (lazy greedy search, Minoux 1978).

    Args:
        units: what can be left out, each layer in one of them at most.
        measure: agreement without those layers.
        rank: about the same, in less time, by which it is decided; `measure` if there is no such thing.
        allowed: whether these may be left out together.

    Yields:
        The whole model, and then a stage with each unit less.
    """
    rank = rank or measure
    dropped: frozenset[int] = frozenset()
    yield Stage(dropped, measure(dropped))
    now = rank(dropped)
    costs = dict.fromkeys(units, 0.0)
    while costs:
        fresh: dict[Unit, float] = {}
        queue = [(cost, -unit[0], unit) for unit, cost in costs.items() if allowed(dropped | {*unit})]
        heapq.heapify(queue)
        while queue and queue[0][2] not in fresh:
            _, order, unit = heapq.heappop(queue)
            fresh[unit] = rank(dropped | {*unit})
            costs[unit] = now - fresh[unit]
            heapq.heappush(queue, (costs[unit], order, unit))
        if not queue:
            return
        best = queue[0][2]
        dropped, now = dropped | {*best}, fresh[best]
        del costs[best]
        yield Stage(dropped, measure(dropped))


def prune(info: GGUFInfo, dropped: frozenset[int], path: Path, made: Mapping[str, bytes]) -> None:
    """Write a model without some of its layers: whole or not at all.

    Args:
        info: the model.
        dropped: layers, units of `droppable`.
        path: the file, replaced if it is there.
        made: metadata that is added: what it was made from.

    Raises:
        FileError: it cannot be written.
        ModelError: the model's file has changed.
    """
    source = Source(info)
    kept = [layer for layer in range(info.blocks) if layer not in dropped]
    places = {layer: place for place, layer in enumerate(kept)}
    tensors = []
    for name, tensor in source.tensors.items():
        match = BLOCK.fullmatch(name)
        if match is None:
            tensors.append(tensor)
        elif int(match[1]) in places:
            place = places[int(match[1])]
            tensors.append(replace(tensor, name=f"blk.{place}.{match[2]}"))
    entries = {**source.entries, **_per_layer(info, source.entries, kept), **made}
    entries[f"{info.architecture}.block_count"] = uint32(len(kept))
    write_gguf(path, entries, tensors)


def _per_layer(info: GGUFInfo, entries: Mapping[str, bytes], kept: Sequence[int]) -> dict[str, bytes]:
    """The values of the layers that are kept, where there is one for each."""
    found = {}
    for short in PER_LAYER:
        key = f"{info.architecture}.{short}"
        if isinstance(info.metadata.get(key), tuple):
            found[key] = _elements(entries[key], kept)
    windowed = windowed_layers(info)
    if windowed:  # else it would follow from the number of a layer
        flags = bytes(layer in windowed for layer in kept)
        found[f"{info.architecture}.{PATTERN}"] = struct.pack("<IIQ", _ARRAY, _BOOL, len(kept)) + flags
    return found


def _elements(value: bytes, kept: Sequence[int]) -> bytes:
    """Some elements of an array as it lies in a file: its types, its length, and numbers."""
    _, kind, _ = struct.unpack_from("<IIQ", value)
    size = _ELEMENT_BYTES[kind]
    parts = (value[16 + size * i : 16 + size * (i + 1)] for i in kept)
    return struct.pack("<IIQ", _ARRAY, kind, len(kept)) + b"".join(parts)
