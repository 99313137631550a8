"""A batch on the nodes of a Ray cluster: the same items, and on each node a model of its own.

Ray Data takes the items to one actor a node and brings the answers back, in order if that is wanted. An
actor answers as a process of its own would: the items of all its tasks are in one `Run`, so its slots are
full as long as there is something to do. What a node was busy with when it was lost, another one does; the
seed of an item follows from what is asked, so the text is the same.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from specx import __version__
from specx.backends.errors import ClusterError, SpecxError, unexpected
from specx.backends.gguf.checks import read_runnable
from specx.engine.api.asks import Defaults, read_ask
from specx.engine.api.errors import RequestError
from specx.engine.batch.answered import Answered
from specx.engine.batch.feed import Feed
from specx.engine.batch.items import Item
from specx.engine.batch.link import GoneError, Row, connect, import_ray, interruptible, leave, nodes_of
from specx.engine.batch.run import Run, open_with_room
from specx.engine.session import Session
from specx.engine.settings import Asked

__all__ = ["ClusterRun", "NodeWriter"]

DEFAULT_TEXTS = 32  # that a node is thought to write at once where it decides that itself
AHEAD = 2  # times as many items wait on a node as it writes at once
MOST_IN_TASK = 8  # items: what is handed over together
ENOUGH = 1 << 20  # bytes of these, after which no more are added
LITTLE = 0.01  # of a CPU, as Ray counts: no node without any, and each has room for all actors of lost ones


class ClusterRun:
    """One run over items, on the nodes of a cluster; what `Run` is on this machine.

    Args:
        address: of the cluster, as `ray.init` takes it: "auto" for the one that this machine is part of.
        asked: how each node loads the model; its file has the same name on all of them.
        n_ctx: the context on a node where that of `asked` does not fit; None lets the node decide.
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
        n_ctx: int | None,
        items: Iterable[Item],
        defaults: Defaults,
        seed: int,
        *,
        ordered: bool,
        written: Callable[[int], None],
        notice: Callable[[str], None],
    ) -> None:
        self._address = address
        self._asked, self._n_ctx = _anywhere(asked), n_ctx
        self._items, self._defaults, self._seed = items, defaults, seed
        self._ordered, self._written, self._notice = ordered, written, notice
        self._stopped = False
        self._failure: Exception | None = None  # of the input
        self._pending: set[int] = set()  # numbers of items without an answer
        self._refused: dict[int, Answered] = {}  # items that cannot be sent, by their numbers
        self._lost = 0  # nodes
        self._told: set[str] = set()
        self._kernels: set[str] = set()
        self._contexts: set[int] = set()

    def stop(self) -> None:
        """End. Safe to call from a signal handler."""
        self._stopped = True

    drop = stop

    def answers(self) -> Iterator[Answered]:
        """What comes of each item. Once only.

        Raises:
            ClusterError: Ray is not there, the cluster cannot be reached, or a node cannot answer.
            SpecxError: the input cannot be read any further; said when what came before is answered.
        """
        ray = import_ray()
        # What Ray tells of nodes goes to `sys.stdout`, where answers may go.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
            try:
                if connect(ray, self._address, self._has_stopped):
                    head = ray.get_runtime_context().gcs_address
                    yield from self._unpacked(interruptible(self._rows(ray), self._has_stopped, head))
            except GoneError:
                atexit.unregister(ray.shutdown)  # which would wait for it
                raise
            except BaseException:
                leave(ray)
                raise
            else:
                leave(ray)
        if self._lost:
            self._notice(f"nodes that were lost: {self._lost}; others did what they were busy with")
        if self._failure is not None and not self._stopped:
            raise self._failure

    def _has_stopped(self) -> bool:
        return self._stopped

    def _rows(self, ray: Any) -> Iterator[Row]:
        """Rows with answers. It may wait long, for the input or for Ray."""
        nodes = nodes_of(ray, self._address)
        waiting = AHEAD * (self._asked.texts or DEFAULT_TEXTS)
        in_task = min(MOST_IN_TASK, waiting // AHEAD)
        parts = [ray.put(piece) for piece in self._pieces(in_task)]
        if parts and not self._stopped:
            yield from self._mapped(parts, len(nodes), max(waiting // in_task, 1))
        self._lost = len(nodes - nodes_of(ray, self._address))

    def _pieces(self, most: int) -> Iterator[Any]:
        """Tables of up to so many items; they stay in Ray's store, not in this process."""
        import pyarrow

        items = self._readable()
        while item := next(items, None):
            column = [self._packed(item)]
            while len(column) < most and sum(map(len, column)) < ENOUGH and (item := next(items, None)):
                column.append(self._packed(item))
            yield pyarrow.table({"item": pyarrow.array(column, pyarrow.large_binary())})

    def _readable(self) -> Iterator[Item]:
        """The items, up to where the input cannot be read any further."""
        items = iter(self._items)
        while not self._stopped:
            try:
                item = next(items, None)
            except Exception as problem:  # noqa: BLE001 (told when those before it are answered)
                self._failure = problem
                return
            if item is None:
                return
            self._pending.add(item.number)
            yield item

    def _packed(self, item: Item) -> bytes:
        """An item as it is sent. One that is nested too deep for that is refused here, and an empty one
        goes in its place."""
        try:
            return pickle.dumps(item)
        except RecursionError:
            self._refused[item.number] = _refused(item, self._defaults)
            return pickle.dumps(Item(item.number, item.line, item.form, blank=True))

    def _mapped(self, parts: list[Any], nodes: int, tasks: int) -> Iterator[Row]:
        """The rows of `parts` answered, with so many tasks at once on each node.

        Ray Data spreads actors over the nodes, and starts one anew where there is room if its node is lost.
        """
        from ray.data import ActorPoolStrategy, DataContext, from_arrow_refs

        fingerprint = read_runnable(self._asked.model).fingerprint
        job = (self._asked, self._n_ctx, fingerprint, self._defaults, self._seed)
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
            fn_constructor_args=(__version__, pickle.dumps(job)),
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
            self._tell(pickle.loads(row["node"]))
            answered = self._refused.pop(answered.item.number, answered)
            self._written(answered.tokens)
            yield answered
        if self._pending and not self._stopped:
            raise ClusterError(
                f"the cluster gave no answer to {len(self._pending)} items", "go on with it: --resume"
            )

    def _tell(self, node: Node) -> None:
        """Tell what a person should know of a node that has answered, once."""
        for text in node.told:
            self._tell_once(text)
        self._kernels.add(node.kernels)
        self._contexts.add(node.n_ctx)
        if len(self._kernels) > 1:
            self._tell_once(
                "the nodes compute with different kernels ({}): which node answers can decide between tokens "
                "that are nearly as likely",
                "; ".join(sorted(self._kernels)),
            )
        if len(self._contexts) > 1:
            self._tell_once(
                "the nodes have room for different contexts ({} tokens): which node answers can decide "
                "whether a request fits",
                ", ".join(map(str, sorted(self._contexts))),
            )

    def _tell_once(self, text: str, *details: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._notice(text.format(*details) if details else text)


@dataclass(frozen=True, slots=True)
class Node:
    """What matters of a node that answers.

    Attributes:
        kernels: with which it computes.
        n_ctx: tokens of context of each text.
        told: what a person should know of what it was asked.
    """

    kernels: str = ""
    n_ctx: int = 0
    told: tuple[str, ...] = ()


class NodeWriter:
    """What answers on one node: Ray Data makes it, and calls it with some items, several times at once.

    Args:
        version: of specx where the batch was begun.
        job: pickled, which another version may not be able to read: how the model is loaded, the context
            where that does not fit, the model's fingerprint, and the defaults and the seed of `Run`.
    """

    def __init__(self, version: str, job: bytes) -> None:
        self._coming: queue.Queue[Item | None] = queue.Queue()
        self._begun: dict[int, tuple[Item, Future[Answered]]] = {}
        self._tickets = count()
        self._failure: SpecxError | None = None
        self._node = Node()
        self._writing: threading.Thread | None = None
        try:
            if version != __version__:
                raise ClusterError(
                    f"there is specx {__version__}, and the batch is begun with {version}",
                    "install the same specx on every node",
                )
            self._open(*pickle.loads(job))
        except SpecxError as problem:  # told once, and not tried again on every node
            self._failure = _here(problem)
        except Exception as problem:  # noqa: BLE001 (Ray would make another one, and another)
            self._failure = _here(unexpected(problem, ""))

    def __call__(self, table: Any) -> Any:
        """A table with the answers to the items of a table, and the node; both are pickled."""
        import pyarrow

        futures = [self._begin(pickle.loads(item)) for item in table["item"].to_pylist()]
        answered: list[Answered | SpecxError]
        try:
            answered = [future.result() for future in futures]
        except SpecxError as problem:
            answered = [problem]
        column = pyarrow.array(map(pickle.dumps, answered), pyarrow.large_binary())
        return pyarrow.table({"answered": column, "node": [pickle.dumps(self._node)] * len(answered)})

    def close(self) -> None:
        """Give the memory back, where the process goes on. On a node it ends instead."""
        if self._writing is not None:
            self._coming.put(None)
            self._writing.join()

    def _open(self, asked: Asked, n_ctx: int | None, fingerprint: str, defaults: Defaults, seed: int) -> None:
        from specx.backends.llama.kernels import instruction_set

        if read_runnable(asked.model).fingerprint != fingerprint:
            raise ClusterError(f"{asked.model} is another model", "copy the same file to every node")
        session = open_with_room(Session.open, asked, n_ctx)
        session.warn = self._warn
        kernels = "" if session.setup is None else session.setup.kernels.value
        self._node = Node(f"{kernels}, {instruction_set()}", session.n_ctx)
        feed = Feed(iter(self._coming.get, None), slow=True)
        run = Run(session, feed, replace(defaults, model=session.model_name), seed, ordered=False)
        self._writing = threading.Thread(target=self._write, args=(session, run), daemon=True)
        self._writing.start()

    def _warn(self, text: str) -> None:
        self._node = replace(self._node, told=(*self._node.told, text))

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
            self._failure = _here(problem if isinstance(problem, SpecxError) else unexpected(problem, ""))
            self._give_up()
        finally:
            session.close()


def _anywhere(asked: Asked) -> Asked:
    """`asked` with names of files that are the same in any folder."""
    draft, log = asked.draft, asked.log
    if draft.model is not None:
        draft = replace(draft, model=draft.model.absolute())
    if log not in ("", "-"):
        log = str(Path(log).absolute())
    return replace(asked, model=asked.model.absolute(), draft=draft, log=log)


def _here(problem: SpecxError) -> SpecxError:
    """`problem` with the name of this node."""
    problem.message = f"on the node {socket.gethostname()}: {problem.message}"
    return problem


def _refused(item: Item, defaults: Defaults) -> Answered:
    """What comes of an item that is nested too deep."""
    try:
        if item.problem is not None:
            raise RequestError(item.problem[0], code=item.problem[1])
        read_ask(item.body, item.path, defaults)
        raise RequestError("it is nested too deep")
    except RequestError as problem:
        return Answered.refused(item, problem)
