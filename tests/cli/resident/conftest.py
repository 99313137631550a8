from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from specx import __version__
from specx.cli.resident.place import place_of
from specx.engine.settings import Asked

PATIENCE = 240  # seconds that anything may take on a busy machine
ABOUT = {
    "version": __version__,
    "pid": os.getpid(),
    "busy": False,
    "model_name": "fake",
    "n_ctx": 4096,
    "at_once": 4,
    "vocab_size": 1000,
    "chat_template": None,
    "bos_text": "<s>",
    "eos_text": "</s>",
    "drafter_name": "auto",
    "drafter_label": "auto",
    "setup": {},
    "summary": "fake, drafter auto",
}


def response(*lines: dict, status: int = 200, chunked: bool = True, torn: bool = False) -> bytes:
    """A whole response of HTTP; `torn` without its end."""
    parts = [json.dumps(line).encode() + b"\n" for line in lines]
    head = f"HTTP/1.1 {status} Some Reason\r\ncontent-type: application/x-ndjson\r\n"
    if not chunked:
        return head.encode() + b"\r\n" + b"".join(parts)
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return head.encode() + b"transfer-encoding: chunked\r\n\r\n" + body + (b"" if torn else b"0\r\n\r\n")


class FakeServer:
    """Answers each route with the bytes that are set for it; None keeps the connection open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[str, dict]] = []
        self.answers: dict[str, bytes | None] = {"hello": response(ABOUT)}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def until(self, route: str) -> None:
        """Wait until somebody has asked that."""
        deadline = time.monotonic() + PATIENCE
        while not any(asked == route for asked, _ in self.asked):
            assert time.monotonic() < deadline, f"nobody asked {route}: {self.asked}"
            time.sleep(0.01)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as file:
            if not (first := file.readline()):  # somebody only looked whether anybody is here
                connection.close()
                return
            route = first.split()[1].decode().removeprefix("/specx/")
            length = 0
            while (line := file.readline()).strip():
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            self.asked.append((route, json.loads(file.read(length))))
        answer = self.answers.get(route, response({}, status=404))
        if answer is None:
            self._held.append(connection)
            return
        with suppress(OSError), connection:  # whoever asked may have heard enough
            for i in range(0, len(answer), 7):  # in pieces that end anywhere
                connection.sendall(answer[i : i + 7])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for each in self._held:
            each.close()


@pytest.fixture
def runtime(monkeypatch, tmp_path_factory):
    """A runtime directory with a path that is short enough for sockets."""
    path = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


@pytest.fixture
def place(runtime, model):
    return place_of(Asked(model), make=True)


@pytest.fixture
def server(place):
    fake = FakeServer(place.socket)
    yield fake
    fake.close()
