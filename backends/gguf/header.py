"""The header of one GGUF file, and whether the file is whole.

The header is walked here and not by `gguf.GGUFReader`: that builds an array object for every token and merge,
8.3 s for a vocabulary of 262,144 and 2.2 s for one of 49,152. Texts of tokens are passed over in native code.
Names and block sizes of the tensor types are the library's.
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from specx.backends.bare import gguf_types
from specx.backends.errors import ModelError
from specx.backends.gguf.reading import open_regular
from specx.kernels._native import end_of_texts

__all__ = ["Metadata", "Part", "Scalar", "Tensor", "download_again", "type_bytes"]

Scalar = str | int | float | bool
Metadata = Mapping[str, Scalar | tuple[Scalar, ...]]

_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), ("<" + c for c in "BbHhIif?Qqd"), strict=True))
"""Forms of the numbers among GGUF's value types, for `struct`."""
_STRING, _ARRAY = 8, 9
_ARRAY_HEAD = 16  # bytes before the elements of an array: two types and a count
_LONGEST = 1 << 30  # bytes or items; a vocabulary takes a few million
_MOST_VALUES, _MOST_TENSORS = 1 << 14, 1 << 18
_MOST_TEXTS, _LONGEST_TEXT = 1 << 23, 1 << 26  # of one array; bytes of one that is kept
_AT_ONCE = 2 << 20  # bytes that are read first: the whole header where there are 50,000 tokens or fewer
_MOST_HEADER = 256 << 20
"""Bytes of a header. The largest vocabularies take some 20 million."""
_KEPT_ARRAY = 1024
"""Longest array of numbers kept in `metadata`; per-layer values are kept, vocabularies only counted."""
_OLD = tuple(name[::way] for name in (b"ggml", b"ggmf", b"ggjt", b"ggla") for way in (1, -1))
"""What files began with before there was GGUF, in either order of bytes."""
_PACKERS = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", "7z x"),
    (b"Rar!", "RAR", "unrar x"),
)
"""What a packed file begins with, what packed it, and the command that unpacks it."""
_SAMPLES, _SAMPLE_BYTES = 16, 4096


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. `shape` has the fastest-varying dimension first, as in ggml. Its data begins `at` so many
    bytes from the beginning of its file."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    at: int = 0

    @property
    def elements(self) -> int:
        """Number of values."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count


def type_bytes(name: str, elements: int) -> int:
    """Bytes of a row of `elements` values of the ggml type `name`, a partial block counting in full.

    Raises:
        ValueError: ggml has no such type.
    """
    gguf = gguf_types()

    try:
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    except KeyError:
        raise ValueError(f"no ggml type is called {name!r}") from None
    return int(-(-elements // block) * nbytes)


class _CutError(Exception):
    """The header goes on where the file has ended."""


class _NestedError(Exception):
    """A value is an array of arrays."""


class _Cursor:
    """Reads little-endian values from `data`, remembering where it is."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at

    def number(self, form: str) -> int | float | bool:
        try:
            (value,) = struct.unpack_from(form, self.data, self.at)
        except struct.error:
            raise _CutError from None
        self.at += struct.calcsize(form)
        return value  # type: ignore[no-any-return]

    def count(self, form: str = "<Q") -> int:
        return int(self.number(form))

    def string(self) -> str:
        length = self.count()
        _check_length(length, _LONGEST_TEXT)
        self.skip(length)
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def skip(self, nbytes: int) -> None:
        _check_length(nbytes)
        if nbytes > len(self.data) - self.at:
            raise _CutError
        self.at += nbytes

    def skip_strings(self, count: int) -> None:
        """Pass over `count` strings; the loop that a vocabulary is long for."""
        _check_length(count, _MOST_TEXTS)
        end, length = end_of_texts(self.data, self.at, count)
        if end < 0:
            _check_length(length)
            raise _CutError
        self.at = end

    def value(self) -> tuple[Scalar | tuple[Scalar, ...] | None, int]:
        """One metadata value and its length; the value of a long array or one of strings is None."""
        kind = self.count("<I")
        if kind == _STRING:
            return self.string(), 1
        if kind != _ARRAY:
            return self.number(_scalar_form(kind)), 1
        kind, count = self.count("<I"), self.count()
        if kind == _ARRAY:
            raise _NestedError
        if kind == _STRING:
            self.skip_strings(count)
            return None, count
        form = _scalar_form(kind)
        if count > _KEPT_ARRAY:
            self.skip(count * struct.calcsize(form))
            return None, count
        start = self.at
        self.skip(count * struct.calcsize(form))
        return struct.unpack_from(f"<{count}{form[1:]}", self.data, start), count


