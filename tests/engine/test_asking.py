"""When a source that costs time is asked: the same argmax, with its time in the denominator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.scripted import ScriptedBackend, SimulatedClock
from specx.drafters.base import EMPTY_DRAFT, Draft, Offer
from specx.drafters.merge import merge
from specx.engine.cost.staircase import Staircase
from specx.engine.plan import ALLOWANCE, INTEREST, Plan

FLAT = {1: 10.0, 2: 11.0, 4: 12.0, 8: 15.0, 16: 20.0, 32: 32.0}


class Source:
    """A chain of known hazards; each token takes its time on a simulated clock."""

    source_names = ("free", "model")
    cost_ms = 0.0

    def __init__(self, clock, hazards, token_ms=2.0, *, free=EMPTY_DRAFT, invest_ms=0.0, forecast=None):
        self.clock, self.hazards, self.token_ms = clock, list(hazards), token_ms
        self.free, self.invest_ms, self.invested, self.explorable = free, invest_ms, 0, True
        self.expected = list(hazards) if forecast is None else list(forecast)
        self.asked = 0

    def propose(self, limit, leaves):
        self.asked, self.limit = 0, min(limit, len(self.hazards))
        return self.free

    def offer(self):
        if self.asked >= self.limit:
            return None
        invest = 0.0 if self.invested or self.asked else self.invest_ms
        return Offer(
            self.forecast, self.take, self.limit - self.asked, self.token_ms, invest, self.explorable
        )

    def chain(self, n, hazards):
        return merge(self.free, list(range(100, 100 + n)), hazards[:n], 1)

    def forecast(self, further):
        n = self.asked + further
        return self.chain(n, [*self.hazards[: self.asked], *self.expected[self.asked :]])

    def take(self):
        if not self.asked and not self.invested:
            self.clock.sleep(self.invest_ms / 1e3)
            self.invested += 1
        self.clock.sleep(self.token_ms / 1e3)
        self.asked += 1
        return self.chain(self.asked, self.hazards)


def chain(probs):
    n = len(probs)
    row = np.arange(n, dtype=np.int32)
    return Draft(row + 1, row - 1, np.array(probs, np.float32), np.zeros(n, np.uint8))


def plan_of(clock, steps=FLAT, **options):
    staircase = Staircase(32)
    staircase.load_json({"0": {str(n): ms for n, ms in steps.items()}})
    return Plan(staircase, clock=clock, **options)


def backend_of(**options):
    backend = ScriptedBackend(8, max_width=32, max_leaves=1, **options)
    backend.prefill([1, 2, 3])
    return backend


def step(plan, source, accepted=0, backend=None):
    decision = plan.choose(source, backend or backend_of())
    forward_ms = float(plan.staircase.costs(3)[len(decision.draft) + 1])
    plan.observe(decision, min(accepted, len(decision.draft)), 3, forward_ms, 0.0)
    return decision, forward_ms + decision.asked_ms


def best_rate(plan, hazards, token_ms):
    """Of all numbers of tokens to ask for and to verify."""
    costs = plan.staircase.costs(3)
    gains = 1 + np.cumsum(np.cumprod([1.0, *hazards])[1:])
    wide = [min(costs[n + 1 : 33]) for n in range(len(hazards) + 1)]
    return max([1 / wide[0], *(gains[n - 1] / (n * token_ms + wide[n]) for n in range(1, len(hazards) + 1))])


@settings(max_examples=80)
@given(st.lists(st.floats(0.05, 0.99), min_size=1, max_size=8), st.floats(0.1, 12))
def test_with_true_forecasts_the_rate_is_that_of_the_best_number(hazards, token_ms):
    # It may stop before a number that is not weighed at once (1, 2, 4, 8), never far from the best.
    clock = SimulatedClock()
    plan = plan_of(clock)
    plan._budget = 1000.0
    source = Source(clock, hazards, token_ms)
    decision = plan.choose(source, backend_of())
    best = best_rate(plan, hazards, token_ms)
    assert 0.93 * best <= decision.rate <= best * (1 + 1e-6)
    spent = source.asked * token_ms
    assert decision.asked_ms == pytest.approx(spent)
    assert decision.cost_ms == pytest.approx(spent + plan.staircase.costs(3)[len(decision.draft) + 1])
    if decision.asked:
        assert decision.asked.tokens == source.asked
        assert decision.asked.alone == (1.0, pytest.approx(10.0))


def test_it_is_not_asked_where_it_cannot_pay():
    clock = SimulatedClock()
    for source in (
        Source(clock, [0.9] * 8, token_ms=12.0),
        Source(clock, [0.05] * 8, token_ms=2.0),
        Source(clock, [0.9] * 8, token_ms=2.0, free=chain([0.99] * 15)),
    ):
        decision = plan_of(clock).choose(source, backend_of())
        assert source.asked == 0 and decision.asked is None
    source = Source(clock, [0.9] * 8, token_ms=2.0)
    assert plan_of(clock, max_nodes=0).choose(source, backend_of()).asked is None
    assert plan_of(clock).choose(source, backend_of(n_ctx=4)).asked is None  # no room
    decision = plan_of(clock, max_nodes=2).choose(source, backend_of())
    assert source.asked == len(decision.draft) == 2


def test_disappointments_stop_the_asking_and_stay_in_the_denominator():
    clock = SimulatedClock()
    source = Source(clock, [0.9, 0.01, 0.9, 0.9, 0.9], token_ms=2.0, forecast=[0.9] * 5)
    decision = plan_of(clock).choose(source, backend_of())
    assert source.asked == 2 and len(decision.draft) == 1
    assert decision.cost_ms == pytest.approx(4 + 11)


def test_where_only_chains_are_possible_the_better_of_the_two_is_verified():
    # They part at once: the free chain is long and sure, the model's first token is likelier still or not.
    clock = SimulatedClock()
    for hazard, asked, tokens in ((0.2, 1, [1, 2, 3]), (0.9, 4, [100, 101, 102, 103])):
        hazards = [hazard, 0.9, 0.9, 0.9]
        source = Source(clock, hazards, 0.1, free=chain([0.6, 0.58, 0.56]), forecast=[0.95] * 4)
        decision = plan_of(clock).choose(source, backend_of())
        assert source.asked == asked
        assert decision.draft.tokens.tolist() == tokens
        assert decision.draft.parents.tolist() == list(range(-1, len(decision.draft) - 1))
    source = Source(clock, [0.5] * 4, 0.1, free=chain([0.6, 0.58, 0.56]), forecast=[0.95] * 4)
    tree = plan_of(clock).choose(source, ScriptedBackend(8, max_width=32, max_leaves=4))
    assert {1, 100} <= set(tree.draft.tokens.tolist())  # both, where branches are possible


@settings(max_examples=40)
@given(
    promised=st.lists(st.floats(0.3, 0.99), min_size=1, max_size=20),
    token_ms=st.floats(0.5, 30),
    tokens=st.integers(1, 300),
)
def test_a_model_that_is_never_right_costs_no_more_than_the_budget(promised, token_ms, tokens):
    clock = SimulatedClock()
    plan, backend, took = plan_of(clock), backend_of(), 0.0
    plan.begin()
    for i in range(tokens):
        source = Source(clock, [promised[i % len(promised)]] * 6, token_ms)
        took += step(plan, source, backend=backend)[1]
    assert took / 10.0 <= tokens * (1 + INTEREST) + ALLOWANCE + token_ms / 10


def test_an_investment_is_made_once_its_gains_sum_up_to_its_price():
    clock = SimulatedClock()
    for invest_ms in (60.0, 100.0, 400.0):
        plan, backend = plan_of(clock), backend_of()
        source = Source(clock, [0.9] * 8, token_ms=1.0, invest_ms=invest_ms)
        without = plan_of(clock)
        free = Source(clock, [0.9] * 8, token_ms=1.0)
        gain, n = 0.0, 1
        while not (decision := step(plan, source, 8, backend)[0]).asked:
            n += 1
            assert len(decision.draft) == 0
            better, _ = step(without, free, 8, backend)
            gain = better.expected * 10.0 - better.cost_ms  # against one token in 10 ms
        # After about as many steps as it takes for that gain to reach the price: at most twice the best cost.
        assert invest_ms / gain <= n + 1 and (n - 1) * gain <= 1.3 * invest_ms
        assert decision.asked.invested_ms == pytest.approx(invest_ms)
        assert decision.asked_ms - decision.asked.invested_ms == pytest.approx(source.asked * 1.0)
        # What was invested neither lengthens this draft nor is charged to the budget.
        assert decision.cost_ms < 40
        assert step(plan, source, 8, backend)[0].asked.invested_ms == 0


def test_what_pays_within_the_step_needs_no_credit():
    clock = SimulatedClock()
    source = Source(clock, [0.95] * 8, token_ms=1.0, invest_ms=3.0)
    decision = plan_of(clock).choose(source, backend_of())
    assert decision.asked.invested_ms == 0 and decision.asked_ms == pytest.approx(3 + source.asked)


def test_a_source_thought_to_be_poor_is_asked_now_and_then():
    clock = SimulatedClock()
    plan, backend = plan_of(clock), backend_of()
    plan.begin()
    source = Source(clock, [0.02] * 8, token_ms=3.0)
    explored = total = 0.0
    steps = 0
    for n in range(1, 1001):
        decision, took = step(plan, source, 0, backend)
        total += took
        if decision.asked:
            assert decision.asked.tokens == 1 and decision.asked.explored_ms == pytest.approx(3.0)
            explored += decision.asked.explored_ms
            steps += 1
        assert explored <= INTEREST * total + 1e-6
        plan.begin() if n % 100 == 0 else None  # the bound is one over all generations
    assert explored > 0.8 * INTEREST * total
    assert steps > 10
    source.explorable = False
    assert all(step(plan, source, 0, backend)[0].asked is None for _ in range(100))


def test_nothing_is_explored_where_even_a_right_token_would_not_pay():
    clock = SimulatedClock()
    plan, backend = plan_of(clock), backend_of()
    source = Source(clock, [0.02] * 8, token_ms=3.0, free=chain([0.999] * 31))
    assert all(step(plan, source, 31, backend)[0].asked is None for _ in range(300))
