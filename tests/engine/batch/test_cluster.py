"""Between Ray and a batch: answers that come twice or never, nodes with another model, what writes there."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from specx import __version__
from specx.backends.errors import ClusterError, DoesNotFitError, ModelError, SpecxError, UsageError
from specx.backends.gguf.checks import read_runnable
from specx.engine.api.asks import Defaults
from specx.engine.api.paths import COMPLETIONS
from specx.engine.batch import cluster
from specx.engine.batch.answered import Answered
from specx.engine.batch.cluster import ClusterRun, Node, NodeWriter
from specx.engine.batch.items import BODY, Item
from specx.engine.batch.run import answer
from specx.engine.session import Session
from specx.engine.settings import Asked, AskedModel, SamplingSettings

HEAD = "127.0.0.1:9"  # nobody listens there
DEFAULTS = Defaults(SamplingSettings(temperature=1.0), n_predict=8, ignore_eos=True)


def item(number):
    body = {"prompt": f"number {number}"}
    return Item(number, number + 1, BODY, f"{number:016x}", path=COMPLETIONS, body=body)


def run_of(items=(), *, asked=Asked(Path("model.gguf")), notices=None):  # noqa: B008 (it is frozen)
    return ClusterRun(
        "auto",
        asked,
        None,
        items,
        DEFAULTS,
        1,
        ordered=True,
        written=lambda _n: None,
        notice=(notices if notices is not None else []).append,
    )


def run_over(rows, *, asked=3, notices=None):
    """What `ClusterRun` makes of rows that nodes sent."""
    run = run_of(notices=notices)
    run._pending = set(range(asked))
    return [answered.item.number for answered in run._unpacked(iter(rows))]


def row(answered, kernels="specx, avx2", n_ctx=512, told=()):
    return {"answered": pickle.dumps(answered), "node": pickle.dumps(Node(kernels, n_ctx, tuple(told)))}


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


def test_different_contexts_are_told_once():
    notices = []
    rows = [row(Answered(item(n)), n_ctx=n_ctx) for n, n_ctx in enumerate((512, 4096, 512, 4096))]
    run_over(rows, asked=4, notices=notices)
    assert len(notices) == 1
    assert "(512, 4096 tokens)" in notices[0]


def test_what_nodes_tell_is_told_once():
    notices = []
    rows = [
        row(Answered(item(n)), told=told) for n, told in enumerate(((), ("two {}",), ("two {}", "three")))
    ]
    run_over(rows, notices=notices)
    assert notices == ["two {}", "three"]


@pytest.fixture
def nodes(monkeypatch):
    """In the place of a cluster, this process: nodes whose answers are empty."""

    class Ray:
        put = staticmethod(lambda piece: piece)
        shutdown = staticmethod(lambda: None)
        get_runtime_context = staticmethod(lambda: SimpleNamespace(gcs_address=HEAD))

    def mapped(_run, parts, _nodes, _tasks):
        for part in parts:
            for packed in part["item"].to_pylist():
                yield row(Answered(pickle.loads(packed), body={"choices": []}))

    pytest.importorskip("pyarrow")
    monkeypatch.setattr(cluster, "import_ray", Ray)
    monkeypatch.setattr(cluster, "connect", lambda *_: True)
    monkeypatch.setattr(cluster, "nodes_of", lambda *_: {"one"})
    monkeypatch.setattr(ClusterRun, "_mapped", mapped)


def test_what_came_before_an_input_fails_is_answered(nodes):
    def items():
        yield from map(item, range(11))
        raise UsageError("a quote is never closed")

    found = []
    with pytest.raises(UsageError, match="never closed"):
        for answered in run_of(items()).answers():
            found.append(answered.item.number)
    assert found == list(range(11))


@pytest.mark.parametrize("wrong", [False, True])
def test_an_item_that_is_nested_too_deep_to_be_sent_is_refused_alone(nodes, wrong):
    deep = []
    for _ in range(3000):
        deep = [deep]
    second = item(1)
    if wrong:  # already when it was read
        second.custom_id, second.problem, second.body = deep, ("custom_id is no string", None), None
    else:
        second.body["tools"] = deep
    first, refused, third = run_of([item(0), second, item(2)]).answers()
    assert not first.failed
    assert not third.failed
    assert refused.item is second
    assert refused.status == 400
    message = refused.body["error"]["message"]
    assert message == ("custom_id is no string" if wrong else "tools is nested more than 100 deep")


def test_few_bytes_are_handed_over_together(nodes):
    items = [replace(item(n), body={"prompt": "x" * 600_000}) for n in range(5)]
    assert [len(piece) for piece in run_of(items)._pieces(8)] == [2, 2, 1]


def test_a_pipe_that_is_silent_can_be_given_up(nodes):
    waiting = threading.Event()

    def items():
        yield item(0)
        waiting.wait(20)

    run = run_of(items())
    threading.Timer(0.3, run.stop).start()
    start = time.monotonic()
    assert list(run.answers()) == []
    waiting.set()
    assert time.monotonic() - start < 10


def test_files_are_named_so_that_nodes_find_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.gguf").symlink_to("elsewhere.gguf")
    asked = Asked(Path("link.gguf"), draft=AskedModel(Path("draft.gguf")), log="a.log")
    found = run_of(asked=asked)._asked
    assert found.model == tmp_path / "link.gguf"  # what the link leads to may have another name there
    assert found.draft.model == tmp_path / "draft.gguf"
    assert found.log == str(tmp_path / "a.log")
    assert run_of(asked=replace(asked, log="-"))._asked.log == "-"


@pytest.fixture(scope="module")
def tiny(write_tiny, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama")


def asked_of(path, n_ctx=256):
    return Asked(path, n_ctx=n_ctx, texts=4, kernels="specx", drafter="none", threads=1, store=False)


def writer_of(asked, fingerprint=None, *, n_ctx=None, version=__version__):
    fingerprint = read_runnable(asked.model).fingerprint if fingerprint is None else fingerprint
    return NodeWriter(version, pickle.dumps((asked, n_ctx, fingerprint, DEFAULTS, 5)))


def test_a_node_answers_many_tasks_at_once_as_a_run_of_its_own_would(tiny):
    pyarrow = pytest.importorskip("pyarrow")
    asked = asked_of(tiny)
    items = [item(number) for number in range(12)]
    with Session.open(asked) as session:
        expected = {each.item.number: each.body for each in answer(session, items, DEFAULTS, 5)}
    writer = writer_of(asked)
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
    sent = [pickle.loads(node) for node in found[0]["node"].to_pylist()]
    assert all(node.kernels.startswith("specx") and node.n_ctx == 256 for node in sent)


def test_a_node_tries_a_context_that_fits_and_says_so(tiny, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    opened = Session.open

    def with_little_memory(asked):
        if asked.n_ctx == 512:
            raise DoesNotFitError("it needs 9 GiB")
        return opened(asked)

    monkeypatch.setattr(Session, "open", with_little_memory)
    writer = writer_of(asked_of(tiny, n_ctx=512), n_ctx=256)
    found = writer(pyarrow.table({"item": [pickle.dumps(item(0))]}))
    writer.close()
    assert not pickle.loads(found["answered"].to_pylist()[0]).failed
    assert pickle.loads(found["node"].to_pylist()[0]).n_ctx == 256
    failed = writer_of(asked_of(tiny, n_ctx=512), n_ctx=512)  # what the person asked for
    assert isinstance(failed._failure, DoesNotFitError)


def test_a_node_sends_what_is_odd_about_requests(tiny):
    pyarrow = pytest.importorskip("pyarrow")
    writer = writer_of(asked_of(tiny))
    writer(pyarrow.table({"item": [pickle.dumps(item(0))]}))
    with_bos = replace(item(1), body={"prompt": f"{bos_of(tiny)}number"})
    found = writer(pyarrow.table({"item": [pickle.dumps(with_bos)]}))
    writer.close()
    assert "the model adds it as well" in pickle.loads(found["node"].to_pylist()[0]).told[0]


def bos_of(path):
    with Session.open(asked_of(path)) as session:
        return session.bos_text


def test_what_comes_as_a_node_fails_is_told_so(tiny, monkeypatch):
    writer = writer_of(asked_of(tiny))
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
    failed_with(pyarrow, writer_of(asked_of(tiny.parent / name), fingerprint), kind, message)


def failed_with(pyarrow, writer, kind, message):
    for _ in range(2):
        answered = writer(pyarrow.table({"item": [pickle.dumps(item(0))]}))["answered"].to_pylist()
        problem = pickle.loads(answered[0])
        assert isinstance(problem, kind)
        assert problem.message.startswith(f"on the node {socket.gethostname()}: ")
        assert message in problem.message


def test_a_node_with_another_specx_says_so(tiny):
    pyarrow = pytest.importorskip("pyarrow")
    message = f"there is specx {__version__}, and the batch is begun with 0.0.1"
    writer = NodeWriter("0.0.1", b"what only that version can read")
    failed_with(pyarrow, writer, ClusterError, message)


def test_a_node_that_cannot_load_for_a_reason_nobody_knows_says_so(tiny, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")

    def broken(_asked):
        raise MemoryError("no room")

    monkeypatch.setattr(Session, "open", broken)
    failed_with(pyarrow, writer_of(asked_of(tiny)), SpecxError, "unexpected MemoryError: no room")
