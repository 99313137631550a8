"""What the thread that writes says, as the event loop hears it."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Receive

    from specx.backends.errors import SpecxError
    from specx.engine.generation import Generation
    from specx.engine.text.answer import Chunk

__all__ = ["Gone", "Mailbox"]


class Gone(Exception):  # noqa: N818 -- nothing is wrong
    """Who asked is no longer there."""


EVERY_S = 0.04
"""Least seconds between two looks at what has come, but for an end.

An eye sees no difference, and a loop that is woken at each step of a small model takes time from the threads
that compute."""


class Mailbox:
    """Chunks for one request, in order. Filled from any thread, emptied in the event loop. A `Receiver`.

    The loop is woken for the first one and for those that end a text, and looks at the rest every `EVERY_S`.

    Args:
        each: wake it for the first one, too.
    """

    def __init__(self, *, each: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[tuple[Generation, Chunk]] = deque()
        self._event = asyncio.Event()
        self._each = each
        self._wakes = each  # whether a chunk that ends nothing wakes the loop
        self._looked = 0.0
        self._ended: Exception | None = None

    def add(self, generation: Generation, chunk: Chunk) -> None:
        """What a step added."""
        if self._ended is not None:
            return
        self._items.append((generation, chunk))
        if chunk.last or self._wakes:
            self._wake()

    def fail(self, problem: SpecxError) -> None:
        """Nothing more comes."""
        self._ended = self._ended or problem
        self._wake()

    async def watch(self, receive: Receive) -> None:
        """Notice when who asked closes the connection."""
        with suppress(asyncio.CancelledError):
            while (await receive())["type"] != "http.disconnect":
                pass
            self._ended = Gone()
            self._wake()

    def _wake(self) -> None:
        self._wakes = False
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._event.set)

    async def take(self, wait_s: float) -> dict[Generation, list[Chunk]]:
        """What has come of each, oldest first; nothing after so many seconds without anything.

        Raises:
            SpecxError: nothing more comes.
            Gone: nobody wants it any more.
        """
        await self._wait(self._looked + EVERY_S - self._loop.time())
        self._wakes = self._each
        if not self._items and self._ended is None:
            await self._wait(wait_s)
        self._wakes = False
        self._looked = self._loop.time()
        if self._ended is not None and (isinstance(self._ended, Gone) or not self._items):
            raise self._ended
        taken: dict[Generation, list[Chunk]] = {}
        for _ in range(len(self._items)):  # more may be added meanwhile
            generation, chunk = self._items.popleft()
            taken.setdefault(generation, []).append(chunk)
        return taken

    async def _wait(self, seconds: float) -> None:
        """Until it is woken, or for so long."""
        if seconds > 0:
            alarm = self._loop.call_later(seconds, self._event.set)
            try:
                await self._event.wait()
            finally:
                alarm.cancel()
        self._event.clear()
