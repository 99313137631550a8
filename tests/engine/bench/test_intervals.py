"""Intervals hold what they promise: against tables, and by simulation."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from specx.engine.bench.intervals import (
    Estimate,
    mean_interval,
    median_interval,
    repeat_interval,
    repeat_noise,
    t_quantile,
)

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 29, 30, 101])
def test_the_quantile_is_that_of_students_t(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


def test_a_mean_has_the_interval_of_scipy():
    values = [0.1, 0.4, 0.35, -0.2, 0.15]
    low, high = stats.t.interval(0.95, 4, statistics.mean(values), stats.sem(values))
    found = mean_interval(values)
    assert (found.value, found.low, found.high) == pytest.approx((statistics.mean(values), low, high))


def test_one_value_has_no_interval_and_none_no_mean():
    assert mean_interval([2.0]) == Estimate(2.0)
    assert repeat_interval([[1.0], [3.0]], repeat_noise([[1.0], [3.0], []])) == Estimate(2.0)
    for function in (mean_interval, lambda none: repeat_interval(none, repeat_noise(none)), median_interval):
        with pytest.raises(ValueError, match="needs values"):
            function([])
    with pytest.raises(ValueError, match="freedom"):
        t_quantile(0)


def test_repeats_of_one_group_are_a_mean_and_groups_pool_their_spread():
    values = [0.3, 0.5, 0.1]
    one, plain = repeat_interval([values], repeat_noise([values])), mean_interval(values)
    assert (one.low, one.high) == pytest.approx((plain.low, plain.high))
    both = [values, [v + 100 for v in values]]
    apart = repeat_interval(both, repeat_noise(both))
    assert apart.value == pytest.approx(50.3)
    assert apart.high - apart.low < one.high - one.low  # what differs between groups is no noise


def test_a_median_lies_between_order_statistics():
    assert median_interval([5.0, 1.0, 3.0]) == Estimate(3.0)
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == Estimate(3.5, 1.0, 6.0)
    found = median_interval([float(n) for n in range(20)])
    assert (found.low, found.high) == (5.0, 14.0)  # P(6 or more of 20 below) is 0.979 on either side


def test_an_estimate_can_be_transformed_and_excludes_only_what_it_knows():
    ratio = Estimate(0.0, -0.1, 0.1).transformed(math.exp)
    assert ratio.value == 1.0 and ratio.low == pytest.approx(math.exp(-0.1))
    assert not ratio.excludes(1.0) and ratio.excludes(1.2)
    assert not Estimate(2.0).excludes(1.0)


@pytest.mark.parametrize("count", [3, 5, 12])
@pytest.mark.parametrize("hiccups", [0.0, 0.07])
def test_the_interval_of_a_mean_covers_the_truth(count, hiccups):
    rng = np.random.default_rng(count)
    covered = 0
    for _ in range(1000):
        noise = rng.normal(0, 0.02, (2, count, 3))
        noise += (rng.random(noise.shape) < hiccups) * rng.exponential(0.15, noise.shape)
        ours, theirs = np.median(noise, axis=2)
        found = mean_interval((ours - theirs).tolist())
        covered += not found.excludes(0.0)
    assert covered >= 930  # 950 are promised; 930 are less likely than 1 in 250 by chance


def test_the_interval_of_a_median_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = sum(
        not median_interval(rng.exponential(1, 15).tolist()).excludes(math.log(2)) for _ in range(1000)
    )
    assert covered >= 940
