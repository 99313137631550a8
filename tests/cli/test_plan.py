"""`specx plan` as a person meets it; what it says is tested with the engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from specx.backends.llama.devices import Device
from specx.backends.llama.memory import MemoryNeed
from specx.backends.settings import Load
from specx.engine.report import plan as plan_report
from specx.engine.report.advice import Advice
from specx.engine.report.plan import DraftOption, PlanReport
from specx.engine.settings import Asked
from specx.engine.setup.choice import Choice, Setup
from specx.engine.setup.devices import DeviceCost
from specx.engine.setup.finder import Unfit
from specx.engine.setup.layers import Layers
from specx.engine.setup.placement import DraftKind, place

GIB = 1 << 30
CPU = Device("CPU", "a CPU", "CPU", 8 * GIB, 16 * GIB, unified=True)
GPU = Device("GPU0", "a GPU", "GPU", 2 * GIB, 4 * GIB, unified=False)
NEED = MemoryNeed(4096, 3 * GIB, GIB, GIB // 4, 0, 0, 0, GIB // 8, 0)
STEPS = {1: 20.0, 2: 21.0, 4: 23.0, 8: 26.0}


def setup(**changes):
    """What was decided for a model whose header does not matter."""
    fields = {
        "asked": Asked(Path("model.gguf")),
        "info": SimpleNamespace(name="A model"),
        "load": Load(Path("model.gguf"), 2, 2, n_gpu_layers=0),
        "context": Choice(4096, "the default"),
        "texts": Choice(1, "the default"),
        "threads": Choice(2, "one for each usable core"),
        "threads_batch": Choice(2, "as asked"),
        "kernels": Choice("specx", "as measured"),
        "placement": Choice("all on CPU", "there is no GPU"),
        "flash_attn": Choice("on", "the default"),
        "cache_type_k": Choice("f16", "the default"),
        "cache_type_v": Choice("q8_0", "as asked"),
        "drafter": Choice("auto", "the default"),
        "draft_model": Choice(None, "nothing asks one"),
        "draft": None,
        "need": NEED,
        "changes": (),
    }
    return Setup(**{**fields, **changes})


def report(**changes):
    fields = {
        "setup": setup(),
        "available": 6 * GIB,
        "devices": (CPU,),
        "placed": None,
        "steps": STEPS,
        "options": (
            DraftOption("small", 2.5, "70% right, assumed", path=Path("small.gguf")),
            DraftOption("free drafts", 1.9, "promised over 3000 tokens", 1.71, 3000),
            DraftOption("none", 1.0, "plain decoding"),
        ),
        "unfit": (),
        "advice": (Advice("another draft model would give 3.0x", 1.2, "specx pull a/b"),),
    }
    return PlanReport(**{**fields, **changes})


@pytest.fixture
def planned(monkeypatch):
    """Lets `specx plan` find a report; returns the calls."""
    calls = []

    def arrange(found):
        def make_plan(settings, **options):
            calls.append((settings, options))
            return found

        monkeypatch.setattr(plan_report, "make_plan", make_plan)
        return calls

    return arrange


def test_the_tables(specx, planned):
    planned(report())
    outcome = specx("plan", specx.model)
    assert outcome.code == 0
    for text in (
        "4.4 GiB of 6.0 GiB available: it fits",
        "weights 3.0 GiB, cache 1.0 GiB, computing 256 MiB, the rest 128 MiB",
        "placement      all on CPU, there is no GPU",
        "threads        2, one for each usable core",
        "kernels        specx, as measured",
        "cache type v   q8_0, as asked",
        "draft model    none, nothing asks one",
        "small        2.50x",
        "1.71x over 3,000 tokens",
        "small: 2.50x plain decoding, about 125 tokens/s in a short context (plain: 50)",
        "what would help most: another draft model would give 3.0x (1.2x of now): specx pull a/b",
    ):
        assert text in outcome.out


@pytest.mark.parametrize(
    ("available", "fits"), [(NEED.working / 0.94, "it fits"), (NEED.working / 0.96, "it may not fit")]
)
def test_it_fits_if_nothing_is_told_of_memory(specx, planned, available, fits):
    planned(report(available=int(available)))
    assert f"available: {fits}\n" in re.sub(" +\n", "\n", specx("plan", specx.model).out)


def test_placements_with_reasons(specx, planned):
    layers = Layers((GIB // 4,) * 12, (GIB // 4,) * 12, (0,) * 12)
    costs = [
        DeviceCost("CPU", 8 * GIB, {1: 60.0, 4: 80.0}, 3 * GIB),
        DeviceCost("GPU0", 2 * GIB, {1: 6.0, 4: 7.0}, 3 * GIB),
    ]
    planned(report(devices=(CPU, GPU), placed=place(layers, [DraftKind("free drafts", 0.7)], costs)))
    outcome = specx("plan", specx.model)
    assert "4 of 12 layers on CPU, 8 of 12 layers on GPU0" in outcome.out
    assert "does not fit by 1.0 GiB" in outcome.out and "best" in outcome.out
    assert "0.39x" in outcome.out


def test_nothing_is_best_where_nothing_could_be_predicted(specx, planned):
    plain, free = DraftOption("none", 1.0, "plain decoding"), DraftOption("free drafts", None, "busy")
    planned(report(options=(plain, free)))
    said = specx("plan", specx.model).out
    assert "is best" not in said and "not known, as the machine was busy (plain decoding: about 50" in said
    for options in ((plain,), (plain, DraftOption("free drafts", 0.9, "assumed"))):
        planned(report(options=options))
        assert "plain decoding is best, about 50 tokens/s" in specx("plan", specx.model).out


def test_nothing_measured(specx, planned):
    calls = planned(
        report(steps={}, setup=setup(kernels=Choice(None, "compared when it is loaded")), advice=())
    )
    outcome = specx("plan", specx.model, "--no-measure")
    assert outcome.code == 0 and "nothing was measured yet" in outcome.out
    assert "none, compared when it is loaded" in outcome.out
    assert calls[0][1]["measure"] is False


def test_json_holds_everything(specx, planned):
    planned(report())
    outcome = specx("plan", specx.model, "--json")
    found = json.loads(outcome.out)
    assert found["staircase"] == {"1": 20.0, "2": 21.0, "4": 23.0, "8": 26.0}
    assert [option["name"] for option in found["drafters"]] == ["small", "free drafts", "none"]
    assert found["drafters"][1]["measured"] == 1.71 and found["drafters"][0]["path"] == "small.gguf"
    assert found["memory"]["working"] == NEED.working and found["memory"]["available"] == 6 * GIB
    assert found["advice"][0]["command"] == "specx pull a/b"
    assert found["setup"]["threads"] == {"value": 2, "why": "one for each usable core"}
    assert found["setup"]["draft_model"]["value"] is None and found["setup"]["changes"] == []


def test_options_reach_the_plan(specx, planned):
    calls = planned(report())
    assert specx("plan", specx.model, "-c", "8192", "-ctk", "q8_0", "--refresh").code == 0
    settings, options = calls[0]
    assert (settings.n_ctx, settings.type_k, settings.n_gpu_layers) == (8192, "q8_0", None)
    assert options["refresh"] is True and options["measure"] is True


def test_contradictions(specx):
    outcome = specx("plan", specx.model, "--refresh", "--no-measure")
    assert outcome.code == 2 and "contradict" in outcome.err


def test_a_file_that_is_no_model(specx):
    outcome = specx("plan", specx.model)
    assert outcome.code == 1 and outcome.err.startswith("error: ") and outcome.out == ""


def test_models_that_cannot_draft_are_named(specx, planned):
    unfit = tuple(Unfit(Path(f"{i}.gguf"), f"model {i}", "it is too large") for i in range(6))
    planned(report(unfit=unfit))
    outcome = specx("plan", specx.model)
    assert "model 0 cannot draft: it is too large\n" in outcome.out and "model 4" not in outcome.out
    assert "nor can 2 more models" in outcome.out
    planned(report(unfit=unfit[:1]))
    assert "nor can" not in specx("plan", specx.model).out


def test_of_many_draft_models_the_best_are_shown(specx, planned):
    models = [DraftOption(f"model {i}", 3 - i / 10, "alone", path=Path(f"{i}.gguf")) for i in range(12)]
    planned(report(options=(*models, DraftOption("none", 1.0, "plain decoding"))))
    outcome = specx("plan", specx.model)
    assert "model 7" in outcome.out and "model 8" not in outcome.out and "none  " in outcome.out
    assert "and 4 more draft models, which promise less" in outcome.out
    assert len(json.loads(specx("plan", specx.model, "--json").out)["drafters"]) == 13
