"""Different texts of an array of a GGUF file."""

import struct

import pytest

from specx.kernels._native import distinct_tokens


def array(*texts):
    return b"".join(struct.pack("<Q", len(text)) + text for text in texts)


@pytest.mark.parametrize(
    ("texts", "distinct"),
    [
        ((), 0),
        ((b"a", b"b", b"ab"), 3),
        ((b"a", b"b", b"a", b"a"), 2),
        ((b"", b"", b"a"), 3),
        ((b"", b"[EMPTY_0]", b"[EMPTY_1]"), 2),
        ((b"a\0b", b"a\0c", b"a"), 3),
    ],
)
def test_texts_are_counted_once(texts, distinct):
    assert distinct_tokens(array(*texts), len(texts)) == distinct


@pytest.mark.parametrize(
    ("section", "count"), [(b"", 1), (array(b"a"), 2), (array(b"abcdefgh")[:-1], 1), (b"\xff" * 16, 1)]
)
def test_a_text_beyond_the_array_is_refused(section, count):
    with pytest.raises(ValueError, match="text"):
        distinct_tokens(section, count)
