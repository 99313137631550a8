"""Where a person's files lie: the home directory and what is below it, if there is one.

A process may have none: a container that runs under a user id without a passwd entry, a service without HOME.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

__all__ = [
    "NO_HOME",
    "cache_dir",
    "expanded",
    "home",
    "is_model",
    "model_aliases",
    "model_folders",
    "user_folder",
]

model_folders: list[Path] = []
"""Folders of models that the configuration names, besides those of SPECX_MODELS."""

model_aliases: dict[str, str] = {}
"""What the configuration calls models: their files, or other names of them."""

NO_HOME = "there is no home directory, and SPECX_CACHE names no folder"


def home() -> Path | None:
    """HOME, or what the system knows where that is no absolute path; None if there is neither."""
    named = os.environ.get("HOME")
    if os.name == "posix" and named is not None and not named.startswith("/"):
        return _of_account()
    try:
        found = Path.home()
    except RuntimeError:
        return None
    return found if found.is_absolute() else None


def is_model(path: Path) -> bool:
    """Whether a GGUF file is there, which nothing but a model may be written over."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return file.read(4) == b"GGUF"
    except (OSError, ValueError):  # it cannot be read, or its name has a NUL character
        pass
    return False


def _of_account() -> Path | None:
    """What the passwd entry of this user says."""
    import pwd

    try:
        found = Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None
    return found if found.is_absolute() else None


def expanded(path: Path) -> Path:
    """`path` with a `~` at its beginning resolved, if there is such a home directory; otherwise as it is."""
    first, *rest = path.parts or ("",)
    if first == "~":
        base = home()
        return path if base is None else base.joinpath(*rest)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def user_folder(kind: Literal["cache", "config"]) -> Path | None:
    """The platform's folder for what specx keeps (`cache`) or reads (`config`); None where there is none.

    A relative XDG variable counts as unset, as the specification of these variables demands.
    """
    import platformdirs

    find = platformdirs.user_cache_dir if kind == "cache" else platformdirs.user_config_dir
    try:
        folder = Path(find("specx", appauthor=False))
    except RuntimeError:
        return None
    return folder if folder.is_absolute() else None


def cache_dir() -> Path | None:
    """`SPECX_CACHE`, else the platform's cache directory for specx; None if there is no home directory."""
    override = os.environ.get("SPECX_CACHE")
    if not override:
        return user_folder("cache")
    folder = expanded(Path(override))
    return None if folder.parts[:1] == ("~",) else folder
