"""What a draft head consists of: sizes, the layers of the target that it reads, and where it normalizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from specx.backends.errors import ModelError
from specx.backends.gguf.file import GGUFInfo

__all__ = ["LAYERS_READ", "HeadShape"]

LAYERS_READ = 3  # llama.cpp takes exactly so many
COPYING = 3  # heads of attention beside those that the target has in a layer, or a few more
WHOLE = 32  # rows of matrices are whole blocks of so many values
ROPE_BASE = 1e9  # with it most values of keys are hardly turned, and a token is recognized wherever it was


@dataclass(frozen=True, slots=True)
class HeadShape:
    """An EAGLE-3 head.

    Attributes:
        target_layers: ids of the target's layers whose inputs it reads.
        target_width: d_t, width of each.
        width: d, of the head.
        heads, kv_heads, head_width: of its attention.
        ffn: width of its feed-forward network.
        rows: tokens that it scores.
        epsilon: of all norms.
        rope_base: of its rotary embedding, which turns neighbours (2i, 2i + 1).
        norm_before_fc: normalize what is read before it is projected.
        norm_before_residual: let the normalized state, not the raw one, pass beside attention.
        copying: so many of the heads of attention, the last ones, each with its own keys, begin by copying
            (`drafters.train.copying`).
    """

    target_layers: tuple[int, ...]
    target_width: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int
    rows: int
    epsilon: float
    rope_base: float
    norm_before_fc: bool = True
    norm_before_residual: bool = False
    copying: int = 0

    def __post_init__(self) -> None:
        if len(self.target_layers) != LAYERS_READ:
            raise ValueError(f"a head reads {LAYERS_READ} layers")
        if self.heads % self.kv_heads or self.head_width % 2:
            raise ValueError("heads of attention come in groups, and have an even width")
        if self.copying and (self.heads != self.kv_heads or self.copying >= self.heads):
            raise ValueError("heads that copy have their own keys, and are beside others")

    @property
    def features(self) -> int:
        """Width of what is read of the target for a token: 3 d_t."""
        return len(self.target_layers) * self.target_width

    @classmethod
    def of_target(cls, info: GGUFInfo, rows: int, **others: Any) -> Self:
        """The shape for a model: its own width, attention and FFN as one of its layers has them, but for keys
        and values of every head, as the token that follows is known to a head by its values only, and for
        heads that copy.

        Args:
            info: the target.
            rows: tokens to score.
            others: attributes that shall be otherwise.

        Raises:
            ModelError: the target has too few layers, or does not say what they look like.
        """
        if info.blocks < 4 or not (info.embedding_length and info.heads):
            raise ModelError(
                f"{info.path.name} has no layers that a head could read", "train one for another model"
            )
        epsilon = info.metadata.get(f"{info.architecture}.attention.layer_norm_rms_epsilon", 1e-5)
        copying = next(
            (n for n in range(COPYING, COPYING + WHOLE) if (info.heads + n) * info.key_length % WHOLE == 0),
            COPYING,
        )
        known: dict[str, Any] = {
            "target_layers": _layers(info.blocks),
            "target_width": info.embedding_length,
            "width": info.embedding_length,
            "heads": info.heads + copying,
            "kv_heads": info.heads + copying,
            "head_width": info.key_length,
            "ffn": info.feed_forward_length or 4 * info.embedding_length,
            "rows": rows,
            "epsilon": float(epsilon) if isinstance(epsilon, float | int) else 1e-5,
            "rope_base": ROPE_BASE,
            "copying": copying,
        }
        return cls(**{**known, **others})

    def to_json(self) -> dict[str, Any]:
        """For files: what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Raises TypeError or ValueError if `values` are not what `to_json` gives."""
        return cls(**{**values, "target_layers": tuple(values["target_layers"])})


def _layers(blocks: int) -> tuple[int, ...]:
    """A low, a middle and the last layer: what enters that one nearly is what the output is computed from."""
    return (max(1, blocks // 4), blocks // 2 + blocks // 8, blocks - 1)
