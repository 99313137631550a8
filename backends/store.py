"""What survives a run: measurements, calibrations and caches, under the user's cache directory.

Entries are small files, one per (kind, key), written atomically and readable by the user only. Nothing
here is ever fatal: an entry that cannot be read is set aside and counts as missing, a store that cannot be
written keeps nothing, and the person is told once.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import ModelError
from specx.backends.gguf.reading import open_regular
from specx.backends.places import NO_HOME, cache_dir

T = TypeVar("T")

__all__ = ["PACKED", "Entry", "Store", "cache_dir", "user_store"]

VERSION = 1  # of the format; entries of another version are treated as missing
MAX_BYTES = 256 << 20  # oldest entries go when the store grows beyond this
STALE_S = 3600.0  # a half-written file this old was left by a process that ended in the middle
LOCK_S = 5.0  # longest wait for another process, which needs the store for milliseconds
MEASURING_S = 30.0  # longest wait for another process that measures: a large model takes some ten seconds
PACKED = "packed"  # weights as they are multiplied
LASTING = frozenset({"adapted", "corpus", PACKED})  # kinds that only those remove who put them there
MAPPED = b"specxmap"  # begins an entry that is mapped into memory; then the length of its head in 4 bytes
ALIGNED = 64  # bytes: a mapped array begins at a multiple
SUFFIXES = (".json", ".npz", ".map")
DAMAGED = ".damaged"  # ending of the name of an entry that was set aside
KINDS = (
    "adapted",
    "build",
    "calibration",
    "devices",
    "candidates",
    "corpus",
    "history",
    "identity",
    "kernels",
    "lengths",
    "machine",
    "model",
    "opening",
    PACKED,
    "pairs",
    "record",
    "recycle",
    "shrink",
    "staircase",
    "threads",
)


def user_store(wanted: bool, notice: Callable[[str], None]) -> Store:
    """The store in `cache_dir`, or one that keeps nothing: unless it is `wanted`, or where there is no place.

    Args:
        wanted: whether anything is to be kept.
        notice: told once if something is to be kept and cannot be.
    """
    root = cache_dir() if wanted else None
    return Store(root, notice, nowhere=NO_HOME if wanted and root is None else "")


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored file; a damaged one was set aside and counts as missing."""

    kind: str
    key: str
    path: Path
    size: int
    modified: float
    damaged: bool = False


