"""The native scan of the objective against every prefix and width, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.kernels._native import best_prefix
from specx.kernels.reference import objective as reference


@st.composite
def trees(draw):
    """Path probabilities and parents; probabilities never rise."""
    n = draw(st.integers(0, 8))
    probs = sorted((draw(st.floats(2**-9, 1, width=32)) for _ in range(n)), reverse=True)
    chain = draw(st.booleans())
    return probs, [i - 1 if chain else draw(st.integers(-1, i - 1)) for i in range(n)]


COSTS = st.lists(st.one_of(st.floats(1, 50), st.just(np.inf)), min_size=1, max_size=10)


@given(trees(), COSTS, st.floats(0, 5), st.floats(0, 5), st.just(np.inf) | st.floats(1, 50), st.booleans())
def test_native_equals_reference(tree, costs, host_ms, leaf_ms, most_ms, one_leaf):
    probs, parents = tree
    costs = [np.inf, *costs]
    options = host_ms, leaf_ms, most_ms, one_leaf
    arrays = np.array(probs, np.float32), np.array(parents, np.int32), np.array(costs)
    if not any(cost <= most_ms and np.isfinite(cost) for cost in costs):
        with pytest.raises(ValueError, match="width"):
            best_prefix(*arrays, *options)
        return
    found = best_prefix(*arrays, *options)
    expected = reference.best_prefix(probs, parents, costs, *options)
    assert found[4] / found[5] == pytest.approx(expected[4] / expected[5])
    leaf, nodes, width, branches, gain, time = found
    path = reference.path_to(leaf, parents) if leaf >= 0 else list(range(len(probs)))
    assert nodes == min(width - 1, len(path))
    seen = [parents[node] for node in path[:nodes]]
    assert branches == len(seen) - len(set(seen))
    assert not (one_leaf and branches)
    assert gain == pytest.approx(1 + sum(probs[node] for node in path[:nodes]))
    assert time == pytest.approx(costs[width] + host_ms + leaf_ms * branches)


def test_of_equal_rates_the_narrowest_width_wins():
    probs, parents = np.array([1.0], np.float32), np.array([-1], np.int32)
    assert best_prefix(probs, parents, np.array([np.inf, 1.0, 2.0, 2.0]), 0.0, 0.0) == (-1, 0, 1, 0, 1.0, 1.0)


def test_parents_come_first():
    with pytest.raises(ValueError, match="parents"):
        best_prefix(np.ones(1, np.float32), np.zeros(1, np.int32), np.ones(3), 0.0, 0.0)
