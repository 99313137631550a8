"""Drafts of the free drafters: shape, what they follow, and what their probabilities mean."""

from __future__ import annotations

import numpy as np
import pytest

from specx.backends.base import Output
from specx.drafters.base import EMPTY_DRAFT
from specx.drafters.calibration.free import CELLS, Calibration
from specx.drafters.free import FreeDrafter
from specx.drafters.none import NoDrafter

VOCAB = 64


def one_hot_rows(tokens, scale=9.0):
    rows = np.zeros((len(tokens), VOCAB), np.float32)
    rows[np.arange(len(tokens)), tokens] = scale
    return rows


def decode(drafter, stream, start, width, leaves=8):
    """Run the decode loop over a known stream; yields (draft, accepted rows) of every step."""
    at = start
    while at < len(stream):
        draft = drafter.propose(width, leaves)
        path, node = [], -1
        while at + len(path) < len(stream):
            below = np.flatnonzero((draft.parents == node) & (draft.tokens == stream[at + len(path)]))
            if not len(below):
                break
            node = int(below[0])
            path.append(node)
        emitted = stream[at : at + len(path) + 1]
        rows = np.random.default_rng(at).normal(size=(len(draft) + 1, VOCAB)).astype(np.float32)
        following = stream[at : at + len(path) + 1]
        rows[[0, *(i + 1 for i in path)][: len(following)]] = one_hot_rows(following)
        drafter.observe(emitted, draft, Output(rows))
        yield draft, path
        at += len(emitted)


def test_draft_follows_repeated_text():
    drafter = FreeDrafter(VOCAB)
    phrase = list(range(10, 22))
    drafter.begin(phrase + phrase[:6])
    assert drafter.propose(6, 1).tokens.tolist() == phrase[6:]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_are_well_formed_trees_best_first(temperature):
    rng = np.random.default_rng(3)
    stream = rng.integers(0, 6, 300).tolist()
    drafter = FreeDrafter(VOCAB)
    drafter.begin(stream[:50], seed=4, temperature=temperature)
    sizes = []
    for leaves, start, stop in ((1, 50, 170), (3, 170, 300)):
        for draft, _ in decode(drafter, stream[:stop], start, 12, leaves):
            n = len(draft)
            sizes.append(n)
            assert (draft.tokens.dtype, draft.parents.dtype) == (np.int32, np.int32)
            assert (draft.probs.dtype, draft.sources.dtype) == (np.float32, np.uint8)
            assert n <= 12
            assert (draft.parents < np.arange(n)).all()
            assert (draft.parents >= -1).all()
            assert (np.diff(draft.probs) <= 0).all()
            assert ((draft.probs > 0) & (draft.probs <= 1)).all()
            assert len(set(zip(draft.parents.tolist(), draft.tokens.tolist(), strict=True))) == n
            assert n - len(set(draft.parents.tolist()) - {-1}) <= leaves
            assert (draft.sources < len(drafter.source_names)).all()
    assert max(sizes) == 12


def test_probabilities_become_the_observed_frequencies():
    # Every 2 is followed by 3 with probability 0.7, else by 4: after a while the drafts know.
    rng = np.random.default_rng(5)
    stream = []
    for _ in range(1500):
        stream += [2, 3 if rng.random() < 0.7 else 4]
    drafter = FreeDrafter(VOCAB)
    drafter.begin(stream[:10])
    predicted, accepted = 0.0, 0
    for i, (draft, path) in enumerate(decode(drafter, stream, 10, 3)):
        if i > 200:
            predicted += float(draft.probs.sum())
            accepted += len(path)
    assert accepted > 800
    assert predicted == pytest.approx(accepted, rel=0.05)


def test_rows_of_rejected_nodes_are_learned_too():
    drafter = FreeDrafter(VOCAB, sources=("recycle",))
    drafter.begin([1, 2])
    drafter.observe_rows(np.array([1, 2], np.int32), one_hot_rows([2, 7]))
    draft = drafter.propose(1, 1)
    assert draft.tokens.tolist() == [7]
    drafter.observe([9], draft, Output(one_hot_rows([9, 33])))  # 7 was wrong; had it been right, 33 followed
    drafter.observe([2], EMPTY_DRAFT, Output(one_hot_rows([2])))
    drafter.observe([7], EMPTY_DRAFT, Output(one_hot_rows([7])))
    assert drafter.propose(1, 1).tokens.tolist() == [33]


def test_the_noise_of_the_position_is_used_when_it_helps():
    from specx.kernels._native import gumbel

    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (VOCAB, VOCAB)).astype(np.float32)
    drafter = FreeDrafter(VOCAB, sources=("recycle",))
    drafter.begin([0], seed=11, temperature=1.0)
    last, right, best = 0, 0, 0
    for position in range(1, 1500):
        draft = drafter.propose(1, 1)
        y = int(np.argmax(logits[last] + gumbel(11, position, np.arange(VOCAB, dtype=np.int32))))
        if position > 500:
            right += draft.tokens.tolist() == [y]
            best += int(np.argmax(logits[last])) == y
        drafter.observe([y], EMPTY_DRAFT, Output(logits[last : last + 1]))
        last = y
    assert right > 2 * best


def test_calibration_survives_a_save(tmp_path):
    drafter = FreeDrafter(VOCAB)
    stream = np.random.default_rng(1).integers(0, 4, 200).tolist()
    drafter.begin(stream[:20])
    list(decode(drafter, stream, 20, 4))
    np.savez(tmp_path / "calibration.npz", **drafter.calibration.to_arrays())
    with np.load(tmp_path / "calibration.npz") as arrays:
        restored = Calibration.from_arrays(arrays)
    np.testing.assert_array_equal(restored.hazards(), drafter.calibration.hazards())
    assert (drafter.calibration.hazards() != Calibration().hazards()).any()
    assert "match length: 1 " in restored.summary()


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"counts": np.zeros((3, 2), np.float32)},
        {"counts": np.full((CELLS, 2), np.nan, np.float32)},
        {"counts": np.ones((CELLS, 2), np.float32) * np.array([2, 1], np.float32)},
    ],
)
def test_damaged_calibration_is_refused(arrays):
    with pytest.raises(ValueError, match="calibration"):
        Calibration.from_arrays(arrays)


def test_rows_survive_a_save():
    drafter, other = FreeDrafter(VOCAB), FreeDrafter(VOCAB)
    drafter.begin([1, 2])
    drafter.observe_rows(np.array([1, 2], np.int32), one_hot_rows([2, 7]))
    other.restore(drafter.to_arrays())
    other.begin([2])
    assert other.propose(1, 1).tokens.tolist() == [7]
    with pytest.raises(ValueError, match="rows"):
        FreeDrafter(5).restore(drafter.to_arrays())


def test_old_text_makes_room(monkeypatch):
    monkeypatch.setattr("specx.drafters.free.MAX_TEXT", 100)
    drafter = FreeDrafter(VOCAB)
    drafter.begin(list(range(60)))
    drafter.begin([7, 7, *range(60)])
    text = drafter.history().tolist()
    assert text == [*range(10, 60), -1, 7, 7, *range(60)]


def test_unknown_sources_are_refused():
    with pytest.raises(ValueError, match="suffix"):
        FreeDrafter(VOCAB, sources=("magic",))


def test_no_drafter_drafts_nothing():
    drafter = NoDrafter()
    drafter.begin([1, 2, 1, 2], seed=1, temperature=0.5)
    assert len(drafter.propose(8, 8)) == 0
    assert drafter.cost_ms == 0
