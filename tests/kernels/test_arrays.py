"""Arrays that native code reads, or writes to, where they are."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from specx.kernels._native import Corpus, Draft, LayerTap, LogitRows, StepCosts, SuffixAutomaton, rank_tokens


def unaligned(array):
    """The same array one byte further on."""
    held = np.zeros(array.nbytes + 1, np.uint8)
    moved = np.frombuffer(held.data, array.dtype, array.size, 1).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned and moved.flags.c_contiguous
    return moved


def appended(tokens):
    automaton = SuffixAutomaton()
    automaton.append(automaton.begin(), tokens)


@pytest.mark.parametrize(
    ("use", "array"),
    [
        (lambda x: rank_tokens(x, 1, 1, 0.5, 0, 1.0, 0.0, 1.0, 1), np.ones(10, np.float32)),
        (LogitRows, np.ones((2, 5), np.float32)),
        (appended, np.ones(4, np.int32)),
        (StepCosts, np.ones(4)),
        (lambda x: Corpus(x, np.arange(4, dtype=np.int32)), np.ones(4, np.int32)),
        (lambda x: Corpus(np.ones(4, np.int32), x), np.arange(4, dtype=np.int32)),
        (lambda x: LayerTap(1, 1, 1).begin(x), np.ones((2, 4), np.float32)),
    ],
)
def test_numbers_that_are_not_aligned_are_refused(use, array):
    with pytest.raises(TypeError):
        use(unaligned(array))


def test_nothing_and_bytes_are_aligned_everywhere():
    appended(unaligned(np.ones(4, np.int32))[:0])
    probs, parents = np.ones(1, np.float32), np.full(1, -1, np.int32)
    sources = np.frombuffer(np.zeros(2, np.uint8).data, np.uint8, 1, 1)
    assert len(Draft(np.ones(1, np.int32), parents, probs, sources)) == 1


def test_rows_that_a_tap_writes_to_live_until_it_is_done():
    tap = LayerTap(1, 1, 1)
    tap.watch([1, 2])

    def begun():
        rows = np.zeros((3, 8), np.float32)
        tap.begin(rows)
        return weakref.ref(rows)

    first = begun()
    assert first() is not None
    second = begun()
    assert first() is None and second() is not None
    assert tap.end() == 0
    assert second() is None
    third = begun()
    tap.watch([3])
    assert third() is None
