"""Making a drafter of a model's own layers: which ones stay, what is kept of the search, what is refused."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from specx.backends.errors import FileError, ModelError, SpecxError, UsageError
from specx.backends.gguf.checks import read_runnable
from specx.backends.llama.skipping import SkippingModel
from specx.backends.settings import Load
from specx.backends.store import Store, cache_dir
from specx.engine.cost.rate import chain_rate
from specx.engine.making import shrink as making
from specx.engine.making.samples import Sample
from specx.engine.making.shrink import Shrinking, Wanted, check_quant, default_output, shrink
from specx.engine.report.drafters import list_drafters, made_of
from specx.engine.settings import Asked
from specx.engine.setup.finder import Candidate, Finder
from specx.engine.setup.layers import step_bytes

SILENT = frozenset({1, 3})
FLAT = np.array([np.inf, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0])
STEEP = np.array([np.inf, 10.0, 15.0, 20.0])
HOPELESS = np.array([np.inf, *(10.0 * n for n in range(1, 9))])
PROMPTS = ([1, 40, 50, 60], [1, 70, 71])


def opened(path):
    return SkippingModel(Load(path, 1, 1, n_ctx=256))


def written_by(path, n=36):
    """Greedy answers, one pass a token."""
    model, samples = opened(path), []
    for prompt in PROMPTS:
        tokens = list(prompt)
        for _ in range(n):
            tokens.append(int(model.predictions(tokens, frozenset())[-1]))
        samples.append(Sample(tuple(prompt), "", tuple(tokens[len(prompt) :]), ""))
    model.close()
    return samples


@pytest.fixture
def target(tmp_path, write_tiny):
    return write_tiny(tmp_path / "model.gguf", "llama", SILENT)


@pytest.fixture
def known(monkeypatch, target):
    """Lets the times of the target's steps be these (None: not to be had), and its texts what it writes."""
    samples = written_by(target)

    def know(costs):
        monkeypatch.setattr(
            making,
            "_costs_and_texts",
            lambda _asked, _told, *, wanted, needed: (costs, samples if wanted else []),
        )

    know(FLAT)
    return know


def make(target, told=None, **wanted):
    wanted.setdefault("quant", "keep")
    return shrink(Asked(target, threads=1), Wanted(**wanted), told or Shrinking())


def test_layers_that_do_nothing_go(target, known):
    report = make(target)
    assert set(report.chosen.dropped) >= SILENT
    assert [stage.agreement for stage in report.stages[:3]] == [1.0, 1.0, 1.0]
    assert report.scored == 72 and report.complete
    written = read_runnable(report.path)
    assert report.path == default_output(target) and written.blocks == report.chosen.layers
    assert written.metadata["specx.made.how"] == "shrink"
    assert written.metadata["specx.made.from"] == target.name
    assert f"layers={written.blocks}" in written.metadata["specx.made.parameters"]


def test_what_is_predicted_is_the_objective(target, known):
    report = make(target, layers=4)
    small, info = read_runnable(report.path), read_runnable(target)
    cost = step_bytes(small) / step_bytes(info)
    rate = chain_rate(FLAT, draft_ms=10.0 * cost, acceptance=report.chosen.agreement).rate
    assert report.chosen.cost == pytest.approx(cost)
    assert report.chosen.speedup == pytest.approx(10.0 * rate)
    assert report.step_ms == 10.0


def test_the_best_of_all_numbers_of_layers_is_written(target, known):
    report = make(target)
    assert report.chosen.speedup == max(stage.speedup for stage in report.stages[1:])


def test_the_file_agrees_as_the_trial_did(target, known):
    report = make(target, layers=2)
    small, whole = opened(report.path), opened(target)
    same = total = 0
    for sample in written_by(target):
        tokens, start = [*sample.prompt, *sample.answer[:-1]], len(sample.prompt) - 1
        a, b = (model.predictions(tokens, frozenset())[start:] for model in (small, whole))
        same, total = same + int((a == b).sum()), total + len(a)
    small.close()
    whole.close()
    assert report.chosen.agreement == same / total


def test_it_is_found_as_a_draft_model(target, known):
    report = make(target)
    found = list(Finder(read_runnable(target), Store(None), list).search())
    assert [model.path for model in found if isinstance(model, Candidate)] == [report.path]


def test_how_often_it_was_right_is_remembered(target, known):
    report = make(target, layers=2)
    (found,) = list_drafters(Asked(target, threads=1)).usable
    assert found.forecast.acceptance == report.chosen.agreement < 1
    assert found.forecast.remembered == report.scored == 72 and not found.measured


def test_nothing_is_written_that_does_not_pay(target, known):
    known(STEEP)  # a step of two tokens costs nearly two of one
    report = make(target)
    assert report.path is None and not default_output(target).exists()
    assert len(report.stages) > 1 and report.chosen.layers < 6 and report.chosen.speedup <= 1
    assert make(target, layers=report.chosen.layers).path.exists()  # unless it was asked for


def test_nothing_is_searched_that_cannot_pay(target, known):
    known(HOPELESS)
    report = make(target)
    assert report.path is None and report.complete and report.chosen.layers == 6 and report.trials == 1


def test_on_a_busy_machine_nothing_is_begun(target, monkeypatch):
    session = SimpleNamespace(measure_staircase=lambda: None, staircase=SimpleNamespace(disturbed=True))
    monkeypatch.setattr(making.Session, "open", lambda *_asked, **_told: nullcontext(session))
    monkeypatch.setattr(making, "write_samples", lambda *_given: pytest.fail("a text is written"))
    with pytest.raises(SpecxError, match="busy"):
        make(target)


