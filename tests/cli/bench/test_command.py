"""`specx bench`: what it prints, keeps and refuses. The models are scripted, their time is simulated."""

from __future__ import annotations

import csv
import io
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from specx.backends.errors import PeerError
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.settings import Load
from specx.backends.store import Store
from specx.cli.terminal import console
from specx.engine.bench import setup as bench_setup
from specx.engine.bench.records import ArmInfo, Run
from specx.engine.bench.run import SpecxArm
from specx.engine.bench.setup import Opened, name_arms
from specx.engine.cost.timing import unwatched
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked

STEPS = {1: 10.0, 4: 12.0, 8: 14.0, 16: 20.0, 64: 60.0}


class Scripted:
    """Stands in for opening a model; `meddle` may change or refuse an answer."""

    def __init__(self):
        self.settings = None
        self.meddle = lambda _count, answer: answer
        self.count = 0

    @contextmanager
    def open(self, settings, *, progress, notice):
        self.settings = settings
        clock = SimulatedClock()
        script = tuple(range(20, 60))
        model = ScriptedModel(300, script=script, peak=0.95, step_costs=STEPS, clock=clock, n_ctx=1024)
        learned = Learned(Store(None), model_key="m", cost_key="c")
        session = Session(model, Asked(Path("m.gguf")), learned, name="scripted", clock=clock)
        gone = SimpleNamespace(path=Path("m.gguf"), token_type_span=(0, 0))
        session.setup = SimpleNamespace(load=Load(gone.path, 2, 2), info=gone)
        session.staircase.watch = unwatched
        names = name_arms(settings.drafters, settings.kernels, settings.threads)
        infos = [ArmInfo(name=n.name, plain=n.plain, drafter=n.drafter, threads=2) for n in names]
        arms = [Meddled(self, SpecxArm(info, session, settings.sampling)) for info in infos]
        run = Run(
            started="2026-01-01T10:00:00+01:00",
            model={"name": "scripted", "file": "m.gguf", "type": "none"},
            machine={"cpu": "a processor", "system": "Linux"},
            build={"specx": "0"},
            settings={
                "rounds": settings.rounds, "n_predict": settings.n_predict, "caches": "cold",
                "context": 1024, "sampling": {"temperature": 0.0, "seed": 1},
            },
            baseline=settings.baseline or "none",
            arms=infos,
        )  # fmt: skip
        yield Opened(arms, {info.name: session for info in infos}, run)


class Meddled:
    """An arm whose answers pass through `meddle`."""

    def __init__(self, owner, arm):
        self.owner, self.arm = owner, arm

    @property
    def info(self):
        return self.arm.info

    def warm_up(self, case):
        return self.arm.warm_up(case)

    def answer(self, case):
        self.owner.count += 1
        return self.owner.meddle(self.owner.count, self.arm.answer(case))


@pytest.fixture
def scripted(monkeypatch):
    made = Scripted()
    monkeypatch.setattr(bench_setup, "open_bench", made.open)
    return made


@pytest.fixture
def suite(tmp_path):
    rows = [
        {"id": f"{category}-{i}", "category": category, "text": "the cat sat " * (i + 1)}
        for category in ("prose", "code")
        for i in range(3)
    ]
    path = tmp_path / "suite.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def bench(specx, scripted, suite):
    def run(*arguments):
        options = ("--suite", suite, "-n", "72", "-r", "2", "--limit", "3", "--ignore-eos")
        return specx("bench", specx.model, *options, *arguments)

    return run


@pytest.fixture
def narrow(monkeypatch):
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    console.stdout.cache_clear()  # it knows the width since it was made
    yield
    console.stdout.cache_clear()


@pytest.mark.usefixtures("narrow")
def test_the_table_says_what_was_found_and_fits_a_terminal(bench):
    outcome = bench("--drafter", "suffix")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert any(line.startswith("tokens/s") and "100.0" in line for line in lines)
    (speed,) = [line for line in lines if line.startswith("all ")]
    assert float(speed.split()[2].rstrip("x")) > 1.02 and "●" in speed
    assert any("suffix: all 12 answers identical to none" in line for line in lines)
    assert any(line.startswith("machine: ") for line in lines)
    assert max(map(len, lines)) <= 80 and "\x1b" not in outcome.out
    assert "24 answers by 2 arms: about" in outcome.err


def test_json_holds_everything_and_can_be_shown_again(bench, specx, tmp_path):
    outcome = bench("--drafter", "suffix", "-o", "json")
    data = json.loads(outcome.out)
    assert {"format", "answers", "arms", "report", "staircases", "partings", "settings"} <= set(data)
    assert len(data["answers"]) == 24 and data["partial"] is False
    assert data["report"]["rows"]["suffix"][-1]["speedup"]["ratio"]["value"] > 1
    path = tmp_path / "run.json"
    path.write_text(outcome.out)
    again = specx("bench", "--from", str(path), "-o", "json")
    assert json.loads(again.out) == data
    table = specx("bench", "--from", str(path))
    assert table.code == 0 and "suffix: all 12 answers identical" in table.out


