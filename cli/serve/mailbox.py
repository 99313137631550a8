"""What the thread that writes says, as the event loop hears it."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specx.backends.errors import SpecxError
    from specx.engine.generation import Generation
    from specx.engine.text.answer import Chunk

__all__ = ["Gone", "Mailbox"]


class Gone(Exception):  # noqa: N818 -- nothing is wrong
    """Who asked is no longer there."""


class Mailbox:
    """Chunks for one request, in order. Filled from any thread, emptied in the event loop. A `Receiver`.

    The loop is woken once for all that has come until it looks.

    Args:
        each: wake it for every chunk; otherwise for those that end a text.
    """

    def __init__(self, *, each: bool) -> None:
        self._each = each
        self._loop = asyncio.get_running_loop()
        self._items: deque[tuple[Generation, Chunk]] = deque()
        self._event = asyncio.Event()
        self._woken = False
        self._ended: Exception | None = None

    def add(self, generation: Generation, chunk: Chunk) -> None:
        """What a step added."""
        self._items.append((generation, chunk))
        if self._each or chunk.last:
            self._wake()

    def fail(self, problem: SpecxError) -> None:
        """Nothing more comes."""
        self._ended = self._ended or problem
        self._wake()

    def gone(self) -> None:
        """Who asked has closed the connection."""
        self._ended = Gone()
        self._wake()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._event.set)

    async def take(self, wait_s: float) -> list[tuple[Generation, Chunk]]:
        """What has come, oldest first; nothing after so many seconds without anything.

        Raises:
            SpecxError: nothing more comes.
            Gone: nobody wants it any more.
        """
        if not self._items and self._ended is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._event.wait()
        self._woken = False
        self._event.clear()
        if self._ended is not None and (isinstance(self._ended, Gone) or not self._items):
            raise self._ended
        return [self._items.popleft() for _ in range(len(self._items))]
