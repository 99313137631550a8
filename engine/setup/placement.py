"""Which device holds which layers of a model, and of a draft model: the objective over measured costs.

    rate = (1 + sum of a^i for i in 1..k) / (k * t_draft + t_verify(1 + k)), at the best k

A step takes, for every layer, as long as its device takes to read it, and for every device in use beyond the
first as long as starting it and handing it the rows takes. For a given width that is a sum over layers in
order, so the cheapest division that fits is found exactly by dynamic programming over (devices used, first
layer); memory prunes it. Every width has its own cheapest division, and the one of the highest rate over all
widths wins: the maximum of the objective over all divisions. It takes milliseconds for two GPUs.

A draft model is placed as a whole on any one device that has room, and takes that room from the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.engine.cost.rate import chain_rate
from specx.engine.setup.devices import DeviceCost
from specx.engine.setup.explain import gibibytes
from specx.engine.setup.layers import Division, Layers

__all__ = ["DraftKind", "Placed", "Placement", "fastest_device", "place"]


@dataclass(frozen=True, slots=True)
class DraftKind:
    """One source of drafts.

    Attributes:
        name: what to call it.
        acceptance: probability that each further drafted token comes true.
        layers: of the draft model; None for drafts that cost nothing.
    """

    name: str
    acceptance: float
    layers: Layers | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """One way to use the devices.

    Attributes:
        target: layers of the target by device.
        draft: name of the source of drafts.
        draft_device: where the draft model is; "" without one.
        drafted: tokens drafted per step at the best rate.
        rate: expected tokens per second.
        memory: bytes by device.
        excess: bytes by which it does not fit, 0 if it does.
    """

    target: Division
    draft: str
    draft_device: str
    drafted: int
    rate: float
    memory: Mapping[str, int] = field(hash=False)
    excess: int = 0

    def offloaded(self, host: str) -> int:
        """Layers that are not on the device `host`, the head included."""
        return sum(count for name, count in self.target if name != host)

    def described(self) -> str:
        """Where everything is, in words."""
        parts = [
            f"{count} of {sum(n for _, n in self.target)} layers on {name}" for name, count in self.target
        ]
        where = f"all on {self.target[0][0]}" if len(parts) == 1 else ", ".join(parts)
        return f"{where}, {self.draft} on {self.draft_device}" if self.draft_device else where

    def to_json(self) -> dict[str, Any]:
        """Plain values for `specx plan --json`."""
        return {
            "layers": dict(self.target),
            "drafts": self.draft,
            "draft_device": self.draft_device,
            "drafted": self.drafted,
            "tokens_per_s": round(self.rate, 3),
            "memory": dict(self.memory),
            "does_not_fit_by": self.excess,
        }


@dataclass(frozen=True, slots=True)
class Placed:
    """The outcome of a search.

    Attributes:
        best: the placement of the highest rate that fits, or None.
        alternatives: it and the other ways worth a look, best first, those that do not fit last.
    """

    best: Placement | None
    alternatives: tuple[Placement, ...]

    def reason(self, other: Placement) -> str:
        """Why `other` was not taken; "" for the best."""
        if other.excess:
            return f"does not fit by {gibibytes(other.excess)}"
        if self.best is None or other is self.best:
            return ""
        return f"{other.rate / self.best.rate:.2f}x"


def place(target: Layers, drafts: Sequence[DraftKind], devices: Sequence[DeviceCost]) -> Placed:
    """The placement of the highest expected rate.

    Integrated GPUs are used where there are no others, as llama.cpp does; they take from the host's memory.

    Args:
        target: the model.
        drafts: at least one source of drafts.
        devices: the host first. All must have been timed at some common widths, single tokens included.

    Raises:
        ValueError: there is no device, no source of drafts, or no time of single tokens.
    """
    if not drafts or not devices:
        raise ValueError("a placement needs a device and a source of drafts")
    search = _Search(target, devices)
    found: dict[tuple[Division, str, str], Placement] = {}
    for draft in drafts:
        for where in (search.host, *search.others) if draft.layers else (search.host,):
            for division in search.divisions(draft, where):
                option = search.evaluate(division, draft, where)
                found.setdefault((option.target, option.draft, option.draft_device), option)
    ordered = sorted(found.values(), key=lambda option: (option.excess, -option.rate))
    return Placed(ordered[0] if not ordered[0].excess else None, tuple(ordered))


class _Search:
    """One target on given devices."""

    def __init__(self, target: Layers, devices: Sequence[DeviceCost]) -> None:
        self.target = target
        self.host, *others = devices
        discrete = [device for device in others if not device.unified]
        self.others = discrete or others
        widths = set.intersection(*(set(device.steps) for device in (self.host, *self.others)))
        if 1 not in widths:
            raise ValueError("every device needs a time of single tokens")
        self.widths = sorted(widths)
        self._read = np.concatenate(([0], np.cumsum(target.read)))  # (L + 2,)
        self._held = np.concatenate(([0], np.cumsum(target.weights) + np.cumsum(target.cache)))

    def divisions(self, draft: DraftKind, where: DeviceCost) -> Iterator[Division]:
        """The cheapest division of every width that fits, and everything on one device, fitting or not."""
        total = len(self.target)
        for device in (self.host, *self.others):
            yield ((device.name, total),)
        taken = self._draft_memory(draft, where)
        for i in range(len(self.widths)):
            if (division := self._cheapest(i, taken)) is not None:
                yield division

    def evaluate(self, division: Division, draft: DraftKind, where: DeviceCost) -> Placement:
        """The rate of a division with drafts from a model on `where`, and what it takes."""
        steps = {n: self._step_ms(division, n) for n in self.widths}
        draft_ms = 0.0
        if draft.layers is not None:
            draft_ms = _drafting_ms(draft.layers, where, self.host)
        chain = chain_rate(steps, draft_ms=draft_ms, acceptance=draft.acceptance)
        memory = self._memory(division, draft, where)
        return Placement(
            division,
            draft.name,
            where.name if draft.layers is not None else "",
            chain.drafted,
            chain.rate * 1e3,
            memory,
            self._excess(memory),
        )

    def _step_ms(self, division: Division, n: int) -> float:
        first, ms = 0, 0.0
        by_name = {device.name: device for device in (self.host, *self.others)}
        for name, count in division:
            device = by_name[name]
            ms += device.reading_ms(n, int(self._read[first + count] - self._read[first]))
            if device is not self.host:
                ms += device.handing_ms(n, self.target.row_bytes)
            first += count
        return ms

    def _memory(self, division: Division, draft: DraftKind, where: DeviceCost) -> dict[str, int]:
        """Bytes by device; integrated GPUs and the host count as one memory, the host's."""
        memory = {self.host.name: self.target.host}
        first = 0
        for name, count in division:
            needed = self.target.needed(first, first + count)
            memory[name] = memory.get(name, 0) + needed
            first += count
        for name, nbytes in self._draft_memory(draft, where).items():
            memory[name] = memory.get(name, 0) + nbytes
        return memory

    def _draft_memory(self, draft: DraftKind, where: DeviceCost) -> dict[str, int]:
        if draft.layers is None:
            return {}
        layers = draft.layers
        memory = {self.host.name: layers.host}
        memory[where.name] = memory.get(where.name, 0) + layers.needed(0, len(layers))
        return memory

    def _excess(self, memory: Mapping[str, int]) -> int:
        """The most bytes by which any memory is too small."""
        shared = {device.name for device in self.others if device.unified} | {self.host.name}
        excess = max(0, sum(memory.get(name, 0) for name in shared) - self.host.memory_free)
        for device in self.others:
            excess = max(excess, memory.get(device.name, 0) - device.memory_free)
        return excess

    def _cheapest(self, i: int, taken: Mapping[str, int]) -> Division | None:
        """The division that computes a step of `widths[i]` tokens in the least time and fits.

        best[S][f] is the least time of the layers from f on, on all of the devices S and no other.

        Args:
            i: index of the width.
            taken: bytes that are not free for the target, by device.
        """
        n, end = self.widths[i], len(self.target)
        nothing = np.full(end + 1, np.inf)
        nothing[end] = 0.0
        best: dict[frozenset[str], NDArray[np.float64]] = {frozenset(): nothing}
        chosen: dict[tuple[frozenset[str], int], tuple[str, int]] = {}
        for size in range(1, len(self.others) + 1):
            for used in combinations(self.others, size):
                names = frozenset(device.name for device in used)
                best[names] = np.full(end + 1, np.inf)
                for device in used:
                    rest = best[names - {device.name}]
                    ms = self._segments(device, n, taken.get(device.name, 0)) + rest
                    last = ms.argmin(axis=1)
                    least = ms[np.arange(end + 1), last]
                    for first in np.flatnonzero(least < best[names]).tolist():
                        best[names][first] = least[first]
                        chosen[names, first] = device.name, int(last[first])
        return self._trace(best, chosen, n, taken)

    def _segments(self, device: DeviceCost, n: int, taken: int) -> NDArray[np.float64]:
        """(L + 2, L + 2) milliseconds of layers i to j (exclusive) on `device`; infinite where they do not
        fit, and where there are none."""
        per_byte = device.steps[n] / device.measured_bytes
        read = self._read[None, :] - self._read[:, None]
        held = self._held[None, :] - self._held[:, None] + self.target.buffers
        ms = read * per_byte + device.handing_ms(n, self.target.row_bytes)
        fits = (held <= device.memory_free - taken) & np.triu(np.ones(held.shape, np.bool_), 1)
        return np.where(fits, ms, np.inf)

    def _trace(
        self,
        best: Mapping[frozenset[str], NDArray[np.float64]],
        chosen: Mapping[tuple[frozenset[str], int], tuple[str, int]],
        n: int,
        taken: Mapping[str, int],
    ) -> Division | None:
        """The division that the table comes to, the first layers on the host."""
        on_host = self._read * (self.host.steps[n] / self.host.measured_bytes)
        least, names, first = np.inf, frozenset[str](), 0
        for used, ms in best.items():
            total = np.where(self._fits_host(used, taken), on_host + ms, np.inf)
            start = int(total.argmin())
            if total[start] < least:
                least, names, first = float(total[start]), used, start
        if not np.isfinite(least):
            return None
        division = [(self.host.name, first)] if first else []
        while names:
            device, last = chosen[names, first]
            division.append((device, last - first))
            names, first = names - {device}, last
        return tuple(division)

    def _fits_host(self, used: frozenset[str], taken: Mapping[str, int]) -> NDArray[np.bool_]:
        """(L + 2,) whether the host's memory has room for the layers before each, the rest on `used`."""
        target, end = self.target, len(self.target)
        first = np.arange(end + 1)
        needed = self._held[first] + target.buffers * (first > 0)
        unified = [device.name for device in self.others if device.unified]
        sharing = [name for name in unified if name in used]
        if sharing:  # then every device in use takes from one memory
            needed = self._held[end] + target.buffers * (len(sharing) + (first > 0))
        room = self.host.memory_free - target.host - sum(taken.get(m, 0) for m in (self.host.name, *unified))
        return np.asarray(needed <= room)


def fastest_device(draft: Layers, devices: Sequence[DeviceCost]) -> DeviceCost:
    """Where a draft model drafts a token in the least time, among the devices that have room for all of it.

    With the target in its place this is the highest rate. The host, which comes first, always counts.
    """
    host, *others = devices
    able = [host, *(d for d in others if draft.needed(0, len(draft)) <= d.memory_free)]
    return min(able, key=lambda device: _drafting_ms(draft, device, host))


def _drafting_ms(draft: Layers, device: DeviceCost, host: DeviceCost) -> float:
    """Milliseconds to draft one token."""
    handing = 0.0 if device is host else device.handing_ms(1, draft.row_bytes)
    return device.reading_ms(1, sum(draft.read)) + handing
