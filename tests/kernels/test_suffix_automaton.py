"""The native suffix automaton against brute force over the text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.kernels._native import SuffixAutomaton
from specx.kernels.reference.drafts import SEPARATOR, SuffixText


def ints(values):
    return np.array(values, np.int32)


# Short texts: chains of suffixes stay within the 32 links that a query follows.
TEXTS = st.lists(st.integers(SEPARATOR, 3), max_size=28)


@settings(max_examples=150)
@given(TEXTS, st.integers(0, 6))
def test_matches_brute_force_after_every_token(text, count):
    native, reference = SuffixAutomaton(), SuffixText()
    for token in text:
        if token == SEPARATOR:
            native.separate()
            reference.separate()
        else:
            native.append(ints([token]))
            reference.append([token])
        ends, lengths = native.match(count)
        assert (ends.tolist(), lengths.tolist()) == reference.match(count)
    assert native.text().tolist() == reference.text
    assert len(native) == len(text)


def test_most_recent_occurrence_wins():
    automaton = SuffixAutomaton()
    automaton.append(ints([1, 2, 7, 1, 2, 8, 1, 2]))
    ends, lengths = automaton.match(3)
    assert (ends.tolist(), lengths.tolist()) == ([4], [2])


def test_no_match_spans_a_separator():
    automaton = SuffixAutomaton()
    automaton.append(ints([1, 2, 3]))
    automaton.separate()
    automaton.append(ints([4, 1, 2]))
    assert [a.tolist() for a in automaton.match(1)] == [[1], [2]]
    automaton.append(ints([3]))  # 1 2 3 occurred, but nothing followed it
    assert [a.tolist() for a in automaton.match(1)] == [[], []]


def test_very_repetitive_text_matches_all_but_the_period():
    automaton = SuffixAutomaton()
    automaton.append(np.zeros(5000, np.int32))
    ends, lengths = automaton.match(1)
    assert (ends.tolist(), lengths.tolist()) == ([4998], [4999])
    automaton.clear()
    automaton.append(np.tile(ints([1, 2, 3]), 2000))
    ends, lengths = automaton.match(1)
    assert (ends.tolist(), lengths.tolist()) == ([5996], [5997])


def test_long_random_text_matches_brute_force():
    tokens = np.random.default_rng(0).integers(0, 12, 400).astype(np.int32)
    native, reference = SuffixAutomaton(), SuffixText()
    native.append(tokens)
    reference.append(tokens)
    assert tuple(a.tolist() for a in native.match(8)) == reference.match(8)


def test_clear_forgets():
    automaton = SuffixAutomaton()
    automaton.append(ints([1, 1, 1]))
    automaton.clear()
    assert len(automaton) == 0
    assert automaton.match(4)[0].tolist() == []


def test_negative_tokens_are_refused():
    with pytest.raises(ValueError, match="negative"):
        SuffixAutomaton().append(ints([3, -1]))
