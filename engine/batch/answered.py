"""Items that are begun, what came of each, and in what order that is given."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from specx.engine.api.errors import RequestError
from specx.engine.api.exchange import Exchange
from specx.engine.api.paths import CHAT
from specx.engine.batch.feed import Feed
from specx.engine.batch.items import Item

__all__ = ["Answered", "Begun", "ItemRun", "Pending", "response_id"]

WINDOW = 1024
"""Items that are begun or answered and wait for one before them: what is held of an output in order."""

OK = 200


@dataclass(frozen=True, slots=True)
class Answered:
    """An item and what came of it.

    Attributes:
        item: the item.
        status: of the response, 200 if it was answered.
        body: of the response, or `{"error": ...}`.
        prompt_tokens, tokens: read and written for it.
        cut: an answer ended at its limit, or because the context was full.
    """

    item: Item
    status: int = OK
    body: dict[str, Any] | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    cut: bool = False

    @property
    def failed(self) -> bool:
        """Whether there is an error in the place of an answer."""
        return self.status != OK

    @classmethod
    def of(cls, item: Item, body: dict[str, Any]) -> Answered:
        """An item with the body of its response."""
        usage = body.get("usage") or {}
        cut = any(choice.get("finish_reason") == "length" for choice in body["choices"])
        counts = (usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
        return cls(item, OK, body, *counts, cut)

    @classmethod
    def refused(cls, item: Item, problem: RequestError) -> Answered:
        """An item that was not answered."""
        return cls(item, problem.status, problem.body())


@dataclass(slots=True, eq=False)
class Pending:
    """An item that was begun.

    Attributes:
        item: the item.
        exchange: what is written for it here, until it is answered.
        answered: what came of it.
    """

    item: Item
    exchange: Exchange | None = None
    answered: Answered | None = None


class Begun:
    """The items that are begun and not given yet, in their order.

    Args:
        ordered: none is given before one that was begun earlier.
    """

    def __init__(self, *, ordered: bool) -> None:
        self.ready = 0  # answered since something was given
        self._ordered = ordered
        self._pending: deque[Pending] = deque()

    @property
    def in_progress(self) -> tuple[Pending, ...]:
        """Those that are not answered."""
        return tuple(pending for pending in tuple(self._pending) if pending.answered is None)

    @property
    def full(self) -> bool:
        """Whether no more may be begun at the moment: first what was answered is to be given."""
        return self.ready > 0 or (self._ordered and len(self._pending) >= WINDOW)

    def add(self, item: Item) -> Pending:
        """Begin an item; what cannot be asked is answered at once."""
        pending = Pending(item)
        self._pending.append(pending)
        if item.blank:
            self.answer(pending, Answered(item))
        elif item.problem is not None:
            problem = RequestError(item.problem[0], code=item.problem[1])
            self.answer(pending, Answered.refused(item, problem))
        return pending

    def answer(self, pending: Pending, answered: Answered) -> None:
        """Something came of an item."""
        pending.answered, pending.exchange = answered, None
        self.ready += 1

    def given(self) -> list[Answered]:
        """What can be written now; it is begun no longer."""
        if not self.ready:
            return []
        self.ready = 0
        given: list[Answered] = []
        if self._ordered:
            while self._pending and (answered := self._pending[0].answered) is not None:
                given.append(answered)
                self._pending.popleft()
        else:
            given = [pending.answered for pending in self._pending if pending.answered is not None]
            self._pending = deque(pending for pending in self._pending if pending.answered is None)
        return given


class ItemRun:
    """What every run over items is: they are taken from a feed and begun, and it can be ended.

    Args:
        feed: the items.
        ordered: as of `Begun`.
    """

    def __init__(self, feed: Feed, *, ordered: bool) -> None:
        self._feed = feed
        self._begun = Begun(ordered=ordered)
        self._dropped = False

    @property
    def in_progress(self) -> int:
        """How many items are begun and not answered."""
        return len(self._begun.in_progress)

    def stop(self) -> None:
        """Begin no more items, and finish those that are begun. Safe to call from a signal handler."""
        self._feed.stop()

    def drop(self) -> None:
        """Give up what is in progress as well. Safe to call from a signal handler."""
        self._dropped = True
        self.stop()


def response_id(item: Item) -> str:
    """The id of a response: it says which item it answers."""
    return f"{'chatcmpl' if item.path == CHAT else 'cmpl'}-{item.digest}"
