"""Text from files and standard input, and files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from pathlib import Path
from typing import BinaryIO

from specx.backends.errors import FileError, SpecxError, UsageError, reading
from specx.backends.places import is_model
from specx.cli.terminal.console import notice

__all__ = [
    "check_folder",
    "check_plot",
    "decode",
    "has_come",
    "read_bytes",
    "read_line",
    "read_stdin",
    "read_text",
    "stdin_has_come",
    "stdin_is_piped",
    "whole_text",
    "write_atomically",
]

MOST_BYTES = 1 << 28
"""Bytes of one text: more than a model could read, and less than a machine has memory."""

PICTURES = (".png", ".svg", ".pdf")
"""Endings of files that a picture can be drawn into."""

STDIN = "standard input"

WAIT_S = 1.0
"""Seconds of silence after which a person is told what is waited for."""


def decode(data: bytes, name: str) -> str:
    """UTF-8 `data` as text, without the byte order mark that some editors begin a file with.

    Raises:
        UsageError: it is not UTF-8; says at which byte of `name`.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as problem:
        byte = f"byte 0x{data[problem.start]:02x} at offset {problem.start}"
        raise UsageError(
            f"{name} is not valid UTF-8: {byte}",
            "convert it first, for example with `iconv -t UTF-8`",
        ) from problem


def whole_text(text: str) -> str:
    """`text` with U+FFFD for every lone surrogate."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_bytes(path: Path) -> bytes:
    """What is in a file.

    Raises:
        FileError: it cannot be read.
    """
    with reading(str(path)), os.fdopen(_opened(path), "rb") as file:
        return _whole(file, str(path))


def _opened(path: Path) -> int:
    """The number of an open file; of a pipe in which nobody writes yet it is told that it is waited for."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if stat.S_ISFIFO(os.fstat(number).st_mode) and not has_come(number, WAIT_S):
            notice(f"waiting for something to be written to {path}")
            has_come(number, None)
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(number, True)
    except BaseException:
        os.close(number)
        raise
    return number


def _whole(file: BinaryIO, name: str) -> bytes:
    """All that a stream gives, which may be without end.

    Raises:
        FileError: it cannot be read, or is more than any text that a model could read.
    """
    with reading(name):
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise FileError(f"{name} has more than {MOST_BYTES:,} bytes", "give a shorter text")
    return data


def read_text(path: Path) -> str:
    """The text of a file; `-` is standard input.

    Raises:
        FileError: the file cannot be read.
        UsageError: it is not UTF-8.
    """
    if str(path) == "-":
        return read_stdin()
    return decode(read_bytes(path), str(path))


def check_folder(path: Path) -> None:
    """Before anything is computed: whether the folder of `path`, which is to be written, exists.

    Raises:
        FileError: it does not, or a model is at `path`.
        FileNotFoundError: the current folder was deleted.
    """
    folder = path.absolute().parent
    try:
        exists = folder.is_dir()
    except OSError:  # it is out of reach
        exists = False
    if not exists:
        raise FileError(f"there is no folder {folder}", "create it first")
    _spare_model(path)


def _spare_model(path: Path) -> None:
    if is_model(path):
        raise FileError(f"{path} is a model, and stays one", "choose another place")


def check_plot(path: Path) -> None:
    """Before anything is measured: whether a picture can be drawn into `path`.

    Raises:
        UsageError: its ending is none of `PICTURES`, or matplotlib is missing.
        FileError: its folder is missing.
    """
    from importlib.util import find_spec

    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"{path.name} is no picture", f"give --plot a name in {', '.join(PICTURES)}")
    check_folder(path)
    if find_spec("matplotlib") is None:
        raise UsageError("plots need matplotlib", "pip install 'matplotlib>=3.10', or leave --plot out")


def read_stdin() -> str:
    """All of standard input.

    Raises:
        UsageError: it is not UTF-8.
    """
    return decode(_whole(sys.stdin.buffer, STDIN), STDIN)


def read_line(before: int) -> bytes:
    """A line of standard input, `before` bytes of which were read already; empty at its end.

    Raises:
        FileError: it cannot be read, or is longer than any text that a model could read.
    """
    with reading(STDIN):
        line = sys.stdin.buffer.readline(MOST_BYTES - before + 1)
    if before + len(line) > MOST_BYTES:
        raise FileError(f"a message has more than {MOST_BYTES:,} bytes", "give a shorter text")
    return line


def stdin_is_piped() -> bool:
    """Whether standard input is a pipe, a socket or a file: something with an end, meant to be read."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def stdin_has_come(wait_s: float) -> bool:
    """Whether standard input has anything to read, or has ended, within so many seconds."""
    try:
        return has_come(sys.stdin.fileno(), wait_s)
    except (AttributeError, OSError, ValueError):  # no stream of the system
        return True


def has_come(number: int, wait_s: float | None) -> bool:
    """Whether what is open as `number` has anything to read, or has ended; None waits until it has.

    Raises:
        OSError, ValueError: it cannot be waited for.
    """
    if stat.S_ISREG(os.fstat(number).st_mode):
        return True
    import select

    return bool(select.select([number], [], [], wait_s)[0])


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by a file with this content in one step; a device or a pipe is simply written to.

    Raises:
        SpecxError: the file cannot be written, or is a model; an older file is left as it was.
    """
    _spare_model(path)
    # What is no text, as a name of a file may be, is replaced as on standard output.
    data = content if isinstance(content, bytes) else content.encode(errors="replace")
    temporary = None
    try:
        path = Path(os.path.realpath(path))
        temporary = path.with_name(f".specx-{os.getpid()}-{time.monotonic_ns():x}.tmp")
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        temporary.replace(path)
    except (OSError, ValueError) as problem:  # ValueError: a name with a NUL character, or none at all
        with contextlib.suppress(OSError, ValueError):
            if temporary is not None:
                temporary.unlink(missing_ok=True)
        reason = getattr(problem, "strerror", None) or problem
        raise SpecxError(f"cannot write {path}: {reason}", "choose another place") from problem
