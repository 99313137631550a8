"""Headers of heads that draft a block of tokens at once: DFlash and DSpark, in llama.cpp's dflash form.

The states of committed tokens become keys and values of every layer, and one call computes the last token and
a mask for each that is drafted, which all see each other (DFlash, Chen et al. 2026). DSpark adds a bias by
the token before, from two small matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from specx.backends.gguf.file import GGUFInfo, Tensor
from specx.backends.settings import HEAD_ROWS

__all__ = ["DFLASH", "Block", "block_of", "block_problems", "block_shapes"]

DFLASH = "dflash"
USUAL_SIZE = 16  # as llama.cpp takes it where a file does not say
MASK = "tokenizer.ggml.mask_token_id"
MARKOV = "markov_w1.weight"
SECOND_FORM, EXPERTS_FORM = "selector_hidden.weight", f"{DFLASH}.hyper_connection.count"


@dataclass(frozen=True, slots=True)
class Block:
    """What a head drafts at once.

    Attributes:
        size: tokens of a call, the last one of the text included.
        mask: token that stands for one that is to be drafted.
        causal: whether each sees only what is before it.
        from_anchor: whether the place of the text's last token gives the first draft, else the next one does.
        rank: of the bias by the token before; 0 if there is none.
    """

    size: int
    mask: int
    causal: bool
    from_anchor: bool
    rank: int

    @property
    def most(self) -> int:
        """Tokens that are drafted at once."""
        return self.size - (not self.from_anchor)


def block_of(info: GGUFInfo, tensors: Mapping[str, Tensor]) -> Block:
    """What the header says of the block, unchecked."""
    size = info.metadata.get(f"{DFLASH}.block_size", USUAL_SIZE)
    mask = info.metadata.get(MASK, -1)
    markov = tensors.get(MARKOV)
    return Block(
        size if type(size) is int else 0,
        mask if type(mask) is int else -1,
        info.metadata.get(f"{DFLASH}.attention.causal", False) is True,
        markov is not None and info.metadata.get(f"{DFLASH}.sample_from_anchor", True) is True,
        markov.shape[0] if markov is not None and markov.shape else 0,
    )


def block_problems(info: GGUFInfo, block: Block, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """What is wrong with a file, or not run by specx, one clause each."""
    if SECOND_FORM in tensors or EXPERTS_FORM in info.metadata:
        yield "it is of a later form of DFlash, which specx does not run"
    if not 1 < block.size <= HEAD_ROWS:
        yield f"{DFLASH}.block_size is {block.size}, not 2 to {HEAD_ROWS}"
    if not 0 <= block.mask < info.vocabulary_size:
        yield f"{MASK} is {block.mask}, which is no token of it"
    if block.rank and f"{DFLASH}.block_size" not in info.metadata:
        yield f"{DFLASH}.block_size is missing"
    if len(set(info.kv_heads)) > 1:
        yield f"{DFLASH}.attention.head_count_kv differs between layers"
    if info.heads % max(info.kv_heads[0], 1):
        yield f"{info.heads} heads do not share {info.kv_heads[0]} keys evenly"
    if any(name.endswith(".scale") for name in tensors):
        yield "it has weights with scales of their own, which specx does not check"


def block_shapes(
    info: GGUFInfo, block: Block, tensors: Mapping[str, Tensor], read: int, rows: int
) -> dict[str, tuple[int, ...]]:
    """Sizes of all tensors that must be there, the fastest dimension first.

    Args:
        info, block, tensors: of the file.
        read: values that it reads for a token of the target.
        rows: tokens that it scores.
    """
    d, size = info.embedding_length, info.key_length
    queries, keys, feed = info.heads * size, info.kv_heads[0] * size, info.feed_forward_length
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (read, d),
        "enc.output_norm.weight": (d,),
        "output_norm.weight": (d,),
    }
    for i in range(info.blocks):
        layer = {
            "attn_norm": (d,),
            "attn_q": (d, queries),
            "attn_k": (d, keys),
            "attn_v": (d, keys),
            "attn_output": (queries, d),
            "attn_q_norm": (size,),
            "attn_k_norm": (size,),
            "post_attention_norm": (d,),
            "post_ffw_norm": (d,),
            "attn_sinks": (info.heads,),
            "layer_output_scale": (1,),
            "ffn_norm": (d,),
            "ffn_gate": (d, feed),
            "ffn_up": (d, feed),
            "ffn_down": (feed, d),
        }
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    if block.rank:
        shapes |= {MARKOV: (block.rank, info.vocabulary_size), "markov_w2.weight": (block.rank, rows)}
        shapes |= {"conf_proj.weight": (d + block.rank, 1), "conf_proj.bias": (1,)}
    return {name: shape for name, shape in shapes.items() if name in tensors or not _may_lack(name)}


def _may_lack(name: str) -> bool:
    """Whether llama.cpp runs a head without a tensor of this name."""
    optional = ("post_attention_norm", "post_ffw_norm", "attn_sinks", "layer_output_scale", "conf_proj")
    return name.endswith("attn_v.weight") or any(part in name for part in optional)
