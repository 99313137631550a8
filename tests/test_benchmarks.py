"""The pure parts of benchmarks/: which prompts are measured, what is kept, and what follows from it."""

from __future__ import annotations

import importlib
import json
import math
import mmap
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        names = ("prompts", "results", "arms", "compare", "widen_gguf", "replay", "simulate")
        names += ("kernel_quality", "kernel_memory")
        yield {name: importlib.import_module(name) for name in names}


@pytest.fixture
def prompts(modules):
    return modules["prompts"]


@pytest.fixture
def results(modules):
    return modules["results"]


@pytest.fixture
def make(results):
    def make(
        case="a#0", arm="server", *, repeat=0, category="code", n=100, ms=1000.0, steps=50, tokens=(1, 2)
    ):
        return results.Measurement(
            case=case,
            category=category,
            arm=arm,
            repeat=repeat,
            prompt_n=10,
            prompt_ms=5.0,
            predicted_n=n,
            decode_ms=ms,
            steps=steps,
            draft_n=60,
            draft_n_accepted=50,
            host_ms=None if arm.startswith("server") else 25.0,
            tokens=list(tokens),
            text="é\n",
        )

    return make


class FakeArm:
    """Answers with the length of its prompt, and counts its answers."""

    def __init__(self, modules, name):
        self.name = name
        self.asked = []
        self._answer = modules["arms"].Answer

    def answer(self, prompt, n_predict):
        self.asked.append(list(prompt))
        return self._answer(
            prompt_n=len(prompt),
            prompt_ms=1.0,
            predicted_n=n_predict,
            decode_ms=10.0,
            steps=n_predict,
            draft_n=0,
            draft_n_accepted=0,
            host_ms=0.5,
            tokens=[len(prompt)],
            text=f"{self.name} read {len(prompt)}",
        )


class FakeSession:
    n_ctx = 4096

    @staticmethod
    def tokenize(text, *, add_special, parse_special):
        return list(text.encode())


class FakeTemplate:
    @staticmethod
    def render(messages, tools=None):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)

    @staticmethod
    def tokenize(text, tokenize):
        return tokenize(text, add_special=True, parse_special=True)


# --- prompts ------------------------------------------------------------------------------------------------


def write_prompts(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_prompts_are_read_and_cut_to_their_first_turns(prompts, tmp_path):
    rows = [
        {"id": "a", "category": "talk", "turns": ["one", "two", "three"]},
        {
            "id": "b",
            "category": "agent",
            "messages": [{"role": "user", "content": "hi"}],
            "tools": [{"x": 1}],
        },
    ]
    talk, agent = prompts.read_prompts([write_prompts(tmp_path / "p.jsonl", rows)], max_turns=2)
    assert (talk.turns, talk.n_turns) == (("one", "two"), 2)
    assert (agent.n_turns, agent.tools) == (1, ({"x": 1},))
    assert agent.conversation([]) == [{"role": "user", "content": "hi"}]
    assert talk.conversation([]) == [{"role": "user", "content": "one"}]
    assert [m["content"] for m in talk.conversation(["answer"])] == ["one", "answer", "two"]


@pytest.mark.parametrize(
    "row",
    [
        {"id": "a", "category": "x"},
        {"id": "a", "turns": ["one"]},
        {"id": "a", "category": "x", "turns": ["one"], "messages": [{"role": "user", "content": "hi"}]},
        ["not an object"],
    ],
)
def test_what_is_no_prompt_is_named_with_its_line(prompts, tmp_path, row):
    path = write_prompts(tmp_path / "p.jsonl", [{"id": "ok", "category": "x", "turns": ["one"]}, row])
    with pytest.raises(ValueError, match=r"p\.jsonl:2"):
        prompts.read_prompts([path], max_turns=1)


def test_an_id_that_occurs_twice_is_refused(prompts, tmp_path):
    path = write_prompts(tmp_path / "p.jsonl", [{"id": "a", "category": "x", "turns": ["one"]}] * 2)
    with pytest.raises(ValueError, match="occurs twice"):
        prompts.read_prompts([path], max_turns=1)


def test_a_sample_is_even_repeatable_and_grows(prompts):
    rows = [prompts.Prompt(f"{c}{i}", c, ("x",)) for c in ("code", "math") for i in range(20)]
    few, many = prompts.sample(rows, 3, seed=1), prompts.sample(rows[::-1], 5, seed=1)
    assert sorted(p.category for p in few) == ["code"] * 3 + ["math"] * 3
    assert set(few) < set(many)
    assert set(few) != set(prompts.sample(rows, 3, seed=2))
    assert len(prompts.sample(rows, None, seed=1)) == 40


# --- results ------------------------------------------------------------------------------------------------


def test_results_survive_a_run_and_a_torn_line(results, make, tmp_path):
    path = tmp_path / "r.jsonl"
    first = results.Results(path, {"model": "m"}, resume=False)
    first.add(make())
    first.add(make(arm="specx:auto"))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"case": "b#0", "cat')
    again = results.Results(path, {"model": "m"}, resume=True)
    assert again.measurements == first.measurements
    assert path.read_bytes() == whole
    again.add(make("b#0"))
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()][-1] == asdict(make("b#0"))


