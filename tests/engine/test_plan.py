"""The plan: the argmax of expected tokens per second, over every prefix and every width allowed."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.scripted import ScriptedCache, ScriptedModel
from specx.drafters.base import Draft, Drafting
from specx.engine.budget import ALLOWANCE, INTEREST, Budget
from specx.engine.cost.staircase import Staircase
from specx.engine.learned.lengths import Outlook
from specx.engine.plan import Plan

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


class Fixed(Drafting):
    """Proposes the same tree again and again."""

    def __init__(self, draft):
        self.draft = draft
        self.asked = []

    def propose(self, room):
        self.asked.append((room.limit, room.leaves))
        return self.draft.head(room.limit)


def staircase_of(steps, max_width=32):
    staircase = Staircase(max_width)
    staircase.load_json({"0": {str(n): ms for n, ms in steps.items()}})
    return staircase


class Writing:
    """A text that is being written, as the plan sees it. Implements `Planned`."""

    def __init__(self, max_width=32, length=3, **options):
        self.cache = ScriptedModel(8, max_width=max_width, **options).open()
        self.cache.prefill([1] * length)
        self.drafting, self.budget = Drafting(), Budget()
        self.outlook = Outlook()


def choose(plan, drafting, text):
    text.drafting = drafting
    return plan.choose([text], text.cache.model.facts)


def drafted(decision):
    [part] = decision.parts
    return part.draft


def see(plan, decision, text, forward_ms, host_ms=0.0, accepted=None):
    """A step that gave what was expected of it."""
    kept = drafted(decision).probs.sum() if accepted is None else accepted
    plan.observe(decision, [text], [3], [kept], forward_ms, host_ms)


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


def assert_best(decision, best, staircase, allowed):
    """The rate is `best`, but that no wider step is taken than a tree needs where it is hardly cheaper."""
    costs, width = staircase.costs(3), len(drafted(decision)) + 1
    narrow = hopeful(decision) + 1
    assert decision.cost_ms == pytest.approx(costs[width])
    if decision.expected / decision.cost_ms != pytest.approx(best):
        wide = decision.expected / best  # milliseconds of the step that is cheaper
        assert width == narrow and wide < costs[narrow]
        assert costs[narrow] - wide <= 1.001 * (staircase.noise(narrow, 3) + 0.02 * wide)
    elif width > narrow and narrow in affordable(costs, allowed):
        assert costs[narrow] - costs[width] > staircase.noise(narrow, 3) + staircase.noise(width, 3)


def rate_of(draft, costs, width):
    return (1 + float(draft.probs.astype(np.float64).sum())) / costs[width]


@given(drafts(), staircases(), st.one_of(st.none(), st.integers(0, 12)))
def test_it_is_the_argmax_over_all_prefixes_and_widths(draft, steps, max_nodes):
    staircase = staircase_of(steps, 12)
    plan = Plan(staircase, max_nodes=max_nodes)
    decision = choose(plan, Fixed(draft), Writing(12, max_leaves=16))
    costs = staircase.costs(3)
    most = len(draft) if max_nodes is None else min(len(draft), max_nodes)
    widths = affordable(costs, range(1, 13))
    best = max(rate_of(draft.head(min(most, width - 1)), costs, width) for width in widths)
    assert_best(decision, best, staircase, range(1, 13))
    same = min(most, len(drafted(decision)))
    chosen = draft.head(same).depth_first()
    assert drafted(decision).tokens[:same].tolist() == chosen.tokens.tolist()
    assert drafted(decision).parents[:same].tolist() == chosen.parents.tolist()
    assert (drafted(decision).probs[same:] == 0).all()
    assert decision.expected == pytest.approx(1 + drafted(decision).probs.astype(np.float64).sum())


def closed(draft, nodes):
    return all(parent < 0 or parent in nodes for parent in draft.parents[list(nodes)].tolist())


@given(drafts(6), staircases(7))
def test_no_other_tree_below_the_root_would_be_better(draft, steps):
    staircase = staircase_of(steps, 7)
    decision = choose(Plan(staircase), Fixed(draft), Writing(7, max_leaves=16))
    costs, width = staircase.costs(3), len(drafted(decision)) + 1
    noise = 0.04 if (costs[width + 1 :] < costs[width]).any() else 0.0  # within which no wider step is taken
    for n in range(len(draft) + 1):
        if n + 1 not in affordable(costs, range(1, 8)):
            continue
        for nodes in combinations(range(len(draft)), n):
            if closed(draft, nodes):
                gain = 1 + draft.probs[list(nodes)].astype(np.float64).sum()
                assert gain / costs[n + 1] * (1 - noise) <= decision.expected / decision.cost_ms * (1 + 1e-9)


@given(drafts(), staircases(), st.sets(st.integers(1, 12), min_size=1))
def test_only_the_allowed_widths(draft, steps, widths):
    staircase = staircase_of(steps, 12)
    chain = tree(draft.probs.tolist())
    drafter = Fixed(chain)
    plan = Plan(staircase, widths=frozenset(widths))
    decision = choose(plan, drafter, Writing(12))
    costs = staircase.costs(3)
    assert len(drafted(decision)) + 1 in widths
    best = max(rate_of(chain.head(min(w - 1, len(chain))), costs, w) for w in affordable(costs, widths))
    assert_best(decision, best, staircase, widths)
    assert drafted(decision).parents.tolist() == list(
        range(-1, len(drafted(decision)) - 1)
    )  # padded, still a chain
    assert all(leaves == 1 for _, leaves in drafter.asked)


def test_plain_decoding_when_drafts_cannot_pay():
    decision = choose(Plan(staircase_of(STEEP)), Fixed(tree([0.99] * 8)), Writing())
    assert len(drafted(decision)) == 0
    decision = choose(Plan(staircase_of(FLAT)), Fixed(tree([0.0001] * 8)), Writing())
    assert len(drafted(decision)) == 0
    decision = choose(Plan(staircase_of(FLAT)), Fixed(tree([])), Writing())
    assert (len(drafted(decision)), decision.expected) == (0, 1)


def test_it_speculates_when_that_pays():
    decision = choose(Plan(staircase_of(FLAT)), Fixed(tree([0.9] * 31)), Writing())
    assert len(drafted(decision)) == 31


def test_a_wider_step_that_is_cheaper_is_padded_up_to():
    plan = Plan(staircase_of({1: 10, 2: 15, 3: 30, 4: 18, 5: 40, 32: 300}))
    draft = tree([0.9, 0.8], [-1, -1])
    decision = choose(plan, Fixed(draft), Writing())
    assert drafted(decision).tokens.tolist() == [1, 2, 0]
    assert drafted(decision).parents.tolist() == [-1, -1, 1]  # below a leaf: no sequence more
    assert drafted(decision).probs.tolist() == pytest.approx([0.9, 0.8, 0])
    assert decision.expected == pytest.approx(2.7)


def step_of_two_drafts(staircase):
    text = Writing()
    text.budget.steps = 3.0  # which covers them all
    return choose(Plan(staircase), Fixed(tree([0.9, 0.8])), text)


@pytest.mark.parametrize(("wide", "padded"), [(14.0, True), (16.5, True), (18.5, False), (21.0, False)])
def test_a_wider_step_is_taken_only_where_it_is_cheaper_beyond_the_noise(wide, padded):
    # Of 2 % on each of the two; a fall of five times their noise is one, a smaller one is none.
    staircase = staircase_of({1: 10.0, 2: 15.0, 3: 20.0, 4: wide, 5: 40.0, 32: 300.0})
    decision = step_of_two_drafts(staircase)
    assert len(drafted(decision)) == (3 if padded else 2)
    pooled = (20.0 / 20.0**2 + wide / wide**2) / (20.0**-2 + wide**-2)  # each weighed by how sure it is
    assert decision.cost_ms == pytest.approx(wide if padded else min(20.0, pooled))


def test_no_wider_step_than_a_single_token_needs_is_cheaper():
    decision = choose(Plan(staircase_of({1: 10.0, 2: 5.0, 32: 300.0})), Fixed(tree([])), Writing())
    assert len(drafted(decision)) == 0


@pytest.mark.parametrize(("seen", "padded"), [(19.9, False), (19.5, False), (19.0, True), (17.0, True)])
def test_real_steps_make_a_wider_one_cheaper_beyond_the_noise(seen, padded):
    # Of 0.8 ms, 2 % on each of the two.
    staircase = staircase_of({1: 10.0, 2: 15.0, 3: 20.0, 4: 20.0, 5: 40.0, 32: 300.0})
    for _ in range(300):
        staircase.observe(3, 3, 20.0)
        staircase.observe(4, 3, seen)
    decision = step_of_two_drafts(staircase)
    assert len(drafted(decision)) == (3 if padded else 2)
    assert decision.cost_ms == pytest.approx(seen if padded else 20.0, rel=0.002)


def test_padding_without_any_draft_is_a_chain_below_the_root():
    plan = Plan(staircase_of(FLAT), widths=frozenset({4}))
    decision = choose(plan, Fixed(tree([])), Writing())
    assert drafted(decision).parents.tolist() == [-1, 0, 1]
    assert drafted(decision).tokens.dtype == drafted(decision).parents.dtype == np.int32
    assert drafted(decision).probs.dtype == np.float32
    assert drafted(decision).sources.dtype == np.uint8


def test_the_room_that_is_left():
    drafter = Fixed(tree([0.9] * 31))
    plan = Plan(staircase_of(FLAT))
    for length, most in ((0, 31), (90, 9), (98, 1), (99, 0)):
        decision = choose(plan, drafter, Writing(length=length, n_ctx=100))
        assert len(drafted(decision)) == most
    assert drafter.asked == [(31, 16), (9, 16), (1, 16)]  # nobody is asked for nothing


def test_no_allowed_width_is_used_up_by_what_is_committed():
    # Whatever is accepted, a batch of the narrowest width fits behind it, or the context is full.
    plan = Plan(staircase_of(FLAT), widths=frozenset({4, 8}))
    assert plan.narrowest == 4
    drafter = Fixed(tree([0.9] * 31))
    for length in range(80, 97):
        decision = choose(plan, drafter, Writing(length=length, n_ctx=100))
        assert len(drafted(decision)) + 1 in (4, 8)
        assert length + 1 + hopeful(decision) <= 97
    assert Plan(staircase_of(FLAT)).narrowest == 1


def test_a_model_that_cannot_take_tokens_back_is_never_drafted_for():
    drafter = Fixed(tree([0.9] * 4))
    decision = choose(Plan(staircase_of(FLAT, 1)), drafter, Writing(can_rewind=False))
    assert (len(drafted(decision)), drafter.asked) == (0, [])


def test_branches_cost_what_they_were_seen_to_cost():
    draft = tree([0.5, 0.4], [-1, -1])
    plan, text = Plan(staircase_of(FLAT)), Writing()
    decision = choose(plan, Fixed(draft), text)
    assert len(drafted(decision)) == 2
    for _ in range(60):  # each branch makes a step 8 ms longer
        see(plan, decision, text, 18.0)
    decision = choose(plan, Fixed(draft), text)
    assert len(drafted(decision)) == 1
    for _ in range(500):
        see(plan, decision, text, float(plan.staircase.costs(3)[2]))
    assert len(drafted(choose(plan, Fixed(draft), text))) == 2  # tried again some time


def test_time_outside_the_backend_makes_long_steps_better():
    steps = {1: 10.0, 2: 16.0, 32: 300.0}
    drafter, text = Fixed(tree([0.5])), Writing()
    plan = Plan(staircase_of(steps))
    decision = choose(plan, drafter, text)
    assert len(drafted(decision)) == 0
    for _ in range(60):
        see(plan, decision, text, 10.0, 8.0)
    decision = choose(plan, drafter, text)
    assert len(drafted(decision)) == 1
    assert decision.cost_ms == pytest.approx(24, rel=0.05)


@pytest.mark.parametrize("parents", [None, [-1, -1, 0, 1, 2, 3, 4]], ids=["chain", "tree"])
def test_one_outlier_does_not_flip_the_plan(parents):
    drafter, text = Fixed(tree([0.9] * 7, parents)), Writing()
    plan = Plan(staircase_of(FLAT))
    before = choose(plan, drafter, text)
    assert len(drafted(before)) == 7
    for _ in range(10):
        see(plan, before, text, 10.1, 0.1)
    see(plan, before, text, 5000.0, 0.1)
    assert hopeful(choose(plan, drafter, text)) == 7


@pytest.mark.parametrize(("dearer", "least"), [(1.5, 0.85), (3.0, 0.85), (11.0, 0.5)])
def test_it_follows_a_machine_on_which_wide_steps_become_dear_and_cheap_again(dearer, least):
    # The share of the best possible rate, with one step in four that nothing is known for.
    likely, nothing = Fixed(tree([0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6])), Fixed(tree([]))
    usual = {n: 10 + 0.3 * n for n in range(1, 17)}
    plan, text = Plan(staircase_of(usual, 16)), Writing(16)

    def share(steps, factor):
        gains = np.concatenate(([1.0], 1 + np.cumsum(likely.draft.probs)))
        best = max(gains[n - 1] / (usual[n] * (factor if n > 1 else 1)) for n in range(1, 9))
        tokens = ms = 0.0
        for turn in range(steps):
            decision = choose(plan, nothing if turn % 4 == 0 else likely, text)
            n = len(drafted(decision)) + 1
            took = usual[n] * (factor if n > 1 else 1)
            see(plan, decision, text, took)
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
    plan, text = Plan(staircase_of(steps)), Writing()
    drafters = [Fixed(tree(np.cumprod(p).tolist())) for p in probs]
    took = 0.0
    for i in range(tokens):
        decision = choose(plan, drafters[i % len(drafters)], text)
        ms = float(plan.staircase.costs(3)[len(drafted(decision)) + 1])
        took += ms
        plan.observe(decision, [text], [3], [0], ms, 0.0)
    assert took <= tokens * (1 + INTEREST) + ALLOWANCE + 1e-6


@settings(max_examples=60)
@given(
    prices=st.lists(st.floats(1.0, 12.0), min_size=7, max_size=7),
    dearer=st.lists(st.floats(0.7, 1.9), min_size=8, max_size=8),
    probs=st.lists(st.lists(st.floats(0.05, 1.0), max_size=7), min_size=1, max_size=20),
    tokens=st.integers(1, 200),
)
def test_what_steps_cost_more_than_was_measured_is_owed(prices, dearer, probs, tokens):
    # The table stays wrong: what is counted is that a text pays its debts before it drafts again.
    steps = {1: 1.0, **{n + 2: price for n, price in enumerate(sorted(prices))}}
    plan, text = Plan(staircase_of(steps)), Writing()
    plan.staircase.observe = lambda *_step: None
    drafters = [Fixed(tree(np.cumprod(p).tolist())) for p in probs]
    took, longest = 0.0, 1.0
    for i in range(tokens):
        decision = choose(plan, drafters[i % len(drafters)], text)
        n = len(drafted(decision)) + 1
        ms = float(plan.staircase.costs(3)[n]) * (dearer[n - 1] if n > 1 else 1.0)
        took, longest = took + ms, max(longest, ms)
        plan.observe(decision, [text], [3], [0], ms, 0.0)
    assert took <= tokens * (1 + INTEREST) + ALLOWANCE + (longest - 1) + 1e-6


def test_what_drafts_saved_pays_for_later_ones():
    plan, text = Plan(staircase_of({1: 10.0, 2: 14.0, 4: 24.0, 8: 46.0}, 8)), Writing(8)
    long, short = Fixed(tree([1.0] * 7)), Fixed(tree([1.0] * 3))
    assert len(drafted(choose(plan, long, text))) < 7  # eight might lose 3.6 plain steps
    for _ in range(8):
        see(plan, choose(plan, short, text), text, 24.0, accepted=3)
    assert len(drafted(choose(plan, long, text))) == 7
    text.budget = Budget()
    assert len(drafted(choose(plan, long, text))) < 7


def test_changing_the_width_costs_what_it_was_seen_to_cost():
    plan, text = Plan(staircase_of({1: 10.0, 2: 14.0, 32: 300.0})), Writing()
    likely, perhaps, unlikely = (Fixed(tree([p])) for p in (0.9, 0.5, 0.01))
    assert hopeful(choose(plan, perhaps, text)) == 1
    for _ in range(60):  # a single token after a pair takes 3 ms longer
        see(plan, choose(plan, likely, text), text, 14.0)
        see(plan, choose(plan, unlikely, text), text, 13.0)
    see(plan, choose(plan, unlikely, text), text, 10.0)
    assert choose(plan, likely, text).cost_ms == pytest.approx(17, rel=0.05)  # there and back
    assert hopeful(choose(plan, likely, text)) == 1
    assert hopeful(choose(plan, perhaps, text)) == 0
    see(plan, choose(plan, likely, text), text, 14.0)
    assert hopeful(choose(plan, perhaps, text)) == 1  # the way back is paid for
    for _ in range(400):  # single tokens only: the price fades
        see(plan, choose(plan, unlikely, text), text, 10.0)
    assert hopeful(choose(plan, perhaps, text)) == 1


def test_one_step_that_was_held_up_ends_no_drafts():
    plan, text = Plan(staircase_of({1: 10.0, 2: 14.0, 32: 300.0})), Writing()
    likely, unlikely = (Fixed(tree([p])) for p in (0.9, 0.01))
    for took_ms in (3_600_000.0, 10.0, 10.0, 10.0):  # held up for an hour
        assert hopeful(choose(plan, likely, text)) == 1
        see(plan, choose(plan, likely, text), text, 14.0)
        see(plan, choose(plan, unlikely, text), text, took_ms)
        text.budget = Budget()
    assert plan.staircase.cost(1, 3) == pytest.approx(10.0, rel=0.1)


class Gpu:
    """Steps of which the first two of a width take longer. `settles` is that of the model."""

    STEPS = {1: 1.5, 2: 1.7, 4: 2.1, 8: 2.5, 16: 3.9, 32: 4.8}  # noqa: RUF012 -- nothing changes it

    def __init__(self, longer_ms=2.0):
        self.plan, self.text = Plan(staircase_of(self.STEPS)), Writing()
        model = self.text.cache.model
        model.facts = replace(model.facts, settles=3)
        self.longer_ms, self.widths = longer_ms, [0, 0]  # the prompt

    def write(self, drafting, accepted, steps):
        """Milliseconds and tokens of so many steps."""
        ms = tokens = 0.0
        for _ in range(steps):
            decision = choose(self.plan, drafting, self.text)
            n = len(drafted(decision)) + 1
            took = self.plan.staircase.quiet_cost(n, 3) + self.longer_ms * (self.widths[-2:] != [n, n])
            self.widths.append(n)
            right = min(accepted, hopeful(decision))
            self.plan.observe(decision, [self.text], [3], [right], took, 0.0)
            ms, tokens = ms + took, tokens + right + 1
        return ms, tokens

    def begin(self):
        self.plan.begin(3)
        self.text.budget = Budget()
        self.widths += [0, 0]


def test_where_widths_settle_one_is_kept():
    gpu, good = Gpu(), Fixed(tree([0.8**n for n in range(1, 10)]))
    gpu.begin()
    gpu.write(good, 3, 60)
    kept = gpu.widths[-40:]
    assert set(kept) == {8}
    gpu.write(Fixed(tree([])), 0, 20)
    assert set(gpu.widths[-10:]) == {1}


def test_where_widths_settle_the_step_before_may_have_been_of_many_texts():
    gpu = Gpu()
    gpu.begin()
    for _ in range(3):
        gpu.plan.after(200)
    assert len(drafted(choose(gpu.plan, Fixed(tree([])), gpu.text))) == 0
    gpu.text.budget.steps = -1.0  # what is left of one plain step is nothing
    assert len(drafted(choose(gpu.plan, Fixed(tree([0.9] * 4)), gpu.text))) == 0


def test_where_widths_settle_and_steps_may_not_take_long_a_narrower_one_is_kept():
    gpu, good = Gpu(), Fixed(tree([0.97**n for n in range(1, 32)]))
    gpu.plan.longest_ms = 5.0
    gpu.begin()
    gpu.write(good, 20, 80)
    assert {gpu.plan.staircase.quiet_cost(n, 3) + 2.0 <= 5.0 for n in gpu.widths[-20:]} == {True}
    assert gpu.widths[-1] > 1


@settings(max_examples=40)
@given(
    probs=st.lists(st.lists(st.floats(0.05, 1.0), max_size=7), min_size=1, max_size=8),
    longer_ms=st.floats(0.0, 3.0),
    steps=st.integers(1, 300),
)
def test_where_widths_settle_drafts_that_never_come_true_cost_little_more(probs, longer_ms, steps):
    gpu = Gpu(longer_ms)
    gpu.begin()
    drafters = [Fixed(tree(np.cumprod(p).tolist())) for p in probs]
    took = sum(gpu.write(drafters[i % len(drafters)], 0, 1)[0] for i in range(steps))
    plain, change = 1.5, 2 * longer_ms
    begun = 2 * longer_ms  # of the first single tokens, drafts or not
    allowed = steps * INTEREST + ALLOWANCE + 3 * change / plain  # one change and back, and one way back
    assert took <= begun + plain * (steps + allowed) + 1e-6


def hopeful(decision):
    return int((drafted(decision).probs > 0).sum())


def texts_of(*probs, **options):
    """Texts that are written together, each with a chain of its own."""
    texts = [Writing(12, max_rows=12, max_texts=4, **options) for _ in probs]
    for text, listed in zip(texts, probs, strict=True):
        text.drafting = Fixed(tree(listed))
    return texts


def choose_together(plan, texts):
    return plan.choose(texts, texts[0].cache.model.facts)


promising = st.lists(st.floats(0.001, 1), max_size=4).map(lambda probs: sorted(probs, reverse=True))


@settings(max_examples=60)
@given(st.lists(promising, min_size=2, max_size=3), staircases())
def test_several_texts_share_the_step_of_the_highest_rate(probs, steps):
    plan, texts, n = Plan(staircase_of(steps, 12)), texts_of(*probs), len(probs)
    decision = choose_together(plan, texts)
    costs = plan.company.costs_by_rows([3] * n, 12)
    assert costs[n:] == pytest.approx(plan.staircase.costs(3)[n:13])
    cap = max(rows for rows in range(n, 13) if costs[rows] <= costs[n] * (1 + ALLOWANCE)) - n
    counts = product(*(range(min(len(chain), cap) + 1) for chain in probs))
    gains = {taken: n + sum(sum(c[:k]) for c, k in zip(probs, taken, strict=True)) for taken in counts}
    best = max(gain / costs[n + sum(taken)] for taken, gain in gains.items() if n + sum(taken) <= 12)
    assert decision.expected / decision.cost_ms == pytest.approx(best)
    taken = tuple(len(part.draft) for part in decision.parts)
    assert decision.cost_ms == pytest.approx(costs[n + sum(taken)])
    assert decision.expected == pytest.approx(gains[taken])


@settings(max_examples=60)
@given(st.lists(promising, min_size=2, max_size=3), staircases())
def test_several_texts_have_one_width_where_that_is_wanted(probs, steps):
    plan, texts, n = Plan(staircase_of(steps, 12)), texts_of(*probs, even=True), len(probs)
    decision = choose_together(plan, texts)
    widest = 12 // n
    costs = plan.company.costs_by_width([3] * n, widest)
    assert costs[1:] == pytest.approx([plan.staircase.cost(n * width, 3) for width in range(1, widest + 1)])
    affordable = [w for w in range(1, widest + 1) if costs[w] - costs[1] <= n * ALLOWANCE * costs[1]]
    most = max(affordable) - 1
    gains = {w: n + sum(sum(c[: min(w - 1, most)]) for c in probs) for w in range(1, widest + 1)}
    assert decision.expected / decision.cost_ms == pytest.approx(max(gains[w] / costs[w] for w in gains))
    assert len({len(part.draft) for part in decision.parts}) == 1
    width = len(decision.parts[0].draft) + 1
    assert decision.cost_ms == pytest.approx(costs[width])


def test_several_texts_are_drafted_for_in_chains():
    texts = texts_of([], [], max_leaves=16)
    texts[0].drafting = Fixed(tree([0.9, 0.8, 0.7], [-1, -1, 1]))
    decision = choose_together(Plan(staircase_of(FLAT, 12)), texts)
    assert decision.parts[0].draft.tokens.tolist() == [2, 3]  # 0.8 and 0.7 are more than 0.9
    assert decision.parts[0].draft.parents.tolist() == [-1, 0]
    assert {leaves for text in texts for _, leaves in text.drafting.asked} == {1}


def test_a_text_whose_budget_is_spent_is_left_out_beside_others():
    plan, texts = Plan(staircase_of({1: 10.0, 12: 21.0}, 12)), texts_of([0.9] * 4, [0.9] * 4)
    texts[0].budget.steps = 0.0
    decision = choose_together(plan, texts)
    assert [len(part.draft) for part in decision.parts] == [0, 4]
    for _ in range(100):
        plan.observe(decision, texts, [3, 3], [0, 4], decision.cost_ms, 0.0)
    assert [len(part.draft) for part in choose_together(plan, texts).parts] == [4, 4]  # it has saved up


def test_each_text_pays_for_its_own_drafts():
    plan, texts = Plan(staircase_of({1: 10.0, 12: 21.0}, 12)), texts_of([0.9] * 4, [0.9] * 4, [])
    decision = choose_together(plan, texts)
    assert [len(part.draft) for part in decision.parts] == [4, 4, 0]
    plan.observe(decision, texts, [3] * 3, [0, 4, 0], decision.cost_ms, 0.0)
    extra = decision.cost_ms / decision.plain_ms - 1
    expected = [ALLOWANCE + INTEREST - extra / 2, ALLOWANCE + 5 * INTEREST - extra / 2 + 4]
    assert [text.budget.steps for text in texts] == pytest.approx([*expected, ALLOWANCE + INTEREST])


@settings(max_examples=40)
@given(
    prices=st.lists(st.floats(1.0, 12.0), min_size=9, max_size=9),
    probs=st.lists(st.lists(st.floats(0.05, 1.0), max_size=7), min_size=1, max_size=10),
    tokens=st.integers(1, 200),
    even=st.booleans(),
)
def test_drafts_that_never_come_true_cost_several_texts_little(prices, probs, tokens, even):
    # What a step takes longer is shared by those whose drafts it verifies; each of them may overdraw once.
    steps = {1: 1.0, 2: 1.0, 3: 1.0, **{n + 4: price for n, price in enumerate(sorted(prices))}}
    plan, texts, took, longest = Plan(staircase_of(steps, 12)), texts_of([], [], [], even=even), 0.0, 0.0
    for i in range(tokens):
        for j, text in enumerate(texts):
            text.drafting = Fixed(tree(np.cumprod(probs[(i + j) % len(probs)]).tolist()))
        decision = choose_together(plan, texts)
        took, longest = took + decision.cost_ms, max(longest, decision.cost_ms)
        plan.observe(decision, texts, [3] * 3, [0] * 3, decision.cost_ms, 0.0)
    plain = decision.plain_ms
    most_lost = 3 * (ALLOWANCE + INTEREST * tokens) * plain + 3 * (longest - plain)
    assert took <= plain * tokens + most_lost + 1e-6


@pytest.mark.parametrize("even", [False, True])
def test_more_texts_than_one_tree_may_have_tokens(even):
    texts = [Writing(4, max_texts=8, max_rows=8, even=even) for _ in range(8)]
    for text in texts:
        text.drafting = Fixed(tree([0.9, 0.8]))
    plan = Plan(staircase_of({1: 10.0, 4: 11.0}, 4))
    decision = choose_together(plan, texts)
    assert [len(part.draft) for part in decision.parts] == [0] * 8
    assert decision.cost_ms == pytest.approx(22)  # in proportion to the widest step that is known
    plan.observe(decision, texts, [3] * 8, [0] * 8, 15.0, 0.0)
    assert choose_together(plan, texts).cost_ms == pytest.approx(15)


class Behind(Writing):
    """A text whose last tokens are read again with the next step."""

    def __init__(self, again, **options):
        super().__init__(**options)
        cache = type("Behind", (type(self.cache),), {"again": property(lambda _: again)})
        self.cache.__class__ = cache


def test_what_is_read_again_is_paid_for_and_takes_room():
    steps = {1: 10.0, 2: 12.0, 3: 14.0, 4: 30.0, 5: 30.0, 6: 30.0, 7: 30.0, 8: 30.0}
    plan, source = Plan(staircase_of(steps, 8)), Fixed(tree([0.9] * 7))
    alone = choose(plan, source, Writing(8))
    assert len(drafted(alone)) == 2 and alone.cost_ms == 14.0 and alone.again == 0
    text = Behind([1])
    decision = choose(plan, source, text)
    assert len(drafted(decision)) == 1 and decision.cost_ms == 14.0 and decision.again == 1
    assert decision.plain_ms == alone.plain_ms == 10.0  # not with something to read again
    full = choose(plan, source, Behind([1] * 7, max_width=8))
    assert full.again == 7 and len(drafted(full)) == 0 and full.cost_ms == 30.0
    see(plan, decision, text, 14.0, accepted=0)
    assert text.budget.steps == pytest.approx(ALLOWANCE + INTEREST - 0.4)


def test_real_steps_tell_the_price_of_all_their_rows():
    plan = Plan(staircase_of(STEEP))
    text = Behind([1, 2])
    for _ in range(40):
        decision = choose(plan, Fixed(tree([])), text)
        assert len(drafted(decision)) == 0 and decision.cost_ms >= 29.0
        see(plan, decision, text, 40.0)
    assert plan.staircase.cost(3, 3) == pytest.approx(40.0, rel=0.1)


@given(drafts())
def test_depth_first_the_likeliest_way_comes_first(draft):
    ordered = draft.depth_first()
    ways = []
    for tree in (draft, ordered):
        way = {-1: ()}
        for node, (parent, token) in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True)):
            way[node] = (*way[parent], token)
        ways.append([way[node] for node in range(len(tree))])
    assert dict(zip(ways[0], draft.probs.tolist(), strict=True)) == dict(
        zip(ways[1], ordered.probs.tolist(), strict=True)
    )
    children = {}
    for way in ways[0]:
        children.setdefault(way[:-1], []).append(way)

    def visit(way):
        yield from (each for child in children.get(way, []) for each in (child, *visit(child)))

    assert ways[1] == list(visit(()))


def test_branches_are_those_that_the_text_can_have_now():
    # A text whose cells were shifted takes chains, whatever the model can.
    class Shifted(ScriptedCache):
        max_leaves = 1

    for cache_class, leaves in ((ScriptedCache, 4), (Shifted, 1)):
        text = Writing(max_leaves=4, cache_class=cache_class)
        text.drafting = Fixed(Draft.of_chain([1, 2], [0.9, 0.8]))
        choose(Plan(staircase_of({1: 10.0, 32: 10.5})), text.drafting, text)
        assert text.drafting.asked == [(31, leaves)]
