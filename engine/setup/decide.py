"""From what was asked for, and this machine as it is now, to everything that a run needs: `Setup`.

The order follows from what depends on what: where the layers go, what then fits into memory, on how many
threads it runs, whose kernels. Nothing is loaded for it but, once on a machine with GPUs, the model itself,
to time its layers there.
"""

from __future__ import annotations

from dataclasses import replace

from specx.backends.gguf.cache_size import CELLS
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama.cache_types import check_cache_of_model
from specx.backends.llama.memory import wanted_context
from specx.backends.settings import DEFAULT_CTX, Load
from specx.drafters import registry
from specx.engine.settings import Asked
from specx.engine.setup import keys
from specx.engine.setup.choice import ASKED, Choice, Setup
from specx.engine.setup.draft_files import NamedDraft, named_draft
from specx.engine.setup.finder import MTP_NAME, Candidate, Unfit
from specx.engine.setup.fit import fit_here
from specx.engine.setup.here import Here
from specx.engine.setup.kernels import Chosen, choose_kernels
from specx.engine.setup.load import load_chosen, load_library
from specx.engine.setup.offloading import LayersPlaced, place_layers
from specx.engine.setup.snapshots import plain_reason, told_snapshots
from specx.engine.setup.texts import choose_texts
from specx.engine.setup.threads import choose_threads, warn_of_threads
from specx.engine.setup.wanted import wanted_load

__all__ = ["decide"]

DEFAULT = "the default"


def decide(asked: Asked, here: Here, *, timing: bool = True) -> Setup:
    """Everything that is decided before a model is loaded.

    Args:
        asked: what a person said.
        here: where measurements are kept, and who is told.
        timing: whether the model may be loaded to time its layers on GPUs.

    Raises:
        DoesNotFitError: there is not enough memory for it.
        ModelError: it cannot be loaded, or llama.cpp itself cannot, or an RPC server cannot be used; what can
            be said from the files themselves is said first.
    """
    info = read_runnable(asked.model)
    warn_of_threads(asked, here.notice)
    load_library(asked.rpc)
    named = named_draft(info, asked)
    if isinstance(named, Unfit):
        here.notice(
            f"{named.path.name} cannot draft, and is left out: {named.reason} "
            f"(`specx drafter list` names models that can)"
        )
    wanted = wanted_load(info, asked)
    check_cache_of_model(info, wanted)
    placed = _place(info, asked, wanted, here, timing=timing and asked.measure)
    header = named.header if isinstance(named, NamedDraft) else None
    texts = choose_texts(info, asked, placed.load, here, draft=header)
    kernels = placed.kernels.value if placed.kernels else None
    fitted = fit_here(
        info, asked, replace(placed.load, texts=texts.value), here, kernels=kernels, draft=header
    )
    threads, batch = choose_threads(asked, here.store, keys.threads_key(info, fitted.load, asked.kernels))
    load = replace(fitted.load, threads=threads.value, threads_batch=batch.value)
    draft = named.candidate if isinstance(named, NamedDraft) and fitted.draft else None
    plain = plain_reason(info, load)
    return Setup(
        asked,
        info,
        load,
        context=_context(info, asked, wanted, load),
        texts=texts,
        threads=threads,
        threads_batch=batch,
        kernels=_kernels(info, asked, load, placed, here),
        placement=_placement(placed, load),
        snapshots=told_snapshots(info, wanted, load),
        flash_attn=Choice(load.flash_attn, DEFAULT if asked.flash_attn is None else ASKED),
        cache_type_k=Choice(load.type_k, DEFAULT if asked.type_k is None else ASKED),
        cache_type_v=Choice(load.type_v, DEFAULT if asked.type_v is None else ASKED),
        drafter=_drafter(plain, asked, named, draft),
        draft_model=_draft_model(plain, asked, named, draft, mtp=load.mtp),
        draft=draft,
        need=fitted.need,
        changes=fitted.changes,
    )


def _place(info: GGUFInfo, asked: Asked, load: Load, here: Here, *, timing: bool) -> LayersPlaced:
    """Where the layers go, on the kernels that suit them."""

    def open_on(divided: Load, wanted: str) -> Chosen:
        key = keys.kernels_key(info, divided)
        return load_chosen(info, divided, choose_kernels(wanted, here.store, key, here.notice), here)

    key = keys.devices_key(info, load, asked.kernels)
    return place_layers(info, asked, load, key, open_on if timing else None, here)


def _context(info: GGUFInfo, asked: Asked, wanted: Load, load: Load) -> Choice[int]:
    if load.n_ctx < wanted.n_ctx:
        return Choice(load.n_ctx, "the largest that fits")
    if asked.n_ctx is None and load.n_ctx < wanted_context(None, info.context_length):
        return Choice(load.n_ctx, "enough for all that can be written")
    number, why = DEFAULT_CTX, f"{DEFAULT} (-c sets it)"
    if asked.n_ctx:
        number, why = asked.n_ctx, ASKED
    elif info.context_length and (asked.n_ctx == 0 or info.context_length < DEFAULT_CTX):
        number, why = info.context_length, "what the model was trained for"
    rounded = "" if load.n_ctx == number else f", rounded up to a multiple of {CELLS}"
    return Choice(load.n_ctx, f"{why}{rounded}")


def _kernels(
    info: GGUFInfo, asked: Asked, load: Load, placed: LayersPlaced, here: Here
) -> Choice[str | None]:
    as_placed = load.n_gpu_layers == placed.load.n_gpu_layers
    timed = placed.kernels if asked.kernels == "auto" and as_placed else None
    wanted = timed.value if timed else asked.kernels
    key = keys.kernels_key(info, load)
    options = {"measure": asked.measure, "idle": asked.idle}
    chosen = choose_kernels(wanted, here.store, key, here.notice, **options)
    return timed if timed and chosen.value == timed.value else chosen


def _placement(placed: LayersPlaced, load: Load) -> Choice[str]:
    if load.n_gpu_layers == placed.load.n_gpu_layers:
        return placed.where
    return Choice(f"{load.n_gpu_layers} layers on GPUs", "the most that fit")


def _drafter(
    plain: str | None, asked: Asked, named: NamedDraft | Unfit | None, draft: Candidate | None
) -> Choice[str]:
    if plain:
        return Choice("none", plain)
    if asked.drafter == "model" and isinstance(named, Unfit):
        return Choice("auto", "for the draft model that was named cannot draft")
    if asked.drafter == "model" and named is not None and draft is None:
        return Choice("auto", "for there is not enough memory for the draft model")
    return Choice(asked.drafter, DEFAULT if asked.drafter == "auto" else ASKED)


def _draft_model(
    plain: str | None,
    asked: Asked,
    named: NamedDraft | Unfit | None,
    draft: Candidate | None,
    *,
    mtp: bool,
) -> Choice[str | None]:
    if plain or not registry.find(asked.drafter).guessers:
        return Choice(None, "nothing asks one")
    if draft is not None:
        return Choice(draft.name, ASKED)
    if mtp:
        return Choice(MTP_NAME, "the model's own, asked where that pays")
    if isinstance(named, Unfit):
        return Choice(None, f"{named.name} cannot draft: {named.reason}")
    if named is not None:
        return Choice(None, f"{named.candidate.name} does not fit into memory")
    return Choice(None, "one that pays is looked for while tokens are written")
