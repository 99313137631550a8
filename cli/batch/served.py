"""A batch in a running server of the same model and settings: requests go there with all that was asked for
here, and the answers come back. If it ends meanwhile, the model is loaded here, and answers the rest."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from specx.backends.errors import SpecxError, unexpected
from specx.cli.generation import Request
from specx.cli.resident.client import OK, Connection, LostError
from specx.cli.resident.remote import Remote, UnavailableError, gone, sampling_body
from specx.engine.api.asks import Defaults
from specx.engine.batch.answered import Answered, ItemRun, Pending, response_id
from specx.engine.batch.feed import SLICE_S, Feed
from specx.engine.batch.items import Item

if TYPE_CHECKING:
    from specx.engine.batch.run import Run

__all__ = ["ServedRun", "can_serve"]

FULL, LOADING = 429, 503
STOPPED = "server_stopped"  # the code of an error
AGAIN_S = 0.2
"""Seconds after which a server that takes no more is asked again."""

Came = Answered | SpecxError

Here = Callable[[Iterable[Item], Callable[[int], None], UnavailableError], "Run"]


def can_serve(remote: Remote, request: Request, needed: int | None) -> bool:
    """Whether a server gives the answers that the model would give if it was loaded here.

    Its context must hold what the largest request needs, and an answer without a limit ends where it ends.

    Args:
        remote: the server.
        request: how answers are made.
        needed: tokens of context, if that is known.
    """
    return needed is None or (request.options.n_predict >= 0 and needed <= remote.n_ctx)


class ServedRun(ItemRun):
    """One run over items whose answers a server writes; stands where `Run` does.

    Args:
        remote: the server.
        feed: the items.
        defaults: what holds for items that do not say otherwise.
        seed, ordered, written: as of `Run`.
        at_once: requests that are with the server at once; None for as many as it writes together.
        here: loads the model and answers items with it, where the server cannot any more; is told why.
    """

    def __init__(
        self,
        remote: Remote,
        feed: Feed,
        defaults: Defaults,
        seed: int,
        *,
        at_once: int | None,
        ordered: bool,
        written: Callable[[int], None],
        here: Here,
    ) -> None:
        super().__init__(feed, ordered=ordered)
        self._remote, self._written, self._here = remote, written, here
        self._defaults = {**asdict(defaults), "sampling": sampling_body(defaults.sampling)}
        self._seed = seed
        self._most = at_once or remote.at_once
        self._asked: queue.SimpleQueue[Pending] = queue.SimpleQueue()
        self._came: queue.SimpleQueue[tuple[Pending, Came]] = queue.SimpleQueue()
        self._lost: UnavailableError | None = None  # why the server answers no more
        self._run: Run | None = None  # what answers instead
        self._stopped = False

    @property
    def in_progress(self) -> int:
        """How many items are begun and not answered."""
        return super().in_progress if self._run is None else self._run.in_progress

    def stop(self) -> None:
        """Begin no more items, and finish those that are begun. Safe to call from a signal handler."""
        self._stopped = True
        super().stop()
        if self._run is not None:
            self._run.stop()

    def drop(self) -> None:
        """Give up what is in progress as well. Safe to call from a signal handler."""
        super().drop()
        if self._run is not None:
            self._run.drop()

    def answers(self) -> Iterator[Answered]:
        """What comes of each item. Once only.

        Raises:
            SpecxError: the model cannot be loaded here either, or the input cannot be read any further.
        """
        for _ in range(self._most):
            # Daemons: what is dropped is waited for by nobody, and the server ends it when this process does.
            threading.Thread(target=self._work, daemon=True).start()
        away = 0
        while not self._dropped:
            while self._lost is None and away < self._most and not self._begun.full:
                item = self._feed.take(wait=away == 0)
                if item is None:
                    break
                pending = self._begun.add(item)
                if pending.answered is None:
                    self._asked.put(pending)
                    away += 1
            yield from self._begun.given()
            if away:
                away -= self._come()
            elif self._lost is not None or self._feed.ended:
                break
        if self._lost is not None and not self._stopped:
            yield from self._go_on(self._lost)
        if self._feed.failure is not None:
            raise self._feed.failure

    def _go_on(self, lost: UnavailableError) -> Iterator[Answered]:
        """Answer here what the server has not."""
        begun = {id(pending.item): pending for pending in self._begun.in_progress}
        items = [pending.item for pending in begun.values()]
        run = self._here(chain(items, self._feed.rest()), self._written, lost)
        self._run = run
        if self._stopped:  # meanwhile
            return
        for answered in run.answers():
            pending = begun.pop(id(answered.item), None)
            if pending is None:
                yield answered
            else:
                self._begun.answer(pending, answered)
                yield from self._begun.given()

    def _come(self) -> int:
        """Take an answer that has come; returns how many there were."""
        try:
            pending, came = self._came.get(timeout=SLICE_S)
        except queue.Empty:
            return 0
        if isinstance(came, UnavailableError):
            self._lost = came
            return 1
        if isinstance(came, SpecxError):
            raise came
        self._written(came.tokens)
        self._begun.answer(pending, came)
        return 1

    def _work(self) -> None:
        while True:
            pending = self._asked.get()
            try:
                self._came.put((pending, self._ask(pending.item)))
            except LostError as problem:
                self._came.put((pending, gone(problem)))
            except SpecxError as problem:
                self._came.put((pending, problem))
            except Exception as problem:  # noqa: BLE001 (or whoever waits for it would wait for ever)
                self._came.put((pending, unexpected(problem, "--server no loads the model here")))

    def _ask(self, item: Item) -> Answered:
        body = item.body
        if body.get("seed") is None:
            body = {**body, "seed": item.seed(self._seed)}
        asked = {"path": item.path, "body": body, "id": response_id(item), "defaults": self._defaults}
        while True:
            with Connection(self._remote.socket, None) as connection:
                connection.send("/specx/answer", asked)
                answer = next(connection.lines(), None)
                status = connection.status
            if answer is None or status == LOADING or _is_end(answer):
                raise gone()
            if status != FULL:
                break
            if self._dropped or self._lost is not None:
                raise gone()
            time.sleep(AGAIN_S)
        return Answered.of(item, answer) if status == OK else Answered(item, status, answer)


def _is_end(answer: dict[str, Any]) -> bool:
    """Whether an answer says that the server writes no more."""
    problem = answer.get("error")
    return isinstance(problem, dict) and problem.get("code") == STOPPED