def _is_texts(data: bytes, at: int) -> bool:
    """Whether the value at `at`, an array, is one of strings."""
    return bool(struct.unpack_from("<I", data, at + 4)[0] == _STRING)


def _check_length(length: int, most: int = _LONGEST) -> None:
    """Raises ValueError if nothing in a header is that long: damage, whatever the file's size."""
    if length > most:
        raise ValueError(f"something in its header is {length:,} long")


def _scalar_form(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"value type {kind} does not exist")
    return _SCALARS[kind]


class Part:
    """One GGUF file: its metadata, its tensors and a digest, read and checked on construction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Scalar | tuple[Scalar, ...]] = {}
        self.lengths: dict[str, int] = {}
        self.spans: dict[str, tuple[int, int]] = {}  # where the elements of arrays lie
        self.values: dict[str, tuple[int, int]] = {}  # where values lie, behind their keys
        self.texts: set[str] = set()  # keys of arrays of strings
        self.size = _regular_size(path)
        try:
            with open_regular(path) as file:
                _check_kind(path, file.read(1024), self.size)
                rows, header, alignment = self._header(file)
                start = -(-len(header) // alignment) * alignment
                self.tensors = self._sized(rows, start, alignment)
                self.digest = _digest(file, self.size, header, start)
        except OSError as error:
            raise ModelError(
                f"{path} cannot be read: {error.strerror or error}", "check who may read it"
            ) from None

    def _header(self, file: BinaryIO) -> tuple[list[_Row], memoryview, int]:
        """Read as much of the file as the header takes: its tensors, its bytes, the alignment of tensors."""
        most = _AT_ONCE
        while True:
            file.seek(0)
            data = file.read(most)
            try:
                rows, end, alignment = self._read(data)
                return rows, memoryview(data)[:end], alignment
            except _CutError:
                if len(data) < min(most, self.size) or most >= self.size:
                    raise ModelError(
                        f"{self.path} is cut short: it ends inside its header, after {len(data):,} bytes",
                        download_again(self.path),
                    ) from None
            except ValueError as error:
                raise ModelError(f"{self.path} is damaged: {error}", download_again(self.path)) from None
            if most >= _MOST_HEADER:
                raise ModelError(
                    f"{self.path} is damaged: its header has more than {_MOST_HEADER:,} bytes",
                    download_again(self.path),
                )
            most = min(4 * most, _MOST_HEADER)

    def _read(self, data: bytes) -> tuple[list[_Row], int, int]:
        cursor = _Cursor(data, 4)
        self.version = _checked_version(self.path, cursor.count("<I"))
        n_tensors, n_values = cursor.count(), cursor.count()
        for number, most, what in (
            (n_tensors, _MOST_TENSORS, "tensors"),
            (n_values, _MOST_VALUES, "values"),
        ):
            if number > most:
                raise ValueError(f"its header names {number:,} {what}")
        for _ in range(n_values):
            key = cursor.string()
            start = cursor.at + _ARRAY_HEAD
            try:
                value, self.lengths[key] = cursor.value()
            except _NestedError:  # GGUF has them, and llama.cpp reads no file with one
                raise ModelError(
                    f"{self.path} has an array of arrays under {key[:80]!r}, which llama.cpp cannot read",
                    "convert the model again without it",
                ) from None
            self.values[key] = (start - _ARRAY_HEAD, cursor.at)
            if value is not None:
                self.metadata[key] = value
            elif _is_texts(data, start - _ARRAY_HEAD):
                self.texts.add(key)
            if value is None or isinstance(value, tuple):
                self.spans[key] = (start, cursor.at)
        rows = [_tensor_row(cursor) for _ in range(n_tensors)]
        alignment = self.integer("general.alignment") or 32
        if alignment < 1:
            raise ValueError(f"its alignment is {alignment}")
        return rows, cursor.at, alignment

    def _sized(self, rows: list[_Row], start: int, alignment: int) -> list[Tensor]:
        """Give every tensor its bytes and check that the file holds them all."""
        offsets = sorted({row.offset for row in rows})
        after = dict(zip(offsets, [*offsets[1:], self.size - start], strict=False))
        tensors, end = [], start
        for row in rows:
            name, nbytes = _type_size(row.type, row.shape)
            if nbytes is None:  # a type newer than the gguf library: up to the next tensor
                nbytes = max(0, after[row.offset] - row.offset)
            tensors.append(Tensor(row.name, row.shape, name, nbytes, start + row.offset))
            end = max(end, start + row.offset + nbytes)
        if rows and end > self.size:
            _check_layout(rows, tensors, alignment, self.path)
            raise ModelError(
                f"{self.path} is cut short: it has {self.size:,} of {end:,} bytes "
                f"({100 * self.size // end}%)",
                download_again(self.path),
            )
        return tensors

    def integer(self, key: str) -> int:
        """An integer of the metadata, the largest of an array, 0 if there is none."""
        return max(self.integers(key), default=0)

    def integers(self, key: str) -> tuple[int, ...]:
        """The integers of an array in the metadata, or the single one; empty without the key."""
        value = self.metadata.get(key, ())
        each = value if isinstance(value, tuple) else (value,)
        return tuple(v for v in each if isinstance(v, int))

    def text(self, key: str) -> str:
        """A string of the metadata, empty if there is none."""
        value = self.metadata.get(key, "")
        return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


def _check_layout(rows: list[_Row], tensors: list[Tensor], alignment: int, path: Path) -> None:
    """Raises ModelError if tensors do not lie one behind the other: then no end of the file is to be had."""
    at = 0
    for row, tensor in sorted(zip(rows, tensors, strict=True), key=lambda pair: pair[0].offset):
        if row.offset != at:
            raise ModelError(
                f"{path} is damaged: its tensors do not lie one behind the other", download_again(path)
            )
        at += -(-tensor.nbytes // alignment) * alignment


def _tensor_row(cursor: _Cursor) -> _Row:
    name, dimensions = cursor.string(), cursor.count("<I")
    if dimensions > 4:
        raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.count() for _ in range(dimensions))
    return _Row(name, shape, cursor.count("<I"), cursor.count())


def _type_size(kind: int, shape: tuple[int, ...]) -> tuple[str, int | None]:
    """Name and bytes of a tensor; the bytes are None for a type the gguf library does not know."""
    gguf = gguf_types()

    try:
        name = gguf.GGMLQuantizationType(kind)
    except ValueError:
        return f"type {kind}", None
    block, nbytes = gguf.GGML_QUANT_SIZES[name]
    elements = 1
    for extent in shape:
        elements *= extent
    return str(name.name), int(elements // block * nbytes)


def _regular_size(path: Path) -> int:
    """Size of a regular, non-empty file, or the reason why it is none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise ModelError(f"{path} is a link to a file that is gone", download_again(path)) from None
        raise ModelError(
            f"there is no file {path}", "specx show --list names the models found here"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(
            f"{str(path)!r} cannot be read: {reason}", "check its name and permissions"
        ) from None
    if stat.S_ISDIR(status.st_mode):
        inside = sorted(path.glob("*.gguf"))
        hint = f"give a file in it, such as {inside[0]}" if inside else "give the .gguf file itself"
        raise ModelError(f"{path} is a directory, not a GGUF file", hint)
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is not a regular file", "give a .gguf file")
    if status.st_size == 0:
        raise ModelError(f"{path} is empty", download_again(path))
    return status.st_size


def _packed(name: str, head: bytes) -> tuple[str, str] | None:
    """What has packed a file, and how to unpack it; a zip archive only if a GGUF is the first in it."""
    for magic, what, unpack in _PACKERS:
        if head.startswith(magic):
            return f"packed with {what}", f"unpack it first: {unpack} {name}"
    if head[257:262] == b"ustar":
        return "a tar archive", f"unpack it first: tar -xf {name}"
    inside = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if head.startswith(b"PK\x03\x04") and inside.lower().endswith(b".gguf"):
        return "a zip archive", f"unpack it first: unzip {name}"
    return None


def _check_kind(path: Path, head: bytes, size: int) -> None:
    """Refuse whatever does not begin as a GGUF file does, saying what it looks like instead."""
    if head.startswith(b"GGUF"):
        return
    again = download_again(path)
    convert = "convert it with llama.cpp's convert_hf_to_gguf.py, or pull a GGUF of the model"
    text, packed = head.lstrip().lower(), _packed(path.name, head)
    looks: tuple[tuple[bool, str, str], ...] = (
        (
            head.startswith(b"version https://git-lfs"),
            "a Git LFS pointer, not the file it points to",
            f"fetch that with `git lfs pull`, or {again}",
        ),
        (text.startswith((b"<!doctype", b"<html", b"<?xml")), "a web page", again),
        (
            head[8:9] == b"{" and (b'"dtype"' in head or int.from_bytes(head[:8], "little") <= size),
            "a safetensors file",
            convert,
        ),
        (packed is not None, *(packed or ("", ""))),
        (head.startswith(b"PK\x03\x04"), "a zip archive or a PyTorch checkpoint", convert),
        (head.startswith(b"\x80\x02"), "a pickled PyTorch checkpoint", convert),
        (head.startswith(_OLD), "in the GGML format of before August 2023", convert),
        (head.startswith(b"FUGG"), "a big-endian GGUF", "use a little-endian GGUF of the model"),
        (not head.strip(b"\0"), "nothing but zero bytes so far", again),
        (text.startswith(b"{"), "a JSON text", again),
    )
    for found, what, hint in looks:
        if found:
            raise ModelError(f"{path} is not a GGUF file: it is {what}", hint)
    raise ModelError(
        f"{path} is not a GGUF file: its {size:,} bytes do not begin with GGUF",
        again if path.suffix.lower() == ".gguf" else "specx show --list names the models found here",
    )


def _checked_version(path: Path, version: int) -> int:
    if version and version & 0xFFFF == 0:
        raise ModelError(f"{path} is a big-endian GGUF", "use a little-endian GGUF of the model")
    if version not in {2, 3}:
        raise ModelError(
            f"{path} has GGUF version {version}, and only 2 and 3 can be run",
            "use a newer conversion of the model" if version < 2 else "specx needs a newer llama.cpp for it",
        )
    return version


def _digest(file: BinaryIO, size: int, header: memoryview, start: int) -> bytes:
    """Digest of the header, the size and evenly spaced samples of the weights."""
    digest = hashlib.blake2b(header, digest_size=16)
    digest.update(size.to_bytes(8, "little"))
    room = max(0, size - _SAMPLE_BYTES - start)
    for i in range(_SAMPLES):
        file.seek(start + room * i // (_SAMPLES - 1))
        digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


def download_again(path: Path) -> str:
    """How to fetch a file again: by its repository where it lies in a Hugging Face cache."""
    path = path.absolute()
    for folder in path.parents:
        if folder.name.startswith("models--"):
            repository = folder.name.removeprefix("models--").replace("--", "/", 1)
            file = "/".join(path.relative_to(folder).parts[2:])  # below snapshots/COMMIT
            return f"download it again: specx pull {repository}/{file}"
    return "download it again: specx pull ORG/REPO"
