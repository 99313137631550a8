"""What was asked for as values to load with, before anything was measured or made to fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from specx.backends.gguf.cache_size import cells
from specx.backends.gguf.file import GGUFInfo
from specx.backends.gguf.mtp import has_mtp
from specx.backends.llama.memory import wanted_context
from specx.backends.machine.machine import this_cpu
from specx.backends.settings import ALL_LAYERS, HEAD_ROWS, Load
from specx.engine.settings import Asked
from specx.engine.setup.snapshots import best_snapshots

__all__ = ["CACHE_TYPE", "FLASH_ATTN", "LEAST_CONTEXT", "draft_load", "wanted_load"]

CACHE_TYPE = "f16"
FLASH_ATTN = "on"
LEAST_CONTEXT = 512  # tokens; nobody is helped by less, and steps are measured in so many


def wanted_load(info: GGUFInfo, asked: Asked) -> Load:
    """How the model with the header `info` is loaded if nothing speaks against it: a thread for each usable
    core, all layers on GPUs and room for one text, unless something else was asked for."""
    threads = asked.threads or this_cpu().default_threads
    return Load(
        asked.model,
        threads=threads,
        threads_batch=asked.threads_batch or threads,
        n_ctx=_context(asked, info),
        texts=asked.texts or 1,
        n_batch=asked.n_batch,
        n_ubatch=min(asked.n_ubatch, asked.n_batch),
        n_gpu_layers=ALL_LAYERS if asked.n_gpu_layers is None else asked.n_gpu_layers,
        flash_attn=asked.flash_attn or FLASH_ATTN,
        type_k=asked.type_k or CACHE_TYPE,
        type_v=asked.type_v or CACHE_TYPE,
        mmap=asked.mmap,
        mlock=asked.mlock,
        packed_copy=asked.packed_copy,
        swa_full=asked.swa_full,
        snapshots=best_snapshots(info),
        mtp=asked.drafter == "auto" and asked.draft.model is None and has_mtp(info),
        log=asked.log,
    )


def _context(asked: Asked, info: GGUFInfo) -> int:
    """As much as was asked for; else no more than is needed, because all of it is cleared at the start."""
    n_ctx = wanted_context(asked.n_ctx, info.context_length)
    if asked.n_ctx is not None or asked.longest is None:
        return n_ctx
    return min(n_ctx, cells(max(asked.longest, LEAST_CONTEXT)))


def draft_load(asked: Asked, path: Path, target: Load, *, head: bool = False) -> Load:
    """How the draft model `path` is loaded beside a model that is loaded as `target` says: the same way, but
    for what was asked of it. A draft head scores its whole vocabulary for each row of a call, so there are
    few."""
    own = asked.draft
    return replace(
        target,
        n_batch=HEAD_ROWS if head else target.n_batch,
        n_ubatch=HEAD_ROWS if head else target.n_ubatch,
        path=path,
        threads=own.threads or target.threads,
        threads_batch=own.threads_batch or own.threads or target.threads_batch,
        n_gpu_layers=ALL_LAYERS if own.n_gpu_layers is None else own.n_gpu_layers,
        offload=None,
        snapshots=0,
        mtp=False,
        type_k=own.type_k or CACHE_TYPE,
        type_v=own.type_v or CACHE_TYPE,
    )
