"""What a draft head goes with: every quantization of one model, and nothing else."""

from __future__ import annotations

import hashlib

from specx.backends.gguf.file import GGUFInfo
from specx.backends.gguf.reading import read_span

__all__ = ["HEAD_TARGET", "HEAD_TRAINED", "head_target"]

HEAD_TARGET = "specx.head.target"
"""Key of a head's metadata: what `head_target` gives for its target."""

HEAD_TRAINED = "specx.head.trained"
"""Key of a head's metadata: JSON, how it was trained and how often it was right."""


def head_target(info: GGUFInfo) -> str:
    """Hex digest of a target's tokens, architecture, layers and width.

    Raises:
        OSError, ModelError: the file cannot be read any more.
    """
    told = f"{info.architecture} {info.blocks} {info.embedding_length} {info.vocabulary_size}".encode()
    tokens = read_span(info.path, info.token_span)
    return hashlib.blake2b(told + b"\0" + tokens, digest_size=16).hexdigest()
