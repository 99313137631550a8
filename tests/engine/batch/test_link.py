"""The way to a Ray cluster: what does not answer, what is gone, and what is waited for and given up."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time

import pytest

from specx.backends.errors import ClusterError
from specx.engine.batch import link

HEAD = "127.0.0.1:9"  # nobody listens there


class Silent:
    """Ray at an address where something else listens: it waits for ever."""

    def __init__(self):
        self.waiting = threading.Event()

    def init(self, *_arguments, **_options):
        self.waiting.wait(20)


def test_what_does_not_answer_is_no_cluster(monkeypatch):
    monkeypatch.setattr(link, "ANSWER_S", 0.2)
    ray = Silent()
    with pytest.raises(ClusterError, match="at auto: nothing there answers as one does"):
        link.connect(ray, "auto", lambda: False)
    ray.waiting.set()


def test_waiting_for_a_cluster_can_be_given_up():
    ray, stopped = Silent(), threading.Event()
    threading.Timer(0.3, stopped.set).start()
    start = time.monotonic()
    assert not link.connect(ray, "auto", stopped.is_set)
    ray.waiting.set()
    assert time.monotonic() - start < 10


def test_rows_that_are_waited_for_can_be_given_up():
    stopped, waiting = threading.Event(), threading.Event()

    def rows():
        yield {"n": 1}
        waiting.wait(20)

    found = []
    start = time.monotonic()
    for each in link.interruptible(rows(), stopped.is_set, HEAD):
        found.append(each)
        stopped.set()
    waiting.set()
    assert found == [{"n": 1}]
    assert time.monotonic() - start < 10


def test_what_ray_raises_becomes_a_sentence():
    def rows():
        yield {"n": 1}
        raise ValueError("first line\nsecond line")

    with pytest.raises(ClusterError, match=r"^the cluster failed: first line$"):
        list(link.interruptible(rows(), lambda: False, HEAD))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the cluster failed: ValueError"),
        (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: MapWorker\n\tpid: 7\n"
            "\tip: 10.0.0.3\nThe actor is dead because its worker process has died. Worker exit type: SYSTEM",
            "the cluster failed on the node 10.0.0.3: its worker process has died",
        ),
        (
            "The actor died because of an error raised in its creation task, \x1b[36mray::MapWorker("
            "MapBatches(NodeWriter)).__init__()\x1b[39m (pid=7, ip=10.0.0.3, actor_id=66, repr=MapWorker())\n"
            "  At least one of the input arguments for this task could not be computed:\n"
            "Traceback (most recent call last):\n  File ...\nModuleNotFoundError: No module named 'specx'\n",
            "the cluster failed on the node 10.0.0.3: ModuleNotFoundError: No module named 'specx'",
        ),
    ],
)
def test_what_ray_says_of_a_node_names_it_and_the_reason(text, told):
    def rows():
        yield {"n": 1}
        raise ValueError(text)

    with pytest.raises(ClusterError) as error:
        list(link.interruptible(rows(), lambda: False, HEAD))
    assert error.value.message == told


def test_ray_tells_no_errors_of_its_own():
    """They are raised; and what still runs when the cluster was left tells of that."""
    pytest.importorskip("ray")
    link.import_ray()
    assert not logging.getLogger("ray.data._internal.execution").isEnabledFor(logging.ERROR)


def test_a_cluster_whose_head_is_gone_is_given_up(monkeypatch):
    monkeypatch.setattr(link, "WATCH_S", 0.01)
    waiting = threading.Event()

    def rows():
        yield {"n": 1}
        waiting.wait(20)

    found = []
    with pytest.raises(ClusterError, match=r"^the cluster at 127.0.0.1:9 is gone$") as error:
        found.extend(link.interruptible(rows(), lambda: False, HEAD))
    waiting.set()
    assert "--resume" in error.value.hint


def test_a_cluster_whose_head_is_there_is_waited_for(monkeypatch):
    monkeypatch.setattr(link, "WATCH_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = f"127.0.0.1:{server.getsockname()[1]}"

        def rows():
            time.sleep(0.5)
            yield {"n": 1}

        assert list(link.interruptible(rows(), lambda: False, head)) == [{"n": 1}]


def test_what_specx_raises_stays_as_it_is():
    def rows():
        yield {"n": 1}
        raise ClusterError("no node has a CPU", "see `ray status`")

    with pytest.raises(ClusterError, match=r"^no node has a CPU$"):
        list(link.interruptible(rows(), lambda: False, HEAD))


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match="--ray needs Ray") as error:
        link.import_ray()
    assert "pip install 'ray[data]>=" in error.value.hint
