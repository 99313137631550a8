"""What a draft head goes with: every quantization of one model, and nothing else."""

from __future__ import annotations

import hashlib

from specx.backends.gguf.file import GGUFInfo
from specx.backends.gguf.reading import read_span

__all__ = [
    "HEAD_ADAPTED",
    "HEAD_TARGET",
    "HEAD_TRAINED",
    "WIDENED_BY",
    "WIDENED_FROM",
    "head_target",
    "own_width",
    "widened_by",
]

HEAD_TARGET = "specx.head.target"
"""Key of a head's metadata: what `head_target` gives for its target."""

WIDENED_FROM, WIDENED_BY = "specx.widened.from", "specx.widened.by"
"""Keys of a model whose hidden states were padded with zeros (benchmarks/widen_gguf.py): the first so many
values are those of the model it was made from, multiplied by so much."""

HEAD_TRAINED = "specx.head.trained"
"""Key of a head's metadata: JSON, how it was trained and how often it was right."""

HEAD_ADAPTED = "specx.head.adapted"
"""Key of a head's metadata: JSON, what another head became by learning from one person's text."""


def own_width(info: GGUFInfo) -> int:
    """Values of a hidden state that mean something: less than it has in a model that was widened."""
    width = info.metadata.get(WIDENED_FROM)
    return width if isinstance(width, int) and 0 < width < info.embedding_length else info.embedding_length


def widened_by(info: GGUFInfo) -> float:
    """What the hidden states of a widened model were multiplied by."""
    factor = info.metadata.get(WIDENED_BY, 1.0)
    return float(factor) if isinstance(factor, float | int) and factor > 0 else 1.0


def head_target(info: GGUFInfo) -> str:
    """Hex digest of a target's tokens, architecture, layers and width.

    Raises:
        OSError, ModelError: the file cannot be read any more.
    """
    told = f"{info.architecture} {info.blocks} {own_width(info)} {info.vocabulary_size}".encode()
    tokens = read_span(info.path, info.token_span)
    return hashlib.blake2b(told + b"\0" + tokens, digest_size=16).hexdigest()
