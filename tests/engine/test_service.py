"""One thread writes for many: what is submitted, taken back, refused and lost."""

from __future__ import annotations

import threading
import time
import traceback
from pathlib import Path

import pytest

from specx.backends.errors import GrammarError, SpecxError
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.engine.learned.knowledge import Learned
from specx.engine.service import FAULTS, BusyError, Service, StoppedError
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

GREEDY = SamplingSettings(seed=1, temperature=0.0)
SCRIPT = list(range(1, 28))
STEPS = {"0": {str(n): 10.0 + n / 4 for n in range(1, 65)}}
PATIENCE = 60.0  # seconds that anything may take on a busy machine


def session_of(*, texts=2, model_class=ScriptedModel, **options):
    clock = SimulatedClock()
    options = {"vocab_size": 64, "script": SCRIPT, "peak": 0.9, "order": 3, "max_texts": texts, **options}
    model = model_class(clock=clock, step_costs={1: 10.0, 64: 20.0}, **options)
    asked = Asked(Path("scripted.gguf"), store=False)
    learned = Learned(Store(None), model_key="model", cost_key="cost")
    session = Session(model, asked, learned, name="scripted", clock=clock)
    session.staircase.load_json(STEPS)
    return session


class Inbox:
    """A receiver that remembers, and can be waited for."""

    def __init__(self):
        self.chunks, self.problem = [], None
        self.ended = threading.Semaphore(0)
        self.began = threading.Event()

    def add(self, generation, chunk):
        self.chunks.append((generation, chunk))
        self.began.set()
        if chunk.last:
            self.ended.release()

    def fail(self, problem):
        self.problem = problem
        self.ended.release()

    def wait(self, texts=1):
        for _ in range(texts):
            assert self.ended.acquire(timeout=PATIENCE)


@pytest.fixture
def start():
    """Starts the thread of a service; all are stopped at the end."""
    running = []

    def begin(session, **options):
        service = Service(session, **options)
        thread = threading.Thread(target=service.run)
        running.append((service, thread))
        thread.start()
        return service

    yield begin
    for service, thread in running:
        service.drop(StoppedError("the test is over"))
        thread.join(PATIENCE)
        assert not thread.is_alive()


def asked(session, *, n_predict=20, prompt=(1, 2, 3)):
    return session.generate(list(prompt), GREEDY, n_predict=n_predict, ignore_eos=True)


def alone(n_predict, prompt=(1, 2, 3)):
    session = session_of(texts=1)
    generation = asked(session, n_predict=n_predict, prompt=prompt)
    list(generation)
    return generation.result.tokens


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_each_text_is_what_it_would_be_alone_and_is_told_piece_by_piece(start):
    service = start(session_of())
    boxes = [Inbox() for _ in range(6)]
    generations = [asked(service.session, n_predict=10 + i, prompt=(1 + i, 2 + i, 3 + i)) for i in range(6)]
    for generation, box in zip(generations, boxes, strict=True):
        service.submit([generation], box)
    for i, (generation, box) in enumerate(zip(generations, boxes, strict=True)):
        box.wait()
        assert {each for each, _ in box.chunks} == {generation}
        assert [token for _, chunk in box.chunks for token in chunk.tokens] == generation.result.tokens
        assert generation.result.tokens == alone(10 + i, (1 + i, 2 + i, 3 + i))
        assert [chunk.last for _, chunk in box.chunks] == [False] * (len(box.chunks) - 1) + [True]
    assert (service.writing, service.waiting) == (0, 0)


def test_what_waits_is_bounded_and_what_is_refused_says_when_to_come_back(start):
    session = session_of(texts=1)
    service = Service(session, most_waiting=2)  # nobody writes
    for _ in range(3):  # one has room, two may wait
        assert not service.full
        service.submit([asked(session)], Inbox())
    assert service.full
    with pytest.raises(BusyError) as refused:
        service.submit([asked(session)], Inbox())
    assert refused.value.retry_s >= 1
    assert service.counts.refused == 1
    assert service.waiting == 3


def test_a_request_of_more_texts_than_may_wait_is_taken_when_nobody_else_is_there():
    session = session_of(texts=1)
    service = Service(session, most_waiting=2)
    service.submit([asked(session) for _ in range(9)], Inbox())
    assert service.waiting == 9


