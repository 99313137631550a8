"""One tree from a draft and a chain that another source proposes for the same place.

The chain says at each of its nodes what comes next with probability h, so the other candidates share 1 - h in
the proportions they had. What both propose is one node; how much surer agreement makes it is for whoever
estimates h to know.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specx.drafters.base import Draft

__all__ = ["merge", "node_of_path"]


def merge(draft: Draft, tokens: Sequence[int], hazards: Sequence[float], source: int) -> Draft:
    """The tree of `draft` and the chain `tokens`, best first.

    Args:
        draft: a tree.
        tokens: the chain, from below the root; -1 stands for a token that is not known.
        hazards: of each of them, the probability that it is right if those before it are.
        source: index of the chain's source, for nodes that `draft` does not have.
    """
    parents: list[int] = draft.parents.tolist()
    probs: list[float] = draft.probs.tolist()
    ids: list[int] = draft.tokens.tolist()
    sources: list[int] = draft.sources.tolist()
    own = len(ids)  # nodes of `draft` come first
    scale: list[float | None] = [None] * own  # of each node's probability; None: as its parent's
    at, above, path = -1, 1.0, 1.0  # the chain's last node, and its probability in `draft` and now
    for token, hazard in zip(tokens, hazards, strict=True):
        below = [i for i in range(at + 1, own) if parents[i] == at] if at < own else []
        same = next((i for i in below if ids[i] == token), None)
        mass = probs[same] / above if same is not None else 0.0
        rest = (1 - hazard) / max(1 - mass, 1e-6)
        for i in below:
            scale[i] = rest * path / above  # of what was right below this node
        path *= hazard
        if same is None:
            parents.append(at)
            ids.append(token)
            sources.append(source)
            probs.append(path)
            at, above = len(ids) - 1, path
        else:
            above = max(probs[same], 1e-9)
            scale[same] = path / above
            at = same
    for i in range(own):
        factor = scale[i]
        if factor is None:
            inherited = scale[parents[i]] if parents[i] >= 0 else None
            factor = 1.0 if inherited is None else inherited
            scale[i] = factor
        probs[i] *= factor
    return _ordered(ids, parents, probs, sources)


def node_of_path(draft: Draft, path: Sequence[int]) -> int | None:
    """Index of the node that the tokens `path` lead to: -1 if they are none, None if there is none."""
    tokens, parents = draft.tokens.tolist(), draft.parents.tolist()
    at = -1
    for token in path:
        at = next((i for i in range(at + 1, len(tokens)) if parents[i] == at and tokens[i] == token), -2)
        if at == -2:
            return None
    return at


def _ordered(ids: list[int], parents: list[int], probs: list[float], sources: list[int]) -> Draft:
    """Sorted by probability, parents first."""
    n = len(ids)
    for i in range(n):  # rounding must not lift a node above its parent
        if parents[i] >= 0:
            probs[i] = min(probs[i], probs[parents[i]])
    order = sorted(range(n), key=lambda i: -probs[i])  # stable, and a parent has the smaller index
    place = [0] * (n + 1)
    for new, old in enumerate(order):
        place[old] = new
    place[n] = -1  # of index -1, the root
    return Draft(
        np.array([ids[i] for i in order], np.int32),
        np.array([place[parents[i]] for i in order], np.int32),
        np.array([probs[i] for i in order], np.float32),
        np.array([sources[i] for i in order], np.uint8),
    )
