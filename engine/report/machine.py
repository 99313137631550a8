"""What this machine is and can do: facts, and what is measured once and kept until the facts change.

Reading memory and copying it to a GPU depend on the machine alone; the best number of threads and the time of
a token depend on a model as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from specx.backends.llama import kernels as ggml_device
from specx.backends.llama import libllama
from specx.backends.llama.devices import (
    Device,
    Transfer,
    devices_fingerprint,
    list_devices,
    measure_transfer,
)
from specx.backends.machine.machine import (
    CPU,
    Conditions,
    Memory,
    bytes_to_read,
    instruction_sets,
    machine_fingerprint,
    read_conditions,
    read_memory,
    this_cpu,
)
from specx.backends.store import Store, user_store
from specx.engine.cost.timing import Clock, Measurement, Watch, watch_others
from specx.engine.settings import Asked
from specx.engine.setup.decide import decide
from specx.engine.setup.here import Here, Told
from specx.engine.setup.load import load_library
from specx.engine.setup.open import open_model
from specx.engine.setup.threads import ThreadTimes, candidates, load_threads, measure_threads, save_threads
from specx.kernels._native import read_bandwidth

__all__ = ["MachineProbe", "Measured", "ModelProbe", "measure_machine", "probe_machine", "probe_model"]

KIND = "machine"  # of the entry in the store
REPEATS = 2  # per visit
VISITS = 2  # to each number of threads: the second tells whether the first was disturbed
BUDGET_S = 12.0  # for reading memory

Fraction = Callable[[float], None]
Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of the machine alone.

    Attributes:
        bandwidth: bytes read per second by number of threads.
        transfers: how fast memory is copied to each GPU, by its name.
        when: time of the measurement, ISO 8601, UTC.
        disturbed: whether something else kept the machine busy.
    """

    bandwidth: Mapping[int, float]
    transfers: Mapping[str, Transfer]
    when: str
    disturbed: bool = False

    def to_json(self) -> dict[str, Any]:
        """A plain value for the store."""
        return {
            "bandwidth": {str(threads): round(rate) for threads, rate in self.bandwidth.items()},
            "transfers": {name: asdict(transfer) for name, transfer in self.transfers.items()},
            "when": self.when,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measured:
        """What `to_json` gave.

        Raises:
            ValueError, TypeError, AttributeError, KeyError: it is something else.
        """
        bandwidth = {int(threads): float(rate) for threads, rate in data["bandwidth"].items()}
        if not bandwidth or any(t < 1 or not 0 < rate < float("inf") for t, rate in bandwidth.items()):
            raise ValueError("positive rates of positive numbers of threads are needed")
        datetime.fromisoformat(data["when"])
        transfers = {}
        for name, found in data["transfers"].items():
            rate, skipped = found["bytes_per_s"], str(found["skipped"])
            if rate is None and not skipped:
                raise ValueError("a transfer has a rate, or a reason for having none")
            transfers[name] = Transfer(None if rate is None else float(rate), skipped)
        return cls(bandwidth, transfers, data["when"])


@dataclass(frozen=True, slots=True)
class MachineProbe:
    """The machine: facts as they are now, and what was measured.

    Attributes:
        fingerprint: of the processors and the memory that this process may use.
        cpu, memory, conditions: see `specx.backends.machine.machine`.
        instructions: what llama.cpp's CPU code was built for.
        own_kernels: the instruction set that specx's kernels use here; None if they cannot be used.
        own_kernels_reason: why not.
        devices: what llama.cpp can compute on.
        measured: see there.
        from_store: whether that was measured by an earlier run.
    """

    fingerprint: str
    cpu: CPU
    memory: Memory
    conditions: Conditions
    instructions: Sequence[str]
    own_kernels: str | None
    own_kernels_reason: str | None
    devices: Sequence[Device]
    measured: Measured
    from_store: bool

    def to_json(self) -> dict[str, Any]:
        """What `specx probe --json` prints of the machine."""
        return {
            "fingerprint": self.fingerprint,
            "cpu": self.cpu.to_json(),
            "memory": self.memory.to_json(),
            "conditions": self.conditions.to_json(),
            "instruction_sets": list(self.instructions),
            "own_kernels": self.own_kernels,
            "own_kernels_reason": self.own_kernels_reason,
            "devices": [{**device.to_json(), **self._transfer(device)} for device in self.devices],
            "bandwidth_bytes_per_s": {str(t): round(rate) for t, rate in self.measured.bandwidth.items()},
            "measured_at": self.measured.when,
            "disturbed": self.measured.disturbed,
            "from_store": self.from_store,
        }

    def _transfer(self, device: Device) -> dict[str, Any]:
        found = self.measured.transfers.get(device.name)
        return {
            "transfer_bytes_per_s": round(found.bytes_per_s) if found and found.bytes_per_s else None,
            "transfer_skipped": found.skipped if found else "nothing is copied to it",
        }


@dataclass(frozen=True, slots=True)
class ModelProbe:
    """What was measured with a model.

    Attributes:
        model: path of its file.
        times: by number of threads.
        from_store: whether an earlier run measured.
    """

    model: str
    times: ThreadTimes
    from_store: bool

    def to_json(self) -> dict[str, Any]:
        """What `specx probe MODEL --json` prints of the model."""
        return {
            "path": self.model,
            **self.times.to_json(),
            "disturbed": self.times.disturbed,
            "from_store": self.from_store,
        }


def probe_machine(
    *,
    store: bool = True,
    refresh: bool = False,
    progress: Fraction,
    notice: Notice,
    rpc: Sequence[str] = (),
) -> MachineProbe:
    """Read what this machine is, and measure it unless that was done before.

    Args:
        store: use and keep measurements.
        refresh: measure anew.
        progress: called with the fraction done, 0 to 1.
        notice: told what a person should know.
        rpc: RPC servers whose devices count as well, "HOST:PORT" each.

    Raises:
        ModelError: llama.cpp itself cannot be loaded, or a server cannot be used.
    """
    load_library(rpc)
    devices = list_devices()
    kept = user_store(store, notice)
    key = _machine_key(devices)
    measured = None if refresh else _load(kept, key)
    found = measured is not None
    reason = ggml_device.unavailable()
    if measured is None:
        measured = measure_machine(this_cpu(), read_memory(), devices, progress=progress)
        if measured.disturbed:
            notice("something else kept the machine busy: what was measured is shown, but not kept")
        else:
            kept.save_json(KIND, key, measured.to_json())
    return MachineProbe(
        fingerprint=machine_fingerprint(),
        cpu=this_cpu(),
        memory=read_memory(),
        conditions=read_conditions(),
        instructions=instruction_sets(libllama.system_info()),
        own_kernels=None if reason else ggml_device.instruction_set(),
        own_kernels_reason=reason,
        devices=devices,
        measured=measured,
        from_store=found,
    )


def measure_machine(
    cpu: CPU,
    memory: Memory,
    devices: Sequence[Device],
    *,
    progress: Fraction,
    read: Callable[[int, int, int], float] = read_bandwidth,
    copy: Callable[[str], Transfer] = measure_transfer,
    clock: Clock = perf_counter,
    watch: Watch = watch_others,
) -> Measured:
    """Time reading memory with 1 to all usable threads, and copying it to each GPU.

    Args:
        cpu, memory, devices: what there is.
        progress: called with the fraction done, 0 to 1.
        read: bytes per second, from bytes, threads and repeats.
        copy: how fast the device of that name takes bytes.
        clock: seconds.
        watch: how other work is watched for.
    """
    gpus = [device.name for device in devices if device.is_gpu]
    nbytes = bytes_to_read(memory)
    counts = _thread_counts(cpu.usable_threads)
    rates: dict[int, float] = {}
    transfers: dict[str, Transfer] = {}
    works = VISITS * len(counts) + len(gpus)
    measurement: Measurement[int] = Measurement(BUDGET_S, clock=clock, watch=watch, needed=0)

    def step(threads: int, _n: int) -> float:
        rate = read(nbytes, threads, REPEATS)
        rates[threads] = max(rate, rates.get(threads, 0.0))  # noise only ever adds time
        done = 1 + sum(len(taken) for times in measurement.times.values() for taken in times.values())
        progress(done / works)
        return nbytes / rate * 1e3

    # The widest first; all others as far as the budget reaches.
    order = [*((i, threads, 1) for i, threads in enumerate(counts[::-1])), *((1, n, 1) for n in counts)]
    measurement.take(order, step)
    for i, name in enumerate(gpus, len(measurement.times)):
        transfers[name] = copy(name)
        progress(1 - (len(gpus) - 1 - (i - len(measurement.times))) / works)
    measurement.finish()
    return Measured(
        bandwidth={threads: rates[threads] for threads in sorted(rates)},
        transfers=transfers,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        disturbed=measurement.disturbed,
    )


def probe_model(
    asked: Asked,
    *,
    refresh: bool = False,
    loading: Told | None = None,
    progress: Fraction | None = None,
    notice: Notice,
) -> ModelProbe:
    """Find the best number of threads for a model, unless that was done before; other runs use it.

    Args:
        asked: how to load the model; the numbers of threads in it do not count.
        refresh: measure anew.
        loading, progress: called with the loaded and the measured fraction, 0 to 1.
        notice: told what a person should know.

    Raises:
        DoesNotFitError: there is not enough memory for it.
        ModelError: it cannot be loaded.
    """
    here = Here.of(asked, progress=loading, notice=notice)
    asked = replace(asked, threads=None, threads_batch=None)
    setup = decide(asked, here)
    store, key = here.store, setup.threads_key
    times = None if refresh else load_threads(store, key)
    if times is not None:
        return ModelProbe(str(asked.model), times, from_store=True)
    model = open_model(asked, here, setup).model
    try:
        times = measure_threads(model, candidates(this_cpu()), progress=progress)
    finally:
        model.close()
    if times.disturbed:
        notice("something else kept the machine busy: the number of threads is not kept")
    save_threads(store, key, times)
    return ModelProbe(str(asked.model), times, from_store=False)


def _machine_key(devices: Sequence[Device]) -> str:
    """What measurements of the machine depend on."""
    return f"{machine_fingerprint()}-{libllama.build_fingerprint()}-{devices_fingerprint(devices)}"


def _load(store: Store, key: str) -> Measured | None:
    return store.load_parsed(KIND, key, Measured.from_json)


def _thread_counts(most: int) -> list[int]:
    """1 to `most`: powers of two, and `most` itself."""
    return sorted({most, *(1 << i for i in range(most.bit_length()))})
