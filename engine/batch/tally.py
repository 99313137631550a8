"""A number for each of many 64-bit keys, in a few bytes each.

What a batch remembers of its items grows with the input, and a dict takes ten times as much.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

__all__ = ["Tally"]

SMALLEST = 1 << 10  # places
MASK = (1 << 64) - 1
FREE = 0  # of a place; a number in use is stored one higher


class Tally:
    """A hash table with open addressing: 18 to 36 bytes for a key.

    Keys are hashes already, so their low bits say where they belong.
    """

    __slots__ = ("_count", "_keys", "_numbers")

    def __init__(self, keys: Iterable[int] = ()) -> None:
        """Count each of `keys`."""
        self._reserve(SMALLEST)
        for key in keys:
            self.add(key, 1)

    def __len__(self) -> int:
        """How many keys have a number."""
        return self._count

    def get(self, key: int) -> int:
        """The number of `key`, 0 if it has none."""
        return max(self._numbers[self._place(key & MASK)] - 1, 0)

    def set_default(self, key: int, number: int) -> int:
        """The number of `key`, which is `number` if it had none or 0."""
        return self.get(key) or self.add(key, number)

    def add(self, key: int, number: int) -> int:
        """Add `number` to that of `key`, which does not fall below 0, and return it."""
        key &= MASK
        place = self._place(key)
        if self._numbers[place] == FREE:
            if 3 * (self._count + 1) > 2 * len(self._keys):
                self._grow()
                place = self._place(key)
            self._keys[place], self._numbers[place] = key, 1
            self._count += 1
        self._numbers[place] += number
        return self._numbers[place] - 1

    def _place(self, key: int) -> int:
        """Where `key` is, or could be."""
        keys, numbers = self._keys, self._numbers
        last = len(keys) - 1
        place = key & last
        while numbers[place] != FREE and keys[place] != key:
            place = (place + 1) & last
        return place

    def _reserve(self, places: int) -> None:
        self._keys, self._numbers = array("Q", [0]) * places, array("I", [FREE]) * places
        self._count = 0

    def _grow(self) -> None:
        keys, numbers = self._keys, self._numbers
        self._reserve(2 * len(keys))
        for key, number in zip(keys, numbers, strict=True):
            if number != FREE:
                self.add(key, number - 1)
