"""What reading a model's weights costs on each device: the model's own steps, timed with its layers there.

The host is timed with everything on it, on the kernels that suit it; every other device with as many layers
as fit, the rest being on the host. Time is linear in the layers, so what is measured of a mixture tells what
the device alone would take. What handing over rows takes is timed apart, by copying one row and many.

Where a device holds the whole model it is timed first: the host, whose kernels would have to be compared, is
not timed if it could not be as fast even if it only had to read its memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from specx.backends.base import Model
from specx.backends.llama.devices import TRANSFER_BYTES, Device, Transfer, measure_transfer
from specx.engine.cost.rate import chain_rate
from specx.engine.cost.staircase import Staircase
from specx.engine.cost.timing import Clock, Watch, powers, unwatched, watch_others
from specx.engine.setup.layers import Division, Layers

__all__ = ["DeviceCost", "measurable", "measure_devices", "outdoes", "unmixed"]

WIDTHS = powers(32)  # tokens of a step that placements are compared by
REMOTE = "RPC"  # how llama.cpp's names of devices behind its RPC server begin
SURE = 1.25  # times the rate that the host could have at most: what it reads memory at is off by some percent
LEAST_SHARE = 0.01  # of a mixture's time: what is left for a device is never less, whatever the noise says


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """What a device costs and holds.

    Attributes:
        name: as llama.cpp calls it.
        memory_free: bytes of its memory that a model may take.
        steps: milliseconds that reading `measured_bytes` of weights takes, by tokens of a step.
        measured_bytes: bytes of weights read in those times.
        handing_over_ms: to start it and hand it the first row, once a step.
        transfer: bytes per second that it is handed.
        unified: its memory is the host's.
        estimated: nothing was timed, for want of memory, or as another device is faster anyway: it takes as
            long as reading memory does, at least.
    """

    name: str
    memory_free: int
    steps: Mapping[int, float] = field(hash=False)
    measured_bytes: int
    handing_over_ms: float = 0.0
    transfer: float = math.inf
    unified: bool = False
    estimated: bool = False

    def handing_ms(self, rows: int, row_bytes: int) -> float:
        """Milliseconds to hand it `rows` rows of `row_bytes` bytes."""
        return self.handing_over_ms + rows * row_bytes / self.transfer * 1e3

    def reading_ms(self, rows: int, nbytes: int) -> float:
        """Milliseconds to multiply `nbytes` of weights with `rows` rows."""
        return self.steps[rows] * nbytes / self.measured_bytes

    def to_json(self) -> dict[str, Any]:
        """What was measured; the memory is not part of it."""
        return {
            "name": self.name,
            "steps": {str(n): ms for n, ms in self.steps.items()},
            "measured_bytes": self.measured_bytes,
            "handing_over_ms": self.handing_over_ms,
            "transfer": self.transfer if math.isfinite(self.transfer) else None,
            "unified": self.unified,
            "estimated": self.estimated,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], memory_free: int) -> DeviceCost:
        """What `to_json` gave, of a device that has `memory_free` bytes now.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """
        cost = cls(
            name=str(data["name"]),
            memory_free=memory_free,
            steps={int(n): float(ms) for n, ms in data["steps"].items()},
            measured_bytes=int(data["measured_bytes"]),
            handing_over_ms=float(data["handing_over_ms"]),
            transfer=math.inf if data["transfer"] is None else float(data["transfer"]),
            unified=bool(data["unified"]),
            estimated=bool(data["estimated"]),
        )
        positive = (*cost.steps.values(), cost.measured_bytes, cost.transfer)
        if 1 not in cost.steps or min(positive) <= 0 or not 0 <= cost.handing_over_ms < math.inf:
            raise ValueError("times, bytes and rates are positive, and single tokens are among the widths")
        return cost


def measurable(target: Layers, devices: Sequence[Device]) -> set[str]:
    """Names of the devices that have room to be timed: the host for the whole model, others for a layer."""
    host, *others = devices
    names = {device.name for device in others if target.most_that_fit(_free(device))}
    if _free(host) >= target.host + target.needed(0, len(target)):
        names.add(host.name)
    return names


def outdoes(steps: Mapping[int, float], bound: Mapping[int, float]) -> bool:
    """Whether a device with these steps is surely faster than one that takes at least `bound`, both in
    milliseconds by width."""
    return chain_rate(steps).rate >= SURE * chain_rate(bound).rate


def measure_devices(
    target: Layers,
    devices: Sequence[Device],
    load: Callable[[Division], Model],
    *,
    host_rate: Callable[[], float],
    transfer: Callable[[str, int], Transfer] = measure_transfer,
    clock: Clock = time.perf_counter,
    watch: Watch = watch_others,
) -> tuple[list[DeviceCost], bool]:
    """Time the steps of a model on every device that has room for a layer of it.

    Args:
        target: its layers.
        devices: the host first.
        load: loads it with its layers divided so.
        host_rate: bytes per second at which the host reads memory. Where it cannot hold the whole model, or
            would be slower than another device even then, its steps are taken to last as long as reading it
            does, whatever their width.
        transfer: copies so many bytes to a device.
        clock: seconds.
        watch: how other work is watched for. A remote device may be a process on this machine, whose work is
            no other: its steps must only agree among themselves.

    Returns:
        The costs, the host's first, and whether something else kept the machine busy meanwhile.
    """
    host, *others = devices
    total, read, timed = len(target), sum(target.read), measurable(target, devices)
    others = [device for device in others if device.name in timed]
    whole = next((device for device in others if target.most_that_fit(_free(device)) == total), None)

    def time_on(device: Device) -> tuple[dict[int, float], bool]:
        """Steps with as many layers there as fit, and whether they were disturbed."""
        count = target.most_that_fit(_free(device))
        division = tuple((name, n) for name, n in ((host.name, total - count), (device.name, count)) if n)
        return _time_steps(load(division), clock, unwatched if device.name.startswith(REMOTE) else watch)

    mixed = {} if whole is None else {whole.name: time_on(whole)}
    busy = watch()
    steps, disturbed = dict.fromkeys(WIDTHS, read / host_rate() * 1e3), False
    estimated = host.name not in timed or (whole is not None and outdoes(mixed[whole.name][0], steps))
    if estimated:
        disturbed = busy()
    else:
        steps, disturbed = _time_steps(load(((host.name, total),)), clock, watch)
    costs = [DeviceCost(host.name, _free(host), steps, read, estimated=estimated)]
    for device in others:
        taken, noisy = mixed[device.name] if device.name in mixed else time_on(device)
        costs.append(_alone(target, device, transfer, taken, steps))
        disturbed |= noisy
    return costs, disturbed


def _alone(
    target: Layers,
    device: Device,
    transfer: Callable[[str, int], Transfer],
    mixed: Mapping[int, float],
    host: Mapping[int, float],
) -> DeviceCost:
    """What a device costs by steps with as many layers there as fit, `mixed`, and by the host's."""
    read, count = sum(target.read), target.most_that_fit(_free(device))
    row, many = transfer(device.name, target.row_bytes), transfer(device.name, TRANSFER_BYTES)
    alone = DeviceCost(
        device.name,
        _free(device),
        {},
        read,
        handing_over_ms=target.row_bytes / (row.bytes_per_s or math.inf) * 1e3,
        transfer=many.bytes_per_s or math.inf,
        unified=device.unified,
    )
    share = sum(target.read[len(target) - count :]) / read
    return replace(alone, steps=unmixed(mixed, host, share, alone, target.row_bytes))


