"""What this machine is, as far as it can be read without measuring: processors, memory, power, load.

Linux says everything in files below /proc and /sys, which are read under a `root` so that tests can give
another machine's. macOS answers `sysctl`, `vm_stat` and `pmset`. Elsewhere only counts and sizes are known.
What cannot be read is None, or empty.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specx.backends.machine.cgroup import MemoryGroup, cpu_quota, memory_groups, read_text

__all__ = [
    "CPU",
    "Conditions",
    "Memory",
    "available_memory",
    "bytes_to_read",
    "instruction_sets",
    "machine_fingerprint",
    "read_conditions",
    "read_cpu",
    "read_memory",
    "this_cpu",
]

ROOT = Path("/")
SLOWER_CAPACITY = 0.5  # of the most capable core: below are the small cores of big.LITTLE
SLOWER_CLOCK = 0.75  # of the fastest clock; cores of one kind differ by a few percent
PLAUSIBLE_C = (1.0, 125.0)  # a sensor that says anything else is none
COMMAND_S = 5.0
MANY_BYTES = 1 << 30  # well beyond the caches of most machines
MEMORY_SHARE = 8  # at most this part of what is available
LEAST_BYTES = 1 << 20
OWN_SPACE = 256 << 20  # bytes of addresses that libraries, stacks and arenas reserve beyond what they use
LIMITS = (("RLIMIT_AS", "VmSize", OWN_SPACE), ("RLIMIT_DATA", "VmData", 0))


@dataclass(frozen=True, slots=True)
class CPU:
    """The processors, and which of them this process may use.

    Attributes:
        name: as the maker calls it.
        online: numbers of the logical CPUs that run.
        allowed: those that this process may run on.
        cores: the logical CPUs of each physical core; None if that cannot be read.
        efficiency: logical CPUs of slower cores; empty if all are alike.
        quota: CPUs' worth of time that the control groups allow; None without a limit.
    """

    name: str | None
    online: tuple[int, ...]
    allowed: tuple[int, ...]
    cores: tuple[tuple[int, ...], ...] | None = None
    efficiency: tuple[int, ...] = ()
    quota: float | None = None

    @property
    def usable_threads(self) -> int:
        """Threads that can run at the same time."""
        return self._within_quota(len(self.allowed))

    @property
    def usable_cores(self) -> int:
        """Threads that can run at the same time without sharing a core."""
        return self._within_quota(self._cores_of(self.allowed))

    @property
    def default_threads(self) -> int:
        """Threads to compute with where nothing was measured: one for each usable core that is not slower.

        Every step waits for the slowest thread, and threads that share a core share its arithmetic.
        """
        fast = set(self.allowed).difference(self.efficiency)
        return self._within_quota(self._cores_of(fast or self.allowed))

    def to_json(self) -> dict[str, Any]:
        """A plain value for `--json`."""
        slower = set(self.efficiency)
        return {
            "name": self.name,
            "logical": len(self.online),
            "physical": None if self.cores is None else len(self.cores),
            "threads_per_core": None if self.cores is None else max(map(len, self.cores), default=1),
            "performance": [cpu for cpu in self.online if cpu not in slower],
            "efficiency": list(self.efficiency),
            "allowed": list(self.allowed),
            "quota": self.quota,
            "usable_threads": self.usable_threads,
            "usable_cores": self.usable_cores,
            "default_threads": self.default_threads,
        }

    def _within_quota(self, count: int) -> int:
        return max(1, count if self.quota is None else min(count, math.ceil(self.quota)))

    def _cores_of(self, cpus: Iterable[int]) -> int:
        """Physical cores that `cpus` are on."""
        if self.cores is None:
            return len(set(cpus))
        core = {cpu: i for i, siblings in enumerate(self.cores) for cpu in siblings}
        return len({core.get(cpu, -1 - cpu) for cpu in cpus})


@dataclass(frozen=True, slots=True)
class Memory:
    """Main memory, in bytes; None where it cannot be read.

    Attributes:
        total: what the machine has.
        available: what can be had without swapping, the limits of control groups included.
        limit, used: of the control group that leaves the least; None without a limit. File cache, which
            gives way, is not counted as used.
        swap_total, swap_free: as they say.
    """

    total: int | None = None
    available: int | None = None
    limit: int | None = None
    used: int | None = None
    swap_total: int | None = None
    swap_free: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain value for `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What may slow the machine down for now.

    Attributes:
        power: "AC", "battery", or None.
        governors: how the kernel chooses clock rates, each policy once.
        temperature: degrees Celsius of the hottest thermal zone.
        load: processes that wanted to run, on average over 1, 5 and 15 minutes.
    """

    power: str | None = None
    governors: tuple[str, ...] = ()
    temperature: float | None = None
    load: tuple[float, float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain value for `--json`."""
        return {
            "power": self.power,
            "governors": list(self.governors),
            "temperature_c": self.temperature,
            "load": None if self.load is None else list(self.load),
        }


def bytes_to_read(memory: Memory, most: int = MANY_BYTES) -> int:
    """How many bytes the speed of reading memory is measured on: `most`, or fewer where memory is short."""
    if memory.available is None:
        return most
    return max(LEAST_BYTES, min(most, memory.available // MEMORY_SHARE))


@functools.cache
def this_cpu() -> CPU:
    """The processors of this machine, read once: a runtime that pins threads narrows the mask later on."""
    return read_cpu()


@functools.cache
def machine_fingerprint() -> str:
    """16 hex digits: the same as long as this process may use the same processors and memory.

    A key for everything that was measured here; it names nobody's machine.
    """
    cpu, total = this_cpu(), read_memory().total
    slower = set(cpu.efficiency)
    facts = (
        platform.system(),
        platform.machine(),
        cpu.name,
        len(cpu.online),
        cpu.usable_cores,
        sum(number not in slower for number in cpu.allowed),
        sum(number in slower for number in cpu.allowed),
        cpu.quota,
        None if total is None else round(total / 2**30),  # kernels keep more or less of it to themselves
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes that a process can have without swapping or passing a limit; None if that cannot be read."""
    return read_memory(root).available


def instruction_sets(system_info: str) -> list[str]:
    """Names of what is on in llama.cpp's line about itself ("CPU : SSE3 = 1 | AVX = 1 | ...")."""
    return [name for name, value in re.findall(r"(\w+) = (\d+)", system_info) if value != "0"]


def read_cpu(root: Path = ROOT) -> CPU:
    """The processors of the machine whose `proc` and `sys` are in `root`."""
    if sys.platform == "darwin" and root == ROOT:
        return cpu_of_sysctl(_pairs(_output("sysctl", "hw", "machdep.cpu"), ":"))
    folder = root / "sys/devices/system/cpu"
    allowed = _cpus(_field(root / "proc/self/status", "Cpus_allowed_list"))
    if not allowed and root == ROOT and hasattr(os, "sched_getaffinity"):
        allowed = tuple(sorted(os.sched_getaffinity(0)))
    online = _cpus(read_text(folder / "online")) or allowed or tuple(range(os.cpu_count() or 1))
    return CPU(
        name=_cpu_name(root),
        online=online,
        allowed=tuple(cpu for cpu in allowed if cpu in set(online)) or online,
        cores=_cores(folder, online),
        efficiency=_efficiency(root / "sys/devices", online),
        quota=cpu_quota(root),
    )


def cpu_of_sysctl(values: Mapping[str, str]) -> CPU:
    """The processors of a Mac, from what `sysctl hw machdep.cpu` prints."""

    def number(key: str) -> int:
        text = values.get(key, "")
        return int(text) if text.isdecimal() else 0

    logical = number("hw.logicalcpu") or os.cpu_count() or 1
    online = tuple(range(logical))
    physical = number("hw.physicalcpu")
    each = max(1, logical // physical) if physical else 1
    slower = number("hw.perflevel1.logicalcpu")
    return CPU(
        name=values.get("machdep.cpu.brand_string"),
        online=online,
        allowed=online,
        cores=tuple(online[i : i + each] for i in range(0, logical, each)) if physical else None,
        efficiency=online[logical - slower :] if slower < logical else (),
    )


def read_memory(root: Path = ROOT) -> Memory:
    """The memory of the machine whose `proc` and `sys` are in `root`."""
    if root == ROOT and sys.platform == "darwin":
        return memory_of_vm_stat(_output("sysctl", "-n", "hw.memsize"), _output("vm_stat"))
    if root == ROOT and sys.platform == "win32":
        return _windows_memory()
    words = {name: text.split() for name, text in _pairs(read_text(root / "proc/meminfo"), ":").items()}
    sizes = {name: int(word[0]) << 10 for name, word in words.items() if word and word[0].isdecimal()}
    total, available = sizes.get("MemTotal"), sizes.get("MemAvailable")
    groups = [*memory_groups(root), *process_limits(root)]
    tightest = min(groups, key=lambda group: group.available, default=None)
    if tightest is not None:
        available = tightest.available if available is None else min(available, tightest.available)
    return Memory(
        total=total,
        available=available,
        limit=tightest.limit if tightest else None,
        used=tightest.used if tightest else None,
        swap_total=sizes.get("SwapTotal"),
        swap_free=sizes.get("SwapFree"),
    )


def process_limits(root: Path = ROOT) -> Iterator[MemoryGroup]:
    """What this process may use of memory (`ulimit -v`, `ulimit -d`), as groups with this process alone."""
    try:
        import resource
    except ImportError:
        return
    said = _pairs(read_text(root / "proc/self/status"), ":")
    for name, counted, reserved in LIMITS:
        limit, used = resource.getrlimit(getattr(resource, name))[0], said.get(counted, "").split()
        if limit != resource.RLIM_INFINITY and used and used[0].isdecimal():
            yield MemoryGroup(limit, (int(used[0]) << 10) + reserved)


def memory_of_vm_stat(size: str | None, text: str | None) -> Memory:
    """The memory of a Mac, from `sysctl -n hw.memsize` and what `vm_stat` prints."""
    total = int(size) if size and size.isdecimal() else None
    page = re.search(r"page size of (\d+) bytes", text or "")
    counts = {name: count.rstrip(".") for name, count in _pairs(text, ":").items()}
    pages = {name: int(count) for name, count in counts.items() if count.isdecimal()}
    kinds = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")
    if page is None or not any(kind in pages for kind in kinds):
        return Memory(total)
    return Memory(total, sum(pages.get(kind, 0) for kind in kinds) * int(page[1]))


def read_conditions(root: Path = ROOT) -> Conditions:
    """What may slow down the machine whose `proc` and `sys` are in `root`."""
    if root == ROOT and sys.platform == "darwin":
        source = re.search(r"'(AC|Battery) Power'", _output("pmset", "-g", "batt") or "")
        power = source[1].replace("Battery", "battery") if source else None
        return Conditions(power=power, load=os.getloadavg())
    governors = {
        text
        for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
        if (text := read_text(path))
    }
    return Conditions(
        power=_power(root / "sys/class/power_supply"),
        governors=tuple(sorted(governors)),
        temperature=_temperature(root / "sys/class/thermal"),
        load=_load(read_text(root / "proc/loadavg")),
    )


def _cpu_name(root: Path) -> str | None:
    """Of x86 or, where /proc/cpuinfo gives only numbers of parts, that of the board."""
    for key in ("model name", "Hardware", "uarch"):
        if name := _field(root / "proc/cpuinfo", key):
            return " ".join(name.split())
    board = read_text(root / "proc/device-tree/model")
    return (board.strip("\0 ") if board else "") or (root == ROOT and platform.processor()) or None


def _cores(folder: Path, online: Sequence[int]) -> tuple[tuple[int, ...], ...] | None:
    found: dict[int, tuple[int, ...]] = {}
    for cpu in online:
        if cpu in found:
            continue
        topology = folder / f"cpu{cpu}" / "topology"
        text = read_text(topology / "core_cpus_list") or read_text(topology / "thread_siblings_list")
        siblings = tuple(number for number in _cpus(text) if number in set(online))
        if cpu not in siblings:
            return None
        found.update(dict.fromkeys(siblings, siblings))
    return tuple(dict.fromkeys(found.values()))


def _efficiency(devices: Path, online: Sequence[int]) -> tuple[int, ...]:
    """CPUs that are slower by design: as Intel's drivers name them, by capacity (Arm), or by their clock."""
    if (devices / "cpu_core/cpus").exists():
        return tuple(cpu for cpu in _cpus(read_text(devices / "cpu_atom/cpus")) if cpu in set(online))
    for name, least in (("cpu_capacity", SLOWER_CAPACITY), ("cpufreq/cpuinfo_max_freq", SLOWER_CLOCK)):
        texts = {cpu: read_text(devices / f"system/cpu/cpu{cpu}" / name) for cpu in online}
        values = {cpu: int(text) for cpu, text in texts.items() if text and text.isdecimal()}
        if len(values) == len(online):
            return tuple(cpu for cpu in online if values[cpu] < least * max(values.values()))
    return ()


def _power(folder: Path) -> str | None:
    """On AC if any supply says so, else on battery if one is being drained; those of a mouse do not count."""
    draining = False
    for supply in sorted(folder.glob("*")):
        kind, status = read_text(supply / "type"), read_text(supply / "status")
        if kind in ("Mains", "USB") and read_text(supply / "online") == "1":
            return "AC"
        if kind == "Battery" and read_text(supply / "scope") != "Device":
            if status in ("Charging", "Full", "Not charging"):
                return "AC"
            draining |= status == "Discharging"
    return "battery" if draining else None


def _temperature(folder: Path) -> float | None:
    texts = [read_text(path) or "" for path in folder.glob("thermal_zone*/temp")]
    degrees = [int(text) / 1000 for text in texts if re.fullmatch(r"-?\d+", text)]
    low, high = PLAUSIBLE_C
    return max((value for value in degrees if low <= value <= high), default=None)


def _load(text: str | None) -> tuple[float, float, float] | None:
    try:
        one, five, fifteen = map(float, (text or "").split()[:3])
    except ValueError:
        return None
    return one, five, fifteen


def _cpus(text: str | None) -> tuple[int, ...]:
    """Numbers in the kernel's notation, "0-3,8"; none if it is something else."""
    found: list[int] = []
    for part in (text or "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            return ()
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(found)


def _field(path: Path, name: str) -> str | None:
    return _pairs(read_text(path), ":").get(name)


def _pairs(text: str | None, separator: str) -> dict[str, str]:
    """Lines of "name: value"; of a name that comes twice the first counts."""
    found: dict[str, str] = {}
    for line in (text or "").splitlines():
        name, found_it, value = line.partition(separator)
        if found_it:
            found.setdefault(name.strip().strip('"'), value.strip())
    return found


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _windows_memory() -> Memory:
    """From GlobalMemoryStatusEx, whose structure is two 32-bit numbers and seven of 64 bits."""
    import ctypes
    import struct

    buffer = ctypes.create_string_buffer(struct.pack("<2I7Q", 64, *(0,) * 8))
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 -- only there on Windows
    if not kernel.GlobalMemoryStatusEx(buffer):
        return Memory()
    _, _, total, available, page_total, page_free, *_ = struct.unpack_from("<2I7Q", buffer)
    return Memory(total, available, None, None, max(0, page_total - total), max(0, page_free - available))
