from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.engine.text.stream import StopMatcher, StreamDecoder

pieces = st.lists(st.binary(max_size=6), max_size=20)
words = st.text("ab<>é", max_size=30)


def test_a_sequence_waits_for_its_rest():
    decoder = StreamDecoder()
    assert [decoder.feed(bytes([byte])) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]
    assert decoder.flush() == ""


def test_a_cut_sequence_is_replaced_once_at_the_end():
    decoder = StreamDecoder()
    assert decoder.feed(b"a\xf0\x9f\x98") == "a"
    assert decoder.flush() == "\N{REPLACEMENT CHARACTER}"
    assert decoder.flush() == ""
    assert decoder.feed(b"b") == "b"


@given(pieces)
def test_decoding_does_not_depend_on_the_pieces(data: list[bytes]):
    decoder = StreamDecoder()
    text = "".join(map(decoder.feed, data)) + decoder.flush()
    assert text == b"".join(data).decode("utf-8", "replace")


@given(st.text(), st.data())
def test_valid_text_never_shows_a_replacement(text: str, data: st.DataObject):
    raw = text.replace("\N{REPLACEMENT CHARACTER}", "").encode()
    cut = data.draw(st.integers(0, len(raw)))
    decoder = StreamDecoder()
    assert "\N{REPLACEMENT CHARACTER}" not in decoder.feed(raw[:cut]) + decoder.feed(raw[cut:])


def cut_by_search(text: str, stops: list[str]) -> tuple[str, bool]:
    """The reference: the smallest end of any match, less the longest match that ends there."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(words, st.lists(st.text("ab<>é", min_size=1, max_size=5), max_size=4), st.data())
def test_stops_agree_with_a_search(text: str, stops: list[str], data: st.DataObject):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    matcher = StopMatcher(stops)
    released, stopped = "", False
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        piece, stopped = matcher.feed(text[start:end])
        released += piece
        assert text.startswith(released)
    assert (released + matcher.flush(), stopped) == cut_by_search(text, stops)


@given(words, st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=3))
def test_only_a_possible_beginning_is_held_back(text: str, stops: list[str]):
    matcher = StopMatcher(stops)
    released, stopped = matcher.feed(text)
    if not stopped:
        held = text[len(released) :]
        beginnings = {stop[:n] for stop in stops for n in range(len(stop))}
        assert held in beginnings
        longest = max((b for b in beginnings if text.endswith(b)), key=len)
        assert held == longest


def test_nothing_comes_after_a_stop():
    matcher = StopMatcher(["END"])
    assert matcher.feed("one EN") == ("one ", False)
    assert matcher.feed("D two") == ("", True)
    assert matcher.feed("three") == ("", True)
    assert matcher.flush() == ""


def test_an_empty_stop_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
