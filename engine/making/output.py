"""Whether a file may be written: asked before the work, not after it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from specx.backends.errors import FileError, UsageError
from specx.backends.gguf.file import GGUFInfo

__all__ = ["check_output", "check_room"]


def check_output(output: Path, sources: Sequence[GGUFInfo], *, force: bool, least: int) -> None:
    """Raise what speaks against writing a file.

    Args:
        output: the file.
        sources: the models that it is made from and for.
        force: whether a file that is there may be replaced.
        least: bytes that it will have at least.

    Raises:
        UsageError: it is one of them.
        FileError: it is there already, or a folder, its folder cannot be written to, or has no room for it.
    """
    parts = {part.resolve() for source in sources for part in source.parts}
    if output.resolve() in parts:
        raise UsageError(f"{output} is the model itself", "choose another name with -o")
    if output.is_dir():
        raise FileError(f"{output} is a folder", "name a file with -o")
    if output.exists() and not force:
        raise FileError(f"there is a file {output} already", "choose another name with -o, or say --force")
    folder = output.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise FileError(f"nothing can be written to {folder}", "choose another place with -o")
    check_room(output, least)


def check_room(output: Path, least: int) -> None:
    """Raise FileError if a file of at least so many bytes cannot be written there."""
    folder = output.absolute().parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise FileError(f"nothing can be written to {folder}: {error.strerror or error}") from error
    if least > free:
        raise FileError(
            f"{output.name} needs {least / 1e6:,.0f} MB, and {folder} has {free / 1e6:,.0f} MB free",
            "make room, or choose another place with -o",
        )
    allowed = _longest_file()
    if allowed is not None and least > allowed:
        raise FileError(
            f"{output.name} needs {least / 1e6:,.0f} MB, and this process may write {allowed / 1e6:,.0f} MB "
            "to a file (ulimit -f)",
            "allow it more: ulimit -f unlimited",
        )


def _longest_file() -> int | None:
    """Bytes that this process may write to a file; None without a limit."""
    try:
        import resource
    except ImportError:  # not every system limits them
        return None
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if allowed == resource.RLIM_INFINITY else allowed
