"""The plan: the argmax of expected tokens per second, over every prefix and every width allowed."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.scripted import ScriptedBackend
from specx.drafters.base import Draft
from specx.engine.cost.staircase import Staircase
from specx.engine.plan import ALLOWANCE, INTEREST, Plan

FLAT = {1: 10.0, 32: 10.5}
STEEP = {1: 10.0, 32: 320.0}


def tree(probs, parents=None):
    n = len(probs)
    return Draft(
        np.arange(1, n + 1, dtype=np.int32),
        np.arange(-1, n - 1, dtype=np.int32) if parents is None else np.array(parents, np.int32),
        np.array(probs, np.float32),
        np.zeros(n, np.uint8),
    )


class Fixed:
    """Proposes the same tree again and again."""

    source_names = ("fixed",)
    cost_ms = 0.0

    def __init__(self, draft):
        self.draft = draft
        self.asked = []

    def propose(self, limit, leaves):
        self.asked.append((limit, leaves))
        return self.draft.head(limit)

    def offer(self):
        return None


def staircase_of(steps, max_width=32):
    staircase = Staircase(max_width)
    staircase.load_json({"0": {str(n): ms for n, ms in steps.items()}})
    return staircase


def backend_of(max_width=32, length=3, **options):
    backend = ScriptedBackend(8, max_width=max_width, **options)
    backend.prefill([1] * length)
    return backend


def see(plan, decision, forward_ms, host_ms=0.0, accepted=None):
    """A step that gave what was expected of it."""
    kept = decision.draft.probs.sum() if accepted is None else accepted
    plan.observe(decision, kept, 3, forward_ms, host_ms)


@st.composite
def drafts(draw, most=10):
    """A tree whose path probabilities never rise, neither along a path nor along the arrays."""
    n = draw(st.integers(0, most))
    parents = [draw(st.integers(-1, i - 1)) for i in range(n)]
    probs = sorted((draw(st.floats(0.001, 1)) for _ in range(n)), reverse=True)
    return tree(probs, parents)


@st.composite
def staircases(draw, max_width=12):
    costs = st.floats(0.5, 50)
    return {n: draw(costs) for n in range(1, max_width + 1) if n == 1 or draw(st.booleans())}


def affordable(costs, widths):
    """The widths that the budget of a new generation covers."""
    plain = min(costs[width] for width in widths)
    return [width for width in widths if costs[width] <= plain * (1 + ALLOWANCE)]


def rate_of(draft, costs, width):
    return (1 + float(draft.probs.astype(np.float64).sum())) / costs[width]


@given(drafts(), staircases(), st.one_of(st.none(), st.integers(0, 12)))
def test_it_is_the_argmax_over_all_prefixes_and_widths(draft, steps, max_nodes):
    staircase = staircase_of(steps, 12)
    plan = Plan(staircase, max_nodes=max_nodes)
    decision = plan.choose(Fixed(draft), backend_of(12, max_leaves=16))
    costs = staircase.costs(3)
    most = len(draft) if max_nodes is None else min(len(draft), max_nodes)
    widths = affordable(costs, range(1, 13))
    best = max(rate_of(draft.head(min(most, width - 1)), costs, width) for width in widths)
    assert decision.expected / decision.cost_ms == pytest.approx(best)
    assert decision.cost_ms == pytest.approx(costs[len(decision.draft) + 1])
    same = min(most, len(decision.draft))
    assert decision.draft.tokens[:same].tolist() == draft.tokens[:same].tolist()
    assert decision.draft.parents[:same].tolist() == draft.parents[:same].tolist()
    assert (decision.draft.probs[same:] == 0).all()
    assert decision.expected == pytest.approx(1 + decision.draft.probs.astype(np.float64).sum())


def closed(draft, nodes):
    return all(parent < 0 or parent in nodes for parent in draft.parents[list(nodes)].tolist())


@given(drafts(6), staircases(7))
def test_no_other_tree_below_the_root_would_be_better(draft, steps):
    staircase = staircase_of(steps, 7)
    decision = Plan(staircase).choose(Fixed(draft), backend_of(7, max_leaves=16))
    costs = staircase.costs(3)
    for n in range(len(draft) + 1):
        if n + 1 not in affordable(costs, range(1, 8)):
            continue
        for nodes in combinations(range(len(draft)), n):
            if closed(draft, nodes):
                gain = 1 + draft.probs[list(nodes)].astype(np.float64).sum()
                assert gain / costs[n + 1] <= decision.expected / decision.cost_ms * (1 + 1e-9)


@given(drafts(), staircases(), st.sets(st.integers(1, 12), min_size=1))
def test_only_the_allowed_widths(draft, steps, widths):
    staircase = staircase_of(steps, 12)
    chain = tree(draft.probs.tolist())
    drafter = Fixed(chain)
    plan = Plan(staircase, widths=frozenset(widths))
    decision = plan.choose(drafter, backend_of(12))
    costs = staircase.costs(3)
    assert len(decision.draft) + 1 in widths
    best = max(rate_of(chain.head(min(w - 1, len(chain))), costs, w) for w in affordable(costs, widths))
    assert decision.expected / decision.cost_ms == pytest.approx(best)
    assert decision.draft.parents.tolist() == list(
        range(-1, len(decision.draft) - 1)
    )  # padded, still a chain
    assert all(leaves == 1 for _, leaves in drafter.asked)


def test_plain_decoding_when_drafts_cannot_pay():
    decision = Plan(staircase_of(STEEP)).choose(Fixed(tree([0.99] * 8)), backend_of())
    assert len(decision.draft) == 0
    decision = Plan(staircase_of(FLAT)).choose(Fixed(tree([0.0001] * 8)), backend_of())
    assert len(decision.draft) == 0
    decision = Plan(staircase_of(FLAT)).choose(Fixed(tree([])), backend_of())
    assert (len(decision.draft), decision.expected) == (0, 1)


def test_it_speculates_when_that_pays():
    decision = Plan(staircase_of(FLAT)).choose(Fixed(tree([0.9] * 31)), backend_of())
    assert len(decision.draft) == 31


def test_a_wider_step_that_is_cheaper_is_padded_up_to():
    plan = Plan(staircase_of({1: 10, 2: 15, 3: 30, 4: 18, 5: 40, 32: 300}))
    draft = tree([0.9, 0.8], [-1, -1])
    decision = plan.choose(Fixed(draft), backend_of())
    assert decision.draft.tokens.tolist() == [1, 2, 0]
    assert decision.draft.parents.tolist() == [-1, -1, 1]  # below a leaf: no sequence more
    assert decision.draft.probs.tolist() == pytest.approx([0.9, 0.8, 0])
    assert decision.expected == pytest.approx(2.7)


def test_padding_without_any_draft_is_a_chain_below_the_root():
    plan = Plan(staircase_of(FLAT), widths=frozenset({4}))
    decision = plan.choose(Fixed(tree([])), backend_of())
    assert decision.draft.parents.tolist() == [-1, 0, 1]
    assert decision.draft.tokens.dtype == decision.draft.parents.dtype == np.int32
    assert decision.draft.probs.dtype == np.float32
    assert decision.draft.sources.dtype == np.uint8


def test_the_room_that_is_left():
    drafter = Fixed(tree([0.9] * 31))
    plan = Plan(staircase_of(FLAT))
    for length, most in ((0, 31), (90, 9), (98, 1), (99, 0)):
        decision = plan.choose(drafter, backend_of(length=length, n_ctx=100))
        assert len(decision.draft) == most
    assert drafter.asked == [(31, 16), (9, 16), (1, 16)]  # nobody is asked for nothing


def test_no_allowed_width_is_used_up_by_what_is_committed():
    # Whatever is accepted, a batch of the narrowest width fits behind it, or the context is full.
    plan = Plan(staircase_of(FLAT), widths=frozenset({4, 8}))
    assert plan.narrowest == 4
    drafter = Fixed(tree([0.9] * 31))
    for length in range(80, 97):
        decision = plan.choose(drafter, backend_of(length=length, n_ctx=100))
        assert len(decision.draft) + 1 in (4, 8)
        assert length + 1 + hopeful(decision) <= 97
    assert Plan(staircase_of(FLAT)).narrowest == 1


def test_a_model_that_cannot_take_tokens_back_is_never_drafted_for():
    drafter = Fixed(tree([0.9] * 4))
    decision = Plan(staircase_of(FLAT, 1)).choose(drafter, backend_of(can_rewind=False))
    assert (len(decision.draft), drafter.asked) == (0, [])


def test_branches_cost_what_they_were_seen_to_cost():
    draft = tree([0.5, 0.4], [-1, -1])
    plan, backend = Plan(staircase_of(FLAT)), backend_of()
    decision = plan.choose(Fixed(draft), backend)
    assert len(decision.draft) == 2
    for _ in range(60):  # each branch makes a step 8 ms longer
        see(plan, decision, 18.0)
    decision = plan.choose(Fixed(draft), backend)
    assert len(decision.draft) == 1
    for _ in range(500):
        see(plan, decision, float(plan.staircase.costs(3)[2]))
    assert len(plan.choose(Fixed(draft), backend).draft) == 2  # tried again some time


def test_time_outside_the_backend_makes_long_steps_better():
    steps = {1: 10.0, 2: 16.0, 32: 300.0}
    drafter, backend = Fixed(tree([0.5])), backend_of()
    plan = Plan(staircase_of(steps))
    decision = plan.choose(drafter, backend)
    assert len(decision.draft) == 0
    for _ in range(60):
        see(plan, decision, 10.0, 8.0)
    decision = plan.choose(drafter, backend)
    assert len(decision.draft) == 1
    assert decision.cost_ms == pytest.approx(24, rel=0.05)


@pytest.mark.parametrize("parents", [None, [-1, -1, 0, 1, 2, 3, 4]], ids=["chain", "tree"])
def test_one_outlier_does_not_flip_the_plan(parents):
    drafter, backend = Fixed(tree([0.9] * 7, parents)), backend_of()
    plan = Plan(staircase_of(FLAT))
    before = plan.choose(drafter, backend)
    assert len(before.draft) == 7
    for _ in range(10):
        see(plan, before, 10.1, 0.1)
    see(plan, before, 5000.0, 0.1)
    assert hopeful(plan.choose(drafter, backend)) == 7


@pytest.mark.parametrize(("dearer", "least"), [(1.5, 0.85), (3.0, 0.85), (11.0, 0.5)])
def test_it_follows_a_machine_on_which_wide_steps_become_dear_and_cheap_again(dearer, least):
    # The share of the best possible rate, with one step in four that nothing is known for.
    likely, nothing = Fixed(tree([0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6])), Fixed(tree([]))
    usual = {n: 10 + 0.3 * n for n in range(1, 17)}
    plan, backend = Plan(staircase_of(usual, 16)), backend_of(16)

    def share(steps, factor):
        gains = np.concatenate(([1.0], 1 + np.cumsum(likely.draft.probs)))
        best = max(gains[n - 1] / (usual[n] * (factor if n > 1 else 1)) for n in range(1, 9))
        tokens = ms = 0.0
        for turn in range(steps):
            decision = plan.choose(nothing if turn % 4 == 0 else likely, backend)
            n = len(decision.draft) + 1
            took = usual[n] * (factor if n > 1 else 1)
            see(plan, decision, took)
            if turn % 4:
                tokens += decision.expected
                ms += took
        return tokens / ms / best

    assert share(50, 1) > 0.99
    share(100, dearer)
    assert share(500, dearer) > least
    share(300, 1)
    assert share(300, 1) > 0.8


@settings(max_examples=60)
@given(
    prices=st.lists(st.floats(1.0, 12.0), min_size=7, max_size=7),
    probs=st.lists(st.lists(st.floats(0.05, 1.0), max_size=7), min_size=1, max_size=20),
    tokens=st.integers(1, 400),
)
def test_drafts_that_never_come_true_cost_no_more_than_the_budget(prices, probs, tokens):
    # Whatever is promised, as long as steps cost what was measured.
    steps = {1: 1.0, **{n + 2: price for n, price in enumerate(sorted(prices))}}
    plan, backend = Plan(staircase_of(steps)), backend_of()
    drafters = [Fixed(tree(np.cumprod(p).tolist())) for p in probs]
    plan.begin()
    took = 0.0
    for i in range(tokens):
        decision = plan.choose(drafters[i % len(drafters)], backend)
        ms = float(plan.staircase.costs(3)[len(decision.draft) + 1])
        took += ms
        plan.observe(decision, 0, 3, ms, 0.0)
    assert took <= tokens * (1 + INTEREST) + ALLOWANCE + 1e-6


def test_what_drafts_saved_pays_for_later_ones():
    plan, backend = Plan(staircase_of({1: 10.0, 2: 14.0, 4: 24.0, 8: 46.0}, 8)), backend_of(8)
    long, short = Fixed(tree([1.0] * 7)), Fixed(tree([1.0] * 3))
    assert len(plan.choose(long, backend).draft) < 7  # eight might lose 3.6 plain steps
    for _ in range(8):
        see(plan, plan.choose(short, backend), 24.0, accepted=3)
    assert len(plan.choose(long, backend).draft) == 7
    plan.begin()
    assert len(plan.choose(long, backend).draft) < 7


def test_changing_the_width_costs_what_it_was_seen_to_cost():
    plan, backend = Plan(staircase_of({1: 10.0, 2: 14.0, 32: 300.0})), backend_of()
    likely, perhaps, unlikely = (Fixed(tree([p])) for p in (0.9, 0.5, 0.01))
    assert hopeful(plan.choose(perhaps, backend)) == 1
    for _ in range(60):  # a single token after a pair takes 3 ms longer
        see(plan, plan.choose(likely, backend), 14.0)
        see(plan, plan.choose(unlikely, backend), 13.0)
    see(plan, plan.choose(unlikely, backend), 10.0)
    assert plan.choose(likely, backend).cost_ms == pytest.approx(17, rel=0.05)  # there and back
    assert hopeful(plan.choose(likely, backend)) == 1
    assert hopeful(plan.choose(perhaps, backend)) == 0
    see(plan, plan.choose(likely, backend), 14.0)
    assert hopeful(plan.choose(perhaps, backend)) == 1  # the way back is paid for
    for _ in range(400):  # single tokens only: the price fades
        see(plan, plan.choose(unlikely, backend), 10.0)
    assert hopeful(plan.choose(perhaps, backend)) == 1


def hopeful(decision):
    return int((decision.draft.probs > 0).sum())
