"""The pure parts of benchmarks/: widening a model, simulated decoding, what kernels change."""

from __future__ import annotations

import importlib
import json
import math
import mmap
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from specx.backends.machine.machine import this_cpu
from specx.backends.scripted import ScriptedModel
from specx.backends.store import Store
from specx.engine.bench.suites import Prompt
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        names = ("widen_gguf", "replay", "simulate", "kernel_quality", "kernel_memory", "mapping", "startup")
        names += ("predictions", "neighbour", "serve")
        yield {name: importlib.import_module(name) for name in names}


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
    norm = fake_tensor("blk.0.attn_norm.weight", rng.normal(size=8))
    weights = fake_tensor("blk.0.attn_q.weight", rng.normal(size=(8, 8)))
    widening = tool.Widening(narrow, wide, scaled=False)
    [matrix] = tool.matrix(weights, widening)
    hidden = rng.normal(size=8)
    expected = weights.data @ (rms(hidden, 1e-5) * norm.data)
    grown = np.concatenate([hidden, np.zeros(16)])
    found = matrix @ (rms(grown, 1e-5 * widening.epsilon_factor) * tool.vector(norm, widening))
    assert found.shape == (24,)
    assert found[:8] == pytest.approx(expected, rel=1e-5)
    assert not found[8:].any()


def test_blocks_are_widened_as_they_are(modules):
    """What is added is not reached by old inputs, and is no zero but in the hidden state."""
    from gguf import GGMLQuantizationType, ReaderTensor
    from gguf.quants import dequantize, quantize

    tool, kind = modules["widen_gguf"], GGMLQuantizationType.Q4_0
    narrow, wide = tool.Shape(32, 64, 2, 1, 16), tool.Shape(96, 160, 6, 3, 16)
    values = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    blocks = quantize(values, kind)

    def widened(name):
        tensor = ReaderTensor(name, kind, np.array([32, 64]), 64 * 32, blocks.nbytes, 0, blocks, None)
        return dequantize(tool.widened_blocks(tensor, tool.Widening(narrow, wide, scaled=False)), kind)

    up, embedding = widened("blk.0.ffn_up.weight"), widened("token_embd.weight")
    assert up.shape == (160, 96) and embedding.shape == (64, 96)
    for found in (up, embedding):
        assert (found[:64, :32] == dequantize(blocks, kind)).all()
    assert not up[64:, :32].any() and up[:, 32:].any(axis=1).all()
    assert not embedding[:, 32:].any()
    with pytest.raises(ValueError, match="no multiple of its blocks of 32"):
        odd = tool.Shape(100, 160, 6, 3, 16)
        tensor = ReaderTensor("blk.0.ffn_up.weight", kind, np.array([32, 64]), 0, 0, 0, blocks, None)
        tool.widened_blocks(tensor, tool.Widening(narrow, odd, scaled=False))


def rms(x, epsilon):
    return x / np.sqrt(np.mean(x * x) + epsilon)


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


def test_answers_to_other_prompts_of_the_category_are_searched_as_a_corpus(modules):
    simulate, output = modules["simulate"], list(range(200, 392))
    alike = [trace_of(modules, output), trace_of(modules, output)]
    apart = [trace_of(modules, output), trace_of(modules, output, "math")]
    for warm in (False, True):
        with_it, without, elsewhere = (
            [
                out.plan
                for group in simulate.simulate(
                    traces, FLAT_STEPS, warm=warm, chain=True, corpus=corpus
                ).values()
                for out in group
            ]
            for traces, corpus in ((alike, True), (alike, False), (apart, True))
        )
        assert with_it[0] < 0.5 * without[0] and with_it[1] < 1.05 * without[1]
        assert elsewhere[0] == without[0]


def test_the_simulation_reports_shares_of_the_oracle_and_of_the_best_fixed_width(modules):
    simulate = modules["simulate"]
    plain = dict.fromkeys(simulate.FIXED, 10.0)
    code = simulate.Outcome(10, 5, 4, {**plain, 8: 4.0, 4: 6.0}, 3, 2)
    chat = simulate.Outcome(10, 10, 8, {**plain, 8: 40.0, 4: 8.0}, 3, 2)
    found = simulate.report("flat", {"code": [code], "chat": [chat]})
    expected = {
        "speed": 2**0.5,
        "of_best_fixed": (48 / 50) ** 0.5,  # 4 is the best for both, 8 for code alone
        "worst_category": 1,
        "worst_median": 1,
        "worst_of_its_best_fixed": 0.8,
        "slowest": 1,
        "of_oracle": 0.8,
    }
    assert found == {name: pytest.approx(value) for name, value in expected.items()}


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


def asked(name, *turns):
    return Prompt(name, "code", messages=tuple({"role": "user", "content": text} for text in turns))


def test_text_for_kernels_is_the_same_for_a_seed_and_long_enough(modules):
    quality = modules["kernel_quality"]
    said = [asked(str(i), f"text {i}", "more") for i in range(20)]
    said.append(Prompt("raw", "code", text="nobody said this"))
    text = quality.passages(said, 3)
    assert text == quality.passages(said, 3) != quality.passages(said, 4)
    assert sorted(text.split("\n\n")) == sorted(f"text {i}" for i in range(20))
    cut = quality.windows(range(100), 25, 10)
    assert [len(window) for window in cut] == [10, 10, 5]
    assert np.concatenate(cut).tolist() == list(range(25))
    with pytest.raises(ValueError, match="have 100 tokens"):
        quality.windows(range(100), 101, 10)
    with pytest.raises(ValueError, match="a user's alone"):
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


