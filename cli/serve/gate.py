"""What every request passes: who may ask, how much may be sent, and that each answer is in order."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from specx.backends.errors import SpecxError
from specx.cli.serve.listen import is_loopback
from specx.cli.serve.mailbox import Gone
from specx.engine.api.errors import RequestError
from specx.engine.service import BusyError, StoppedError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Gate", "Policy", "as_request_error", "read_json", "send_error"]

PUBLIC = ("/health", "/v1/health")
OWN = "/specx/"
"""Before the paths that this user's commands ask, at a socket that nobody else can open."""

BODY_LIMIT = 16 * 2**20
"""Bytes of a request: a prompt as token ids that fills a context of a million takes half of it."""

LARGE_BODY = 64 * 1024
"""Bytes from which on a request is read beside the event loop."""

JSON_TYPE = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may ask what.

    Attributes:
        keys: API keys, one of which is needed if there are any.
        origins: web pages of other origins that may ask; "*" is all of them.
        local: it listens on the loopback interface alone, so that other host names are a forged DNS entry.
        timeout_s: that a client may keep the server waiting, while it sends or takes something.
    """

    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    local: bool = True
    timeout_s: float = 600.0

    def check(self, scope: Scope) -> None:
        """Refuse what may not be asked.

        Raises:
            RequestError: with status 401 or 403.
        """
        headers = _headers(scope)
        over_tcp = bool(scope.get("server")) and scope["server"][1] is not None
        host = headers.get(b"host", b"").decode("latin-1")
        if over_tcp and self.local and host and not is_loopback(_name_of(host)):
            raise RequestError(
                "this host name is not one of this machine's",
                hint="ask 127.0.0.1 or localhost",
                status=403,
                code="host_not_allowed",
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and not self._allows(origin, host):
            raise RequestError(
                "web pages of this origin may not ask",
                hint="start the server with --cors and the origin",
                status=403,
                code="origin_not_allowed",
            )
        own = not over_tcp and scope["path"].startswith(OWN)
        if self.keys and not own and scope["path"] not in PUBLIC and not self._knows(headers):
            raise RequestError(
                "no valid API key was given",
                hint="send it as `Authorization: Bearer KEY`",
                status=401,
                code="invalid_api_key",
            )

    def _allows(self, origin: str, host: str) -> bool:
        if "*" in self.origins or origin in self.origins:
            return True
        return bool(host) and urlsplit(origin).netloc.lower() == host.lower()

    def _knows(self, headers: Mapping[bytes, bytes]) -> bool:
        given = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = token.strip()
        known = [hmac.compare_digest(given, key.encode()) for key in self.keys]
        return any(known)  # all are compared, however early one fits


class Gate:
    """Checks what comes in, turns what goes wrong into answers, and tells `log` how each request ended.

    Args:
        app: what answers.
        policy: who may ask.
        report: told of an exception that nobody has foreseen.
        log: told one line a request; None for no log.
    """

    def __init__(
        self,
        app: ASGIApp,
        policy: Policy,
        report: Callable[[Exception], None],
        log: Callable[[str], None] | None = None,
    ) -> None:
        self._app, self._policy, self._report, self._log = app, policy, report, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            async with asyncio.timeout(self._policy.timeout_s):
                await send(message)

        scope["app"] = self._app  # so that routing raises what it does not know
        try:
            if not scope["path"].startswith("/"):  # a whole address, as proxies send it
                scope["path"] = _path_of(scope["path"])
            self._policy.check(scope)
            await self._app(scope, receive, sending)
        except (Gone, TimeoutError):  # whoever asked is not there, or takes nothing
            status = status or 499
        except SpecxError as problem:
            await send_error(sending, problem)
        except HTTPException as problem:
            await send_error(sending, _not_here(problem.status_code), problem.headers or {})
        except Exception as problem:
            self._report(problem)
            if status:
                raise  # the response cannot be completed: the connection is closed
            await send_error(sending, RequestError("something went wrong in the server", status=500))
        finally:
            if self._log is not None:
                client = (scope.get("client") or ("local",))[0]
                took = (time.monotonic() - began) * 1e3
                self._log(f"{client} {scope['method']} {scope['path']} {status} {took:.0f} ms")


def _path_of(address: str) -> str:
    """The path in a whole address.

    Raises:
        RequestError: it is no address.
    """
    try:
        return urlsplit(address).path or "/"
    except ValueError as problem:
        raise RequestError(f"the address cannot be read: {problem}") from None


def _not_here(status: int) -> RequestError:
    """A path or a method that is not served."""
    what = "there is no such path" if status == 404 else "this path is for another method"
    return RequestError(what, status=status, hint="see /v1/chat/completions, /v1/models, /health")


def as_request_error(problem: SpecxError) -> RequestError:
    """What a client is told of `problem`."""
    if isinstance(problem, BusyError):
        return RequestError(problem.message, code="server_busy", status=429, hint=problem.hint)
    if isinstance(problem, StoppedError):
        status = 500 if problem.failed else 503
        return RequestError(problem.message, code="server_stopped", status=status, hint=problem.hint)
    return RequestError.of(problem, status=500)


async def send_error(send: Send, problem: SpecxError, also: Mapping[str, str] | None = None) -> None:
    """A whole response that says what is wrong, with headers `also`."""
    error = as_request_error(problem)
    body = json.dumps(error.body()).encode()
    headers = [JSON_TYPE, (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in (also or {}).items()]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if (seconds := getattr(problem, "retry_s", None)) is not None:
        headers.append((b"retry-after", str(seconds).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_json(scope: Scope, receive: Receive, timeout_s: float) -> Any:
    """The body of a request, read as JSON.

    Raises:
        RequestError: it is too large (413), comes too slowly (408) or is no JSON (400).
        Gone: the client left before it was complete.
    """
    too_large = RequestError(f"a request has at most {BODY_LIMIT} bytes", status=413)
    length = _headers(scope).get(b"content-length", b"0")
    if length.isdigit() and int(length) > BODY_LIMIT:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                body += message.get("body", b"")
                if len(body) > BODY_LIMIT:
                    raise too_large
                if not message.get("more_body"):
                    break
    except TimeoutError:
        raise RequestError("the request did not come to its end in time", status=408) from None
    try:
        return await run_in_threadpool(_value, body) if len(body) > LARGE_BODY else _value(body)
    except (ValueError, RecursionError) as problem:
        what = f"is not valid JSON: {problem}"
        if isinstance(problem, RecursionError):
            what = "is nested too deeply"
        elif not isinstance(problem, (json.JSONDecodeError, UnicodeDecodeError, _NoNumberError)):
            what = "has a number that is too long"
        raise RequestError(f"the request {what}", hint="send a JSON object in UTF-8") from None


def _value(body: bytearray) -> Any:
    return json.loads(body.decode("utf-8-sig"), parse_constant=_no_number)


class _NoNumberError(ValueError):
    """What Python takes for a number is none in JSON."""


def _no_number(text: str) -> float:
    raise _NoNumberError(f"{text} is no number in JSON")


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _name_of(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
