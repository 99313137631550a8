"""The native suffix array and what is found with it, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.kernels._native import Corpus, suffix_array
from specx.kernels.reference.drafts import CorpusReference


def ints(values):
    return np.array(values, np.int32)


def corpus_of(tokens):
    tokens = ints(tokens)
    return Corpus(tokens, suffix_array(tokens))


@given(st.lists(st.integers(-1, 3), max_size=60) | st.lists(st.integers(-1, 200), max_size=60))
def test_suffixes_are_sorted(tokens):
    expected = sorted(range(len(tokens)), key=lambda i: tokens[i:])
    assert suffix_array(ints(tokens)).tolist() == expected


def test_a_long_repetitive_text_is_sorted():
    tokens = np.random.default_rng(0).integers(0, 3, 5000).astype(np.int32)
    tokens[2000:4000] = tokens[:2000]
    text = tokens.tolist()
    assert suffix_array(tokens).tolist() == sorted(range(5000), key=lambda i: text[i:])


@settings(max_examples=150)
@given(st.lists(st.integers(-1, 3), max_size=80), st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_the_longest_match_and_what_follows_are_those_of_brute_force(tokens, text):
    reference = CorpusReference(tokens)
    string = reference.longest(text)
    length, occurrences, follow = corpus_of(tokens).match(text)
    assert length == len(string)
    if string:
        assert occurrences == len(reference.occurrences(string))
        assert follow == reference.continuations(string)


def test_a_match_longer_than_what_is_looked_for_anew_goes_on_and_ends():
    phrase = np.random.default_rng(1).permutation(300).tolist()
    corpus = corpus_of([*phrase, -1, 7, 8, 9])
    assert corpus.match(phrase[:200])[:2] == (200, 1)
    assert corpus.match([*phrase[:200], 7])[0] >= 1
    assert corpus.match([*phrase[:200], 301]) == (0, 0, [])


def test_the_most_frequent_continuation_comes_first():
    tokens = [t for i in range(100) for t in (1, 2, 5 if i % 4 else 9, -1)]
    length, occurrences, follow = corpus_of(tokens).match([3, 1, 2])
    assert (length, occurrences) == (2, 100)
    assert follow == [(5, 0.75), (9, 0.25)]


def test_no_match_spans_a_separator():
    corpus = corpus_of([1, 2, -1, 3, 4])
    assert corpus.match([2, 3]) == (1, 1, [(4, 1.0)])
    assert corpus.match([1, 2]) == (2, 1, [])
    assert corpus.match([3, 4]) == (2, 1, [])


def test_what_a_damaged_index_says_stays_inside_the_text():
    rng = np.random.default_rng(2)
    tokens = rng.integers(-5, 9, 500).astype(np.int32)
    for suffixes in (rng.integers(-(2**31), 2**31 - 1, 500), rng.permutation(500), np.full(500, 499)):
        corpus = Corpus(tokens, suffixes.astype(np.int32))
        for _ in range(50):
            length, _, follow = corpus.match(rng.integers(0, 9, 80).tolist())
            assert 0 <= length <= 80
            assert all(0 <= token < 9 for token, _ in follow)


def test_arrays_that_are_no_corpus_are_refused():
    with pytest.raises(ValueError, match="length"):
        Corpus(ints([1, 2]), ints([0]))
    for token in (-2, 1 << 24, (1 << 31) - 1):
        with pytest.raises(ValueError, match="of no vocabulary"):
            suffix_array(ints([token]))


def test_an_empty_corpus_matches_nothing():
    assert len(corpus_of([])) == 0
    assert corpus_of([]).match([1, 2]) == (0, 0, [])
