"""`specx drafter list` and `inspect`: what can draft, what it promises, what vocabularies have in common."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from specx.backends.errors import ModelError
from specx.backends.gguf.checks import read_runnable
from specx.backends.store import Store, cache_dir
from specx.drafters.calibration.model import ModelCalibration
from specx.drafters.guesser import GuessCosts
from specx.drafters.make.gguf_writing import made_entries
from specx.drafters.make.shrink import prune
from specx.engine.cost.rate import chain_rate
from specx.engine.cost.staircase import Staircase
from specx.engine.learned.knowledge import Learned
from specx.engine.report.drafters import MAX_WIDTH, list_drafters
from specx.engine.report.overlap import inspect_drafter, measure_overlap, sample_text
from specx.engine.settings import Asked
from specx.engine.setup.decide import decide
from specx.engine.setup.here import Here
from specx.kernels._native import Pieces

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tiny_heads import write_eagle3

STEPS = {1: 20.0, 2: 21.0, 3: 22.0, 4: 23.0, 6: 24.5, 8: 26.0, 12: 29.0, 16: 32.0, 32: 44.0}


@pytest.fixture
def asked(tmp_path, write_tiny):
    """A target, with a drafter made of it beside it, and a file that is broken."""
    target = write_tiny(tmp_path / "target.gguf", "llama")
    info = read_runnable(target)
    prune(info, frozenset({2, 3}), tmp_path / "four.gguf", made_entries("shrink", info, info, {"layers": 4}))
    write_tiny(tmp_path / "two.gguf", "llama", blocks=2)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    return Asked(target, threads=1)


def learned_of(asked):
    here = Here(Store(cache_dir()))
    setup = decide(asked, here, timing=False)
    return Learned(here.store, model_key=setup.info.fingerprint, cost_key=setup.cost_key())


def keep_steps(asked):
    staircase = Staircase(MAX_WIDTH)
    staircase.load_json({"0": {str(n): ms for n, ms in STEPS.items()}})
    learned_of(asked).save_staircase(staircase)
    return staircase.costs(0)


def test_what_can_draft_and_what_cannot(asked):
    found = list_drafters(asked)
    assert {usable.forecast.candidate.name for usable in found.usable} == {"two", "four"}
    (unfit,) = found.unfit
    assert unfit.name == "broken" and unfit.reason
    made = {usable.forecast.candidate.name: usable.made for usable in found.usable}
    assert made == {"two": "", "four": "shrink of target.gguf, layers=4"}
    assert all(usable.memory > usable.forecast.candidate.step_bytes for usable in found.usable)


def test_nothing_is_predicted_before_anything_was_timed(asked):
    told = list_drafters(asked).to_json()
    assert not told["measured"]
    assert [drafter["predicted"] for drafter in told["drafters"]] == [None, None]
    assert [drafter["token_ms"] for drafter in told["drafters"]] == [None, None]
    assert json.loads(json.dumps(told)) == told


def test_nothing_is_predicted_from_the_steps_of_a_busy_machine(asked, monkeypatch):
    keep_steps(asked)
    assert list_drafters(asked).known
    monkeypatch.setattr(Staircase, "disturbed", property(lambda _self: True))
    assert not list_drafters(asked).known


def test_predictions_are_the_objective(asked):
    costs = keep_steps(asked)
    found = list_drafters(asked)
    assert found.known and [usable.forecast.candidate.name for usable in found.usable] == ["two", "four"]
    for usable in found.usable:
        rate = chain_rate(costs, draft_ms=usable.forecast.token_ms).rate
        assert usable.speedup == pytest.approx(rate * 20.0)
    assert found.usable[0].speedup > found.usable[1].speedup >= 1


def test_what_is_remembered_counts(asked):
    keep_steps(asked)
    calibration = ModelCalibration()
    calibration.tokens[:] = 90.0, 100.0
    learned = learned_of(asked)
    four = read_runnable(asked.model.with_name("four.gguf"))
    learned.save_pair(four.fingerprint, calibration, GuessCosts(1.0, 0.1, 0.1, 5.0, measured=True))
    best = list_drafters(asked).usable[0]
    assert best.forecast.candidate.name == "four" and best.measured
    assert best.forecast.acceptance == pytest.approx(0.9) and best.forecast.remembered == 100


def test_a_model_that_decodes_plainly_needs_none(asked, monkeypatch):
    monkeypatch.setattr("specx.backends.gguf.file.GGUFInfo.plain_reason", "of a reason")
    found = list_drafters(asked)
    assert found.plain_reason == "of a reason" and not found.usable and not found.unfit


# --- vocabularies -------------------------------------------------------------------------------------------


class Greedy:
    """Takes the longest token each time."""

    def __init__(self, *pieces, prefix=b"", lower=False):
        self.texts = [piece.encode() for piece in pieces]
        self.pieces = Pieces(self.texts)
        self.size = len(pieces)
        self.prefix, self.lower = prefix, lower

    def tokenize(self, text, *, add_special, parse_special):
        assert not add_special and not parse_special
        text = self.prefix + (text.lower() if self.lower else text)
        tokens = []
        while text:
            token = max(
                (i for i, piece in enumerate(self.texts) if piece and text.startswith(piece)),
                key=lambda i: len(self.texts[i]),
            )
            tokens.append(token)
            text = text[len(self.texts[token]) :]
        return tokens


SMALL = ("a", "b", "c", " ", "\n", "\x01")


def test_a_vocabulary_and_itself():
    ours = Greedy(*SMALL, "ab")
    found = measure_overlap(ours, ours, "abc ab\nba\n")
    assert (found.common, found.one_to_one, found.draft_per_target, found.lost) == (1, 1, 1, 0)
    assert found.sample_tokens == 8 and found.target_size == found.draft_size == 7


def test_smaller_pieces():
    found = measure_overlap(Greedy(*SMALL, "ab"), Greedy(*SMALL, ""), "abc ab")  # ab c _ ab, a b c _ a b
    assert found.one_to_one == 2 / 4
    assert found.draft_per_target == 6 / 4
    assert found.common == 6 / 7 and found.lost == 0


def test_pieces_that_straddle():
    found = measure_overlap(Greedy(*SMALL, "ab"), Greedy(*SMALL, "bc"), "abc")  # ab c, a bc
    assert found.one_to_one == 0 and found.draft_per_target == 1


def test_a_space_that_is_put_before_a_text_is_not_of_the_text():
    prefixed = Greedy(*SMALL, "ab", " ab", prefix=b" ")
    found = measure_overlap(Greedy(*SMALL, "ab"), prefixed, "ab ab\n")
    assert found.lost == 0
    assert found.one_to_one == 2 / 4  # the first word and the end of the line


def test_what_is_lost_on_the_way():
    ours = Greedy(*SMALL, "A", "B")
    found = measure_overlap(
        ours, Greedy(*SMALL, lower=True), "aB\nab\n"
    )  # one token of six comes back as another
    assert found.lost == pytest.approx(1 / 6)
    assert found.one_to_one == 3 / 6  # a line that is not kept counts for nothing


def test_an_empty_sample_is_no_harm():
    ours = Greedy(*SMALL)
    assert measure_overlap(ours, ours, "").sample_tokens == 0


def test_the_sample_is_of_every_kind():
    sample = sample_text()
    assert len(sample.splitlines()) == 100 and len(sample) > 20_000


def test_one_model_for_another(asked):
    keep_steps(asked)
    found = inspect_drafter(asked, asked.model.with_name("four.gguf"), "w1 w2 and more\n")
    assert (found.overlap.one_to_one, found.overlap.lost, found.reason) == (1, 0, None)
    assert found.usable.made == "shrink of target.gguf, layers=4" and found.usable.speedup >= 1
    told = found.to_json()
    assert told["drafter"]["predicted"] == found.usable.speedup and told["overlap"]["draft_per_target"] == 1


def test_why_one_cannot(asked, monkeypatch):
    monkeypatch.setattr("specx.backends.gguf.file.GGUFInfo.plain_reason", "of a reason")
    found = inspect_drafter(asked, asked.model.with_name("two.gguf"), "text\n")
    assert found.usable is None and found.reason == "of a reason" and found.to_json()["drafter"] is None


def test_a_file_that_is_none(asked):
    with pytest.raises(ModelError):
        inspect_drafter(asked, Path(asked.model.with_name("broken.gguf")), "text\n")


def test_a_head_is_listed_and_inspected(asked, tmp_path):
    head, other = tmp_path / "head.gguf", tmp_path / "other.gguf"
    for path, width in ((head, 64), (other, 32)):
        write_eagle3(
            path, d_target=width, n_vocab=304, layers=(1, 3, 4), n_draft=96, tokens=asked.model, seed=width
        )
    found = list_drafters(asked)
    (usable,) = (each for each in found.usable if each.forecast.candidate.is_head)
    assert usable.forecast.candidate.name == "head" and usable.memory > 0
    (unfit,) = (each for each in found.unfit if each.name == "other")
    assert "hidden states of 32 values" in unfit.reason
    inspected = inspect_drafter(asked, head, "nothing of this matters")
    assert inspected.overlap is None and inspected.reason is None
    assert inspected.head == "reads what enters layers 1, 3, 4 of a target, scores 96 of 304 tokens"
    assert "32 values" in inspect_drafter(asked, other, "").reason