def test_a_draft_model_is_right_as_far_as_it_says_what_the_target_says(modules):
    """Both write these letters one by one, so its own continuation and the mapped one are the same."""
    mapping = modules["mapping"]
    script = ScriptedModel(300).vocab.tokenize(b"qxzjkvbpqzxkjpvb", add_special=False, parse_special=False)
    model = ScriptedModel(300, script=script, peak=0.99, max_texts=2)
    output = [*script[6:11], script[0], script[12], script[13]]
    answer = mapping.Answer("code", script[:6], output)

    own, mapped = (mapping.source_of(model, 512, target) for target in (None, ScriptedModel(320).vocab))
    mapped.finish(mapped.open())
    alone = mapping.OwnContinuation(own, mapped.byte_map, answer)
    drafting = mapping.Mapped(mapped, answer)
    for at, right in ((0, 4), (4, 1)):
        following = output[at : at + 4]
        assert (alone.right(following), drafting.right(following)) == ((right, right), right)
        alone.said(following)
        drafting.said(following)


def test_tokens_kept_by_a_mapping_are_counted_by_category(modules, capsys):
    mapping = modules["mapping"]
    count = mapping.Count()
    for own, made, mapped in ((4, 4, 4), (3, 2, 2), (0, 0, 1), (1, 0, 0)):
        count.add(own, made, mapped)
    assert count == mapping.Count(4, 8, 6, 7, 3, 3)
    times = mapping.Times()
    times.inside, times.total = 2.0, 2.1
    times.cpu_inside, times.cpu_total = 3.0, 3.0 + 0.3 / this_cpu().default_threads
    mapping.report({"code": count, "math": mapping.Count(1, 1, 1, 1, 1, 1)}, times)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["mapping_time"] == pytest.approx(0.05)
    assert found["mapping_cpu_time"] == pytest.approx(0.1)
    assert found["counts"]["code"]["kept"] == 7 / 8
    assert found["counts"]["all"] == {
        "places": 5,
        "own": 9,
        "made": 7,
        "mapped": 8,
        "own_first": 4,
        "mapped_first": 4,
        "kept": 8 / 9,
    }


def test_starts_are_compared_pair_by_pair(modules):
    startup = modules["startup"]
    taken = startup.Taken
    pairs = [(taken(0.5 + i, 0.4), taken(0.3 + i, 0.1)) for i in range(9)]
    row = startup.summary("a model", pairs)
    assert row.own.wall == 4.5 and row.peer.wall == 4.3
    assert row.paired == pytest.approx((0.2, 0.3)) and row.interval == pytest.approx((0.2, 0.2))
    assert startup.summary("files", [(taken(3, 2), taken(2, 1))], ratio=True).paired == (1.5, 2)
    alone = startup.summary("--help", [(taken(1, 1), None)])
    assert alone.peer is None and alone.paired is None
    assert "a model" in startup._table([row, alone]) and "+0.200 +0.300" in startup._table([row, alone])


def test_drafts_whose_gain_is_measured_do_not_know_the_plain_answer(modules):
    """An answer is remembered, and a text that is asked for again is found in full."""
    answer = modules["predictions"]._answer
    script = np.random.default_rng(3).permutation(np.arange(4, 124)).tolist()  # nothing comes twice
    prompt = script[:20]

    def session():
        model = ScriptedModel(128, script=script, peak=1.0 - 1e-9, n_ctx=256)
        asked = Asked(Path("scripted.gguf"), drafter="free", store=False)
        found = Session(model, asked, Learned(Store(None), model_key="m", cost_key="c"), name="scripted")
        found.staircase.load_json({"0": {"1": 10.0, "64": 12.0}})
        return found

    drafted, plain = modules["predictions"].both_answers(session(), prompt, "free", 60)
    assert drafted.tokens == plain.tokens == script[20:80]
    assert drafted.timings.draft_n_accepted == 0
    told = session()
    answer(told, prompt, "none", 60)
    assert answer(told, prompt, "free", 60).timings.draft_n_accepted > 30


def test_servers_take_turns_and_their_texts_are_compared(modules, monkeypatch):
    serve = modules["serve"]
    asked = []

    def drive(server, cases, clients):
        asked.append((server, clients))
        odd = server == "b" and clients == 8
        texts = [f"{case}!" if odd and case == 3 else str(case) for case in cases]
        return 2.0 / clients, [SimpleNamespace(tokens=10, text=text) for text in texts]

    monkeypatch.setattr(serve, "answer", lambda *_: None)
    monkeypatch.setattr(serve, "drive", drive)
    found = serve.throughput({name: partial(nullcontext, name) for name in "ab"}, range(4), 2)
    assert asked[8:] == asked[:8][::-1] and {server for server, _ in asked[:8]} == {"a", "b"}
    assert found["a"]["8 over 1"].median == 8 and found["a"]["1"].median == 10
    assert [found[name]["same text"] for name in "ab"] == [4, 3]
    assert [modules["neighbour"].in_turn(["a", "b", "c"], n)[0] for n in range(4)] == ["a", "b", "c", "a"]
