"""What the control groups of this process leave of the machine: CPU time and memory, versions 1 and 2.

A limit holds for everything below the group it is set on, so the whole chain is read, from the group of this
process up to the mount point of its hierarchy; in a container that is as far as one can see. File formats:
cgroup-v1 and cgroup-v2 of the Linux kernel's admin guide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["MemoryGroup", "cpu_quota", "memory_groups", "read_text", "throttled_s"]

UNLIMITED = 1 << 60  # version 1 says "no limit" with the largest multiple of the page size
RECLAIMABLE = ("active_file", "inactive_file", "slab_reclaimable")  # bytes of memory.stat
OCTAL = re.compile(r"\\([0-7]{3})")  # how mountinfo writes blanks in names


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A group with a limit of its own.

    Attributes:
        limit: bytes it may use.
        used: bytes in use that the kernel cannot take back: file cache is not counted.
    """

    limit: int
    used: int

    @property
    def available(self) -> int:
        """Bytes that are left."""
        return max(0, self.limit - self.used)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that the tightest group allows, None without a limit.

    Args:
        root: folder in which `proc` and the mount points are.
    """
    shares = [_share(version, folder) for version, folder in _levels(root, "cpu")]
    return min((share for share in shares if share is not None), default=None)


def throttled_s(root: Path = Path("/")) -> float:
    """Seconds that this process's groups were held up so far because their quota was used up.

    Args:
        root: folder in which `proc` and the mount points are.
    """
    return max((_throttled(version, folder) for version, folder in _levels(root, "cpu")), default=0.0)


def memory_groups(root: Path = Path("/")) -> list[MemoryGroup]:
    """Every group with a limit on memory that this process is in, innermost first."""
    found = []
    for version, folder in _levels(root, "memory"):
        names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
        limits = [limit for name in names if (limit := _number(folder / name)) is not None]
        if limits and min(limits) < UNLIMITED:
            found.append(MemoryGroup(min(limits), _used(version, folder)))
    return found


def read_text(path: Path) -> str | None:
    """The stripped text of a file, None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _share(version: int, folder: Path) -> float | None:
    if version == 2:
        quota, _, period = (read_text(folder / "cpu.max") or "").partition(" ")
    else:
        quota = read_text(folder / "cpu.cfs_quota_us") or ""
        period = read_text(folder / "cpu.cfs_period_us") or ""
    if not (quota.isdecimal() and period.isdecimal()):  # "max", -1, or nothing
        return None
    return int(quota) / int(period) if int(quota) and int(period) else None


def _throttled(version: int, folder: Path) -> float:
    name, unit = ("throttled_usec", 1e-6) if version == 2 else ("throttled_time", 1e-9)
    for line in (read_text(folder / "cpu.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value) * unit
    return 0.0


def _used(version: int, folder: Path) -> int:
    prefix = "" if version == 2 else "total_"  # those of the groups below included
    names = {prefix + name for name in RECLAIMABLE}
    lines = [line.partition(" ") for line in (read_text(folder / "memory.stat") or "").splitlines()]
    cache = sum(int(value) for name, _, value in lines if name in names and value.isdecimal())
    used = _number(folder / ("memory.current" if version == 2 else "memory.usage_in_bytes")) or 0
    return max(0, used - cache)


def _number(path: Path) -> int | None:
    text = read_text(path) or ""
    return int(text) if text.isdecimal() else None


def _levels(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Version and folder of the groups that may limit `controller`, from the inside out."""
    groups = _groups(root)
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        mount, _, rest = line.partition(" - ")
        fields, kind = mount.split(), rest.split()
        if len(fields) < 5 or len(kind) < 3 or not kind[0].startswith("cgroup"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        if version == 1 and controller not in kind[2].split(","):
            continue
        path = groups.get(controller if version == 1 else "")
        if path is not None:
            top = root / _unescaped(fields[4]).lstrip("/")
            yield from ((version, folder) for folder in _chain(top, _unescaped(fields[3]), path))


def _groups(root: Path) -> dict[str, str]:
    """Path of this process's group by controller; that of version 2 under the empty name."""
    found = {}
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            if controller or number == "0":
                found[controller] = path
    return found


def _chain(top: Path, mounted: str, group: str) -> Iterator[Path]:
    """Folders of `group` and of what is above it; `mounted` is the group that is mounted at `top`."""
    path = PurePosixPath(group)
    if path.is_relative_to(mounted) and ".." not in path.parts:
        below = path.relative_to(mounted)
        for inner in (below, *below.parents) if below.parts else ():
            if inner.parts:
                yield top / inner
    yield top  # also where the group lies outside of what is mounted


def _unescaped(text: str) -> str:
    return OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
