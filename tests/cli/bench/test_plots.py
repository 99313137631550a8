"""The picture of a benchmark, for runs that have little to show as well."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from specx.backends.errors import SpecxError
from specx.cli.bench.plots import draw_bench
from specx.cli.bench.text import LogAxis, bar, source_letters, token_line
from specx.engine.bench.intervals import Estimate
from specx.engine.bench.records import Answer, ArmInfo, Run
from specx.engine.bench.report import make_report

PLAIN = Answer(
    case="a#0", category="code", arm="none", prompt_n=9, prompt_ms=5.0, first_token_ms=15.0, predicted_n=20,
    decode_ms=200.0, steps=20, tokens=[1] * 20, step_ms=[10.0] * 20, step_width=[1] * 20,
    step_tokens=[1] * 20, sources=["target"] * 20,
)  # fmt: skip
DRAFTED = replace(
    PLAIN, arm="auto", decode_ms=80.0, steps=5, step_ms=[16.0] * 5, step_width=[4, 4, 4, 4, 9],
    step_tokens=[4] * 5, sources=["suffix", "recycle", "odd", "target"] * 5, draft_n=20, draft_n_accepted=15,
    by_source={"suffix": [10, 5], "recycle": [5, 5], "odd": [5, 5]},
    by_depth=[[5, 5], [5, 5], [5, 4], [1, 0]],
)  # fmt: skip


def a_run(*answers, arms=("none", "auto")):
    return Run(
        started="", model={"name": "m", "type": "Q4_0"}, machine={"cpu": None, "system": "Linux"}, build={},
        settings={}, baseline="none", arms=[ArmInfo(name=name, plain="none", threads=2) for name in arms],
        answers=list(answers), staircases={"none": {"0": {"1": 10.0, "4": 15.0}}},
    )  # fmt: skip


@pytest.mark.parametrize(
    "run",
    [
        a_run(PLAIN, DRAFTED),
        a_run(PLAIN, replace(DRAFTED, category="math"), replace(PLAIN, category="math")),
        a_run(PLAIN, arms=("none",)),
        a_run(PLAIN, replace(PLAIN, arm="auto"), *[replace(PLAIN, arm=f"p{i}") for i in range(9)],
              arms=("none", "auto", *(f"p{i}" for i in range(9)))),
        a_run(replace(PLAIN, predicted_n=1, step_ms=[], step_width=[], step_tokens=[], sources=[])),
    ],
    ids=["drafts", "categories", "plain alone", "many arms", "a short answer"],
)  # fmt: skip
def test_every_run_can_be_drawn(run, tmp_path):
    draw_bench(run, make_report(run), tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert text.startswith("<?xml") and "</svg>" in text


def test_a_picture_tells_whose_kernels_they_are(tmp_path):
    from matplotlib import rc_context

    stock = ArmInfo(name="auto@stock", plain="none", threads=2)
    run = replace(a_run(PLAIN, replace(DRAFTED, arm="auto@stock")), arms=[*a_run(arms=("none",)).arms, stock])
    with rc_context({"svg.fonttype": "none"}):
        draw_bench(run, make_report(run), tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert "auto on llama.cpp's kernels" in text and "@" not in text.partition("</metadata>")[2]


def test_the_tokens_shown_are_of_the_arm_with_most_right_drafts(tmp_path):
    from matplotlib import rc_context

    wrong = replace(DRAFTED, arm="suffix", draft_n_accepted=0)
    run = a_run(PLAIN, wrong, DRAFTED, arms=("none", "suffix", "auto"))
    with rc_context({"svg.fonttype": "none"}):
        draw_bench(run, make_report(run), tmp_path / "x.svg")
    assert "over time, auto" in (tmp_path / "x.svg").read_text()


def test_an_interval_has_its_place_on_the_axis():
    axis = LogAxis([0.5, 2.0], 41)
    line = axis.interval(Estimate(1.4, 1.2, 1.7)).ljust(41)
    assert line[axis.place(1.0)] == "│" and line[axis.place(1.4)] == "●"
    assert line[axis.place(1.2)] == "├" and line[axis.place(1.7)] == "┤"
    wide = axis.interval(Estimate(1.4, 0.01, 99.0))
    assert wide[0] == "←" and wide[-1] == "→" and wide[axis.place(1.0)] == "┼"
    assert axis.interval(Estimate(2.0)).count("●") == 1
    ticks = axis.ticks()
    assert "1x" in ticks and ticks.index("1x") in range(axis.place(1.0) - 2, axis.place(1.0) + 1)


def test_bars_and_letters():
    assert bar(0.5, 8) == "████    " and bar(2.0, 3) == "███" and bar(1 / 16, 2).strip() == "▏"
    assert source_letters(["target", "suffix", "suffix", "self"]) == {
        "target": "·",
        "suffix": "s",
        "self": "e",
    }
    lines = token_line(["suffix", "target", "target"], [2, 1], 3)
    assert [line.plain for line in lines] == ["|s·", "·"]


ODD = ("$^$", "$\\frac{1}$", "\udcff", "a\nb\x1b[31m", "\u202e")


@pytest.mark.parametrize(("name", "ending"), [*((name, "png") for name in ODD), (ODD[0], "svg")])
def test_names_are_drawn_as_they_are(tmp_path, name, ending):
    """Between dollar signs there is no formula, and what is no text is escaped."""
    run = a_run(*(replace(answer, category=name, case=f"{name}#0") for answer in (PLAIN, DRAFTED)))
    run.model["name"] = name
    path = tmp_path / "pictures" / f"x.{ending}"
    path.parent.mkdir()
    draw_bench(run, make_report(run), path)
    assert path.stat().st_size > 1000 and list(path.parent.iterdir()) == [path]


def test_a_disk_without_room_leaves_nothing_of_a_picture(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    run = a_run(PLAIN, DRAFTED)
    with pytest.raises(SpecxError, match=r"cannot write .*x.png: No space left"):
        draw_bench(run, make_report(run), tmp_path / "x.png")
    assert not list(tmp_path.glob("*x.png*")) and not list(tmp_path.glob(".*"))
