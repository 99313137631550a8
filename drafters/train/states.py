"""Captured texts on disk: what a target computed for each token, in whole records with checksums.

A file is a header line of JSON and records, one a text. A record is a mark, its length, a CRC-32 and the
arrays. Whatever is damaged or was cut off is left out when a file is opened, and counted; where a length
cannot be trusted, reading goes on at the next mark. float16 holds what was computed: 6 bytes for each
dimension of the target, and 6 for each of the best scores.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import FileError

__all__ = ["BEST", "Layout", "States", "StatesFile", "StatesWriter", "unwritable"]

BEST = 32  # scores that are kept of each token: of SmolLM2's own text their probabilities sum to 0.99
MARK = b"\x93SXSTATE"
HEAD = struct.Struct("<8sIIII")  # mark, tokens, first token that the target chose, bytes, CRC-32 of the rest
MOST_TOKENS = 1 << 20
FORMAT = "specx states 1"


@dataclass(frozen=True, slots=True)
class Layout:
    """What the arrays of a file are.

    Attributes:
        target: fingerprint of the model that computed them.
        layers: ids of the layers whose inputs they are.
        width: d_t, of each.
        best: scores of each token.
    """

    target: str
    layers: tuple[int, ...]
    width: int
    best: int = BEST

    @property
    def token_bytes(self) -> int:
        """Bytes of one token."""
        return 4 + 2 * len(self.layers) * self.width + 6 * self.best

    def header(self) -> bytes:
        """The first line of a file."""
        told = {
            "format": FORMAT,
            "target": self.target,
            "layers": list(self.layers),
            "width": self.width,
            "best": self.best,
        }
        return json.dumps(told).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class States:
    """One text.

    Attributes:
        tokens: (n,) int32.
        start: the first that the target chose; what is before was given.
        features: (n, 3 d_t) float16, the inputs of the layers.
        best: (n, K) int32, the tokens with the best scores for the next position, best first.
        scores: (n, K) float16, their logits minus the highest.
    """

    tokens: NDArray[np.int32]
    start: int
    features: NDArray[np.float16]
    best: NDArray[np.int32]
    scores: NDArray[np.float16]


class StatesWriter:
    """Appends texts to a file. A context manager.

    Args:
        path: the file; what it already has stays, but for a record that was cut off.
        layout: of its arrays.

    Attributes:
        bytes: of the file.

    Raises:
        FileError: it cannot be written, or its arrays are others.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path, self._layout = path, layout
        try:
            end = _whole_end(path, layout)
            self._file = path.open("r+b" if end else "wb", buffering=0)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            self.bytes = end
            self._cut()
            if not end:
                self._write(layout.header())
        except OSError as error:
            self._file.close()
            raise unwritable(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write no more. Safe to call twice."""
        self._file.close()

    @property
    def intact(self) -> bool:
        """Whether its file is still there, as long as it was left: then nothing of it is to be checked."""
        try:
            there, own = self._path.stat(), os.fstat(self._file.fileno())
        except OSError:
            return False
        return os.path.samestat(there, own) and own.st_size == self.bytes

    def append(self, states: States) -> None:
        """Write a text, whole or not at all.

        Raises:
            FileError: there is no room for it, or the disk fails.
        """
        arrays = (states.tokens, states.features, states.best, states.scores)
        kinds = ("<i4", "<f2", "<i4", "<f2")
        data = b"".join(
            np.ascontiguousarray(array, kind).tobytes() for array, kind in zip(arrays, kinds, strict=True)
        )
        fields = len(states.tokens), states.start, len(data)
        crc = zlib.crc32(data, zlib.crc32(struct.pack("<III", *fields)))
        try:
            self._write(HEAD.pack(MARK, *fields, crc) + data)
        except OSError as error:
            with suppress(OSError):  # what is left is cut off when the file is opened again
                self._cut()
            raise unwritable(self._path, error) from error

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self.bytes += len(data)

    def _cut(self) -> None:
        """Leave nothing of a record that did not fit."""
        self._file.truncate(self.bytes)
        self._file.seek(self.bytes)


class StatesFile:
    """Reads a file of texts, which stays on disk.

    Args:
        path: the file.
        layout: what its arrays have to be.

    Attributes:
        lost: bytes of it that belong to no whole record.

    Raises:
        FileError: it cannot be read, or its arrays are others.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._layout = layout
        try:
            size = path.stat().st_size
            start = _checked_header(path, layout)
            self._data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        except OSError as error:
            raise FileError(f"cannot read {path}: {error.strerror or error}") from error
        self._records = list(_records(self._data, start, layout))
        self.lost = size - start - sum(HEAD.size + _nbytes(n, layout) for _, n, _ in self._records)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(n for _, n, _ in self._records)

    @property
    def chosen(self) -> int:
        """Those of them that the target chose."""
        return sum(n - start for _, n, start in self._records)

    def length(self, index: int) -> int:
        """Tokens of one text."""
        return self._records[index][1]

    def start(self, index: int) -> int:
        """The first token of one text that the target chose."""
        return self._records[index][2]

    def __getitem__(self, index: int) -> States:
        """One text; its arrays are borrowed from the file."""
        at, n, start = self._records[index]
        layout = self._layout
        widths = (1, len(layout.layers) * layout.width, layout.best, layout.best)
        arrays: list[NDArray[Any]] = []
        for width, kind in zip(widths, ("<i4", "<f2", "<i4", "<f2"), strict=True):
            end = at + n * width * np.dtype(kind).itemsize
            arrays.append(np.frombuffer(self._data[at:end].tobytes(), kind).reshape(n, width))
            at = end
        return States(arrays[0][:, 0], start, arrays[1], arrays[2], arrays[3])


def _nbytes(tokens: int, layout: Layout) -> int:
    return tokens * layout.token_bytes


def _checked_header(path: Path, layout: Layout) -> int:
    """Where the records begin."""
    with path.open("rb") as file:
        line = file.readline(1 << 16)
    if line != layout.header():
        raise FileError(
            f"{path} was captured otherwise, or from another model", "choose another folder, or remove it"
        )
    return len(line)


def _records(data: NDArray[np.uint8], at: int, layout: Layout) -> Iterator[tuple[int, int, int]]:
    """(where its arrays begin, tokens, start) of each whole record from `at` on."""
    view = memoryview(data)  # type: ignore[arg-type]
    while at + HEAD.size <= len(view):
        mark, n, start, nbytes, crc = HEAD.unpack_from(view, at)
        body = at + HEAD.size
        plausible = mark == MARK and 0 < n <= MOST_TOKENS and start <= n and nbytes == _nbytes(n, layout)
        if plausible and body + nbytes <= len(view):
            whole = zlib.crc32(view[body : body + nbytes], zlib.crc32(struct.pack("<III", n, start, nbytes)))
            if whole == crc:
                yield body, n, start
                at = body + nbytes
                continue
        at = _next_mark(view, at + 1)


def _next_mark(view: memoryview, at: int) -> int:
    """Where the next record may begin, or the end."""
    step = 1 << 20
    while at < len(view):
        found = bytes(view[at : at + step + len(MARK)]).find(MARK)
        if found >= 0:
            return at + found
        at += step
    return len(view)


def _whole_end(path: Path, layout: Layout) -> int:
    """Up to where a file has whole records; 0 if there is nothing."""
    if not path.exists() or not path.stat().st_size:
        return 0
    start = _checked_header(path, layout)
    data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
    return max((at + _nbytes(n, layout) for at, n, _ in _records(data, start, layout)), default=start)


def unwritable(path: Path, error: OSError) -> FileError:
    """What a person is told when a training cannot write to `path`."""
    return FileError(f"cannot write {path}: {error.strerror or error}", "make room, then go on with --resume")
