"""Whether the recurrent layers that a GGUF file describes are ones that llama.cpp can compute.

It divides by some of these values and takes others for granted, so they are looked at before it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from specx.backends.gguf.file import GGUFInfo

__all__ = ["wrong_states"]

DELTA_NETS = frozenset({"qwen35", "qwen35moe", "qwen3next"})  # a state is a square matrix for each head
SECTIONED = frozenset({"qwen35", "qwen35moe"})  # positions have several parts
ONE_HEAD_LENGTH = frozenset({"lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", *DELTA_NETS})
SCANS = frozenset({"falcon-h1", "granitehybrid", "mamba2", "nemotron_h", "nemotron_h_moe"})
TAKEN_FOR_GRANTED = {
    "qwen35": ("attn_qkv.weight", "attn_gate.weight"),
    "qwen35moe": ("attn_qkv.weight", "attn_gate.weight"),
    "nemotron_h": ("ssm_conv1d.bias",),
    "nemotron_h_moe": ("ssm_conv1d.bias",),
}
"""Tensors of a recurrent layer that llama.cpp looks up without a question."""
STATEFUL = re.compile(r"blk\.(\d+)\.(?:ssm_conv1d|shortconv\.conv)\.weight")
PRECISE = re.compile(r"blk\.\d+\.(?:ssm_(?:conv1d\.\w+|a|d|dt\.bias|norm\.weight)|shortconv\.conv\.weight)")


def wrong_states(info: GGUFInfo) -> Iterator[str]:
    """What is wrong, one clause each, the key by its name."""
    architecture = info.architecture
    if info.state == "attention" and architecture not in ONE_HEAD_LENGTH | SCANS:
        return
    for tensor in info.tensors:
        if PRECISE.fullmatch(tensor.name) and tensor.type != "F32":
            yield f"tensor {tensor.name} is of type {tensor.type}, and llama.cpp computes with F32 there"
    if architecture in ONE_HEAD_LENGTH and info.key_length != info.value_length:
        yield f"attention.value_length is {info.value_length}, and attention.key_length {info.key_length}"
    yield from _missing_tensors(info)
    if architecture in DELTA_NETS:
        yield from _wrong_delta_net(info)
    if architecture in SCANS:
        yield from _wrong_scan(info)
    if architecture in SECTIONED:
        yield from _wrong_sections(info)
    if architecture in ("lfm2", "lfm2moe"):
        yield from _wrong_convolution(info)


def _wrong_convolution(info: GGUFInfo) -> Iterator[str]:
    if info.integer("shortconv.l_cache") < 2:
        yield f"shortconv.l_cache is {info.integer('shortconv.l_cache')}"
    if info.heads * info.key_length != info.embedding_length:
        yield f"attention.head_count is {info.heads} for {info.embedding_length} values"


def _missing_tensors(info: GGUFInfo) -> Iterator[str]:
    names = {tensor.name for tensor in info.tensors}
    layers = [match[1] for tensor in info.tensors if (match := STATEFUL.fullmatch(tensor.name))]
    for layer in layers:
        for name in TAKEN_FOR_GRANTED.get(info.architecture, ()):
            if f"blk.{layer}.{name}" not in names:
                yield f"there is no tensor blk.{layer}.{name}"


def _wrong_delta_net(info: GGUFInfo) -> Iterator[str]:
    if info.metadata.get(f"{info.architecture}.full_attention_interval") == 0:
        yield "full_attention_interval is 0"
    size, heads, groups = _sizes(info)
    if info.integer("ssm.inner_size") != size * heads:
        yield f"ssm.inner_size is {info.integer('ssm.inner_size')} for {heads} heads of {size}"
    yield from _wrong_groups(heads, groups)
    yield from _wrong_kernel(info)


def _wrong_scan(info: GGUFInfo) -> Iterator[str]:
    inner = info.integer("ssm.inner_size")
    _, heads, groups = _sizes(info)
    yield from _wrong_groups(heads, groups)
    if inner < 1 or (heads > 0 and inner % heads) or (groups > 0 and inner % groups):
        yield f"ssm.inner_size is {inner} for {heads} heads in {groups} groups"
    yield from _wrong_kernel(info)


def _sizes(info: GGUFInfo) -> tuple[int, int, int]:
    keys = ("ssm.state_size", "ssm.time_step_rank", "ssm.group_count")
    size, heads, groups = (info.integer(key) for key in keys)
    return size, heads, groups


def _wrong_groups(heads: int, groups: int) -> Iterator[str]:
    if heads < 1 or groups < 1 or heads % groups:
        yield f"ssm.group_count is {groups} for {heads} heads (ssm.time_step_rank)"


def _wrong_kernel(info: GGUFInfo) -> Iterator[str]:
    kernel = info.integer("ssm.conv_kernel")
    if kernel < 2:
        yield f"ssm.conv_kernel is {kernel}"


def _wrong_sections(info: GGUFInfo) -> Iterator[str]:
    """Parts of a position's rotation: some of the first three, and together no more than a head has."""
    sections = info.metadata.get(f"{info.architecture}.rope.dimension_sections", ())
    numbers = [n for n in (sections if isinstance(sections, tuple) else (sections,)) if isinstance(n, int)]
    most = info.integer("rope.dimension_count") or info.key_length
    if not numbers:
        return  # llama.cpp says that they are missing
    if min(numbers) < 0 or not any(numbers[:3]) or sum(numbers) > most:
        yield f"rope.dimension_sections are {numbers}, and {most} dimensions are rotated"
