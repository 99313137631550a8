"""`specx plan`: what it predicts comes true, and what it advises follows from the objective."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from specx.backends.base import Want
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.engine.cost.staircase import Staircase
from specx.engine.cost.timing import unwatched
from specx.engine.drafting import DraftModels
from specx.engine.learned.knowledge import Learned
from specx.engine.learned.records import TrackRecord
from specx.engine.report import plan as plan_report
from specx.engine.report.advice import FAMILIES, draft_advice, kernels_advice, sibling_of
from specx.engine.report.plan import DraftOption, draft_options, make_plan
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.setup import fit as fit_module
from specx.engine.setup.decide import decide
from specx.engine.setup.finder import Candidate, Forecast
from specx.engine.setup.fit import Room
from specx.engine.setup.here import Here

STEPS = {1: 20.0, 2: 21.0, 3: 22.0, 4: 23.0, 6: 24.5, 8: 26.0, 12: 29.0, 16: 32.0, 64: 80.0}
V = 64


def staircase_of(steps=STEPS, width=32):
    staircase = Staircase(width)
    staircase.load_json({"0": {str(n): ms for n, ms in steps.items() if n <= width}})
    return staircase


# --- predictions, and what then happens ---------------------------------------------------------------------


class OneModel:
    """A draft model that is a worse copy of the target, on the target's clock."""

    def __init__(self, clock, sharpness, token_ms):
        self.clock, self.sharpness, self.token_ms = clock, sharpness, token_ms
        self.candidate = Candidate(Path("draft.gguf"), "draft", "draft", V, 10, 10)

    def search(self):
        yield self.candidate

    def obstacle(self, _candidate):
        return None

    def load(self, _candidate):
        costs = {1: self.token_ms, 64: 2 * self.token_ms}
        return ScriptedModel(V, sharpness=self.sharpness, step_costs=costs, clock=self.clock)


