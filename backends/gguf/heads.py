"""What the headers of draft heads say, and whether one goes with a target.

llama.cpp ends the process for many a head that does not, so nothing of that is left to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import ModelError
from specx.backends.gguf.block_heads import DFLASH, Block, block_of, block_problems, block_shapes
from specx.backends.gguf.checks import check_values
from specx.backends.gguf.file import GGUFInfo, Tensor, read_gguf
from specx.backends.gguf.head_target import HEAD_TARGET, HEAD_TRAINED, head_target, own_width
from specx.backends.gguf.header import download_again
from specx.backends.gguf.layer_inputs import given_layers
from specx.backends.gguf.reading import read_span
from specx.backends.gguf.vocab_match import match_vocabularies

__all__ = ["EAGLE3", "HEADS", "HeadFile", "check_head", "head_of", "read_head"]

EAGLE3 = "eagle3"
HEADS = frozenset({EAGLE3, DFLASH})
"""Architectures of the files that are heads and can be run."""

LAYERS_READ = 3  # llama.cpp takes exactly so many in EAGLE-3
MOST_LAYERS_READ = 64
USUAL_TRIAL = 64  # drafts that shares rest on where a file does not say on how many
MOST_TRIED = 1 << 40  # tokens of a trial that can be
IDS, EMBEDDING, OUTPUT = "d2t", "token_embd.weight", "output.weight"
FEATURES_NORM = "enc.output_norm.weight"


@dataclass(frozen=True, slots=True)
class HeadFile:
    """An EAGLE-3 head, or one that drafts a block at once.

    Attributes:
        info: its header.
        layers: ids of the target's layers whose inputs it reads.
        target_width: width of each.
        rows: tokens that it scores.
        trimmed: whether these are not all, but those of the tensor d2t.
        own_embedding, own_output: whether it has these matrices, or reads the target's.
        made_for: what `head_target` gives for its target; empty if the file does not say.
        block: what is drafted at once; None in EAGLE-3, where each token is read before the next is drafted.
    """

    info: GGUFInfo
    layers: tuple[int, ...]
    target_width: int
    rows: int
    trimmed: bool
    own_embedding: bool
    own_output: bool
    made_for: str
    block: Block | None = None

    @property
    def step_bytes(self) -> int:
        """Bytes of its weights that are read for a drafted token: all but those of the embedding."""
        read = sum(tensor.nbytes for tensor in self.info.tensors if tensor.name not in (EMBEDDING, IDS))
        return read // (self.block.most if self.block is not None else 1)

    @property
    def trial(self) -> tuple[tuple[int, int], ...]:
        """Of the first, second and further tokens of its drafts, how many were right and how often all before
        were, when it was trained; empty if the file does not say."""
        try:
            told = json.loads(str(self.info.metadata.get(HEAD_TRAINED, "")))
            shares, left, counts = told["by_step"], USUAL_TRIAL, []
            for share, reached in zip_longest(shares, told.get("reached", ())):
                tried = left if reached is None else int(reached)
                left = round(float(share) * tried)
                counts.append((left, tried))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return ()
        return tuple(counts) if all(0 <= right <= tried <= MOST_TRIED for right, tried in counts) else ()

    def told(self) -> str:
        """What it reads and scores, in words."""
        layers = ", ".join(map(str, self.layers))
        rows, size = f"{self.rows:,}", f"{self.info.vocabulary_size:,}"
        told = f"reads what enters layers {layers} of a target, scores {rows} of {size} tokens"
        return told + (f", drafts {self.block.most} at once" if self.block is not None else "")

    def ids(self) -> NDArray[np.int64]:
        """(R,) the tokens that the columns of its output stand for, as they lie in the file.

        Raises:
            OSError, ModelError: it cannot be read any more.
        """
        if not self.trimmed:
            return np.arange(self.rows, dtype=np.int64)
        tensor = next(tensor for tensor in self.info.tensors if tensor.name == IDS)
        return np.frombuffer(read_span(self.info.path, (tensor.at, tensor.at + tensor.nbytes)), "<i8")


def read_head(path: Path) -> HeadFile:
    """The head in a file.

    Raises:
        ModelError: it cannot be read, is none, or llama.cpp would end the process for it.
    """
    return head_of(read_gguf(path))


def head_of(info: GGUFInfo) -> HeadFile:
    """The head with this header, checked by itself.

    Raises:
        ModelError: it is none, or llama.cpp would end the process for it.
    """
    if info.architecture not in HEADS:
        raise ModelError(
            f"{info.path.name} is no draft head", "specx runs heads in llama.cpp's eagle3 and dflash forms"
        )
    check_values(info)
    tensors = {tensor.name: tensor for tensor in info.tensors}
    found = info.metadata.get(f"{info.architecture}.target_layers", ())
    layers = tuple(layer for layer in (found if isinstance(found, tuple) else (found,)) if type(layer) is int)
    ids, made_for = tensors.get(IDS), info.metadata.get(HEAD_TARGET, "")
    block = block_of(info, tensors) if info.architecture == DFLASH else None
    head = HeadFile(
        info,
        layers,
        info.integer("target_hidden_size") if block is None else info.embedding_length,
        ids.elements if ids is not None else info.vocabulary_size,
        ids is not None,
        EMBEDDING in tensors,
        OUTPUT in tensors or (block is not None and EMBEDDING in tensors),
        made_for if isinstance(made_for, str) else "",
        block,
    )
    for problem in _problems(head, tensors):
        raise ModelError(f"{info.path} is damaged: {problem}", download_again(info.path))
    return head


def check_head(head: HeadFile, target: GGUFInfo) -> str | None:
    """Why a head cannot draft for `target` (one clause), or None if it can.

    Raises:
        OSError, ModelError: a file cannot be read any more.
    """
    return next(_misfits(head, target), None)


def _problems(head: HeadFile, tensors: dict[str, Tensor]) -> Iterator[str]:
    """What is wrong with a file, one clause each."""
    info, form = head.info, head.info.architecture
    if head.block is None and info.blocks != 1:
        yield f"it has {info.blocks} layers, and an EAGLE-3 head has one"
    if head.block is not None:
        yield from block_problems(info, head.block, tensors)
    read, needed = len(head.layers), f"{LAYERS_READ} " if head.block is None else ""
    right = read == LAYERS_READ if needed else 0 < read <= MOST_LAYERS_READ
    if not right or len(set(head.layers)) < read or min(head.layers) < 0:
        yield f"{form}.target_layers is {list(head.layers)}, not {needed}layers of a target"
    for key, value in (
        ("target_hidden_size", head.target_width),
        ("embedding_length", info.embedding_length),
        ("feed_forward_length", info.feed_forward_length),
        ("attention.head_count", info.heads),
        ("attention.head_count_kv", info.kv_heads[0]),
    ):
        if value < 1:
            yield f"{form}.{key} is {value}"
    if info.key_length != info.value_length:
        yield f"its keys have {info.key_length} dimensions and its values {info.value_length}"
    if not info.vocabulary_size:
        yield "it has no vocabulary"
    yield from _wrong_shapes(head, tensors)
    yield from _wrong_ids(head, tensors)


def _wrong_shapes(head: HeadFile, tensors: dict[str, Tensor]) -> Iterator[str]:
    """Tensors that are missing, or have other sizes than the metadata says."""
    for name, shape in _shapes(head, tensors).items():
        tensor = tensors.get(name)
        if tensor is None:
            yield f"tensor {name} is missing"
        elif tensor.shape != shape:
            yield f"tensor {name} is of size {tensor.shape}, not {shape}"
        elif len(shape) == 1 and tensor.type != "F32":
            yield f"tensor {name} is of type {tensor.type}, and llama.cpp takes F32"
    factors = tensors.get("rope_freqs.weight") or tensors.get("blk.0.rope_freqs.weight")
    rotated = head.info.integer("rope.dimension_count") or head.info.key_length
    if factors is not None and (factors.elements != rotated // 2 or factors.type != "F32"):
        yield f"tensor {factors.name} has {factors.elements} values of type {factors.type}"


def _shapes(head: HeadFile, tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Sizes of all tensors that must be there, the fastest dimension first."""
    info, read = head.info, len(head.layers) * head.target_width
    if head.block is not None:
        shapes = block_shapes(info, head.block, tensors, read, head.rows)
    else:
        shapes = _pair_shapes(info, read)
    if head.own_embedding:
        shapes[EMBEDDING] = (info.embedding_length, info.vocabulary_size)
    if head.own_output and OUTPUT in tensors:
        shapes[OUTPUT] = (info.embedding_length, head.rows)
    return shapes


