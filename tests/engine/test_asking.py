"""When a source that costs time is asked: the same argmax, with its time in the denominator."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.drafters.base import EMPTY_DRAFT, Draft, Drafting, Offer
from specx.engine.budget import ALLOWANCE, INTEREST, Budget
from specx.engine.cost.staircase import Staircase
from specx.engine.learned.lengths import Outlook
from specx.engine.plan import Plan

FLAT = {1: 10.0, 2: 11.0, 4: 12.0, 8: 15.0, 16: 20.0, 32: 32.0}


class Source(Drafting):
    """A chain of known hazards; each token takes its time on a simulated clock."""

    def __init__(
        self,
        clock,
        hazards,
        token_ms=2.0,
        *,
        free=EMPTY_DRAFT,
        invest_ms=0.0,
        forecast=None,
        name="model",
        trials=0,
    ):
        self.name, self.trials = name, trials
        self.clock, self.hazards, self.token_ms = clock, list(hazards), token_ms
        self.free, self.invest_ms, self.invested, self.explorable = free, invest_ms, 0, True
        self.expected = list(hazards) if forecast is None else list(forecast)
        self.asked, self.open_ms, self.upkeep_ms = 0, 0.0, 0.0
        self.promised_ms = None  # what the investment is said to take

    def propose(self, room):
        self.asked, self.limit = 0, min(room.limit, len(self.hazards))
        return self.free

    def offers(self, room):
        if self.asked >= self.limit:
            return ()
        price = self.invest_ms if self.promised_ms is None else self.promised_ms
        invest = 0.0 if self.invested or self.asked else price
        most = self.limit - self.asked
        record = (lambda: (self.expected[self.asked], self.trials)) if self.explorable else None
        offer = Offer(self.name, self.forecast, self.take, most, self.token_ms, invest, record)
        return (replace(offer, open_ms=min(self.open_ms, invest), upkeep_ms=self.upkeep_ms),)

    def chain(self, n, hazards):
        return self.free.merged(list(range(100, 100 + n)), hazards[:n], 1)

    def forecast(self, further):
        n = self.asked + further
        return [(1.0, self.chain(n, [*self.hazards[: self.asked], *self.expected[self.asked :]]))]

    def take(self):
        if not self.asked and not self.invested:
            self.clock.sleep(self.invest_ms / 1e3)
            self.invested += 1
        self.clock.sleep(self.token_ms / 1e3)
        self.asked += 1
        return self.chain(self.asked, self.hazards)


class Several(Drafting):
    """The offers of some sources, with the free draft of the last one."""

    def __init__(self, *sources):
        self.sources = sources

    def propose(self, room):
        return [source.propose(room) for source in self.sources][-1]

    def offers(self, room):
        return [offer for source in self.sources for offer in source.offers(room)]


def chain(probs):
    n = len(probs)
    row = np.arange(n, dtype=np.int32)
    return Draft(row + 1, row - 1, np.array(probs, np.float32), np.zeros(n, np.uint8))


def plan_of(clock, steps=FLAT, **options):
    staircase = Staircase(32)
    staircase.load_json({"0": {str(n): ms for n, ms in steps.items()}})
    return Plan(staircase, clock=clock, **options)


class Writing:
    """A text that is being written, as the plan sees it. Implements `Planned`."""

    def __init__(self, *, max_leaves=1, budget=ALLOWANCE, **options):
        self.cache = ScriptedModel(8, max_width=32, max_leaves=max_leaves, **options).open()
        self.cache.prefill([1, 2, 3])
        self.drafting, self.budget = Drafting(), Budget()
        self.budget.steps = budget
        self.outlook = Outlook()


def choose(plan, drafting, text):
    text.drafting = drafting
    return plan.choose([text], text.cache.model.facts)


def part_of(decision):
    [part] = decision.parts
    return part


def step(plan, source, accepted=0, text=None):
    text = text or Writing()
    decision = choose(plan, source, text)
    n = len(part_of(decision).draft)
    forward_ms = float(plan.staircase.costs(3)[n + 1])
    plan.observe(decision, [text], [3], [min(accepted, n)], forward_ms, 0.0)
    return decision, forward_ms + decision.spent_ms


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
    source = Source(clock, hazards, token_ms)
    decision = choose(plan, source, Writing(budget=1000.0))
    best = best_rate(plan, hazards, token_ms)
    assert 0.93 * best <= decision.rate <= best * (1 + 1e-6)
    spent = source.asked * token_ms
    assert decision.spent_ms == pytest.approx(spent)
    assert decision.cost_ms == pytest.approx(
        spent + plan.staircase.costs(3)[len(part_of(decision).draft) + 1]
    )
    if part_of(decision).spent:
        assert part_of(decision).spent.tokens == source.asked
        assert part_of(decision).spent.alone == (1.0, pytest.approx(10.0))


def test_it_is_not_asked_where_it_cannot_pay():
    clock = SimulatedClock()
    for source in (
        Source(clock, [0.9] * 8, token_ms=12.0),
        Source(clock, [0.05] * 8, token_ms=2.0),
        Source(clock, [0.9] * 8, token_ms=2.0, free=chain([0.99] * 15)),
    ):
        decision = choose(plan_of(clock), source, Writing())
        assert source.asked == 0 and part_of(decision).spent is None
    source = Source(clock, [0.9] * 8, token_ms=2.0)
    assert part_of(choose(plan_of(clock, max_nodes=0), source, Writing())).spent is None
    assert part_of(choose(plan_of(clock), source, Writing(n_ctx=4))).spent is None  # no room
    decision = choose(plan_of(clock, max_nodes=2), source, Writing())
    assert source.asked == len(part_of(decision).draft) == 2


def test_disappointments_stop_the_asking_and_stay_in_the_denominator():
    clock = SimulatedClock()
    source = Source(clock, [0.9, 0.01, 0.9, 0.9, 0.9], token_ms=2.0, forecast=[0.9] * 5)
    decision = choose(plan_of(clock), source, Writing())
    assert source.asked == 2 and len(part_of(decision).draft) == 1
    assert decision.cost_ms == pytest.approx(4 + 11)


def test_where_only_chains_are_possible_the_better_of_the_two_is_verified():
    # They part at once: the free chain is long and sure, the model's first token is likelier still or not.
    clock = SimulatedClock()
    for hazard, asked, tokens in ((0.2, 1, [1, 2, 3]), (0.9, 4, [100, 101, 102, 103])):
        hazards = [hazard, 0.9, 0.9, 0.9]
        source = Source(clock, hazards, 0.1, free=chain([0.6, 0.58, 0.56]), forecast=[0.95] * 4)
        decision = choose(plan_of(clock), source, Writing())
        assert source.asked == asked
        assert part_of(decision).draft.tokens.tolist() == tokens
        assert part_of(decision).draft.parents.tolist() == list(range(-1, len(part_of(decision).draft) - 1))
    source = Source(clock, [0.5] * 4, 0.1, free=chain([0.6, 0.58, 0.56]), forecast=[0.95] * 4)
    tree = choose(plan_of(clock), source, Writing(max_leaves=4))
    assert {1, 100} <= set(part_of(tree).draft.tokens.tolist())  # both, where branches are possible


@settings(max_examples=40)
@given(
    promised=st.lists(st.floats(0.3, 0.99), min_size=1, max_size=20),
    token_ms=st.floats(0.5, 30),
    tokens=st.integers(1, 300),
)
def test_a_model_that_is_never_right_costs_no_more_than_the_budget(promised, token_ms, tokens):
    clock = SimulatedClock()
    plan, text, took = plan_of(clock), Writing(), 0.0
    for i in range(tokens):
        source = Source(clock, [promised[i % len(promised)]] * 6, token_ms)
        took += step(plan, source, text=text)[1]
    assert took / 10.0 <= tokens * (1 + INTEREST) + ALLOWANCE + token_ms / 10


def test_of_an_answer_of_unknown_length_an_investment_is_made_once_what_was_missed_is_its_price():
    clock = SimulatedClock()
    for invest_ms in (60.0, 100.0, 400.0):
        plan, text = plan_of(clock), Writing()
        source = Source(clock, [0.9] * 8, token_ms=1.0, invest_ms=invest_ms)
        without, other = plan_of(clock), Writing()
        free = Source(clock, [0.9] * 8, token_ms=1.0)
        better, _ = step(without, free, 8, other)
        missed = 10.0 - better.cost_ms / better.expected  # by each token, against one in 10 ms
        while not part_of(decision := step(plan, source, 8, text)[0]).spent:
            assert len(part_of(decision).draft) == 0
        written = text.outlook.written - len(part_of(decision).draft) - 1
        assert 0.8 * invest_ms <= missed * (written + 1) <= 1.5 * invest_ms
        assert part_of(decision).spent.invested_ms == pytest.approx(invest_ms)
        assert decision.spent_ms - part_of(decision).spent.invested_ms == pytest.approx(source.asked * 1.0)
        # What was invested neither lengthens this draft nor is charged to the budget.
        assert decision.cost_ms < 40
        assert part_of(step(plan, source, 8, text)[0]).spent.invested_ms == 0


def test_an_investment_is_made_at_once_or_never_where_the_length_is_known():
    clock = SimulatedClock()
    for most, price, made in ((400, 1000.0, 1), (50, 1000.0, 0), (50, 150.0, 1)):
        text = Writing()
        text.outlook = Outlook([1.0] * 64, most=most)
        source = Source(clock, [0.9] * 8, token_ms=1.0, invest_ms=price)
        plan = plan_of(clock)
        for _ in range(1 if made else most):
            step(plan, source, 0, text)
        assert source.invested == made


def test_what_all_texts_profit_from_is_weighed_by_all_of_them():
    # Loading serves the other texts as well; reading one text does not.
    def invested(price, open_ms, texts):
        clock = SimulatedClock()
        plan, source = plan_of(clock, {1: 10.0, 32: 10.1}), Source(clock, [0.9] * 8, 1.0, invest_ms=price)
        source.open_ms = open_ms
        jobs = [Writing(n_ctx=4096) for _ in range(texts)]
        for job in jobs:
            job.outlook = Outlook([1.0] * 64, most=40)
        jobs[0].drafting = source
        plan.choose(jobs, jobs[0].cache.model.facts)
        return source.invested

    least = next(price for price in range(20, 2000, 20) if not invested(price, 0.0, 4))
    assert invested(3 * least, 3 * least, 4) and not invested(5 * least, 5 * least, 4)


def test_what_pays_within_the_step_needs_no_credit():
    clock = SimulatedClock()
    source = Source(clock, [0.95] * 8, token_ms=1.0, invest_ms=3.0)
    decision = choose(plan_of(clock), source, Writing())
    assert part_of(decision).spent.invested_ms == 0 and decision.spent_ms == pytest.approx(3 + source.asked)


def explored_shares(source, clock, steps=4000, parts=4):
    """Of the time, in each part of the steps; the source is never right."""
    plan, text = plan_of(clock), Writing()
    shares, explored, total, before = [], 0.0, 0.0, (0.0, 0.0)
    for n in range(1, steps + 1):
        decision, took = step(plan, source, 0, text)
        total += took
        if (asked := part_of(decision).spent) is not None:
            assert asked.tokens == 1 and asked.explored_ms == pytest.approx(source.token_ms)
            explored += asked.explored_ms
        assert explored <= INTEREST * total + 1e-6
        text.budget = Budget() if n % 100 == 0 else text.budget  # the bound is one over all texts
        if n % (steps // parts) == 0:
            shares.append((explored - before[0]) / (total - before[1]))
            before = explored, total
    return shares


def test_a_source_thought_to_be_poor_is_asked_now_and_then():
    # It pays from 0.4 on. The surer it is that it does not, the more rarely it is asked, but never no more.
    clock = SimulatedClock()
    near, poor, known = (
        explored_shares(Source(clock, [hazard] * 8, token_ms=3.0, trials=trials), clock)
        for hazard, trials in ((0.3, 1000), (0.02, 0), (0.02, 1000))
    )
    assert (
        min(near) > 0.6 * INTEREST
    )  # what the tokens that it gives cost in the step is to be earned as well
    assert poor[0] > 0.1 * INTEREST and 0 < max(poor[2:]) < 0.2 * INTEREST
    assert known[0] == 0 and 0 < known[-1] < 0.2 * INTEREST


def test_what_a_text_begins_with_is_not_spent_on_exploration():
    # Free drafts need it: a token of 3 ms is asked for when 15 tokens of 10 ms have earned as much.
    clock = SimulatedClock()
    plan, text = plan_of(clock), Writing()
    source = Source(clock, [0.02] * 8, token_ms=3.0)
    explored = [part_of(step(plan, source, 0, text)[0]).spent is not None for _ in range(40)]
    assert explored.index(True) == 15


def test_what_was_scored_before_counts_also_where_it_was_asked_for_its_gain_first():
    clock = SimulatedClock()
    plan, text = plan_of(clock), Writing(budget=4.0)
    source = Source(clock, [0.9] * 8, token_ms=3.0, trials=1000)
    assert part_of(step(plan, source, 0, text)[0]).spent.explored_ms == 0
    source.hazards = source.expected = [0.02] * 8
    for _ in range(300):
        assert part_of(step(plan, source, 0, text)[0]).spent is None


@pytest.mark.parametrize("useless_ms", [1.0, 3.0])
def test_of_several_sources_each_is_explored_for_itself(useless_ms):
    clock, text = SimulatedClock(), Writing()
    near = Source(clock, [0.3] * 8, 3.0, name="near", trials=1000)
    useless = Source(clock, [0.01] * 8, useless_ms, name="useless", trials=1000)

    plan, both, asked = plan_of(clock), Several(useless, near), 0
    for n in range(1000):
        step(plan, both, 0, text)
        asked += near.asked
        text.budget = Budget() if n % 100 == 0 else text.budget
    assert asked > 20


def test_what_is_not_loaded_is_not_explored():
    clock = SimulatedClock()
    plan, text = plan_of(clock), Writing()
    source = Source(clock, [0.02] * 8, token_ms=3.0)
    source.explorable = False
    assert all(part_of(step(plan, source, 0, text)[0]).spent is None for _ in range(300))


def test_nothing_is_explored_where_even_a_right_token_would_not_pay():
    clock = SimulatedClock()
    plan, text = plan_of(clock), Writing()
    source = Source(clock, [0.02] * 8, token_ms=3.0, free=chain([0.999] * 31))
    assert all(part_of(step(plan, source, 31, text)[0]).spent is None for _ in range(300))


def test_of_several_sources_the_one_that_gains_most_is_asked_first():
    clock, text = SimulatedClock(), Writing()
    good, dear = Source(clock, [0.9] * 8, 1.0, name="good"), Source(clock, [0.9] * 8, 6.0, name="dear")

    decision = choose(plan_of(clock), Several(dear, good), text)
    assert good.asked == part_of(decision).spent.tokens > 2 and dear.asked == 0
    assert decision.spent_ms == pytest.approx(good.asked)


def test_what_each_source_is_expected_to_gain_is_remembered_for_itself():
    # The investment of one is not paid by what another would gain.
    clock = SimulatedClock()
    for name, made in (("good", 0), ("poor", 1)):
        text, plan = Writing(), plan_of(clock)
        text.outlook = Outlook([1.0] * 64, most=400)
        good = Source(clock, [0.9] * 8, 1.0, invest_ms=3000.0, name="good")
        for _ in range(40):
            step(plan, good, 0, text)
        assert not good.invested
        poor = Source(clock, [0.4] * 8, 1.0, invest_ms=700.0, name=name)
        step(plan, poor, 0, text)
        assert poor.invested == 1 - made


def test_what_is_read_again_and_again_is_taken_off_what_an_investment_gains():
    clock = SimulatedClock()
    for upkeep_ms, made in ((0.0, 1), (40.0, 0)):
        text = Writing()
        text.outlook = Outlook([1.0] * 64, most=400)
        source = Source(clock, [0.9] * 8, 1.0, invest_ms=300.0)
        source.upkeep_ms = upkeep_ms
        step(plan_of(clock), source, 0, text)
        assert source.invested == made


def test_nobody_takes_the_place_in_memory_of_who_was_asked():
    # Who was asked in the step before is told by what it is, which must be there as long.
    plan, text = plan_of(SimulatedClock()), Writing()
    source = Source(SimulatedClock(), [0.9] * 8, 1.0)
    assert part_of(step(plan, source, 0, text)[0]).spent is not None
    asked, text.drafting, source = weakref.ref(source), None, None
    assert asked() is not None


def test_loading_is_no_loss_of_the_text_whatever_the_reason():
    # One that was asked for has no price: its first token pays within the step, and takes long.
    clock = SimulatedClock()
    source = Source(clock, [0.95] * 8, token_ms=1.0, invest_ms=300.0)
    source.explorable = False  # it is not loaded
    source.promised_ms = 0.0
    text = Writing()
    decision = step(plan_of(clock), source, 8, text)[0]
    asked = part_of(decision).spent
    assert asked.invested_ms == pytest.approx(300.0) and asked.ms - asked.invested_ms < 20
    assert text.budget.steps > ALLOWANCE


class Checked(Source):
    """Offers a check of some tokens in one call as well; it says all of them with a probability, or none."""

    def __init__(self, *given, checked, agrees, first_ms, **options):
        super().__init__(*given, **options)
        self.checked, self.agrees, self.first_ms, self.checks = checked, agrees, first_ms, 0

    def offers(self, room):
        token = super().offers(room)
        if not token or self.asked:
            return token
        [offer] = token
        check = Offer(
            offer.source,
            self.outcomes,
            self.check,
            1,
            offer.token_ms,
            offer.invest_ms,
            offer.record,
            offer.open_ms,
            offer.upkeep_ms,
            self.first_ms,
        )
        return (offer, check)

    def outcomes(self, _times):
        all_of_it, one = self.chain(self.checked, self.expected), self.chain(1, self.expected)
        return [(1 - self.agrees, one), (self.agrees, all_of_it)]

    def check(self):
        self.clock.sleep((self.token_ms + self.first_ms) / 1e3)
        self.checks += 1
        self.asked += self.checked
        return self.chain(self.asked, self.hazards)


@pytest.mark.parametrize(("agrees", "first_ms", "checks"), [(0.9, 1.0, 1), (0.05, 1.0, 0), (0.9, 30.0, 0)])
def test_a_check_is_made_where_it_gains_more_than_a_token(agrees, first_ms, checks):
    clock = SimulatedClock()
    source = Checked(clock, [0.9] * 8, 4.0, checked=4, agrees=agrees, first_ms=first_ms)
    decision = choose(plan_of(clock), source, Writing())
    assert source.checks == checks and source.asked > 0
    tokens = part_of(decision).spent.tokens
    assert tokens == source.asked - 3 * checks
    assert decision.spent_ms == pytest.approx(tokens * 4.0 + checks * first_ms)


def test_what_may_come_of_a_check_is_weighed_by_its_probability():
    clock, text = SimulatedClock(), Writing(budget=1000.0)
    source = Checked(clock, [0.9] * 8, 4.0, checked=4, agrees=0.3, first_ms=1.0)
    plan = plan_of(clock)
    gains = {}

    def weigh(terms, drafts, i, offer, best):
        gains[offer.first_ms], _ = found = type(plan.asking).weigh(plan.asking, terms, drafts, i, offer, best)
        return found[0], None

    plan.asking.weigh = weigh
    choose(plan, source, text)
    costs, path = plan.staircase.costs(3), np.cumprod([0.9] * 4)
    plain = 10.0  # milliseconds a token
    one = max((1 + path[0]) * plain - (5 + costs[2]), plain - (5 + costs[1]))
    four = max((1 + path[:n].sum()) * plain - (5 + costs[n + 1]) for n in range(5))
    assert gains[1.0] == pytest.approx(0.7 * one + 0.3 * four, rel=1e-6)


def test_two_offers_of_a_source_are_one_expectation_of_what_it_gains():
    clock, promises = SimulatedClock(), []
    for source in (
        Source(clock, [0.9] * 8, 1.0, invest_ms=30000.0),
        Checked(clock, [0.9] * 8, 1.0, invest_ms=30000.0, checked=1, agrees=1.0, first_ms=0.0),
    ):
        plan, text = plan_of(clock), Writing()
        for _ in range(5):
            step(plan, source, 0, text)
        assert not source.invested
        promises.append(plan.asking._promises["model"])
    one, two = promises
    assert one.ms > 0 and (two.ms, two.tokens) == pytest.approx((one.ms, one.tokens))


@pytest.mark.parametrize(("change_ms", "asks"), [(1.0, True), (30.0, False)])
def test_where_widths_settle_what_is_asked_for_pays_the_change_and_the_way_back(change_ms, asks):
    clock = SimulatedClock()
    plan, text = plan_of(clock), Writing(budget=100.0)
    facts = text.cache.model.facts = replace(text.cache.model.facts, settles=3)
    plan.begin(facts.settles)
    text.drafting = Drafting()
    for extra_ms in (change_ms / 2, change_ms / 2, 0.0, 0.0):
        decision = plan.choose([text], facts)
        plan.observe(decision, [text], [3], [0], 10.0 + extra_ms, 0.0)
    text.drafting = Source(clock, [0.9] * 3, token_ms=1.0)  # 3.4 tokens in 15 ms; there and back in 30
    assert (part_of(plan.choose([text], facts)).spent is not None) == asks


def test_where_widths_settle_a_row_of_the_same_width_costs_what_is_asked_for_nothing_more():
    clock = SimulatedClock()
    plan, text = plan_of(clock), Writing(budget=100.0)
    facts = text.cache.model.facts = replace(text.cache.model.facts, settles=3)
    plan.begin(facts.settles)
    text.drafting = Source(clock, [], free=chain([0.9, 0.8, 0.7]))
    for step in range(40):
        decision = plan.choose([text], facts)
        extra_ms = 15.0 if step < 2 or (step in (2, 3) and len(part_of(decision).draft)) else 0.0
        plan.observe(decision, [text], [3], [2], 12.0 + extra_ms, 0.0)
    assert len(part_of(decision).draft) == 3
    text.drafting = Source(clock, [0.9] * 3, token_ms=1.0)
    part = part_of(plan.choose([text], facts))
    assert part.spent is not None and len(part.draft) == 3
