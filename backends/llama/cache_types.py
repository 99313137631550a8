"""Types of the KV cache that llama.cpp refuses with a model or a setting, told before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specx.backends.errors import UsageError
from specx.backends.settings import LoadSettings

if TYPE_CHECKING:
    from specx.backends.gguf.file import GGUFInfo

__all__ = ["FLOATS", "check_cache_of_model", "check_flash_attention"]

FLOATS = frozenset({"f32", "f16", "bf16"})


def check_flash_attention(settings: LoadSettings) -> None:
    """Raise UsageError if flash attention is off and a cache needs it."""
    if settings.flash_attn != "off":
        return
    flags = [("-ctv/--cache-type-v", settings.type_v)]
    if settings.drafter != "none":
        flags.append(("-ctvd/--cache-type-v-draft", settings.draft_type_v))
    for flag, kind in flags:
        if kind not in FLOATS:
            raise UsageError(
                f"{flag} is {kind} and -fa/--flash-attn is off: a quantized V cache needs flash attention",
                f"leave -fa off out, or keep values in f16 ({flag.split('/', maxsplit=1)[0]} f16)",
            )


def check_cache_of_model(info: GGUFInfo, settings: LoadSettings) -> None:
    """Raise UsageError if keys or values of this model cannot be kept as `settings` say.

    With flash attention a head is made of whole blocks, and some models keep keys and values in one.
    """
    if info.integer("attention.key_length_mla") and settings.type_k != settings.type_v:
        raise UsageError(
            f"the K cache is {settings.type_k} and the V cache {settings.type_v}, and {info.name} keeps both "
            "in one",
            f"give both the same type: -ctk {settings.type_k} -ctv {settings.type_k}",
        )
    if settings.flash_attn == "off":
        return
    for flag, kind, length in (
        ("-ctk", settings.type_k, info.key_length),
        ("-ctv", settings.type_v, info.value_length),
    ):
        block = _block(kind)
        if length % block:
            raise UsageError(
                f"{flag} is {kind}, in blocks of {block}, and a head of {info.name} has {length} dimensions",
                f"take a type without blocks: {flag} f16",
            )


def _block(kind: str) -> int:
    """Values of a block of the ggml type `kind`."""
    import gguf

    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]][0])
