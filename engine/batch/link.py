"""The way to a Ray cluster: reaching it, waiting for what it brings, noticing that it is gone, leaving it."""

from __future__ import annotations

import logging
import math
import os
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from specx.backends.errors import ClusterError, SpecxError

__all__ = ["GoneError", "Row", "connect", "import_ray", "interruptible", "leave", "nodes_of"]

INSTALL_HINT = "install it here and on every node: pip install 'ray[data]>=2.50'"
CONNECT_S, ANSWER_S = 10.0, 60.0
WATCH_S, MISSES = 5.0, 6  # how often the head is looked for, and not found until it is gone; Ray waits 60 s
SLICE_S = 0.1  # of waiting, after which it is looked whether to stop
COLOR = re.compile(r"\x1b\[[0-9;]*m")
ADDRESS = re.compile(r"\bip[=:] ?([^\s,)]+)")  # of a node, where Ray says what failed there
DEAD = "The actor is dead because "

Row = dict[str, Any]
T = TypeVar("T")


def import_ray() -> Any:
    """Ray, told to be silent.

    Raises:
        ClusterError: it cannot be loaded.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is raised
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")  # of SIGTERM, too
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # not again by what still waits at the end
    try:
        import ray
        import ray.data
    except ImportError as problem:
        raise ClusterError(f"--ray needs Ray, and it cannot be loaded: {problem}", INSTALL_HINT) from problem
    for name in ("ray", "ray.data"):  # errors, too: they are raised here, or come of having left
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return ray


def connect(ray: Any, address: str, stopped: Callable[[], bool]) -> bool:
    """Become part of a cluster; False if it is stopped before.

    Raises:
        ClusterError: it cannot be reached.
    """
    host, colon, port = address.rpartition(":")
    came: queue.Queue[Exception | None] = queue.Queue()

    def connect() -> None:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
            came.put(None)
        except Exception as problem:  # noqa: BLE001 (raised where it is waited for)
            came.put(problem)

    problem: Exception | None
    try:
        if colon and port.isdecimal() and "/" not in host:  # Ray would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        # In a thread of its own, Ray leaves the handlers of signals alone; and nothing ends its wait for
        # something else that listens there.
        threading.Thread(target=connect, daemon=True).start()
        with _no_stderr():  # it says there which level of logging it was told
            problem = _taken(came, stopped, ANSWER_S)
        if problem is None:
            return True
    except _StoppedError:
        return False
    except queue.Empty:
        problem = TimeoutError(f"nothing there answers as one does within {ANSWER_S:.0f} s")
    except (OSError, ValueError, OverflowError) as found:
        problem = found
    first = (str(problem).strip().splitlines() or ["no reason given"])[0]
    raise ClusterError(
        f"no Ray cluster can be reached at {address}: {first}",
        "start one: ray start --head, and on the other nodes what it says",
    ) from problem


def leave(ray: Any) -> None:
    """Be no part of the cluster any more."""
    with suppress(Exception):  # it may be gone
        ray.shutdown()


def nodes_of(ray: Any, address: str) -> set[str]:
    """Those that can be used now.

    Raises:
        ClusterError: there is none.
    """
    nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}
    if not nodes:
        raise ClusterError(f"no node of the cluster {address} has a CPU", "see `ray status`")
    return nodes


@contextmanager
def _no_stderr() -> Iterator[None]:
    """What native code writes there goes nowhere."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class GoneError(ClusterError):
    """Nobody is where the head of the cluster was."""


def _watch(head: str, problems: queue.Queue[Any], ended: threading.Event) -> None:
    """Say so if the head of the cluster, HOST:PORT, is gone: Ray would end the process without a word."""
    host, _, port = head.rpartition(":")
    missed = 0
    while missed < MISSES:
        if ended.wait(WATCH_S):
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=WATCH_S).close()
            missed = 0
        except OSError:
            missed += 1
    problems.put(GoneError(f"the cluster at {head} is gone", "go on when it works again: --resume"))


def interruptible(rows: Iterator[Row], stopped: Callable[[], bool], head: str) -> Iterator[Row]:
    """`rows` until it is `stopped`, however long one is waited for.

    Raises:
        ClusterError: the cluster fails, or its `head` is gone.
    """
    arrived: queue.Queue[Row | BaseException | None] = queue.Queue(1024)

    def bring() -> None:
        try:
            for row in rows:
                arrived.put(row)
            arrived.put(None)
        except BaseException as problem:  # noqa: BLE001 (raised where the rows are taken)
            arrived.put(problem)

    ended = threading.Event()
    threading.Thread(target=bring, daemon=True).start()
    threading.Thread(target=_watch, args=(head, arrived, ended), daemon=True).start()
    try:
        while (row := _taken(arrived, stopped)) is not None:
            if isinstance(row, SpecxError):
                raise row
            if isinstance(row, BaseException):
                raise ClusterError(_reason(row), "go on when it works again: --resume") from row
            yield row
    except _StoppedError:
        return
    finally:
        ended.set()


def _reason(problem: BaseException) -> str:
    """What Ray raised, in one line, with the node where it happened if it says so."""
    text = COLOR.sub("", str(problem)).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(problem).__name__]
    told = lines[0]
    if "Traceback" in text or "ray::" in told:  # of a node; the reason is at its end
        told = lines[-1]
    for line in lines:
        if line.startswith(DEAD):
            told = line.removeprefix(DEAD).partition(". ")[0]
    where = ADDRESS.search(text)
    return f"the cluster failed{f' on the node {where[1]}' if where else ''}: {told}"


class _StoppedError(Exception):
    """It was stopped while something was waited for."""


def _taken(arrived: queue.Queue[T], stopped: Callable[[], bool], most_s: float = math.inf) -> T:
    """What arrives next.

    Raises:
        queue.Empty: nothing, for so many seconds.
        _StoppedError: it was `stopped`.
    """
    end = time.monotonic() + most_s
    while not stopped():
        try:
            return arrived.get(timeout=SLICE_S)
        except queue.Empty:
            if time.monotonic() > end:
                raise
    raise _StoppedError
