"""The lines of an input: one after the other, of bounded length, with their numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

from specx.backends.errors import UsageError, reading

__all__ = ["BOM", "LONGEST", "Line", "decoded", "read_lines"]

LONGEST = 64 << 20
"""Bytes of a line; a longer one is no request, and is not held in memory."""

BOM = b"\xef\xbb\xbf"
SKIPPED = 1 << 20  # bytes of a line that is too long, at a time
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Attributes:
        number: from 1.
        data: with the end of the line, as far as it has one; of a line that is too long, its beginning.
        whole: whether `data` is all of it.
    """

    number: int
    data: bytes
    whole: bool = True

    @property
    def content(self) -> bytes:
        """The line without its end, which is LF or CRLF."""
        return self.data.removesuffix(b"\n").removesuffix(b"\r")


def read_lines(file: io.BufferedIOBase, name: str, longest: int = LONGEST) -> Iterator[Line]:
    """The lines of a file that is open for reading bytes, without a byte order mark.

    Raises:
        FileError: it cannot be read.
        UsageError: it is UTF-16.
    """
    number = 0
    with reading(name):
        while data := file.readline(longest + 1):
            number += 1
            if number == 1:
                if data.startswith(UTF16):
                    raise UsageError(
                        f"{name} is UTF-16, not UTF-8", "convert it first: `iconv -f UTF-16 -t UTF-8`"
                    )
                data = data.removeprefix(BOM)
            whole = len(data) <= longest or data.endswith(b"\n")
            end = whole
            while not end:
                rest = file.readline(SKIPPED)
                end = not rest or rest.endswith(b"\n")
            yield Line(number, data if whole else data[:100], whole)


def decoded(data: bytes) -> str:
    """UTF-8 `data` as text.

    Raises:
        ValueError: it is not UTF-8; says where.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as problem:
        raise ValueError(f"byte 0x{data[problem.start]:02x} at {problem.start} is not UTF-8") from problem
