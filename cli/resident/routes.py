"""What the server of a model answers to the commands of its user, over its Unix socket alone."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from specx.backends.errors import SpecxError
from specx.cli.resident.place import ROUTES
from specx.cli.serve.answer import Answer
from specx.cli.serve.gate import read_json
from specx.cli.serve.mailbox import Mailbox
from specx.engine.api.asks import Defaults, read_ask
from specx.engine.api.errors import RequestError
from specx.engine.api.exchange import Exchange
from specx.engine.service import BusyError, StoppedError
from specx.engine.settings import SamplingSettings
from specx.engine.text.prompt import Prompt, encode

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from specx.engine.generation import Generation
    from specx.engine.service import Service
    from specx.engine.session import Session
    from specx.engine.text.answer import Chunk

__all__ = ["ResidentRoutes"]

BODY_S = 60.0
"""Seconds in which a request has to come."""

LOOK_S = 0.1
"""Seconds between two reports of how much of a prompt has been read."""

LINES = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-cache")]


class ResidentRoutes:
    """The routes below /specx/.

    Args:
        service: what writes; None while the model is being loaded.
        stop: ends the server in order.
    """

    def __init__(self, service: Callable[[], Service | None], stop: Callable[[], None]) -> None:
        self._service, self._stop = service, stop
        self._writing: dict[str, _Writing] = {}

    def routes(self) -> list[Route]:
        """For a Starlette application."""
        return [Route(f"/specx/{name}", getattr(self, name), methods=["POST"]) for name in ROUTES]

    async def hello(self, request: Request) -> Response:
        """Who is here. Answered by the event loop alone, so that nothing delays it."""
        from specx import __version__

        service = self._ready(request)
        session = service.session
        return JSONResponse(
            {
                "version": __version__,
                "pid": os.getpid(),
                "busy": service.full,
                "model_name": session.model_name,
                "n_ctx": session.n_ctx,
                "at_once": session.at_once,
                "vocab_size": session.vocab.size,
                "chat_template": session.chat_template,
                "bos_text": session.bos_text,
                "eos_text": session.eos_text,
                "drafter_name": session.drafter_name,
                "drafter_label": session.drafter_label,
                "setup": session.setup.to_json() if session.setup else {},
                "summary": session.summary(),
            }
        )

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a text."""
        session, body = self._ready(request).session, await _body(request)
        with _understood():
            text = body["text"].encode()
            flags = {name: bool(body[name]) for name in ("add_special", "parse_special")}
        return JSONResponse({"tokens": await run_in_threadpool(session.vocab.tokenize, text, **flags)})

    async def specials(self, request: Request) -> Response:
        """Control tokens that messages cannot write; null if they may."""
        session = self._ready(request).session
        found = await run_in_threadpool(lambda: session.special_texts)
        tokens = None if found is None else [list(astuple(token)) for token in found.known]
        return JSONResponse({"tokens": tokens})

    async def encode(self, request: Request) -> Response:
        """A prompt as the model reads it."""
        session, body = self._ready(request).session, await _body(request)
        with _understood():
            prompt = Prompt(**body)
        try:
            return JSONResponse(await run_in_threadpool(_encoded, session, prompt))
        except SpecxError as problem:
            return JSONResponse(_error(problem))

    async def generate(self, request: Request) -> Any:
        """An answer, as it is written."""
        service, body = self._ready(request), await _body(request)
        with _understood():
            return _Writing(service, body, self._writing)

    async def answer(self, request: Request) -> Any:
        """The body of a response to one request in OpenAI's form."""
        service, body = self._ready(request), await _body(request)
        with _understood():
            defaults = _defaults(body["defaults"])
            asked, path, name = body["body"], str(body["path"]), str(body["id"])

        def prepare() -> Exchange:
            try:
                return Exchange(service.session, read_ask(asked, path, defaults), id=name)
            except SpecxError as problem:
                raise RequestError.of(problem) from problem

        return Answer(service, await run_in_threadpool(prepare), stream=False)

    async def cancel(self, request: Request) -> Response:
        """End an answer; its own request gets what was written."""
        self._ready(request)
        writing = self._writing.get(str((await _body(request)).get("id")))
        if writing is not None:
            writing.cancel()
        return JSONResponse({"cancelled": writing is not None})

    async def stop(self, request: Request) -> Response:
        """End the server in order."""
        _check_local(request)
        asyncio.get_running_loop().call_later(0.01, self._stop)  # once this is answered
        return JSONResponse({"pid": os.getpid()})

    def _ready(self, request: Request) -> Service:
        _check_local(request)
        service = self._service()
        if service is None:
            raise RequestError("the model is being loaded", status=503)
        return service


def _check_local(request: Request) -> None:
    """Over a network there is nothing of this."""
    server = request.scope.get("server")
    if server is not None and server[1] is not None:
        raise RequestError("there is no such path", status=404)


async def _body(request: Request) -> dict[str, Any]:
    value = await read_json(request.scope, request.receive, BODY_S)
    with _understood():
        return dict(value)


