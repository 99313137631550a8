"""What `best_prefix` computes, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["best_prefix"]


def best_prefix(
    probs: Sequence[float], parents: Sequence[int], costs: Sequence[float], host_ms: float, leaf_ms: float
) -> tuple[int, int, int, float, float]:
    """The prefix of a draft and the batch width of the highest expected rate.

    Args:
        probs: (n,) probability that the path to each node is accepted.
        parents: (n,) index of each node's parent, -1 for the root's children.
        costs: milliseconds of a batch by width, from index 1; an infinite cost forbids a width.
        host_ms: added to every batch.
        leaf_ms: added for every leaf beyond the first.

    Returns:
        Nodes taken, width of the batch (wider than the nodes need where that is cheaper), leaves beyond the
        first, expected emitted tokens, expected milliseconds. Of equal rates the narrowest width wins.

    Raises:
        ValueError: no width has a finite cost.
    """
    options = []
    for width in range(1, len(costs)):
        if not math.isfinite(costs[width]):
            continue
        nodes = min(width - 1, len(probs))
        seen = [*parents[:nodes]]
        leaves = len(seen) - len(set(seen))
        gain = 1.0 + sum(probs[:nodes])
        time = costs[width] + host_ms + leaf_ms * leaves
        options.append((gain / time, -width, (nodes, width, leaves, gain, time)))
    if not options:
        raise ValueError("no width has a finite cost")
    return max(options)[2]
