"""HTTP as it comes over the wire: what is no HTTP, what comes too slowly, and what comes at once."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import pytest

from specx.cli.serve import wire
from specx.cli.serve.gate import Policy


def exchange(server, *pieces, pause_s=0.0):
    """Send bytes and return everything that comes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        received = b""
        with suppress(OSError):  # it may be closed while something of ours is unread
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while data := connection.recv(65536):
                received += data
        return received


WRONG = [
    b"hello\r\n\r\n",
    b"\x00\x01\x02\x03\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET /health HTTP/1.1\r\n\r\n",  # no Host
    b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 300_000 + b"\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


def test_what_is_no_http_is_said_in_json_and_closed(serve):
    server = serve()
    for data in WRONG:
        received = exchange(server, data)
        if received:  # what cannot be read to its end may be reset instead
            head, _, body = received.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 4"), (data[:60], received[:200])
            assert b"application/json" in head.lower()
            assert b'"error"' in body
    assert server.client.get("/health").status_code == 200


@pytest.mark.parametrize("asked", [b"GET /v1/models", b"GET /metrics", b"GET /x", b"POST /v1/completions"])
def test_a_body_that_is_no_http(serve, asked):
    """It may come while the answer is made already; the fixture looks at what was reported."""
    server = serve()
    head = asked + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    received = exchange(server, head + b"3\r\nabc\r\nzz\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400")
    server.quiet()
    assert server.client.get("/health").status_code == 200


def test_several_requests_share_a_connection_one_after_the_other(serve):
    server = serve()
    asked = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    received = exchange(server, asked + asked, asked)
    assert received.count(b"HTTP/1.1 200") == 3


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: loc"])
def test_who_asks_nothing_is_left(serve, monkeypatch, sent):
    monkeypatch.setattr(wire, "HEAD_S", 0.2)
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(sent)
        assert connection.recv(100) == b""


def test_a_head_that_drips_is_left_all_the_same(serve, monkeypatch):
    monkeypatch.setattr(wire, "HEAD_S", 0.3)
    server = serve()
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        try:
            while time.monotonic() - begun < 60:
                connection.sendall(b"X: y\r\n")
                time.sleep(0.02)
        except (BrokenPipeError, ConnectionResetError):
            return
    pytest.fail("it was listened to for ever")


def test_a_body_that_drips_is_an_error(serve):
    server = serve(policy=Policy(timeout_s=0.2))
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_the_deadline_of_a_head_does_not_end_a_long_answer(serve, monkeypatch):
    monkeypatch.setattr(wire, "HEAD_S", 0.1)
    server = serve(slow_ms=10.0)
    body = {"prompt": "the cat", "max_tokens": 60, "temperature": 1, "seed": 1, "ignore_eos": True}
    assert server.post("/v1/completions", body).json()["usage"]["completion_tokens"] == 60
    assert server.post("/v1/completions", body).json()["usage"]["completion_tokens"] == 60


def test_an_address_may_be_whole(serve):
    # As proxies send it (RFC 9112, 3.2.2).
    for path in ("/health", "http://127.0.0.1/health", "http://127.0.0.1/health?x=1"):
        head = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
        assert exchange(serve(), head.encode()).startswith(b"HTTP/1.1 200 ")
    wrong = exchange(
        serve(), b"GET http://[x/health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    )
    assert wrong.startswith(b"HTTP/1.1 400 ") and b'"error"' in wrong
