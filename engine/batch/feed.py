"""Items as they are wanted: from a file at once, from a pipe when they come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator

from specx.engine.batch.items import Item

__all__ = ["Feed"]

AHEAD = 256  # items that are read before they are wanted
SLICE_S = 0.1  # of waiting, after which it is looked whether to stop

Arrived = Item | BaseException | None
"""The next item, why there is none, or the end."""


class Feed:
    """The items of an input, taken one by one.

    Args:
        items: of the input.
        slow: they may have to be waited for: they are read in a thread of their own.

    Attributes:
        ended: there are no more.
        failure: why, if that is not the end of the input.
    """

    def __init__(self, items: Iterable[Item], *, slow: bool = False) -> None:
        self.ended = False
        self.failure: BaseException | None = None
        self._items: Iterator[Item] = iter(items)
        self._arrived: queue.Queue[Arrived] | None = None
        if slow:
            self._arrived = queue.Queue(AHEAD)
            # A daemon: nothing ends a read from a pipe in which nobody writes.
            threading.Thread(target=self._read, args=(self._arrived,), daemon=True).start()

    def take(self, wait: bool) -> Item | None:
        """The next item; None if there is none now, and with `wait` only if there are no more."""
        while not self.ended:
            arrived = self._next(wait)
            if isinstance(arrived, Item):
                return arrived
            if arrived is not None:
                self.failure = arrived
            elif not self.ended:  # there is none yet
                if not wait:
                    return None
                continue
            self.ended = True
        return None

    def rest(self) -> Iterator[Item]:
        """The items that were not taken yet, as they come."""
        while (item := self.take(wait=True)) is not None:
            yield item
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """Give no more. Safe to call from a signal handler."""
        self.ended = True

    def _next(self, wait: bool) -> Arrived:
        if self._arrived is None:
            try:
                item = next(self._items, None)
            except Exception as problem:  # noqa: BLE001 (told when those before it are answered)
                return problem
            self.ended = self.ended or item is None
            return item
        try:
            arrived = self._arrived.get(timeout=SLICE_S) if wait else self._arrived.get_nowait()
        except queue.Empty:
            return None
        self.ended = self.ended or arrived is None
        return arrived

    def _read(self, arrived: queue.Queue[Arrived]) -> None:
        try:
            for item in self._items:
                arrived.put(item)
            arrived.put(None)
        except Exception as problem:  # noqa: BLE001 (raised where the items are taken)
            arrived.put(problem)
