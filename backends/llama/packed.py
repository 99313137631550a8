"""Packed weights on disk, which a start maps instead of packing them again.

Packing needs new memory, as much as the model has weights. Some systems supply it slowly: a virtual machine
that gives free memory back to its host gets every page anew. A file that is in memory already costs nothing.

A copy is used only if it is complete, of this build and of this very file, and each tensor has its checksum;
whatever does not is packed as without a copy. It is made while a model is loaded, where that paid at an
earlier start, and only in large pages, without which steps would take longer.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from specx.backends.gguf.shards import shard_paths
from specx.backends.llama.devices import on_gpu
from specx.backends.llama.kernels import Packing, begin_packing, device_fingerprint, end_packing
from specx.backends.machine.machine import available_memory
from specx.backends.settings import Load
from specx.backends.store import PACKED, Store

__all__ = ["LEAST_BYTES", "LEAST_S", "MOST_BYTES", "PackedCopy"]

ENDING = ".weights"
LEAST_BYTES = 128 << 20  # smaller weights are packed in no time
LEAST_S = 0.25  # CPU time of packing: a copy is mapped and checked in a third of that
MOST_BYTES = 8 << 30  # of all copies: those used longest ago go
DISK_SHARE = 10  # at most this part of what is free on the disk
MEMORY_SHARE = 8  # and of the available memory: more would be waited for until it is on the disk
SETTLED_S = 2.0  # a file changed so lately may change again without that being seen
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

_one_model = threading.Lock()  # is loaded at a time: the device has one file


class PackedCopy:
    """The copy of one model's packed weights, which may not exist.

    Args:
        store: where it lies.
        fingerprint: of the model's header.
        load: how the model is loaded.
        notice: told when a copy is made.
    """

    def __init__(
        self, store: Store, fingerprint: str, load: Load, notice: Callable[[str], None] = lambda _text: None
    ) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._load = load
        self._notice = notice

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model is loaded inside: its weights come from the copy, or become one."""
        key = self._key()
        if key is None or not self._load.mmap or self._load.mlock or sys.platform != "linux":
            yield
            return
        with _one_model, ExitStack() as stack:
            begin_packing()
            ended = self._taken(key, stack) or self._made(key, stack) or self._keep_times
            try:
                yield
            except BaseException:
                end_packing()
                raise
            ended(end_packing())

    def _key(self) -> str | None:
        """What the weights in the copy depend on, 64 characters; None if that cannot be told."""
        try:
            parts = [path.stat() for path in shard_paths(self._load.path)]
        except OSError:
            return None
        files = [(part.st_ino, part.st_size, part.st_mtime_ns, part.st_ctime_ns) for part in parts]
        load = self._load
        layers = (load.n_gpu_layers, load.offload) if on_gpu(load) else ()
        facts = (self._fingerprint, device_fingerprint(), files, layers, load.mtp)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def _path(self, key: str) -> Path | None:
        return self._store.place(PACKED, f"{self._fingerprint}-{key[:16]}{ENDING}")

    def _taken(self, key: str, stack: ExitStack) -> Callable[[Packing], None] | None:
        """Take the weights from the copy, if there is a good one; what is to be done afterwards."""
        path = self._path(key)
        if path is None:
            return None
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        stack.callback(os.close, handle)
        if not begin_packing(handle, key, writing=False):
            _remove(path)
            return None

        def ended(packing: Packing) -> None:
            if packing.packed:  # damaged
                _remove(path)
            else:
                with suppress(OSError):
                    os.utime(handle)  # the last ones to be used stay

        return ended

    def _made(self, key: str, stack: ExitStack) -> Callable[[Packing], None] | None:
        """Make a copy, if it will pay and there is room for it; what is to be done afterwards."""
        path = self._path(key)
        if path is None or not self._pays() or not self._settled():
            return None
        lock = self._store.claim(PACKED)
        if lock is None:  # another process makes one
            return None
        stack.callback(os.close, lock)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self._make_room(path):
                return None
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        except OSError:
            return None
        temporary = Path(name)
        stack.callback(_remove, temporary)
        stack.callback(os.close, handle)
        if not begin_packing(handle, key, writing=True):
            return None
        return lambda packing: self._keep(packing, key, temporary, path)

    def _pays(self) -> bool:
        """Whether packing took long at an earlier start, and a copy is not in the way of large pages."""
        times = self._times()
        return (
            times.get("seconds", 0.0) >= LEAST_S
            and times.get("bytes", 0) >= LEAST_BYTES
            and not times.get("small_pages", 0)
        )

    def _settled(self) -> bool:
        newest = time.time() - SETTLED_S
        parts = [path.stat() for path in shard_paths(self._load.path)]
        return all(max(part.st_mtime, part.st_ctime) < newest for part in parts)

    def _make_room(self, path: Path) -> bool:
        """Remove what is half written, older copies of the model, and what was used longest ago; whether
        there is room for another copy."""
        size = int(self._times()["bytes"])
        for half in path.parent.glob(".*.tmp"):  # nobody else writes one now
            _remove(half)
        memory = available_memory()
        if size > MOST_BYTES or (memory is not None and size > memory // MEMORY_SHARE):
            return False
        if size > shutil.disk_usage(path.parent).free // DISK_SHARE:
            return False
        others = [entry for entry in self._store.entries() if entry.path.suffix == ENDING]
        total = size + sum(entry.size for entry in others)
        for entry in sorted(others, key=lambda entry: not entry.key.startswith(self._fingerprint)):
            if entry.key.startswith(self._fingerprint) or total > MOST_BYTES:
                _remove(entry.path)
                total -= entry.size
        return True

    def _keep(self, packing: Packing, key: str, temporary: Path, path: Path) -> None:
        """What was written becomes the copy, if it is whole and in large pages."""
        if not packing.complete or self._key() != key:
            return
        if packing.large_pages < packing.packed // 2 and _has_large_pages():
            self._store.save_json(PACKED, self._fingerprint, {**self._times(), "small_pages": 1})
            return
        with suppress(OSError):  # it was cleared in the meantime
            temporary.replace(path)
            self._notice(
                f"{packing.packed / 2**30:.1f} GiB of rearranged weights are kept on disk, as the model "
                "starts faster with them (--no-packed-copy makes none)"
            )

    def _keep_times(self, packing: Packing) -> None:
        """Remember what packing took, the most of all starts."""
        times = self._times()
        seconds = max(times.get("seconds", 0.0), packing.seconds)
        if packing.packed >= LEAST_BYTES and (packing.packed, seconds) != (
            times.get("bytes"),
            times.get("seconds"),
        ):
            kept = {**times, "bytes": packing.packed, "seconds": seconds}
            self._store.save_json(PACKED, self._fingerprint, kept)

    def _times(self) -> dict[str, float]:
        found = self._store.load_json(PACKED, self._fingerprint) or {}
        return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _has_large_pages() -> bool:
    """Whether memory of a process's own can be on large pages here."""
    try:
        return "[never]" not in LARGE_PAGES.read_text(encoding="ascii")
    except OSError:
        return False
