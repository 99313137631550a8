"""Of which layers a model gives the input: what draft heads read.

llama.cpp ends the process where it is asked for one that its graph does not tell.
"""

from __future__ import annotations

from specx.backends.gguf.file import GGUFInfo

__all__ = ["LAYER_INPUTS", "LAYER_OUTPUTS", "given_layers"]

_DEEPSTACK = "granite.deepstack_mapping"  # something is added between two layers

LAYER_INPUTS = frozenset(
    {
        "bailingmoe3",
        "deepseek4",
        "gemma4",
        "gpt-oss",
        "hunyuan-dense",
        "hunyuan_vl",
        "lfm2",
        "lfm2moe",
        "llama",
        "mimo2",
        "minimax-01",
        "minimax-m2",
        "muse-glimmer",
        "nanbeige",
        "nemotron_h",
        "nemotron_h_moe",
        "qwen3",
        "qwen35",
        "qwen35moe",
        "qwen3moe",
        "qwen3next",
        "qwen4exp",
    }
)
"""Architectures whose graphs llama.cpp can be told to give the input of a layer of."""

LAYER_OUTPUTS = frozenset(
    {
        "gemma",
        "gemma2",
        "gemma3",
        "granite",
        "granitemoe",
        "mistral3",
        "phi3",
        "qwen2",
        "qwen2moe",
        "smollm3",
    }
)
"""Architectures of which it cannot, and whose layers hand on what is named "l_out" unchanged."""


def given_layers(target: GGUFInfo) -> range:
    """The layers whose inputs can be had; none in architectures of which that is not known.

    What the last layer hands on enters none.
    """
    layers = target.blocks - target.nextn_layers
    if target.architecture in LAYER_INPUTS:
        return range(layers)
    if target.architecture in LAYER_OUTPUTS and _DEEPSTACK not in target.metadata:
        return range(1, layers)
    return range(0)
