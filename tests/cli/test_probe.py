"""`specx probe --staircase`: tables, JSON and pictures of what was measured."""

from __future__ import annotations

import json

import pytest

from specx.engine import probe as probe_module
from specx.engine.kernel_choice import Comparison
from specx.engine.probe import StaircaseProbe

STOCK = {1: 10.0, 2: 16.0, 8: 40.0}
ATTENTION = {1: 8.0, 2: 12.0, 8: 20.0}
SPECX = {1: 5.0, 2: 6.0, 8: 8.0}


@pytest.fixture
def found(monkeypatch):
    asked = []

    def measured(settings, depths, *, progress, notice):
        asked.append((settings, depths))
        steps = {
            name: {depth: {n: ms + depth / 1000 for n, ms in by.items()} for depth in depths}
            for name, by in (("stock", STOCK), ("attention", ATTENTION), ("specx", SPECX))
        }
        return StaircaseProbe(Comparison(steps), weight_bytes=100_000_000, bandwidth=40e9, threads=2)

    monkeypatch.setattr(probe_module, "probe_staircases", measured)
    return asked


def test_the_table_has_times_ratios_and_bandwidth(specx, found):
    outcome = specx("probe", "--staircase", specx.model, "--depth", "0", "-t", "2")
    assert outcome.code == 0, outcome.err
    [(settings, depths)] = found
    assert depths == [0] and settings.threads == 2
    lines = outcome.out.splitlines()
    assert lines[1].split() == ["tokens", "stock", "attention", "specx"]
    assert lines[4].split() == ["8", "40.0", "(4.00)", "20.0", "(2.50)", "8.0", "(1.60)"]
    assert any("specx" in line and "20.0 GB/s" in line and "50%" in line for line in lines)
    assert lines[-1] == "--kernels auto takes specx"


def test_json_holds_both_staircases_of_every_depth(specx, found):
    outcome = specx("probe", "--staircase", specx.model, "--depth", "256", "--depth", "1000", "--json")
    record = json.loads(outcome.out)
    assert record["depth"] == 256
    assert record["staircases"] == {
        "stock": {"1": 10.256, "2": 16.256, "8": 40.256},
        "specx": {"1": 5.256, "2": 6.256, "8": 8.256},
    }
    assert [entry["depth"] for entry in record["depths"]] == [256, 1000]
    assert record["depths"][1]["by_kernels"]["attention"]["8"] == 21.0
    assert record["kernels"] == record["specx_kernels"] == "specx"
    assert found[0][1] == [256, 1000]


def test_the_default_depth_is_256(specx, found):
    assert specx("probe", "--staircase", specx.model, "--json").code == 0
    assert found[0][1] == [256]


@pytest.mark.parametrize("name", ["steps.png", "steps.svg"])
def test_a_picture_is_drawn(specx, found, tmp_path, name):
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    assert specx("probe", "--staircase", specx.model, "--plot", str(path)).code == 0
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to probe"),
        (("--staircase", "--plot", "steps.txt"), "neither a PNG nor an SVG"),
        (("--staircase", "--plot", "no/such/folder/steps.png"), "no folder"),
        (("--staircase", "--depth", "-1"), "depth"),
        (("--staircase", "--kernels", "fast"), "--kernels is 'fast'"),
    ],
)
def test_wrong_usage(specx, found, arguments, said):
    outcome = specx("probe", specx.model, *arguments)
    assert outcome.code == 2 and said in outcome.err
    assert not found


def test_without_matplotlib_a_picture_is_refused_before_anything_is_measured(specx, found, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcome = specx("probe", "--staircase", specx.model, "--plot", "steps.png")
    assert outcome.code == 2 and "specx[plot]" in outcome.err
