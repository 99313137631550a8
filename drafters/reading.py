"""How a draft model follows a text that grows and changes at its end.

Its KV cache follows lazily: tokens that it has not read are read when it is next asked, after going back to
what it has in common with the text. What was read of a finished text is kept for the next one, which often
goes on from it. Tokens here are the draft model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache, chain_parents
from specx.drafters.guesser import AT_ONCE, GuessCosts

__all__ = ["Read", "Reader", "in_common"]


class Read:
    """What the model has read of a text.

    Attributes:
        cache: of the model.
        held: the tokens in it.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.held: list[int] = []


class Rooms(Protocol):
    """Where a reader finds room for its text, and notes what its work takes."""

    n_ctx: int
    calls: GuessCosts
    clock: Callable[[], float]

    def open(self) -> Read | None:
        """Room for one text; None if there is none."""

    def finish(self, read: Read) -> None:
        """A text is finished, of which so much was read."""


class Reader:
    """Follows one text.

    Args:
        rooms: where it finds room.
        read: room that it has already.
    """

    def __init__(self, rooms: Rooms, read: Read | None = None) -> None:
        self._rooms, self._read = rooms, read
        self._start = 0  # of what the model reads of the text
        self._agreed = 0  # of the tokens it holds, how many are surely those of the text

    def open(self) -> bool:
        """Take room for the text unless it has it; returns whether it has."""
        self._read = self._read or self._rooms.open()
        return self._read is not None

    def changed(self, at: int) -> None:
        """The tokens of the text from index `at` on are others than before."""
        self._agreed = min(self._agreed, max(at - self._start, 0))

    def unread(self, text: Sequence[int], chain: Sequence[int], rows: int = 1) -> int:
        """Tokens to read for `logits`, at least `rows`."""
        end = len(text) + len(chain)
        if end - self._start >= self._rooms.n_ctx:  # older tokens must be forgotten, and the rest read again
            return self._rooms.n_ctx // 2
        return max(end - self._start - self._common(text, chain), rows)

    def logits(self, text: Sequence[int], chain: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        """Logits (rows, V) after the last `rows` of the tokens of `text` and `chain`, oldest first; borrowed
        until the next call. The text must have as many tokens, and `open` have given room."""
        read, rooms = self._read, self._rooms
        assert read is not None
        cache, held, clock = read.cache, read.held, rooms.clock
        if len(text) + len(chain) - self._start >= cache.n_ctx:
            self._start = max(len(text) + len(chain) - cache.n_ctx // 2, 0)
            self._agreed = 0
        end = len(text) - self._start
        kept = min(self._common(text, chain), end + len(chain) - rows)
        if kept < len(held):
            kept = cache.reusable(kept)
            cache.rewind(kept)
            del held[kept:]
            self._agreed = min(self._agreed, kept)
        unread = [*text[self._start + kept :], *chain[max(kept - end, 0) :]]
        if len(unread) > max(min(AT_ONCE + rows - 1, cache.max_width), rows):
            self._prefill(read, unread[:-rows])
            unread = unread[-rows:]
        n = len(unread)
        tokens, parents = np.array(unread, np.int32), chain_parents(n)
        started = clock()
        output = cache.forward(tokens, parents)
        cache.keep(range(n))
        rooms.calls.observe_call(n, (clock() - started) * 1e3)
        held += unread
        logits: NDArray[np.float32] = output.logits[n - rows :]
        return logits

    def close(self) -> None:
        """The text is finished."""
        if self._read is not None:
            self._rooms.finish(self._read)
            self._read = None

    def _prefill(self, read: Read, tokens: list[int]) -> None:
        clock = self._rooms.clock
        started = clock()
        try:
            read.cache.prefill(tokens)
        finally:  # some of them, if it was interrupted
            read.held += tokens[: read.cache.length - len(read.held)]
        self._rooms.calls.observe_reading(len(tokens), (clock() - started) * 1e3)

    def _common(self, text: Sequence[int], chain: Sequence[int]) -> int:
        """How many of the held tokens are those of the text and `chain`, as far as they go."""
        held = self._read.held if self._read is not None else []
        start, common = self._start, self._agreed
        whole = len(text) - start
        end = min(len(held), whole)
        while common < end and held[common] == text[start + common]:
            common += 1
        self._agreed = common
        if common == whole and common < len(held):
            common += in_common(held[common:], chain)
        return common


def in_common(held: Sequence[int], text: Sequence[int]) -> int:
    """How many tokens both begin with."""
    common, end = 0, min(len(held), len(text))
    while common < end and held[common] == text[common]:
        common += 1
    return common