def test_csv_has_a_line_for_each_arm_and_category(bench):
    outcome = bench("--drafter", "suffix", "-o", "csv")
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    assert sorted((row["arm"], row["category"]) for row in rows) == sorted(
        (arm, category) for arm in ("none", "suffix") for category in ("prose", "code", "all")
    )
    total = rows[-1]
    assert float(total["speedup_low"]) <= float(total["speedup"]) <= float(total["speedup_high"])
    assert total["interval_of"] == "prompts" and total["prompts"] == "6" and total["joules_per_token"] == ""
    assert (total["identical"], total["compared"]) == ("12", "12")


def test_markdown_is_a_table_for_each_arm(bench):
    lines = bench("--drafter", "suffix", "-o", "md").out.splitlines()
    assert "**suffix** against none" in lines
    tables = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in tables}) == 1 and len(tables) == 10


def test_lines_come_one_by_one_and_survive_being_cut_short(bench, specx, tmp_path):
    outcome = bench("-o", "jsonl")
    lines = outcome.out.splitlines()
    kinds = [next(iter(json.loads(line))) for line in lines]
    assert kinds == ["header", *["answer"] * 24, "end"]
    assert "report" in json.loads(lines[-1])["end"]
    path = tmp_path / "run.jsonl"
    path.write_text(outcome.out)
    whole = json.loads(specx("bench", "--from", str(path), "-o", "json").out)
    assert len(whole["answers"]) == 24 and whole["partial"] is False
    path.write_text("\n".join(lines[:12]) + "\n" + lines[12][:40])
    cut = json.loads(specx("bench", "--from", str(path), "-o", "json").out)
    assert len(cut["answers"]) == 11 and cut["partial"] is True


def test_a_result_is_kept_under_a_name_and_compared_with(bench, specx):
    assert bench("--drafter", "suffix", "--save", "monday").code == 0
    outcome = specx("bench", "--from", "monday", "--compare", "monday")
    assert outcome.code == 0, outcome.err
    assert "compared with the run of 2026-01-01" in outcome.out and "differs" not in outcome.out
    rows = [line.split() for line in outcome.out.splitlines() if line.endswith("within noise")]
    assert {(row[0], row[1]) for row in rows} >= {("none", "all"), ("suffix", "all")}
    data = json.loads(specx("bench", "--from", "monday", "--compare", "monday", "-o", "json").out)
    assert data["comparison"]["unmatched"] == 0
    unknown = bench("--compare", "tuesday")
    assert unknown.code == 1 and "monday" in unknown.err


def test_a_difference_is_told_and_fails_only_if_that_is_wanted(bench, scripted):
    def lie(count, answer):
        return replace(answer, tokens=[*answer.tokens[:5], 7]) if count == 2 else answer

    scripted.meddle = lie
    outcome = bench("--drafter", "suffix")
    assert outcome.code == 0
    assert "1 of 12 answers DIFFER" in outcome.out and "at token 6, margin" in outcome.out
    scripted.count = 0
    strict = bench("--drafter", "suffix", "--strict")
    assert strict.code == 1 and "DIFFER" in strict.out
    assert bench("--drafter", "suffix", "--strict").code == 0


def test_ctrl_c_keeps_what_was_measured(bench, scripted, specx):
    def interrupt(count, answer):
        if count == 8:
            raise KeyboardInterrupt
        return answer

    scripted.meddle = interrupt
    outcome = bench("-o", "json", "--save", "part")
    assert outcome.code == 130 and "interrupted" in outcome.err
    data = json.loads(outcome.out)
    assert len(data["answers"]) == 7 and data["partial"] is True
    assert "PARTIAL" in specx("bench", "--from", "part").out


def test_an_arm_that_breaks_does_not_lose_the_others(bench, scripted):
    def fail(count, answer):
        if count == 5:
            raise PeerError("llama-server has ended", "look at it")
        return answer

    scripted.meddle = fail
    outcome = bench("-o", "json")
    assert outcome.code == 1 and "llama-server has ended" in outcome.err
    assert len(json.loads(outcome.out)["answers"]) == 4


