"""Recurrent layers that llama.cpp would end the process for, or divide by zero at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specx.backends.errors import ModelError
from specx.backends.gguf.checks import check_runnable
from specx.backends.gguf.file import read_gguf

SCANS = ("nemotron_h", "nemotron_h_moe")
DELTA_NETS = ("qwen35", "qwen35moe")


def with_value(info, key, value):
    return replace(info, metadata={**info.metadata, f"{info.architecture}.{key}": value})


@pytest.mark.parametrize(
    ("names", "key", "value", "told"),
    [
        (DELTA_NETS, "full_attention_interval", 0, "full_attention_interval is 0"),
        (DELTA_NETS, "ssm.inner_size", 128, "ssm.inner_size is 128 for 4 heads of 16"),
        (DELTA_NETS, "rope.dimension_sections", (0, 0, 0, 8), "rope.dimension_sections"),
        (DELTA_NETS, "rope.dimension_sections", (77, 77, 77, 77), "rope.dimension_sections"),
        (DELTA_NETS, "rope.dimension_sections", (-1, 4, 4, 0), "rope.dimension_sections"),
        (DELTA_NETS, "rope.dimension_count", 0, "rope.dimension_count is 0"),
        (SCANS, "ssm.inner_size", 0, "ssm.inner_size is 0"),
        (SCANS, "ssm.inner_size", 66, "ssm.inner_size is 66"),
        ((*SCANS, *DELTA_NETS), "ssm.group_count", 0, "ssm.group_count is 0"),
        ((*SCANS, *DELTA_NETS), "ssm.group_count", 3, "ssm.group_count is 3 for 4 heads"),
        ((*SCANS, *DELTA_NETS), "ssm.time_step_rank", 0, "for 0 heads"),
        ((*SCANS, *DELTA_NETS), "ssm.conv_kernel", 1, "ssm.conv_kernel is 1"),
        (("lfm2", "lfm2moe"), "shortconv.l_cache", 1, "shortconv.l_cache is 1"),
        (("lfm2moe",), "expert_gating_func", 0, "expert_gating_func is 0"),
        (("lfm2moe",), "expert_gating_func", 1 << 30, "expert_gating_func is"),
    ],
)
def test_values_that_cannot_be_computed_with(tiny_hybrids, names, key, value, told):
    for name in names:
        info = read_gguf(tiny_hybrids[name])
        check_runnable(info)
        with pytest.raises(ModelError, match="damaged") as caught:
            check_runnable(with_value(info, key, value))
        assert told in caught.value.message


@pytest.mark.parametrize("name", ["lfm2", "qwen35", "nemotron_h"])
def test_heads_of_a_length(tiny_hybrids, name):
    info = read_gguf(tiny_hybrids[name])
    with pytest.raises(ModelError, match="value_length is 8"):
        check_runnable(replace(info, value_length=8))
    if name == "lfm2":
        with pytest.raises(ModelError, match="head_count is 2 for 64 values"):
            check_runnable(replace(info, heads=2))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("qwen35", "attn_qkv.weight"), ("qwen35moe", "attn_gate.weight"), ("nemotron_h_moe", "ssm_conv1d.bias")],
)
def test_tensors_that_are_taken_for_granted(tiny_hybrids, name, tensor):
    info = read_gguf(tiny_hybrids[name])
    left = tuple(t for t in info.tensors if t.name != f"blk.0.{tensor}")
    with pytest.raises(ModelError, match=f"no tensor blk.0.{tensor}"):
        check_runnable(replace(info, tensors=left))


@pytest.mark.parametrize(
    "name", ["blk.0.ssm_conv1d.weight", "blk.2.ssm_a", "blk.0.ssm_d", "blk.2.ssm_dt.bias"]
)
@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_values_that_are_computed_with_as_they_are(tiny_hybrids, name, kind):
    info = read_gguf(tiny_hybrids["nemotron_h"])
    assert any(tensor.name == name for tensor in info.tensors)
    changed = tuple(replace(t, type=kind) if t.name == name else t for t in info.tensors)
    with pytest.raises(ModelError, match=f"{name} is of type {kind}"):
        check_runnable(replace(info, tensors=changed))
