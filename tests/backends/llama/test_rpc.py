"""RPC servers that are named wrongly, are not there, are something else, or are busy."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from specx.backends.errors import ModelError
from specx.backends.llama import rpc


@contextmanager
def listening(answer):
    """A server that calls `answer` with its first connection; its endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(timeout=10)


@pytest.fixture(autouse=True)
def added(monkeypatch):
    """What ggml was told to add."""
    told = []
    monkeypatch.setattr(rpc, "_added", [])
    monkeypatch.setattr(rpc, "_add_server", lambda: lambda endpoint: told.append(endpoint) or None)
    return told


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        ("node1:50052", ""),
        ("192.168.0.7:1", ""),
        ("node1", "not HOST:PORT"),
        (":50052", "not HOST:PORT"),
        ("node1:", "no port"),
        ("node1:0", "no port"),
        ("node1:65536", "no port"),
        ("node1:x", "no port"),
        ("[::1]:50052", "no port"),  # ggml reads up to the first colon
        ("node1:²", "no port"),
    ],
)
def test_endpoints(endpoint, problem):
    found = rpc.endpoint_problem(endpoint)
    assert problem in found
    assert bool(found) == bool(problem)


def test_nobody_listens(added):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ModelError, match=f"RPC server {endpoint} cannot be reached") as error:
        rpc.add_servers([endpoint])
    assert "rpc-server" in error.value.hint
    assert not added


def test_a_host_that_does_not_exist():
    with pytest.raises(ModelError, match="cannot be reached"):
        rpc.add_servers(["no-such-host.invalid:50052"])


def test_something_else_listens(added):
    page = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with listening(lambda c: c.sendall(page)) as endpoint, pytest.raises(ModelError, match="no RPC server"):
        rpc.add_servers([endpoint])
    with listening(lambda c: c.recv(64)) as endpoint, pytest.raises(ModelError):
        rpc.add_servers([endpoint])  # hangs up
    assert not added


def test_one_that_is_busy_is_not_waited_for(added, monkeypatch):
    monkeypatch.setattr(rpc, "ANSWER_S", 0.1)
    done = threading.Event()
    with listening(lambda _c: done.wait(10)) as endpoint:
        with pytest.raises(ModelError, match="does not answer within") as error:
            rpc.add_servers([endpoint])
        done.set()
    assert "one program at a time" in error.value.hint
    assert not added


def test_one_without_a_device(added):
    greeted = []

    def answer(connection):
        greeted.append(connection.recv(64))
        connection.sendall(struct.pack("<Q", 28) + bytes(28))

    with listening(answer) as endpoint, pytest.raises(ModelError, match="offers no device"):
        rpc.add_servers([endpoint])
    assert greeted == [b"\x0e" + struct.pack("<Q", 24) + bytes(24)]
    assert added == [endpoint.encode()]


def test_a_build_without_rpc_says_so():
    script = """
import sys
from specx.backends.llama import rpc
rpc._libraries = list
if rpc._ggml().ggml_backend_reg_by_name(b"RPC"):
    sys.exit("built in")
from specx.cli.app import run
sys.exit(run(["probe", "--rpc", "127.0.0.1:1"]))
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    if done.stderr.strip().endswith("built in"):
        pytest.skip("this llama.cpp was built with RPC")
    assert done.returncode == 1
    assert "error: this llama.cpp was built without RPC" in done.stderr
    assert "GGML_RPC=ON" in done.stderr


def test_a_library_is_looked_for_where_ggml_is_told(monkeypatch, tmp_path):
    library = tmp_path / "libggml-rpc.so"
    monkeypatch.setenv("GGML_BACKEND_PATH", str(library))
    assert library not in rpc._libraries()
    library.write_bytes(b"")
    assert rpc._libraries()[0] == library
