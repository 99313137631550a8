"""The energy that the processor packages have used, where the kernel lets it be read (RAPL, Linux)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["EnergyMeter"]

POWERCAP = Path("sys/class/powercap")


@dataclass(frozen=True, slots=True)
class _Counter:
    """Microjoules of one package, in a file that starts again at 0 after `range_uj`."""

    path: Path
    range_uj: int

    def read(self) -> int:
        return int(self.path.read_text())


class EnergyMeter:
    """Joules of all processor packages together.

    Args:
        root: of the file system; tests give another.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._counters: list[_Counter] = []
        for folder in sorted((root / POWERCAP).glob("*-rapl:*")):
            try:
                if folder.joinpath("name").read_text().startswith("package"):
                    most = int(folder.joinpath("max_energy_range_uj").read_text())
                    counter = _Counter(folder / "energy_uj", most)
                    counter.read()
                    self._counters.append(counter)
            except (OSError, ValueError):  # mostly readable by root only
                self._counters.clear()
                return

    def read(self) -> tuple[int, ...] | None:
        """The counters, to be given to `joules`; None if they cannot be read."""
        try:
            return tuple(counter.read() for counter in self._counters) or None
        except (OSError, ValueError):
            return None

    def joules(self, before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> float | None:
        """What was used between two readings less than one round of a counter apart, minutes at least."""
        if before is None or after is None:
            return None
        used = (
            (b - a) % max(counter.range_uj, 1)
            for counter, a, b in zip(self._counters, before, after, strict=True)
        )
        return sum(used) / 1e6
