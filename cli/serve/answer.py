"""One request that is written: as one body, or as server-sent events while it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from specx.backends.errors import SpecxError
from specx.cli.serve.gate import as_request_error, send_error
from specx.cli.serve.mailbox import Mailbox

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from specx.engine.api.exchange import Exchange
    from specx.engine.service import Service

__all__ = ["Answer"]

PING_S = 3.0
"""Seconds without anything to say after which a stream says that it is alive."""

PING = b": waiting\n\n"
DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
JSON_HEADERS = [(b"content-type", b"application/json")]


class Answer:
    """What answers one request. An ASGI application.

    Args:
        service: writes it.
        exchange: what was asked.
        stream: send it while it is written.
    """

    def __init__(self, service: Service, exchange: Exchange, *, stream: bool) -> None:
        self._service, self._exchange, self._stream = service, exchange, stream
        self._begun = False

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Have it written and send it; what is not wanted any more is not written."""
        mailbox = Mailbox(each=self._stream)
        watcher = asyncio.create_task(mailbox.watch(receive))
        generations = self._exchange.generations
        try:
            self._service.submit(generations, mailbox)
            await (self._pieces if self._stream else self._whole)(mailbox, send)
        except SpecxError as problem:
            await self._refuse(problem, send)
        finally:
            watcher.cancel()
            self._service.cancel(generations)

    async def _whole(self, mailbox: Mailbox, send: Send) -> None:
        exchange = self._exchange
        while not exchange.done:
            for generation, chunks in (await mailbox.take(PING_S)).items():
                exchange.feed(generation, *chunks)
        body = _encoded(exchange.body())
        headers = [*JSON_HEADERS, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _pieces(self, mailbox: Mailbox, send: Send) -> None:
        exchange = self._exchange
        while not exchange.done:
            taken = await mailbox.take(PING_S)
            events = b"" if taken else PING
            for generation, chunks in taken.items():
                new = exchange.feed(generation, *chunks)
                if not self._begun and any("error" in event for event in new):
                    exchange.body()  # raises it: this can still be a response of its own
                events += b"".join(map(_event, new))
            if exchange.done:
                events += DONE
            if events:
                await self._send(events, send, more=not exchange.done)

    async def _send(self, data: bytes, send: Send, *, more: bool) -> None:
        if not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        await send({"type": "http.response.body", "body": data, "more_body": more})

    async def _refuse(self, problem: SpecxError, send: Send) -> None:
        """Say what is wrong: as a response of its own, or within the one that has begun."""
        if self._begun:
            await self._send(_event(as_request_error(problem).body()) + DONE, send, more=False)
        else:
            await send_error(send, problem)


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + _encoded(body) + b"\n\n"
