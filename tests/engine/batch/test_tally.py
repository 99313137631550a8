"""Numbers by key are those of a dict, however the keys fall."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from specx.engine.batch.tally import SMALLEST, Tally

# Many that belong to the same place, or to the last ones.
KEYS = st.one_of(
    st.integers(0, 20),
    st.integers(0, 20).map(lambda n: n * SMALLEST),
    st.integers(0, 9).map(lambda n: SMALLEST - 1 - n),
    st.integers(-(2**63), 2**64 - 1),
)


@given(st.lists(st.tuples(KEYS, st.sampled_from(["add", "take", "default"]), st.integers(1, 1 << 20))))
def test_it_is_a_dict_of_numbers(calls):
    tally, known = Tally(), {}
    for key, what, number in calls:
        place = key % 2**64
        if what == "add":
            known[place] = known.get(place, 0) + number
            assert tally.add(key, number) == known[place]
        elif what == "default":
            known[place] = known.get(place, 0) or number
            assert tally.set_default(key, number) == known[place]
        elif known.get(place, 0):
            known[place] -= 1
            assert tally.add(key, -1) == known[place]
    assert len(tally) == len(known)
    assert all(tally.get(key) == number for key, number in known.items())
    assert tally.get(2**64 - 5) == known.get(2**64 - 5, 0)


def test_many_keys_take_few_bytes():
    keys = [(n * 0x9E3779B97F4A7C15) % 2**64 for n in range(50_000)]
    tally = Tally([*keys, *keys[:7]])
    assert len(tally) == len(keys)
    assert [tally.get(key) for key in keys[:8]] == [2] * 7 + [1]
    assert all(tally.get(key) for key in keys) and not any(tally.get(key + 1) for key in keys)
    assert sys.getsizeof(tally._keys) + sys.getsizeof(tally._numbers) < 36 * len(keys)
