"""Trimmed draft models: what their files say of the tokens they score.

The head, and the embedding that llama.cpp is shown, have rows for some tokens only: a draft that is never
proposed costs nothing but itself, and a head of 16,384 rows is read in a sixteenth of the time of one of
262,144. The tokenizer is whole. Behind the tensors, where llama.cpp does not look, lies the embedding of the
whole vocabulary, since a text may hold any token.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from specx.backends.errors import ModelError
from specx.backends.gguf.header import Part, type_bytes
from specx.backends.gguf.reading import open_regular, read_span

__all__ = ["IDS", "ROWS", "TABLE", "TABLE_TYPE", "Trim", "is_trimmed", "trim_of"]

ROWS, IDS = "specx.trim.rows", "specx.trim.ids"
TABLE, TABLE_TYPE = "specx.trim.table", "specx.trim.table_type"
_FIRST_KEY = 24  # bytes from the beginning: magic, version and two counts come before


@dataclass(frozen=True, slots=True)
class Trim:
    """What a trimmed model scores, and where the whole embedding is.

    Attributes:
        rows: how many tokens it scores.
        ids_span: where their ids lie in the file, rising, 4 bytes each.
        table_at: where the embedding of the whole vocabulary begins, in bytes.
        table_type: its ggml type.
        row_bytes: of the embedding of one token.
    """

    rows: int
    ids_span: tuple[int, int]
    table_at: int
    table_type: str
    row_bytes: int

    def ids(self, path: Path) -> tuple[int, ...]:
        """The tokens that the rows of its logits stand for."""
        data = read_span(path, self.ids_span)
        return struct.unpack(f"<{len(data) // 4}i", data)

    def problems(self, path: Path, size: int, vocabulary: int, head: int) -> Iterator[str]:
        """What is wrong with it, one clause each.

        Args:
            path: the file.
            size: of it, in bytes.
            vocabulary: tokens of the tokenizer.
            head: rows that the head has.
        """
        start, end = self.ids_span
        for key, count in ((ROWS, self.rows), (IDS, (end - start) / 4)):
            if count != head or not head:
                yield f"{key} tells of {count:g} tokens, and the head has {head} rows"
                return
        ids = self.ids(path)
        if any(a >= b for a, b in itertools.pairwise(ids)) or not 0 <= ids[0] <= ids[-1] < vocabulary:
            yield f"{IDS} does not rise from 0 to below {vocabulary}"
        if not self.row_bytes or self.table_at < 0 or self.table_at + vocabulary * self.row_bytes > size:
            yield "the embedding behind its tensors is cut short"


def trim_of(part: Part, width: int) -> Trim | None:
    """What the header of a file says; None if it is no trimmed model.

    Args:
        part: the file.
        width: values in the embedding of a token.
    """
    if ROWS not in part.metadata:
        return None
    kind = part.text(TABLE_TYPE)
    try:
        row_bytes = type_bytes(kind, width) if kind.isupper() else 0
    except ValueError:
        row_bytes = 0
    return Trim(part.integer(ROWS), part.spans.get(IDS, (0, 0)), part.integer(TABLE), kind, row_bytes)


def is_trimmed(path: Path) -> bool:
    """Whether a GGUF file is a trimmed model, told by its first key without reading the header.

    A file that cannot be read is not.
    """
    wanted = struct.pack("<Q", len(ROWS)) + ROWS.encode()
    try:
        with open_regular(path) as file:
            head = file.read(_FIRST_KEY + len(wanted))
    except (OSError, ModelError):
        return False
    return head[:4] == b"GGUF" and head[_FIRST_KEY:] == wanted