def test_a_file_is_never_mixed_with_another_run(results, tmp_path):
    path = tmp_path / "r.jsonl"
    results.Results(path, {"model": "m", "threads": 2}, resume=False)
    with pytest.raises(ValueError, match="--resume"):
        results.Results(path, {"model": "m", "threads": 2}, resume=False)
    with pytest.raises(ValueError, match=r"other settings \(threads\)"):
        results.Results(path, {"model": "m", "threads": 4}, resume=True)


def test_ratios_are_paired_by_case_over_the_median_of_repeats(results, make):
    rows = [make(repeat=n, ms=ms) for n, ms in enumerate((900.0, 1000.0, 5000.0))]
    rows += [make(arm="specx:auto", repeat=n, ms=ms) for n, ms in enumerate((400.0, 500.0, 800.0))]
    rows += [make("only-server#0"), make("only-specx#0", "specx:auto")]
    rows += [make("short#0", n=results.SHORT - 1), make("short#0", "specx:auto", n=results.SHORT - 1)]
    ratios = results.paired_ratios(rows, "specx:auto", "server", lambda m: m.rate)
    assert ratios == {"a#0": pytest.approx(2.0)}


def test_spread_is_what_numpy_says(results):
    values = [0.8, 1.7, 2.4, 1.1, 3.0, 1.9]
    found = results.spread(values)
    assert found.n == 6
    assert [found.low, found.median, found.high] == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))
    assert found.geometric == pytest.approx(math.prod(values) ** (1 / 6))
    assert results.spread([]) is None
    assert results.spread([1.5]).low == results.spread([1.5]).high == 1.5


def test_the_report_shows_losses_and_differences(results, make):
    rows = [make("a#0"), make("a#0", "specx:auto", ms=500.0), make("b#0", category="math")]
    rows += [make("b#0", "specx:auto", category="math", ms=1250.0, tokens=(1, 3))]
    text = results.report(rows, ["specx:auto", "server"], "server")
    cells = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "| code | 1 | 2.00 | 2.00 to 2.00 | 2.00 | 2.00 | 2.00 | 0.50 |" in text
    assert "| math | 1 | 0.80 |" in text
    assert cells["all"].startswith("| all | 2 | 1.40 |")
    assert "| 0.80 | 2.00 | 0.50 |" in cells["all"]
    assert cells["specx:auto"] == "| specx:auto | 2 of 2 | 1 of 2 |"


# --- arms and the run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("server", ""),
        ("server:ngram-mod", "--spec-type ngram-mod"),
        (
            "server:ngram-mod:n-min=2,n-max=8",
            "--spec-type ngram-mod --spec-ngram-mod-n-min 2 --spec-ngram-mod-n-max 8",
        ),
    ],
)
def test_an_arms_name_says_how_its_server_is_started(modules, name, expected):
    assert " ".join(modules["arms"].server_arguments(name)) == expected