def test_without_a_queue_there_is_room_for_those_that_are_written(start):
    session = session_of(texts=2)
    service = Service(session, most_waiting=0)
    service.submit([asked(session)], Inbox())
    assert not service.full
    service.submit([asked(session)], Inbox())
    assert service.full
    with pytest.raises(BusyError):
        service.submit([asked(session)], Inbox())


def test_what_is_taken_back_while_it_waits_is_never_begun(start):
    session = session_of(texts=1)
    service = Service(session)
    kept, dropped, box = asked(session), asked(session), Inbox()
    service.submit([kept, dropped], box)
    service.cancel([dropped])
    assert service.waiting == 1
    thread = threading.Thread(target=service.run)
    thread.start()
    box.wait()
    service.finish(StoppedError("over"))
    thread.join(PATIENCE)
    assert dropped.result.tokens == [] and dropped.result.finish_reason == "cancelled"
    assert {generation for generation, _ in box.chunks} == {kept}
    service.cancel([kept, dropped])  # nothing is left of them: nothing happens


def test_what_is_taken_back_while_it_is_written_frees_its_room(start):
    service = start(session_of(texts=1))
    endless, box = asked(service.session, n_predict=3000), Inbox()
    service.submit([endless], box)
    assert box.began.wait(PATIENCE)
    service.cancel([endless])
    box.wait()
    assert endless.result.finish_reason == "cancelled"
    until(lambda: service.writing == 0)
    after = Inbox()
    service.submit([asked(service.session)], after)
    after.wait()
    assert all(slot.user is None for slot in service.session.slots)


def test_a_text_that_fails_fails_alone(start):
    service = start(session_of(texts=2, n_ctx=64))
    good, bad = Inbox(), Inbox()

    class Refusing:
        def allowed(self, ids):
            raise GrammarError("the grammar has no way on")

        def accept(self, token):
            pass

    fine = asked(service.session)
    failing = service.session.generate([1, 2, 3], GREEDY, n_predict=9, constraint=Refusing())
    service.submit([failing], bad)
    service.submit([fine], good)
    good.wait()
    bad.wait()
    assert isinstance(failing.result.failure, GrammarError)
    assert fine.result.tokens == alone(20)
    assert service.failure is None


class Breaking(ScriptedModel):
    """A model that breaks after some steps."""

    left = 5

    def forward(self, trees, want=None):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the device is gone")
        return super().forward(trees, *([] if want is None else [want]))


def test_when_writing_fails_everybody_is_told_and_nothing_more_is_taken(start):
    service = start(session_of(texts=1, model_class=Breaking))
    boxes = [Inbox() for _ in range(FAULTS + 2)]
    for box in boxes:
        service.submit([asked(service.session, n_predict=500)], box)
    for box in boxes:
        box.wait()
        assert box.problem is not None and "the device is gone" in box.problem.message
    stopped = [box for box in boxes if isinstance(box.problem, StoppedError)]
    assert stopped == boxes[FAULTS - 1 :]
    assert "the device is gone" in service.failure.message
    assert service.counts.endings["error"] == FAULTS - 1
    with pytest.raises(StoppedError) as stopped:
        service.submit([asked(service.session)], Inbox())
    assert stopped.value.failed
    depth = len(traceback.extract_tb(stopped.value.__traceback__))
    for _ in range(20):  # what it holds does not grow with the requests that are refused
        with pytest.raises(StoppedError) as stopped:
            service.submit([asked(service.session)], Inbox())
    assert len(traceback.extract_tb(stopped.value.__traceback__)) == depth


class Once(ScriptedModel):
    """A model that fails at its fifth step only."""

    calls = 0

    def forward(self, trees, want=None):
        self.calls += 1
        if self.calls == 5:
            raise TypeError("a drafter has a fault")
        return super().forward(trees, *([] if want is None else [want]))


@pytest.mark.parametrize("texts", [1, 3])
def test_what_fails_once_ends_those_who_are_written_for_and_the_others_are_answered(start, texts):
    reported = []
    service = start(session_of(texts=texts, model_class=Once), report=reported.append)
    boxes, generations = [Inbox() for _ in range(6)], [asked(service.session) for _ in range(6)]
    for generation, box in zip(generations, boxes, strict=True):
        service.submit([generation], box)
    for box in boxes:
        box.wait()
    failed = [box.problem for box in boxes if box.problem is not None]
    assert 1 <= len(failed) <= texts and len(reported) == 1
    assert all("unexpected TypeError: a drafter has a fault" in problem.message for problem in failed)
    for generation, box in zip(generations, boxes, strict=True):
        if box.problem is None:
            assert generation.result.tokens == alone(20)
    assert service.failure is None and (service.writing, service.waiting) == (0, 0)
    again = Inbox()
    service.submit([asked(service.session)], again)
    again.wait()
    assert again.problem is None


