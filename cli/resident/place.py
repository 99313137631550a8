"""Where the server of a model is found: a Unix socket in a folder that only its user can enter.

Its name follows from the model's file and from all that was asked of it. Who asks for anything else looks for
another name, finds nothing and loads the model itself, so a server can never change a text.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from specx.backends.errors import SpecxError
from specx.backends.places import cache_dir
from specx.engine.settings import Asked, AskedModel

__all__ = ["ROUTES", "Place", "Record", "folder", "place_of", "records"]

ROUTES = ("hello", "tokenize", "specials", "encode", "generate", "answer", "cancel", "stop")
"""What is asked at such a socket, below /specx/."""

PROCESS = frozenset(
    {"adapt", "answers", "idle", "log", "longest", "texts", "measure", "packed_copy", "verbose"}
)
"""What is asked of a process, and not of how a model writes."""

LONGEST = 90
"""Bytes of the folder of a socket: the system allows about 104 for the whole path."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the server of a model is, if there is one.

    Attributes:
        name: follows from the model and from what was asked of it.
        folder: of the socket and of what is said about the server.
    """

    name: str
    folder: Path

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / f"{self.name}.sock"

    @property
    def record(self) -> Path:
        """What it says about itself, for `specx serve --status`."""
        return self.folder / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What a server in the background says."""
        root = cache_dir()
        return (self.folder if root is None else root / "serve") / f"{self.name}.log"


@dataclass(frozen=True, slots=True)
class Record:
    """What a server in the background says about itself.

    Attributes:
        place: where it is.
        pid: its process.
        model: its file.
        asked: what was asked for beyond the defaults, as words.
        log: where it writes what it has to say.
        idle_s: seconds without a request after which it ends; None for never.
    """

    place: Place
    pid: int
    model: Path
    asked: str = ""
    log: Path | None = None
    idle_s: float | None = None

    def write(self) -> None:
        """Say it, to this user only."""
        value = {
            "pid": self.pid,
            "model": str(self.model),
            "asked": self.asked,
            "log": None if self.log is None else str(self.log),
            "idle_s": self.idle_s,
        }
        handle = os.open(self.place.record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file)

    @classmethod
    def read(cls, place: Place) -> Record | None:
        """What is said about the server at a place; None if nothing is."""
        try:
            value = json.loads(place.record.read_bytes())
            log, idle = value["log"], value["idle_s"]
            return cls(
                place,
                int(value["pid"]),
                Path(value["model"]),
                str(value["asked"]),
                None if log is None else Path(log),
                None if idle is None else float(idle),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def folder(*, make: bool = False) -> Path | None:
    """The folder of sockets, which nobody else can enter; None if there is none, or it cannot be trusted.

    Args:
        make: make it if it is not there.

    Raises:
        SpecxError: it is to be made and cannot be, or it is not only this user's.
    """
    if os.name != "posix":
        return None
    try:
        path = _runtime_folder()
    except OSError as problem:  # nothing can be written to the temporary one
        if not make:
            return None
        raise SpecxError(
            f"there is no folder for the socket of a server: {problem.strerror}",
            "set XDG_RUNTIME_DIR to a folder of yours",
        ) from problem
    if make:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise SpecxError(
                f"there is no folder for the socket of a server: {path}: {problem.strerror}",
                "set XDG_RUNTIME_DIR to a folder of yours",
            ) from problem
    try:
        found = path.lstat()
    except OSError:
        return None
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return path
    if make:
        raise SpecxError(f"{path} is open to others, or not yours", f"chmod 700 {path}, or remove it")
    return None


def _runtime_folder() -> Path:
    """In the user's runtime directory; in the temporary one if there is none, or it is too deep.

    Raises:
        OSError: there is none, and no temporary one either.
    """
    usual = os.environ.get("XDG_RUNTIME_DIR", "")
    path = Path(usual, "specx") if usual.startswith("/") else _platform_folder()
    if len(os.fsencode(path)) <= LONGEST:
        return path
    return Path("/tmp") / f"specx-{os.getuid()}"


def _platform_folder() -> Path:
    import warnings

    import platformdirs

    with warnings.catch_warnings():  # where no variable names one, it makes do with the temporary directory
        warnings.simplefilter("ignore")
        return Path(platformdirs.user_runtime_dir("specx", appauthor=False))


def place_of(asked: Asked, *, make: bool = False) -> Place | None:
    """Where a server that does what is asked listens; None where there is no such folder.

    Args:
        asked: the model and its settings.
        make: make the folder if it is not there.

    Raises:
        SpecxError: as of `folder`.
    """
    at = folder(make=make)
    return None if at is None else Place(_name(asked), at)


def _name(asked: Asked) -> str:
    from hashlib import blake2b

    surroundings = [str(cache_dir()), os.environ.get("LLAMA_CPP_LIB_PATH", "")]
    known = json.dumps([_settings(asked), surroundings], sort_keys=True)
    return blake2b(known.encode(errors="surrogateescape"), digest_size=10).hexdigest()


def _settings(asked: AskedModel) -> dict[str, Any]:
    """All that was asked for, files as what identifies them."""
    settings: dict[str, Any] = {}
    for field in fields(asked):
        value = getattr(asked, field.name)
        if field.name in PROCESS:
            continue
        if isinstance(value, AskedModel):
            value = _settings(value)
        elif isinstance(value, Path):
            value = _identity(value)
        settings[field.name] = value
    return settings


def _identity(path: Path) -> list[Any]:
    """A file as it is now: another one in its place is another model."""
    try:
        found = path.stat()
    except OSError:
        return [str(path)]
    return [os.path.realpath(path), found.st_size, found.st_mtime_ns]


def records() -> list[Record]:
    """What servers in the background say about themselves, the living and the dead."""
    at = folder()
    if at is None:
        return []
    places = [Place(path.stem, at) for path in sorted(at.glob("*.json"))]
    return [record for place in places if (record := Record.read(place)) is not None]
