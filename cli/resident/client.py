"""Asking a server over its Unix socket: one request a connection, answered by lines of JSON.

It is HTTP/1.1, for the server speaks nothing else, by the few lines of it that are needed: Python's own
client takes longer to import than an answer may take to begin.
"""

from __future__ import annotations

import json
from _socket import (  # the module around it takes long to make enums of its constants
    AF_UNIX,
    SHUT_RDWR,
    SOCK_STREAM,
)
from _socket import socket as Socket  # noqa: N812
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

__all__ = ["OK", "Connection", "LostError", "ask"]

OK = 200
PIECE = 65536
LONGEST_HEAD = 65536
LONGEST_LENGTH = 20  # digits


class LostError(Exception):
    """Nobody is there, or nobody any more, or what is there speaks something else."""


class Connection:
    """One request and its response.

    Args:
        path: the socket.
        wait_s: seconds that connecting, and whatever is sent or waited for, may take; None for any time.

    Raises:
        LostError: nobody is there.
    """

    def __init__(self, path: Path, wait_s: float | None) -> None:
        self._socket = Socket(AF_UNIX, SOCK_STREAM)
        self._buffer = b""
        self._chunked = False
        self._left: int | None = None  # bytes of the body that are to come, where the head says how many
        self._ended = False
        self._refused: OSError | None = None  # why not all that was sent was taken
        self.status = 0
        try:
            self._socket.settimeout(wait_s)
            self._socket.connect(str(path))
        except OSError as problem:
            self._socket.close()
            raise LostError(_reason(problem)) from problem

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def end(self) -> None:
        """Have whoever waits for the response hear that there is none. From any thread, and twice."""
        with suppress(OSError):
            self._socket.shutdown(SHUT_RDWR)

    def close(self) -> None:
        """Nothing more is wanted."""
        self._socket.close()

    def wait(self, wait_s: float | None) -> None:
        """Wait so long from now on."""
        self._socket.settimeout(wait_s)

    def send(self, route: str, body: Mapping[str, Any]) -> None:
        """Post a JSON object. Whoever takes only a part of it may still say why, in the response.

        Raises:
            LostError: it is not taken.
        """
        data = json.dumps(body).encode()
        head = (
            f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        try:
            self._socket.sendall(head.encode() + data)
        except (BrokenPipeError, ConnectionResetError) as problem:
            self._refused = problem
        except OSError as problem:
            raise LostError(_reason(problem)) from problem

    def lines(self) -> Iterator[dict[str, Any]]:
        """The objects of the response, one a line, as they come.

        Raises:
            LostError: the connection ends in the middle, or what comes is no such response.
        """
        self._head()
        rest = b""
        while piece := self._piece():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                if line.strip():
                    yield _object(line)
        if rest.strip():
            yield _object(rest)

    def _head(self) -> None:
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > LONGEST_HEAD or not self._more():
                missing = "the response has no end of its head"
                raise LostError(missing if self._refused is None else _reason(self._refused))
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        parts = first.split(b" ")
        if not first.startswith(b"HTTP/1.") or len(parts) < 2 or not parts[1].isdigit():
            raise LostError("the response is no HTTP")
        self.status = int(parts[1])
        parted = (line.partition(b":") for line in lines)
        fields = {name.strip().lower(): value.strip() for name, _, value in parted}
        self._chunked = fields.get(b"transfer-encoding", b"").lower() == b"chunked"
        length = fields.get(b"content-length", b"")
        self._left = int(length) if length.isdigit() and len(length) < LONGEST_LENGTH else None

    def _piece(self) -> bytes:
        """More of the body; nothing at its end."""
        if self._ended:
            return b""
        if not self._chunked:
            if self._left == 0:
                return b""
            if not self._buffer and not self._more():
                if self._left is not None:
                    raise LostError("the response is cut short")
                return b""
            piece, self._buffer = self._buffer[: self._left], b""
            if self._left is not None:
                self._left -= len(piece)
            return piece
        size = self._size()
        while len(self._buffer) < size + 2:
            if not self._more():
                raise LostError("the response is cut short")
        piece, self._buffer = self._buffer[:size], self._buffer[size + 2 :]
        self._ended = size == 0
        return piece

    def _size(self) -> int:
        """Of the next chunk, whose first line is taken away."""
        while b"\r\n" not in self._buffer:
            if not self._more():
                raise LostError("the response is cut short")
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        try:
            return int(line.partition(b";")[0], 16)
        except ValueError:
            raise LostError("the response is damaged") from None

    def _more(self) -> bool:
        """Whether anything more came."""
        try:
            piece = self._socket.recv(PIECE)
        except OSError as problem:
            raise LostError(_reason(problem)) from problem
        self._buffer += piece
        return bool(piece)


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        raise LostError("the response is no JSON") from None
    if not isinstance(value, dict):
        raise LostError("the response is no JSON object")
    return value


def ask(path: Path, route: str, body: Mapping[str, Any], wait_s: float) -> dict[str, Any]:
    """One question and its answer.

    Raises:
        LostError: there is none, or it does not come in time, or it is a refusal.
    """
    with Connection(path, wait_s) as connection:
        connection.send(route, body)
        answer = next(connection.lines(), None)
        if answer is None or connection.status != OK:
            raise LostError("there is no answer")
        return answer


def _reason(problem: Exception) -> str:
    """Why, without the number that the system has for it."""
    return getattr(problem, "strerror", None) or str(problem)