def test_a_picture_is_drawn(bench, specx, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "bench.png"
    assert bench("--drafter", "auto,suffix", "--plot", str(path), "--save", "x").code == 0
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 1000
    for name, begins in (("again.svg", b"<?xml"), ("again.pdf", b"%PDF-")):
        path = tmp_path / name
        assert specx("bench", "--from", "x", "--baseline", "auto", "--plot", str(path)).code == 0
        assert path.read_bytes()[:5] == begins and path.stat().st_size > 1000


def test_options_reach_the_comparison(bench, scripted, tmp_path):
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    arguments = ("--kernels", "specx,stock", "-t", "1,2", "--drafter", "none,none,auto", "--warm")
    peer = ("--peer", f"llama-server={program}", "--peer-args", "--mlock -ub 64")
    specs = ("--peer-spec", "none,ngram-mod:n-max=8,none", "--temp", "0.5", "-s", "9", "--turns", "1")
    outcome = bench(*arguments, *peer, *specs)
    assert outcome.code == 1 and "llama-server has ended" in outcome.err  # the program does nothing
    settings = scripted.settings
    assert (settings.kernels, settings.threads) == (["specx", "stock"], [1, 2])
    assert settings.drafters == ["none", "none", "auto"] and settings.warm and settings.turns == 1
    assert (settings.peer, settings.peer_arguments) == (program, ["--mlock", "-ub", "64"])
    assert settings.peer_specs == ["", "ngram-mod:n-max=8"]
    assert (settings.sampling.temperature, settings.sampling.seed) == (0.5, 9)
    assert (settings.asked.threads, settings.asked.kernels) == (1, "specx")


@pytest.mark.parametrize(
    ("drafters", "opened"),
    [
        (("none",), "none"),
        (("none", "free"), "free"),
        (("none", "free", "auto"), "auto"),
        (("none", "auto", "model"), "model"),
    ],
)
def test_all_arms_are_possible_in_the_session_that_is_opened(drafters, opened):
    assert bench_setup.opened_with(drafters) == opened


def test_a_draft_model_is_known_though_the_first_arm_does_without(bench, scripted, tmp_path):
    draft = tmp_path / "draft.gguf"
    draft.write_bytes(b"GGUF")
    done = bench("--drafter", "none,free,model", "-md", draft)
    assert "is not used" not in done.err
    assert scripted.settings.asked.draft.model == draft and scripted.settings.asked.drafter == "model"


def test_synthetic_work_is_measured(specx, scripted):
    outcome = specx("bench", specx.model, "--synthetic", "pp32,tg32", "-r", "2", "-o", "csv")
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    assert {row["category"] for row in rows} == {"pp32", "tg32", "all"}
    assert float(next(r for r in rows if r["category"] == "tg32")["tokens_per_s"]) == pytest.approx(100)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "xml"), "-o/--output is 'xml'"),
        (("--drafter", "auto,magic"), "'magic'"),
        (("--drafter", "auto,My-Head.gguf"), "there is no 'My-Head.gguf'"),
        (("--drafter", "My-Head.gguf"), "given with -md"),
        (("--kernels", "fast"), "--kernels is 'fast'"),
        (("-t", "two"), "-t/--threads is 'two'"),
        (("-t", "0"), "-t/--threads is '0'"),
        (("-t", "1,1000"), "at most 512 threads"),
        (("-r", "0"), "-r/--repeats is 0"),
        (("-n", "0"), "-n/--n-predict is 0"),
        (("--limit", "-1"), "--limit is -1"),
        (("--plot", "x.txt"), "x.txt is no picture"),
        (("--save", "../x"), "cannot name a result"),
        (("--peer", "vllm=/x"), "--peer is 'vllm=/x'"),
        (("--categories", "poetry"), "poetry"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_measured(specx, scripted, arguments, said):
    outcome = specx("bench", specx.model, *arguments)
    assert outcome.code == 2 and said in outcome.err
    assert scripted.count == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--plot", "no/such/x.png"), "no folder"),
        (("--save", "no/such/x.json"), "no folder"),
        (("--compare", "never"), "there is no result never"),
        (("--from", "never"), "there is no result never"),
        (("--peer", "llama-server=/no/such"), "no program"),
        (("--suite", "no-such-suite"), "no-such-suite"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_measured(specx, scripted, arguments, said):
    outcome = specx("bench", specx.model, *arguments)
    assert outcome.code == 1 and said in outcome.err
    assert scripted.count == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--peer-args", "-ub 64"), "--peer-args is not used, because no --peer is named"),
        (("--peer-spec", "none"), "--peer-spec is not used, because no --peer is named"),
        (("--synthetic", "tg8", "--suite", "chat"), "--suite is not used, because --synthetic says"),
        (("--synthetic", "tg8", "--categories", "chat"), "--categories is not used, because --synthetic"),
    ],
)
def test_what_is_not_used_is_told(bench, arguments, said):
    outcome = bench(*arguments)
    assert outcome.code == 0 and said in outcome.err


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', "null", "\x00", "[" * 100_000])
def test_what_is_no_result_is_refused(specx, tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    outcome = specx("bench", "--from", str(path))
    assert outcome.code == 2 and "no result of specx bench" in outcome.err


def test_a_suite_that_does_not_fit_says_what_to_do(specx, scripted, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"id": "long", "text": "the cat sat " * 900}))
    outcome = specx("bench", specx.model, "--suite", str(path))
    assert outcome.code == 2 and "-c" in outcome.err and "left out: long#0" in outcome.err


def test_without_matplotlib_a_picture_is_refused_before_anything_is_measured(specx, scripted, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcome = specx("bench", specx.model, "--plot", "x.png")
    assert outcome.code == 2 and "pip install 'matplotlib>=" in outcome.err and scripted.count == 0
