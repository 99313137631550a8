"""Answering the items of a batch together, as many at once as there is room for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from specx.backends.errors import DoesNotFitError, SpecxError, unexpected
from specx.engine.api.asks import Defaults, read_ask
from specx.engine.api.errors import RequestError
from specx.engine.api.exchange import Exchange
from specx.engine.batch.answered import Answered, ItemRun, Pending, response_id
from specx.engine.batch.feed import Feed
from specx.engine.batch.items import Item
from specx.engine.generation import Generation
from specx.engine.session import Session
from specx.engine.settings import Asked

__all__ = ["Run", "answer", "open_with_room"]

INTERNAL = 500


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


def open_with_room(load: Callable[[Asked], Session], enough: Asked, n_ctx: int | None) -> Session:
    """A session with a context for the largest item, or with a smaller one if that does not fit.

    Args:
        load: opens it.
        enough: what is asked of it, with that context.
        n_ctx: the context otherwise; None leaves it open.

    Raises:
        SpecxError: it cannot be opened with that either.
    """
    try:
        return load(enough)
    except DoesNotFitError:
        if enough.n_ctx == n_ctx:
            raise
        return load(replace(enough, n_ctx=n_ctx))


def _nobody(_tokens: int) -> None:
    pass


class Run(ItemRun):
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
        super().__init__(feed, ordered=ordered)
        self._session, self._written = session, written
        self._defaults, self._seed = defaults, seed
        self._waiting: deque[Generation] = deque()

    def drop(self) -> None:
        """Give up what is in progress as well. Safe to call from a signal handler."""
        super().drop()
        for pending in self._begun.in_progress:
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
                assert isinstance(pending, Pending) and pending.exchange is not None
                pending.exchange.feed(generation, chunk)
                self._written(len(chunk.tokens))
                if pending.exchange.done:
                    self._finish(pending)
                yield from self._begun.given()
            yield from self._begun.given()
        if self._feed.failure is not None:
            raise self._feed.failure

    def take(self, wait: bool) -> Generation | None:
        """The next generation, as `Arrivals` has it."""
        while not self._waiting:
            if self._begun.full or self._dropped:
                return None
            item = self._feed.take(wait)
            if item is None:
                return None
            self._begin(item)
        return self._waiting.popleft()

    def _begin(self, item: Item) -> None:
        pending = self._begun.add(item)
        if pending.answered is not None:
            return
        try:
            body = item.body
            if body.get("seed") is None:
                body = {**body, "seed": item.seed(self._seed)}
            ask = read_ask(body, item.path, self._defaults)
            pending.exchange = Exchange(self._session, ask, id=response_id(item))
            if self._dropped:  # meanwhile
                pending.exchange.cancel()
        except RequestError as problem:
            self._begun.answer(pending, Answered.refused(item, problem))
        except SpecxError as problem:
            self._begun.answer(pending, Answered.refused(item, RequestError.of(problem)))
        except Exception as problem:  # noqa: BLE001 (one line must not end ten thousand others)
            failure = unexpected(problem, "")
            self._begun.answer(pending, Answered.refused(item, RequestError.of(failure, status=INTERNAL)))
        else:
            for generation in pending.exchange.generations:
                generation.label = pending
                self._waiting.append(generation)

    def _finish(self, pending: Pending) -> None:
        assert pending.exchange is not None
        if self._dropped:
            return
        try:
            answered = Answered.of(pending.item, pending.exchange.body())
        except RequestError as problem:
            answered = Answered.refused(pending.item, problem)
        self._begun.answer(pending, answered)
