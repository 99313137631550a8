"""One tree from a draft and a chain that another source proposes for the same place.

The chain says at each of its nodes what comes next with probability h, so the other candidates share 1 - h in
the proportions they had. What both propose is one node; how much surer agreement makes it is for whoever
estimates h to know.
"""

from __future__ import annotations

from collections.abc import Sequence

from specx.drafters.base import Draft
from specx.kernels._native import graft as native_graft
from specx.kernels._native import merge_chain, token_after

__all__ = ["best_after", "graft", "merge"]


def merge(draft: Draft, tokens: Sequence[int], hazards: Sequence[float], source: int) -> Draft:
    """The tree of `draft` and the chain `tokens`, best first.

    Args:
        draft: a tree.
        tokens: the chain, from below the root; -1 stands for a token that is not known.
        hazards: of each of them, the probability that it is right if those before it are.
        source: index of the chain's source, for nodes that `draft` does not have.
    """
    return Draft(
        *merge_chain(draft.tokens, draft.parents, draft.probs, draft.sources, tokens, hazards, source)
    )


def best_after(draft: Draft, path: Sequence[int]) -> int | None:
    """The most promising token of `draft` after the tokens of `path`, None if it has none there."""
    token = token_after(draft.tokens, draft.parents, path)
    return None if token < 0 else token


def graft(draft: Draft, path: Sequence[int], below: Draft) -> Draft:
    """`draft` with the tree `below` under the node that the tokens of `path` lead to, which has no children.

    Args:
        draft: a tree that has the path.
        path: tokens from below the root.
        below: its probabilities are given that the path is right.
    """
    if not len(below):
        return draft
    return Draft(*native_graft(*draft.arrays, path, *below.arrays))
