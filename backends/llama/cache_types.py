"""Types of the KV cache that llama.cpp refuses with a model or a setting, told before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specx.backends.bare import gguf_types
from specx.backends.errors import UsageError
from specx.backends.settings import FLOAT_CACHES, Load

if TYPE_CHECKING:
    from specx.backends.gguf.file import GGUFInfo

__all__ = ["check_cache_of_model", "check_flash_attention"]


def check_flash_attention(flash_attn: str | None, type_v: str | None, draft_type_v: str | None) -> None:
    """Raise UsageError if flash attention is off and a cache needs it.

    Args:
        flash_attn, type_v: what was asked for.
        draft_type_v: the same for values of a draft model; None if there is none, or nothing was said.
    """
    if flash_attn != "off":
        return
    flags = (("-ctv/--cache-type-v", type_v), ("-ctvd/--cache-type-v-draft", draft_type_v))
    for flag, kind in flags:
        if kind is not None and kind not in FLOAT_CACHES:
            raise UsageError(
                f"{flag} is {kind} and -fa/--flash-attn is off: a quantized V cache needs flash attention",
                f"leave -fa off out, or keep values in f16 ({flag.split('/', maxsplit=1)[0]} f16)",
            )


def check_cache_of_model(info: GGUFInfo, load: Load) -> None:
    """Raise UsageError if keys or values of this model cannot be kept as `load` says.

    With flash attention a head is made of whole blocks, and some models keep keys and values in one.
    """
    if info.integer("attention.key_length_mla") and load.type_k != load.type_v:
        raise UsageError(
            f"the K cache is {load.type_k} and the V cache {load.type_v}, and {info.name} keeps both in one",
            f"give both the same type: -ctk {load.type_k} -ctv {load.type_k}",
        )
    if load.flash_attn == "off":
        return
    for flag, kind, length in (
        ("-ctk", load.type_k, info.key_length),
        ("-ctv", load.type_v, info.value_length),
    ):
        block = _block(kind)
        if length % block:
            raise UsageError(
                f"{flag} is {kind}, in blocks of {block}, and a head of {info.name} has {length} dimensions",
                f"take a type without blocks: {flag} f16",
            )


def _block(kind: str) -> int:
    """Values of a block of the ggml type `kind`."""
    gguf = gguf_types()

    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]][0])
