"""Files that grow by whole records, whatever happens meanwhile."""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from specx.backends.errors import FileError, SpecxError

__all__ = ["SYNC_S", "Sink"]

SYNC_S = 1.0
"""Seconds after which what was written is sent to the disk itself, so that a loss of power takes no more."""


class Sink:
    """A file, or an open descriptor, that takes whole records. Each goes to the system in one write; what a
    full disk cut off is taken back.

    Args:
        target: a path, which is created if it is missing, or a descriptor, which stays open.
        name: what messages call it.
        clock: seconds.

    Attributes:
        size: bytes of the file.
        regular: it is a file, and no pipe or device.

    Raises:
        FileError: it cannot be opened, or another process writes to it as well.
    """

    def __init__(
        self,
        target: Path | int,
        name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._clock = clock
        self._own = not isinstance(target, int)
        self._path = None if isinstance(target, int) else target
        if isinstance(target, int):
            self._fd = target
        else:
            try:
                self._fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            except (OSError, ValueError) as problem:
                reason = getattr(problem, "strerror", None) or problem
                raise FileError(f"cannot write {name}: {reason}", "choose another place") from problem
        found = os.fstat(self._fd)
        self.regular = stat.S_ISREG(found.st_mode)
        if self._own and self.regular:
            self._lock()
        self.size = found.st_size if self.regular else 0
        self._synced = clock()
        self._dirty = False

    def cut(self, size: int) -> None:
        """Keep `size` bytes of the file."""
        if self._own and self.regular and size < self.size:
            os.ftruncate(self._fd, size)
            self.size = size

    def is_file(self, other: int) -> bool:
        """Whether it is the same file as an open descriptor, by whatever name."""
        return self.regular and os.path.samestat(os.fstat(self._fd), os.fstat(other))

    def write(self, record: bytes) -> None:
        """Add a record.

        Raises:
            BrokenPipeError: nobody reads any more.
            SpecxError: it cannot be written, and the file ends with the record before it; or the file is no
                longer at its place.
        """
        done, data = 0, memoryview(record)
        try:
            while done < len(data):
                try:
                    done += os.write(self._fd, data[done:])
                except BlockingIOError:
                    select.select((), (self._fd,), ())
        except BrokenPipeError:
            raise
        except OSError as problem:
            if self._own and self.regular:
                with suppress(OSError):
                    os.ftruncate(self._fd, self.size)
            again = ", then go on with --resume" if self._own and self.regular else ", or send it elsewhere"
            raise SpecxError(
                f"cannot write {self.name}: {problem.strerror}", f"make room{again}"
            ) from problem
        self.size += len(data)
        self._dirty = True
        if self._clock() - self._synced >= SYNC_S:
            self.sync()
            self.check()

    def check(self) -> None:
        """Whether the file is still at its place.

        Raises:
            FileError: it was removed, moved or replaced, so that nobody finds there what is written.
        """
        if self._path is None or not self.regular:
            return
        try:
            there = os.path.samestat(os.fstat(self._fd), self._path.stat())
        except FileNotFoundError:
            there = False
        except OSError:  # nothing can be said
            return
        if not there:
            raise FileError(
                f"{self.name} was removed, moved or replaced while it was written",
                "go on with it where it is now with --resume, or begin anew",
            )

    def sync(self) -> None:
        """Send everything to the disk itself."""
        if self._dirty and self._own and self.regular:
            with suppress(OSError):  # some file systems cannot
                os.fdatasync(self._fd) if hasattr(os, "fdatasync") else os.fsync(self._fd)
        self._synced, self._dirty = self._clock(), False

    def close(self) -> None:
        """Everything is written. Safe to call twice."""
        if self._fd < 0:
            return
        self.sync()
        if self._own:
            os.close(self._fd)
        self._fd = -1

    def _lock(self) -> None:
        """Nobody else writes to the file until it is closed."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise FileError(
                f"another process writes to {self.name}", "wait for it, or choose another output"
            ) from None
        except OSError:  # a file system without locks
            return
