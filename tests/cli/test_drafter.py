"""`specx drafter` as a person meets it; what it says is tested with the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from specx.engine.cost.rate import Chain
from specx.engine.making import shrink as making
from specx.engine.making.prospects import ShrinkStage
from specx.engine.making.shrink import ShrinkReport
from specx.engine.report import drafters, overlap
from specx.engine.report.drafters import DrafterReport, Usable
from specx.engine.report.overlap import Inspection, Overlap
from specx.engine.setup.finder import Candidate, Forecast, Unfit

LONG = "somebody-on-the-hub/A-Model-With-A-Long-Name-0.5B-Instruct-GGUF/a-model-q4_k_m.gguf"
MIB = 1 << 20


def usable(name="small", *, remembered=0, measured=False, made="", shared=64):
    candidate = Candidate(Path(f"/models/{name}"), name, "f", shared, 10, 30 * MIB)
    return Usable(
        Forecast(candidate, 0.7, 2.5, Chain(2, 1.8, 20.0), 0.05, remembered), measured, 120 * MIB, made
    )


def listing(*found, known=True, unfit=(), plain_reason=None):
    return DrafterReport(
        Path("/models/target.gguf"), "A target", plain_reason, known, tuple(found), tuple(unfit)
    )


@pytest.fixture
def found(monkeypatch):
    """Lets the engine say this."""

    def say(module, name, value):
        calls = []

        def answer(*arguments):
            calls.append(arguments)
            return value

        monkeypatch.setattr(module, name, answer)
        return calls

    return say


# --- list ---------------------------------------------------------------------------------------------------


def test_the_list_fits_eighty_columns(specx, found):
    unfit = Unfit(Path("/models/other.gguf"), LONG, "it does not share the vocabulary: token 5 is 'a' in one")
    best = usable(LONG, remembered=640, measured=True, made="shrink of target.gguf, layers=12 quant=keep")
    found(drafters, "list_drafters", listing(best, usable(), unfit=[unfit]))
    out = specx("drafter", "list", specx.model).out
    lines = out.splitlines()
    assert max(map(len, lines[:3])) <= 80  # sentences are whole in a pipe
    assert lines[0] == "drafters for target.gguf"
    assert lines[2].split()[1:] == ["1.80x", "70%", "counted", "2.5", "measured", "120", "MiB"]
    assert lines[3].split() == ["small", "1.80x", "70%", "assumed", "2.5", "by", "size", "120", "MiB"]
    assert "shrink of target.gguf" in out and "cannot draft: it does not share" in " ".join(out.split())


def test_another_vocabulary_is_told(specx, found):
    found(drafters, "list_drafters", listing(usable("foreign", shared=0, made="trim of x.gguf, keep=1")))
    assert (
        "foreign: of another vocabulary, trim of x.gguf, keep=1" in specx("drafter", "list", specx.model).out
    )
    (drafter,) = json.loads(specx("drafter", "list", specx.model, "--json").out)["drafters"]
    assert drafter["translated"]


def test_a_head_is_called_one(specx, found):
    head = usable("head")
    candidate = replace(head.forecast.candidate, layers=(1, 2, 3))
    found(
        drafters,
        "list_drafters",
        listing(replace(head, forecast=replace(head.forecast, candidate=candidate))),
    )
    assert "head: a draft head" in specx("drafter", "list", specx.model).out
    (told,) = json.loads(specx("drafter", "list", specx.model, "--json").out)["drafters"]
    assert told["head"] and not told["translated"]


def test_nothing_is_promised_before_anything_was_timed(specx, found):
    found(drafters, "list_drafters", listing(usable(), known=False))
    out = specx("drafter", "list", specx.model).out
    assert "x " not in out.splitlines()[2] and f"specx plan {specx.model}" in out


def test_where_nothing_can_draft(specx, found):
    found(drafters, "list_drafters", listing())
    out = " ".join(specx("drafter", "list", specx.model).out.split())
    assert "specx drafter shrink" in out and "specx drafter train" in out
    found(drafters, "list_drafters", listing(plain_reason="its state cannot be taken back"))
    assert "none: it decodes plainly, because its state" in specx("drafter", "list", specx.model).out


def test_the_list_as_json(specx, found):
    found(drafters, "list_drafters", listing(usable(LONG, remembered=640)))
    (drafter,) = json.loads(specx("drafter", "list", specx.model, "--json").out)["drafters"]
    assert drafter["name"] == LONG and drafter["predicted"] == pytest.approx(1.8)
    assert drafter["counted_on"] == 640 and drafter["memory"] == 120 * MIB


def test_without_a_model_it_is_about_the_default_one(specx, found, monkeypatch):
    monkeypatch.setenv("SPECX_MODEL", specx.model)
    calls = found(drafters, "list_drafters", listing())
    assert specx("drafter", "list").code == 0
    assert calls[0][0].model == Path(specx.model)


# --- inspect ------------------------------------------------------------------------------------------------


def inspection(**changes):
    values = {
        "target": Path("/models/target.gguf"),
        "draft": Path("/models/draft.gguf"),
        "overlap": Overlap(49152, 262144, 0.94, 10144, 0.894, 0.95, 0.0),
        "usable": usable(),
        "reason": None,
        "known": True,
    }
    return Inspection(**{**values, **changes})


def test_what_is_inspected(specx, found):
    found(overlap, "inspect_drafter", inspection())
    out = specx("drafter", "inspect", specx.model, specx.model).out
    assert max(map(len, out.splitlines())) <= 80
    for part in ("94% of the target's", "89.4% of 10,144", "0.95 for each", "120 MiB", "1.80x"):
        assert part in out


def test_a_head_has_no_vocabulary_of_its_own(specx, found):
    found(overlap, "inspect_drafter", inspection(overlap=None, head="reads what enters layers 1, 2, 3"))
    out = specx("drafter", "inspect", specx.model, specx.model).out
    assert "reads what enters layers 1, 2, 3" in out and "common tokens" not in out
    told = json.loads(specx("drafter", "inspect", specx.model, specx.model, "--json").out)
    assert told["overlap"] is None and told["head"] == "reads what enters layers 1, 2, 3"


def test_why_it_cannot_draft(specx, found):
    found(overlap, "inspect_drafter", inspection(usable=None, reason="it is an encoder"))
    done = specx("drafter", "inspect", specx.model, specx.model)
    assert done.code == 0 and "cannot draft   it is an encoder" in done.out and "predicted" not in done.out


def test_a_text_of_ones_own(specx, found, tmp_path):
    calls = found(overlap, "inspect_drafter", inspection())
    text = tmp_path / "text.txt"
    text.write_text("a line\nand another\n")
    specx("drafter", "inspect", specx.model, specx.model, "--text", str(text))
    specx("drafter", "inspect", specx.model, specx.model)
    assert calls[0][2] == "a line\nand another\n" and len(calls[1][2]) > 10_000
    text.write_text(" \n")
    done = specx("drafter", "inspect", specx.model, specx.model, "--text", str(text))
    assert done.code == 2 and "there is no text in" in done.err and "hint:" in done.err
    done = specx("drafter", "inspect", specx.model, specx.model, "--text", str(tmp_path / "none"))
    assert done.code == 1 and "Traceback" not in done.err


def test_the_inspection_as_json(specx, found):
    found(overlap, "inspect_drafter", inspection())
    told = json.loads(specx("drafter", "inspect", specx.model, specx.model, "--json").out)
    assert told["overlap"]["one_to_one"] == 0.894 and told["drafter"]["memory"] == 120 * MIB


# --- shrink -------------------------------------------------------------------------------------------------


WHOLE = ShrinkStage(30, (), 1.0, 1.0, 1.0)
SMALLER = ShrinkStage(29, (7,), 0.8, 0.97, 1.0)
BEST = ShrinkStage(12, tuple(range(1, 19)), 0.6, 0.5, 1.2)


def shrunk(path=None, chosen=BEST, *, complete=True):
    model = Path("/models/target.gguf")
    stages = (WHOLE, SMALLER, chosen)
    return ShrinkReport(model, "Q4_0", 30, 20.0, 512, 60, complete, stages, chosen, path)


def test_what_was_shrunk(specx, found, tmp_path):
    path = tmp_path / "target-shrunk.gguf"
    path.write_bytes(b"x" * 3_000_000)
    calls = found(making, "shrink", shrunk(path, complete=False))
    done = specx("drafter", "shrink", specx.model, "--layers", "12", "--quant", "q4_0", "--time", "1.5m")
    assert done.code == 0 and "written: " in done.out and "(3 MiB); delete it to undo this" in done.out
    assert (
        "30      100.0%  1.00x  1.00x" in done.out and "12      60.0%   0.50x  1.20x      written" in done.out
    )
    assert "run it again to go on" in done.out
    asked, wanted, _told = calls[0]
    assert asked.model == Path(specx.model) and wanted.layers == 12 and wanted.quant == "Q4_0"
    assert wanted.seconds == 90 and wanted.resume and not wanted.force and wanted.trim is None


def test_what_does_not_pay_is_said_so(specx, found):
    found(making, "shrink", shrunk())
    done = specx("drafter", "shrink", specx.model)
    assert done.code == 1 and "best" in done.out
    assert "12 of 30 layers, is right 60% of the time" in " ".join(done.err.split())
    assert "--layers 12 writes it all the same" in done.err
    found(making, "shrink", shrunk(chosen=WHOLE))
    done = specx("drafter", "shrink", specx.model)
    assert done.code == 1 and "even the fewest layers take too long" in done.err


def test_the_shrinking_as_json(specx, found, tmp_path):
    path = tmp_path / "x.gguf"
    found(making, "shrink", shrunk(path))
    told = json.loads(specx("drafter", "shrink", specx.model, "--json").out)
    assert told["path"] == str(path) and told["chosen"]["layers"] == 12
    assert [stage["agreement"] for stage in told["stages"]] == [1.0, 0.8, 0.6]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--layers", "some"),
        ("--layers", "-3"),
        ("--quant", "Q17"),
        ("--time", "soon"),
        ("--time", "0"),
        ("--trim", "0"),
    ],
)
def test_values_that_cannot_be_right(specx, option, value):
    done = specx("drafter", "shrink", specx.model, f"{option}={value}")
    assert done.code == 2 and option in done.err and "hint:" in done.err


def test_a_file_that_is_no_model(specx):
    done = specx("drafter", "shrink", specx.model)
    assert done.code == 1 and "hint:" in done.err and "Traceback" not in done.err
