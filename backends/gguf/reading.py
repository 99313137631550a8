"""Reading of files that others may change, replace or cut while they are read.

They are not mapped: what is gone from a mapped file ends the process. They are opened without waiting, as a
pipe of that name would be waited for.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from specx.backends.errors import ModelError

__all__ = ["open_regular", "read_span"]


def open_regular(path: Path) -> BinaryIO:
    """A file, open for reading.

    Raises:
        OSError: it cannot be opened.
        ModelError: it is a folder, a pipe or another thing that is no file.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ModelError(f"{path} is not a regular file", "give a .gguf file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_span(path: Path, span: tuple[int, int]) -> bytes:
    """The bytes from `span[0]` up to `span[1]` of a file.

    Raises:
        OSError: it cannot be read.
        ModelError: it has become shorter.
    """
    start, end = span
    with open_regular(path) as file:
        file.seek(start)
        data = file.read(end - start)
    if len(data) != end - start:
        raise ModelError(f"{path} changed while it was read", "try again when nothing writes to it")
    return data