class Store:
    """A folder of entries.

    Args:
        root: the folder, or None to keep nothing.
        notice: told once what went wrong, if anything does.
        nowhere: why there is no folder, if a person should know that nothing is kept.

    Attributes:
        told: whether something went wrong.
    """

    def __init__(
        self,
        root: Path | None,
        notice: Callable[[str], None] = lambda _text: None,
        *,
        nowhere: str = "",
    ) -> None:
        self.root = root
        self._notice = notice
        self._nowhere = nowhere
        self.told = False

    def load_json(self, kind: str, key: str) -> dict[str, Any] | None:
        """The value saved under (kind, key), or None."""
        data = self._read(kind, key, ".json")
        if data is None:
            return None
        try:
            value = json.loads(data)
            if value.pop("version") != VERSION:
                return None
            return dict(value)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            self.set_aside(kind, key)
            return None

    def load_parsed(self, kind: str, key: str, parse: Callable[[dict[str, Any]], T]) -> T | None:
        """What `parse` makes of the value saved under (kind, key), or None; if it cannot, that is set aside.

        Whatever a file holds ends no run: numbers beyond all bounds raise other errors than wrong types.
        """
        data = self.load_json(kind, key)
        try:
            return None if data is None else parse(data)
        except Exception:  # noqa: BLE001
            self.set_aside(kind, key)
            return None

    def save_json(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        """Keep a JSON object under (kind, key)."""
        self._write(kind, key, ".json", json.dumps({"version": VERSION, **value}).encode())

    def load_arrays(self, kind: str, key: str) -> dict[str, NDArray[Any]] | None:
        """The arrays saved under (kind, key), or None."""
        data = self._read(kind, key, ".npz")
        if data is None:
            return None
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            if int(arrays.pop("version")) != VERSION:
                return None
            return arrays
        except Exception:  # noqa: BLE001 -- zipfile, zlib and numpy.lib.format raise a dozen kinds over damage
            self.set_aside(kind, key)
            return None

    def save_arrays(self, kind: str, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep named arrays under (kind, key)."""
        buffer = io.BytesIO()  # not compressed: for a third of the size that took a process 150 ms at its end
        np.savez(buffer, allow_pickle=False, version=np.int64(VERSION), **arrays)
        self._write(kind, key, ".npz", buffer.getvalue())

    def load_mapped(self, kind: str, key: str) -> tuple[dict[str, Any], NDArray[np.int32]] | None:
        """The value and the array (rows, n) saved under (kind, key), or None; the array is not read."""
        path = self._path(kind, key, ".map")
        if path is None:
            return None
        try:
            with open_regular(path) as file:
                value, begin = _mapped_head(file)
            if value.pop("version") != VERSION:
                return None
            rows, n = (int(axis) for axis in value.pop("shape"))
            if rows < 1 or n < 1 or begin % ALIGNED or path.stat().st_size != begin + 4 * rows * n:
                raise ValueError("the file has another size, or its array another place")
            return value, np.memmap(path, np.int32, "r", begin, (rows, n))
        except (FileNotFoundError, ModelError):
            return None
        except OSError as error:
            self._tell(f"the cache cannot be read ({error.strerror or error})")
        except Exception:  # noqa: BLE001 -- as in `load_parsed`
            self.set_aside(kind, key)
        return None

    def save_mapped(self, kind: str, key: str, value: Mapping[str, Any], array: NDArray[np.int32]) -> bool:
        """Keep a JSON object and an array (rows, n) for `load_mapped`; says whether that was possible."""
        head = json.dumps({"version": VERSION, "shape": array.shape, **value}).encode()
        head += b" " * (-(len(MAPPED) + 4 + len(head)) % ALIGNED)
        data = MAPPED + len(head).to_bytes(4, "little") + head
        return self._write(kind, key, ".map", data, np.ascontiguousarray(array, "<i4").data.cast("B"))

    def remove(self, kind: str, key: str) -> None:
        """Remove an entry, if it is there."""
        for suffix in SUFFIXES:
            path = self._path(kind, key, suffix)
            if path is not None:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    self._tell(f"{path} cannot be removed ({error.strerror or error})")

    def set_aside(self, kind: str, key: str) -> None:
        """Rename a damaged entry so that it counts as missing and can still be looked at."""
        for suffix in SUFFIXES:
            path = self._path(kind, key, suffix)
            if path is None:
                continue
            try:
                path.replace(path.with_name(path.name + DAMAGED))
            except FileNotFoundError:
                continue
            except OSError:
                self._tell(f"a damaged cache entry cannot be set aside: {path}")
            else:
                self._tell(f"a damaged cache entry was set aside: {path}{DAMAGED}")

    def place(self, kind: str, name: str) -> Path | None:
        """Where a file lies that is written by others than the store, but listed and cleared with it; None if
        nothing is kept."""
        return None if self.root is None else self.root / kind / name

    def claim(self, kind: str) -> int | None:
        """Keep other processes from what is of a kind until the descriptor is closed; None if one has it, or
        nothing can be kept."""
        lock = self._open_lock(f".{kind}")
        if lock is not None and not _try_lock(lock):
            os.close(lock)
            return None
        return lock

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out, for reading an entry and writing what follows from it.

        Goes on without a lock where the store cannot be written or another process does not let go of it.
        """
        with self._lock(".lock", LOCK_S):
            yield

    @contextmanager
    def measuring(
        self, waiting: Callable[[], None] = lambda: None, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[bool]:
        """Keep other processes from measuring: two at once would measure each other.

        Goes on where the store cannot be written, or another process takes longer than anything should.

        Args:
            waiting: called once if another process measures now.
            stopped: whether to wait no longer; nothing is to be measured then.

        Yields:
            Whether another process was waited for, which may have kept what is to be measured.
        """
        with self._lock(".measuring", MEASURING_S, waiting, stopped) as waited:
            yield waited

    @contextmanager
    def _lock(
        self,
        name: str,
        most_s: float,
        waiting: Callable[[], None] = lambda: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[bool]:
        """Hold the lock in the file `name`, waited for at most `most_s`; says whether it was waited for."""
        lock = self._open_lock(name)
        if lock is None:
            yield False
            return
        try:
            deadline = time.monotonic() + most_s
            waited = not _try_lock(lock)
            if waited:
                waiting()
                while time.monotonic() < deadline and not stopped() and not _try_lock(lock):
                    time.sleep(0.01)
            yield waited
        finally:
            os.close(lock)  # which unlocks it

    def _open_lock(self, name: str) -> int | None:
        if self.root is None:
            return None
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            return os.open(self.root / name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            return None

    def entries(self) -> list[Entry]:
        """Everything kept, oldest first."""
        if self.root is None:
            return []
        found = []
        for kind in KINDS:
            for path in self._files(self.root / kind):
                try:
                    status = path.stat()
                except OSError:
                    continue
                name = path.name.removesuffix(DAMAGED)
                found.append(
                    Entry(kind, Path(name).stem, path, status.st_size, status.st_mtime, name != path.name)
                )
        return sorted(found, key=lambda entry: entry.modified)

    def clear(self, kind: str | None = None, *, only_damaged: bool = False) -> int:
        """Remove every entry (of one kind, or that is damaged); returns how many were removed."""
        removed = 0
        for entry in self.entries():
            if kind in (None, entry.kind) and entry.damaged >= only_damaged:
                try:
                    entry.path.unlink()
                    removed += 1
                except OSError as error:
                    self._tell(f"{entry.path} cannot be removed ({error.strerror or error})")
        if not only_damaged:
            self._remove_half_written(KINDS if kind is None else (kind,), 0.0)
        return removed

    def _remove_half_written(self, kinds: Sequence[str], age_s: float) -> None:
        """Remove what a process that ended in the middle of writing left at least `age_s` seconds ago."""
        if self.root is None:
            return
        for kind in kinds:
            for path in self._files(self.root / kind, hidden=True):
                try:
                    if path.stat().st_mtime <= time.time() - age_s:
                        path.unlink()
                except OSError:
                    continue

    def _files(self, folder: Path, *, hidden: bool = False) -> list[Path]:
        """Files of a folder; the hidden ones are those that are being written."""
        try:
            return [
                path for path in folder.iterdir() if path.name.startswith(".") == hidden and path.is_file()
            ]
        except FileNotFoundError:
            return []
        except OSError as error:
            self._tell(f"the cache cannot be read ({error.strerror or error})")
            return []

    def _path(self, kind: str, key: str, suffix: str) -> Path | None:
        return None if self.root is None else self.root / kind / (key + suffix)

    def _read(self, kind: str, key: str, suffix: str) -> bytes | None:
        path = self._path(kind, key, suffix)
        if path is None:
            return None
        try:
            with open_regular(path) as file:  # a pipe in its place would be waited for
                return file.read()
        except (FileNotFoundError, ModelError):
            return None
        except OSError as error:
            self._tell(f"the cache cannot be read ({error.strerror or error})")
            return None

    def _write(self, kind: str, key: str, suffix: str, *parts: bytes | memoryview) -> bool:
        path = self._path(kind, key, suffix)
        if path is None:
            if self._nowhere:
                self._tell(f"nothing is kept for next time: {self._nowhere}")
            return False
        temporary = ""
        try:
            for folder in (path.parent.parent, path.parent):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
            with os.fdopen(handle, "wb") as file:
                for part in parts:
                    file.write(part)
            Path(temporary).replace(path)
            self._evict()
        except OSError as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            self._tell(
                f"nothing is kept for next time: the cache {self.root} cannot be written "
                f"({error.strerror or error})"
            )
            return False
        return True

    def _evict(self) -> None:
        """Remove what is too old or too much: after every write, so in one pass without `Path`."""
        assert self.root is not None
        found: list[tuple[float, int, str]] = []
        stale = time.time() - STALE_S
        for kind in KINDS:
            with suppress(FileNotFoundError), os.scandir(self.root / kind) as files:
                for file in files:
                    status = file.stat(follow_symlinks=False)
                    if not file.name.startswith("."):
                        if kind not in LASTING:
                            found.append((status.st_mtime, status.st_size, file.path))
                    elif status.st_mtime <= stale:  # half written
                        Path(file.path).unlink(missing_ok=True)
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= MAX_BYTES:
                return
            Path(path).unlink(missing_ok=True)
            total -= size

    def _tell(self, text: str) -> None:
        if not self.told:
            self.told = True
            self._notice(text)


def _mapped_head(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The value at the beginning of a mapped entry, and where its array begins.

    Raises:
        ValueError: it is something else.
    """
    begin = file.read(len(MAPPED) + 4)
    size = int.from_bytes(begin[len(MAPPED) :], "little")
    if not begin.startswith(MAPPED) or size > MAX_BYTES:
        raise ValueError("the file is no mapped entry")
    return dict(json.loads(file.read(size))), len(MAPPED) + 4 + size


def _try_lock(handle: int) -> bool:
    """Lock an open file for this process, unless another one has."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
