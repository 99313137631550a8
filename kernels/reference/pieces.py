"""The tokens of a vocabulary as bytes: what `pieces.cpp` finds, said plainly."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PiecesReference"]


class PiecesReference:
    """A list of texts; the methods are those of the native class, and say what they return as lists."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = list(texts)

    def find(self, text: bytes) -> int:
        """The lowest token with these bytes, -1 if there is none."""
        return self.texts.index(text) if text and text in self.texts else -1

    def match(self, other: PiecesReference) -> list[int]:
        """For each token the lowest one of `other` with the same bytes, -1 if there is none."""
        return [other.find(text) for text in self.texts]

    def longer(self, text: bytes) -> list[int]:
        """Tokens that begin with `text` and go on, sorted by their bytes."""
        found = [i for i, piece in enumerate(self.texts) if piece.startswith(text) and piece != text]
        return sorted(found, key=lambda i: (self.texts[i], i))
