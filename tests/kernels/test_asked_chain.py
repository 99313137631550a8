"""Counts of a source, and its chain in a step: the native classes against the references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.drafters.calibration.model import ModelCalibration
from specx.kernels import _native as native
from specx.kernels._native import BESIDE_SHAPE, MODEL_SHAPE, PLACE_SHAPE
from specx.kernels.reference import asked_chain as reference
from specx.kernels.reference.model_counts import ModelCounts

FIELDS = ("cells", "margins", "forecasts", "all", "beside", "agreed", "tokens")
TOKENS, MARGINS = st.integers(0, 5), st.floats(0, 12)


def both_counts():
    """The same counts twice: natively, and as the reference has them."""
    calibration = ModelCalibration()
    return calibration, ModelCounts(*(getattr(calibration, name).copy() for name in FIELDS))


def assert_same(calibration, plain):
    for name in FIELDS:
        np.testing.assert_allclose(getattr(calibration, name), getattr(plain, name), rtol=1e-12)


def chain_nodes(tokens, hazards):
    """Nodes of a chain."""
    probs = np.cumprod(np.array(hazards)).astype(np.float32).tolist()
    return [(token, i - 1, prob, 0) for i, (token, prob) in enumerate(zip(tokens, probs, strict=True))]


def draft_of(nodes):
    columns = zip(*nodes, strict=True) if nodes else ((), (), (), ())
    types = (np.int32, np.int32, np.float32, np.uint8)
    return native.Draft(*(np.array(column, kind) for column, kind in zip(columns, types, strict=True)))


def paths(nodes):
    """Path of tokens -> probability and source."""
    found = []
    for token, parent, prob, source in nodes:
        found.append(((*(found[parent][0] if parent >= 0 else ()), token), prob, source))
    return sorted(found)


def assert_same_draft(found, nodes):
    columns = found.tokens, found.parents, found.probs, found.sources
    mine, theirs = paths(zip(*(column.tolist() for column in columns), strict=True)), paths(nodes)
    assert [(path, source) for path, _, source in mine] == [(path, source) for path, _, source in theirs]
    probs = [prob for _, prob, _ in theirs]
    assert [prob for _, prob, _ in mine] == pytest.approx(probs, rel=1e-4, abs=1e-6)


@st.composite
def chains(draw):
    hazards = draw(st.lists(st.floats(0.1, 0.95), max_size=5))
    return chain_nodes([draw(TOKENS) for _ in hazards], hazards)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.booleans(), MARGINS, st.integers(1, 9), st.integers(0, 2), st.booleans())),
    st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.booleans(), st.booleans())),
)
def test_counts(scored, beside):
    calibration, plain = both_counts()
    counts = calibration.counts
    for noisy, margin, depth, agreement, right in scored:
        cell, place = counts.cell(noisy, margin, depth, agreement), counts.following(noisy, margin)
        assert (cell, place) == (plain.cell(noisy, margin, depth, agreement), plain.following(noisy, margin))
        assert counts.hazard(cell) == pytest.approx(plain.hazard(cell), rel=1e-12)
        assert counts.forecast(place) == pytest.approx(plain.forecast(place), rel=1e-12)
        for each in (counts, plain):
            each.score(cell, place, right)
    for noisy, free, said, right in beside:
        assert counts.first(noisy, free) == plain.first(noisy, free)
        for each in (counts, plain):
            each.score_said(noisy, free, said)
            each.score_beside(noisy, free, said, right)
        assert counts.expected_beside(noisy, [free])[0] == pytest.approx(
            tuple(
                getattr(plain.expected_beside(noisy, [free])[0], name) for name in ("said", "right", "both")
            )
        )
    assert [counts.later(noisy) for noisy in (False, True)] == pytest.approx(
        [plain.later(noisy) for noisy in (False, True)]
    )
    assert_same(calibration, plain)


def test_what_is_no_cell():
    counts = ModelCalibration().counts
    for cell in ((2, 0, 0, 0), (0, 10, 0, 0), (0, 0, 3, 0), (0, 0, 0, 3), (-1, 0, 0, 0)):
        with pytest.raises(ValueError, match="cell"):
            counts.hazard(cell)
    with pytest.raises(ValueError, match="place"):
        counts.forecast((0, PLACE_SHAPE[1]))
    shapes = [MODEL_SHAPE, MODEL_SHAPE[:2], PLACE_SHAPE, MODEL_SHAPE[:1], BESIDE_SHAPE, BESIDE_SHAPE[:2], ()]
    for wrong in range(len(shapes)):
        given = [np.zeros((*shape, 3 if i == wrong else 2)) for i, shape in enumerate(shapes)]
        with pytest.raises(ValueError, match="shape"):
            native.ModelCounts(*given)


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.booleans(), st.data())
def test_steps_of_a_chain(noisy, one_leaf, data):
    calibration, plain_counts = both_counts()
    below, plain_below = native.Below(), reference.Below()
    chain, plain = native.AskedChain(below, 3), reference.AskedChain(plain_below, 3)
    other, plain_other = native.AskedChain(below, 2), reference.AskedChain(plain_below, 2)
    for _ in range(data.draw(st.integers(1, 3))):
        free = data.draw(chains())
        beside = [data.draw(TOKENS)] if data.draw(st.booleans()) else []
        for each, twin in ((chain, plain), (other, plain_other)):
            each.begin(calibration.counts, noisy, draft_of(free), one_leaf)
            twin.begin(plain_counts, noisy, free, one_leaf)
        other.add(beside, [1.0] * len(beside))
        plain_other.add(beside, [1.0] * len(beside))
        for _ in range(data.draw(st.integers(0, 3))):
            seen, plain_seen = chain.foresee([other]), plain.foresee([plain_other])
            assert seen.claims[0] == plain_seen.tokens
            assert seen.claims[1] == pytest.approx(plain_seen.sure, rel=1e-5)
            for (mine, found), (theirs, nodes) in zip(
                seen.drafts(0, 2), plain_seen.drafts(0, 2), strict=True
            ):
                assert mine == pytest.approx(theirs)
                assert_same_draft(found, nodes)
            tokens = data.draw(st.lists(TOKENS, max_size=2))
            margins = [data.draw(MARGINS) for _ in tokens]
            unclaimed = chain.add(tokens, margins)
            assert unclaimed == plain.add(tokens, margins)
            under = data.draw(chains()) if unclaimed else None
            found = chain.draft(None if under is None else draft_of(under), [other])
            assert_same_draft(found, plain.draft(under, [plain_other]))
            assert below.hazards() == pytest.approx(plain_below.hazards(), rel=1e-5)
        assert chain.tokens == plain.tokens and len(chain) == len(plain.tokens)
        emitted = data.draw(st.sampled_from([chain.tokens, [9], [*chain.tokens[:1], 9]]))
        scored, plain_scored = chain.score(emitted), plain.score(emitted)
        assert [right for _, right in scored] == [right for _, right in plain_scored]
        assert [hazard for hazard, _ in scored] == pytest.approx([hazard for hazard, _ in plain_scored])
        assert chain.tokens == []
    assert_same(calibration, plain_counts)


def test_what_cannot_be_added():
    chain = native.AskedChain(native.Below(), 1)
    for call in (chain.foresee, lambda: chain.add([1], [0.5])):
        with pytest.raises(ValueError, match="begun"):
            call()
    chain.begin(ModelCalibration().counts, False, draft_of([]), True)
    with pytest.raises(ValueError, match="length"):
        chain.add([1, 2], [0.5])
    for call in (chain.foresee, lambda others: chain.draft(None, others)):
        with pytest.raises(ValueError, match="None"):
            call([None])
