"""Layers of a model that predict the token after the next one (MTP, `nextn`), as its header tells of them.

llama.cpp ends the process where a graph of such layers lacks a tensor, so each is looked for here.
"""

from __future__ import annotations

from specx.backends.gguf.file import GGUFInfo

__all__ = ["MTP", "has_mtp", "mtp_bytes", "mtp_layer"]

_ATTENTION = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "post_attention_norm")
_NEXTN = ("nextn.eh_proj", "nextn.enorm", "nextn.hnorm")
_EXPERTS = ("ffn_gate_inp", "ffn_up_exps", "ffn_down_exps", "ffn_up_shexp", "ffn_down_shexp")
MTP = {
    "qwen35": (*_ATTENTION, *_NEXTN, "attn_q_norm", "attn_k_norm", "ffn_gate", "ffn_up", "ffn_down"),
    "qwen35moe": (
        *(*_ATTENTION, *_NEXTN, "attn_q_norm", "attn_k_norm", *_EXPERTS),
        *("ffn_gate_exps", "ffn_gate_shexp", "ffn_gate_inp_shexp"),
    ),
    "nemotron_h_moe": (*_ATTENTION, *_NEXTN, *_EXPERTS, "nextn.shared_head_norm"),
}
"""By architecture, the matrices of such a layer."""
HEAD, EMBEDDING = "output.weight", "token_embd.weight"


def mtp_layer(info: GGUFInfo) -> int:
    """Index of the first layer that only drafts; what the layer before it hands on is what it reads."""
    return info.blocks - info.nextn_layers


def has_mtp(info: GGUFInfo) -> bool:
    """Whether it has one such layer, whole, in an architecture of which it can be run here."""
    needed = MTP.get(info.architecture)
    if needed is None or info.nextn_layers != 1:
        return False
    names = {tensor.name for tensor in info.tensors}
    return all(f"blk.{mtp_layer(info)}.{name}.weight" in names for name in needed)


def mtp_bytes(info: GGUFInfo) -> int:
    """Bytes of weights that it reads for a token: its layer, of whose experts those that a token uses, and
    the head, which is the model's own unless it has another one."""
    layer = f"blk.{mtp_layer(info)}."
    used = info.experts_used / info.experts if info.experts else 1.0
    sizes = {tensor.name: tensor.nbytes for tensor in info.tensors}
    own = f"{layer}nextn.shared_head_head.weight"
    head = 0 if own in sizes else sizes.get(HEAD, sizes.get(EMBEDDING, 0))
    looked_up = f"{layer}nextn.embed_tokens.weight"
    return head + sum(
        round(size * (used if "_exps." in name else 1.0))
        for name, size in sizes.items()
        if name.startswith(layer) and name != looked_up
    )
