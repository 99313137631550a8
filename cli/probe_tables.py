"""What `specx probe` shows to people: the machine, and what a model makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from specx.cli.terminal.console import stdout
from specx.cli.terminal.tables import show_table
from specx.engine.setup.explain import gibibytes

if TYPE_CHECKING:
    from specx.backends.llama.devices import Device
    from specx.backends.machine.machine import CPU, Conditions, Memory
    from specx.engine.report.machine import MachineProbe, ModelProbe

__all__ = ["show_machine", "show_model"]

UNREADABLE = "not readable here"


def show_machine(found: MachineProbe) -> None:
    """Tables of the processors, the memory and the devices."""
    own = found.own_kernels or f"not used: {found.own_kernels_reason}"
    bandwidth = ", ".join(
        f"{_gigabytes(rate)} with {_threads(t)}" for t, rate in found.measured.bandwidth.items()
    )
    when = datetime.fromisoformat(found.measured.when).astimezone().strftime("%Y-%m-%d %H:%M")
    rows = [
        *_cpu(found.cpu),
        ("llama.cpp uses", " ".join(found.instructions) or UNREADABLE),
        ("specx's kernels", own),
        *_memory(found.memory),
        ("reading memory", f"{bandwidth}, measured {when}"),
        *_conditions(found.conditions),
    ]
    show_table(("machine", ""), rows)
    stdout().print()
    columns = ("device", "type", "memory free", "of", "memory is", "copying to it", "description")
    show_table(columns, [_device(device, found) for device in found.devices])


def show_model(found: ModelProbe) -> None:
    """A table of times by number of threads, and what follows from it."""
    times = found.times
    stdout().print()
    stdout().print(
        f"milliseconds of a step after {times.depth} tokens, by its own tokens and the number of threads"
    )
    counts = sorted({threads for by in times.steps.values() for threads in by})
    rows = []
    for threads in counts:
        cells = [f"{by[threads]:.2f}" if threads in by else "-" for by in times.steps.values()]
        rows.append((str(threads), *cells))
    show_table(("threads", *(_count(n, "token") for n in times.steps)), rows)
    kept = (
        "as measured by an earlier run (--refresh measures anew)" if found.from_store else "as measured now"
    )
    stdout().print(
        f"one token takes {times.ms_per_token:.2f} ms, {1e3 / times.ms_per_token:.1f} tokens/s, "
        f"with {_threads(times.decode)}; drafts and prompts use {times.batch}, {kept}"
    )


def _cpu(cpu: CPU) -> list[tuple[str, str]]:
    facts = cpu.to_json()
    physical = UNREADABLE if cpu.cores is None else f"{len(cpu.cores)}"
    cores = f"{physical} physical, {len(cpu.online)} logical"
    allowed = "all" if len(cpu.allowed) == len(cpu.online) else _ranges(cpu.allowed)
    quota = "no limit" if cpu.quota is None else f"{cpu.quota:g} CPUs' worth of time"
    rows = [("processor", cpu.name or UNREADABLE), ("cores", cores)]
    if cpu.efficiency:
        rows.append(
            ("", f"performance: {_ranges(facts['performance'])}, efficiency: {_ranges(cpu.efficiency)}")
        )
    usable = f"{_threads(cpu.usable_threads)} on {_count(cpu.usable_cores, 'core')}"
    if cpu.default_threads != cpu.usable_threads:
        usable += f"; {_threads(cpu.default_threads)} as long as nothing was measured with a model"
    return [
        *rows,
        ("this process may use", f"{allowed}, control groups: {quota}"),
        ("that makes", usable),
    ]


def _memory(memory: Memory) -> list[tuple[str, str]]:
    size = f"{_size(memory.total)}, {_size(memory.available)} available"
    limit = "no limit"
    if memory.limit is not None:
        limit = f"{_size(memory.limit)}, {_size(memory.used)} in use"
    swap = UNREADABLE
    if memory.swap_total is not None:
        swap = f"{_size(memory.swap_total)}, {_size(memory.swap_free)} free" if memory.swap_total else "none"
    return [("memory", size), ("limits allow", limit), ("swap", swap)]


def _conditions(conditions: Conditions) -> list[tuple[str, str]]:
    celsius = conditions.temperature
    load = conditions.load
    return [
        ("power", conditions.power or UNREADABLE),
        ("clock governor", ", ".join(conditions.governors) or UNREADABLE),
        ("hottest zone", UNREADABLE if celsius is None else f"{celsius:.0f} °C"),
        ("load", UNREADABLE if load is None else " ".join(f"{value:.2f}" for value in load)),
    ]


def _device(device: Device, found: MachineProbe) -> Sequence[str]:
    transfer = found.measured.transfers.get(device.name)
    copying = "-"
    if transfer is not None:
        copying = _gigabytes(transfer.bytes_per_s) if transfer.bytes_per_s else transfer.skipped
    where = "main memory" if device.unified else "its own"
    free, total = _size(device.memory_free), _size(device.memory_total)
    return device.name, device.type, free, total, where, copying, device.description


def _threads(number: int) -> str:
    return _count(number, "thread")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _size(nbytes: int | None) -> str:
    return UNREADABLE if nbytes is None else gibibytes(nbytes)


def _gigabytes(rate: float) -> str:
    return f"{rate / 1e9:.1f} GB/s"


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers in the kernel's notation: 0-3,8."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ",".join("-".join(map(str, span)) for span in spans)
