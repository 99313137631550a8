"""Draft models from the GGUF files of this machine: checked by their headers, loaded beside the target."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from specx.backends.base import Model
from specx.backends.errors import ModelError
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import GGUFInfo, read_gguf
from specx.backends.llama.kernels import Kernels
from specx.backends.llama.memory import predict_memory
from specx.backends.machine.machine import available_memory
from specx.backends.settings import LoadSettings
from specx.backends.store import Store
from specx.engine.setup.explain import gibibytes
from specx.engine.setup.finder import Candidate, Finder, Unfit, examine

__all__ = ["DraftFiles", "NamedDraft", "named_draft"]

SPARE = 1.1  # more memory than is predicted must be free


@dataclass(frozen=True, slots=True)
class NamedDraft:
    """A draft model that a person asked for."""

    candidate: Candidate
    header: GGUFInfo


class DraftFiles:
    """Implements `ModelSource`.

    Args:
        target: the model to draft for.
        settings: how it was loaded, and what they say of draft models.
        kernels: what draft models run on: those of the target.
        n_ctx: tokens of its context.
        store: where it is kept what files are.
        load: loads a model by its settings.
    """

    def __init__(
        self,
        target: GGUFInfo,
        settings: LoadSettings,
        kernels: Kernels,
        n_ctx: int,
        store: Store,
        load: Callable[[LoadSettings], Model],
    ) -> None:
        self._settings = settings
        self._kernels = kernels
        self._n_ctx = n_ctx
        self._load = load
        self._finder = Finder(target, store)

    def search(self) -> Iterator[Candidate | Unfit | None]:
        """Every model of this machine, and those beside the target."""
        return self._finder.search()

    def obstacle(self, candidate: Candidate) -> str | None:
        """Why it cannot be loaded now (one clause): it would take more memory than is free."""
        try:
            info = read_runnable(candidate.path)
        except ModelError as error:
            return error.message
        need = predict_memory(info, self._settings_of(candidate), kernels=self._kernels).working
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
        return self._load(self._settings_of(candidate))

    def _settings_of(self, candidate: Candidate) -> LoadSettings:
        ours = self._settings
        return replace(
            ours,
            model=candidate.path,
            n_ctx=self._n_ctx,
            threads=ours.draft_threads or ours.threads,
            threads_batch=ours.draft_threads_batch or ours.draft_threads or ours.threads_batch,
            n_gpu_layers=ours.draft_gpu_layers,
            offload=None,
            type_k=ours.draft_type_k,
            type_v=ours.draft_type_v,
            drafter="none",
            draft_model=None,
        )


def named_draft(target: GGUFInfo, settings: LoadSettings) -> NamedDraft | None:
    """The draft model that a person named, if one is wanted.

    Raises:
        ModelError: it cannot draft for `target`.
    """
    path = settings.draft_model
    if path is None or settings.drafter == "none":
        return None
    header = read_gguf(path)
    found = examine(target, path)
    if isinstance(found, Candidate):
        return NamedDraft(found, header)
    if found.difference is not None:
        raise ModelError(
            f"these two models don't share a vocabulary: {found.difference}",
            f"take a smaller model of the same family as {target.name}, or leave -md out",
        )
    raise ModelError(
        f"{path.name} cannot draft: {found.reason}", "take another draft model, or leave -md out"
    )


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
