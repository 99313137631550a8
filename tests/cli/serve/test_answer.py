"""Texts as they are sent: whole or as they come, to those who wait and to those who leave."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import pytest

from specx.backends.scripted import ScriptedCache, ScriptedModel
from specx.cli.serve import answer
from specx.engine.service import FAULTS

ENDLESS = {"prompt": "the cat", "max_tokens": 3000, "ignore_eos": True, "temperature": 1, "seed": 1}


def events_of(text):
    """The data of server-sent events, checked to be nothing but events and comments."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        assert "\n" not in block, block
        if not block.startswith(":"):
            assert block.startswith("data: "), block
            found.append(block.removeprefix("data: "))
    return found


def send(server, body, path="/v1/completions", room=None):
    """A connection on which a request was sent and nothing was read; `room` bytes are kept of what comes."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    connection = socket.socket()
    connection.settimeout(60)
    if room:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(head + data)
    return connection


def test_a_stream_is_what_the_whole_would_be(serve):
    server = serve()
    body = {"prompt": "the cat", "max_tokens": 40, "ignore_eos": True, "seed": 3}
    whole = server.post("/v1/completions", body).json()
    response = server.post(
        "/v1/completions", {**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *events, usage, done = events_of(response.text)
    assert done == "[DONE]"
    events = list(map(json.loads, events))
    assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]
    assert [event["choices"][0]["finish_reason"] for event in events][-1] == "length"
    assert all(event["id"] for event in events)
    usage = json.loads(usage)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 40


def test_texts_come_as_they_are_written(serve):
    server = serve(slow_ms=5.0)
    seen = []
    with server.client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as response:
        for line in response.iter_lines():
            if line:
                seen.append(line)
            if len(seen) == 3:
                assert server.service.writing == 1  # it is not yet finished, and nothing is held back
                break
    assert len(seen) == 3
    server.quiet()


def test_who_waits_long_is_told_that_the_server_is_alive(serve, monkeypatch):
    monkeypatch.setattr(answer, "PING_S", 0.02)
    server = serve(texts=1, slow_ms=5.0)
    first = send(server, ENDLESS)
    from_second = []
    with server.client.stream(
        "POST", "/v1/completions", json={**ENDLESS, "max_tokens": 4, "stream": True}
    ) as two:
        for line in two.iter_lines():
            from_second.append(line)
            if from_second.count(": waiting") == 2:
                first.close()  # now the second is written
    assert from_second[0] == ": waiting"
    assert from_second[-2:] == ["data: [DONE]", ""]
    server.quiet()


def test_more_than_may_wait_are_told_when_to_come_back(serve):
    server = serve(texts=1, slow_ms=5.0, most_waiting=1)
    connections = [send(server, ENDLESS)]
    server.until(lambda: server.service.writing == 1)
    connections.append(send(server, ENDLESS))
    server.until(lambda: server.service.waiting == 1)
    refused = server.post("/v1/completions", {**ENDLESS, "stream": True})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "server_busy")
    assert "1 request waits already" in error["message"]
    for connection in connections:
        connection.close()
    server.quiet()
    assert server.post("/v1/completions", {**ENDLESS, "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_room_wherever_the_text_was(serve, stream):
    server = serve(texts=1, slow_ms=5.0)
    body = {**ENDLESS, "stream": stream}
    writing, waiting = send(server, body), None
    server.until(lambda: server.service.writing == 1)
    waiting = send(server, {**body, "n": 3})
    server.until(lambda: server.service.waiting == 3)
    waiting.close()
    server.until(lambda: server.service.waiting == 0)
    assert server.service.writing == 1
    writing.close()
    server.quiet()


class SlowReading(ScriptedCache):
    """A cache that takes its time to read a prompt."""

    reading = threading.Event()

    def prefill(self, tokens, *, progress=None, **sinks):
        for i in range(0, len(tokens), 16):
            self.reading.set()
            time.sleep(0.02)
            super().prefill(tokens[i : i + 16], **sinks)
            if progress:
                progress(i, len(tokens))


def test_while_a_long_prompt_is_read_the_server_is_heard(serve, monkeypatch):
    monkeypatch.setattr(answer, "PING_S", 0.05)
    server = serve(texts=1, slow_ms=1.0, cache_class=SlowReading)
    body = {**ENDLESS, "prompt": "the cat sat on a mat " * 40, "max_tokens": 2, "stream": True}
    text = server.post("/v1/completions", body).text
    assert text.startswith(": waiting\n\n")
    assert len(events_of(text)) >= 2


def test_who_leaves_while_the_prompt_is_read_frees_the_room(serve):
    SlowReading.reading.clear()
    server = serve(texts=2, slow_ms=1.0, cache_class=SlowReading)
    with send(server, {**ENDLESS, "prompt": "the cat sat on a mat " * 150}):
        assert SlowReading.reading.wait(60)
    begun = time.monotonic()
    server.quiet()
    assert server.service.counts.predicted_tokens == 0
    assert time.monotonic() - begun < 60


class Failing(ScriptedModel):
    """A model that breaks after some steps."""

    left = 10**9
    closed = False

    def close(self):
        self.closed = True
        super().close()

    def forward(self, trees, *want):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the device is gone")
        return super().forward(trees, *want)


@pytest.mark.parametrize(("steps", "stream"), [(0, True), (0, False), (3, False)])
def test_a_failure_before_the_first_byte_is_a_response_of_its_own(serve, steps, stream):
    server = serve(model_class=Failing)
    server.service.session.model.left = steps
    response = server.post("/v1/completions", {**ENDLESS, "stream": stream})
    assert response.status_code == 500
    assert "the device is gone" in response.json()["error"]["message"]


def test_a_failure_after_the_first_byte_is_an_event(serve):
    server = serve(model_class=Failing, slow_ms=5.0)
    server.service.session.model.left = 5
    response = server.post("/v1/completions", {**ENDLESS, "stream": True})
    assert response.status_code == 200
    *_, problem, done = events_of(response.text)
    assert "the device is gone" in json.loads(problem)["error"]["message"]
    assert done == "[DONE]"


def test_after_a_failure_the_server_says_so_and_nothing_hangs(serve):
    server = serve(model_class=Failing)
    server.service.session.model.left = 0
    for _ in range(FAULTS):  # it goes on after some, but not for ever
        assert server.service.failure is None and server.client.get("/health").status_code == 200
        refused = server.post("/v1/completions", ENDLESS)
        assert refused.status_code == 500 and "the device is gone" in refused.json()["error"]["message"]
    server.until(lambda: server.service.failure is not None)
    for response in (server.client.get("/health"), server.post("/v1/completions", ENDLESS)):
        assert response.status_code == 500
        assert "the device is gone" in response.json()["error"]["message"]
    assert server.client.get("/v1/models").status_code == 200
    assert server.client.get("/metrics").status_code == 200
    # Whoever asks is still read with the vocabulary, which goes with the model.
    assert server.post("/tokenize", {"content": "the cat"}).json()["tokens"]
    model = server.service.session.model
    assert not model.closed
    server.stop()
    assert model.closed


def test_a_client_that_takes_nothing_is_left(serve):
    from specx.cli.serve.gate import Policy

    server = serve(policy=Policy(timeout_s=0.3), texts=1)
    server.places.tcp[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with send(server, {**ENDLESS, "stream": True, "n": 20}, room=4096):
        server.until(lambda: server.service.writing)
        server.quiet()
        assert server.service.counts.endings["cancelled"] > 0
        assert server.client.get("/health").status_code == 200


def test_several_clients_are_answered_together(serve):
    server = serve(texts=4, slow_ms=2.0)
    bodies = [{**ENDLESS, "seed": i, "max_tokens": 60} for i in range(6)]
    alone = [server.post("/v1/completions", body).json() for body in bodies]
    answers = [None] * 6

    def ask(number):
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            answers[number] = client.post("/v1/completions", json=bodies[number]).json()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [a["choices"] for a in answers] == [a["choices"] for a in alone]
    counts = server.service.counts
    assert counts.text_steps > round(counts.steps)  # some steps were shared
