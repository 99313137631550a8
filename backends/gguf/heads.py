"""What the headers of draft heads say, and whether a target gives what a head reads.

llama.cpp ends the process where a layer is asked for its input that its graph does not tell, or a head does
not go with its target, so nothing of that is left to it.
"""

from __future__ import annotations

__all__ = ["LAYER_INPUTS", "LAYER_OUTPUTS"]

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
