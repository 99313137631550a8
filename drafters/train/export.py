"""A head as a GGUF file in llama.cpp's EAGLE-3 form, which llama-server reads, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import quants
from numpy.typing import NDArray

from specx.backends.gguf.file import GGUFInfo
from specx.backends.gguf.head_target import HEAD_ADAPTED, HEAD_TARGET, HEAD_TRAINED, head_target
from specx.drafters.make.gguf_writing import (
    NewTensor,
    Source,
    boolean,
    float32,
    int32s,
    made_entries,
    text,
    uint32,
    write_gguf,
)
from specx.drafters.train.shape import HeadShape

__all__ = ["MATRICES", "NAMES", "head_bytes", "head_tensors", "target_matrix", "write_head"]

Array = NDArray[np.float32]

ARCHITECTURE = "eagle3"
NAMES = {
    "enc_norm.weight": "enc.output_norm.weight",
    "fc": "fc.weight",
    "attn_norm.weight": "blk.0.attn_norm.weight",
    "attn_norm_2.weight": "blk.0.attn_norm_2.weight",
    "attn_q": "blk.0.attn_q.weight",
    "attn_k": "blk.0.attn_k.weight",
    "attn_v": "blk.0.attn_v.weight",
    "attn_output": "blk.0.attn_output.weight",
    "ffn_norm.weight": "blk.0.ffn_norm.weight",
    "ffn_gate": "blk.0.ffn_gate.weight",
    "ffn_up": "blk.0.ffn_up.weight",
    "ffn_down": "blk.0.ffn_down.weight",
    "output_norm.weight": "output_norm.weight",
    "output": "output.weight",
}
"""Names in the file by those of `Head`'s parameters."""

MATRICES = "Q8_0"
OUTPUT = "Q4_0"
"""What matrices are quantized as. The output matrix is most of what a step reads."""

LICENSE = frozenset({"general.license", "general.license.name", "general.license.link"})

_TEMPLATES = ("tokenizer.chat_template",)


def target_matrix(info: GGUFInfo, name: str) -> Array:
    """(n, d) float32 values of a matrix of a model.

    Raises:
        KeyError: it has no such tensor.
        NotImplementedError: it is of a type that cannot be decoded.
    """
    tensor = Source(info).tensors[name]
    values: Array = quants.dequantize(np.asarray(tensor.data), gguf.GGMLQuantizationType(tensor.kind))
    return values.reshape(tensor.shape[::-1]).astype(np.float32)


def head_bytes(shape: HeadShape) -> int:
    """Bytes that a step of a head reads, about, with matrices of the types that `write_head` takes."""
    d, attended = shape.width, shape.heads * shape.head_width
    joined = 2 * d * (attended + 2 * shape.kv_heads * shape.head_width) + attended * d
    values = shape.features * d + joined + 3 * d * shape.ffn
    return _bytes(values, MATRICES) + _bytes(d * shape.rows, OUTPUT)