def unmixed(
    mixed: Mapping[int, float], host: Mapping[int, float], share: float, device: DeviceCost, row_bytes: int
) -> dict[int, float]:
    """Milliseconds that reading the whole model on `device` would take, by tokens of a step.

    Args:
        mixed: milliseconds of steps with a `share` of it there and the rest on the host.
        host: milliseconds of steps with everything on the host.
        share: 0 to 1.
        device: tells what handing rows over takes.
        row_bytes: bytes of a row.
    """
    alone = {}
    for n in sorted(set(mixed) & set(host)):
        rest = mixed[n] - (1 - share) * host[n] - device.handing_ms(n, row_bytes)
        alone[n] = max(rest, LEAST_SHARE * mixed[n]) / share
    return alone


def _time_steps(model: Model, clock: Clock, watch: Watch) -> tuple[dict[int, float], bool]:
    """Milliseconds by width in the empty context, and whether they were disturbed; closes the model."""
    staircase = Staircase(min(model.facts.max_width, max(WIDTHS)), watch=watch)
    try:
        staircase.measure(model.open(), clock=clock)
    finally:
        model.close()
    steps = staircase.steps(0)
    return {n: steps[n] for n in WIDTHS if n in steps}, staircase.disturbed


def _free(device: Device) -> int:
    return device.memory_free or 0
