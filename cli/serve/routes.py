"""What can be asked of a server, and where: OpenAI's endpoints, and those of llama.cpp's server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from specx.cli.resident.routes import ResidentRoutes
from specx.cli.serve import metrics, tokens
from specx.cli.serve.answer import Answer
from specx.cli.serve.gate import Gate, Policy, read_json
from specx.engine.api.asks import Defaults, read_ask
from specx.engine.api.errors import RequestError
from specx.engine.api.exchange import Exchange
from specx.engine.api.models import model_body, props_body
from specx.engine.api.paths import CHAT, COMPLETIONS

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from specx.engine.service import Service

__all__ = ["Api"]

LOADING = "the model is being loaded"


class Api:
    """The endpoints of one server.

    Args:
        policy: who may ask.
        defaults: what holds where a request says nothing.
        report: told of an exception that nobody has foreseen.
        log: told one line a request; None for no log.

    Attributes:
        service: what writes; None while the model is being loaded.
        app: the ASGI application.
        stop: ends the server in order.
    """

    stop: Callable[[], None]

    def __init__(
        self,
        policy: Policy,
        defaults: Defaults,
        report: Callable[[Exception], None],
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.service: Service | None = None
        self._policy, self._defaults = policy, defaults
        self._since = int(time.time())
        routes = [
            *_both("/chat/completions", self._chat, "POST"),
            *_both("/completions", self._complete, "POST"),
            *_both("/models", self._models, "GET"),
            *_both("/models/{name:path}", self._model, "GET"),
            *_both("/health", self._health, "GET"),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/props", self._props, methods=["GET"]),
            Route("/slots", self._slots, methods=["GET"]),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
            Route("/tokenizer_info", self._tokenizer, methods=["GET"]),
            *ResidentRoutes(lambda: self.service, self._end).routes(),
        ]
        self.app: ASGIApp = Gate(Router(routes, redirect_slashes=False), policy, report, log)
        if policy.origins:
            self.app = CORSMiddleware(
                self.app, allow_origins=policy.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
            )

    async def _chat(self, request: Request) -> Any:
        return await self._answer(request, CHAT)

    async def _complete(self, request: Request) -> Any:
        return await self._answer(request, COMPLETIONS)

    async def _answer(self, request: Request, path: str) -> Answer:
        service = self._ready()
        body = await self._body(request)

        def prepare() -> tuple[Exchange, bool]:
            ask = read_ask(body, path, self._defaults)
            return Exchange(service.session, ask), ask.stream

        exchange, stream = await run_in_threadpool(prepare)
        return Answer(service, exchange, stream=stream)

    async def _models(self, _request: Request) -> Response:
        self._ready()
        return JSONResponse({"object": "list", "data": [self._entry()]})

    async def _model(self, request: Request) -> Response:
        self._ready()
        if request.path_params["name"] != self._defaults.model:
            raise RequestError("there is no such model here", "model", code="model_not_found", status=404)
        return JSONResponse(self._entry())

    def _entry(self) -> dict[str, Any]:
        """The model, with what clients look for to learn how long a context is."""
        return model_body(self._ready().session, self._defaults.model, self._since)

    async def _health(self, _request: Request) -> Response:
        service = self._ready()
        if service.failure is not None:
            raise RequestError(service.failure.message, code="server_failed", status=500)
        return JSONResponse({"status": "ok"})

    async def _metrics(self, _request: Request) -> Response:
        return Response(metrics.exposition(self._ready()), headers={"content-type": metrics.CONTENT_TYPE})

    async def _props(self, _request: Request) -> Response:
        return JSONResponse(props_body(self._ready().session, self._defaults))

    async def _slots(self, _request: Request) -> Response:
        service = self._ready()
        slots: list[dict[str, Any]] = [
            {"id": number, "n_ctx": service.session.n_ctx, "is_processing": False}
            for number in range(service.session.at_once)
        ]
        for slot, generation in zip(slots, service.in_work(), strict=False):
            slot["is_processing"] = True
            slot["n_prompt_tokens"] = len(generation.request.prompt)
            slot["next_token"] = [{"n_decoded": len(generation.result.tokens)}]
        return JSONResponse(slots)

    async def _tokenize(self, request: Request) -> Response:
        session, body = self._ready().session, await self._body(request)
        return JSONResponse(await run_in_threadpool(tokens.tokenize, session, body))

    async def _detokenize(self, request: Request) -> Response:
        session, body = self._ready().session, await self._body(request)
        return JSONResponse(await run_in_threadpool(tokens.detokenize, session, body))

    async def _tokenizer(self, _request: Request) -> Response:
        return JSONResponse(tokens.tokenizer_body(self._ready().session))

    def _end(self) -> None:
        self.stop()

    def _ready(self) -> Service:
        if self.service is None:
            raise RequestError(LOADING, code="model_loading", status=503, hint="try again in a moment")
        return self.service

    async def _body(self, request: Request) -> Any:
        return await read_json(request.scope, request.receive, self._policy.timeout_s)


def _both(path: str, endpoint: Callable[[Request], Any], method: str) -> list[Route]:
    """With /v1 before it, and without."""
    return [Route(prefix + path, endpoint, methods=[method]) for prefix in ("/v1", "")]
