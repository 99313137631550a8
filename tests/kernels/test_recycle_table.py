"""The native recycle table against dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.kernels._native import RecycleTable
from specx.kernels.reference.drafts import RecycleTableReference


def ints(values):
    return np.array(values, np.int32)


@settings(max_examples=80)
@given(
    st.integers(1, 40),
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 5)), max_size=20),
    st.integers(0, 2**32 - 1),
)
def test_lookup_matches_reference(vocab_size, k, contexts, seed):
    contexts = [(min(p, vocab_size - 1), min(t, vocab_size - 1)) for p, t in contexts]
    rows = np.random.default_rng(seed).normal(size=(len(contexts), vocab_size)).round(1).astype(np.float32)
    native, reference = RecycleTable(vocab_size, k), RecycleTableReference(k)
    native.update(ints([p for p, _ in contexts]), ints([t for _, t in contexts]), rows)
    for (previous, token), row in zip(contexts, rows, strict=True):
        reference.update(previous, token, row)
    for previous in range(-1, min(6, vocab_size)):
        for token in range(min(6, vocab_size)):
            ids, logits, order = native.lookup(previous, token)
            assert (ids.tolist(), logits.tolist(), order) == reference.lookup(previous, token)


def test_pair_is_preferred_and_token_is_the_fallback():
    table = RecycleTable(4, 2)
    table.update(ints([1, 3]), ints([2, 2]), np.array([[9, 0, 0, 1], [0, 9, 1, 0]], np.float32))
    assert table.lookup(1, 2)[0].tolist() == [0, 3]
    assert table.lookup(1, 2)[2] == 2
    assert table.lookup(0, 2)[0].tolist() == [1, 2]  # the last row of token 2
    assert table.lookup(0, 2)[2] == 1
    assert table.lookup(0, 1)[2] == 0


def test_a_full_hash_table_overwrites_instead_of_mixing_contexts():
    table = RecycleTable(50, 1, contexts=1)
    rows = np.eye(50, dtype=np.float32)
    previous = ints(range(50))
    table.update(previous, ints([7] * 50), rows)
    orders = [table.lookup(p, 7)[2] for p in range(50)]
    assert orders == [1] * 49 + [2]


def test_forbidden_tokens_are_not_candidates():
    table = RecycleTable(3, 3)
    table.update(ints([-1]), ints([0]), np.array([[-np.inf, 2, np.nan]], np.float32))
    assert table.lookup(-1, 0)[0].tolist() == [1]


def test_update_top_equals_update():
    rows = np.random.default_rng(1).normal(size=(5, 30)).astype(np.float32)
    previous, tokens = ints([1, 2, 3, 4, 5]), ints([6, 7, 8, 9, 6])
    ids = np.argsort(-rows, axis=1)[:, :8].astype(np.int32)
    full, top = RecycleTable(30), RecycleTable(30)
    full.update(previous, tokens, rows)
    top.update_top(previous, tokens, ids, np.take_along_axis(rows, ids, axis=1))
    for p, t in zip(previous.tolist(), tokens.tolist(), strict=True):
        assert [x.tolist() for x in full.lookup(p, t)[:2]] == [x.tolist() for x in top.lookup(p, t)[:2]]


def test_export_and_restore():
    rows = np.random.default_rng(2).normal(size=(4, 6)).astype(np.float32)
    table, copy = RecycleTable(6), RecycleTable(6)
    table.update(ints([0, 1, 2, 3]), ints([5, 1, 5, 0]), rows)
    tokens, ids, logits = table.export()
    assert tokens.tolist() == [0, 1, 5]
    assert ids.shape == logits.shape == (3, 8)
    copy.restore(tokens, ids, logits)
    for token in range(6):
        assert [x.tolist() for x in copy.lookup(-1, token)[:2]] == [
            x.tolist() for x in table.lookup(-1, token)[:2]
        ]


@pytest.mark.parametrize(
    ("tokens", "ids"), [([0], [[6, 1]]), ([6], [[0, 1]]), ([-1], [[0, 1]]), ([0, 1], [[0, 1]])]
)
def test_restore_refuses_rows_of_another_vocabulary(tokens, ids):
    with pytest.raises((ValueError, IndexError)):
        RecycleTable(6).restore(ints(tokens), ints(ids), np.zeros((len(ids), 2), np.float32))


def test_logits_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="vocabulary"):
        RecycleTable(6).update(ints([0]), ints([1]), np.zeros((1, 5), np.float32))