def test_what_was_asked_for_together_fails_together(start):
    service = start(session_of(texts=1, model_class=Once))
    both, other = Inbox(), Inbox()
    samples = [asked(service.session) for _ in range(3)]
    service.submit(samples, both)
    service.submit([asked(service.session)], other)
    both.wait()
    other.wait()
    assert both.problem is not None and other.problem is None
    until(lambda: (service.writing, service.waiting) == (0, 0))
    assert {generation for generation, _ in both.chunks} <= {samples[0]}  # the others were never begun


def test_a_finishing_service_takes_nothing_and_finishes_what_it_has(start):
    service = start(session_of(texts=1))
    boxes = [Inbox() for _ in range(3)]
    generations = [asked(service.session) for _ in boxes]
    for generation, box in zip(generations, boxes, strict=True):
        service.submit([generation], box)
    service.finish(StoppedError("the server is stopping"))
    with pytest.raises(StoppedError, match="the server is stopping"):
        service.submit([asked(service.session)], Inbox())
    for generation, box in zip(generations, boxes, strict=True):
        box.wait()
        assert generation.result.tokens == alone(20)


def test_a_dropped_service_tells_everybody_why(start):
    service = start(session_of(texts=1))
    boxes = [Inbox() for _ in range(3)]
    for box in boxes:
        service.submit([asked(service.session, n_predict=4000)], box)
    service.drop(StoppedError("enough"))
    for box in boxes:
        until(lambda box=box: box.problem is not None)
        assert box.problem.message == "enough"
    until(lambda: service.writing == 0)


def test_what_was_done_is_counted(start):
    service = start(session_of(texts=2))
    boxes = [Inbox() for _ in range(4)]
    generations = [asked(service.session, n_predict=30) for _ in boxes]
    for generation, box in zip(generations, boxes, strict=True):
        service.submit([generation], box)
        box.wait()
    counts, timings = service.counts, [generation.result.timings for generation in generations]
    assert counts.predicted_tokens == 4 * 30
    assert counts.prompt_tokens + counts.cached_tokens == 4 * 3
    assert counts.prompt_tokens == sum(each.prompt_n for each in timings)
    assert counts.drafted == sum(each.draft_n for each in timings) > 0
    assert counts.accepted == sum(each.draft_n_accepted for each in timings) == sum(counts.accepted_at)
    assert counts.accepted_at == sorted(counts.accepted_at, reverse=True)
    assert round(counts.steps) == counts.text_steps == sum(each.steps for each in timings)
    assert counts.endings == {"length": 4}
    assert counts.longest == 33
    assert sum(counts.first_token) == 4


def test_it_knows_how_long_nothing_was_asked(start):
    now = [100.0]
    service = start(session_of(), clock=lambda: now[0])
    now[0] = 107.0
    assert service.idle_s == 7.0
    box = Inbox()
    service.submit([asked(service.session)], box)
    box.wait()
    until(lambda: service.writing == 0)
    assert service.idle_s == 0.0
    now[0] = 110.0
    assert service.idle_s == 3.0


def test_many_callers_come_and_go_and_nothing_is_lost(start):
    service = start(session_of(texts=3, n_ctx=256), most_waiting=1000)
    wanted, gone, errors = [], [], []

    def call(number):
        try:
            for i in range(8):
                box = Inbox()
                generation = asked(service.session, n_predict=5 + (number + i) % 20)
                service.submit([generation], box)
                if (number + i) % 3 == 0:
                    time.sleep(0.0005 * (i % 4))
                    service.cancel([generation])
                    gone.append(generation)
                else:
                    box.wait()
                    wanted.append(generation)
        except (AssertionError, SpecxError) as problem:
            errors.append(problem)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []
    assert len(wanted) + len(gone) == 64
    for generation in wanted:
        assert generation.result.finish_reason == "length"
        assert generation.result.tokens == alone(generation.request.n_predict)
    until(lambda: service.writing + service.waiting == 0)
    assert all(slot.user is None for slot in service.session.slots)
