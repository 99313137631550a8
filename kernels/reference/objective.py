"""What `StepCosts.best` computes (kernels/src/objective.cpp), in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["best_prefix"]


def best_prefix(
    probs: Sequence[float],
    parents: Sequence[int],
    costs: Sequence[float],
    host_ms: float,
    leaf_ms: float,
    most_ms: float = math.inf,
    one_leaf: bool = False,
) -> tuple[int, int, int, int, float, float]:
    """The prefix of a draft and the batch width of the highest expected rate.

    Args:
        probs: (n,) probability that the path to each node is accepted.
        parents: (n,) index of each node's parent, -1 for the root's children.
        costs: milliseconds of a batch by width, from index 1; an infinite cost forbids a width.
        host_ms: added to every batch.
        leaf_ms: added for every leaf beyond the first.
        most_ms: widths that cost more are forbidden.
        one_leaf: take a prefix of one of the draft's chains.

    Returns:
        Last node of the chain (-1: the draft as it is), nodes taken, width of the batch (wider than the nodes
        need where that is cheaper), leaves beyond the first, expected emitted tokens, expected milliseconds.
        Of equal rates the first chain and the narrowest width win.

    Raises:
        ValueError: no width has a cost that is allowed.
    """
    parts = [(-1, list(range(len(probs))))]
    if one_leaf and len(set(parents)) < len(parents):
        leaves = sorted(set(range(len(parents))) - set(parents))
        parts = [(leaf, path_to(leaf, parents)) for leaf in leaves]
    options = []
    for leaf, nodes in parts:
        for width in range(1, len(costs)):
            if not math.isfinite(costs[width]) or costs[width] > most_ms:
                continue
            taken = nodes[: width - 1]
            seen = [parents[node] for node in taken]
            branches = len(seen) - len(set(seen))
            gain = 1.0 + sum(probs[node] for node in taken)
            time = costs[width] + host_ms + leaf_ms * branches
            options.append((gain / time, -leaf, -width, (leaf, len(taken), width, branches, gain, time)))
    if not options:
        raise ValueError("no width has a cost that is allowed")
    return max(options)[3]


def path_to(leaf: int, parents: Sequence[int]) -> list[int]:
    """The nodes from the root's child to `leaf`."""
    path = [leaf]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]
