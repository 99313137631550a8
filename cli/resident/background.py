"""A server that goes on when its shell does not: begun, looked for and ended."""

from __future__ import annotations

import os
import select
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from specx.backends.errors import SpecxError, UsageError
from specx.cli.resident.client import OK, Connection, LostError, ask
from specx.cli.resident.place import Place, Record, records
from specx.cli.terminal.console import notice, write
from specx.cli.terminal.tables import show_fields

__all__ = ["begin", "command_line", "forget", "hello", "show_servers", "stop_servers", "told"]

HELLO_S = 2.0
"""Seconds in which a server has to answer who it is."""

LOOK_S = 0.05
"""Seconds between two looks whether a server answers or has ended."""

ENDING_S = 30.0
"""Seconds that a server may take to end: it finishes what it writes."""

LARGE_LOG = 1 << 20

SECRET, HIDDEN = "--api-key", "..."


def hello(place: Place) -> int | None:
    """The process of the server at a place, once it answers."""
    if not os.path.lexists(place.socket):
        return None
    try:
        return int(ask(place.socket, "/specx/hello", {}, HELLO_S)["pid"])
    except (LostError, KeyError):
        return None


@contextmanager
def told(record: Record) -> Iterator[None]:
    """While it lasts, `specx serve --status` and `--stop` know of a server."""
    record.write()
    try:
        yield
    finally:
        forget(record)


def forget(record: Record) -> None:
    """Nobody knows of the server any more, unless another one has its place."""
    known = Record.read(record.place)
    if known is not None and known.pid == record.pid:
        with suppress(OSError):
            record.place.record.unlink()


def begin(place: Place) -> bool:
    """Go on in the background, where what is said goes to the log of the place.

    Returns:
        True in the process that goes on; False in the one that was started, when the server answers there.

    Raises:
        SpecxError: there is one already, or it ended before it answered; in the process that was started.
    """
    if (pid := hello(place)) is not None:
        raise SpecxError(
            f"the model is already in a server (pid {pid})", "use that one, or end it: specx serve --stop"
        )
    log = _open_log(place.log)
    said = os.fstat(log).st_size
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _leave_the_shell(log)
        return True  # `writing` stays open as long as this process lives
    os.close(writing)
    os.close(log)
    os.waitpid(child, 0)
    try:
        _wait(place, reading, said)
    finally:
        os.close(reading)
    return False


def _open_log(path: Path) -> int:
    """The log, for this user only; begun anew when it is large."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as problem:
        raise SpecxError(f"cannot write {path}: {problem.strerror}", "set SPECX_CACHE") from problem
    if os.fstat(handle).st_size > LARGE_LOG:
        os.ftruncate(handle, 0)
    return handle


def _leave_the_shell(log: int) -> None:
    """Become a process of no terminal, no session of another and no parent that waits."""
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDONLY)
    for handle, number in ((null, 0), (log, 1), (log, 2)):
        os.dup2(handle, number)
    for handle in (null, log):
        if handle > 2:
            os.close(handle)
    os.umask(0o077)


def _wait(place: Place, alive: int, said: int) -> None:
    """Until the server answers; what it says meanwhile is passed on."""
    with place.log.open(encoding="utf-8", errors="replace") as log:
        log.seek(said)
        failed: list[str] = []
        try:
            while not select.select([alive], [], [], LOOK_S)[0]:
                _pass_on(log.readlines(), failed)
                if (pid := hello(place)) is not None:
                    notice(f"in the background (pid {pid}) at {place.socket}; log: {place.log}")
                    return
        except KeyboardInterrupt:
            if (record := Record.read(place)) is not None:
                with suppress(ProcessLookupError):
                    os.kill(record.pid, signal.SIGTERM)
            raise
        _pass_on(log.readlines(), failed)
    message = next((line[7:] for line in failed if line.startswith("error: ")), "it ended at once")
    hint = next((line[6:] for line in failed if line.startswith("hint: ")), f"see {place.log}")
    raise SpecxError(message, hint)


def _pass_on(lines: list[str], failed: list[str]) -> None:
    """What the server said: `failed` gets the lines of an error."""
    for line in map(str.rstrip, lines):
        if failed or line.startswith("error: "):
            failed.append(line)
        elif line:
            notice(line)


def command_line() -> str:
    """How this process was started, for whoever asks later, without keys: those are not to be kept."""
    words = sys.argv[1:]
    shown = [
        HIDDEN if before == SECRET else f"{SECRET}={HIDDEN}" if word.startswith(f"{SECRET}=") else word
        for before, word in zip(["", *words], words, strict=False)
    ]
    return shlex.join(shown)


def show_servers() -> None:
    """What there is to say of each server of this user."""
    found = records()
    if not found:
        notice("no model is in a server: specx serve --background MODEL")
        return
    for number, each in enumerate(found):
        write("\n" if number else "")
        show_fields(
            [
                (_state(each), f"pid {each.pid}"),
                ("model", str(each.model)),
                ("socket", str(each.place.socket)),
                ("started as", f"specx {each.asked}"),
            ]
        )


def _state(record: Record) -> str:
    try:
        with Connection(record.place.socket, HELLO_S) as connection:
            connection.send("/specx/hello", {})
            next(connection.lines(), None)
            return "ready" if connection.status == OK else "loading"
    except LostError:
        return "silent" if _listens(record.place) else "gone"


def _listens(place: Place) -> bool:
    """Whether there is a process at the socket."""
    try:
        Connection(place.socket, HELLO_S).close()
    except LostError:
        return False
    return True


def stop_servers(model: Path | None, *, every: bool = False) -> None:
    """End this user's servers of a model, or the only one that runs, and wait until they have ended.

    Args:
        model: what they hold; None if that is left open.
        every: all of them, if no model is given.

    Raises:
        UsageError: several run, and nothing says which is meant.
        SpecxError: one does not end.
    """
    wanted = None if model is None else os.path.realpath(model)
    found = [each for each in records() if wanted in (None, os.path.realpath(each.model))]
    if not found:
        notice("no model is in a server" if model is None else f"no server holds {model.name}")
    running = [each for each in found if _listens(each.place)]
    if model is None and not every and len(running) > 1:
        for each in running:
            notice(f"pid {each.pid}: specx {each.asked}")
        raise UsageError(
            f"{len(running)} servers are running", "name the model: specx serve --stop MODEL; or give --all"
        )
    for record in found:
        _stop(record)


def _stop(record: Record) -> None:
    place = record.place
    if not _listens(place):
        for left in (place.record, place.socket):
            left.unlink(missing_ok=True)
        notice(f"the server of {record.model.name} (pid {record.pid}) had ended already")
        return
    with suppress(LostError):  # it may be too busy to answer, and still hear it
        ask(place.socket, "/specx/stop", {}, HELLO_S)
    deadline = time.monotonic() + ENDING_S
    while Record.read(place) == record and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    if Record.read(place) == record:
        raise SpecxError(
            f"the server of {record.model.name} (pid {record.pid}) does not end", f"kill {record.pid}"
        )
    notice(f"ended the server of {record.model.name} (pid {record.pid})")
