"""Answering items: in what order, what fails, and what ends it."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path

import pytest

from specx.backends.errors import FileError
from specx.backends.scripted import ScriptedModel
from specx.backends.store import Store
from specx.engine.api.asks import Defaults
from specx.engine.batch import run as run_module
from specx.engine.batch.feed import Feed
from specx.engine.batch.items import Reader, Reading
from specx.engine.batch.run import Run, answer
from specx.engine.batch.source import read_lines
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked

LONG = {"prompt": "a", "max_tokens": 30, "ignore_eos": True}
SHORT = {"prompt": "b", "max_tokens": 1, "ignore_eos": True}


def session_of(texts=4, **options):
    model = ScriptedModel(300, order=3, sharpness=1.0, max_texts=texts, **options)
    asked = Asked(Path("scripted.gguf"), drafter="none", store=False, texts=texts)
    return Session(model, asked, Learned(Store(None), model_key="m", cost_key="c"), name="scripted")


def items_of(*values):
    data = "".join(json.dumps(value) + "\n" for value in values).encode()
    return list(Reader(Reading("jsonl"), read_lines(io.BytesIO(data), "in")))


def numbers(answers):
    return [answered.item.number for answered in answers]


def texts(answers):
    return {a.item.number: a.body["choices"][0]["text"] for a in answers}


def test_in_order_and_as_they_are_finished():
    items = items_of(LONG, SHORT, SHORT, LONG, SHORT)
    ordered = list(answer(session_of(), items, Defaults(), 1))
    assert numbers(ordered) == [0, 1, 2, 3, 4]
    loose = list(answer(session_of(), items, Defaults(), 1, ordered=False))
    assert numbers(loose) != [0, 1, 2, 3, 4] and sorted(numbers(loose)) == [0, 1, 2, 3, 4]
    assert texts(ordered) == texts(loose)
    assert [answered.tokens for answered in ordered] == [30, 1, 1, 30, 1]
    assert all(answered.cut and not answered.failed for answered in ordered)


def test_no_more_are_begun_than_may_wait(monkeypatch):
    monkeypatch.setattr("specx.engine.batch.answered.WINDOW", 6)
    items = items_of({**LONG, "max_tokens": 300}, *[SHORT] * 40)
    taken = []
    feed = Feed(taken.append(item.number) or item for item in items)
    answers = Run(session_of(), feed, Defaults(), 1).answers()
    assert next(answers).item.number == 0 and len(taken) <= 7
    assert numbers(answers) == list(range(1, 41))


def test_what_is_wrong_is_given_in_its_place():
    items = items_of(SHORT, 3, SHORT, {"prompt": 4}, {"prompt": "x" * 9000}, SHORT)
    answers = list(answer(session_of(n_ctx=512), items, Defaults(), 1))
    assert [answered.status for answered in answers] == [200, 400, 200, 400, 400, 200]
    assert answers[4].body["error"]["code"] == "context_length_exceeded"
    assert [answered.failed for answered in answers] == [False, True, False, True, True, False]


def test_many_wrong_ones_are_given_as_they_come():
    taken = []
    feed = Feed(taken.append(1) or item for item in items_of(*[3] * 50))
    answers = Run(session_of(), feed, Defaults(), 1).answers()
    for count in range(1, 51):
        next(answers)
        assert len(taken) == count
    assert next(answers, None) is None


def test_a_fault_of_ours_is_an_error_of_one_item(monkeypatch):
    read = run_module.read_ask

    def broken(body, path, defaults):
        if body["prompt"] == "b":
            raise ZeroDivisionError("a bug")
        return read(body, path, defaults)

    monkeypatch.setattr(run_module, "read_ask", broken)
    answers = list(answer(session_of(), items_of(LONG, SHORT, LONG), Defaults(), 1))
    assert [answered.status for answered in answers] == [200, 500, 200]
    assert "ZeroDivisionError" in answers[1].body["error"]["message"]


def test_a_failure_while_it_is_written_is_an_error_of_one_item(monkeypatch):
    session = session_of()
    items = items_of({**LONG, "n": 2}, LONG)
    run = Run(session, Feed(items), Defaults(), 1)
    take = run.take

    def failing(wait):
        generation = take(wait)
        if generation is not None and generation.label.item.number == 0:
            monkeypatch.setattr(
                generation,
                "read",
                lambda *_: (_ for _ in ()).throw(FileError("the disk is gone")),
                raising=False,
            )
        return generation

    run.take = failing
    first, second = run.answers()
    assert first.status == 500 and "the disk is gone" in first.body["error"]["message"]
    assert second.status == 200


def test_stopping_finishes_what_was_begun():
    run = Run(session_of(texts=2), Feed(items_of(*[LONG] * 9)), Defaults(), 1)
    found = []
    for answered in run.answers():
        found.append(answered)
        run.stop()
    assert numbers(found) == list(range(len(found))) and 2 <= len(found) < 9
    assert all(answered.tokens == 30 for answered in found) and run.in_progress == 0


def test_dropping_gives_nothing_more():
    steps = []
    run = Run(session_of(texts=2), Feed(items_of(*[LONG] * 9)), Defaults(), 1, written=steps.append)
    answers = run.answers()
    next(answers)
    run.drop()
    steps.clear()
    assert list(answers) == [] and len(steps) <= 4


def test_what_is_begun_while_all_is_dropped_is_dropped_as_well(monkeypatch):
    steps = []
    run = Run(session_of(texts=2), Feed(items_of(*[LONG] * 3)), Defaults(), 1, written=steps.append)
    made = run_module.Exchange

    def exchange(*arguments, **options):
        run.drop()  # as a signal may
        return made(*arguments, **options)

    monkeypatch.setattr(run_module, "Exchange", exchange)
    assert list(run.answers()) == [] and sum(steps) == 0


def test_items_that_do_not_come_yet_hold_up_nobody():
    came, more = threading.Event(), threading.Event()

    def slowly():
        yield from items_of(SHORT, SHORT)
        came.set()
        assert more.wait(60)
        yield from items_of(SHORT)

    answers = Run(session_of(), Feed(slowly(), slow=True), Defaults(), 1).answers()
    assert came.wait(60)
    next(answers), next(answers)
    more.set()
    assert len(list(answers)) == 1


def test_what_comes_before_a_broken_input_is_answered():
    def broken():
        yield from items_of(SHORT, LONG)
        raise FileError("cannot read in")

    for slow in (False, True):
        found = []
        with pytest.raises(FileError, match="cannot read in"):
            found.extend(Run(session_of(), Feed(broken(), slow=slow), Defaults(), 1).answers())
        assert numbers(found) == [0, 1]


def test_waiting_can_be_ended():
    def never():
        yield from items_of(SHORT)
        time.sleep(600)

    feed = Feed(never(), slow=True)
    run = Run(session_of(), feed, Defaults(), 1)
    answers = run.answers()
    next(answers)
    threading.Timer(0.2, run.stop).start()
    assert list(answers) == []
