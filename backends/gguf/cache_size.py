"""What llama.cpp keeps of a sequence, in bytes by layer: keys and values, or a recurrent state.

All of it follows from a model's header. Which layers look back a window only is written in newer files; in
older ones it is known by the architecture.
"""

from __future__ import annotations

import re

from specx.backends.gguf.file import GGUFInfo, type_bytes

__all__ = [
    "CELLS",
    "cells",
    "layer_cache_bytes",
    "layer_state_bytes",
    "state_bytes",
    "window_cells",
    "windowed_layers",
]

CELLS = 256  # llama.cpp rounds the number of cells up to a multiple of this
FLOAT_BYTES = 4  # of recurrent states
PERIODS = {
    "afmoe": (4, -1),
    "cohere2": (4, -1),
    "cohere2moe": (4, 0),
    "exaone-moe": (4, -1),
    "exaone4": (4, -1),
    "gemma2": (2, -1),
    "gemma3": (6, -1),
    "gemma3n": (5, -1),
    "gpt-oss": (2, -1),
    "laguna": (4, 0),
    "llama4": (4, -1),
    "mellum": (4, -1),
    "muse-glimmer": (4, -1),
    "olmo2": (4, -1),
    "plamo3": (8, -1),
    "smallthinker": (4, 0),
}
"""By architecture, in files that do not say: of so many layers one sees everything, the last or the first."""
WINDOWS = {"exaone4": 4096, "gemma2": 4096, "llama4": 8192, "smallthinker": 4096}
"""Tokens, where the architecture fixes them."""
RECURRENT = re.compile(r"blk\.(\d+)\.(?:ssm_|shortconv\.|time_mix_)")


def cells(n_ctx: int) -> int:
    """Tokens there is room for, where `n_ctx` are wanted."""
    return -(-n_ctx // CELLS) * CELLS


def window_cells(info: GGUFInfo, n_ctx: int, n_ubatch: int) -> int:
    """Cells of the windowed layers: the window, and what is computed at once."""
    return min(cells(n_ctx), cells(_window(info) + n_ubatch))


def windowed_layers(info: GGUFInfo) -> frozenset[int]:
    """Layers that look back `sliding_window` tokens only."""
    layers = range(info.blocks - info.nextn_layers)
    if not _window(info) or info.architecture == "phi3":  # llama.cpp ignores what those files say
        return frozenset()
    if info.architecture == "exaone4" and info.blocks < 64:  # the large one only
        return frozenset()
    if info.architecture == "lfm2":
        return frozenset(layers) - _recurrent_layers(info)
    period, full = PERIODS.get(info.architecture, (1, -1))
    pattern = info.metadata.get(f"{info.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        return frozenset(layer for layer, windowed in zip(layers, pattern, strict=False) if windowed)
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        period = pattern
    if period == 0:
        return frozenset(layers)
    return frozenset(layer for layer in layers if layer % period != full % period)


def layer_cache_bytes(
    info: GGUFInfo,
    n_ctx: int,
    *,
    type_k: str = "f16",
    type_v: str = "f16",
    n_ubatch: int = 512,
    swa_full: bool = False,
    flash_attn: bool = True,
    states: int = 1,
) -> tuple[int, ...]:
    """Bytes (layers,) that llama.cpp sets aside for one sequence of `n_ctx` tokens.

    Args:
        info: the model.
        n_ctx: tokens.
        type_k, type_v: types of the cache, by ggml name.
        n_ubatch: most tokens that are computed at once; windowed layers have room for them besides.
        swa_full: windowed layers keep everything.
        flash_attn: without it, values are as wide in every layer as in the widest.
        states: states of recurrent layers that are kept, the present one included.

    Raises:
        ValueError: a type ggml does not have.
    """
    windowed, recurrent = windowed_layers(info), _recurrent_layers(info)
    state = layer_state_bytes(info)
    widths = [_widths(info, layer, layer in windowed) for layer in range(info.blocks)]
    widest = max((values for _, values in widths), default=0)
    found = []
    for layer, (keys, values) in enumerate(widths):
        narrow = layer in windowed and not swa_full
        room = window_cells(info, n_ctx, n_ubatch) if narrow else cells(n_ctx)
        row = type_bytes(type_k, keys) + type_bytes(type_v, values if flash_attn or not values else widest)
        found.append(room * row + (states * state if layer in recurrent else 0))
    return tuple(found)


def _widths(info: GGUFInfo, layer: int, windowed: bool) -> tuple[int, int]:
    """Values in the keys and in the values of one token; with latent attention (MLA) there are keys only."""
    heads = info.kv_heads[layer] if layer < info.blocks - info.nextn_layers else 0
    end = "_swa" if windowed else ""
    keys = (info.integer(f"attention.key_length{end}") or info.key_length) * heads
    values = (info.integer(f"attention.value_length{end}") or info.value_length) * heads
    if heads and info.integer("attention.key_length_mla"):
        values = 0
    if heads and (indexer := info.integer("attention.indexer.key_length")):
        keys += indexer
    return keys, values


def state_bytes(info: GGUFInfo) -> int:
    """Bytes of the state of all recurrent layers after one token of a text."""
    return len(_recurrent_layers(info)) * layer_state_bytes(info)


def layer_state_bytes(info: GGUFInfo) -> int:
    """Bytes of the state of a recurrent layer: its convolutions and its memory, in 32-bit floats."""
    width, heads = info.embedding_length, info.heads
    convolved = info.integer("ssm.conv_kernel")
    if size := info.integer("wkv.head_size"):
        values = ((info.integer("token_shift_count") or 2) + size) * width
    elif length := info.integer("shortconv.l_cache"):
        values = (length - 1) * width
    elif size := info.integer("kda.head_dim"):
        values = (3 * ((convolved or 4) - 1) + size) * heads * size
    elif info.architecture == "minimax-01":
        values = info.key_length**2 * heads
    else:
        inner, state = info.integer("ssm.inner_size"), info.integer("ssm.state_size")
        groups = info.integer("ssm.group_count")
        values = max(0, convolved - 1) * (inner + 2 * groups * state) + state * inner
    return FLOAT_BYTES * values


def _recurrent_layers(info: GGUFInfo) -> frozenset[int]:
    if info.state == "attention":
        return frozenset()
    return frozenset(int(match[1]) for tensor in info.tensors if (match := RECURRENT.match(tensor.name)))


def _window(info: GGUFInfo) -> int:
    window = WINDOWS.get(info.architecture, 0)
    if info.architecture in ("llama4", "smallthinker"):
        stated = info.metadata.get(f"{info.architecture}.attention.sliding_window")
        return 0 if stated == 0 or (stated is None and info.architecture == "smallthinker") else window
    return info.sliding_window or window
