"""A head that learns between answers: texts stay the same, and what happens costs only what it learned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from specx.backends.errors import FileError, SpecxError, UsageError
from specx.backends.gguf.file import read_gguf
from specx.backends.gguf.head_target import HEAD_ADAPTED
from specx.backends.store import Store
from specx.cli.options.adapting import AdaptOptions
from specx.drafters.recording import RECORDED
from specx.drafters.train import states
from specx.drafters.train.states import StatesFile, StatesWriter
from specx.engine import adapting
from specx.engine.adapting import Adapting, Process
from specx.engine.generation import Arrivals
from specx.engine.making import adapt as learning
from specx.engine.making.adapt import Outcome, Task, adapt, layout_of
from specx.engine.report.drafters import list_drafters
from specx.engine.session import Session
from specx.engine.settings import Asked, AskedModel, SamplingSettings
from specx.engine.setup.finder import ADAPTED, Candidate, Finder, adapted_path, check_candidate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_heads import write_eagle3

HEAD_OPTIONS = {"d_target": 64, "n_vocab": 304, "layers": (1, 3, 4), "n_draft": 300}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, write_tiny):
    folder = tmp_path_factory.mktemp("adapting")
    target = write_tiny(folder / "target.gguf", "llama")
    write_eagle3(folder / "head.gguf", tokens=target, **HEAD_OPTIONS)
    return target, folder / "head.gguf"


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    """A store of its own, little to learn from, and anything that differs counts as better."""
    monkeypatch.setenv("SPECX_CACHE", str(tmp_path / "store"))
    monkeypatch.setattr(adapting, "ENOUGH", 60)
    for name, value in (("ENOUGH", 60), ("LEAST_HELD", 10), ("UPDATES", 4), ("ROUNDS", 2)):
        monkeypatch.setattr(learning, name, value)


class Here:
    """A `Learner` that has learned at once."""

    tasks: ClassVar = []
    outcome: ClassVar = None

    def __init__(self, task):
        Here.tasks.append(task)
        self.working = [True]

    def go_on(self, *, working):
        self.working.append(working)

    def ended(self):
        return adapt(Here.tasks[-1]) if Here.outcome is None else Here.outcome

    def stop(self):
        pass


@pytest.fixture
def here(monkeypatch):
    Here.tasks, Here.outcome = [], None
    monkeypatch.setattr("specx.engine.setup.open.check_torch", lambda what: None)
    monkeypatch.setattr(adapting, "Process", Here)
    return Here


def opened(pair, notices=None, **options):
    target, head = pair
    asked = Asked(
        target, n_ctx=256, threads=1, kernels="stock", measure=False,
        **{"drafter": "model", "draft": AskedModel(model=head), "adapt": True, **options},
    )  # fmt: skip
    return Session.open(asked, notice=(notices if notices is not None else []).append)


def answers(session, count=8, temperature=0.8):
    found = []
    for i in range(count):
        sampling = SamplingSettings(temperature=temperature, seed=i)
        generation = session.generate([1, *range(260 + i, 270 + i)], sampling, n_predict=24, ignore_eos=True)
        list(generation)
        found.append(generation.result.tokens)
    return found


def answers_until(session, holds):
    """Ask until it does: on a busy machine the head is not read with every answer."""
    for _ in range(100):
        answers(session, 1)
        if holds():
            return
    raise AssertionError("nothing was recorded")


def kept(tmp_path, suffix):
    return sorted((tmp_path / "store" / ADAPTED).glob(f"*{suffix}"))


TEMPERATURES = (0.0, 0.7, 1.0)


def at_all_temperatures(session, count=3):
    return [answers(session, count, temperature) for temperature in TEMPERATURES]


def test_texts_are_the_same_while_a_head_learns_and_after(pair, tmp_path, here, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(learning, "GAIN", 0.0)
    monkeypatch.setattr(learning, "SURE", -float("inf"))
    monkeypatch.setattr(adapting, "ENOUGH", 150)
    with opened(pair, adapt=False, drafter="none") as session:
        plain = at_all_temperatures(session)
    notices = []
    with opened(pair, notices) as session:
        first = at_all_temperatures(session)
        session.draft_models.adapting.finish(lambda: None)
        assert session.draft_models.candidate.name == "head, adapted"
        again = at_all_temperatures(session)
    assert first == plain and again == plain
    assert any("adapted to your texts" in notice for notice in notices)
    assert len(kept(tmp_path, ".gguf")) == 1 and len(kept(tmp_path, ".states")) == 1
    (made,) = kept(tmp_path, ".gguf")
    told = json.loads(read_gguf(made).metadata[HEAD_ADAPTED])
    assert told["tokens"] + told["held"] >= 60 and {"before", "after"} <= told.keys()
    with opened(pair, adapt=False) as session:  # it is used from now on, whether it learns or not
        assert session.draft_models.candidate.name == "head, adapted"
        assert answers(session, 2, 0.0) == plain[0][:2]
    listed = {each.forecast.candidate.name: each for each in list_drafters(Asked(pair[0])).usable}
    assert "head" not in listed and listed["head, adapted"].made.startswith("adapt of head.gguf, ")
    made.unlink()  # and one file undoes it
    with opened(pair, adapt=False) as session:
        assert session.draft_models.candidate.name == "head"
    assert {each.forecast.candidate.name for each in list_drafters(Asked(pair[0])).usable} == {"head"}


def test_a_head_that_is_no_better_is_not_written(pair, tmp_path, here, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(learning, "GAIN", 1e9)
    monkeypatch.setattr(adapting, "ENOUGH", 150)
    with opened(pair) as session:
        answers(session)
        session.draft_models.adapting.finish(lambda: None)
        assert session.draft_models.candidate.name == "head" and len(here.tasks) == 1
        answers(session, 1)  # a little more is no reason to try again
        assert len(here.tasks) == 1
    assert not kept(tmp_path, ".gguf") and not list((tmp_path / "store" / ADAPTED).glob("*.tmp"))


def test_it_learns_only_while_it_pays(pair, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    task, ticks = task_of(pair, tmp_path), iter(range(1_000_000))
    monkeypatch.setattr(learning, "ROUNDS", 4)
    paid = adapt(
        replace(task, costs=(np.inf, 10.0, 10.1, 10.2, 10.3), expected=10), clock=lambda: next(ticks)
    )
    assert paid.why == "it no longer pays" and not paid.better
    monkeypatch.setattr(learning, "ENOUGH", 10_000)
    assert adapt(task).why == "there is too little text"
    monkeypatch.setattr(learning, "ENOUGH", 60)
    with pytest.raises(SpecxError, match="GiB of memory"):
        adapt(replace(task, memory=1 << 20))


def task_of(pair, tmp_path, texts=8):
    """A task, with texts of random states."""
    target, head = map(read_gguf, pair)
    found = check_candidate(target, head.path)
    layout = layout_of(target, found.layers, RECORDED)
    rng = np.random.default_rng(2)
    path = tmp_path / "texts.states"
    with StatesWriter(path, layout) as states:
        for _ in range(texts):
            tokens = rng.integers(259, 300, 30).astype(np.int32)
            best = np.tile(np.arange(260, 260 + RECORDED, dtype=np.int32), (30, 1))
            best[:-1, 0] = tokens[1:]
            scores = np.tile(-np.arange(RECORDED).astype(np.float16), (30, 1))
            features = rng.standard_normal((30, 192)).astype(np.float16)
            states.append(learning_states(tokens, features, best, scores))
    return Task(
        str(target.path), str(head.path), str(path), str(tmp_path / "better.gguf"), RECORDED, 1, 2 << 30
    )


def learning_states(tokens, features, best, scores):
    from specx.drafters.train.states import States

    return States(tokens, 4, features, best, scores)


def test_it_learns_what_it_is_shown(pair, tmp_path, monkeypatch):
    """Texts in which one token follows another are drafted better afterwards, and the file says so."""
    pytest.importorskip("torch")
    for name, value in (("UPDATES", 60), ("PATIENCE", 9), ("RATE", 3e-3)):
        monkeypatch.setattr(learning, name, value)
    task = task_of(pair, tmp_path)
    target = read_gguf(Path(task.target))
    layout = layout_of(target, (1, 3, 4), RECORDED)
    Path(task.states).unlink()
    rng = np.random.default_rng(5)
    with StatesWriter(Path(task.states), layout) as states:
        for i in range(24):
            tokens = (259 + (np.arange(40) * 3 + i) % 12).astype(np.int32)
            best = np.tile(np.arange(280, 280 + RECORDED, dtype=np.int32), (40, 1))
            best[:, 0] = 259 + (np.arange(1, 41) * 3 + i) % 12
            scores = np.tile(-4 * np.arange(RECORDED).astype(np.float16), (40, 1))
            features = rng.standard_normal((40, 192)).astype(np.float16)
            states.append(learning_states(tokens, features, best, scores))
    outcome = adapt(task)
    assert outcome.better, outcome
    assert outcome.after > 1.5 * outcome.before
    found = check_candidate(target, Path(task.output))
    assert isinstance(found, Candidate) and sum(right for right, _ in found.trial) > 100


def test_damage_is_survived(pair, tmp_path, here, monkeypatch):
    """Texts and heads that were cut off or overwritten, or are of another model, and a disk that is full."""
    here.outcome = Outcome(1.0, 1.0, 0, 0, 0.0, "it no longer pays")
    with opened(pair) as session:
        plain = answers(session)
    (path,) = kept(tmp_path, ".states")
    target, head = map(read_gguf, pair)
    layout, data = layout_of(target, (1, 3, 4), RECORDED), path.read_bytes()
    before = len(StatesFile(path, layout))
    for damaged in (data[: len(data) - 7], data[:3], b"", b"something else", data[:500] + b"x" + data[501:]):
        path.write_bytes(damaged)
        with opened(pair) as session:
            assert answers(session, 1) == plain[:1]
        assert 0 < len(StatesFile(path, layout)) <= before + 1
    made = adapted_path(Store(tmp_path / "store"), target, check_candidate(target, head.path))
    for damaged in (b"", b"GGUF and no more", head.path.read_bytes()[:2000], target.path.read_bytes()):
        made.write_bytes(damaged)
        with opened(pair) as session:
            assert session.draft_models.candidate.name == "head"
            assert answers(session, 1) == plain[:1]
        names = [each.name for each in Finder(target, Store(tmp_path / "store")).search() if each]
        assert "head" in names

    def full(_self, _data):
        raise OSError(28, "No space left on device")

    made.unlink()
    monkeypatch.setattr(StatesWriter, "_write", full)
    notices = []
    with opened(pair, notices) as session:
        assert answers(session, 2) == plain[:2]
        assert session.draft_models.adapting._recorder is None
    assert [notice for notice in notices if "No space left" in notice]
    assert len([notice for notice in notices if "--adapt" in notice]) == 1


def test_what_several_short_runs_wrote_is_learned_from_together(pair, tmp_path, here, monkeypatch):
    """And only what the target chose counts, on both sides; who ended it before its end learned nothing."""
    monkeypatch.setattr(adapting, "ENOUGH", 60)
    here.outcome = Outcome(1.0, 1.0, 0, 0, 0.0, "it no longer pays")

    def known():
        (entry,) = kept(tmp_path, ".json")
        return json.loads(entry.read_text())["chosen"]

    def written():
        (path,) = kept(tmp_path, ".states")
        return StatesFile(path, layout_of(read_gguf(pair[0]), (1, 3, 4), RECORDED)).chosen

    for runs in (1, 2, 3):  # of some 20 tokens each
        with opened(pair) as session:
            answers(session, 1)
        assert len(here.tasks) == (runs == 3)
    assert here.tasks[0].expected == known() == written() >= 60  # what came of it was there at the end
    monkeypatch.setattr(adapting, "ENOUGH", 30)
    monkeypatch.setattr(here, "ended", lambda _self: None)
    for runs in (1, 2):
        with opened(pair) as session:
            answers(session, 1)
        assert len(here.tasks) == runs
    assert known() < written()
    with opened(pair) as session:
        answers(session, 1)
    assert len(here.tasks) == 3 and here.tasks[-1].expected == written()


def test_nobody_else_reads_what_is_kept(pair, tmp_path, here, monkeypatch):
    """Whatever was there, and after the older half of it has gone."""
    monkeypatch.setattr(adapting, "ENOUGH", 10_000)
    before = os.umask(0o022)
    try:
        with opened(pair) as session:
            answers(session, 1)
            (path,) = kept(tmp_path, ".states")
            assert path.stat().st_mode & 0o777 == 0o600
            path.write_bytes(b"something else")
            path.chmod(0o644)
            answers(session, 2)
            assert path.stat().st_mode & 0o777 == 0o600
            monkeypatch.setattr(adapting, "DISK", path.stat().st_size + 1)
            answers(session, 4)
            assert path.stat().st_mode & 0o777 == 0o600
            assert len(StatesFile(path, layout_of(read_gguf(pair[0]), (1, 3, 4), RECORDED))) < 5
    finally:
        os.umask(before)


def test_texts_that_are_removed_and_a_process_that_cannot_be_begun_end_no_answer(
    pair, tmp_path, here, monkeypatch
):
    notices = []

    def none(_task):
        raise OSError(11, "Resource temporarily unavailable")

    with opened(pair) as session:
        plain = answers(session, 3)
    monkeypatch.setattr(adapting, "Process", none)
    with opened(pair, notices) as session:
        session.draft_models.adapting._note(0)
        assert answers(session, 3) == plain
    assert [notice for notice in notices if "adapt" in notice] == [
        "--adapt goes no further: Resource temporarily unavailable"
    ]


def test_texts_take_a_bounded_part_of_the_disk(pair, tmp_path, here, monkeypatch):
    monkeypatch.setattr(adapting, "DISK", 60_000)
    here.outcome = Outcome(1.0, 1.0, 0, 0, 0.0, "it no longer pays")
    with opened(pair) as session:
        answers(session, 12)
    (path,) = kept(tmp_path, ".states")
    assert path.stat().st_size <= 60_000
    assert len(StatesFile(path, layout_of(read_gguf(pair[0]), (1, 3, 4), RECORDED))) >= 2


def test_what_the_file_of_texts_has_is_checked_once_and_again_when_it_is_another(
    pair, tmp_path, here, monkeypatch
):
    here.outcome = Outcome(1.0, 1.0, 0, 0, 0.0, "it no longer pays")
    looked, records = [], states._records
    monkeypatch.setattr(states, "_records", lambda *args: looked.append(1) or records(*args))
    with opened(pair) as session:
        adapts = session.draft_models.adapting
        monkeypatch.setattr(adapts, "_begin", lambda _head: None)
        answers(session, 2)
        (path,) = kept(tmp_path, ".states")
        before = len(looked)
        answers(session, 4)
        assert len(looked) == before
        path.unlink()  # as `specx cache clear` does
        answers_until(session, path.exists)
        assert len(looked) == before  # of a file that was not there nothing is to be checked
        cut = path.read_bytes()[:-3]
        path.write_bytes(cut)  # or whatever else happens to it
        answers_until(session, lambda: path.stat().st_size != len(cut))
        assert len(looked) == before + 1
    layout = layout_of(read_gguf(pair[0]), (1, 3, 4), RECORDED)
    found = StatesFile(path, layout)
    assert len(found) >= 1 and not found.lost


def test_what_is_said_where_nothing_can_be_learned(pair, tmp_path, here, monkeypatch):
    notices = []
    with opened(pair, notices) as first, opened(pair, notices) as second:
        assert answers(first, 1) == answers(second, 1)
    assert sum("another specx adapts a head" in notice for notice in notices) == 1
    notices.clear()
    (tmp_path / "alone").mkdir()
    alone = (tmp_path / "alone" / "target.gguf").write_bytes(pair[0].read_bytes())
    assert alone
    with opened((tmp_path / "alone" / "target.gguf", None), notices, drafter="auto") as session:
        answers(session, 2)
    assert [notice for notice in notices if "adapt" in notice] == [
        "--adapt has no head to adapt: specx drafter train makes one"
    ]
    here.outcome = "it is on fire"
    notices.clear()
    with opened(pair, notices) as session:
        answers(session)
        session.draft_models.adapting.finish(lambda: None)
    assert "the draft head head was not adapted: it is on fire" in notices
    with pytest.raises(UsageError, match="--no-cache"):
        AdaptOptions(adapt=True).of(Asked(pair[0], store=False))
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = Asked(tmp_path / "missing.gguf", adapt=True)  # torch is asked for before anything is opened
    with pytest.raises(SpecxError, match="--adapt needs torch") as caught:
        Session.open(missing)
    assert "pip install 'torch>=" in caught.value.hint


def test_arrivals_are_what_it_waits_for():
    """Where a server waits for requests it learns, and stops before the next one is begun."""
    log = []

    class Told(Adapting):
        def __init__(self):
            pass

        def busy(self):
            log.append("busy")

        def idle(self):
            log.append("idle")

    class Coming(Arrivals):
        found: ClassVar = [None, "a", "b", None, None, None]

        def take(self, wait):
            log.append(f"take {wait}")
            return self.found.pop(0)

    def writing(source):
        for wait in (True, False, False, True):
            yield source.take(wait)

    assert list(Told().beside(writing, Coming())) == ["a", "b", None, None]
    assert log == [
        "busy", "take False", "idle", "take True", "busy", "take False", "take False",
        "take False", "idle", "take True", "busy", "idle",
    ]  # fmt: skip


def test_the_process_works_is_ended_and_ends_with_its_owner(pair, tmp_path):
    pytest.importorskip("torch")
    task = task_of(pair, tmp_path)
    process = Process(replace(task, head=str(tmp_path / "none.gguf")))
    process._reader.join(60)
    assert "none.gguf" in process.ended()
    killed = Process(task)
    killed.go_on(working=False)
    assert killed.ended() is None
    killed._process.kill()
    killed._reader.join(60)
    assert killed.ended() == "the process that learns has ended"
    code = (
        "import json, os, sys\n"
        "from specx.engine.adapting import Process\n"
        "from specx.engine.making.adapt import Task\n"
        "process = Process(Task.from_json(sys.argv[1]))\n"
        "print(process._process.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    told = subprocess.run(
        [sys.executable, "-P", "-c", code, json.dumps(asdict(task))],
        capture_output=True,
        text=True,
        check=True,
    )
    pid, deadline = int(told.stdout), time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and state_of(pid) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not list(tmp_path.glob("*.gguf"))


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_a_full_disk_keeps_the_head_that_was(pair, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(learning, "GAIN", 0.0)
    monkeypatch.setattr(learning, "SURE", -float("inf"))
    task = task_of(pair, tmp_path)
    Path(task.output).write_bytes(b"before")

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="No space left"):
        adapt(task)
    assert Path(task.output).read_bytes() == b"before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
