"""The objective for a chain of drafts: the best width of all, plain decoding included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.engine.cost.rate import ACCEPTANCE, chain_rate

MS = st.floats(0.1, 1e4)


@given(
    steps=st.dictionaries(st.integers(2, 64), MS, max_size=8),
    plain=MS,
    draft_ms=st.floats(0, 100),
    acceptance=st.floats(0, 1),
)
def test_no_width_is_better(steps, plain, draft_ms, acceptance):
    steps[1] = plain
    found = chain_rate(steps, draft_ms=draft_ms, acceptance=acceptance)
    rates = {n: sum(acceptance**i for i in range(n)) / (ms + (n - 1) * draft_ms) for n, ms in steps.items()}
    assert found.rate == pytest.approx(max(rates.values()))
    assert found.rate == pytest.approx(rates[found.drafted + 1])


def test_of_widths_that_are_not_known_nothing_is_expected():
    costs = np.array([np.inf, 10.0, np.inf, 12.0])
    assert chain_rate(costs) == chain_rate({1: 10.0, 3: 12.0})
    assert chain_rate(costs).drafted == 2
    assert chain_rate({1: 10.0, 2: 10.0, 8: 1000.0}).tokens == pytest.approx(1 + ACCEPTANCE)


def test_drafts_that_cost_too_much_are_not_made():
    assert chain_rate({1: 10.0, 8: 11.0}, draft_ms=50.0).drafted == 0


def test_the_acceptance_of_each_token_may_be_another():
    costs = {1: 10.0, 2: 11.0, 3: 11.5, 4: 12.0}
    found = chain_rate(costs, acceptance=[0.5, 0.25])
    assert (found.drafted, found.tokens, found.ms) == (2, 1 + 0.5 + 0.125, 11.5)
    assert chain_rate(costs, acceptance=[0.5, 0.5, 0.5]).tokens == chain_rate(costs, acceptance=0.5).tokens