def rate_of(sharpness, token_ms, n=800, **options):
    """Tokens per millisecond with a draft model, its acceptance, and the clock's own plain rate."""
    clock = SimulatedClock()
    source = OneModel(clock, sharpness, token_ms)
    learned = Learned(Store(None), model_key="model", cost_key="cost")

    def models(session):
        return DraftModels(
            source,
            learned,
            session.staircase,
            step_bytes=100,
            n_ctx=session.n_ctx,
            forced=source.candidate,
            clock=clock,
        )

    model = ScriptedModel(V, sharpness=3.0, step_costs=STEPS, clock=clock, **options)
    settings = Asked(Path("scripted.gguf"), drafter="model")
    session = Session(model, settings, learned, name="scripted", clock=clock, draft_models=models)
    session.staircase.watch = unwatched
    session.staircase.load_json({"0": {str(n): ms for n, ms in STEPS.items()}})
    sampling = SamplingSettings(seed=3, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    generation = session.generate([1, 2, 3], sampling, n_predict=n, ignore_eos=True)
    list(generation)
    timings = generation.result.timings
    acceptance = session.draft_models.model.calibration.acceptance
    record = learned.records.all()["model, model draft"]
    steps_ms = timings.predicted_ms - timings.overhead_ms  # without what was measured meanwhile
    return timings.predicted_n / steps_ms, acceptance, record


@pytest.mark.parametrize(
    ("sharpness", "token_ms"), [(2.6, 1.0), (2.6, 4.0), (2.0, 2.0), (1.5, 4.0), (1.0, 8.0)]
)
def test_a_predicted_rate_is_the_rate_that_follows(sharpness, token_ms):
    """From an acceptance and two costs to tokens per second, through the whole engine."""
    measured, acceptance, record = rate_of(sharpness, token_ms)
    candidate = Candidate(Path("draft.gguf"), "draft", "draft", V, 10, 10)
    predicted = Forecast.of(candidate, staircase_of(width=64).costs(0), acceptance, token_ms)
    assert measured == pytest.approx(predicted.rate, rel=0.2)
    assert record.speedup == pytest.approx(measured * STEPS[1], rel=0.1)
    assert record.promised_speedup == pytest.approx(record.speedup, rel=0.2)


def test_of_a_perfect_copy_more_is_predicted_than_comes():
    """A session never believes that nearly every token is right, so its drafts stay shorter."""
    measured, acceptance, record = rate_of(3.0, 1.0, max_leaves=1)  # what is second best never comes
    candidate = Candidate(Path("draft.gguf"), "draft", "draft", V, 10, 10)
    predicted = Forecast.of(candidate, staircase_of(width=64).costs(0), acceptance, 1.0)
    assert acceptance > 0.99
    assert 0.5 * predicted.rate < measured < predicted.rate
    assert record.promised_speedup == pytest.approx(record.speedup, rel=0.2)


# --- options ------------------------------------------------------------------------------------------------


def test_the_options_without_a_past():
    free, none = draft_options(staircase_of(), {})
    assert (none.name, none.value) == ("none", 1.0)
    n = np.arange(1, 33)
    best = (((1 - 0.7**n) / 0.3) / staircase_of().costs(0)[1:]).max() * STEPS[1]
    assert free.predicted == pytest.approx(best, rel=1e-3) and free.measured is None


def test_nothing_is_predicted_from_times_of_a_busy_machine():
    """One single token that was held up, and every draft would seem to pay."""
    clock, rng = SimulatedClock(), np.random.default_rng(0)

    class Busy(ScriptedModel):
        def forward(self, trees, want=Want.LOGITS):
            clock.sleep(10 ** (2 * rng.random()) / 1e3)
            return super().forward(trees, want)

    staircase = Staircase(32, watch=unwatched)  # the times themselves disagree
    staircase.measure_first(Busy(V, step_costs=STEPS, clock=clock).open(), clock=clock)
    assert staircase.disturbed
    record = TrackRecord(1000, 1000.0, 1500.0, 2000, 1000.0)
    options = draft_options(staircase, {"auto": record}, [DraftOption("small", 2.0, "assumed")])
    assert [(o.name, o.value) for o in options[:2]] == [("free drafts", 1.5), ("none", 1.0)]
    assert options[-1].predicted is None and "busy" in options[-1].basis


def test_where_drafts_cost_too_much_plain_decoding_comes_first():
    steep = {n: 20.0 * n for n in STEPS}
    assert draft_options(staircase_of(steep), {})[0].value == pytest.approx(1.0)


def test_what_was_measured_counts_once_it_rests_on_enough():
    brief = TrackRecord(100, 1000.0, 900.0, 150, 1000.0)
    long = TrackRecord(1000, 10_000.0, 9_000.0, 1500, 10_000.0)
    free = next(o for o in draft_options(staircase_of(), {"auto": brief}) if o.name == "free drafts")
    assert free.value == free.predicted == pytest.approx(brief.promised_speedup)
    free = next(o for o in draft_options(staircase_of(), {"auto": long}) if o.name == "free drafts")
    assert free.value == free.measured == pytest.approx(0.9)
    assert draft_options(staircase_of(), {"auto": long})[0].name == "none"


def test_a_draft_model_is_found_in_the_record_by_its_name():
    model = DraftOption("small", 2.0, "assumed")
    record = TrackRecord(1000, 1000.0, 3000.0, 2000, 1000.0)
    first, *_ = draft_options(staircase_of(), {"auto, model small": record}, [model])
    assert (first.name, first.value, first.tokens) == ("small", 3.0, 1000)
    assert draft_options(staircase_of(), {"auto, model other": record}, [model])[-1].name == "none"


# --- advice -------------------------------------------------------------------------------------------------


def header(architecture="llama", vocabulary=49_152, name="SmolLM2 1.7B", parameters=1.7e9):
    return SimpleNamespace(
        architecture=architecture,
        vocabulary_size=vocabulary,
        name=name,
        path=Path("m.gguf"),
        parameters=parameters,
    )


def test_siblings_are_named_only_where_they_are_certain():
    assert sibling_of(header()).name == "SmolLM2 135M"
    assert sibling_of(header(parameters=2e8)) is None  # hardly smaller
    assert sibling_of(header(vocabulary=49_000)) is None
    assert sibling_of(header(name="Mystery")) is None
    qwen = header("qwen2", 152_064, "Qwen2.5 7B Instruct", 7.6e9)
    assert sibling_of(qwen).repository == "Qwen/Qwen2.5-0.5B-Instruct-GGUF"
    assert sibling_of(replace_header(qwen, architecture="llama")) is None
    assert len({sibling.name for *_, sibling in FAMILIES}) == len(FAMILIES)


def replace_header(info, **changes):
    return SimpleNamespace(**{**vars(info), **changes})


def test_a_draft_model_is_advised_by_the_objective():
    advice = draft_advice(header(), staircase_of(), best=1.0)
    costs = staircase_of().costs(0)
    share = 0.135 / 1.7
    n = np.arange(1, 33)
    best = np.nanmax((1 - 0.7**n) / 0.3 / (costs[1:] + (n - 1) * costs[1] * share)) * costs[1]
    assert advice.factor == pytest.approx(best, rel=1e-3)
    assert advice.command == "specx pull bartowski/SmolLM2-135M-Instruct-GGUF"
    unknown = draft_advice(header(name="Mystery"), staircase_of(), best=1.0)
    assert "1/8" in unknown.text and unknown.command == ""
    assert draft_advice(header(), staircase_of(), best=advice.factor) is None
    assert draft_advice(header(), staircase_of({n: 20.0 * n for n in STEPS}), best=1.0) is None


def test_kernels_are_advised_if_they_were_measured_to_be_faster():
    fast = {n: ms / 2 for n, ms in STEPS.items()}
    advice = kernels_advice("stock", {"stock": STEPS, "specx": fast})
    assert (advice.factor, advice.command) == (pytest.approx(2.0), "--kernels specx")
    assert kernels_advice("specx", {"stock": STEPS, "specx": fast}) is None
    assert kernels_advice("stock", {"specx": fast}) is None


# --- of a real file -----------------------------------------------------------------------------------------


def test_nothing_is_loaded_when_it_must_not_measure(smollm2, monkeypatch):
    monkeypatch.setattr(plan_report.Session, "open", lambda *_args, **_rest: pytest.fail("it was loaded"))
    found = make_plan(Asked(smollm2), measure=False)
    assert found.steps == {} and found.setup.kernels.value is None
    assert [option.name for option in found.options] == ["none"]
    assert found.setup.need.weights > 90e6 and found.setup.changes == ()
    record = json.loads(json.dumps(found.to_json()))
    assert record["placement"] == [] and record["memory"]["weights"] == found.setup.need.weights


def test_what_was_measured_on_a_busy_machine_is_found_without_measuring(smollm2):
    """Until kernels are chosen a model runs on specx's, and so do the steps that are kept."""
    asked = Asked(smollm2)
    here = Here.of(asked)
    setup = decide(asked, here)
    assert setup.kernels.value is None
    learned = Learned(here.store, model_key=setup.info.fingerprint, cost_key=setup.cost_key("specx"))
    learned.save_staircase(staircase_of(STEPS, 64))
    found = make_plan(asked, measure=False)
    assert found.setup.kernels.value is None and found.steps[4] == STEPS[4]
    assert {option.name for option in found.options} >= {"none", "free drafts"}


def test_a_plan_rests_on_what_is_kept(smollm2, monkeypatch):
    """What sessions keep under the same settings is what the plan shows, without loading anything."""
    asked = Asked(smollm2, kernels="stock")
    here = Here.of(asked)
    setup = decide(asked, here)
    for kernels, factor in (("stock", 1), ("specx", 1 / 3)):
        learned = Learned(here.store, model_key=setup.info.fingerprint, cost_key=setup.cost_key(kernels))
        learned.save_staircase(staircase_of({n: ms * factor for n, ms in STEPS.items()}, 64))
    monkeypatch.setattr(plan_report.Session, "open", lambda *_args, **_rest: pytest.fail("it was loaded"))
    found = make_plan(asked)
    assert found.setup.kernels.value == "stock" and found.steps[4] == STEPS[4]
    assert {option.name for option in found.options} >= {"none", "free drafts"}
    assert found.advice[0].command == "--kernels specx"
    assert found.advice[0].factor == pytest.approx(3.0, rel=0.01)
    assert make_plan(replace(asked, kernels="specx")).steps[4] == pytest.approx(STEPS[4] / 3)


def test_memory_is_advised_only_where_it_is_what_lacks(smollm2, monkeypatch):
    asked = Asked(smollm2, n_ctx=10_000)
    found = make_plan(asked, measure=False)
    assert "trained for 8192 tokens" in found.setup.changes[0] and found.advice == ()
    just = found.setup.need.working
    monkeypatch.setattr(fit_module, "read_room", lambda: Room(just, 1 << 40, 1 << 40))
    for flash_attn, command in ((None, "-ctk q8_0 -ctv q8_0"), ("off", "-ctk q8_0")):
        found = make_plan(replace(asked, flash_attn=flash_attn), measure=False)
        assert len(found.setup.changes) == 2 and found.advice[0].command == command