def _pair_shapes(info: GGUFInfo, read: int) -> dict[str, tuple[int, ...]]:
    """Sizes of the tensors of EAGLE-3 but for those of its tokens."""
    d, block = info.embedding_length, "blk.0."
    queries, keys = info.heads * info.key_length, info.kv_heads[0] * info.key_length
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (read, d),
        "output_norm.weight": (d,),
        block + "attn_norm.weight": (d,),
        block + "attn_norm_2.weight": (d,),
        block + "attn_q.weight": (2 * d, queries),
        block + "attn_k.weight": (2 * d, keys),
        block + "attn_v.weight": (2 * d, keys),
        block + "attn_output.weight": (queries, d),
        block + "ffn_norm.weight": (d,),
        block + "ffn_gate.weight": (d, info.feed_forward_length),
        block + "ffn_up.weight": (d, info.feed_forward_length),
        block + "ffn_down.weight": (info.feed_forward_length, d),
    }
    if info.metadata.get(f"{EAGLE3}.norm_before_fc", False):
        shapes[FEATURES_NORM] = (read,)
    return shapes


def _wrong_ids(head: HeadFile, tensors: dict[str, Tensor]) -> Iterator[str]:
    """Tokens that it scores and that are none, or are there twice."""
    if not head.trimmed:
        return
    tensor, size = tensors[IDS], head.info.vocabulary_size
    if tensor.type != "I64" or len(tensor.shape) != 1 or not 0 < tensor.elements <= size:
        yield f"tensor {IDS} is of type {tensor.type} and size {tensor.shape}"
        return
    if OUTPUT not in tensors:
        yield f"it has the tensor {IDS}, and no {OUTPUT} for these tokens"
    ids = np.sort(head.ids())
    if ids[0] < 0 or ids[-1] >= size or not np.diff(ids).all():
        yield f"tensor {IDS} does not name different tokens from 0 to below {size}"


