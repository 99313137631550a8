"""What other processes do to this one, from a moment on: CPU time they take, and CPU time it has to wait for.

The kernel counts both. /proc/stat has the time of every CPU, stolen time of a virtual machine included, so
what this process did not use itself was used by others; it is counted in ticks of usually 10 ms. The
schedstat file of each thread has the nanoseconds that it was ready to run and another one ran instead. That
is exact, but threads of this process that are more than there are CPUs wait for each other as well. A quota
of CPU time that is used up holds all threads up, and is counted by the control groups.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from specx.backends.machine.cgroup import read_text, throttled_s

__all__ = ["OtherWork", "Work"]

ROOT = Path("/")
CLOCK_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # a second, in /proc/stat
IDLE = slice(3, 5)  # columns of /proc/stat: idle, and waiting for disks
STOLEN = 8  # columns up to the time stolen by other machines; those after it are counted before already


@dataclass(frozen=True, slots=True)
class Work:
    """What happened in a stretch of time.

    Attributes:
        seconds: its length.
        cpus: logical CPUs that count.
        others_s: CPU seconds that other processes had on them; None if that cannot be read.
        waited_s: seconds that threads of this process waited for a CPU, summed; None if that cannot be read.
        tick_s: seconds by which `others_s` is easily off.
        throttled_s: seconds that a quota of CPU time held this process up.
    """

    seconds: float
    cpus: int
    others_s: float | None
    waited_s: float | None
    tick_s: float = 0.0
    throttled_s: float = 0.0


class OtherWork:
    """How much work other processes do, from now on.

    Args:
        cpus: numbers of the logical CPUs that count; in a container the others belong to strangers.
        root: folder in which `proc` is.
        own: seconds of CPU time that this process has had, of all threads.
        clock: seconds.
        ticks: a second, in /proc/stat.
    """

    def __init__(
        self,
        cpus: Iterable[int],
        root: Path = ROOT,
        *,
        own: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
        ticks: int = CLOCK_TICKS,
    ) -> None:
        self._cpus = frozenset(cpus)
        self._root, self._proc = root, root / "proc"
        self._own, self._clock, self._ticks = own, clock, ticks
        self._others, self._start = self._others_now(), clock()
        self._waits, self._throttled = self._waits_now(), throttled_s(root)

    def others_s(self) -> float | None:
        """CPU seconds that other processes have had until now; None if that cannot be read."""
        others = self._others_now()
        return None if others is None or self._others is None else max(0.0, others - self._others)

    def so_far(self) -> Work:
        """What has happened until now."""
        others, waits = self.others_s(), self._waits_now()
        before = self._waits
        waited = sum(max(0, ns - before.get(thread, 0)) for thread, ns in waits.items()) / 1e9
        return Work(
            seconds=self._clock() - self._start,
            cpus=len(self._cpus),
            others_s=others,
            waited_s=waited if waits and before else None,
            tick_s=math.sqrt(len(self._cpus)) / self._ticks,  # each CPU is off by part of a tick, up or down
            throttled_s=max(0.0, throttled_s(self._root) - self._throttled),
        )

    def _others_now(self) -> float | None:
        """CPU seconds of all others so far."""
        ticks = seen = 0
        for line in (read_text(self._proc / "stat") or "").splitlines():
            name, _, values = line.partition(" ")
            number = name.removeprefix("cpu")
            if name == number:
                break  # those of the CPUs come first
            if number.isdecimal() and int(number) in self._cpus:
                numbers = [int(value) for value in values.split()[:STOLEN]]
                ticks += sum(numbers) - sum(numbers[IDLE])
                seen += 1
        return ticks / self._ticks - self._own() if seen == len(self._cpus) > 0 else None

    def _waits_now(self) -> dict[str, int]:
        """Nanoseconds that each thread of this process has waited for a CPU."""
        waits = {}
        for path in (self._proc / "self/task").glob("*/schedstat"):
            fields = (read_text(path) or "").split()  # a thread may have ended meanwhile
            if len(fields) > 1 and fields[1].isdecimal():
                waits[path.parent.name] = int(fields[1])
        return waits
