"""A draft and another source's chain become one tree whose probabilities are those of one distribution."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.drafters.base import EMPTY_DRAFT, Draft
from specx.kernels.reference import drafts as reference


def tree(tokens, parents, probs):
    return Draft(
        np.array(tokens, np.int32),
        np.array(parents, np.int32),
        np.array(probs, np.float32),
        np.zeros(len(tokens), np.uint8),
    )


def paths(draft):
    """Path of tokens -> probability."""
    found = {}
    for i, parent in enumerate(draft.parents.tolist()):
        above = [] if parent < 0 else list(found)[parent]
        found[(*above, int(draft.tokens[i]))] = float(draft.probs[i])
    return found


def test_a_chain_alone():
    draft = EMPTY_DRAFT.merged([5, 6, 7], [0.9, 0.5, 1.0], 3)
    assert paths(draft) == pytest.approx({(5,): 0.9, (5, 6): 0.45, (5, 6, 7): 0.45})
    assert draft.sources.tolist() == [3, 3, 3]


def test_what_both_propose_is_one_node_and_what_follows_it_is_surer():
    free = tree([5, 6, 7], [-1, 0, 1], [0.5, 0.4, 0.2])
    draft = free.merged([5, 6], [0.9, 0.9], 3)
    assert paths(draft) == pytest.approx({(5,): 0.9, (5, 6): 0.81, (5, 6, 7): 0.405})
    assert draft.sources.tolist() == [0, 0, 0]


def test_what_the_chain_contradicts_shares_what_is_left():
    free = tree([5, 6, 8], [-1, 0, -1], [0.6, 0.3, 0.2])
    draft = free.merged([9], [0.7], 3)
    assert paths(draft) == pytest.approx({(9,): 0.7, (5,): 0.18, (5, 6): 0.09, (8,): 0.06})
    # The chain says 8: what the free draft gave to it is no longer there for 5.
    draft = free.merged([8], [0.7], 3)
    assert paths(draft) == pytest.approx({(8,): 0.7, (5,): 0.6 / 0.8 * 0.3, (5, 6): 0.3 / 0.8 * 0.3})


def test_chains_of_a_draft():
    free = tree([5, 6, 7], [-1, 0, 1], [0.5, 0.4, 0.2])
    assert free.chain(2).tokens.tolist() == [5, 6, 7]
    apart = free.merged([5, 9], [0.9, 0.5], 3)
    leaves = sorted(set(range(len(apart))) - set(apart.parents.tolist()))
    chains = [apart.chain(leaf) for leaf in leaves]
    assert sorted(chain.tokens.tolist() for chain in chains) == [[5, 6, 7], [5, 9]]
    for chain in chains:
        assert chain.parents.tolist() == list(range(-1, len(chain) - 1))
        assert all(
            paths(apart)[tuple(chain.tokens[: i + 1].tolist())] == p for i, p in enumerate(chain.probs)
        )


def test_the_best_token_after_a_path():
    free = tree([5, 8, 6, 7, 9], [-1, -1, 0, 1, 0], [0.6, 0.2, 0.2, 0.1, 0.1])
    assert [free.best_after(path) for path in ([], [5], [8], [5, 6], [6], [5, 8])] == [
        5, 6, 7, None, None, None,
    ]  # fmt: skip
    assert EMPTY_DRAFT.best_after([]) is None


@st.composite
def free_drafts(draw):
    """A tree of calibrated candidates: children share their parent's probability."""
    tokens, parents, probs, rest = [], [], [], {-1: 1.0}
    for i in range(draw(st.integers(0, 9))):
        parent = draw(st.integers(-1, i - 1))
        taken = {t for t, p in zip(tokens, parents, strict=True) if p == parent}
        if len(taken) == 5:
            break
        token = draw(st.sampled_from(sorted({0, 1, 2, 3, 4} - taken)))
        prob = rest[parent] * draw(st.floats(0.05, 0.95))
        rest[parent] -= prob
        rest[i] = prob
        tokens.append(token)
        parents.append(parent)
        probs.append(prob)
    return tree(tokens, parents, probs).merged([], [], 1)  # in order


CHAINS = st.lists(st.tuples(st.integers(-1, 4), st.floats(0.01, 0.99)), max_size=6)


@given(free_drafts(), CHAINS)
def test_native_equals_reference(free, chain):
    tokens, hazards = [token for token, _ in chain], [hazard for _, hazard in chain]
    columns = free.tokens, free.parents, free.probs, free.sources
    nodes = list(zip(*(column.tolist() for column in columns), strict=True))
    draft = free.merged(tokens, hazards, 1)
    expected = reference.merge_chain(nodes, tokens, hazards, 1)
    found = zip(draft.probs.tolist(), draft.sources.tolist(), strict=True)
    merged = dict(zip(paths(draft), found, strict=True))
    strings: list[tuple[int, ...]] = []
    for token, parent, prob, source in expected:
        strings.append((*(strings[parent] if parent >= 0 else ()), token))
        assert merged[strings[-1]] == (pytest.approx(prob, rel=1e-5), source)
    assert len(merged) == len(expected)
    for path in ([], *strings):
        token = reference.token_after(nodes, path)
        assert free.best_after(path) == (token if token >= 0 else None)


def test_arrays_that_are_no_draft_are_refused():
    with pytest.raises(ValueError, match="parents"):
        tree([5, 6], [1, -1], [0.5, 0.5])
    with pytest.raises(ValueError, match="length"):
        tree([5, 6], [-1], [0.5, 0.5])
    with pytest.raises(ValueError, match="length"):
        EMPTY_DRAFT.merged([5, 6], [0.5], 1)


@given(free_drafts(), CHAINS)
def test_the_contract_of_drafts_is_kept(free, chain):
    tokens, hazards = [token for token, _ in chain], [hazard for _, hazard in chain]
    draft = free.merged(tokens, hazards, 1)
    n = len(draft)
    assert n <= len(free) + len(chain)
    assert all(draft.parents < np.arange(n)) and (draft.parents >= -1).all()
    assert all(a >= b for a, b in pairwise(draft.probs.tolist()))
    for i, parent in enumerate(draft.parents.tolist()):
        assert draft.probs[i] <= (draft.probs[parent] if parent >= 0 else 1)
    found = paths(draft)
    assert len(found) == n
    assert set(paths(free)) <= set(found)
    assert found.keys() >= {tuple(tokens[: i + 1]) for i in range(len(tokens))}
    for i in range(len(tokens)):
        assert found[tuple(tokens[: i + 1])] == pytest.approx(np.prod(hazards[: i + 1]), rel=1e-4)
    for parent in range(-1, n):
        below = float(draft.probs[draft.parents == parent].astype(np.float64).sum())
        assert below <= (float(draft.probs[parent]) if parent >= 0 else 1) * (1 + 1e-4)


WILD = st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0, 1e30, float("inf"), float("nan")])


@given(st.lists(WILD, max_size=12), st.lists(WILD, max_size=12), st.booleans())
def test_a_tree_stays_one_whatever_a_drafter_says_is_probable(probs, below, graft):
    first, second = (tree([*range(len(p))], [i // 2 - 1 for i in range(len(p))], p) for p in (probs, below))
    draft = first.grafted([], second) if graft else first.merged([0, 2, 9], [0.5, 0.5, 0.5], 1)
    assert all(draft.parents < np.arange(len(draft))) and (draft.parents >= -1).all()
    assert all(a >= b for a, b in pairwise(draft.probs.tolist()))
