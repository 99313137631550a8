"""What drafts brought so far: sums that survive a run, and never lie about the time that passed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.drafters.base import EMPTY_DRAFT
from specx.engine.decode import Step
from specx.engine.learned.knowledge import Learned
from specx.engine.learned.records import MOST_DRAFTERS, MOST_TOKENS, TrackRecord, TrackRecords
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

STEPS = {1: 20.0, 2: 21.0, 4: 23.0, 8: 26.0, 16: 32.0, 64: 80.0}
KEY = "cost"


def step(tokens=3, seconds=0.012, promised=2.5, promised_ms=11.0):
    return Step([7] * tokens, EMPTY_DRAFT, [], seconds, 0.0, [], None, promised, promised_ms)


def test_the_sums_and_what_follows_from_them(tmp_path):
    records = TrackRecords(Store(tmp_path), KEY)
    records.add("auto", step(), plain_ms=10.0)
    records.add("auto", step(tokens=1, seconds=0.010, promised=1.0, promised_ms=10.0), plain_ms=10.0)
    record = records.all()["auto"]
    assert record == TrackRecord(4, pytest.approx(22.0), 40.0, 3.5, 21.0)
    assert record.speedup == pytest.approx(40 / 22)
    assert record.promised_speedup == pytest.approx(3.5 / 21 * 10)


def test_what_was_saved_is_added_to(tmp_path):
    for expected in (3, 6, 9):
        records = TrackRecords(Store(tmp_path), KEY)
        records.add("auto", step(), plain_ms=10.0)
        assert records.all()["auto"].tokens == expected
        records.save()
        assert records.all()["auto"].tokens == expected  # not twice
        records.save()
    assert TrackRecords(Store(tmp_path), "other").all() == {}


def test_two_processes_lose_nothing(tmp_path):
    one, other = TrackRecords(Store(tmp_path), KEY), TrackRecords(Store(tmp_path), KEY)
    one.add("auto", step(), 10.0)
    other.add("auto", step(), 10.0)
    one.save()
    other.save()
    assert TrackRecords(Store(tmp_path), KEY).all()["auto"].tokens == 6


def test_nothing_is_written_without_steps(tmp_path):
    TrackRecords(Store(tmp_path), KEY).save()
    assert list(tmp_path.rglob("*.json")) == []
    records = TrackRecords(Store(None), KEY)
    records.add("auto", step(), 10.0)
    records.save()


def test_the_past_fades():
    long = TrackRecord(MOST_TOKENS, 100.0, 200.0, 1.0, 1.0)
    total = long + TrackRecord(2, 2.0, 2.0, 1.0, 1.0)
    assert total.tokens == MOST_TOKENS / 2 + 1
    assert total.speedup == pytest.approx(202 / 102)


def test_the_shortest_records_go(tmp_path):
    records = TrackRecords(Store(tmp_path), KEY)
    for number in range(MOST_DRAFTERS + 5):
        records.add(f"model {number}", step(tokens=number + 1), 10.0)
    records.save()
    kept = TrackRecords(Store(tmp_path), KEY).all()
    assert len(kept) == MOST_DRAFTERS and "model 4" not in kept and "model 5" in kept


@pytest.mark.parametrize(
    "damage",
    [
        {"drafters": {"auto": {"tokens": 1}}},
        {"drafters": {"auto": asdict(TrackRecord(-1, 1, 1, 1, 1))}},
        {"drafters": {"auto": asdict(TrackRecord(1, float("nan"), 1, 1, 1))}},
        {"drafters": ["auto"]},
        {},
    ],
)
def test_a_damaged_entry_is_set_aside(tmp_path, damage):
    told = []
    store = Store(tmp_path, told.append)
    store.save_json("record", KEY, damage)
    records = TrackRecords(store, KEY)
    assert records.all() == {} and "damaged" in told[0]
    records.add("auto", step(), 10.0)
    records.save()
    assert TrackRecords(store, KEY).all()["auto"].tokens == 3


def test_a_session_keeps_the_time_that_really_passed(tmp_path):
    """On a simulated clock: the sums are the clock's, and the speedup is the ratio to plain decoding."""
    clock, store = SimulatedClock(), Store(tmp_path)
    script = [5 + i % 23 for i in range(200)]
    model = ScriptedModel(script=script, peak=0.97, step_costs=STEPS, clock=clock)
    learned = Learned(store, model_key="model", cost_key=KEY)
    settings = Asked(Path("scripted.gguf"))
    with Session(model, settings, learned, name="scripted", clock=clock) as session:
        generation = session.generate(script[:8], SamplingSettings(temperature=0.0), n_predict=400)
        steps = [chunk.step for chunk in generation if chunk.step]
        record = learned.records.all()["auto"]
    tokens = sum(len(each.tokens) for each in steps)
    ms = sum(STEPS[min(n for n in STEPS if n > len(each.draft))] for each in steps)
    assert record.tokens == tokens
    assert record.ms == pytest.approx(ms)
    assert record.plain_ms == pytest.approx(STEPS[1] * tokens, rel=0.01)
    assert record.speedup == pytest.approx(STEPS[1] * tokens / ms, rel=0.01)
    assert record.speedup > 2  # it recites, and wide steps are cheap
    assert record.promised_speedup == pytest.approx(record.speedup, rel=0.25)
    kept = json.loads(next(tmp_path.glob("record/*.json")).read_text())
    assert kept["drafters"]["auto"]["tokens"] == record.tokens
