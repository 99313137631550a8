"""How a server ends: in order, at once, by itself, and with what it was doing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from specx.cli.serve import run

SCRIPT = Path(__file__).with_name("scripted_specx.py")
ENDLESS = {"prompt": "the cat", "max_tokens": 3000, "ignore_eos": True, "temperature": 1, "seed": 1}


@pytest.fixture
def spawn(tmp_path):
    """Starts `specx serve` in a process of its own; gives it and its address."""
    started, clients = [], []
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")

    def start(*arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "serve", str(model), "--port", "0", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(process)
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.communicate()[1]
        clients.append(httpx.Client(base_url=url, timeout=60, trust_env=False))
        return process, clients[-1]

    yield start
    for client in clients:
        client.close()
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ready(process):
    """Wait for the line that says that the model is loaded."""
    for line in process.stderr:
        if "at http://" in line:
            return line
    raise AssertionError("it ended before it was ready")


def test_one_line_says_what_runs_where_and_how_much(spawn):
    process, client = spawn("-np", "3")
    line = ready(process)
    assert line.startswith("scripted, context 4096, drafter auto")
    assert line.endswith(f"; 3 texts at once, at {str(client.base_url).rstrip('/')}\n")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("", "closed\n", 0)


def test_a_signal_lets_what_is_written_finish_and_keeps_what_was_learned(spawn):
    process, client = spawn(SCRIPTED_MS="10")
    ready(process)
    body = {**ENDLESS, "max_tokens": 300, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    _, err = process.communicate(timeout=60)
    assert "stopping: 1 text is finished first" in err
    assert err.endswith("closed\n")
    assert process.returncode == 0


def test_a_second_signal_ends_at_once(spawn, tmp_path):
    path = tmp_path / "s"
    process, client = spawn("--socket", str(path), SCRIPTED_MS="50")
    ready(process)
    with client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        assert "stopping" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert not path.exists()
    assert "closed" not in process.stderr.read()


def test_a_signal_while_the_model_is_loaded_ends_at_once(spawn, tmp_path):
    process, client = spawn(SCRIPTED_LOADING="300")
    assert client.get("/health").status_code == 503
    (record,) = (tmp_path / "run" / "specx").glob("*.json")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not record.exists()  # nobody is told of it any more


def test_what_is_told_to_stop_while_the_model_is_loaded_ends_when_it_is(serve, session_of):
    go = threading.Event()

    def load():
        assert go.wait(60)
        return session_of()

    server = serve(load)
    server.until(lambda: server.client.get("/health").status_code == 503)
    server.life._in_loop(server.life.stop)
    go.set()
    server.thread.join(60)
    assert not server.thread.is_alive()
    assert server.problem is None


def test_what_takes_too_long_is_dropped_and_told_why(serve, monkeypatch):
    monkeypatch.setattr(run, "GRACE_S", 0.2)
    server = serve(texts=1, slow_ms=20.0)
    got = []

    def waiting():
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            got.append(client.post("/v1/completions", json=ENDLESS))

    with server.client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        thread = threading.Thread(target=waiting)
        thread.start()
        server.until(lambda: server.service.waiting == 1)
        server.life._in_loop(server.life.stop)
        rest = [line for line in lines if line]
    thread.join(60)
    assert rest[-1] == "data: [DONE]"
    assert "stopped" in json.loads(rest[-2].removeprefix("data: "))["error"]["message"]
    assert got[0].status_code == 503
    server.thread.join(60)
    assert not server.thread.is_alive()


def test_a_server_without_anything_to_do_ends_by_itself(serve):
    server = serve(idle_s=0.2)
    server.thread.join(60)
    assert server.problem is None
    assert not server.thread.is_alive()


def test_a_socket_is_answered_and_removed(serve, tmp_path):
    path = tmp_path / "s"
    server = serve(socket=path)
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://anything", timeout=60) as client:
        assert client.get("/health").json() == {"status": "ok"}
        answer = client.post("/v1/completions", json={"prompt": "the cat", "max_tokens": 3}).json()
        assert answer["choices"][0]["text"] == " sat on a"
    server.stop()
    assert not path.exists()


def test_a_port_in_use_is_an_error_of_one_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        model = tmp_path / "model.gguf"
        model.write_bytes(b"GGUF")
        command = [sys.executable, str(SCRIPT), "serve", str(model), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f"error: port {port} of 127.0.0.1 is in use"
    assert done.stderr.splitlines()[1].startswith("hint: ")
