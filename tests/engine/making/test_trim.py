"""Trimming from end to end: text is written, rows are chosen, and what was made drafts."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from specx.backends.errors import FileError, ModelError, UsageError
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import read_gguf
from specx.engine.making.samples import prompts
from specx.engine.making.trim import Trimming, Wanted, default_output, trim
from specx.engine.offers import Asking, Reason
from specx.engine.session import Session
from specx.engine.settings import Asked, AskedModel, SamplingSettings
from specx.engine.setup.finder import Candidate, check_candidate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from steady import steadied

ROOT = Path(__file__).resolve().parents[3]
PRECISE = {"kernels": "stock", "type_k": "f32", "type_v": "f32", "flash_attn": "off"}
KEEP = 288  # of 320: all bytes and 29 of the 61 words


def tiny_llama(path):
    """The small model of the tests of backends: random weights, a millisecond a step."""
    spec = importlib.util.spec_from_file_location("tiny", ROOT / "tests" / "backends" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._llama(path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("trim") / "whole.gguf")


@pytest.fixture(scope="module")
def made(whole):
    told = []
    wanted = Wanted(keep=KEEP, tokens=600, texts=("w1 w2 w3",))
    report = trim(whole, whole, wanted, Trimming(lambda what, done: told.append((what, done))))
    return report, told


def test_a_report_and_a_file_beside_the_draft_model(made, whole):
    report, told = made
    assert report.path == default_output(whole, KEEP) == whole.with_name("whole.trim288.gguf")
    info, before = read_runnable(report.path, drafting=True), read_gguf(whole)
    assert (report.rows, report.vocabulary, info.head_rows) == (KEEP, 320, KEEP)
    assert report.whole_step_bytes - report.step_bytes == (320 - KEEP) * 64 * 4
    assert report.counted > 600
    assert info.metadata["specx.made.for_fingerprint"] == before.fingerprint
    assert info.metadata["specx.made.parameters"] == f"keep={KEEP} tokens=600 texts=1"
    steps = list(dict.fromkeys(what for what, _ in told))
    assert steps == ["loading whole.gguf", "writing text", "ranking tokens"]
    assert told[-1] == ("ranking tokens", 1.0)
    assert json.loads(json.dumps(report.to_json()))["path"] == str(report.path)


class Curious(Asking):
    """Asks the draft model three times before every step, whatever that costs."""

    def weigh(self, *_args):
        self.asked = getattr(self, "asked", 0) + 1
        return (1.0, Reason.GAIN) if self.asked % 4 else (0.0, None)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_it_drafts_and_the_text_stays(made, whole, temperature):
    """Of the same weights, it proposes what the target chooses unless that has no row."""
    asked = Asked(
        whole, n_ctx=256, draft_max=7, draft=AskedModel(made[0].path), store=False, threads=1, **PRECISE
    )
    sampling = SamplingSettings(seed=5, temperature=temperature, top_k=8)
    with Session.open(asked) as session:
        width = session.model.facts.max_width
        steadied(session, {"0": {str(n): 10.0 + n / 100 for n in range(1, width + 1)}}, asking=Curious)
        texts = []
        for drafter in ("none", "model"):
            session.set_drafter(drafter)
            session.forget_conversation()
            generation = session.generate("w1 w2", sampling, n_predict=96, ignore_eos=True)
            sources = [source for chunk in generation for source in chunk.sources]
            texts.append(generation.result.tokens)
        assert texts[0] == texts[1] and len(texts[0]) == 96
        assert sources.count("model") > 30
        assert session.draft_models.model.calibration.acceptance > 0.6


def test_auto_finds_it(made, whole):
    """As a draft model that reads fewer bytes for a token than the one that it was made from."""
    target = read_gguf(whole)
    found = check_candidate(target, made[0].path)
    assert isinstance(found, Candidate) and found.shared == 320
    assert found.step_bytes == made[0].step_bytes


@pytest.mark.parametrize(
    ("wanted", "error", "match"),
    [
        (Wanted(keep=KEEP), FileError, "already"),
        (Wanted(keep=320), UsageError, "320 are to be kept"),
        (Wanted(keep=KEEP, output=Path("/nowhere/x.gguf")), FileError, "nothing can be written to /nowhere"),
    ],
)
def test_what_is_refused_before_anything_is_computed(made, whole, wanted, error, match):
    told = []
    with pytest.raises(error, match=match):
        trim(whole, whole, wanted, Trimming(lambda *progress: told.append(progress)))
    assert told == []


def test_the_model_itself_is_not_replaced(made, whole):
    with pytest.raises(UsageError, match="the model itself"):
        trim(whole, whole, Wanted(keep=KEEP, output=whole, force=True), Trimming())
    with pytest.raises(ModelError, match="trimmed already"):
        trim(made[0].path, whole, Wanted(keep=KEEP), Trimming())
    with pytest.raises(ModelError, match="can only draft"):
        trim(whole, made[0].path, Wanted(keep=KEEP, output=whole.with_name("y.gguf")), Trimming())


def test_prompts_are_of_many_languages_and_no_benchmarks():
    ours = prompts()
    assert len(ours) == len(set(ours)) > 60
    scripts = {ord(character) >> 8 for prompt in ours for character in prompt if character.isalpha()}
    assert len(scripts) > 10
    measured = "".join(path.read_text() for path in (ROOT / "engine" / "bench" / "suite").glob("*.jsonl"))
    assert [prompt for prompt in ours if prompt in measured] == []
