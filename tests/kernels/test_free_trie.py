"""The native trie against a tree grown by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.kernels._native import (
    RECYCLE_SHAPE,
    SUFFIX_SHAPE,
    Corpus,
    Draft,
    FreeTrie,
    LogitRows,
    RecycleTable,
    SuffixAutomaton,
    gumbel,
    suffix_array,
)
from specx.kernels.reference.drafts import CorpusReference, FreeTrieReference, SuffixTexts

CELLS = math.prod(SUFFIX_SHAPE) + math.prod(RECYCLE_SHAPE)
VOCAB = 12


def ints(values):
    return np.array(values, np.int32)


def noise(seed, position, token):
    return float(gumbel(seed, position, ints([token]))[0])


TOKEN = st.integers(0, 3)
STEP = st.fixed_dictionaries(
    {
        "rows": st.lists(st.tuples(st.integers(-1, 3), TOKEN), max_size=3),
        "logits": st.integers(0, 2**32 - 1),
        "limit": st.sampled_from([0, 1, 3, 8, 16]),
        "leaves": st.sampled_from([1, 2, 4, 64]),
        "coupled": st.booleans(),
        "path": st.lists(TOKEN, max_size=3),
        "emitted": st.lists(TOKEN, min_size=1, max_size=3),
        "others": st.lists(st.tuples(st.integers(0, 2), TOKEN), max_size=3),
    }
)


@settings(max_examples=100)
@given(
    use=st.sampled_from([(True, True), (True, False), (False, True)]),
    shared=st.none() | st.integers(0, 12),
    context=st.lists(TOKEN, min_size=1, max_size=10),
    temperature=st.sampled_from([0.0, 0.8]),
    steps=st.lists(STEP, max_size=6),
    prior_seed=st.integers(0, 100),
    corpus=st.none() | st.lists(st.integers(-1, 3), max_size=60),
)
def test_native_equals_reference(use, shared, context, temperature, steps, prior_seed, corpus):
    prior = np.random.default_rng(prior_seed).uniform(0.05, 0.9, CELLS).astype(np.float32)
    counts, counts_reference = np.zeros((2, CELLS, 2), np.float32)
    table = RecycleTable(VOCAB)
    indexed = None if corpus is None else Corpus(ints(corpus), suffix_array(ints(corpus)))
    written = None if shared is None else SuffixAutomaton(apart=True)
    native = FreeTrie(table, counts, prior, *use, written, indexed)
    known = None if corpus is None else CorpusReference(corpus)
    brute = SuffixTexts(apart=True) if shared is not None and use[0] else None
    reference = FreeTrieReference(counts_reference, prior, noise, *use, known, brute)
    others = [(written.begin(), brute.begin()) for _ in range(3)] if written and brute else []
    native.begin(ints(context), shared or 0)
    reference.begin(context, shared or 0)
    position = len(context)
    for step in steps:
        rows = (
            np.random.default_rng(step["logits"]).normal(0, 2, (len(step["rows"]), VOCAB)).astype(np.float32)
        )
        table.update(ints([p for p, _ in step["rows"]]), ints([t for _, t in step["rows"]]), rows)
        for (previous, token), row in zip(step["rows"], rows, strict=True):
            reference.table.update(previous, token, row)
        for other, token in step["others"] if others else ():
            written.append(others[other][0], ints([token]))
            brute.append(others[other][1], [token])
        settings_ = 5, position, temperature, step["coupled"], step["path"]
        draft = native.grow(step["limit"], step["leaves"], *settings_)
        expected = reference.grow(step["limit"], step["leaves"], *settings_)
        nodes = list(zip(draft.tokens.tolist(), draft.parents.tolist(), draft.sources.tolist(), strict=True))
        assert nodes == [(t, p, s) for t, p, _, s in expected]
        np.testing.assert_allclose(draft.probs, [p for _, _, p, _ in expected], rtol=1e-6)
        native.observe(step["emitted"], 5, position, temperature)
        reference.observe(step["emitted"], 5, position, temperature)
        np.testing.assert_array_equal(counts, counts_reference)
        position += len(step["emitted"])
    if brute:
        tokens, texts = written.tokens()
        assert list(zip(tokens.tolist(), texts.tolist(), strict=True)) == brute.places


def new_trie(hazard=0.5, **options):
    counts, prior = np.zeros((CELLS, 2), np.float32), np.full(CELLS, hazard, np.float32)
    table = RecycleTable(VOCAB)
    return FreeTrie(table, counts, prior, **options), counts, table


def test_context_that_extends_the_text_before_continues_it():
    written = SuffixAutomaton(apart=True)
    trie, *_ = new_trie(hazard=0.9, written=written)
    trie.begin(ints([1, 2, 3]), 2)
    trie.append(4)
    trie.begin(ints([1, 2, 3, 4, 5, 1]), 1)
    assert trie.grow(2, 1).tokens.tolist() == [2, 3]
    assert [column.tolist() for column in written.tokens()] == [[2, 3, 4, 5, 1], [0] * 5]
    trie.begin(ints([1, 2, 9]), 1)
    assert [column.tolist() for column in written.tokens()] == [[2, 3, 4, 5, 1, 9], [0, 0, 0, 0, 0, 1]]


def test_what_others_have_written_is_a_source_of_its_own():
    written = SuffixAutomaton(apart=True)
    trie, counts, table = new_trie(hazard=0.9, written=written)
    other = FreeTrie(table, counts, np.full(CELLS, 0.9, np.float32), written=written)
    other.begin(ints([1, 2]), 2)
    trie.begin(ints([9, 1, 2]), 2)
    assert len(trie.grow(2, 1).tokens) == 0
    other.append(3)
    other.append(4)
    found = trie.grow(2, 1)
    assert (found.tokens.tolist(), found.parents.tolist(), found.sources.tolist()) == (
        [3, 4],
        [-1, 0],
        [2, 2],
    )
    assert len(other.grow(2, 1).tokens) == 0  # what it wrote itself is no other text


def test_a_tree_grows_below_a_path():
    trie, *_ = new_trie(hazard=0.9)
    trie.begin(ints([1, 2, 3, 4, 5, 9, 1]))
    assert trie.grow(2, 1).tokens.tolist() == [2, 3]
    assert trie.grow(2, 1, path=[2, 3]).tokens.tolist() == [4, 5]
    assert trie.grow(2, 1, path=[2, 8]).tokens.tolist() == []  # nothing followed 8
    assert trie.grow(2, 1).tokens.tolist() == [2, 3]  # the path was not written
    with pytest.raises(IndexError):
        trie.grow(2, 1, path=[VOCAB])
    with pytest.raises(IndexError):
        trie.grow(2, 1, path=[-1])


def test_calibration_is_shared_not_copied():
    trie, counts, table = new_trie()
    trie.begin(ints([1, 2, 1]))
    trie.observe([2])
    assert counts.sum() == 2  # one hit, one trial
    with pytest.raises(TypeError):
        FreeTrie(table, np.zeros((CELLS, 2)), np.zeros(CELLS, np.float32))


def draft_of(tokens, parents, probs):
    sources = np.zeros(len(tokens), np.uint8)
    return Draft(ints(tokens), ints(parents), np.array(probs, np.float32), sources)


def test_update_tree_learns_every_node_under_its_parent():
    trie, _, table = new_trie()
    logits = LogitRows(np.eye(VOCAB, dtype=np.float32)[:4])
    verified = draft_of([5, 6, 7], [-1, 0, -1], [0.5, 0.4, 0.3])
    trie.update_tree(8, 9, verified, logits)
    best = {pair: int(table.lookup(*pair)[0][0]) for pair in [(8, 9), (9, 5), (5, 6), (9, 7)]}
    assert best == {(8, 9): 0, (9, 5): 1, (5, 6): 2, (9, 7): 3}
    with pytest.raises(ValueError, match="one row"):
        trie.update_tree(8, 9, Draft.of_chain([5, 6, 7, 8], [1.0] * 4), logits)


def test_update_tree_learns_nothing_of_what_fills_a_step_up():
    trie, _, table = new_trie()
    logits = LogitRows(np.eye(VOCAB, dtype=np.float32)[:3])
    trie.update_tree(8, 9, Draft.of_chain([5], [0.5]).padded(2), logits)
    assert int(table.lookup(9, 5)[0][0]) == 1
    assert table.lookup(5, 0)[2] == 0


def test_tokens_outside_the_vocabulary_are_refused():
    trie, *_ = new_trie()
    with pytest.raises(IndexError):
        trie.begin(ints([VOCAB]))


def test_tries_share_a_table_and_counts_and_no_text():
    one, counts, table = new_trie()
    other = FreeTrie(table, counts, np.full(CELLS, 0.5, np.float32))
    one.begin(ints([1, 2, 3, 1]))
    other.begin(ints([7, 1]))
    assert other.grow(1, 1).tokens.tolist() == []  # what the other one was given is not searched
    table.update(ints([7]), ints([1]), np.eye(VOCAB, dtype=np.float32)[5:6])
    assert other.grow(1, 1).tokens.tolist() == [5]
    one.update_tree(9, 4, Draft.of_chain([], []), LogitRows(np.eye(VOCAB, dtype=np.float32)[6:7]))
    other.observe([4])
    assert other.grow(1, 1).tokens.tolist() == [6]
    before = counts.sum()
    one.observe([2])
    assert counts.sum() > before


def test_a_table_lives_as_long_as_the_tries_that_use_it():
    trie, _, table = new_trie()
    table.update(ints([-1]), ints([3]), np.eye(VOCAB, dtype=np.float32)[5:6])
    del table
    trie.begin(ints([3]))
    assert trie.grow(1, 1).tokens.tolist() == [5]
    with pytest.raises(TypeError):
        FreeTrie(None, np.zeros((CELLS, 2), np.float32), np.zeros(CELLS, np.float32))


@pytest.mark.parametrize(("repeated", "found"), [(150, 0.75), (300, 0.25)])
def test_a_token_is_looked_for_behind_64_suffixes_and_behind_the_root(repeated, found):
    # A text of one token has as many suffixes as tokens, and each of them is a state of its own.
    prior = np.full(SUFFIX_SHAPE, 0.25, np.float32)
    prior[:, :, -1] = 0.75  # of long matches
    prior = np.concatenate([prior.ravel(), np.zeros(math.prod(RECYCLE_SHAPE), np.float32)])
    trie = FreeTrie(RecycleTable(VOCAB), np.zeros((CELLS, 2), np.float32), prior, use_recycle=False)
    trie.begin(ints([1] * 100 + [2, 3] + [1] * repeated))
    after = trie.grow(1, 1, path=[2])
    assert (after.tokens.tolist(), after.probs.tolist()) == ([3], [found])


def test_a_tree_of_certain_tokens_ends():
    counts = np.full((CELLS, 2), 1e30, np.float32)
    trie = FreeTrie(RecycleTable(VOCAB), counts, np.full(CELLS, 0.5, np.float32))
    trie.begin(ints([1] * 10))
    assert len(trie.grow(2**31 - 1, 1)) == 4096
