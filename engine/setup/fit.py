"""Making a model fit into memory before it is loaded, and saying no to one that cannot.

What a run takes is predicted (backends/llama/memory.py). When it is too much, in this order: the draft model
is left out, fewer earlier states of recurrent layers are kept, the context is made smaller if nobody asked
for one, fewer layers go to the GPU. Each is told. The order is a constraint beside the objective, which knows
of speed alone. What a run can do comes before how fast it is: a draft model and states to go back to, which
are nothing but speed, go before the room for a conversation. And what
was left open changes before what was asked for: the context goes before the layers, which are changed here
only where a number of them was asked for (`place` has looked after the memory where it was not).

What does not fit even so is refused only if the system would end a process for it, or if the model is larger
than the memory of the machine; in between, other programs hold the memory, and a person is warned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from specx.backends.errors import DoesNotFitError, UsageError
from specx.backends.gguf.cache_size import CELLS
from specx.backends.gguf.file import GGUFInfo
from specx.backends.gguf.heads import HEADS
from specx.backends.llama.cache_types import check_cache_of_model, check_flash_attention
from specx.backends.llama.devices import list_devices
from specx.backends.llama.kernels import KERNELS, SPECX, STOCK, library
from specx.backends.llama.libllama import system_info
from specx.backends.llama.memory import (
    NOTHING,
    MemoryNeed,
    predict_memory,
    repacked_types,
    wanted_context,
)
from specx.backends.machine.machine import Memory, read_memory
from specx.backends.settings import FLOAT_CACHES, Load
from specx.engine.settings import Asked
from specx.engine.setup.explain import gibibytes
from specx.engine.setup.here import Here
from specx.engine.setup.wanted import LEAST_CONTEXT, draft_load

__all__ = [
    "LEAST_CONTEXT",
    "SMALLER_TYPE",
    "Fit",
    "Room",
    "beyond_training",
    "fit",
    "fit_here",
    "most_texts",
    "read_room",
    "smaller_caches",
]

SLACK = 0.95  # of what is available may be taken: predictions are right to a few percent
GPU_MARGIN = 256 << 20  # of each GPU's memory, for its driver and what we do not see
SMALLER_TYPE = "q8_0"  # of the cache: half the size, and no difference that anybody has measured

Enough = Callable[[MemoryNeed], bool]


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of memory that a run may take; None where that cannot be read.

    Attributes:
        available: of main memory, without swapping and within the limits of control groups.
        bearable: beyond it the system ends a process.
        ceiling: what there would be if nothing else ran.
        gpus: of each GPU with memory of its own.
        limit: what this process may use at most, where that leaves less than other programs do.
    """

    available: int | None
    bearable: int | None
    ceiling: int | None
    gpus: tuple[int, ...] = ()
    limit: int | None = None

    @classmethod
    def of(cls, memory: Memory, gpus: tuple[int, ...] = ()) -> Room:
        """What `memory` leaves. Swap does not help where a control group has a limit."""
        swap = memory.swap_free or 0 if memory.limit is None else 0
        limits = [limit for limit in (memory.total, memory.limit) if limit is not None]
        bearable = None if memory.available is None else memory.available + swap
        left = math.inf if memory.limit is None else max(memory.limit - (memory.used or 0), 0)
        binding = memory.limit if memory.available is not None and left <= memory.available else None
        return cls(memory.available, bearable, min(limits, default=None), gpus, binding)

    def is_enough(self, need: MemoryNeed) -> bool:
        """Whether steps would never wait for the disk."""
        return self.holds_gpu(need) and _within(_resident(need) / SLACK, self.available)

    def is_bearable(self, need: MemoryNeed) -> bool:
        """Whether no process would be ended, and it would be enough on an idle machine."""
        held = _within(need.required, self.bearable) and _within(_resident(need), self.ceiling)
        return held and self.holds_gpu(need)

    def holds_gpu(self, need: MemoryNeed) -> bool:
        """Whether the GPUs have room for their part."""
        return not self.gpus or need.gpu <= sum(self.gpus)