def test_on_a_busy_machine_what_was_asked_for_is_made(target, known):
    known(None)
    report = make(target, layers=4)
    assert report.chosen.speedup is None and report.path.exists()


def test_a_model_that_writes_nothing(target, known, monkeypatch):
    monkeypatch.setattr(making, "_costs_and_texts", lambda _asked, _told, **_given: (FLAT, []))
    with pytest.raises(SpecxError, match="wrote nothing"):
        make(target)


def test_a_search_goes_on_where_it_was(target, known, monkeypatch):
    passes = []
    computed = SkippingModel.predictions

    def counted(self, tokens, skipped):
        passes.append(skipped)
        return computed(self, tokens, skipped)

    class InterruptedError(Exception):
        pass

    def interrupted(_what, _fraction):
        raise InterruptedError

    monkeypatch.setattr(SkippingModel, "predictions", counted)
    with pytest.raises(InterruptedError):  # after the first stage
        make(target, Shrinking(progress=interrupted), layers=3)
    before = list(passes)
    passes.clear()
    whole = make(target, layers=3)
    assert before and not set(map(frozenset, before)) & set(map(frozenset, passes))
    passes.clear()
    assert make(target, layers=3, force=True).stages == whole.stages
    assert not passes
    make(target, layers=3, force=True, resume=False)
    assert passes


@pytest.mark.parametrize("data", [{}, {"texts": 3}, {"texts": [[[1], [2]]], "chosen": [], "right": {}}])
def test_a_damaged_memory_is_no_harm(target, known, data):
    info = read_runnable(target)
    Store(cache_dir()).save_json("shrink", f"{info.fingerprint}-keep", data)
    assert make(target, layers=4).scored == 72


def test_the_time_is_a_limit(target, known):
    ticks = iter(range(10_000))
    late = Shrinking(clock=lambda: 100.0 * next(ticks))
    with pytest.raises(SpecxError, match="came to 6 layers"):
        make(target, late, layers=2, seconds=150.0)
    assert make(target, layers=2).complete  # it goes on


def test_another_quantization_is_what_is_tried_and_written(target, known):
    report = make(target, quant="Q8_0", layers=4)
    assert read_runnable(report.path).file_type == "Q8_0"
    assert not [path for path in target.parent.iterdir() if path.name.startswith(".")]
    assert report.chosen.cost < make(target, layers=4, force=True).chosen.cost


def test_its_head_can_be_trimmed_as_well(target, known, monkeypatch):
    samples = written_by(target)
    monkeypatch.setattr("specx.engine.making.trim._samples", lambda _target, _tokens, _told: samples)
    report = make(target, layers=4, trim=288)
    made = read_runnable(report.path, drafting=True)
    assert made.trim.rows == 288 and made.blocks == 4
    assert report.chosen.cost == pytest.approx(step_bytes(made) / step_bytes(read_runnable(target)))
    assert made_of(made).startswith(f"trim of {report.path.name}, keep=288 ")
    assert f"shrink {target.name} layers=4 dropped=" in made_of(made)
    with pytest.raises(UsageError, match="304 tokens"):
        make(target, layers=4, trim=304, force=True)


def test_few_bits_are_left_as_they_are(target):
    info = read_runnable(target)
    assert making._quant(info, "auto") == "Q4_0"
    small = tuple(replace(tensor, nbytes=tensor.elements // 2) for tensor in info.tensors)
    assert making._quant(replace(info, tensors=small), "auto") == "keep"
    assert making._quant(replace(info, file_type="Q5_K_M"), "Q5_K_M") == "keep"


def test_a_file_that_is_there_stays(target, known):
    output = default_output(target)
    output.write_bytes(b"mine")
    with pytest.raises(FileError, match="already"):
        make(target)
    assert output.read_bytes() == b"mine"
    assert make(target, force=True).path == output
    with pytest.raises(UsageError, match="itself"):
        make(target, output=target, force=True)


def test_a_place_that_cannot_be_written_is_told_first(target, tmp_path):
    with pytest.raises(FileError, match="nowhere"):
        make(target, output=tmp_path / "nowhere" / "x.gguf")


@pytest.mark.parametrize("layers", [0, 1, 6, 7, 99])
def test_impossible_numbers_of_layers(target, layers):
    with pytest.raises(UsageError, match=f"{layers} of its 6 layers") as refused:
        make(target, layers=layers)
    assert "from 2 to 5" in refused.value.hint


def test_an_architecture_that_is_not_known(tmp_path, write_tiny, monkeypatch):
    path = write_tiny(tmp_path / "odd.gguf", "llama")
    odd = replace(read_runnable(path), architecture="gemma3n")
    monkeypatch.setattr(making, "read_runnable", lambda _path: odd)
    with pytest.raises(ModelError, match="gemma3n"):
        make(path)


@pytest.mark.parametrize(("given", "meant"), [("q4_0", "Q4_0"), ("KEEP", "keep"), ("Auto", "auto")])
def test_names_of_quantizations(given, meant):
    assert check_quant(given) == meant


def test_other_names_are_refused():
    with pytest.raises(UsageError, match="Q17"):
        check_quant("Q17")


def test_with_texts_and_times_of_its_own(target):
    """Nothing is known beforehand: the model writes, and its steps are timed."""
    told = []
    report = shrink(
        Asked(target, threads=1, kernels="stock", measure=False),
        Wanted(layers=4, quant="keep"),
        Shrinking(progress=lambda what, _fraction: told.append(what)),
    )
    assert report.chosen.dropped == tuple(SILENT) and report.chosen.agreement == 1.0
    assert report.scored > 400 and {"writing text", "4 layers, 100% right"} <= set(told)