def _bytes(values: int, kind: str) -> int:
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return -(-values // block) * nbytes


def head_tensors(
    weights: Mapping[str, Array], ids: NDArray[np.int32], matrices: str, output: str
) -> list[NewTensor]:
    """The tensors of a head.

    Args:
        weights: by the names of `Head`'s parameters.
        ids: (R,) int32, the tokens that it scores.
        matrices, output: types of the matrices.
    """
    found = []
    for name, values in weights.items():
        kind = "F32" if values.ndim == 1 else output if name == "output" else matrices
        found.append(_tensor(NAMES[name], values, kind))
    whole = np.ascontiguousarray(ids, "<i8")
    found.append(NewTensor("d2t", (len(ids),), int(gguf.GGMLQuantizationType.I64), whole.view(np.uint8)))
    return found


def write_head(
    path: Path,
    weights: Mapping[str, Array],
    shape: HeadShape,
    ids: NDArray[np.int32],
    target: GGUFInfo,
    *,
    trained: Mapping[str, Any],
    adapted: tuple[GGUFInfo, Mapping[str, Any]] | None = None,
    embedding: str | None = None,
    matrices: str = MATRICES,
    output: str = OUTPUT,
) -> None:
    """Write a head.

    Args:
        path: the file; one that is there is replaced.
        weights: by the names of `Head`'s parameters, as float32 arrays.
        shape: of the head.
        ids: (R,) int32, the tokens that it scores, rising.
        target: the model that it drafts for.
        trained: how it was trained, for those who look at it.
        adapted: the head that it was before it learned from one person's text, and what that brought.
        embedding: type of an embedding of its own; None lets it read the target's, which only a head of the
            target's width can.
        matrices, output: types of the other matrices, by ggml's names.

    Raises:
        FileError: it cannot be written.
        ValueError: a type is not one that rows of this width can have.
    """
    source = Source(target)
    entries = {
        "general.architecture": text(ARCHITECTURE),
        "general.type": text("model"),
        "general.name": text(f"EAGLE-3 head for {target.name}"),
        **{
            key: value for key, value in source.entries.items() if key in LICENSE
        },  # it is made from the target
        **_shape_entries(shape, target),
        **{key: value for key, value in source.entries.items() if _of_tokenizer(key)},
        HEAD_TARGET: text(head_target(target)),
        HEAD_TRAINED: text(json.dumps(dict(trained), sort_keys=True)),
        **made_entries("train", target, target, _told(trained)),
    }
    if adapted is not None:
        before, gained = adapted
        entries |= {HEAD_ADAPTED: text(json.dumps(dict(gained), sort_keys=True))}
        entries |= made_entries("adapt", before, target, gained)
    tensors = head_tensors(weights, ids, matrices, output)
    if embedding is not None:
        whole = target if adapted is None else adapted[0]
        tensors.append(_tensor("token_embd.weight", target_matrix(whole, "token_embd.weight"), embedding))
    write_gguf(path, entries, tensors)


def _shape_entries(shape: HeadShape, target: GGUFInfo) -> dict[str, bytes]:
    """Metadata of a head's sizes."""
    values = {
        "block_count": uint32(1),
        "context_length": uint32(max(target.context_length, 1)),
        "embedding_length": uint32(shape.width),
        "feed_forward_length": uint32(shape.ffn),
        "attention.head_count": uint32(shape.heads),
        "attention.head_count_kv": uint32(shape.kv_heads),
        "attention.key_length": uint32(shape.head_width),
        "attention.value_length": uint32(shape.head_width),
        "attention.layer_norm_rms_epsilon": float32(shape.epsilon),
        "rope.dimension_count": uint32(shape.head_width),
        "rope.freq_base": float32(shape.rope_base),
        "vocab_size": uint32(target.vocabulary_size),
        "target_layers": int32s(shape.target_layers),
        "target_hidden_size": uint32(shape.target_width),
        "norm_before_fc": boolean(shape.norm_before_fc),
        "norm_before_residual": boolean(shape.norm_before_residual),
    }
    return {f"{ARCHITECTURE}.{key}": value for key, value in values.items()}


def _of_tokenizer(key: str) -> bool:
    return key.startswith("tokenizer.") and not key.startswith(_TEMPLATES)


def _tensor(name: str, values: Array, kind: str) -> NewTensor:
    """A tensor of float32 `values`, the fastest dimension last, quantized."""
    type_ = gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[type_][0]
    if values.shape[-1] % block:
        raise ValueError(f"rows of {values.shape[-1]} cannot be of type {kind}")
    plain = np.ascontiguousarray(values, np.float32)
    data = plain if kind == "F32" else quants.quantize(plain, type_)
    whole = np.ascontiguousarray(data).view(np.uint8)
    return NewTensor(name, plain.shape[::-1], int(type_), whole.reshape(len(plain), -1))


def _told(trained: Mapping[str, Any]) -> dict[str, object]:
    """What of it a list of drafters says: its numbers, but not what was measured at every step."""
    return {key: trained[key] for key in sorted(trained) if not isinstance(trained[key], list)}
