"""Where a server listens: TCP on this machine, or a Unix socket that nobody but its owner can open."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from specx.backends.errors import SpecxError, UsageError

__all__ = ["ListenError", "UnixSocket", "address_of", "is_loopback", "listen_tcp"]

BACKLOG = 512
LONGEST_PATH = 103  # bytes of the path of a Unix socket, on every system
CONNECT_S = 2.0


class ListenError(SpecxError):
    """The server cannot listen where it was told to."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that host: `localhost`, 127.0.0.0/8 or ::1."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


def listen_tcp(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at every address of `host`, at the same port; 0 picks a free one.

    Raises:
        ListenError: the port is taken or not allowed, or the host is not one of this machine's.
    """
    opened: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise ListenError(f"there is no host {host!r}: {reason}", "this machine is 127.0.0.1") from None
    for family, _, _, _, address in dict.fromkeys(found):
        place = (address[0], opened[0].getsockname()[1] if opened else port, *address[2:])
        try:
            opened.append(_listen(family, place))
        except OSError as problem:
            if opened and problem.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # `localhost` is often ::1 as well, where there is no IPv6
            for each in opened:
                each.close()
            raise _refused(host, port, problem) from None
    return opened


def _listen(family: int, place: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(place)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _refused(host: str, port: int, problem: OSError) -> ListenError:
    if problem.errno == errno.EADDRINUSE:
        hint = f"choose another with --port {port + 1 if port < 65535 else 8080}, or --port 0 for any"
        return ListenError(f"port {port} of {host} is in use", hint)
    if problem.errno == errno.EACCES:
        return ListenError(f"port {port} of {host} is not allowed here", "choose one above 1023")
    if problem.errno == errno.EADDRNOTAVAIL:
        return ListenError(f"{host} is no address of this machine", "this machine is 127.0.0.1")
    return ListenError(f"cannot listen at {host} port {port}: {problem.strerror}", "")


def address_of(listener: socket.socket) -> str:
    """What to put into a client: `http://127.0.0.1:8080`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


class UnixSocket:
    """A Unix socket with mode 0600 from its first moment. A stale one in its place is replaced.

    Args:
        path: where it is to be. Its folder exists.

    Raises:
        ListenError: somebody listens there already, or it cannot be made.
        UsageError: the path cannot be one, or something else is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        if len(os.fsencode(self.path)) > LONGEST_PATH:
            raise UsageError(
                f"{path} is too long for a socket: at most {LONGEST_PATH} bytes", "give a shorter one"
            )
        made = self.path.with_name(f".{os.getpid()}")
        try:
            with _alone_in(self.path.parent):
                _check_free(self.path)
                self.listener = _bind_private(made)
                self._identity = _identity(made)
                made.replace(self.path)
        except OSError as problem:
            with suppress(OSError):
                made.unlink()
            raise ListenError(f"cannot listen at {path}: {problem.strerror}", "name another place") from None

    def remove(self) -> None:
        """Take it away, unless another has taken its place."""
        with suppress(OSError):
            if _identity(self.path) == self._identity:
                self.path.unlink()


def _bind_private(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        with suppress(FileNotFoundError):
            path.unlink()  # of a process that had the same number
        listener.bind(str(path))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two servers that start at once look and listen one after the other."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _check_free(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} is there already, and no socket", "name another place")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:
            pass  # a full backlog, or it may not be opened: somebody is there
    raise ListenError(f"a server listens at {path} already", "use that one, or name another place")
