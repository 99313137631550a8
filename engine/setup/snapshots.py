"""How many earlier states of a model's recurrent layers are kept, for drafts that turn out wrong.

A step of n tokens has to be able to go back to the state after each of them, so this bounds how many are
drafted. Each state takes memory, and each token of a step moves one: libllama writes it, reads it and writes
it to where it is kept. So the number is that of the widest step the objective would choose, by the bytes that
a step moves, where drafts are as good as they get: copied from a text that is at hand. It follows from the
header alone, because a graph that keeps states may compute other last bits than one that keeps none: a text
must not depend on whether anything is drafted.
"""

from __future__ import annotations

from specx.backends.gguf.cache_size import state_bytes
from specx.backends.gguf.file import ROLLBACK, GGUFInfo
from specx.backends.settings import Load
from specx.engine.cost.rate import chain_rate
from specx.engine.setup.choice import Choice
from specx.engine.setup.explain import gibibytes
from specx.engine.setup.layers import step_bytes

__all__ = ["best_snapshots", "plain_reason", "told_snapshots"]

COPIED = 0.9  # of drafts that are copied from the text itself, further tokens come true
VERIFIED = 0.07  # of a step that reads the weights, for each further token: what specx's kernels take
MOVES = 3  # of a state for each token of a step


def best_snapshots(info: GGUFInfo) -> int:
    """Earlier states worth keeping of a text that is written alone; 0 where there are none."""
    if not info.can_go_back:
        return 0
    weights, state = step_bytes(info), state_bytes(info)
    widths = range(1, ROLLBACK[info.architecture] + 2)
    moved = {n: weights * (1 + VERIFIED * (n - 1)) + state * (1 + MOVES * n) for n in widths}
    return chain_rate(moved, acceptance=COPIED).drafted


def plain_reason(info: GGUFInfo, load: Load) -> str | None:
    """Why a model that is loaded so decodes plainly (one clause), or None if it can speculate."""
    if info.plain_reason or not info.can_go_back or load.kept_states:
        return info.plain_reason
    why = f"of {load.texts} texts at once" if load.snapshots else "for lack of memory"
    return f"no earlier states of its recurrent layers are kept {why}"


def told_snapshots(info: GGUFInfo, wanted: Load, load: Load) -> Choice[int] | None:
    """What is kept, and why; None where there is nothing to keep.

    Args:
        info: the model.
        wanted, load: how it was to be loaded, and how it is.
    """
    if not info.can_go_back:
        return None
    each = gibibytes(state_bytes(info))
    if load.snapshots < wanted.snapshots:
        return Choice(load.kept_states, f"the most that fit, each of {each}")
    if load.kept_states < load.snapshots:
        return Choice(load.kept_states, f"of each of {load.texts} texts at once, each of {each}")
    return Choice(load.kept_states, f"the most that pay where drafts are good, each of {each}")
