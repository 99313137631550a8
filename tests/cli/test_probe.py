"""`specx probe`: tables, JSON and pictures of what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from specx.backends.llama.devices import Device, Transfer
from specx.backends.machine.machine import CPU, Conditions, Memory
from specx.engine.report import machine as probe_module
from specx.engine.report import staircase as staircase_probe
from specx.engine.report.machine import MachineProbe, Measured, ModelProbe
from specx.engine.report.roofline import Bound, Roofline
from specx.engine.report.staircase import StaircaseProbe
from specx.engine.setup.choice import Choice
from specx.engine.setup.kernel_times import KernelTimes
from specx.engine.setup.threads import ThreadTimes

DOC = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
STOCK = {1: 10.0, 2: 16.0, 8: 40.0}
ATTENTION = {1: 8.0, 2: 12.0, 8: 20.0}
SPECX = {1: 5.0, 2: 6.0, 8: 8.0}


@pytest.fixture
def found(monkeypatch):
    asked = []

    def measured(settings, depths, *, loading, progress, notice):
        loading(1.0)
        progress(0.5)
        asked.append((settings, depths))
        steps = {
            name: {depth: {n: ms + depth / 1000 for n, ms in by.items()} for depth in depths}
            for name, by in (("stock", STOCK), ("attention", ATTENTION), ("specx", SPECX))
        }
        comparison = KernelTimes(steps, disturbed=True)
        threads = Choice(2, "as asked")
        bounds = {depth: {n: Bound(2.5, 1.25 * n) for n in STOCK} for depth in depths}
        roofline = Roofline(products=200_000_000, instructions="avx2", peak=320e9, bounds=bounds)
        return StaircaseProbe(
            comparison,
            weight_bytes=100_000_000,
            bandwidth=40e9,
            threads=threads,
            auto="stock",
            roofline=roofline,
        )

    monkeypatch.setattr(staircase_probe, "probe_staircases", measured)
    return asked


def test_the_table_has_times_ratios_and_bandwidth(specx, found):
    outcome = specx("probe", "--staircase", specx.model, "--depth", "0", "-t", "2")
    assert outcome.code == 0, outcome.err
    [(settings, depths)] = found
    assert depths == [0] and settings.threads == 2
    lines = outcome.out.splitlines()
    assert lines[1].split() == [
        "tokens",
        "stock",
        "attention",
        "specx",
        "reading",
        "computing",
        "bound",
    ]
    assert lines[2].split()[-3:] == ["2.5", "1.2", "4.00x"]
    assert lines[4].split() == [
        "8",
        "40.0",
        "(4.00)",
        "20.0",
        "(2.50)",
        "8.0",
        "(1.60)",
        "2.5",
        "10.0",
        "4.00x",
    ]
    assert max(map(len, lines[:5])) <= 80
    assert any("specx" in line and "20.0 GB/s" in line and "50%" in line for line in lines)
    assert lines[-6:-4] == ["threads: 2, as asked", "memory: 40.0 GB/s"]
    assert "320 billion operations/s with avx2; a token takes 0.40 billion" in lines[-4]
    assert lines[-2] == "bound: how many times as long stock takes"
    assert lines[-1] == "--kernels auto takes stock"


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
    assert record["depths"][1]["bounds"]["8"] == {"reading_ms": 2.5, "computing_ms": 10.0, "ms": 10.0}
    assert record["depths"][1]["times_the_bound"]["specx"] == {"1": 2.4, "2": 2.8, "8": 0.9}
    assert (record["instructions"], record["integer_operations_per_s"]) == ("avx2", 320_000_000_000)
    assert (record["kernels"], record["specx_kernels"], record["disturbed"]) == ("stock", "specx", True)
    assert found[0][1] == [256, 1000]


def test_the_default_depth_is_256(specx, found):
    assert specx("probe", "--staircase", specx.model, "--json").code == 0
    assert found[0][1] == [256]


def test_a_picture_tells_whose_kernels_they_are(specx, found, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    path = tmp_path / "steps.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        done = specx("probe", "--staircase", specx.model, "--plot", str(path))
    assert done.code == 0 and f"drawn into {path}" in done.err
    text = path.read_text()
    assert "llama.cpp's kernels" in text and "specx's kernels" in text and "stock" not in text


@pytest.mark.parametrize("name", ["steps.png", "steps.svg"])
def test_a_picture_is_drawn(specx, found, tmp_path, name):
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    done = specx("probe", "--staircase", specx.model, "--plot", str(path))
    assert done.code == 0 and f"drawn into {path}" in done.err
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--depth", "0"), "--depth is about staircases"),
        (("--plot", "steps.png"), "--plot is about staircases"),
        (("--staircase", "--plot", "steps.txt"), "give --plot a name in .png, .svg, .pdf"),
        (("--staircase", "--depth", "-1"), "depth"),
        (("--staircase", "--refresh"), "--staircase measures anew each time"),
        (("--staircase", "--kernels", "fast"), "--kernels is 'fast'"),
    ],
)
def test_wrong_usage(specx, found, arguments, said):
    outcome = specx("probe", specx.model, *arguments)
    assert outcome.code == 2 and said in outcome.err
    assert not found


def test_a_folder_that_is_missing(specx, found):
    outcome = specx("probe", specx.model, "--staircase", "--plot", "no/such/folder/steps.png")
    assert outcome.code == 1 and "there is no folder" in outcome.err
    assert not found


def test_without_matplotlib_a_picture_is_refused_before_anything_is_measured(specx, found, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcome = specx("probe", "--staircase", specx.model, "--plot", "steps.png")
    assert outcome.code == 2 and "pip install 'matplotlib>=" in outcome.err


GPU = Device("GPU0", "Made Up 9", "GPU", 3 << 30, 4 << 30, unified=False)
FULL = Device("GPU1", "Made Up 9", "GPU", 0, 4 << 30, unified=False)
HOST = Device("CPU", "Made Up CPU", "CPU", None, None, unified=True)
TIMES = ThreadTimes({n: {1: 8.0 * n, 2: 4.0 * n} for n in (1, 8, 32)}, depth=256)


def machine_of(cpu, memory=Memory(), conditions=Conditions(), own="avx2"):  # noqa: B008 -- they are frozen
    transfers = {"GPU0": Transfer(12e9), "GPU1": Transfer(None, "it has no 64 MiB of memory free")}
    measured = Measured({1: 11e9, 2: 21.5e9}, transfers, "2026-01-02T03:04:05+00:00")
    reason = None if own else "they were not built on this machine"
    devices = (HOST, GPU, FULL)
    return MachineProbe("0123", cpu, memory, conditions, ("AVX", "FMA"), own, reason, devices, measured, True)


KNOWN = machine_of(
    CPU("Made Up CPU", tuple(range(8)), (0, 1, 2, 5), tuple((i,) for i in range(8)), (4, 5, 6, 7), 3.5),
    Memory(16 << 30, 5 << 30, 8 << 30, 3 << 30, 2 << 30, 1 << 30),
    Conditions("battery", ("powersave",), 71.4, (0.5, 0.25, 0.125)),
)
UNKNOWN = machine_of(CPU(None, (0, 1), (0, 1)), own=None)


@pytest.fixture
def machine(monkeypatch):
    """What `probe_machine` finds, and what it and `probe_model` were asked."""
    asked = []

    def probe_machine(*, store, refresh, progress, notice, rpc):
        asked.append((None, store, refresh))
        progress(0.5)
        return probe_machine.found

    def probe_model(settings, *, refresh, loading, progress, notice):
        asked.append((settings, settings.store, refresh))
        loading(1.0)
        progress(0.5)
        return ModelProbe(str(settings.model), TIMES, from_store=not refresh)

    probe_machine.found = KNOWN
    monkeypatch.setattr(probe_module, "probe_machine", probe_machine)
    monkeypatch.setattr(probe_module, "probe_model", probe_model)
    probe_machine.asked = asked
    return probe_machine


def test_the_machine_is_shown(specx, machine):
    outcome = specx("probe")
    assert outcome.code == 0 and outcome.err == ""
    assert machine.asked == [(None, True, False)]
    said = dict(line.split("  ", 1) for line in outcome.out.splitlines() if "  " in line)
    said = {name.strip(): text.strip() for name, text in said.items()}
    assert said["cores"] == "8 physical, 8 logical"
    assert "performance: 0-3, efficiency: 4-7" in said.values()
    assert said["this process may use"] == "0-2,5, control groups: 3.5 CPUs' worth of time"
    assert said["that makes"].startswith("4 threads on 4 cores; 3 threads as long as nothing was measured")
    assert said["memory"] == "16.0 GiB, 5.0 GiB available"
    assert said["limits allow"] == "8.0 GiB, 3.0 GiB in use"
    assert said["reading memory"].startswith(
        "11.0 GB/s with 1 thread, 21.5 GB/s with 2 threads, measured 2026-01"
    )
    assert (said["power"], said["hottest zone"]) == ("battery", "71 °C")
    assert said["load"] == "0.50 0.25 0.12"
    gpus = [line for line in outcome.out.splitlines() if line.startswith("GPU")]
    assert "3.0 GiB" in gpus[0] and "12.0 GB/s" in gpus[0]
    assert "it has no 64 MiB of memory free" in gpus[1]


def test_what_cannot_be_read_is_said(specx, machine):
    machine.found = UNKNOWN
    out = specx("probe").out
    unreadable = [line.split("  ")[0] for line in out.splitlines() if "not readable here" in line]
    for name in ("processor", "cores", "memory", "swap", "power", "clock governor", "hottest zone", "load"):
        assert name in unreadable
    assert "not used: they were not built on this machine" in out


def test_a_model_is_measured_as_well(specx, machine):
    outcome = specx("probe", specx.model, "-t", "3", "--refresh", "--no-cache")
    assert outcome.code == 0 and "-t and -tb do not count" in outcome.err
    assert [rest for _, *rest in machine.asked] == [[False, True], [False, True]]
    lines = outcome.out.splitlines()
    assert lines[-3].split() == ["1", "8.00", "64.00", "256.00"]
    assert lines[-2].split() == ["2", "4.00", "32.00", "128.00"]
    assert lines[-1].startswith(
        "one token takes 4.00 ms, 250.0 tokens/s, with 2 threads; drafts and prompts use 2"
    )


@pytest.mark.parametrize("found", [KNOWN, UNKNOWN], ids=["known", "unknown"])
def test_json_holds_everything(specx, machine, found):
    machine.found = found
    alone = json.loads(specx("probe", "--json").out)
    assert alone == {**json.loads(json.dumps(found.to_json())), "model": None}
    with_model = json.loads(specx("probe", specx.model, "--json").out)
    assert {**with_model, "model": None} == alone
    assert with_model["model"]["path"] == specx.model and with_model["model"]["threads"] == 2
    assert with_model["model"]["from_store"] is True


def test_every_json_field_is_documented(specx, machine):
    quoted = set(re.findall(r"`([^`]+)`", DOC.read_text(encoding="utf-8")))

    def names(value):
        if isinstance(value, list):
            return set().union(*map(names, value))
        if not isinstance(value, dict):
            return set()
        return {name for name in value if not name.isdecimal()}.union(*map(names, value.values()))

    record = json.loads(specx("probe", specx.model, "--json").out)
    assert names(record) - quoted == set()
