"""What a source is expected to give: the reference against what it means, and the native class against it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.kernels._native import Draft, Foresight, ModelCounts, StepCosts
from specx.kernels.reference import drafts as drafts_reference
from specx.kernels.reference import foresight as reference
from specx.kernels.reference.foresight import FORESEEN, Beside
from specx.kernels.reference.model_counts import BESIDE_PRIORS, SURE

EDGES, PRIORS = np.array(SURE), BESIDE_PRIORS
HAZARD = st.floats(0.01, 0.99)


def draft_of(nodes):
    columns = zip(*nodes, strict=True) if nodes else ((), (), (), ())
    types = (np.int32, np.int32, np.float32, np.uint8)
    return Draft(*(np.array(column, kind) for column, kind in zip(columns, types, strict=True)))


def nodes_of(draft):
    columns = draft.tokens, draft.parents, draft.probs, draft.sources
    return list(zip(*(column.tolist() for column in columns), strict=True))


@st.composite
def drafts(draw):
    """Nodes of a draft: the children of a node share its probability."""
    left, found = {-1: 1.0}, []
    for token in range(draw(st.integers(0, 8))):
        parent = draw(st.sampled_from(sorted(left)))
        prob = float(np.float32(left[parent] * draw(st.floats(0.1, 0.9))))
        left[parent], left[token] = left[parent] - prob, prob
        found.append((token, parent, prob, draw(st.integers(0, 2))))
    found.sort(key=lambda node: -node[2])
    place = {token: i for i, (token, *_) in enumerate(found)} | {-1: -1}
    return [(token, place[parent], prob, source) for token, parent, prob, source in found]


@st.composite
def counts(draw):
    """Hits and trials."""

    def some(*shape):
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        trials = rng.uniform(0, 100, shape)
        return np.stack([trials * rng.uniform(0, 1, shape), trials], axis=-1)

    return some(4, 2), some(4)


def native_counts(right, agreed):
    """Counts beside the free drafters, natively; nothing is known otherwise."""
    beside, said = np.zeros((2, 4, 2, 2)), np.zeros((2, 4, 2))
    beside[0], said[0] = right, agreed
    shapes = (2, 10, 3, 3, 2), (2, 10, 2), (2, 14, 2), (2, 2)
    return ModelCounts(*map(np.zeros, shapes), beside, said, np.zeros(2)), said


NOTHING = native_counts(0, 0)[0]


def claims_after(nodes, path):
    """As something that is foreseen has them."""
    return Foresight(NOTHING, False, draft_of(nodes), path, 0.5, 0.5, [], draft_of([]), [], [], 1).claims


@settings(max_examples=50)
@given(drafts(), st.lists(st.integers(0, 12), max_size=4), st.data())
def test_claims(nodes, path, data):
    if nodes and data.draw(st.booleans()):  # a path that there is
        at = data.draw(st.integers(0, len(nodes) - 1))
        path = []
        while at >= 0:
            path.insert(0, nodes[at][0])
            at = nodes[at][1]
    assert claims_after(nodes, path) == reference.claims_after(nodes, path)


@settings(max_examples=50)
@given(drafts(), drafts(), st.data())
def test_a_tree_below_a_leaf(nodes, below, data):
    leaves = sorted(set(range(len(nodes))) - {parent for _, parent, *_ in nodes})
    path, at = [], data.draw(st.sampled_from(leaves)) if leaves else -1
    while at >= 0:
        path.insert(0, nodes[at][0])
        at = nodes[at][1]
    found = draft_of(nodes).grafted(path, draft_of(below))
    grown = paths(nodes_of(found))
    expected = paths(drafts_reference.graft(nodes, path, below))
    assert [(path, source) for path, _, source in grown] == [(path, source) for path, _, source in expected]
    probs = [prob for _, prob, _ in expected]
    assert [prob for _, prob, _ in grown] == pytest.approx(probs, rel=1e-5)
    assert found.probs.tolist() == sorted(found.probs.tolist(), reverse=True)
    with pytest.raises(ValueError, match="path"):
        draft_of(nodes).grafted([*path, 99], draft_of(below))


@settings(max_examples=50)
@given(counts(), st.lists(st.floats(0, 1), max_size=20))
def test_what_is_expected_beside_the_free_drafters(tables, hazards):
    right, agreed = tables
    found = native_counts(right, agreed)[0].expected_beside(False, hazards)
    expected = [reference.beside(right, agreed, EDGES, PRIORS, hazard) for hazard in hazards]
    assert [Beside(*each) for each in found] == expected
    assert all(0 <= each.both <= each.said and each.both <= each.right <= 1 for each in expected)


def test_counts_are_read_when_something_is_expected():
    beside, agreed = native_counts(0, 0)
    [before] = beside.expected_beside(False, [0.8])
    agreed[0, 2] = 0, 50
    [after] = beside.expected_beside(False, [0.8])
    assert after[0] < before[0]


@settings(max_examples=50)
@given(drafts(), st.data())
def test_the_path_to_a_node(nodes, data):
    if not nodes:
        with pytest.raises(ValueError, match="node"):
            draft_of(nodes).chain(0)
        return
    leaf = data.draw(st.integers(0, len(nodes) - 1))
    path = nodes_of(draft_of(nodes).chain(leaf))
    at = leaf
    for i in reversed(range(len(path))):
        assert path[i] == (nodes[at][0], i - 1, *nodes[at][2:])
        at = nodes[at][1]
    assert at == -1


def chain_of(hazards):
    """Nodes of a chain of the tokens 0, 1, ..."""
    probs = np.cumprod(np.array(hazards)).astype(np.float32).tolist()
    return [(n, n - 1, prob, 0) for n, prob in enumerate(probs)]


@st.composite
def situations(draw):
    """The same foresight natively and as the reference, with how much of it may be checked."""
    right, agreed = draw(counts())
    claiming = chain_of(draw(st.lists(st.floats(0.3, 0.99), max_size=20)))
    path = [0] if claiming and draw(st.booleans()) else []
    tokens, sure = reference.claims_after(claiming, path)
    first, later = draw(HAZARD), draw(HAZARD)
    below = draw(st.lists(HAZARD, max_size=4))
    nodes = draw(drafts()) if draw(st.booleans()) else []
    hazards = draw(st.lists(HAZARD, max_size=4))
    chain = draw(st.lists(st.integers(0, 11), min_size=len(hazards), max_size=len(hazards)))
    native = Foresight(
        native_counts(right, agreed)[0], False,
        draft_of(claiming), path, first, later, below, draft_of(nodes), chain, hazards, 3,
    )  # fmt: skip
    expected = [reference.beside(right, agreed, EDGES, PRIORS, hazard) for hazard in sure[:FORESEEN]]
    assert native.claims == (tokens, sure)
    plain = reference.Foresight(tokens, sure, expected, first, later, below, nodes, chain, hazards, 3)
    return native, plain, draw(st.integers(0, len(expected)))


def paths(nodes):
    """Path of tokens -> (probability, source); -1 may come more than once below a node."""
    found = []
    for token, parent, prob, source in nodes:
        found.append(((*(found[parent][0] if parent >= 0 else ()), token), prob, source))
    return sorted(found)


@settings(max_examples=50)
@given(situations(), st.floats(0.1, 5), st.floats(0.1, 5), st.integers(0, 20))
def test_as_many_are_worth_checking(situation, further_ms, token_ms, most):
    native, plain, _ = situation
    assert native.likely == plain.likely
    assert native.worth_checking(most, further_ms, token_ms) == plain.worth_checking(
        most, further_ms, token_ms
    )


@settings(max_examples=50)
@given(situations(), st.sampled_from([1, 2, 4, 8, 16]))
def test_the_same_drafts_may_come(situation, asked):
    native, plain, checked = situation
    found, expected = native.drafts(checked, asked), plain.drafts(checked, asked)
    assert [probability for probability, _ in found] == [probability for probability, _ in expected]
    for (_, drafted), (_, nodes) in zip(found, expected, strict=True):
        mine = paths(nodes_of(drafted))
        theirs = paths(nodes)
        assert [(path, source) for path, _, source in mine] == [(path, source) for path, _, source in theirs]
        assert [prob for _, prob, _ in mine] == pytest.approx(
            [prob for _, prob, _ in theirs], rel=1e-4, abs=1e-6
        )


@settings(max_examples=50)
@given(
    situations(),
    st.lists(st.floats(1, 50), min_size=2, max_size=24),
    st.floats(0, 5),
    st.floats(0, 2),
    st.floats(-1, 5),
    st.booleans(),
)
def test_all_at_once_is_what_each_draft_gives(situation, costs, host_ms, leaf_ms, budget, one_leaf):
    native, _, checked = situation
    asked, spent_ms = [1, 2, 4, 8, 16], [0.5, 1.0, 2.0, 4.0, 8.0]
    step = StepCosts(np.array([np.inf, *costs]), host_ms, leaf_ms, budget, one_leaf)
    found = []
    for n, ms in zip(asked, spent_ms, strict=True):
        expected = np.zeros(2)
        for probability, draft in native.drafts(checked, n):
            *_, gain, took = step.best(draft, ms)
            expected += probability * gain, probability * took
        found.append(native.expected(checked, n, ms, step))
        assert found[-1] == pytest.approx(tuple(expected), rel=1e-12)
    # The best number of times, looked for as long as more is gained.
    rate, gains = 1 / step.plain_ms, [0.0]
    for most, affordable_ms in ((16, 100.0), (4, 100.0), (16, 3.0), (0, 100.0)):
        gain_ms, tokens = native.gain(checked, asked, most, 0.0, 0.5, affordable_ms, rate, step)
        gains, best = [0.0], (0.0, 0.0)
        for n, ms, (all_tokens, took) in zip(asked, spent_ms, found, strict=True):
            if n > most or ms > affordable_ms:
                break
            gains.append(max(all_tokens / rate - took, 0.0))
            if gains[-1] > best[0]:
                best = gains[-1], all_tokens
            if gains[-1] < gains[-2]:
                break
        assert (gain_ms, tokens) == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_what_cannot_be_asked():
    native = Foresight(
        NOTHING, False,
        draft_of([(1, -1, 0.5, 0)]), [], 0.5, 0.5, [], draft_of([]), [], [], 1,
    )  # fmt: skip
    for checked, asked in ((0, 0), (2, 1), (-1, 1), (0, 4097), (0, 2**31 - 1)):
        with pytest.raises(ValueError, match="asked"):
            native.drafts(checked, asked)
    with pytest.raises(ValueError, match="width"):
        native.expected(0, 1, 0.0, StepCosts(np.array([np.inf])))


# --- what the reference means ------------------------------------------------------------------------------


def foresight(hazards, below=(0.5,)):
    expected = [Beside(0.5 + hazard / 4, 0.3 + hazard / 2, hazard * 0.7) for hazard in hazards]
    return reference.Foresight(list(range(len(hazards))), hazards, expected, 0.6, 0.7, list(below))


def test_as_many_claims_are_checked_as_are_expected_to_save_a_call():
    def worth_checking(both, further_ms, token_ms):
        seen = reference.Foresight([], [], [Beside(1.0, 1.0, hazard) for hazard in both], 0.6, 0.7, [])
        return seen.worth_checking(16, further_ms, token_ms)

    assert worth_checking([0.5, 0.5, 0.5], further_ms=1.0, token_ms=4.1) == 2  # the third saves 0.51 ms
    assert worth_checking([0.5, 0.5, 0.5], further_ms=0.5, token_ms=4.1) == 3
    assert worth_checking([0.2], further_ms=1.0, token_ms=4.0) == 0
    assert worth_checking([], 1.0, 4.0) == 0


@settings(max_examples=50)
@given(st.lists(st.floats(0.01, 0.99), max_size=FORESEEN), st.integers(0, FORESEEN))
def test_outcomes_are_a_distribution_and_give_what_the_model_is_expected_to_get_right(hazards, checked):
    seen = foresight(hazards)
    checked = min(checked, len(hazards))
    outcomes = seen.outcomes(checked)
    assert sum(outcome.probability for outcome in outcomes) == pytest.approx(1)
    assert all(0 <= hazard <= 1 for outcome in outcomes for hazard in outcome.hazards)
    # Its first token is there whatever comes of it, and is right as often as is expected.
    first = sum(outcome.probability * outcome.hazards[0] for outcome in outcomes)
    merged = any(not 0 <= n <= 2 for n in (outcome.agreed for outcome in outcomes)) or checked > 2
    if not merged:
        assert first == pytest.approx(seen.expected[0].right if hazards else 0.6)
    # Where all of it is agreed with, the free drafters' claims go on.
    last = outcomes[-1]
    if checked < len(hazards):
        assert last.hazards[checked + 1 :] == hazards[checked + 1 :]
    else:
        assert last.hazards[checked] == (0.7 if checked else 0.6)


def test_asking_more_often_after_a_check():
    seen = foresight([0.8, 0.6], below=())
    one, two = seen.expected
    assert seen.hazards(0, 3) == [one.right, two.right, 0.7]
    # The third token is there without another call if the model says the first claim, and so on.
    assert seen.hazards(2, 1) == pytest.approx(
        [one.right, two.right * one.both / one.right, 0.7 * two.both / two.right]
    )
    assert seen.hazards(1, 2) == pytest.approx([one.right, two.right, 0.7 * one.both / one.right])
