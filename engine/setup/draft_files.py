"""Draft models from the GGUF files of this machine: checked by their headers, loaded beside the target."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from specx.backends.base import Model
from specx.backends.errors import ModelError
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import GGUFInfo, read_gguf
from specx.backends.gguf.head_target import widened_by
from specx.backends.gguf.heads import check_head, read_head
from specx.backends.llama.kernels import KERNELS, STOCK
from specx.backends.llama.memory import predict_memory, translation_bytes
from specx.backends.machine.machine import available_memory
from specx.backends.settings import Load
from specx.drafters.head import LoadedHead
from specx.engine.settings import Asked
from specx.engine.setup.choice import Setup
from specx.engine.setup.explain import gibibytes
from specx.engine.setup.finder import Candidate, Finder, Unfit, check_candidate, own_candidate
from specx.engine.setup.here import Here
from specx.engine.setup.load import repack_works
from specx.engine.setup.offloading import place_draft
from specx.engine.setup.opening import ended_specx, opening
from specx.engine.setup.wanted import draft_load

__all__ = ["DraftFiles", "NamedDraft", "named_draft"]

SPARE = 1.1  # more memory than is predicted must be free
SETTLES = "on a GPU heads cost every step more than they save (docs/gpu.md); one that is named is used"


@dataclass(frozen=True, slots=True)
class NamedDraft:
    """A draft model that a person asked for."""

    candidate: Candidate
    header: GGUFInfo


class DraftFiles:
    """Where a session's draft models come from. Implements `ModelSource` of `engine.drafting`.

    Args:
        setup: of the target, which is loaded.
        here: where it is kept what files are.
        load: loads a model on the kernels of the target.
        target: the target itself, whose hidden states heads read.
    """

    def __init__(self, setup: Setup, here: Here, load: Callable[[Load], Model], target: Model) -> None:
        self._setup = setup
        self._target = target
        self._here = here
        self._load = load
        self._finder = Finder(setup.info, here.store)

    def search(self) -> Iterator[Candidate | Unfit | None]:
        """The target's own layers, every model of this machine, and those beside the target."""
        if self._setup.load.mtp and (own := own_candidate(self._setup.info)) is not None:
            yield self._fit(own)
        for found in self._finder.search():
            yield self._fit(found) if isinstance(found, Candidate) else found

    def _fit(self, candidate: Candidate) -> Candidate | Unfit:
        """A candidate, unless it is known not to pay here."""
        if candidate.is_head and self._target.facts.settles > 1:
            return Unfit(candidate.path, candidate.name, SETTLES)
        return candidate

    def obstacle(self, candidate: Candidate) -> str | None:
        """Why it cannot be loaded (one clause): it would take more memory than is free, or ended specx."""
        if ended_specx(self._here.store, candidate.fingerprint):
            return "llama.cpp gave up on it before (`specx cache clear opening` forgets that)"
        if self._is_own(candidate):
            return None  # it was planned for when the target was loaded
        try:
            info = (
                read_head(candidate.path).info
                if candidate.is_head
                else read_runnable(candidate.path, drafting=True)
            )
        except ModelError as error:
            return error.message
        kernels = KERNELS.get(self._setup.kernels.value or "")
        need = predict_memory(info, self._wanted(candidate), kernels=kernels, drafting=False).working
        need += translation_bytes(self._setup.info, info) if candidate.translated else 0
        free = available_memory()
        if free is not None and SPARE * need > free:
            return f"it needs {gibibytes(need)} of memory, and {gibibytes(free)} are free"
        _read_ahead(candidate.path)
        return None

    def load(self, candidate: Candidate) -> Model:
        """The model, ready to be asked.

        Raises:
            ModelError: it cannot be loaded.
        """
        setup, wanted = self._setup, self._wanted(candidate)
        if setup.asked.draft.n_gpu_layers is None:
            wanted = place_draft(read_gguf(candidate.path), wanted, self._here.store, setup.devices_key)
        with opening(self._here.store, candidate.fingerprint):
            model = self._load(wanted)
            try:
                cache = model.open()
                cache.prefill([0, 0])  # what a file is damaged by may be computed with only
                cache.close()
            except BaseException:
                model.close()
                raise
        return model

    def watch(self, layers: Sequence[int]) -> None:
        """From now on the target gives what enters these layers; with none, no more.

        Raises:
            SpecxError: it cannot.
        """
        self._target.extract(layers)

    def load_head(self, candidate: Candidate) -> LoadedHead:
        """A draft head, ready to be asked.

        Raises:
            ModelError: it cannot be loaded, or does not go with the target any more.
        """
        from specx.backends.llama.block_head import LlamaBlockHead
        from specx.backends.llama.head import LlamaHead
        from specx.backends.llama.mtp import LlamaMtp
        from specx.drafters.blocks import block_head
        from specx.drafters.pairs import pair_head

        setup, kernels = self._setup, KERNELS[self._setup.kernels.value or STOCK.name]
        target, wanted = getattr(self._target, "context", None), self._wanted(candidate)
        with opening(self._here.store, candidate.fingerprint):
            if self._is_own(candidate):
                return pair_head(_tried(LlamaMtp(target, wanted, kernels=kernels)))
            head = read_head(candidate.path)
            if reason := check_head(head, setup.info):
                raise ModelError(f"{candidate.name} cannot draft: {reason}")
            options: Any = {
                "target_context": target,
                "scale": widened_by(setup.info),
                "kernels": kernels,
                "repack": repack_works(wanted, self._here),
            }
            if head.block is not None:
                return block_head(_tried(LlamaBlockHead(head, wanted, **options)))
            return pair_head(_tried(LlamaHead(head, wanted, **options)))

    def _is_own(self, candidate: Candidate) -> bool:
        """Whether it is a part of the target."""
        return candidate.path == self._setup.info.path

    def _wanted(self, candidate: Candidate) -> Load:
        return draft_load(self._setup.asked, candidate.path, self._setup.load, head=candidate.is_head)


class _Head(Protocol):
    def try_out(self) -> None: ...

    def close(self) -> None: ...


HeadT = TypeVar("HeadT", bound=_Head)


def _tried(head: HeadT) -> HeadT:
    """A loaded head that has computed something; it is closed where it cannot."""
    try:
        head.try_out()
    except BaseException:
        head.close()
        raise
    return head


def named_draft(target: GGUFInfo, asked: Asked) -> NamedDraft | Unfit | None:
    """The draft model that a person named, if one is wanted, or why it cannot draft for `target`."""
    path = asked.draft.model
    if path is None or asked.drafter == "none":
        return None
    found = check_candidate(target, path)
    return found if isinstance(found, Unfit) else NamedDraft(found, read_gguf(path))


def _read_ahead(path: Path) -> None:
    """Ask the system to bring a file into memory in the background, where it knows how."""
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(handle)
