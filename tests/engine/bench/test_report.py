"""What is reported of a benchmark: known truths under simulated noise."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from specx.engine.bench.compare import compare_runs
from specx.engine.bench.identity import find_partings
from specx.engine.bench.records import SHORT, Answer, ArmInfo, Parting, Run
from specx.engine.bench.report import ALL, Pairs, make_report, sample_answer

PROMPTS, ROUNDS, TOKENS = 20, 3, 128  # what `specx bench` does by default, with its ten categories
CATEGORIES = 10
STEP_MS = 10.0


def answer(case="a#0", arm="none", **given):
    values = {
        "category": "code",
        "prompt": "p",
        "prompt_n": 20,
        "prompt_ms": 40.0,
        "first_token_ms": 50.0,
        "predicted_n": 100,
        "decode_ms": 1000.0,
        "steps": 100,
        "tokens": [1, 2, 3],
    }
    return Answer(case=case, arm=arm, **{**values, **given})


def a_run(answers, arms=("none", "auto"), **given):
    return Run(
        started="2026-01-01T10:00:00+01:00",
        model={"name": "m", "file": "m.gguf", "type": "Q4_0"},
        machine={"cpu": "a processor", "load": 1},
        build={"specx": "0.1.0"},
        settings={"rounds": ROUNDS},
        baseline=given.pop("baseline", "none"),
        arms=[ArmInfo(name=name, plain="none", drafter=name, threads=2) for name in arms],
        answers=list(answers),
        **given,
    )


def simulated(rng, factor=1.0, *, spread=0.0, arms=("none", "auto"), drift=0.0):
    """Answers of two arms that take turns; the second is `factor` times as fast, on average over prompts.

    Steps vary by 1%, answers by 2%, one answer in 14 has a hiccup, and a prompt's factor varies by `spread`.
    """
    answers, now = [], 0.0
    gains = rng.normal(0, spread, PROMPTS)
    gains -= gains.mean()
    for number in range(ROUNDS):
        for prompt in range(PROMPTS):
            order = arms if (prompt + number) % 2 else arms[::-1]
            for arm in order:
                speed = 1.0 if arm == arms[0] else factor * math.exp(gains[prompt])
                ms = STEP_MS / speed * math.exp(rng.normal(0, 0.02) + drift * now / 160)
                ms *= 1 + (rng.random() < 1 / 14) * rng.exponential(0.15)
                steps = (ms * np.exp(rng.normal(0, 0.01, TOKENS))).tolist()
                case, category = f"{prompt}#0", f"c{prompt % CATEGORIES}"
                answers.append(
                    answer(
                        case, arm, category=category, round=number, started_s=now, predicted_n=TOKENS,
                        decode_ms=sum(steps), steps=TOKENS, step_ms=steps, step_width=[1] * TOKENS,
                        step_tokens=[1] * TOKENS,
                    )
                )  # fmt: skip
                now += sum(steps) / 1e3
    return a_run(answers, arms)


def overall(run, arm="auto"):
    return make_report(run).rows[arm][-1].speedup


def test_an_arm_against_itself_shows_one_within_its_interval():
    covered = sum(not overall(simulated(np.random.default_rng(i))).ratio.excludes(1.0) for i in range(100))
    assert covered >= 95


def test_a_category_of_few_prompts_has_the_interval_of_repeating_them():
    covered = total = 0
    for i in range(60):
        rows = make_report(simulated(np.random.default_rng(i))).rows["auto"][:-1]
        assert all(row.speedup.basis == "repeats" and row.speedup.prompts == 2 for row in rows)
        covered += sum(not row.speedup.ratio.excludes(1.0) for row in rows)
        total += len(rows)
    assert 0.93 * total <= covered < total  # 95% are promised; hiccups make the tails heavy


def test_the_interval_holds_a_true_speedup_that_differs_between_prompts():
    found = [overall(simulated(np.random.default_rng(i), 1.8, spread=0.3)).ratio for i in range(60)]
    assert sum(not ratio.excludes(1.8) for ratio in found) >= 57
    assert np.median([ratio.value for ratio in found]) == pytest.approx(1.8, rel=0.01)


def test_a_planted_slowdown_of_five_percent_is_found():
    found = [overall(simulated(np.random.default_rng(i), 0.95)).ratio for i in range(40)]
    assert all(ratio.excludes(1.0) and ratio.value < 1 for ratio in found)


def test_a_machine_that_slows_down_is_noticed_and_hardly_moves_the_ratio():
    run = simulated(np.random.default_rng(0), 1.5, drift=0.1)
    report = make_report(run)
    assert report.steadiness.drifted
    assert report.steadiness.drift.change == pytest.approx(0.1, abs=0.03)
    assert not overall(run).ratio.excludes(1.5)
    assert not make_report(simulated(np.random.default_rng(0), 1.5)).steadiness.drifted


def test_the_share_of_steps_that_were_held_up_is_counted():
    run = simulated(np.random.default_rng(0))
    held = [replace(a, step_ms=[a.step_ms[0] * 5, *a.step_ms[1:]]) for a in run.answers]
    steadiness = make_report(a_run(held)).steadiness
    assert steadiness.plain_steps == PROMPTS * ROUNDS * TOKENS
    assert steadiness.disturbed == pytest.approx(1 / TOKENS)


@pytest.mark.parametrize(("load", "cores", "busy"), [(12.0, 2, True), (2.0, 2, False), (12.0, None, False)])
def test_a_machine_that_was_crowded_before_is_not_called_steady(load, cores, busy):
    run = simulated(np.random.default_rng(0))
    run = replace(run, load_average=[load, load], machine={"cores": cores})
    assert make_report(run).steadiness.busy == busy


def test_ratios_are_paired_by_prompt_over_the_median_of_rounds():
    slow = [answer(round=n, decode_ms=ms) for n, ms in enumerate((900.0, 1000.0, 5000.0))]
    fast = [answer(arm="auto", round=n, decode_ms=ms) for n, ms in enumerate((400.0, 500.0, 800.0))]
    others = [answer("b#0"), answer("c#0", "auto"), answer("a#0", prompt="another prompt", decode_ms=1.0)]
    found = Pairs([*fast, others[1]], [*slow, others[0], others[2]]).speedup()
    assert (found.prompts, found.basis) == (1, "repeats")
    assert found.least == found.most == pytest.approx(2.0)
    assert found.ratio.low < found.ratio.value < found.ratio.high
    assert Pairs(fast[:1], slow[:1]).speedup().ratio.low is None  # one round tells nothing of noise
    assert Pairs(others, []).speedup() is None


def test_reading_and_writing_have_no_common_speed():
    def arm(name, times):
        return [
            answer("tg#0", name, category="tg", decode_ms=1000.0 / times),
            answer("pp#0", name, category="pp", decode_ms=10.0, reading=True),
        ]

    rows = make_report(a_run([*arm("none", 1.0), *arm("auto", 2.0)])).rows["auto"]
    written, everything = (next(row for row in rows if row.category == name) for name in ("tg", ALL))
    assert everything.speedup.ratio.value == written.speedup.ratio.value == pytest.approx(2.0)
    assert everything.tokens_per_s == written.tokens_per_s
    assert (everything.answers, everything.compared) == (1, 2)
    read = make_report(a_run([a for a in arm("none", 1.0) + arm("auto", 1.0) if a.reading]))
    assert read.rows["auto"][-1].speedup.prompts == 1


def test_short_answers_tell_no_speed():
    short = [answer(arm=arm, predicted_n=SHORT - 1) for arm in ("none", "auto")]
    row = make_report(a_run(short)).rows["auto"][-1]
    assert row.speedup is None and row.tokens_per_s is None and row.answers == 1


def test_reading_counts_the_prompt():
    pair = [
        answer("pp512", arm, reading=True, prompt_n=512, prompt_ms=ms, predicted_n=1, tokens=[1])
        for arm, ms in (("none", 512.0), ("auto", 1024.0))
    ]
    row = make_report(a_run(pair)).rows["auto"][-1]
    assert row.speedup.ratio.value == pytest.approx(0.5)
    assert row.tokens_per_s.value == pytest.approx(500)


def test_a_row_says_what_the_answers_said():
    drafted = answer(
        arm="auto", steps=40, draft_n=80, draft_n_accepted=60, host_ms=8.0, joules=50.0, decode_ms=500.0,
        step_ms=[*([12.0] * 36), *([30.0] * 4)], step_width=[3] * 40, step_tokens=[2] * 20 + [3] * 20,
        by_source={"suffix": [60, 50], "recycle": [20, 10]}, by_depth=[[40, 36], [40, 24]],
        sources=["suffix"] * 100,
    )  # fmt: skip
    run = a_run([answer(), drafted])
    run.arms[1] = replace(run.arms[1], weight_bytes=100_000_000)
    report = make_report(run)
    row, detail = report.rows["auto"][-1], report.details["auto"]
    assert (row.tokens_per_step, row.accepted, row.host_ms) == (2.5, 0.75, 0.2)
    assert row.joules_per_token == 0.5 and row.gb_per_s == pytest.approx(8.0)
    assert row.step_ms == pytest.approx((12.0, 12.0, 30.0), abs=2)
    assert detail.by_source == {"suffix": (60, 50), "recycle": (20, 10)}
    assert detail.by_depth == [(40, 36), (40, 24)]
    assert detail.widths == {3: (40, 12.0)}
    assert report.rows["none"][-1].speedup is None
    assert sample_answer(run.answers) is drafted


def test_categories_are_reported_and_then_all_of_them():
    run = simulated(np.random.default_rng(5), 2.0)
    rows = make_report(run).rows["auto"]
    assert [row.category for row in rows] == [*(f"c{i}" for i in range(CATEGORIES)), ALL]
    assert all(row.speedup.basis == "repeats" and row.speedup.prompts == 2 for row in rows[:-1])
    assert rows[-1].speedup.basis == "prompts" and rows[-1].speedup.prompts == PROMPTS


def test_a_planted_wrong_token_is_found():
    answers = [answer(arm=arm, round=n) for n in range(2) for arm in ("none", "auto")]
    answers[3] = replace(answers[3], tokens=[1, 9, 3])
    run = a_run(answers)
    run.partings = find_partings(run.answers, run.arms)
    assert run.partings == [Parting(case="a#0", arm="auto", round=1, index=1)]
    row = make_report(run).rows["auto"][-1]
    assert (row.identical, row.compared) == (1, 2)
    plain = make_report(run).rows["none"][-1]
    assert (plain.identical, plain.compared) == (1, 1)  # its second answer, against its first


def test_a_text_that_ends_early_parts_where_it_ends():
    pair = [answer(), answer(arm="auto", tokens=[1, 2])]
    assert [p.index for p in find_partings(pair, a_run(pair).arms)] == [2]


def test_a_run_survives_json():
    run = simulated(np.random.default_rng(6), 1.2)
    run.partings = [Parting(case="0#0", arm="auto", round=0, index=3, margin=0.1, noise=0.2, near_tie=True)]
    run.staircases = {"none": {"0": {"1": 10.0}}}
    again = Run.from_json(json.loads(json.dumps(run.to_json())))
    assert again == run
    assert make_report(again).to_json() == make_report(run).to_json()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: [],
        lambda data: {**data, "format": 99},
        lambda data: {**data, "answers": 3},
        lambda data: {**data, "answers": [*data["answers"], "x"]},
        lambda data: {**data, "answers": [{**data["answers"][0], "decode_ms": "fast"}]},
        lambda data: {**data, "answers": [{**data["answers"][0], "tokens": [1, "2"]}]},
        lambda data: {**data, "answers": [{**data["answers"][0], "round": True}]},
        lambda data: {**data, "answers": [{"case": "x"}]},
        lambda data: {**data, "baseline": "nobody"},
        lambda data: {**data, "arms": data["arms"][:1]},
    ],
)
def test_what_is_no_run_is_refused(damage):
    data = json.loads(json.dumps(a_run([answer(), answer(arm="auto")]).to_json()))
    with pytest.raises(ValueError, match=r".+"):
        Run.from_json(damage(data))


def test_two_runs_differ_where_they_do():
    before = simulated(np.random.default_rng(7), 1.5)
    now = simulated(np.random.default_rng(8), 1.5 * 0.9)
    now.machine = {"cpu": "another processor", "load": 9}
    found = compare_runs(now, before)
    changes = {(c.arm, c.category): c for c in found.changes}
    assert changes["auto", ALL].beyond_noise and changes["auto", ALL].speedup.ratio.value < 0.95
    assert not changes["none", ALL].beyond_noise
    assert found.differences == {"machine.cpu": ("a processor", "another processor")}
    assert found.unmatched == 0
    json.dumps(found.to_json())


def test_runs_without_common_prompts_cannot_be_compared():
    found = compare_runs(a_run([answer(prompt="p")]), a_run([answer(prompt="q")]))
    assert found.changes == [] and found.unmatched == 2
