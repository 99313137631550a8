"""Where a server listens: ports and sockets, free, taken, stale and in use."""

from __future__ import annotations

import os
import socket
import stat
import threading

import pytest

from specx.backends.errors import UsageError
from specx.cli.serve.listen import ListenError, UnixSocket, address_of, is_loopback, listen_tcp


def close(*opened):
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("LocalHost.", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_what_is_this_machine(host, expected):
    assert is_loopback(host) == expected


def test_port_0_is_a_free_port():
    (listener,) = listen_tcp("127.0.0.1", 0)
    port = listener.getsockname()[1]
    assert port > 0
    assert address_of(listener) == f"http://127.0.0.1:{port}"
    close(listener)


def test_every_address_of_a_name_has_the_same_port():
    listeners = listen_tcp("localhost", 0)
    assert len({listener.getsockname()[1] for listener in listeners}) == 1
    close(*listeners)


def test_a_port_in_use_is_one_sentence_and_a_hint():
    (listener,) = listen_tcp("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with pytest.raises(ListenError) as refused:
        listen_tcp("127.0.0.1", port)
    assert refused.value.message == f"port {port} of 127.0.0.1 is in use"
    assert "--port" in refused.value.hint
    close(listener)


@pytest.mark.parametrize("host", ["203.0.113.77", "no such host", "a" * 300, "\udc80"])
def test_a_host_that_is_not_here_is_refused(host):
    with pytest.raises(ListenError) as refused:
        listen_tcp(host, 0)
    assert "Errno" not in refused.value.message


def test_a_socket_is_its_owners_from_the_first_moment(tmp_path):
    folder = tmp_path / "alone"
    folder.mkdir()
    path = folder / "s"
    seen = []
    over = threading.Event()

    def look():
        while not over.is_set():
            for entry in folder.iterdir():
                try:
                    seen.append(stat.S_IMODE(entry.lstat().st_mode))
                except FileNotFoundError:
                    continue

    watcher = threading.Thread(target=look)
    watcher.start()
    before = os.umask(0)
    try:
        for _ in range(50):
            made = UnixSocket(path)
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600
            made.listener.close()
            made.remove()
            assert not path.exists()
    finally:
        os.umask(before)
        over.set()
        watcher.join()
    assert set(seen) <= {0o600}
    assert list(folder.iterdir()) == []


def test_a_stale_socket_is_replaced(tmp_path):
    path = tmp_path / "s"
    UnixSocket(path).listener.close()  # and not removed, as after a crash
    made = UnixSocket(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    close(made.listener)


def test_a_live_socket_is_refused_and_goes_on(tmp_path):
    path = tmp_path / "s"
    made = UnixSocket(path)
    with pytest.raises(ListenError, match="listens at"):
        UnixSocket(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    close(made.listener)


def test_another_file_is_never_replaced(tmp_path):
    path = tmp_path / "s"
    path.write_text("mine")
    with pytest.raises(UsageError):
        UnixSocket(path)
    assert path.read_text() == "mine"


def test_only_its_own_socket_is_removed(tmp_path):
    path = tmp_path / "s"
    first = UnixSocket(path)
    first.listener.close()
    second = UnixSocket(path)
    first.remove()
    assert path.exists()
    close(second.listener)


def test_a_path_that_cannot_be_one_is_refused(tmp_path):
    with pytest.raises(UsageError, match="too long"):
        UnixSocket(tmp_path / ("x" * 120))
    with pytest.raises(ListenError):
        UnixSocket(tmp_path / "missing" / "s")


def test_of_servers_that_start_at_once_one_listens(tmp_path):
    path = tmp_path / "s"
    made, refused = [], []

    def start():
        try:
            made.append(UnixSocket(path))
        except ListenError as problem:
            refused.append(problem)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 7)
    close(made[0].listener)
