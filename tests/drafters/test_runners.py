"""Runners-up beside a chain: a tree as any other, that holds what was there as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.drafters.base import Draft
from specx.drafters.runners import PRIOR, Runners, beside

SOURCE = 5


def test_what_is_learned_of_runners_up():
    runners = Runners()
    assert [runners.share(False, place, 0.3) for place in (0, 1)] == pytest.approx(list(PRIOR))
    for _ in range(200):
        runners.score(False, ((7, 0.3), (8, 3.0)), 7)
        runners.score(True, ((7, 0.3),), 9)
    assert runners.share(False, 0, 0.3) > 0.9 > 0.1 > runners.share(True, 0, 0.3)
    assert runners.share(False, 1, 3.0) < 0.02 and runners.share(False, 1, 0.3) == pytest.approx(PRIOR[1])


def nodes_of(draft):
    """(path, probability) of every node."""
    found, paths = {}, []
    for token, parent, prob in zip(draft.tokens, draft.parents, draft.probs, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), int(token)))
        found[paths[-1]] = float(prob)
    assert len(found) == len(draft)  # no token twice in one place
    return found


def free_tree(random, n):
    probs, parents = [], []
    for _ in range(n):
        parent = int(random.integers(-1, len(probs)))
        left = (probs[parent] if parent >= 0 else 1.0) - sum(
            p for p, above in zip(probs, parents, strict=True) if above == parent
        )
        probs.append(left * random.uniform(0.1, 0.8))
        parents.append(parent)
    order = np.argsort(-np.array(probs), kind="stable")
    place = {int(old): new for new, old in enumerate(order)}
    return (
        np.array([10 + i for i in order], np.int32),
        np.array([place.get(parents[i], -1) for i in order], np.int32),
        np.array([probs[i] for i in order], np.float32),
        np.zeros(n, np.uint8),
    )


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.integers(0, 10), st.integers(1, 6), st.integers(1, 12))
def test_a_tree_with_runners_up(seed, free, length, leaves):
    random = np.random.default_rng(seed)
    chain = [int(random.choice([10, 11, 12, 50 + i])) for i in range(length)]
    hazards = random.uniform(0.05, 0.95, length).tolist()
    before = Draft(*free_tree(random, free)).merged(chain, hazards, SOURCE)
    others = [
        tuple((int(token), float(gap)) for gap, token in enumerate(random.choice([10, 11, 60, 61], k, False)))
        for k in random.integers(0, 3, length)
    ]
    after = beside(before, chain, others, Runners(), SOURCE, leaves, noisy=bool(seed % 2))
    was, now = nodes_of(before), nodes_of(after)
    assert {path: now[path] for path in was} == was
    assert all(after.parents[i] < i for i in range(len(after)))
    assert (np.diff(after.probs) <= 0).all()
    added = now.keys() - was.keys()
    assert all(path[:-1] == tuple(chain[: len(path) - 1]) for path in added)
    assert all(path[-1] in [token for token, _ in others[len(path) - 1]] for path in added)
    for path in [(), *now]:
        below = sum(prob for other, prob in now.items() if other[:-1] == path and len(other) == len(path) + 1)
        assert below <= (now[path] if path else 1.0) + 1e-5
    parents = {path[:-1] for path in now}
    grown, had = (sum(path not in {p[:-1] for p in tree} for path in tree) for tree in (now, was))
    assert grown <= max(leaves, had) and parents
    missing = {(*chain[:depth], token) for depth, behind in enumerate(others) for token, _ in behind}
    assert grown >= leaves or all(_full(path, was) for path in missing - now.keys())


def _full(path, tree):
    """Whether nothing is left for a child there."""
    below = sum(p for other, p in tree.items() if other[:-1] == path[:-1] and len(other) == len(path))
    return below >= tree.get(path[:-1], 1.0) - 1e-5