def _misfits(head: HeadFile, target: GGUFInfo) -> Iterator[str]:
    """Why it does not go with a target, one clause each."""
    given, width = given_layers(target), own_width(target)
    if not given:
        yield f"llama.cpp gives no hidden states of the architecture {target.architecture!r}"
        return
    if min(head.layers) < given.start or max(head.layers) >= given.stop:
        yield f"it reads layers {list(head.layers)}, and the target gives {given.start} to {given.stop - 1}"
    if head.target_width not in (width, target.embedding_length):
        yield f"it reads hidden states of {head.target_width} values, and the target's have {width}"
    shared = match_vocabularies(target, head.info)
    if not shared.shared or head.info.vocabulary_size < target.vocabulary_size:
        yield f"its vocabulary is not the target's: {shared.difference or 'it has fewer tokens'}"
    if head.made_for and head.made_for != head_target(target):
        yield "it was trained for another model"
    if not (head.own_embedding and head.own_output) and not _lends(head, target):
        yield "it has no matrices of its own for its tokens, and the target's have another width"


def _lends(head: HeadFile, target: GGUFInfo) -> bool:
    """Whether the target's embedding and output can take the place of those that a head lacks."""
    rows = target.vocabulary_size == head.info.vocabulary_size
    return rows and head.info.embedding_length == target.embedding_length
