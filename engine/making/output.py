"""Whether a file may be written: asked before the work, not after it."""

from __future__ import annotations

import os
from pathlib import Path

from specx.backends.errors import FileError, UsageError
from specx.backends.gguf.file import GGUFInfo

__all__ = ["check_output"]


def check_output(output: Path, source: GGUFInfo, *, force: bool) -> None:
    """Raise what speaks against writing a file.

    Args:
        output: the file.
        source: the model that it is made from.
        force: whether a file that is there may be replaced.

    Raises:
        UsageError: it is the source itself.
        FileError: it is there already, or its folder cannot be written to.
    """
    if any(output.resolve() == part.resolve() for part in source.parts):
        raise UsageError(f"{output} is the model itself", "choose another name with -o")
    if output.exists() and not force:
        raise FileError(f"there is a file {output} already", "choose another name with -o, or say --force")
    folder = output.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise FileError(f"nothing can be written to {folder}", "choose another place with -o")
