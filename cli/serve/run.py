"""The life of a server: it listens at once, loads the model, answers, and ends in order."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from specx.backends.errors import SpecxError, unexpected
from specx.cli.serve.listen import UnixSocket, address_of
from specx.cli.serve.routes import Api
from specx.cli.serve.wire import server_of
from specx.cli.terminal.console import error, notice
from specx.cli.terminal.restore import restore
from specx.engine.service import Service, StoppedError

if TYPE_CHECKING:
    from specx.engine.session import Session

__all__ = ["Life", "Places"]

SWITCH_S = 5e-4
"""Seconds that Python may be busy with a request before the thread that writes comes to its turn."""

GRACE_S = 8.0
"""Seconds in which texts may be finished once the server is told to stop."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a server listens.

    Attributes:
        tcp: sockets that listen on TCP.
        unix: those that listen on a path.
        resident: one of them, where the commands of this user look for the model; None if there is none.
    """

    tcp: Sequence[socket.socket] = ()
    unix: Sequence[UnixSocket] = ()
    resident: UnixSocket | None = None

    @property
    def sockets(self) -> list[socket.socket]:
        """All of them."""
        own = () if self.resident is None else (self.resident,)
        return [*self.tcp, *(each.listener for each in (*self.unix, *own))]

    @property
    def names(self) -> list[str]:
        """What to tell a client."""
        given = [*map(address_of, self.tcp), *(str(each.path) for each in self.unix)]
        return given or [str(self.resident.path) if self.resident else "no place"]

    def remove(self) -> None:
        """Nobody listens there any more."""
        for each in self.sockets:
            each.close()
        for listener in (*self.unix, *([self.resident] if self.resident else [])):
            listener.remove()


class Life:
    """A server from its first moment to its last.

    Args:
        api: what it answers.
        places: where it listens.
        open_session: loads the model, in the thread that writes; closed in the same thread.
        most_waiting: texts that may wait.
        idle_s: it ends by itself after so many seconds without anything to do; None for never.
        verbose: print the traceback of what nobody has foreseen.

    Attributes:
        at_once: called when it ends without doing anything else.
    """

    def __init__(
        self,
        api: Api,
        places: Places,
        open_session: Callable[[], AbstractContextManager[Session]],
        *,
        most_waiting: int,
        idle_s: float | None = None,
        verbose: bool = False,
    ) -> None:
        self._api, self._places, self._open_session = api, places, open_session
        self._verbose = verbose
        self._most_waiting, self._idle_s = most_waiting, idle_s
        api.stop = self.stop
        self._server = server_of(api.app, patience_s=GRACE_S + 2)
        self._problem: SpecxError | None = None
        self._stopping = False
        self.at_once: Callable[[], None] = lambda: None
        self._silent = threading.Event()  # nothing is asked any more

    def run(self) -> None:
        """Serve until a signal or a long silence ends it.

        Raises:
            SpecxError: the model cannot be loaded, or what was learned cannot be kept.
        """
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            asyncio.run(self._live())
        finally:
            sys.setswitchinterval(before)
            self._places.remove()
        if self._problem is not None:
            raise self._problem

    def stop(self) -> None:
        """Take nothing more, finish what is being written or drop it after `GRACE_S`. In the event loop."""
        if self._stopping:
            return
        self._stopping = True
        if (service := self._api.service) is not None:
            service.finish(StoppedError("the server is stopping"))
            if texts := service.writing + service.waiting:
                shown = "1 text is" if texts == 1 else f"{texts} texts are"
                notice(f"stopping: {shown} finished first, for up to {GRACE_S:.0f} s (once more: at once)")
            self._loop.call_later(GRACE_S, service.drop, StoppedError("the server has stopped"))
        self._server.end()

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        writer = threading.Thread(target=self._write, name="specx-writer", daemon=True)
        with self._listening_to_signals():
            writer.start()
            watch = asyncio.create_task(self._watch_silence())
            try:
                await self._server.serve(self._places.sockets)
            finally:
                watch.cancel()
                if (service := self._api.service) is not None:
                    service.drop(StoppedError("the server has stopped"))
                self._silent.set()
                await asyncio.to_thread(writer.join)

    def _write(self) -> None:
        """The thread that has the model: loads it, writes, and keeps what was learned."""
        try:
            with self._open_session() as session:
                session.measure_staircase()  # now, and not while the first one waits
                service = Service(session, most_waiting=self._most_waiting, report=self._report)
                self._in_loop(lambda: self._ready(service))
                service.run()
                self._in_loop(lambda: self._written(service))
                self._silent.wait()  # requests that come meanwhile are still read with its vocabulary
        except SpecxError as problem:
            self._problem = problem
        except Exception as problem:  # noqa: BLE001 -- it is told where the server ends
            self._problem = unexpected(problem, "run it again with --verbose to see more")
        self._in_loop(self.stop)

    def _report(self, problem: SpecxError) -> None:
        """Requests failed as nobody has foreseen; the others are answered."""
        if self._verbose and problem.__cause__ is not None:
            traceback.print_exception(problem.__cause__)
        self._in_loop(partial(error, problem))

    def _in_loop(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(call)

    def _ready(self, service: Service) -> None:
        self._api.service = service
        if self._stopping:  # it was told to while the model was loaded
            service.drop(StoppedError("the server has stopped"))
            return
        session, texts = service.session, service.session.at_once
        shown = "one text at a time" if texts == 1 else f"{texts} texts at once"
        notice(f"{session.summary()}; {shown}, at {' and '.join(self._places.names)}")

    def _written(self, service: Service) -> None:
        """Nothing is written any more. After a failure the server stays, to say so."""
        if service.failure is not None and not self._stopping:
            error(service.failure)

    async def _watch_silence(self) -> None:
        while self._idle_s is not None:
            service = self._api.service
            quiet = 0.0 if service is None else service.idle_s
            if quiet >= self._idle_s:
                self.stop()
                return
            await asyncio.sleep(min(max(self._idle_s - quiet, 0.05), 60.0))

    @contextmanager
    def _listening_to_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        for number in heard:
            self._loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in heard:
                self._loop.remove_signal_handler(number)
                signal.signal(number, before[number])

    def _signalled(self, number: int) -> None:
        if self._stopping or self._api.service is None:  # a model that is being loaded cannot be interrupted
            self._places.remove()
            self.at_once()
            restore()
            if number == signal.SIGINT and sys.stderr.isatty():
                os.write(2, b"\n")
            os._exit(128 + number)
        self.stop()
