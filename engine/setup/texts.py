"""How many texts there is room for at once, where nobody asked for a number.

Memory bounds it, and llama.cpp: a step has so many rows. Of what is left it is the number that is written at
the highest rate by the steps that were timed here; how many are then written together is weighed again as
costs are learned (`Session.worthwhile`).
"""

from __future__ import annotations

from dataclasses import replace

from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama.kernels import KERNELS
from specx.backends.llama.libllama import system_info
from specx.backends.llama.memory import repacked_types
from specx.backends.llama.params import MAX_WIDTH
from specx.backends.settings import Load
from specx.engine.cost.company import CompanyCosts
from specx.engine.cost.staircase import Staircase
from specx.engine.learned.knowledge import kept_identity, kept_staircase
from specx.engine.settings import Asked
from specx.engine.setup import keys
from specx.engine.setup.choice import ASKED, Choice
from specx.engine.setup.explain import silent
from specx.engine.setup.fit import Room, most_texts, read_room
from specx.engine.setup.here import Here
from specx.engine.setup.kernels import choose_kernels
from specx.engine.setup.threads import choose_threads

__all__ = ["UNTIMED", "choose_texts"]

UNTIMED = 16  # texts, while nothing is known of steps: most of the gain on every machine that was measured
DEPTH = 288  # tokens of a text, of which the number is weighed; the steps of all machines were timed there
DEFAULT = "the default"


def choose_texts(
    info: GGUFInfo,
    asked: Asked,
    load: Load,
    here: Here,
    room: Room | None = None,
    *,
    draft: GGUFInfo | None = None,
) -> Choice[int]:
    """How many texts of its context the model is loaded for.

    Args:
        info: the header of the model.
        asked: what was said.
        load: how it is to be loaded for one text.
        here: where measurements are kept.
        room: what memory there is; by default that of this machine now.
        draft: a second model that drafts, which is loaded for as many.
    """
    if asked.texts is not None:
        return Choice(asked.texts, ASKED if asked.texts > 1 else DEFAULT)
    load, kernels = _as_timed(info, asked, load, here)
    if asked.exact and (reason := _alone(info, load, kernels, here)):
        return Choice(1, reason)
    wanted, why = _worth_it(info, load, kernels, here)
    if asked.answers is not None and asked.answers < wanted:
        wanted, why = max(asked.answers, 1), "there are no more"
    room = room or read_room()
    repacked = repacked_types(system_info())
    most = most_texts(info, asked, load, room, wanted, draft=draft, repacked=repacked)
    if most < wanted:
        why = f"there is no memory for more that have a context of {load.n_ctx}"
    return Choice(most, why)


def _as_timed(info: GGUFInfo, asked: Asked, load: Load, here: Here) -> tuple[Load, str]:
    """How the model is loaded on the threads that were chosen, and the name of its kernels, if known."""
    threads, batch = choose_threads(asked, here.store, keys.threads_key(info, load, asked.kernels))
    load = replace(load, threads=threads.value, threads_batch=batch.value)
    key = keys.kernels_key(info, load)
    return load, choose_kernels(asked.kernels, here.store, key, silent, measure=False).value or ""


def _alone(info: GGUFInfo, load: Load, kernels: str, here: Here) -> str:
    """Why no text may have company with --exact; nothing if it may.

    Where each text has a stream of its own, rows are computed as in a wider step of one text.
    """
    if kernels and not KERNELS[kernels].attention:
        return "for --exact: with llama.cpp's attention texts share a cache, which changes last bits"
    identity = kept_identity(here.store, keys.cost_key(info, load, kernels))
    if identity is None:
        return "for --exact, until it was measured which batch widths are bit-identical: from the next run on"
    if not identity.exact_trees:
        widths = ", ".join(map(str, sorted(identity.widths)))
        return f"for --exact: only the batch widths {widths} are bit-identical here"
    return ""


def _worth_it(info: GGUFInfo, load: Load, kernels: str, here: Here) -> tuple[int, str]:
    """How many texts are written at the highest rate, and why it is this number."""
    staircase = kept_staircase(here.store, keys.cost_key(info, load, kernels), Staircase(MAX_WIDTH))
    if not staircase.depths:
        return UNTIMED, "until steps have been timed here"
    costs = CompanyCosts(staircase)
    found = costs.best_count(MAX_WIDTH, DEPTH)
    faster = found * costs.cost([1], [DEPTH]) / costs.cost([1] * found, [DEPTH] * found)
    return found, f"together {faster:.1f}x as fast as one by one, by steps as measured"
