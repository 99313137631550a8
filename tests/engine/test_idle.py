"""What is measured while nobody waits leaves the conversation as it is, and ends when somebody does."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from specx.backends.llama.kernels import STOCK
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.settings import Load
from specx.backends.store import Store
from specx.engine import idle
from specx.engine.cost.timing import never, unwatched
from specx.engine.idle import measure_idle
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.setup.kernels import LATER

SCRIPT = [int(token) for token in np.random.default_rng(7).integers(1, 28, 40)]
GREEDY = SamplingSettings(seed=5, temperature=0.0)


def session_of(root=None):
    clock = SimulatedClock()
    steps = {n: 10.0 + n for n in range(1, 65)}
    model = ScriptedModel(vocab_size=64, script=SCRIPT, peak=0.9, step_costs=steps, clock=clock)
    learned = Learned(Store(root), model_key="model", cost_key="cost")
    session = Session(model, Asked(Path("scripted.gguf"), store=False), learned, name="scripted", clock=clock)
    session.staircase.watch = unwatched
    return session


def test_the_next_message_reads_nothing_anew():
    session = session_of()
    first = session.generate(SCRIPT, GREEDY, n_predict=20)
    list(first)
    held = list(session.slots[-1].cached)
    session.staircase.forget()  # as if it had been too short to measure before
    measure_idle(session, never)
    assert session.staircase.depths == [len(held)] and session.slots[-1].cached == held
    measure_idle(session, never)  # with nothing to measure, too
    second = session.generate([*SCRIPT, *first.result.tokens, 3, 4], GREEDY, n_predict=4)
    list(second)
    assert second.result.timings.cached_n >= len(SCRIPT) + 19


def test_nobody_waits_for_another_process_that_measures(tmp_path):
    session, stop = session_of(tmp_path), threading.Event()
    with Store(tmp_path).measuring():
        thread = threading.Thread(target=measure_idle, args=(session, stop.is_set))
        thread.start()
        time.sleep(0.05)
        assert thread.is_alive()
        stop.set()
        thread.join(5)
        assert not thread.is_alive()
    assert not session.staircase.depths


def test_a_model_is_not_loaded_to_its_end_once_somebody_waits(write_tiny, tmp_path, monkeypatch):
    path, stop, loaded = write_tiny(tmp_path / "tiny.gguf", "llama"), threading.Event(), []

    def compare(load, *_given, stopped):
        load(STOCK).close()
        loaded.append("whole")
        stop.set()
        load(STOCK).close()
        loaded.append("in vain")

    monkeypatch.setattr(idle, "compare_idle", compare)
    setup = SimpleNamespace(
        kernels=SimpleNamespace(why=LATER),
        need=SimpleNamespace(weights=1, working=1),
        load=Load(path, n_ctx=256, threads=1, threads_batch=1),
        kernels_key="key",
    )
    session = SimpleNamespace(
        measure_staircase=lambda stopped: None, setup=setup, asked=Asked(path, store=False),
        notice=print, staircase=None,
    )  # fmt: skip
    measure_idle(session, stop.is_set)
    assert loaded == ["whole"]
