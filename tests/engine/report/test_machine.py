"""Measuring the machine and a model, and keeping it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from specx.backends.llama.devices import Device, Transfer
from specx.backends.machine.machine import CPU, Memory, this_cpu
from specx.backends.store import Store, cache_dir
from specx.engine.cost.timing import unwatched
from specx.engine.report import machine as probe_module
from specx.engine.report.machine import Measured, measure_machine, probe_machine, probe_model
from specx.engine.session import Session
from specx.engine.settings import Asked

GPU = Device("GPU0", "Made Up", "GPU", 1 << 30, 1 << 31, unified=False)
HOST = Device("CPU", "Made Up", "CPU", None, None, unified=True)
MEASURED = Measured({1: 10e9, 2: 20e9}, {"GPU0": Transfer(5e9)}, "2026-01-01T00:00:00+00:00")


def cpu(count):
    return CPU("x", tuple(range(count)), tuple(range(count)))


def measure(count, *, available=64 << 30, devices=(HOST,), rate=lambda threads: 1e9 * threads, seconds=0.1):
    asked, now, fractions = [], [0.0], []

    def read(nbytes, threads, repeats):
        asked.append((nbytes, threads))
        now[0] += seconds
        return rate(threads)

    found = measure_machine(
        cpu(count),
        Memory(64 << 30, available),
        devices,
        progress=fractions.append,
        read=read,
        copy=lambda name: Transfer(3e9),
        clock=lambda: now[0],
        watch=unwatched,
    )
    assert fractions == sorted(fractions) and fractions[-1] <= 1
    return found, asked


@pytest.mark.parametrize(
    ("count", "threads"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])]
)
def test_memory_is_read_by_1_to_all_threads(count, threads):
    found, asked = measure(count)
    assert found.bandwidth == {n: 1e9 * n for n in threads}
    assert {nbytes for nbytes, _ in asked} == {1 << 30}
    assert not found.disturbed and found.transfers == {}


def test_little_memory_is_left_alone():
    _, asked = measure(2, available=800 << 20)
    assert {nbytes for nbytes, _ in asked} == {100 << 20}
    _, asked = measure(2, available=0)
    assert {nbytes for nbytes, _ in asked} == {1 << 20}


def test_a_slow_machine_is_given_up_on_and_the_widest_comes_first():
    found, asked = measure(64, seconds=7.0)
    assert list(found.bandwidth) == [32, 64]
    assert len(asked) == 2


def test_the_best_of_two_visits_counts_and_disagreement_is_noticed():
    rates = iter((2e9, 1e9, 1.2e9, 1.9e9))
    found, _ = measure(2, rate=lambda _threads: next(rates))
    assert found.bandwidth == {1: 1.2e9, 2: 2e9} and not found.disturbed
    rates = iter((2e9, 1e9, 3e9, 9e9))
    found, _ = measure(2, rate=lambda _threads: next(rates))
    assert found.disturbed


def test_steady_work_beside_it_is_noticed():
    found = measure_machine(
        cpu(2),
        Memory(1 << 30, 1 << 30),
        (HOST,),
        progress=lambda _f: None,
        read=lambda _bytes, threads, _repeats: 1e9 * threads,
        watch=lambda: lambda: True,
    )
    assert found.disturbed


def test_gpus_are_copied_to():
    found, _ = measure(1, devices=(HOST, GPU, replace(GPU, name="GPU1", type="iGPU")))
    assert found.transfers == {"GPU0": Transfer(3e9), "GPU1": Transfer(3e9)}


def test_what_was_measured_survives_json():
    found = replace(MEASURED, transfers={"a": Transfer(5e9), "b": Transfer(None, "no memory")})
    assert Measured.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    "change",
    [
        {"bandwidth": {}},
        {"bandwidth": {"0": 1.0}},
        {"bandwidth": {"1": -1.0}},
        {"bandwidth": {"1": float("nan")}},
        {"bandwidth": [1]},
        {"when": "yesterday"},
        {"when": 7},
        {"transfers": {"a": {}}},
        {"transfers": {"a": {"bytes_per_s": None, "skipped": ""}}},
        {"transfers": {"a": {"bytes_per_s": "fast", "skipped": ""}}},
        {"transfers": None},
    ],
)
def test_foreign_values_are_refused(change):
    with pytest.raises((ValueError, TypeError, AttributeError, KeyError)):
        Measured.from_json({**MEASURED.to_json(), **change})
    with pytest.raises(KeyError):
        Measured.from_json({})


@pytest.fixture
def quiet(monkeypatch):
    """Measurements of the machine are counted instead of made."""
    made = []

    def measured(*_facts, **_options):
        made.append(1)
        return MEASURED

    monkeypatch.setattr(probe_module, "measure_machine", measured)
    return made


def probe(notices=None, **options):
    return probe_machine(progress=lambda _f: None, notice=(notices or []).append, **options)


def test_the_machine_is_measured_once(quiet):
    first, again = probe(), probe()
    assert (first.from_store, again.from_store, len(quiet)) == (False, True, 1)
    assert again.measured == MEASURED
    assert probe(refresh=True).from_store is False
    assert probe(store=False).from_store is False and len(quiet) == 3
    record = first.to_json()
    assert json.loads(json.dumps(record)) == record
    assert record["devices"][0]["transfer_skipped"]
    assert record["bandwidth_bytes_per_s"] == {"1": 10_000_000_000, "2": 20_000_000_000}
    assert bool(record["own_kernels"]) != bool(record["own_kernels_reason"])


def test_a_changed_machine_is_measured_anew(quiet, monkeypatch):
    probe()
    monkeypatch.setattr(probe_module, "machine_fingerprint", lambda: "another")
    assert not probe().from_store
    monkeypatch.setattr(probe_module, "list_devices", lambda: [HOST, GPU])
    found = probe()
    assert not found.from_store
    assert found.to_json()["devices"][1]["transfer_bytes_per_s"] == 5_000_000_000


@pytest.mark.parametrize("data", [b"", b"{", b'{"version": 1}', b'{"version": 1, "bandwidth": {"1": "x"}}'])
def test_a_damaged_entry_is_set_aside_and_measured_anew(quiet, data):
    probe()
    (path,) = (cache_dir() / "machine").iterdir()
    path.write_bytes(data)
    notices = []
    store_notices = probe_machine(progress=lambda _f: None, notice=notices.append)
    assert not store_notices.from_store and len(notices) == 1 and "set aside" in notices[0]
    assert probe().from_store


def test_what_was_measured_beside_other_work_is_shown_but_not_kept(quiet, monkeypatch):
    beside = replace(MEASURED, disturbed=True)
    monkeypatch.setattr(probe_module, "measure_machine", lambda *_facts, **_options: beside)
    notices = []
    found = probe_machine(progress=lambda _f: None, notice=notices.append)
    assert found.measured.bandwidth == MEASURED.bandwidth and found.to_json()["disturbed"]
    assert len(notices) == 1 and "not kept" in notices[0]
    assert not probe().from_store  # it is measured again


def test_a_cache_that_cannot_be_written_is_no_harm(quiet, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("SPECX_CACHE", str(tmp_path / "file" / "below"))
    notices = []
    found = probe_machine(progress=lambda _f: None, notice=notices.append)
    assert found.measured == MEASURED and len(notices) == 1
    assert (tmp_path / "file").read_text() == "mine"


PROBE = "from specx.cli.app import run; import sys; sys.exit(run(['probe', '--json', '--refresh']))"


def test_two_processes_at_once(tmp_path):
    environment = {**os.environ, "SPECX_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-P", "-c", PROBE]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    records = [json.loads(out) for out, _ in said]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]
    assert all(rate > 0 for record in records for rate in record["bandwidth_bytes_per_s"].values())
    assert not [entry for entry in Store(tmp_path / "cache").entries() if entry.damaged]


def test_a_model_is_measured_once_and_other_runs_use_it(smollm2, quiet, monkeypatch):
    settings = Asked(smollm2, kernels="stock", n_ctx=512)
    counts = sorted({1, this_cpu().default_threads})
    monkeypatch.setattr(probe_module, "candidates", lambda _cpu: counts)
    real = probe_module.measure_threads

    def measured(model, tried, **options):
        times = real(model, tried, budget_s=0.2, **options)
        return replace(times, disturbed=False)

    monkeypatch.setattr(probe_module, "measure_threads", measured)
    found = probe_model(settings, notice=lambda _text: None)
    assert set(found.times.steps[1]) <= set(counts) and found.times.ms_per_token > 0
    again = probe_model(settings, notice=lambda _text: None)
    assert again.from_store and again.times == found.times and not found.from_store
    assert json.loads(json.dumps(again.to_json()))["threads"] == found.times.decode

    (path,) = (cache_dir() / "threads").iterdir()
    steps = {"1": {"1": 1.0, "2": 2.0}, "8": {"1": 2.0, "2": 1.0}, "32": {"1": 2.0, "2": 1.0}}
    path.write_text(json.dumps({"version": 1, "depth": 0, "threads": 1, "threads_batch": 2, "steps": steps}))
    with Session.open(settings) as session:
        assert (session.model.n_threads, session.model.n_threads_batch) == (1, 2)
    with Session.open(replace(settings, threads=3)) as session:
        assert session.model.n_threads == session.model.n_threads_batch == 3
