"""Times of steps that do not fall where noise explains it: properties of the fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from specx.engine.cost.isotonic import isotonic, monotone_steps

values = st.floats(0.1, 100.0)
pairs = st.lists(st.tuples(values, st.floats(0.01, 100.0)), min_size=1, max_size=20)


@given(pairs)
def test_it_is_the_nearest_that_does_not_fall(given_pairs):
    y, w = map(list, zip(*given_pairs, strict=True))
    fitted = isotonic(y, w)
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(fitted))
    assert fitted == pytest.approx(isotonic_regression(y, weights=w).x.tolist())
    assert np.dot(fitted, w) == pytest.approx(np.dot(y, w))  # pooled, nothing is added
    assert isotonic(fitted, w) == pytest.approx(fitted)


steps = st.dictionaries(st.integers(1, 40), values, min_size=2).map(lambda s: {1: 1.0, **s})


@given(steps, st.floats(0.001, 0.5))
def test_no_width_is_cheaper_than_one_token_and_wide_ones_stay(times, noise):
    fitted = monotone_steps(times, {n: noise * ms for n, ms in times.items()}, 32)
    assert fitted.keys() == times.keys()
    for n in times:
        if n > 32:
            assert fitted[n] == times[n]
        else:
            assert fitted[n] >= fitted[1]
            assert min(times.values()) <= fitted[n] <= max(times.values())


@given(steps)
def test_what_does_not_fall_stays_as_it_is(times):
    rising = dict(zip(sorted(times), sorted(times.values()), strict=True))
    assert monotone_steps(rising, {n: 0.02 * ms for n, ms in rising.items()}, 64) == pytest.approx(rising)


@given(steps, st.floats(0.05, 0.5))
def test_falls_within_the_noise_vanish(times, noise):
    sizes = {n: noise * max(times.values()) for n in times}
    assume(max(times.values()) - min(times.values()) < 5 * noise * max(times.values()))
    fitted = monotone_steps(times, sizes, 64)
    ordered = [fitted[n] for n in sorted(fitted)]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(ordered))


def test_a_fall_far_beyond_the_noise_is_real_and_one_of_the_noise_is_shared_by_sureness():
    times = {1: 10.0, 4: 30.0, 6: 40.0, 8: 30.0, 16: 29.9}
    fitted = monotone_steps(times, {1: 0.1, 4: 0.1, 6: 0.1, 8: 0.1, 16: 0.3}, 32)
    assert fitted == pytest.approx({1: 10.0, 4: 30.0, 6: 40.0, 8: 29.99, 16: 29.99})
    assert monotone_steps({1: 10.0, 2: 9.99}, {1: 0.1, 2: 0.1}, 32) == pytest.approx({1: 9.995, 2: 9.995})
    assert monotone_steps({1: 10.0, 4: 5.0}, {1: 0.1, 4: 0.1}, 32) == {1: 10.0, 4: 10.0}
