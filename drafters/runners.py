"""Runners-up: what a source says second and third at each place of its chain, where a step may be a tree.

They take no more of the source's time: its scores are there. Only the target's step is wider for them, and
whether that pays is for the plan to say. How often one is right, where what was said first is wrong, is
learned by how far behind it is. A tree that is grown from runners-up as well (EAGLE-2, Li et al. 2024) asks
the source for each node, and gives little more (docs/log.md).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from specx.drafters.base import Draft

__all__ = ["RUNNERS", "Runner", "Runners", "beside"]

RUNNERS = 2  # of each place
GAPS = (0.5, 1.0, 2.0, 4.0)  # edges of how far one is behind the first, in units of the tempered logits
PRIOR, TRIALS = (0.15, 0.1), 8.0  # how often the second and the third are right, before much was seen
KEEP = 0.99  # what a trial leaves of those before it

Runner = tuple[int, float]
"""A token, and how far it is behind the first."""


class Runners:
    """Hits and trials of runners-up. One for each source, shared by texts."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, RUNNERS, len(GAPS) + 1, 2))  # greedy, with noise; by place and gap

    def share(self, noisy: bool, place: int, gap: float) -> float:
        """Probability that the runner-up at `place`, 0 for the second, is right where the first is wrong."""
        hits, trials = self._counts[int(noisy), place, bisect_right(GAPS, gap)].tolist()
        return float((TRIALS * PRIOR[place] + hits) / (TRIALS + trials))

    def score(self, noisy: bool, others: Sequence[Runner], token: int) -> None:
        """What was said first was wrong, and `token` was right."""
        for place, (said, gap) in enumerate(others):
            counts = self._counts[int(noisy), place, bisect_right(GAPS, gap)]
            counts *= KEEP
            counts += (said == token, 1.0)


def beside(
    draft: Draft,
    chain: Sequence[int],
    others: Sequence[Sequence[Runner]],
    runners: Runners,
    source: int,
    leaves: int,
    *,
    noisy: bool,
) -> Draft:
    """`draft` with runners-up beside its chain.

    Args:
        draft: has the chain.
        chain: tokens from the root on.
        others: runners-up of each of them.
        runners: how often those are right.
        source: index of the source.
        leaves: most leaves of the result, if the draft has no more.
        noisy: whether tokens are drawn.
    """
    tokens, parents = draft.tokens.tolist(), draft.parents.tolist()
    probs = draft.probs.tolist()
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)
    found: list[tuple[float, int, int]] = []  # probability, token, parent
    at = -1
    for token, behind in zip(chain, others, strict=True):
        known = children.get(at, [])
        left = (probs[at] if at >= 0 else 1.0) - sum(probs[node] for node in known)
        said = {tokens[node]: node for node in known}
        for place, (other, gap) in enumerate(behind):
            prob = left * runners.share(noisy, place, gap)
            if other not in said and prob > 0:
                found.append((prob, other, at))
        at = said[token]
    spare = leaves - (len(tokens) - len(children.keys() - {-1}))  # a node without children is a leaf
    if spare <= 0 or not found:
        return draft
    found = sorted(found, reverse=True)[:spare]
    whole = np.concatenate([draft.probs, np.array([prob for prob, _, _ in found], np.float32)])
    order = np.argsort(-whole, kind="stable")  # parents stay first: they are as probable, and come before
    place_of = np.empty(len(order), np.int32)
    place_of[order] = np.arange(len(order), dtype=np.int32)
    above = np.array([*parents, *(parent for _, _, parent in found)], np.int32)[order]
    return Draft(
        np.array([*tokens, *(token for _, token, _ in found)], np.int32)[order],
        np.where(above >= 0, place_of[above], -1).astype(np.int32),
        whole[order],
        np.concatenate([draft.sources, np.full(len(found), source, np.uint8)])[order],
    )
