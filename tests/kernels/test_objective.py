"""The native scan of the objective against every prefix and width, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.kernels._native import Draft, StepCosts
from specx.kernels.reference import objective as reference


@st.composite
def trees(draw):
    """Path probabilities and parents; probabilities never rise."""
    n = draw(st.integers(0, 8))
    probs = sorted((draw(st.floats(2**-9, 1, width=32)) for _ in range(n)), reverse=True)
    chain = draw(st.booleans())
    return probs, [i - 1 if chain else draw(st.integers(-1, i - 1)) for i in range(n)]


COSTS = st.lists(st.one_of(st.floats(1, 50), st.just(np.inf)), min_size=1, max_size=10)


def draft_of(probs, parents):
    n = len(probs)
    tokens, probs = np.arange(n, dtype=np.int32), np.array(probs, np.float32)
    return Draft(tokens, np.array(parents, np.int32), probs, np.zeros(n, np.uint8))


@given(
    trees(), COSTS, st.floats(0, 5), st.floats(0, 5), st.just(np.inf) | st.floats(-2, 50), st.booleans(),
    st.floats(0, 5),
)  # fmt: skip
def test_native_equals_reference(tree, widths, host_ms, leaf_ms, budget, one_leaf, spent_ms):
    probs, parents = tree
    widths = [np.inf, *widths]
    costs = StepCosts(np.array(widths), host_ms, leaf_ms, budget, one_leaf)
    plain_ms, draft = min(widths), draft_of(probs, parents)
    assert costs.plain_ms == plain_ms
    assert costs.wider_ms == min(widths[2:], default=np.inf)
    if np.isinf(plain_ms):
        with pytest.raises(ValueError, match="width"):
            costs.best(draft, spent_ms)
        return
    most_ms = max(plain_ms * (1 + budget) - spent_ms, plain_ms)
    assert costs.affordable_ms(spent_ms) == most_ms
    part, width, branches, gain, time = costs.best(draft, spent_ms)
    host_ms += spent_ms
    expected = reference.best_prefix(probs, parents, widths, host_ms, leaf_ms, most_ms, one_leaf)
    assert gain / time == pytest.approx(expected[4] / expected[5])
    assert widths[width] <= most_ms
    assert len(part) <= width - 1
    path = part.tokens.tolist()  # a token is the index of its node
    for at, parent in zip(path, part.parents.tolist(), strict=True):
        assert parents[at] == (path[parent] if parent >= 0 else -1)
    if not one_leaf:
        assert path == list(range(len(path)))
    seen = part.parents.tolist()
    assert branches == len(seen) - len(set(seen))
    assert not (one_leaf and branches)
    assert gain == pytest.approx(1 + sum(probs[node] for node in path))
    assert time == pytest.approx(widths[width] + host_ms + leaf_ms * branches)


def test_of_equal_rates_the_narrowest_width_wins():
    part, *found = StepCosts(np.array([np.inf, 1.0, 2.0, 2.0])).best(Draft.of_chain([5], [1.0]))
    assert (len(part), found) == (0, [1, 0, 1.0, 1.0])


def test_parents_come_first():
    with pytest.raises(ValueError, match="parents"):
        draft_of([1.0], [0])
