"""A machine that becomes slower is noticed, one that does not is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from specx.engine.bench.drift import trend


def series(rng, *, slope=0.0, groups=20, rounds=3, noise=0.02):
    """Groups of (seconds, log time): their levels differ by far more than the trend."""
    levels = rng.normal(0, 1, groups).tolist()
    return [
        [
            (t := r * 100.0 + g * 4.0 + rng.random(), float(levels[g] + slope * t + rng.normal(0, noise)))
            for r in range(rounds)
        ]
        for g in range(groups)
    ]


def test_a_drift_is_found_with_its_size():
    found = trend(series(np.random.default_rng(1), slope=0.1 / 300))
    assert found.significant
    assert found.change == pytest.approx(0.1, abs=0.03)


def test_noise_is_rarely_called_a_drift():
    rng = np.random.default_rng(2)
    alarms = sum(trend(series(rng)).significant for _ in range(300))
    assert alarms <= 9  # 3 are to be expected


def test_wild_values_do_not_make_a_drift():
    groups = series(np.random.default_rng(3))
    for group in groups[:4]:
        group[2] = (group[2][0], group[2][1] + 50.0)
    found = trend(groups)
    assert not found.significant and abs(found.change) < 0.05


def test_without_repetitions_there_is_nothing_to_compare():
    assert trend([[(0.0, 1.0)], [(1.0, 2.0)]]) is None
    assert trend([]) is None
