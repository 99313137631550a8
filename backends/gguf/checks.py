"""Whether llama.cpp can run what a GGUF file describes: do its values fit each other, and its tensors?

llama.cpp ends the process where these do not go together, so it is found out before it is asked. What it
reports by itself, such as a tensor that is missing, is left to it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

from specx.backends.errors import ModelError
from specx.backends.gguf.file import GGUFInfo, read_gguf
from specx.backends.gguf.header import Scalar, download_again
from specx.backends.gguf.reading import read_span
from specx.backends.gguf.state_checks import wrong_states
from specx.kernels._native import distinct_tokens

__all__ = ["check_runnable", "check_values", "read_runnable"]

MOST_LAYERS, MOST_EXPERTS = 512, 1024  # of llama.cpp: LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS
ALIGNMENT = 32  # bytes; its TENSOR_ALIGNMENT
NO_WEIGHTS = frozenset({"I8", "I16", "I32", "I64", "F64"})  # ggml multiplies nothing by these
ROPE_SCALINGS = frozenset({"none", "linear", "yarn", "longrope"})
ROTATING = frozenset({"lfm2", "lfm2moe", "qwen35", "qwen35moe"})  # hybrids; others may do without
GATES = range(1, 5)  # what llama.cpp has to choose experts by
WRITTEN = frozenset({1, 4, 6})  # token types with a text: normal, user-defined, byte
EPSILONS = ("layer_norm_rms_epsilon", "layer_norm_epsilon", "group_norm_epsilon")


def read_runnable(path: Path | str, *, drafting: bool = False) -> GGUFInfo:
    """`read_gguf` for a model that is to be run.

    Args:
        path: the file.
        drafting: whether it is to draft for another model only.

    Raises:
        ModelError: it cannot be read, or llama.cpp cannot run it.
    """
    info = read_gguf(path)
    check_runnable(info, drafting=drafting)
    return info


def check_runnable(info: GGUFInfo, *, drafting: bool = False) -> None:
    """Raise ModelError if the file cannot continue a text, or llama.cpp would end the process for it."""
    if info.trim is not None and not drafting:
        raise ModelError(
            f"{info.path.name} is a trimmed draft model: it scores {info.head_rows:,} of "
            f"{info.vocabulary_size:,} tokens, and can only draft for another model",
            f"name the model that is to write, and this one with -md {info.path.name}",
        )
    if info.obstacle:
        raise ModelError(
            f"{info.path.name} cannot continue a text: {info.obstacle}",
            "take a model that writes text; `specx show --list` names those found here",
        )
    check_values(info)


def check_values(info: GGUFInfo) -> None:
    """Raise ModelError if values of a header contradict each other, or its tensors, whatever it is for."""
    for problem in _problems(info):
        raise ModelError(f"{info.path} is damaged: {problem}", download_again(info.path))


def _problems(info: GGUFInfo) -> Iterator[str]:
    """What is wrong, one clause each, the key by its name."""
    alignment = info.metadata.get("general.alignment")
    if isinstance(alignment, int) and alignment % ALIGNMENT:
        yield f"general.alignment is {alignment}, and llama.cpp needs tensors at multiples of {ALIGNMENT}"
    for tensor in info.tensors:
        if tensor.name.endswith(".weight") and tensor.type in NO_WEIGHTS:
            yield f"tensor {tensor.name} is of type {tensor.type}, in which there are no weights"
        if tensor.name.endswith(".bias") and tensor.type != "F32":
            yield f"tensor {tensor.name} is of type {tensor.type}, and llama.cpp adds F32 only"
    yield from _wrong_layers(info)
    yield from _wrong_experts(info)
    yield from _wrong_attention(info)
    yield from _wrong_rotation(info)
    yield from _wrong_numbers(info)
    yield from wrong_states(info)
    yield from _wrong_tokens(info)
    if info.trim is not None:
        head = next((t.shape[-1] for t in info.tensors if t.name == "token_embd.weight"), 0)
        yield from info.trim.problems(info.path, info.size, info.vocabulary_size, head)


def _values(info: GGUFInfo, key: str) -> tuple[Scalar, ...]:
    """The elements of a value, the single one of a scalar; none without the key."""
    value = info.metadata.get(f"{info.architecture}.{key}", ())
    return value if isinstance(value, tuple) else (value,)


def _integers(info: GGUFInfo, key: str) -> tuple[int, ...]:
    return tuple(value for value in _values(info, key) if isinstance(value, int))


def _wrong_layers(info: GGUFInfo) -> Iterator[str]:
    blocks, nextn = info.blocks, info.nextn_layers
    if blocks > MOST_LAYERS:
        yield f"block_count is {blocks}, and llama.cpp takes at most {MOST_LAYERS}"
    if not 0 <= nextn < blocks:
        yield f"nextn_predict_layers is {nextn} of {blocks} layers"
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        found = info.metadata.get(f"{info.architecture}.{key}")
        if isinstance(found, tuple) and len(found) != blocks:
            yield f"{key} has {len(found)} values for {blocks} layers"


def _wrong_experts(info: GGUFInfo) -> Iterator[str]:
    experts, used = info.experts, info.experts_used
    groups, groups_used = info.integer("expert_group_count"), info.integer("expert_group_used_count")
    if not 0 <= experts <= MOST_EXPERTS:
        yield f"expert_count is {experts}, and llama.cpp takes at most {MOST_EXPERTS}"
    if not (0 < used <= experts if experts else used == 0):
        yield f"expert_used_count is {used} of {experts} experts"
    if groups and not (0 < groups < experts and experts % groups == 0):
        yield f"expert_group_count is {groups} for {experts} experts"
    gates = _integers(info, "expert_gating_func")
    if any(gate not in GATES for gate in gates if gate or info.architecture == "lfm2moe"):
        yield f"expert_gating_func is {gates[0]}"
    if groups > 1 and not 0 < groups_used < groups:
        yield f"expert_group_used_count is {groups_used} of {groups} groups"


def _wrong_attention(info: GGUFInfo) -> Iterator[str]:
    heads, kv_heads = _integers(info, "attention.head_count"), _integers(info, "attention.head_count_kv")
    if heads and kv_heads:
        pairs = zip(heads * info.blocks, kv_heads * info.blocks, strict=False)
        for head, kv in list(pairs)[: info.blocks]:
            if head < 0 or kv < 0 or (kv and head % kv):
                yield f"attention.head_count_kv is {kv} for {head} heads"
                break
    for key, length in (("key_length", info.key_length), ("value_length", info.value_length)):
        if info.heads and any(info.kv_heads) and length < 1:
            yield f"attention.{key} is {length}"


def _wrong_rotation(info: GGUFInfo) -> Iterator[str]:
    """A rotation of an even number of dimensions, no more than a head has."""
    heads = _integers(info, "attention.head_count")
    most = info.key_length if len(heads) == 1 and heads[0] else 1 << 16
    least = 2 if info.state == "attention" or info.architecture in ROTATING else 0
    for rotated in _integers(info, "rope.dimension_count"):
        if rotated % 2 or not least <= rotated <= most:
            yield f"rope.dimension_count is {rotated}, and a head has {info.key_length} dimensions"


def _wrong_numbers(info: GGUFInfo) -> Iterator[str]:
    for key in EPSILONS:
        for value in _values(info, f"attention.{key}"):
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                yield f"attention.{key} is {value}"
    for scaling in _values(info, "rope.scaling.type"):
        if isinstance(scaling, str) and scaling not in ROPE_SCALINGS:
            yield f"rope.scaling.type is {scaling!r}"


def _wrong_tokens(info: GGUFInfo) -> Iterator[str]:
    """A token list in which no text occurs twice, and something can be written with."""
    section = read_span(info.path, info.token_span)
    twice = info.vocabulary_size - distinct_tokens(section, info.vocabulary_size)
    if twice:
        yield f"tokenizer.ggml.tokens has {twice} of {info.vocabulary_size} tokens twice"
    yield from _wrong_bytes(info, section)
    types = read_span(info.path, info.token_type_span)
    if types and len(types) == 4 * info.vocabulary_size and WRITTEN.isdisjoint(memoryview(types).cast("i")):
        yield "tokenizer.ggml.token_type says of no token that it is text, so nothing could be written"


def _wrong_bytes(info: GGUFInfo, section: bytes) -> Iterator[str]:
    """All bytes: llama.cpp ends the process where one is missing that an unknown character is made of."""
    if info.tokenizer != "llama":
        return
    lacking = [b for b in range(256) if _as_token(f"<0x{b:02X}>".encode()) not in section]
    lacking = [b for b in lacking if _as_token(bytes([b])) not in section]
    if lacking:
        yield f"tokenizer.ggml.tokens has no token for the byte 0x{lacking[0]:02X}"


def _as_token(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text
