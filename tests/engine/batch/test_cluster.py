"""Between Ray and a batch: answers that come twice or never, nodes with another model, what writes there."""

from __future__ import annotations

import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from specx.backends.errors import ClusterError, DoesNotFitError, ModelError
from specx.backends.gguf.checks import read_runnable
from specx.engine.api.asks import Defaults
from specx.engine.api.paths import COMPLETIONS
from specx.engine.batch import cluster
from specx.engine.batch.answered import Answered
from specx.engine.batch.cluster import ClusterRun, NodeWriter
from specx.engine.batch.items import BODY, Item
from specx.engine.batch.run import answer
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

DEFAULTS = Defaults(SamplingSettings(temperature=1.0), n_predict=8, ignore_eos=True)


def item(number):
    body = {"prompt": f"number {number}"}
    return Item(number, number + 1, BODY, f"{number:016x}", path=COMPLETIONS, body=body)


def run_over(rows, *, asked=3, notices=None):
    """What `ClusterRun` makes of rows that nodes sent."""
    run = ClusterRun(
        "auto",
        Asked(Path("model.gguf")),
        [],
        DEFAULTS,
        1,
        ordered=True,
        written=lambda _n: None,
        notice=(notices if notices is not None else []).append,
    )
    run._pending = set(range(asked))
    return [answered.item.number for answered in run._unpacked(iter(rows))]


def row(answered, kernels="specx, avx2"):
    return {"answered": pickle.dumps(answered), "kernels": kernels}


def test_what_comes_twice_counts_once():
    rows = [row(Answered(item(n))) for n in (0, 1, 1, 0, 2)]
    assert run_over(rows) == [0, 1, 2]


def test_what_never_comes_is_told():
    with pytest.raises(ClusterError, match="no answer to 2 items") as error:
        run_over([row(Answered(item(1)))])
    assert "--resume" in error.value.hint


def test_why_a_node_cannot_answer_is_told_in_its_words():
    with pytest.raises(DoesNotFitError, match="needs 9 GiB") as error:
        run_over([row(Answered(item(0))), row(DoesNotFitError("it needs 9 GiB", "a hint"))])
    assert error.value.hint == "a hint"


def test_different_kernels_are_told_once():
    notices = []
    kinds = ("specx, avx2", "specx, avx2", "specx, avx512", "specx, avx2")
    run_over([row(Answered(item(n)), kind) for n, kind in enumerate(kinds)], asked=4, notices=notices)
    assert len(notices) == 1
    assert "(specx, avx2; specx, avx512)" in notices[0]


def test_rows_that_are_waited_for_can_be_given_up():
    stopped, waiting = threading.Event(), threading.Event()

    def rows():
        yield {"n": 1}
        waiting.wait(20)

    found = []
    start = time.monotonic()
    for each in cluster._interruptible(rows(), stopped.is_set):
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
        list(cluster._interruptible(rows(), lambda: False))


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match="--ray needs Ray") as error:
        cluster._import_ray()
    assert "pip install 'ray[data]>=" in error.value.hint


@pytest.fixture(scope="module")
def tiny(write_tiny, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama")


def asked_of(path):
    return Asked(path, n_ctx=256, texts=4, kernels="specx", drafter="none", threads=1, store=False)


def test_a_node_answers_many_tasks_at_once_as_a_run_of_its_own_would(tiny):
    pyarrow = pytest.importorskip("pyarrow")
    asked = asked_of(tiny)
    items = [item(number) for number in range(12)]
    with Session.open(asked) as session:
        expected = {each.item.number: each.body for each in answer(session, items, DEFAULTS, 5)}
    writer = NodeWriter(asked, read_runnable(tiny).fingerprint, DEFAULTS, 5)
    tables = [
        pyarrow.table({"item": [pickle.dumps(each) for each in items[n : n + 3]]}) for n in (0, 3, 6, 9)
    ]
    with ThreadPoolExecutor(5) as pool:  # and a task that is tried again, while the first try goes on
        found = list(pool.map(writer, [*tables, tables[0]]))
    writer.close()
    for table in found:
        for column in table["answered"].to_pylist():
            answered = pickle.loads(column)
            body = expected[answered.item.number]
            assert repr(answered.item) == repr(items[answered.item.number])
            assert answered.body["choices"] == body["choices"]
    assert [len(table["answered"]) for table in found] == [3] * 5
    assert all(name.startswith("specx") for name in found[0]["kernels"].to_pylist())


def test_what_comes_as_a_node_fails_is_told_so(tiny, monkeypatch):
    writer = NodeWriter(asked_of(tiny), read_runnable(tiny).fingerprint, DEFAULTS, 5)
    failure = ClusterError("the device is gone")

    def late(_item):
        writer._failure = failure  # those that waited were told before

    monkeypatch.setattr(writer._coming, "put", late)
    assert writer._begin(item(1)).exception(60) is failure
    monkeypatch.undo()
    writer.close()


@pytest.mark.parametrize(
    ("name", "fingerprint", "kind", "message"),
    [
        ("tiny.gguf", "another", ClusterError, "another model"),
        ("missing.gguf", "", ModelError, "missing.gguf"),
    ],
)
def test_a_node_that_cannot_answer_says_why_and_is_not_tried_again(tiny, name, fingerprint, kind, message):
    pyarrow = pytest.importorskip("pyarrow")
    writer = NodeWriter(asked_of(tiny.parent / name), fingerprint, DEFAULTS, 5)
    for _ in range(2):
        answered = writer(pyarrow.table({"item": [pickle.dumps(item(0))]}))["answered"].to_pylist()
        problem = pickle.loads(answered[0])
        assert isinstance(problem, kind)
        assert message in problem.message
