"""Whether the times that a kept choice rests on still hold: the table of steps that is kept knows better.

The table is measured after the choice was made, and real steps correct it, or have it measured again. Where
it is far from what the choice was made by, the choice is made anew.
"""

from __future__ import annotations

from collections.abc import Mapping

from specx.backends.store import Store
from specx.engine.cost.contradiction import contradicts
from specx.engine.cost.staircase import Staircase
from specx.engine.cost.timing import TILES, unwatched

__all__ = ["is_contradicted"]


def is_contradicted(store: Store, cost_key: str, depth: int, steps: Mapping[int, float]) -> bool:
    """Whether what is kept of a model's steps is far from the times that a choice rests on.

    Args:
        store: where the table of steps is kept.
        cost_key: what it depends on, the choice included.
        depth: tokens of context that the times were taken after.
        steps: milliseconds by width.
    """
    staircase = Staircase(TILES, watch=unwatched)
    store.load_parsed("staircase", cost_key, lambda data: staircase.load_json(data.get("steps", {})))
    if not staircase.depths:
        return False
    later = {n: staircase.cost(n, depth) for n in staircase.steps(staircase.depths[0]) if n <= TILES}
    return contradicts(steps, later)
