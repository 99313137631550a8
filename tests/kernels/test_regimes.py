"""The native corrections of step times against plain Python, over random courses of steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.kernels._native import Regimes
from specx.kernels.reference import regimes as reference

WIDEST = 12
FACTORS = st.one_of(st.floats(0.8, 1.3), st.sampled_from([0.2, 0.3, 2.5, 3.0, 3.1, 5.0]))


def tables(seed, depths):
    random = np.random.default_rng(seed)
    first = np.cumsum(random.uniform(0.1, 2.0, WIDEST + 1))
    return {depth: first * random.uniform(0.9, 1.5) + depth / 500 for depth in depths}


def assert_same(native, plain, depths):
    for length in (0, 100, 300, 1000, 5000):
        weights = plain.weigh(depths, length)
        np.testing.assert_allclose(native.costs(length), plain.costs(weights), rtol=1e-9)
        for n in (1, 5, WIDEST):
            assert native.cost(n, length) == pytest.approx(plain.expected(n, weights), rel=1e-9)
            quiet = sum(plain.measured[depth][n] * weight for depth, weight in weights)
            assert native.quiet(n, length) == pytest.approx(quiet, rel=1e-9)
        assert native.nearest(length) == max(reversed(weights), key=lambda each: each[1])[0]
    lengths = [0, 300, 700]
    total = plain.total_costs([plain.weigh(depths, length) for length in lengths])
    np.testing.assert_allclose(native.total_costs(lengths), total, rtol=1e-9)
    for n in (1, WIDEST):
        of_each = {depth: plain.present[depth][n] / plain.measured[depth][n] for depth in depths}
        assert native.corrections(n) == pytest.approx(of_each, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([[0], [0, 288], [0, 288, 1100]]),
    st.lists(
        st.tuples(st.sampled_from([1, 1, 1, 2, 4, 8, WIDEST]), st.integers(0, 1500), FACTORS), max_size=50
    ),
    st.integers(1, 4),
)
def test_native_equals_reference(seed, depths, steps, in_a_row):
    native, plain = Regimes(WIDEST), reference.Regimes(WIDEST)
    native.rebase(tables(seed, depths))
    plain.rebase(tables(seed, depths))
    for n, length, factor in steps:
        for _ in range(in_a_row):  # what is far off counts only if it is so several times
            weights = plain.weigh(depths, length)
            ms = plain.expected(n, weights) * factor
            assert native.observe(n, length, ms) == pytest.approx(plain.observe(n, weights, ms), rel=1e-9)
    assert_same(native, plain, depths)
    deeper = [*depths, 3000]
    native.rebase(tables(seed + 1, deeper))
    plain.rebase(tables(seed + 1, deeper))
    assert_same(native, plain, deeper)
    native.reset()
    plain.reset()
    assert_same(native, plain, deeper)


def test_a_step_costs_as_much_as_it_has_tokens_where_nothing_is_known():
    native = Regimes(4)
    assert native.costs(100).tolist() == [0, 1, 2, 3, 4]
    assert native.total_costs([0, 50]).tolist() == [0, 2, 4, 6, 8]
    assert native.cost(3, 10) == native.quiet(3, 10) == 3
    with pytest.raises(ValueError, match="measured"):
        native.observe(1, 0, 1.0)


def test_leaving_single_tokens_costs_the_way_back():
    native, inf = Regimes(5), np.inf
    native.rebase({0: np.array([0.0, 1.0, 2.0, 2.5, 4.0, 5.0])})
    assert native.step_costs(0, 4).tolist() == [inf, 1, 2, 2.5, inf, 5]
    assert native.step_costs(0, 6, 1, 0.25).tolist() == [inf, 1, 2.25, 2.75, 4.25, 5.25]
    assert native.step_costs(0, 6, 3, 0.25).tolist() == [inf, 1, 2, 2.25, 4, 5]
    assert native.step_costs(0, 2**64 - 1).tolist() == native.step_costs(0, 6).tolist()
    assert native.step_costs(0, 6, 2, 3.0).tolist() == [inf, 1, 1, 2.5, 4, 5]


def test_what_cannot_be():
    with pytest.raises(ValueError, match="widest"):
        Regimes(0)
    with pytest.raises(ValueError, match="width"):
        Regimes(4).rebase({0: np.ones(4)})
    native = Regimes(4)
    for call in (native.cost, native.quiet):
        for n in (-1, 5):
            with pytest.raises(IndexError):
                call(n, 0)