@dataclass(frozen=True, slots=True)
class Fit:
    """How a model is loaded so that it fits.

    Attributes:
        load: as wanted, or with a smaller context or fewer layers on the GPU.
        need: what that takes.
        draft: the draft model, if it is kept.
        changes: one sentence for each thing that was changed, or is to be expected.
    """

    load: Load
    need: MemoryNeed
    draft: GGUFInfo | None = None
    changes: tuple[str, ...] = ()


def read_room() -> Room:
    """What this machine has now.

    Raises:
        ImportError, OSError, RuntimeError: llama.cpp cannot be loaded.
    """
    gpus = [device for device in list_devices() if device.is_gpu and not device.unified]
    return Room.of(
        read_memory(),
        tuple(max(0, gpu.memory_free - GPU_MARGIN) for gpu in gpus if gpu.memory_free is not None),
    )


def fit_here(
    info: GGUFInfo,
    asked: Asked,
    load: Load,
    here: Here,
    *,
    kernels: str | None = None,
    draft: GGUFInfo | None = None,
) -> Fit:
    """`fit` on this machine as it is now; what is changed, or to be expected, is told.

    Raises:
        DoesNotFitError: it takes more memory than there is.
    """
    room, repacked = read_room(), repacked_types(system_info())
    found = fit(info, asked, load, room, kernels=kernels, draft=draft, repacked=repacked)
    found = replace(found, changes=(*found.changes, *beyond_training(info, asked)))
    for change in found.changes:
        here.notice(change)
    if room.available is not None:
        here.explain(f"memory: {_parts(found.need)}; {gibibytes(room.available)} are available")
    return found


def beyond_training(info: GGUFInfo, asked: Asked) -> tuple[str, ...]:
    """What is to be expected of a context that is larger than those the model was trained for, if it is: the
    one thing told of a fit that is not about memory."""
    if not 0 < info.context_length < (asked.n_ctx or 0):
        return ()
    return (
        f"{_name(info)} was trained for {info.context_length} tokens of context: what it writes beyond "
        "them may make no sense",
    )


def fit(
    info: GGUFInfo,
    asked: Asked,
    load: Load,
    room: Room,
    *,
    kernels: str | None = None,
    draft: GGUFInfo | None = None,
    repacked: Mapping[str, float] = NOTHING,
) -> Fit:
    """How the model is loaded so that it fits into `room`, as near to `load` as that can be.

    Args:
        info: the header of the model.
        asked: what was said, which stays as it is.
        load: how it is to be loaded.
        room: what there is.
        kernels: name of the kernels, where it is known; by default those asked for.
        draft: a second model that drafts.
        repacked: what llama.cpp rearranges itself (`repacked_types`).

    Raises:
        DoesNotFitError: there is no such way.
    """
    search = _Search(info, asked, kernels or asked.kernels, draft, len(room.gpus), repacked)
    for enough in (room.is_enough, room.is_bearable):
        for changed, kept in search.ways(load, room, enough):
            need = search.need(changed, kept)
            if not enough(need):
                continue
            changes = (*search.told(load, changed, kept, room), *_warnings(info, need, room))
            return Fit(changed, need, kept, changes)
    needed = search.need(load)
    raise DoesNotFitError(
        f"{_name(info)} needs {_parts(needed)}; {_there_is(needed, room)}", search.hint(load, room)
    )


def most_texts(
    info: GGUFInfo,
    asked: Asked,
    load: Load,
    room: Room,
    most: int,
    *,
    draft: GGUFInfo | None = None,
    repacked: Mapping[str, float] = NOTHING,
) -> int:
    """The largest number of texts, at most `most` and at least 1, of which each has the context of `load`;
    beside a second model that drafts, if there is room for that beside one."""
    search = _Search(info, asked, asked.kernels, draft, len(room.gpus), repacked)

    def fits(texts: int, beside: GGUFInfo | None) -> bool:
        return room.is_enough(search.need(replace(load, texts=texts), beside))

    kept = draft if fits(1, draft) else None
    return _most(1, most, lambda texts: fits(texts, kept))


