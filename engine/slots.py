"""Room for texts, and what it holds of them: a prompt goes where most of it is cached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from specx.backends.base import Cache, Model

__all__ = ["FORGOTTEN", "Slot", "Slots"]

FORGOTTEN = -1  # in place of cached tokens that were computed with tokens in view that are no longer there


class Slot:
    """Room for one text, and what it holds.

    Attributes:
        cache: the committed tokens.
        cached: which tokens these are, `FORGOTTEN` where they cannot be used again.
        user: the generation that writes in it.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.cached: list[int] = []
        self.user: object = None

    def common(self, prompt: Sequence[int]) -> int:
        """How many of its tokens `prompt` begins with."""
        end = min(len(self.cached), len(prompt))
        return next((i for i in range(end) if self.cached[i] != prompt[i]), end)

    def clear(self) -> None:
        """Forget everything."""
        self.cache.rewind(0)
        self.cached, self.user = [], None


class Slots(Sequence[Slot]):
    """All the room there is.

    Args:
        model: whose caches they are.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._slots = [Slot(model.open())]

    def __len__(self) -> int:
        return len(self._slots)

    @overload
    def __getitem__(self, index: int) -> Slot: ...

    @overload
    def __getitem__(self, index: slice) -> list[Slot]: ...

    def __getitem__(self, index: int | slice) -> Slot | list[Slot]:
        return self._slots[index]

    def choose(self, prompt: Sequence[int]) -> Slot:
        """Room for a text: where most of its prompt is cached, if possible where nobody writes."""
        free = [slot for slot in self._slots if slot.user is None]
        found = max(free, key=lambda slot: slot.common(prompt), default=None)
        if found is None or (found.cached and not found.common(prompt)):
            if len(self._slots) < self._model.facts.max_texts:
                found = Slot(self._model.open())
                self._slots.append(found)
            else:  # the one that was not used for the longest time; who writes there ends as cancelled
                found = free[0] if free else self._slots[0]
        self._slots.remove(found)
        self._slots.append(found)
        return found

    def measured(self) -> Slot:
        """Room for measurements: what it holds is lost."""
        slot = self._slots[0]
        slot.cached, slot.user = [], None
        return slot
