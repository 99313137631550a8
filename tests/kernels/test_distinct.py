"""Different texts of an array of a GGUF file."""

import struct

import pytest

from specx.kernels._native import distinct_tokens, end_of_texts


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


def test_texts_that_fall_on_the_same_place_are_counted_all_the_same():
    texts = [struct.pack("<Q", 1 << 60 | i << 50) for i in range(1 << 10)]
    assert distinct_tokens(array(*texts, *texts), 2 * len(texts)) == len(texts)


def test_where_texts_end():
    data = b"before" + array(b"a", b"", b"bcd") + b"after"
    assert end_of_texts(data, 6, 3) == (len(data) - 5, 0)
    assert end_of_texts(data, 6, 0) == (6, 0)
    assert end_of_texts(data[: 6 + 9 + 8 + 10], 6, 3) == (-1, 3)
    assert end_of_texts(data[: 6 + 9 + 8 + 4], 6, 3) == (-1, 0)
    assert end_of_texts(data, len(data) + 1, 1) == (-1, 0)
    assert end_of_texts(b"\xff" * 16, 0, 1) == (-1, 2**64 - 1)
