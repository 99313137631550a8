"""HTTP on the wire: uvicorn, with a time limit for what comes before a request and errors in JSON."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from specx.engine.api.errors import RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["Server", "server_of"]

HEAD_S = 20.0
"""Seconds in which the lines before a body have to come."""

KEPT_S = 65
"""Seconds that a connection is kept for the next request."""

HEAD_LIMIT = 64 * 1024

PULSE_S = 1.0
"""Seconds between two looks at the clock: a server that waits should not be seen among running processes."""


class Protocol(H11Protocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has connected, and has to ask something."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        if self._deadline is None and self._between():
            self._expect_head()
        super().data_received(data)
        if not self._between():
            self._forget_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._forget_deadline()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP. A request before it that is being answered gets this answer instead."""
        self._forget_deadline()
        if not self._between():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # it is too late for a response
            self.transport.close()
            return
        body = json.dumps(RequestError(msg).body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _between(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_S, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """uvicorn without handlers of signals, whose meaning is decided elsewhere, and with a slower pulse."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Take no more connections, and end when those that are open have ended. In the event loop."""
        self.should_exit = True
        self._ended.set()

    async def main_loop(self) -> None:
        """Until `end`; keeps the date of responses right."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(PULSE_S):
                    await self._ended.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None."""
        yield


def server_of(app: ASGIApp, *, patience_s: float) -> Server:
    """A server for `app` that waits at its end so long for answers that are on their way."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "asyncio"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    return Server(
        uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEPT_S,
            timeout_graceful_shutdown=round(patience_s),
            h11_max_incomplete_event_size=HEAD_LIMIT,
        )
    )
