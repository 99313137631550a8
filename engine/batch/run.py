"""Answering the items of a batch together, as many at once as there is room for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from specx.backends.errors import SpecxError, unexpected
from specx.engine.api.asks import Defaults, read_ask
from specx.engine.api.errors import RequestError
from specx.engine.api.exchange import Exchange
from specx.engine.batch.feed import Feed
from specx.engine.batch.items import CHAT, Item
from specx.engine.generation import Generation
from specx.engine.session import Session

__all__ = ["Answered", "Run", "answer"]

WINDOW = 1024
"""Items that are begun or answered and wait for one before them: what is held of an output in order."""

OK, INTERNAL = 200, 500


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
class _Pending:
    """An item that was begun."""

    item: Item
    exchange: Exchange | None = None
    answered: Answered | None = None


def answer(
    session: Session, items: Iterable[Item], defaults: Defaults, seed: int, *, ordered: bool = True
) -> Iterator[Answered]:
    """Answer items together; what fails of one is its own.

    Args:
        session: the model.
        items: what is asked.
        defaults: what holds for items that do not say otherwise.
        seed: what the seeds of items follow from; see `Item.seed`.
        ordered: in the order of the items; otherwise as they are finished.
    """
    return Run(session, Feed(items), defaults, seed, ordered=ordered).answers()


def _nobody(_tokens: int) -> None:
    pass


class Run:
    """One run over items. It is where their generations arrive from (`Arrivals`).

    Args:
        session: the model.
        feed: the items.
        defaults, seed, ordered: as of `answer`.
        written: told after each step of each answer how many tokens it added.
    """

    def __init__(
        self,
        session: Session,
        feed: Feed,
        defaults: Defaults,
        seed: int,
        *,
        ordered: bool = True,
        written: Callable[[int], None] = _nobody,
    ) -> None:
        self._session, self._feed, self._written = session, feed, written
        self._defaults, self._seed, self._ordered = defaults, seed, ordered
        self._begun: deque[_Pending] = deque()  # in the order of the items
        self._waiting: deque[Generation] = deque()
        self._ready = 0  # answered, and not given yet
        self._dropped = False

    @property
    def in_progress(self) -> int:
        """How many items are begun and not answered."""
        return sum(pending.answered is None for pending in self._begun)

    def stop(self) -> None:
        """Begin no more items, and finish those that are begun. Safe to call from a signal handler."""
        self._feed.stop()

    def drop(self) -> None:
        """Give up what is in progress as well. Safe to call from a signal handler."""
        self._dropped = True
        self.stop()
        for pending in tuple(self._begun):
            if pending.exchange is not None:
                pending.exchange.cancel()

    def answers(self) -> Iterator[Answered]:
        """What comes of each item. Once only.

        Raises:
            SpecxError: the input cannot be read any further; said when what came before is answered.
        """
        while not self._feed.ended:
            for generation, chunk in self._session.together(self, patient=True):
                pending = generation.label
                assert isinstance(pending, _Pending) and pending.exchange is not None
                pending.exchange.feed(generation, chunk)
                self._written(len(chunk.tokens))
                if pending.exchange.done:
                    self._finish(pending)
                yield from self._given()
            yield from self._given()
        if self._feed.failure is not None:
            raise self._feed.failure

    def take(self, wait: bool) -> Generation | None:
        """The next generation, as `Arrivals` has it."""
        while not self._waiting:
            # What is answered already is given first; that also bounds how much is held.
            if self._ready or (self._ordered and len(self._begun) >= WINDOW) or self._dropped:
                return None
            item = self._feed.take(wait)
            if item is None:
                return None
            self._begin(item)
        return self._waiting.popleft()

    def _begin(self, item: Item) -> None:
        pending = _Pending(item)
        self._begun.append(pending)
        try:
            if item.blank:
                self._answer(pending, Answered(item))
                return
            if item.problem is not None:
                raise RequestError(item.problem[0], code=item.problem[1])
            body = item.body
            if body.get("seed") is None:
                body = {**body, "seed": item.seed(self._seed)}
            ask = read_ask(body, item.path, self._defaults)
            pending.exchange = Exchange(self._session, ask, id=_response_id(item))
        except RequestError as problem:
            self._answer(pending, Answered.refused(item, problem))
        except SpecxError as problem:
            self._answer(pending, Answered.refused(item, RequestError.of(problem)))
        except Exception as problem:  # noqa: BLE001 (one line must not end ten thousand others)
            failure = unexpected(problem, "")
            self._answer(pending, Answered.refused(item, RequestError.of(failure, status=INTERNAL)))
        else:
            for generation in pending.exchange.generations:
                generation.label = pending
                self._waiting.append(generation)

    def _finish(self, pending: _Pending) -> None:
        assert pending.exchange is not None
        if self._dropped:
            return
        try:
            answered = Answered.of(pending.item, pending.exchange.body())
        except RequestError as problem:
            answered = Answered.refused(pending.item, problem)
        self._answer(pending, answered)

    def _answer(self, pending: _Pending, answered: Answered) -> None:
        pending.answered, pending.exchange = answered, None
        self._ready += 1

    def _given(self) -> Iterator[Answered]:
        """What can be written now: with `ordered`, no item before one that was begun earlier."""
        if not self._ready:
            return
        given: list[Answered] = []
        if self._ordered:
            while self._begun and self._begun[0].answered is not None:
                given.append(self._begun[0].answered)
                self._begun.popleft()
            self._ready = 0
        else:
            given = [pending.answered for pending in self._begun if pending.answered is not None]
            self._begun = deque(pending for pending in self._begun if pending.answered is None)
            self._ready = 0
        yield from given


def _response_id(item: Item) -> str:
    """The id of a response: it says which item it answers."""
    return f"{'chatcmpl' if item.path == CHAT else 'cmpl'}-{item.digest}"
