"""A GGUF file made from another one: what does not change is copied as bytes.

Nothing is decoded: metadata is carried over as it lies in the source, the tokenizer above all, and so are
tensors, whole or in rows. A row of a matrix is a whole number of blocks in every type of ggml's, so rows can
be left out whatever the quantization.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import FileError
from specx.backends.gguf.file import GGUFInfo
from specx.backends.gguf.header import Part

__all__ = [
    "Appendix",
    "NewTensor",
    "Source",
    "boolean",
    "float32",
    "int32s",
    "made_entries",
    "text",
    "uint32",
    "uint64",
    "write_gguf",
]

Bytes = NDArray[np.uint8]

VERSION = 3
ALIGNMENT = 32  # bytes between tensors, where a file does not say
PAGE = 4096  # what is appended begins at a multiple, so that a row touches as few pages as it can
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64 = 4, 5, 6, 7, 8, 9, 10
_SPLIT = "split."


def uint32(value: int) -> bytes:
    """A metadata value."""
    return struct.pack("<II", _UINT32, value)


def uint64(value: int) -> bytes:
    """A metadata value."""
    return struct.pack("<IQ", _UINT64, value)


def float32(value: float) -> bytes:
    """A metadata value."""
    return struct.pack("<If", _FLOAT32, value)


def boolean(value: bool) -> bytes:
    """A metadata value."""
    return struct.pack("<I?", _BOOL, value)


def text(value: str) -> bytes:
    """A metadata value."""
    return struct.pack("<I", _STRING) + _string(value)


def int32s(values: Sequence[int] | NDArray[np.int32]) -> bytes:
    """A metadata value: an array."""
    array = np.ascontiguousarray(values, "<i4")
    return struct.pack("<IIQ", _ARRAY, _INT32, len(array)) + array.tobytes()


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written.

    Attributes:
        name: its name.
        shape: the fastest-varying dimension first, as in ggml.
        kind: ggml's number of its type.
        data: (rows, bytes of a row) or (bytes,) uint8, as ggml keeps them.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    data: Bytes

    def rows(self, kept: NDArray[np.int32]) -> NewTensor:
        """The matrix of those rows (N,) of it, in that order."""
        return replace(self, shape=(self.shape[0], len(kept)), data=self.data[kept])


@dataclass(frozen=True, slots=True)
class Appendix:
    """Bytes behind the tensors, which readers of GGUF do not look at.

    Attributes:
        key: of the metadata; its value will be where they begin (bytes from the beginning of the file).
        data: uint8, of any shape.
    """

    key: str
    data: Bytes


class Source:
    """A model whose parts are copied; the file stays mapped while something of it is in use.

    Args:
        info: its header. A model in several files is joined.

    Attributes:
        entries: the metadata by key, values as they lie in the file; change it at will.
        tensors: by name, in the order of the file; change it at will.
    """

    def __init__(self, info: GGUFInfo) -> None:
        import gguf

        self.entries: dict[str, bytes] = {}
        self.tensors: dict[str, NewTensor] = {}
        for i, path in enumerate(info.parts):
            part = Part(path)
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if i == 0:
                spans = part.values.items()
                self.entries = {key: data[a:b] for key, (a, b) in spans if not key.startswith(_SPLIT)}
            whole: Bytes = np.frombuffer(data, np.uint8)
            for tensor in part.tensors:
                unknown = tensor.type.startswith("type ")
                kind = int(tensor.type[5:]) if unknown else int(gguf.GGMLQuantizationType[tensor.type])
                mapped = whole[tensor.at : tensor.at + tensor.nbytes]
                if len(tensor.shape) > 1:
                    mapped = mapped.reshape(tensor.elements // tensor.shape[0], -1)
                self.tensors[tensor.name] = NewTensor(tensor.name, tensor.shape, kind, mapped)


def made_entries(
    how: str, source: GGUFInfo, target: GGUFInfo, parameters: Mapping[str, object]
) -> dict[str, bytes]:
    """Metadata that tells what a drafter was made from and with; of a source that was made itself, that too.

    Args:
        how: of making: "trim", "shrink".
        source: the model it was made from.
        target: the model it is to draft for.
        parameters: what was asked for.
    """
    from specx import __version__

    told = {
        "how": how,
        "from": source.path.name,
        "from_fingerprint": source.fingerprint,
        "for": target.path.name,
        "for_fingerprint": target.fingerprint,
        "parameters": " ".join(f"{name}={value}" for name, value in parameters.items()),
        "specx": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if "specx.made.how" in source.metadata:
        known = (str(source.metadata[f"specx.made.{name}"]) for name in ("how", "from", "parameters"))
        told["before"] = " ".join(known)
    return {f"specx.made.{name}": text(value) for name, value in told.items()}


def write_gguf(
    path: Path,
    entries: Mapping[str, bytes],
    tensors: Sequence[NewTensor],
    appendix: Appendix | None = None,
) -> None:
    """Write a GGUF file, whole or not at all; one that is there is replaced.

    Args:
        path: the file.
        entries: metadata: values as `text` and its like give them.
        tensors: in this order.
        appendix: what goes behind them.

    Raises:
        FileError: it cannot be written.
    """
    stated = entries.get("general.alignment")
    alignment = struct.unpack_from("<I", stated, 4)[0] if stated else ALIGNMENT
    head = _head(entries, tensors, alignment, appendix)
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=".", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(head)
            _pad(file, alignment)
            for tensor in tensors:
                file.write(np.ascontiguousarray(tensor.data).data)
                _pad(file, alignment)
            if appendix is not None:
                _pad(file, PAGE)
                file.write(np.ascontiguousarray(appendix.data).data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except OSError as error:
        raise FileError(
            f"cannot write {path}: {error.strerror or error}", "make room, or choose another place with -o"
        ) from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _head(
    entries: Mapping[str, bytes], tensors: Sequence[NewTensor], alignment: int, appendix: Appendix | None
) -> bytes:
    """Everything before the tensors' data."""
    count = len(entries) + (appendix is not None)
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), count)]
    for key, value in entries.items():
        parts += (_string(key), value)
    listed, offset = [], 0
    for tensor in tensors:
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        listed.append(_string(tensor.name) + dimensions + struct.pack("<IQ", tensor.kind, offset))
        offset += _aligned(tensor.data.nbytes, alignment)
    if appendix is not None:
        length = sum(map(len, [*parts, *listed])) + len(_string(appendix.key) + uint64(0))
        parts += (_string(appendix.key), uint64(_aligned(_aligned(length, alignment) + offset, PAGE)))
    return b"".join([*parts, *listed])


def _string(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(at: int, step: int) -> int:
    return -(-at // step) * step


def _pad(file: BinaryIO, step: int) -> None:
    file.write(bytes(-file.tell() % step))


def _umask() -> int:
    """The permissions that new files are not given."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
