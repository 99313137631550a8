"""The native suffix automaton against brute force over the texts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.kernels._native import SuffixAutomaton
from specx.kernels.reference.drafts import SuffixTexts


def ints(values):
    return np.array(values, np.int32)


def one_text(tokens=()):
    automaton = SuffixAutomaton()
    text = automaton.begin()
    automaton.append(text, ints(tokens))
    return automaton, text


def matches(automaton, text, count):
    return tuple(found.tolist() for found in automaton.match(text, count))


# Few tokens: chains of suffixes stay within the 32 links that a query follows.
STEPS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=28)


@settings(max_examples=200)
@given(apart=st.booleans(), steps=STEPS, count=st.integers(0, 6), ended=st.sets(st.integers(0, 4)))
def test_texts_that_grow_side_by_side_match_brute_force_after_every_token(apart, steps, count, ended):
    native, reference = SuffixAutomaton(apart), SuffixTexts(apart=apart)
    texts = {}
    for name, token in steps:
        if name not in texts:
            texts[name] = native.begin()
            assert reference.begin() == texts[name]
        native.append(texts[name], ints([token]))
        reference.append(texts[name], [token])
        for text in texts.values():
            assert matches(native, text, count) == reference.match(text, count)
    for name in ended & texts.keys():
        native.end(texts[name])
        assert matches(native, texts[name], count) == ([], [])
    tokens, of = native.tokens()
    assert list(zip(tokens.tolist(), of.tolist(), strict=True)) == reference.places
    assert len(native) == len(steps)


@settings(max_examples=100)
@given(steps=STEPS, keep=st.integers(0, 30), later=STEPS, ended=st.sets(st.integers(0, 4)))
def test_what_is_left_after_forgetting_is_as_if_nothing_had_been_before(steps, keep, later, ended):
    native, reference = SuffixAutomaton(apart=True), SuffixTexts(apart=True)
    for text in range(5):
        assert native.begin() == reference.begin() == text
    for text, token in steps:
        native.append(text, ints([token]))
    for text in ended:
        native.end(text)
    native.forget(keep)
    for text, token in steps[max(len(steps) - keep, 0) :]:
        reference.append(text, [token])
    for text, token in later:
        if text in ended:
            with pytest.raises(ValueError, match="ended"):
                native.append(text, ints([token]))
            continue
        native.append(text, ints([token]))
        reference.append(text, [token])
    assert native.begin() == 5  # no number is given twice
    for text in set(range(5)) - ended:
        assert matches(native, text, 4) == reference.match(text, 4)


def test_most_recent_occurrence_wins():
    automaton, text = one_text([1, 2, 7, 1, 2, 8, 1, 2])
    assert matches(automaton, text, 3) == ([4], [2])


def test_a_text_is_told_what_another_one_has_written_so_far():
    automaton = SuffixAutomaton(apart=True)
    first, second = automaton.begin(), automaton.begin()
    automaton.append(first, ints([1, 2, 3]))
    automaton.append(second, ints([9, 1, 2]))
    assert matches(automaton, second, 1) == ([1], [2])
    assert matches(automaton, first, 1) == ([], [])  # nothing has followed 3 yet
    automaton.append(first, ints([1, 2]))
    assert matches(automaton, first, 1) == ([], [])  # its own words are not told, and the second has no more


def test_no_match_spans_two_texts():
    automaton = SuffixAutomaton()
    before, text = automaton.begin(), automaton.begin()
    automaton.append(before, ints([1, 2, 3]))
    automaton.append(text, ints([4, 1, 2]))
    assert matches(automaton, text, 1) == ([1], [2])
    automaton.append(text, ints([3]))  # 1 2 3 occurred, but nothing followed it
    assert matches(automaton, text, 1) == ([], [])


def test_very_repetitive_text_matches_all_but_the_period():
    automaton, text = one_text(np.zeros(5000, np.int32))
    assert matches(automaton, text, 1) == ([4998], [4999])
    automaton.clear()
    text = automaton.begin()
    automaton.append(text, np.tile(ints([1, 2, 3]), 2000))
    assert matches(automaton, text, 1) == ([5996], [5997])


def test_long_random_text_matches_brute_force():
    tokens = np.random.default_rng(0).integers(0, 12, 300)
    native, text = one_text(tokens)
    reference = SuffixTexts()
    reference.append(reference.begin(), tokens)
    assert matches(native, text, 8) == reference.match(0, 8)


def test_clear_forgets():
    automaton, text = one_text([1, 1, 1])
    automaton.clear()
    assert len(automaton) == 0
    assert matches(automaton, text, 4) == ([], [])
    with pytest.raises(ValueError, match="ended"):
        automaton.append(text, ints([1]))


def test_negative_tokens_are_refused():
    with pytest.raises(ValueError, match="negative"):
        one_text([3, -1])
