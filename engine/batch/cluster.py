"""A batch on the nodes of a Ray cluster: the same items, and on each node a model of its own.

Ray Data takes the items to one actor a node and brings the answers back, in order if that is wanted. An
actor answers as a process of its own would: the items of all its tasks are in one `Run`, so its slots are
full as long as there is something to do. What a node was busy with when it was lost, another one does; the
seed of an item follows from what is asked, so the text is the same.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from itertools import count, islice
from typing import Any

from specx.backends.errors import ClusterError, SpecxError, unexpected
from specx.backends.gguf.checks import read_runnable
from specx.engine.api.asks import Defaults
from specx.engine.batch.answered import Answered
from specx.engine.batch.feed import Feed
from specx.engine.batch.items import Item
from specx.engine.batch.run import Run
from specx.engine.session import Session
from specx.engine.settings import Asked

__all__ = ["ClusterRun", "NodeWriter"]

INSTALL_HINT = "install it here and on every node: pip install 'ray[data]>=2.50'"
DEFAULT_TEXTS = 32  # that a node is thought to write at once where it decides that itself
AHEAD = 2  # times as many items wait on a node as it writes at once
MOST_IN_TASK = 8  # items: what is handed over together
LITTLE = 0.01  # of a CPU, as Ray counts: no node without any, and each has room for all actors of lost ones
CONNECT_S = 10.0
SLICE_S = 0.1  # of waiting, after which it is looked whether to stop

Row = dict[str, Any]


class ClusterRun:
    """One run over items, on the nodes of a cluster; what `Run` is on this machine.

    Args:
        address: of the cluster, as `ray.init` takes it: "auto" for the one that this machine is part of.
        asked: how each node loads the model; its file has the same name on all of them.
        items: what is asked; they are all read before the first is answered.
        defaults, seed, ordered, written: as of `Run`.
        notice: told what a person should know.

    Attributes:
        in_progress: 0: what is begun is not finished when it is stopped, and answered by the next run.
    """

    in_progress = 0

    def __init__(
        self,
        address: str,
        asked: Asked,
        items: Iterable[Item],
        defaults: Defaults,
        seed: int,
        *,
        ordered: bool,
        written: Callable[[int], None],
        notice: Callable[[str], None],
    ) -> None:
        self._address = address
        self._asked = replace(asked, model=asked.model.resolve())
        self._items, self._defaults, self._seed = items, defaults, seed
        self._ordered, self._written, self._notice = ordered, written, notice
        self._stopped = False
        self._kernels: set[str] = set()

    def stop(self) -> None:
        """End. Safe to call from a signal handler."""
        self._stopped = True

    drop = stop

    def answers(self) -> Iterator[Answered]:
        """What comes of each item. Once only.

        Raises:
            ClusterError: Ray is not there, the cluster cannot be reached, or a node cannot answer.
            SpecxError: the input cannot be read.
        """
        ray = _import_ray()
        _connect(ray, self._address)
        # What Ray tells of nodes goes to `sys.stdout`, where answers may go.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
            try:
                nodes = _nodes(ray, self._address)
                rows = self._rows(ray, len(nodes))
                if rows is not None:
                    yield from self._unpacked(_interruptible(rows, lambda: self._stopped))
                if lost := nodes - _nodes(ray, self._address):
                    self._notice(f"nodes that were lost: {len(lost)}; others did what they were busy with")
            finally:
                with suppress(Exception):  # it may be gone
                    ray.shutdown()

    def _rows(self, ray: Any, nodes: int) -> Iterator[Row] | None:
        """Rows with answers; None if nothing is asked. The items stay in Ray's store, not in this process."""
        import pyarrow

        waiting = AHEAD * (self._asked.texts or DEFAULT_TEXTS)
        in_task = min(MOST_IN_TASK, waiting // AHEAD)
        parts, self._pending = [], set[int]()
        items = iter(self._items)
        while piece := list(islice(items, in_task)):
            self._pending.update(item.number for item in piece)
            column = [pickle.dumps(item) for item in piece]
            parts.append(ray.put(pyarrow.table({"item": pyarrow.array(column, pyarrow.large_binary())})))
        if not parts:
            return None
        return self._mapped(parts, nodes, max(waiting // in_task, 1))

    def _mapped(self, parts: list[Any], nodes: int, tasks: int) -> Iterator[Row]:
        """The rows of `parts` answered, with so many tasks at once on each node.

        Ray Data spreads actors over the nodes, and starts one anew where there is room if its node is lost.
        """
        from ray.data import ActorPoolStrategy, DataContext, from_arrow_refs

        fingerprint = read_runnable(self._asked.model).fingerprint
        context = DataContext.get_current()
        context.execution_options.preserve_order = self._ordered
        context.enable_progress_bars = False
        compute = ActorPoolStrategy(
            size=min(nodes, len(parts)),
            max_tasks_in_flight_per_actor=tasks,
            max_concurrent_calls_per_actor=tasks,
            enable_true_multi_threading=True,
        )
        answered = from_arrow_refs(parts).map_batches(
            NodeWriter,
            fn_constructor_args=(self._asked, fingerprint, self._defaults, self._seed),
            batch_size=None,
            batch_format="pyarrow",
            compute=compute,
            num_cpus=LITTLE,
        )
        found: Iterator[Row] = iter(answered.iter_rows())
        return found

    def _unpacked(self, rows: Iterator[Row]) -> Iterator[Answered]:
        for row in rows:
            answered = pickle.loads(row["answered"])
            if isinstance(answered, SpecxError):
                raise answered
            if answered.item.number not in self._pending:
                continue  # of a task that two nodes did
            self._pending.remove(answered.item.number)
            self._tell(row["kernels"])
            self._written(answered.tokens)
            yield answered
        if self._pending and not self._stopped:
            raise ClusterError(
                f"the cluster gave no answer to {len(self._pending)} items", "go on with it: --resume"
            )

    def _tell(self, kernels: str) -> None:
        if kernels in self._kernels:
            return
        self._kernels.add(kernels)
        if len(self._kernels) == 2:  # told once
            self._notice(
                f"the nodes compute with different kernels ({'; '.join(sorted(self._kernels))}): which node "
                "answers can decide between tokens that are nearly as likely"
            )


class NodeWriter:
    """What answers on one node: Ray Data makes it, and calls it with some items, several times at once.

    Args:
        asked: how the model is loaded.
        fingerprint: of the model.
        defaults, seed: as of `Run`.
    """

    def __init__(self, asked: Asked, fingerprint: str, defaults: Defaults, seed: int) -> None:
        self._coming: queue.Queue[Item | None] = queue.Queue()
        self._begun: dict[int, tuple[Item, Future[Answered]]] = {}
        self._tickets = count()
        self._failure: SpecxError | None = None
        self._kernels = ""
        self._writing: threading.Thread | None = None
        try:
            self._open(asked, fingerprint, defaults, seed)
        except SpecxError as problem:  # told once, and not tried again on every node
            self._failure = problem

    def __call__(self, table: Any) -> Any:
        """A table with the answers to the items of a table; both are pickled."""
        import pyarrow

        futures = [self._begin(pickle.loads(item)) for item in table["item"].to_pylist()]
        answered: list[Answered | SpecxError]
        try:
            answered = [future.result() for future in futures]
        except SpecxError as problem:
            answered = [problem]
        column = pyarrow.array(map(pickle.dumps, answered), pyarrow.large_binary())
        return pyarrow.table({"answered": column, "kernels": [self._kernels] * len(answered)})

    def close(self) -> None:
        """Give the memory back, where the process goes on. On a node it ends instead."""
        if self._writing is not None:
            self._coming.put(None)
            self._writing.join()

    def _open(self, asked: Asked, fingerprint: str, defaults: Defaults, seed: int) -> None:
        from specx.backends.llama.kernels import instruction_set

        session = Session.open(asked)
        setup = session.setup
        if setup is None or setup.info.fingerprint != fingerprint:
            session.close()
            raise ClusterError(
                f"{asked.model} is another model on {socket.gethostname()}",
                "copy the same file to every node",
            )
        self._kernels = f"{setup.kernels.value}, {instruction_set()}"
        feed = Feed(iter(self._coming.get, None), slow=True)
        run = Run(session, feed, replace(defaults, model=session.model_name), seed, ordered=False)
        self._writing = threading.Thread(target=self._write, args=(session, run), daemon=True)
        self._writing.start()

    def _begin(self, item: Item) -> Future[Answered]:
        """An answer to come. The item may be here twice, if its task was tried again."""
        future: Future[Answered] = Future()
        if self._failure is not None:
            future.set_exception(self._failure)
            return future
        ticket = next(self._tickets)
        self._begun[ticket] = item, future
        self._coming.put(replace(item, number=ticket))
        if self._failure is not None:  # meanwhile: nobody looks at what is coming any more
            self._give_up()
        return future

    def _give_up(self) -> None:
        """Tell all that wait why there is no answer."""
        for ticket in list(self._begun):
            with suppress(KeyError):  # another thread has told it
                self._begun.pop(ticket)[1].set_exception(self._failure)

    def _write(self, session: Session, run: Run) -> None:
        """Answer what comes."""
        try:
            for answered in run.answers():
                item, future = self._begun.pop(answered.item.number)
                future.set_result(replace(answered, item=item))
        except Exception as problem:  # noqa: BLE001 (told where the answers are waited for)
            self._failure = problem if isinstance(problem, SpecxError) else unexpected(problem, "")
            self._give_up()
        finally:
            session.close()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is raised
    try:
        import ray
        import ray.data
    except ImportError as problem:
        raise ClusterError(f"--ray needs Ray, and it cannot be loaded: {problem}", INSTALL_HINT) from problem
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray


def _connect(ray: Any, address: str) -> None:
    host, colon, port = address.rpartition(":")
    hint = "start one: ray start --head, and on the other nodes what it says"
    try:
        if colon and port.isdecimal() and "/" not in host:  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        with _no_stderr():  # it says there which level of logging it was told
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as problem:
        first = (str(problem).strip().splitlines() or ["no reason given"])[0]
        raise ClusterError(f"no Ray cluster can be reached at {address}: {first}", hint) from problem


def _nodes(ray: Any, address: str) -> set[str]:
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


def _interruptible(rows: Iterator[Row], stopped: Callable[[], bool]) -> Iterator[Row]:
    """`rows` until it is `stopped`, however long one is waited for.

    Raises:
        ClusterError: the cluster fails.
    """
    arrived: queue.Queue[Row | BaseException | None] = queue.Queue(1024)

    def bring() -> None:
        try:
            for row in rows:
                arrived.put(row)
            arrived.put(None)
        except BaseException as problem:  # noqa: BLE001 (raised where the rows are taken)
            arrived.put(problem)

    threading.Thread(target=bring, daemon=True).start()
    while not stopped():
        try:
            row = arrived.get(timeout=SLICE_S)
        except queue.Empty:
            continue
        if row is None:
            return
        if isinstance(row, BaseException):
            first = (str(row).strip().splitlines() or [type(row).__name__])[0]
            raise ClusterError(f"the cluster failed: {first}", "go on when it works again: --resume") from row
        yield row