@contextmanager
def _understood() -> Iterator[None]:
    """What asks is a command of the same version; anything else is told so."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RequestError("this is for the commands of specx") from None


def _encoded(session: Session, prompt: Prompt) -> dict[str, Any]:
    notices: list[str] = []

    def tokenize(text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokens = session.vocab.tokenize(text.encode(), add_special=add_special, parse_special=parse_special)
        if add_special and (warning := session.second_bos(tokens)):
            notices.append(warning)
        return tokens

    encoded = encode(prompt, session, notices.append, tokenize)
    return {
        "tokens": encoded.tokens,
        "text": encoded.text,
        "stops": encoded.stops,
        "keep": encoded.keep,
        "notices": list(dict.fromkeys(notices)),
    }


def _defaults(given: Mapping[str, Any]) -> Defaults:
    known = {**given, "sampling": _sampling(given["sampling"]), "stop": tuple(given["stop"])}
    return Defaults(**known)


def _sampling(given: Mapping[str, Any]) -> SamplingSettings:
    bias = {int(token): float(value) for token, value in given["logit_bias"]}
    return SamplingSettings(**{**given, "logit_bias": bias})


def _error(problem: SpecxError) -> dict[str, Any]:
    told = {"message": problem.message, "hint": problem.hint, "exit_code": problem.exit_code}
    return {"error": {**told, "unavailable": isinstance(problem, BusyError | StoppedError)}}


@dataclass(slots=True)
class _Read:
    """How much of a prompt has been read. Written by the thread that writes."""

    done: int = 0
    total: int = 0

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total


class _Writing:
    """One answer, as lines of JSON while it comes. An ASGI application.

    Args:
        service: writes it.
        body: what is asked; it comes from a command of this version.
        open_: the answers that can be cancelled, by their ids.
    """

    def __init__(self, service: Service, body: Mapping[str, Any], open_: dict[str, _Writing]) -> None:
        self._service, self._body, self._open = service, body, open_
        self._id = str(body["id"])
        self._sampling = _sampling(body["sampling"])
        self._generation: Generation | None = None
        self._mailbox = Mailbox(each=True)
        self._cancelled = False
        self._read = _Read()

    def cancel(self) -> None:
        """End it; what was written until then is its result."""
        self._cancelled = True
        if (generation := self._generation) is not None:
            self._service.cancel((generation,))
            if generation not in self._service.in_work():  # it is finished, or was never begun
                self._mailbox.fail(StoppedError("cancelled"))

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Have it written and send it; what nobody wants any more is not written."""
        self._open[self._id] = self
        watcher = asyncio.create_task(self._mailbox.watch(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": LINES})
            self._generation = await run_in_threadpool(self._prepare)
            self._service.submit((self._generation,), self._mailbox)
            if self._cancelled:
                self.cancel()
            await self._lines(self._generation, send)
        except SpecxError as problem:
            await _send(send, _error(problem), more=False)
        finally:
            watcher.cancel()
            del self._open[self._id]
            if self._generation is not None:
                self._service.cancel((self._generation,))

    def _prepare(self) -> Generation:
        from specx.cli.generation import check_tokens

        session, body = self._service.session, self._body
        check_tokens(session, self._sampling)
        return session.generate(
            body["prompt"],
            self._sampling,
            n_predict=body["n_predict"],
            stop=body["stop"],
            ignore_eos=body["ignore_eos"],
            constraint=None if body["grammar"] is None else session.grammar(body["grammar"]),
            keep=body["keep"],
            progress=self._read,
        )

    async def _lines(self, generation: Generation, send: Send) -> None:
        shown, begun, ended = 0, False, False
        while not ended:
            try:
                taken = await self._mailbox.take(LOOK_S)
            except StoppedError:
                if not self._cancelled:
                    raise
                break
            if chunks := taken.get(generation):
                begun, ended = True, chunks[-1].last
                await _send(send, *({"chunk": _chunk(chunk)} for chunk in chunks))
            if not begun and self._read.done > shown:
                shown = self._read.done
                await _send(send, {"read": [shown, self._read.total]})
        if generation.result.failure is not None:
            raise generation.result.failure
        await _send(send, _result(self._service.session, generation), more=False)


def _chunk(chunk: Chunk) -> dict[str, Any]:
    names = ("text", "tokens", "drafted", "accepted", "seconds", "sources", "last")
    return {name: getattr(chunk, name) for name in names}


def _result(session: Session, generation: Generation) -> dict[str, Any]:
    result = generation.result
    return {
        "result": {
            "text": result.text,
            "tokens": result.tokens,
            "finish_reason": result.finish_reason,
            "seed": result.seed,
            "timings": asdict(result.timings),
        },
        "drafter_name": session.drafter_name,
        "drafter_label": session.drafter_label,
    }


async def _send(send: Send, *lines: Mapping[str, Any], more: bool = True) -> None:
    data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    await send({"type": "http.response.body", "body": data, "more_body": more})
