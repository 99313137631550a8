"""The alarm for drafts that are right far less often than expected: soon when it is so, hardly ever else."""

from __future__ import annotations

import numpy as np

from specx.drafters.calibration.collapse import FALSE_ALARM_TOKENS, Collapse


def alarm_after(rng, expected, true, most):
    collapse = Collapse()
    for n in range(1, most + 1):
        h = expected(rng)
        collapse.observe(h, bool(rng.random() < true(h)))
        if collapse.alarm:
            return n, collapse
    return most + 1, collapse


def test_no_more_false_alarms_than_stated():
    rng = np.random.default_rng(1)
    tokens = 0
    alarms = 0
    while tokens < 400_000:
        n, _ = alarm_after(rng, lambda r: r.uniform(0.3, 0.99), lambda h: h, 20_000)
        tokens += n
        alarms += n <= 20_000
    assert alarms <= 2 * tokens / FALSE_ALARM_TOKENS


def test_a_collapse_is_found_within_a_hundred_tokens():
    rng = np.random.default_rng(2)
    delays = [alarm_after(rng, lambda r: r.uniform(0.6, 0.95), lambda _h: 0.02, 1000) for _ in range(50)]
    assert max(n for n, _ in delays) < 40
    expected, seen = delays[0][1].rates
    assert 0.6 < expected < 0.95 and seen < 0.2
    delays = [alarm_after(rng, lambda r: r.uniform(0.6, 0.95), lambda h: h / 2, 1000) for _ in range(50)]
    assert np.median([n for n, _ in delays]) < 100


def test_it_begins_anew():
    collapse = Collapse()
    assert collapse.rates == (0.0, 0.0)
    while not collapse.alarm:
        collapse.observe(0.9, False)
    collapse.restart()
    assert not collapse.alarm and collapse.rates == (0.0, 0.0)
    collapse.observe(1.0, False)  # no certainty is believed
    assert not collapse.alarm
