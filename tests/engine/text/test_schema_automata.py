"""Patterns and bounds as automata, against Python's re and decimal."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from specx.engine.text.schema.automaton import everything, of_lengths, of_words
from specx.engine.text.schema.number import Bounds, between
from specx.engine.text.schema.pattern_automaton import containing, matching

ATOMS = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", r"\W", r"\.", "\\-", "[b-d-]", r"\x61", r"\u0062"]
)
EDGES = st.sampled_from(["^", "$", r"\b", r"\B"])
SUFFIX = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{1,}", "*?"])
PATTERNS = st.recursive(
    st.builds(lambda atom, suffix: atom + suffix, ATOMS, SUFFIX) | EDGES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map("".join),
        st.builds("({}|{})".format, inner, inner),
        st.builds("(?:{}){}".format, inner, SUFFIX),
    ),
    max_leaves=6,
)
STRINGS = st.text(st.sampled_from("ab1.-_ é"), max_size=6)


@settings(max_examples=80)
@given(pattern=PATTERNS, text=STRINGS)
def test_patterns_match_what_those_of_python_match(pattern, text):
    assume(text or r"\B" not in pattern)  # Python's \B does not match the empty text
    theirs = re.compile(pattern, re.ASCII)
    assert containing(pattern).accepts(text) == bool(theirs.search(text))
    assert matching(pattern).accepts(text) == bool(theirs.fullmatch(text))


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        ("^a$", "a", "a\n"),
        ("^.$", "\x85", "\u2028"),
        (r"^\s$", "\ufeff", "\x1c"),
        (r"^\u{1F600}\uD83D\uDE00$", "😀😀", "😀"),
        (r"^[\b\/\]]+$", "\b/]", "\\"),
        (r"^\cJ\0\t$", "\n\0\t", "J0t"),
        (r"^(?<year>\d{4})$", "2024", "year"),
        ("^é[à-ü]$", "éê", "e\u0301ê"),
        ("", "anything", None),
        ("^$", "", "a"),
        ("[]", None, "a"),
        ("^[^]$", "\n", ""),
    ],
)
def test_where_patterns_differ_from_those_of_python(pattern, right, wrong):
    strings = containing(pattern)
    assert right is None or strings.accepts(right)
    assert wrong is None or not strings.accepts(wrong)


def test_sets_of_strings():
    words = of_words(["ab", "abc", ""])
    assert [words.accepts(text) for text in ("", "a", "ab", "abc", "abcd")] == [
        True,
        False,
        True,
        True,
        False,
    ]
    others = everything().without(words)
    assert [others.accepts(text) for text in ("", "a", "ab", "x")] == [False, True, False, True]
    assert others.both(of_lengths(2, 2)).both(of_words(["ab", "ba", "abc"])).accepts("ba")
    assert words.without(everything()).is_empty


LIMITS = st.none() | st.decimals(-120, 120, places=1) | st.integers(-12, 12).map(Decimal)
NUMBERS = st.from_regex(r"\A-?(0|[1-9][0-9]{0,2})(\.[0-9]{1,2})?\Z")


@settings(max_examples=40)
@given(
    low=LIMITS,
    high=LIMITS,
    low_open=st.booleans(),
    high_open=st.booleans(),
    whole=st.booleans(),
    text=NUMBERS,
)
def test_bounds_are_those_of_arithmetic(low, high, low_open, high_open, whole, text):
    bounds = Bounds(low, low_open, high, high_open)
    value = Decimal(text)
    fits = bounds.hold(value) and not (whole and ("." in text or text == "-0"))
    assert bounds.hold(value) == (
        (low is None or (value > low if low_open else value >= low))
        and (high is None or (value < high if high_open else value <= high))
    )
    assert between(bounds, whole=whole).accepts(text) == fits


@settings(max_examples=40)
@given(multiple=st.sampled_from(["7", "0.01", "2.5", "1", "12", "0.3"]), text=NUMBERS)
def test_multiples_are_those_of_arithmetic(multiple, text):
    bounds = Bounds(multiple=Fraction(multiple))
    fits = (Fraction(text) / Fraction(multiple)).denominator == 1
    assert bounds.hold(Decimal(text)) == fits
    assert between(bounds, whole=False).accepts(text) == fits