def test_the_order_of_arms_changes_with_the_case_and_reverses(modules):
    schedule = modules["compare"].schedule
    arms = [FakeArm(modules, name) for name in "abcd"]
    once = [arm.name for _, arm in schedule(arms, 1, "0:case")]
    twice = schedule(arms, 2, "0:case")
    assert sorted(once) == list("abcd")
    assert [arm.name for _, arm in twice] == once + once[::-1]
    assert [n for n, _ in twice] == [0] * 4 + [1] * 4
    assert len({tuple(arm.name for _, arm in schedule(arms, 1, f"0:{i}")) for i in range(20)}) > 5


def converse(modules, prompt, arms, results):
    arguments = modules["compare"].parse(
        ["--model", "m", "--prompts", "p", "--output", "o", "--n-predict", "20", "--arms", "specx:none"]
    )
    modules["compare"].converse(prompt, arms, FakeSession(), FakeTemplate(), arguments, results)


def test_every_arm_gets_the_same_prompts_and_a_resumed_run_asks_only_for_the_rest(modules, tmp_path):
    prompt = modules["prompts"].Prompt("p", "talk", ("first", "second"))
    results = modules["results"]
    arms = [FakeArm(modules, name) for name in ("specx:none", "other")]
    kept = results.Results(tmp_path / "r.jsonl", {}, resume=False)
    converse(modules, prompt, arms, kept)
    expected = "<user>first<assistant>specx:none read 11<user>second"
    assert arms[0].asked == arms[1].asked == [list(b"<user>first"), list(expected.encode())]

    lines = (tmp_path / "r.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "r.jsonl").write_bytes(b"".join(lines[:-1]))
    again = [FakeArm(modules, arm.name) for arm in arms]
    resumed = results.Results(tmp_path / "r.jsonl", {}, resume=True)
    converse(modules, prompt, again, resumed)
    assert sum(len(arm.asked) for arm in again) == 1
    assert resumed.measurements.keys() == kept.measurements.keys()


def test_a_prompt_that_does_not_fit_is_left_out_loudly(modules, tmp_path, capsys):
    prompt = modules["prompts"].Prompt("long", "talk", ("x" * 4080,))
    arm = FakeArm(modules, "specx:none")
    kept = modules["results"].Results(tmp_path / "r.jsonl", {}, resume=False)
    converse(modules, prompt, [arm], kept)
    assert (arm.asked, kept.measurements) == ([], {})
    assert "left out: long" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--arms", "server"], ["--arms", "vllm"], ["--baseline", "specx:recycle"]]
)
def test_a_wrong_command_line_is_refused(modules, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        modules["compare"].parse(["--model", "m", "--prompts", "p", "--output", "o", *arguments])
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


STUB_SERVER = """#!{python}
import http.server, json, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({{"status": "ok"}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        timings = {{"prompt_n": len(asked["prompt"]), "prompt_ms": 1.5}}
        timings |= {{"predicted_n": 4, "predicted_ms": 8.0}}
        if "--spec-type" in sys.argv:
            timings |= {{"draft_n": 5, "draft_n_accepted": 3}}
        if asked["prompt"] == [13]:
            timings["prompt_n"] = 2
        self.reply({{"content": "text", "tokens": [5, 6, os.getpid(), 2], "timings": timings}})

    def reply(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def stub_server(tmp_path):
    path = tmp_path / "llama-server"
    path.write_text(STUB_SERVER.format(python=sys.executable))
    path.chmod(0o755)
    return path


def test_a_server_that_remembers_is_started_anew_for_each_answer(modules, stub_server):
    arm = modules["arms"].ServerArm
    with arm("server", stub_server, [], frozenset({2})) as plain:
        first, second = plain.answer([1, 2, 3], 4), plain.answer([1, 2, 3], 4)
    assert first == second
    assert (first.prompt_n, first.predicted_n, first.decode_ms, first.steps) == (3, 4, 8.0, 4)
    assert first.tokens[:2] == [5, 6]
    assert 2 not in first.tokens
    with arm("server:ngram-mod", stub_server, [], frozenset({2})) as speculating:
        first, second = speculating.answer([1, 2, 3], 4), speculating.answer([1, 2, 3], 4)
    assert first.tokens != second.tokens  # the stub answers with its process id
    assert (first.steps, first.draft_n, first.draft_n_accepted) == (1, 5, 3)


def test_a_server_that_reads_another_prompt_or_dies_is_an_error(modules, stub_server):
    arm = modules["arms"].ServerArm
    with (
        arm("server", stub_server, [], frozenset()) as plain,
        pytest.raises(RuntimeError, match="read 2 tokens of 1"),
    ):
        plain.answer([13], 4)
    stub_server.write_text("#!/bin/sh\necho no such model; exit 1\n")
    with (
        pytest.raises(RuntimeError, match="server has died: no such model"),
        arm("server", stub_server, [], ()),
    ):
        pass


# --- widening -----------------------------------------------------------------------------------------------


def test_a_widened_norm_and_matrix_compute_the_same(modules):
    """The first dimensions of norm-then-matrix do not notice the added ones."""
    tool = modules["widen_gguf"]
    narrow, wide = tool.Shape(8, 12, 2, 1, 4), tool.Shape(24, 32, 6, 3, 4)
    assert narrow.rows_and_columns("blk.0.attn_q.weight", 5) == (8, 8)
    assert wide.rows_and_columns("blk.0.ffn_down.weight", 5) == (24, 32)
    assert wide.rows_and_columns("token_embd.weight", 5) == (5, 24)
    with pytest.raises(ValueError, match="attn_q_norm"):
        wide.rows_and_columns("blk.0.attn_q_norm.weight", 5)

    rng = np.random.default_rng(0)
    tensors = [
        fake_tensor("blk.0.attn_norm.weight", rng.normal(size=8)),
        fake_tensor("blk.0.attn_q.weight", rng.normal(size=(8, 8))),
    ]
    made = dict(tool.widened(FakeReader(tensors), narrow, wide))
    hidden = rng.normal(size=8)
    expected = tensors[1].data @ (rms(hidden, 1e-5) * tensors[0].data)
    grown = np.concatenate([hidden, np.zeros(16)])
    found = made["blk.0.attn_q.weight"] @ (rms(grown, 1e-5 * 8 / 24) * made["blk.0.attn_norm.weight"])
    assert found.shape == (24,)
    assert found[:8] == pytest.approx(expected, rel=1e-5)
    assert not found[8:].any()


def rms(x, epsilon):
    return x / np.sqrt(np.mean(x * x) + epsilon)


class FakeReader:
    def __init__(self, tensors):
        self.tensors = tensors


def fake_tensor(name, data):
    from gguf import GGMLQuantizationType, ReaderTensor

    data = data.astype(np.float32)
    kind = GGMLQuantizationType.F32
    return ReaderTensor(name, kind, np.array(data.shape[::-1]), data.size, data.nbytes, 0, data, None)


def trace_of(modules, output, category="code"):
    """A recording: at each position the best token is the one that came, the next seven never come."""
    prompt = np.arange(100, 120, dtype=np.int32)
    output = np.array(output, np.int32)
    following = np.concatenate((prompt[1:], output, [0]))
    ids = np.stack([following, *(np.full(len(following), 900 + i) for i in range(7))], axis=1)
    logits = np.tile(np.arange(8, 0, -1), (len(following), 1))
    return modules["replay"].Trace(category, prompt, output, ids.astype(np.int32), logits.astype(np.float32))


FLAT_STEPS = {"0": {"1": 10.0, "64": 12.0}}
STEEP_STEPS = {"0": {"1": 10.0, "64": 640.0}}


@pytest.mark.parametrize("chain", [False, True])
def test_simulated_decoding_gains_by_repetition_and_loses_no_more_than_the_budget(modules, chain):
    simulate = modules["simulate"]
    novel, repeating = range(200, 392), list(range(200, 216)) * 12
    for steps, output, least, most in (
        (FLAT_STEPS, repeating, 4, 64),
        (FLAT_STEPS, novel, 0.9, 1.001),
        (STEEP_STEPS, repeating, 0.9, 1.1),
        (STEEP_STEPS, novel, 0.9, 1.001),
    ):
        [[out]] = simulate.simulate([trace_of(modules, output)], steps, warm=False, chain=chain).values()
        assert out.plain == pytest.approx((len(output) - 1) * (10 + simulate.HOST_MS / 3))
        assert least < out.plain / out.plan < most
        assert out.oracle <= out.plan * (1 + 1e-9)
    assert out.accepted == 0


def test_what_was_learned_from_one_recording_serves_the_next(modules):
    simulate, output = modules["simulate"], list(range(200, 392))
    traces = [trace_of(modules, output), trace_of(modules, output)]
    times = {
        warm: [out.plan for out in simulate.simulate(traces, FLAT_STEPS, warm=warm, chain=True)["code"]]
        for warm in (False, True)
    }
    assert times[False][0] == times[False][1] == times[True][0]
    assert times[True][1] < 0.5 * times[True][0]
    assert simulate.report("flat", {"code": [simulate.Outcome(10, 5, 4, 3, 2)]}) == {
        "speed": pytest.approx(2),
        "worst_category": pytest.approx(2),
        "slowest": pytest.approx(2),
        "of_oracle": pytest.approx(0.8),
    }


def test_distances_of_logits_are_those_of_the_definition(modules):
    quality = modules["kernel_quality"]
    expected = quality.log_softmax(np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32)))
    actual = quality.log_softmax(np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], np.float32)) + 3)
    nats = quality.divergence(expected, actual)
    assert nats == pytest.approx([0.25 * math.log(2), 0], abs=1e-6)
    distance = quality.Distance()
    distance.add(expected, actual)
    distance.add(expected, expected)
    assert (len(distance.divergences), distance.agreements) == (4, 3)
    assert distance.cells()[2] == "75.00%"


def test_arms_are_compared_with_each_reference_that_was_computed(modules):
    quality = modules["kernel_quality"]
    rows = {arm: quality.log_softmax(np.zeros((2, 5), np.float32)) for arm in quality.ARMS}
    rows[quality.REFERENCE] = quality.log_softmax(np.eye(2, 5, dtype=np.float32))
    found = {quality.REFERENCE.name: {arm: quality.Distance() for arm in quality.ARMS}}
    quality.compare(rows, found)
    lines = quality.report(found).splitlines()
    assert len(lines) == 2 + len(quality.ARMS)
    assert all(line.startswith("| stock, 8 a step | ") and "50.00%" in line for line in lines[2:])


def test_text_for_kernels_is_the_same_for_a_seed_and_long_enough(modules, prompts):
    quality = modules["kernel_quality"]
    said = [prompts.Prompt(str(i), "code", turns=(f"text {i}", "more")) for i in range(20)]
    said.append(prompts.Prompt("messages", "code", messages=({"role": "user", "content": "no turns"},)))
    text = quality.passages(said, 3)
    assert text == quality.passages(said, 3) != quality.passages(said, 4)
    assert sorted(text.split("\n\n")) == sorted(f"text {i}" for i in range(20))
    cut = quality.windows(range(100), 25, 10)
    assert [len(window) for window in cut] == [10, 10, 5]
    assert np.concatenate(cut).tolist() == list(range(25))
    with pytest.raises(ValueError, match="have 100 tokens"):
        quality.windows(range(100), 101, 10)
    with pytest.raises(ValueError, match="has turns"):
        quality.passages(said[-1:], 0)


def test_memory_is_reported_as_ratios_to_stock(modules):
    memory = modules["kernel_memory"]
    usages = [
        {"mapped": 300e6, "read": 200e6, "load_s": 2.0, "ready_s": 5.0},
        {"mapped": 310e6, "read": 190e6, "load_s": 1.0, "ready_s": 6.0},
    ]
    least = memory.least(usages)
    assert least == {"mapped": 300e6, "read": 190e6, "load_s": 1.0, "ready_s": 5.0}
    twice = {name: 2 * value for name, value in least.items()}
    last = memory.report({"m.gguf": {"stock": least, "specx": twice}}).splitlines()[-1]
    assert last == "| m.gguf | specx | 600 (2.00) | 380 (2.00) | 2.00 (2.00) | 10.00 (2.00) |"


def test_resident_memory_grows_with_what_is_written(modules):
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    resident = modules["kernel_memory"].resident
    size = 1 << 25
    before = resident()
    with mmap.mmap(-1, size) as fresh:  # an array might get memory that was freed before
        fresh.write(bytes(1) * size)
        assert 0.9 * size < resident() - before < 3 * size
