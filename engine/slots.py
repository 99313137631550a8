"""Room for texts, and what it holds of them: a prompt goes where the least is to be read, and the least lost.

What another text has read of the same prompt is copied, whether that one is still being written or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

from specx.backends.base import Cache, Model

__all__ = ["FORGOTTEN", "Slot", "Slots", "common"]

FORGOTTEN = -1  # in place of cached tokens that were computed with tokens in view that are no longer there
RETURNS = 0.25  # how probable it is that what was written last goes on later; less for what is older


class Slot:
    """Room for one text, and what it holds.

    Args:
        cache: the committed tokens.
        index: its place among all of the model's.

    Attributes:
        cached: which tokens these are, `FORGOTTEN` where they cannot be used again.
        user: the generation that writes in it.
    """

    def __init__(self, cache: Cache, index: int) -> None:
        self.cache = cache
        self.index = index
        self.cached: list[int] = []
        self.user: object = None

    def common(self, prompt: Sequence[int]) -> int:
        """How many of its tokens `prompt` begins with."""
        return common(self.cached, prompt)

    @property
    def useful(self) -> int:
        """How many of its tokens another prompt may begin with."""
        return self.cached.index(FORGOTTEN) if FORGOTTEN in self.cached else len(self.cached)

    def clear(self) -> None:
        """Forget everything."""
        self.cache.rewind(0)
        self.cached, self.user = [], None


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lists begin with alike: in halves, because lists compare themselves fast."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Slots(Sequence[Slot]):
    """All the room there is, what was used last at its end.

    Args:
        model: whose caches they are.
        copies: whether anything may be copied from one to another.
    """

    def __init__(self, model: Model, *, copies: bool = True) -> None:
        self._model = model
        self._copies = copies
        self._slots = [Slot(model.open(), 0)]

    def __len__(self) -> int:
        return len(self._slots)

    @overload
    def __getitem__(self, index: int) -> Slot: ...

    @overload
    def __getitem__(self, index: slice) -> list[Slot]: ...

    def __getitem__(self, index: int | slice) -> Slot | list[Slot]:
        return self._slots[index]

    @property
    def copy_tokens(self) -> float:
        """What is copied must be more tokens than this; infinite where nothing can be."""
        return self._model.facts.copy_tokens if self._copies else float("inf")

    def known(self, tokens: Sequence[int]) -> int:
        """How many of the first of `tokens` need not be read, wherever they are."""
        alike = self._alike(tokens)
        here = (slot.cache.reusable(n) for slot, n in alike.items() if slot.user is None)
        return max(self._source(alike)[1], max(here, default=0))

    def choose(self, tokens: Sequence[int], steps: int) -> Slot:
        """Room for a text that begins with `tokens` and takes about `steps` steps; it may hold some of them.

        Where nobody writes, if possible; else who has been writing the longest ends as cancelled.
        """
        alike = self._alike(tokens)
        free = {slot: slot.cache.reusable(n) for slot, n in alike.items() if slot.user is None}
        source, shared = self._source(alike)
        worth = shared - self.copy_tokens
        found, least = None, float("inf")
        for age, (slot, held) in enumerate(free.items()):
            lost = max(slot.useful - held, 0) * RETURNS * (age + 1) / len(free)
            cost = lost - max(held, worth if source is not slot else 0) + self._gap(slot.index) * steps
            if cost < least:
                found, least = slot, cost
        if len(self._slots) < self._model.facts.max_texts:
            cost = self._gap(len(self._slots)) * steps - max(worth, 0)
            if cost < least:
                found = Slot(self._model.open(), len(self._slots))
                self._slots.append(found)
        found = found or self._slots[0]
        self._slots.remove(found)
        self._slots.append(found)
        if source is not None and source is not found and worth > free.get(found, 0):
            found.cache.copy(source.cache, shared)
            found.cached = list(tokens[: found.cache.length])
        return found

    def measured(self) -> Slot:
        """Room for measurements: what it holds is lost."""
        slot = self._slots[0]
        slot.cached, slot.user = [], None
        return slot

    def _alike(self, tokens: Sequence[int]) -> dict[Slot, int]:
        """How many of `tokens` each begins with."""
        return {slot: slot.common(tokens) for slot in self._slots}

    def _source(self, alike: Mapping[Slot, int]) -> tuple[Slot | None, int]:
        """Where the most could be copied from, and how many tokens; none but what is worth it."""
        found: tuple[Slot | None, int] = None, 0
        if not self._copies or self._model.facts.max_texts == 1:
            return found
        for slot, n in alike.items():
            if n > max(found[1], self.copy_tokens):
                length = slot.cache.copyable(n)
                found = (slot, length) if length > max(found[1], self.copy_tokens) else found
        return found

    def _gap(self, index: int) -> int:
        """Rows that each step takes more because of idle room between those who write and that one."""
        facts = self._model.facts
        used = [slot.index for slot in self._slots if slot.user is not None]
        if not facts.even or not used:
            return 0
        low, high = min(used), max(used)
        return max(low - index, index - high, 1) - 1
