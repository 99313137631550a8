"""Whole processes on a simulated clock: what a draft model costs them, and what it brings."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def economics():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("simulated_processes")


@pytest.fixture(scope="module")
def short(economics):
    return economics.Simulation("short", processes=16, first=8)


@pytest.mark.parametrize("name", ["none", "usual", "slow to load", "dear", "poor"])
def test_processes_that_write_a_short_answer_do_not_pay_for_what_they_cannot_use(economics, short, name):
    disk = economics.DISKS[name]
    found = short.run(disk)
    assert max(found.of_free, found.ratio) <= economics.ALLOWED
    # Loading takes 300 ms and more, an answer 380: at first no more is lost than free drafts may, and a look.
    assert found.first_loss_ms <= 3.5 * economics.STEP_MS[1] + (disk.look_ms if disk else 0.0)


def test_a_model_that_pays_within_a_short_answer_is_loaded(economics, short):
    found = short.run(economics.DISKS["quick to load"])
    assert found.ratio < 0.85 and found.gain_kept > 0.9


def test_long_answers_keep_what_loading_at_once_brings(economics):
    found = economics.Simulation("long", processes=10, first=6).run(economics.DISKS["usual"])
    assert found.ratio < 0.7 and found.gain_kept >= 0.95


def test_where_most_answers_are_short_and_some_long_neither_kind_loses(economics):
    simulation = economics.Simulation("bimodal", processes=24, first=10)
    found = simulation.run(economics.DISKS["usual"])
    assert found.of_free <= economics.ALLOWED
    # The long ones have it loaded, once they are known as such: no process pays for nothing.
    assert found.loss_ms <= 3.5 * economics.STEP_MS[1] and found.gain_kept >= 0.95


@pytest.mark.parametrize("length", [5, 20, 40, 60, 80, 120, 160])
def test_an_unknown_length_costs_no_more_than_the_price(economics, tmp_path, length):
    # One of these ends when the model has just been loaded: the first process of all.
    disk = economics.DISKS["usual"]
    auto = economics.Machine(tmp_path / "auto", disk).process(length, 3)
    plain = economics.Machine(tmp_path / "none", None, "none").process(length, 3)
    allowance = 3.5 * economics.STEP_MS[1]  # what free drafts may lose
    assert (auto - plain) * 1e3 <= disk.open_ms + disk.look_ms + allowance