def smaller_caches(info: GGUFInfo, load: Load) -> Iterator[tuple[Load, str]]:
    """`load` with keys and values in SMALLER_TYPE, or only one of them, and what to type for it: the smallest
    first, and only what this model and its attention can do."""
    k, v, small = load.type_k, load.type_v, SMALLER_TYPE
    ways = (
        (small, small, f"-ctk {small} -ctv {small}"),
        (small, v, f"-ctk {small}"),
        (k, small, f"-ctv {small}"),
    )
    for type_k, type_v, flags in ways:
        changed = replace(load, type_k=type_k, type_v=type_v)
        if all(old in FLOAT_CACHES or old == new for old, new in ((k, type_k), (v, type_v))):
            try:
                check_flash_attention(changed.flash_attn, type_v, None)
                check_cache_of_model(info, changed)
            except UsageError:
                continue
            yield changed, flags


class _Search:
    """The ways to load one model, and what each takes."""

    def __init__(
        self,
        info: GGUFInfo,
        asked: Asked,
        kernels: str,
        draft: GGUFInfo | None,
        gpus: int,
        repacked: Mapping[str, float],
    ) -> None:
        self.info = info
        self.asked = asked
        self.draft = draft
        self._gpus = gpus
        self._repacked = repacked
        chosen = KERNELS.get(kernels)
        self._kernels = (chosen,) if chosen else (SPECX, STOCK) if library() else (STOCK,)

    def need(self, load: Load, draft: GGUFInfo | None = None) -> MemoryNeed:
        """What that takes, on the kernels that take more if they are still to be chosen."""
        needs = (
            predict_memory(
                self.info,
                load,
                kernels=kernels,
                repacked=self._repacked,
                gpus=self._gpus,
                drafting=self.asked.drafter != "none",
                history=self.asked.store,
                draft=self._beside(draft, load),
            )
            for kernels in self._kernels
        )
        return max(needs, key=lambda need: (need.required, need.working))

    def _beside(self, draft: GGUFInfo | None, load: Load) -> tuple[GGUFInfo, Load] | None:
        if draft is None:
            return None
        return draft, draft_load(self.asked, draft.path, load, head=draft.architecture in HEADS)

    def ways(self, load: Load, room: Room, enough: Enough) -> Iterator[tuple[Load, GGUFInfo | None]]:
        """How it could be loaded, and the draft model if it is kept, in the stated order."""
        if self.draft is not None and enough == room.is_enough:
            yield load, self.draft
        yield load, None
        load = self.with_states(load, enough)
        yield load, None
        yield self.with_context(load, enough), None
        if room.gpus:
            fewer = self.with_layers(load, room)
            yield fewer, None
            yield self.with_context(fewer, enough), None

    def with_states(self, load: Load, enough: Enough) -> Load:
        """With as many earlier states of its recurrent layers as there is enough for, possibly none."""
        kept = _most(0, load.snapshots, lambda n: enough(self.need(replace(load, snapshots=n))))
        return replace(load, snapshots=kept)

    def with_context(self, load: Load, enough: Enough) -> Load:
        """With the largest context for which there is enough, if there is one, and none was asked for."""
        if self.asked.n_ctx is not None:
            return load
        return replace(load, n_ctx=self.most_context(load, enough) or load.n_ctx)

    def most_context(self, load: Load, enough: Enough) -> int:
        """The largest context, at most that of `load`, for which there is enough; 0 without one."""
        least = min(LEAST_CONTEXT, load.n_ctx)
        low = least // CELLS - 1
        low = _most(low, load.n_ctx // CELLS, lambda n: enough(self.need(replace(load, n_ctx=n * CELLS))))
        return low * CELLS if low * CELLS >= least else 0

    def with_layers(self, load: Load, room: Room) -> Load:
        """With as many layers on the GPUs as they hold, if that is fewer."""
        if room.holds_gpu(self.need(load)):
            return load
        most = self.info.blocks + 1
        if load.n_gpu_layers >= 0:
            most = min(most, load.n_gpu_layers)

        def placed(layers: int) -> Load:
            return replace(load, n_gpu_layers=layers, offload=None)

        return placed(_most(0, most, lambda layers: room.holds_gpu(self.need(placed(layers)))))

    def told(self, wanted: Load, changed: Load, kept: GGUFInfo | None, room: Room) -> Iterator[str]:
        """What was changed, with its numbers."""
        if self.draft is not None and kept is None:
            both = self.need(wanted, self.draft)
            yield (
                f"the draft model {_name(self.draft)} is left out: {_excess(both, room)}, and it is the one "
                "thing that brings nothing but speed"
            )
        if changed.snapshots != wanted.snapshots:
            excess = _excess(self.need(replace(changed, snapshots=wanted.snapshots)), room)
            steps = (
                f"{changed.snapshots} earlier states of its recurrent layers are"
                if changed.snapshots
                else ("nothing is drafted, as no earlier states of its recurrent layers are")
            )
            yield f"{steps} kept: with {wanted.snapshots}, {excess}"
        if changed.n_ctx != wanted.n_ctx:
            more = f"with {wanted.n_ctx}, {_excess(self.need(replace(changed, n_ctx=wanted.n_ctx)), room)}"
            yield f"the context is {changed.n_ctx} tokens: {more} (-c sets it)"
        if changed.n_gpu_layers != wanted.n_gpu_layers:
            excess = _excess(self.need(wanted), room)
            yield f"{changed.n_gpu_layers} layers are on the GPU: otherwise {excess} (-ngl sets it)"

    def hint(self, load: Load, room: Room) -> str:
        """What to type so that it fits; no context beyond what the model was trained for."""
        if self.info.context_length:
            load = replace(load, n_ctx=min(load.n_ctx, wanted_context(self.info.context_length, 0)))
        for enough in (room.is_enough, room.is_bearable):
            if context := self.most_context(load, enough):
                return f"ask for a smaller context: -c {context}"
            for small, flags in smaller_caches(self.info, load):
                if context := self.most_context(small, enough):
                    return f"ask for a smaller cache: -c {context} {flags}"
        more = "close other programs"
        if room.limit is not None:  # they have nothing to do with it
            more = f"allow it more than {gibibytes(room.limit)}: ulimit -v, or the limit of its control group"
        return f"take a smaller quantization of it or a smaller model, or {more}"


def _most(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The largest of low + 1..high for which `holds`, which it does up to one and not beyond; else `low`."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _within(nbytes: float, limit: int | None) -> bool:
    return limit is None or nbytes <= limit


def _resident(need: MemoryNeed) -> int:
    """Bytes without which steps wait for the disk, or that are locked whether or not they are used."""
    return max(need.working, need.required)


def _excess(need: MemoryNeed, room: Room) -> str:
    """By how much it is too much, in words."""
    if room.gpus and need.gpu > sum(room.gpus):
        return (
            f"{gibibytes(need.gpu)} of GPU memory would be needed, and {gibibytes(sum(room.gpus))} are free"
        )
    return f"{gibibytes(_resident(need))} would be needed, and {_available(need, room)}"


def _available(need: MemoryNeed, room: Room) -> str:
    """What there is, in words; where all of it would do for `need`, how much of it may be taken."""
    there = gibibytes(room.available or 0)
    if _within(_resident(need), room.available):
        return f"{SLACK:.0%} of the {there} available may be taken"
    return f"{there} are available"


def _warnings(info: GGUFInfo, need: MemoryNeed, room: Room) -> Iterator[str]:
    if not room.is_enough(need):
        lacking = f"{_name(info)} needs {gibibytes(_resident(need))}, and {_available(need, room)}"
        how = "may" if _within(_resident(need), room.available) else "will"
        yield f"{lacking}: it {how} be slow unless other programs are closed"


def _parts(need: MemoryNeed) -> str:
    """What is needed, and for what."""
    parts = [
        (need.weights, "weights"),
        (need.kv, f"cache for a context of {need.n_ctx}"),
        (need.compute + need.logits, "computing"),
        (need.draft, "the draft model"),
        (need.drafter + need.base, "the rest"),
        (_resident(need) - need.working, "what else of the file is locked"),
    ]
    listed = ", ".join(f"{what} {gibibytes(nbytes)}" for nbytes, what in parts if nbytes)
    gpu = f", and {gibibytes(need.gpu)} of GPU memory" if need.gpu else ""
    return f"{gibibytes(_resident(need))} ({listed}){gpu}"


def _there_is(need: MemoryNeed, room: Room) -> str:
    if _within(need.required, room.bearable) and room.ceiling is not None:
        return f"{gibibytes(room.ceiling)} is all there is"
    return f"{gibibytes(room.bearable or 0)} are available"


def _name(info: GGUFInfo) -> str:
    return info.path.name
