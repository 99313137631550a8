"""Tokens found by their bytes: the native class against plain lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.kernels._native import Pieces
from specx.kernels.reference.pieces import PiecesReference

TEXT = st.lists(st.sampled_from([b"a", b"b", b"\x00", b"\xff", b" "]), max_size=4).map(b"".join)
TEXTS = st.lists(TEXT, max_size=30)


@given(TEXTS, TEXTS, TEXT)
def test_the_native_class_finds_what_the_plain_one_does(ours, theirs, text):
    native, plain = Pieces(ours), PiecesReference(ours)
    assert [native.piece(i) for i in range(len(native))] == ours
    assert native.find(text) == plain.find(text)
    assert native.match(Pieces(theirs)).tolist() == plain.match(PiecesReference(theirs))
    assert native.longer(text).tolist() == plain.longer(text)


def test_what_is_not_there():
    pieces = Pieces([b"a", b"", b"a"])
    assert pieces.find(b"") == -1
    assert pieces.find(b"a") == 0
    for token in (-1, 3):
        with pytest.raises(IndexError):
            pieces.piece(token)
