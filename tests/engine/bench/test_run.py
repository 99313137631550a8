"""The benchmark itself, on scripted models whose steps take simulated time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specx.backends.base import Want
from specx.backends.errors import PeerError
from specx.backends.llama.server import Completion
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.engine.bench.cases import CaseMaker, LeftOut
from specx.engine.bench.identity import explain_partings, find_partings
from specx.engine.bench.records import ArmInfo, Run
from specx.engine.bench.report import make_report
from specx.engine.bench.run import Bench, PeerArm, SpecxArm, nothing_learned, schedule, server_sampling
from specx.engine.bench.setup import name_arms
from specx.engine.bench.suites import Prompt, Workload
from specx.engine.learned.corpora import Corpora
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

GREEDY = SamplingSettings(seed=1, temperature=0.0)
STEPS = {1: 10.0, 4: 12.0, 8: 14.0, 16: 20.0, 64: 60.0}


class Counted(ScriptedModel):
    """Adds up what its steps are meant to cost, apart from any clock."""

    def __init__(self, *given, slower=1.0, **options):
        self.costs = {width: ms * slower for width, ms in STEPS.items()}
        super().__init__(*given, step_costs=self.costs, **options)
        self.spent_ms = 0.0

    def forward(self, trees, want=Want.LOGITS):
        rows = sum(map(len, trees))
        self.spent_ms += next(ms for width, ms in self.costs.items() if width >= rows)
        return super().forward(trees, want)


def make_session(*, peak=0.95, n_ctx=2048, script=tuple(range(20, 60)), clock=None, **given):
    clock = clock or SimulatedClock()
    model = Counted(300, script=script, peak=peak, n_ctx=n_ctx, clock=clock, **given)
    learned = Learned(Store(None), model_key="m", cost_key="c")
    return Session(model, Asked(Path("m.gguf")), learned, name="scripted", clock=clock)


def make_arm(session, name="none", drafter=None, *, plain="none", warm=False, sampling=GREEDY):
    info = ArmInfo(name=name, plain=plain, drafter=drafter or name)
    return SpecxArm(info, session, sampling, warm=warm)


def prompts(count=4, category="code"):
    return [Prompt(f"p{i}", category, text=f"the cat sat on {i} mat and") for i in range(count)]


def run_bench(arms, work, session, *, n_predict=48, clock=None, **given):
    maker = CaseMaker(session, n_predict, 0, ignore_eos=True)
    bench = Bench(arms, work, maker, clock=clock or session.clock, **given)
    bench.warm_up()
    answers = list(bench.answers())
    run = Run(
        started="", model={}, machine={}, build={}, settings={}, baseline=arms[0].info.name,
        arms=[arm.info for arm in arms], answers=answers, left_out=bench.left_out,
    )  # fmt: skip
    run.partings = find_partings(run.answers, run.arms)
    return run, bench


def test_the_reported_speedup_is_the_one_that_the_steps_cost():
    session = make_session()
    varied = SamplingSettings(seed=1, temperature=1.0)
    arms = [make_arm(session, sampling=varied), make_arm(session, "suffix", sampling=varied)]
    truth = []

    class Watched:
        """Notes what the model itself says an answer took."""

        def __init__(self, arm):
            self.arm, self.info = arm, arm.info

        def warm_up(self, case):
            return self.arm.warm_up(case)

        def answer(self, case):
            self.arm.answer(case)  # whatever has to be measured is measured now
            before = session.model.spent_ms
            answer = self.arm.answer(case)
            truth.append((case.id, self.info.name, session.model.spent_ms - before, answer))
            return answer

    work = [Prompt(f"p{i}", "code", text="the cat " * (i + 1)) for i in range(5)]
    run, _ = run_bench([Watched(arm) for arm in arms], work, session, n_predict=160)
    spent = {(case, name): ms for case, name, ms, _ in truth}
    assert all(answer.decode_ms == pytest.approx(ms) for _, _, ms, answer in truth)
    logs = [math.log(spent[f"p{i}#0", "none"] / spent[f"p{i}#0", "suffix"]) for i in range(5)]
    found = make_report(run).rows["suffix"][-1].speedup
    assert found.ratio.value == pytest.approx(math.exp(np.mean(logs)))
    assert found.ratio.value > 1.3 and np.std(logs) > 0.001  # or there is nothing to find out
    half = 2.7764451 * np.std(logs, ddof=1) / math.sqrt(5)
    assert found.ratio.low == pytest.approx(math.exp(np.mean(logs) - half))


def test_a_slower_arm_is_found_slower():
    quick = make_session(peak=0.9)
    slow = make_session(peak=0.9, clock=quick.clock, slower=1.05)
    arms = [make_arm(quick), make_arm(slow, "slow", "none")]
    run, _ = run_bench(arms, prompts(6), quick, rounds=3)
    found = make_report(run).rows["slow"][-1].speedup
    assert found.ratio.value == pytest.approx(1 / 1.05)
    assert found.ratio.excludes(1.0)


def test_an_answer_tells_its_steps_and_sources():
    session = make_session()
    run, _ = run_bench([make_arm(session), make_arm(session, "auto")], prompts(1), session)
    plain, drafted = sorted(run.answers, key=lambda answer: answer.arm == "auto")
    assert plain.tokens == drafted.tokens and len(plain.tokens) == 48
    assert plain.step_width == [1] * 48 and plain.by_source == {} and plain.by_depth == []
    assert plain.step_ms == pytest.approx([10.0] * 48)
    assert sum(drafted.step_tokens) == len(drafted.sources) == 48
    assert sum(drafted.step_ms) == pytest.approx(drafted.decode_ms)
    assert drafted.first_token_ms == pytest.approx(drafted.prompt_ms + drafted.step_ms[0])
    right = sum(accepted for _, accepted in drafted.by_source.values())
    assert right == drafted.draft_n_accepted == sum(accepted for _, accepted in drafted.by_depth)
    assert sum(drafted_n for drafted_n, _ in drafted.by_source.values()) == drafted.draft_n
    assert {"suffix", "target"} <= set(drafted.sources)


def test_cold_arms_search_the_texts_that_were_added(tmp_path):
    steps = []
    for added in (False, True):
        session = make_session(peak=0.97)
        corpora = Corpora(Store(tmp_path), "m")
        if added:
            corpora.add([("a", np.array([*range(20, 60)] * 2, np.int32))], "scripted")
        session.learned = nothing_learned(corpora)
        run, _ = run_bench([make_arm(session, "suffix")], prompts(1), session)
        steps.append(run.answers[0].steps)
    assert steps[1] < steps[0]


def test_cold_arms_forget_and_warm_arms_learn_for_themselves():
    session = make_session(peak=0.97)
    work = prompts(1)
    for warm in (False, True):
        arm, other = (make_arm(session, name, "suffix", warm=warm) for name in ("a", "b"))
        run, _ = run_bench([arm], work, session, rounds=2)
        first, second = (answer.steps for answer in run.answers)
        assert (second < first) if warm else (second == first)
        late, _ = run_bench([other], work, session)
        assert late.answers[0].steps == first  # what one arm learned is nothing to another
    assert session.learned.free_drafter(300, ("suffix",)).to_arrays()["tokens"].size == 0


def test_the_store_is_left_as_it_was(tmp_path):
    session = make_session()
    store = Store(tmp_path)
    session.learned = own = Learned(store, model_key="m", cost_key="c")
    run_bench([make_arm(session), make_arm(session, "auto", warm=True)], prompts(2), session)
    assert session.learned is own
    own.save()
    assert store.load_arrays("history", "m") is None
    assert store.load_arrays("recycle", "m") is None


def test_arms_take_turns_in_an_order_that_changes_and_reverses():
    arms = list("abcd")
    first, second, third = (schedule(arms, number, "0:case") for number in range(3))
    assert sorted(first) == arms and second == first[::-1] and third != second[::-1]
    assert len({tuple(schedule(arms, 0, f"0:{i}")) for i in range(20)}) > 5


def test_everything_is_answered_once_before_anything_is_repeated():
    session = make_session()
    run, bench = run_bench(
        [make_arm(session), make_arm(session, "suffix")], prompts(3), session, rounds=2, n_predict=4
    )
    assert [answer.round for answer in run.answers] == [0] * 6 + [1] * 6
    assert bench.total == 12 and {answer.case for answer in run.answers} == {"p0#0", "p1#0", "p2#0"}
    moments = [answer.started_s for answer in run.answers]
    assert moments == sorted(moments) and moments[0] == 0


def test_a_conversation_goes_on_with_what_plain_decoding_said():
    session = make_session(script=tuple(range(1, 28)))
    talk = Prompt("talk", "chat", messages=({"role": "user", "content": "a cat"},) * 2)
    arms = [make_arm(session), make_arm(session, "suffix")]
    run, bench = run_bench(arms, [talk], session, turns=2, n_predict=6)
    assert [answer.case for answer in run.answers] == ["talk#0"] * 2 + ["talk#1"] * 2
    said = b"".join(map(session.vocab.piece, run.answers[0].tokens)).decode()
    asked = b"".join(map(session.vocab.piece, bench.asked["talk#1"].tokens)).decode()
    assert asked.count("a cat") == 2 and said in asked
    assert len({answer.prompt for answer in run.answers}) == 2
    only, _ = run_bench(arms, [talk], session, turns=1, n_predict=6)
    assert {answer.case for answer in only.answers} == {"talk#0"}


def test_what_does_not_fit_is_left_out_and_said():
    session = make_session(n_ctx=512)
    long = Prompt("long", "rag", text="the cat sat on a mat " * 100)
    empty = Prompt("empty", "rag", text="")
    run, _ = run_bench([make_arm(session)], [long, *prompts(1), empty], session)
    assert {answer.case for answer in run.answers} == {"p0#0"}
    assert len(run.left_out) == 2 and any("long#0: " in text and "512" in text for text in run.left_out)
    nothing = Bench([make_arm(session)], [long], CaseMaker(session, 48, 0))
    assert nothing.warm_up() is None


def test_synthetic_work_is_random_text_of_the_size_asked_for():
    session = make_session()
    maker = CaseMaker(session, 128, 7)
    read, write = maker.workload(Workload("pp64", 64, 0)), maker.workload(Workload("tg32", 0, 32))
    assert len(read.tokens) == 64 and read.reading and read.n_predict == 1
    assert len(write.tokens) == 1 and write.n_predict == 32 and write.ignore_eos and not write.reading
    assert maker.workload(Workload("pp64", 64, 0)).tokens == read.tokens
    assert not session.vocab.eog & set(read.tokens)
    with pytest.raises(LeftOut, match="pp9999"):
        maker.workload(Workload("pp9999", 9999, 0))


def test_the_estimate_is_about_what_it_takes():
    session = make_session()
    bench = Bench([make_arm(session)], prompts(3), CaseMaker(session, 40, 0, ignore_eos=True), rounds=2)
    assert bench.warm_up() == pytest.approx(3 * 2 * 40 * 0.010, rel=0.01)
    assert bench.total == 6


def test_a_wrong_token_is_found_and_its_margin_told():
    session = make_session(peak=0.9)
    arms = [make_arm(session), make_arm(session, "suffix")]
    run, bench = run_bench(arms, prompts(2), session, n_predict=20)
    assert run.partings == []
    wrong = replace(run.answers[-1], arm="suffix", tokens=[*run.answers[-1].tokens[:7], 299])
    run.answers = [a for a in run.answers if (a.case, a.arm) != (wrong.case, "suffix")] + [wrong]
    partings = find_partings(run.answers, run.arms)
    assert [(p.case, p.arm, p.index) for p in partings] == [(wrong.case, "suffix", 7)]
    told = []
    (told_of,) = explain_partings(
        partings, {"none": session, "suffix": session}, bench.asked, GREEDY, lambda *n: told.append(n)
    )
    assert told_of.margin > 1.0 and told_of.noise == 0.0 and not told_of.near_tie
    assert told == [(0, 1)]


class FakeServer:
    """Answers like a llama-server that drafts."""

    load_s, peak_bytes = 1.5, 1000

    def __init__(self, *, fails=False):
        self.asked, self.fails = [], fails

    def complete(self, prompt, n_predict, sampling, *, ignore_eos):
        if self.fails:
            raise PeerError("it has ended")
        self.asked.append((len(prompt), n_predict, sampling["temperature"], ignore_eos))
        return Completion(len(prompt), 30.0, n_predict, 300.0, 40, 20, [5] * n_predict)


def test_a_peer_answers_the_same_requests():
    session, server = make_session(), FakeServer()
    peer = PeerArm(ArmInfo(name="llama-server", plain="none", peer=True), server, server_sampling(GREEDY))
    run, _ = run_bench([make_arm(session), peer], prompts(2), session, n_predict=31)
    own = run.of("llama-server")
    assert {(a.predicted_n, a.steps, a.draft_n) for a in own} == {(30, 10, 40)}
    assert own[0].ms_per_token == 10.0  # its clock starts after the first token, which is not counted
    assert server.asked[-1][1:] == (31, 0.0, True)
    assert (peer.info.load_s, peer.info.peak_bytes) == (1.5, 1000)
    row = make_report(run).rows["llama-server"][-1]
    assert row.identical == 0 and row.compared == 2


def test_an_arm_that_fails_ends_the_run_with_its_reason():
    session = make_session()
    peer = PeerArm(ArmInfo(name="p", plain="none", peer=True), FakeServer(fails=True), {})
    with pytest.raises(PeerError, match="has ended"):
        run_bench([make_arm(session), peer], prompts(1), session)


def test_a_server_gets_the_sampling_settings_by_its_own_names():
    settings = SamplingSettings(seed=5, temperature=0.7, top_k=20, logit_bias={3: 1.5, 4: -math.inf})
    sent = server_sampling(settings)
    assert (sent["seed"], sent["temperature"], sent["top_k"]) == (5, 0.7, 20)
    assert sent["logit_bias"] == [[3, 1.5], [4, False]]
    assert server_sampling(GREEDY)["top_k"] == 1


def test_names_say_what_tells_arms_apart():
    def names(*lists):
        return [(arm.name, arm.plain) for arm in name_arms(*lists)]

    assert names(["auto"], ["auto"], [None]) == [("none", "none"), ("auto", "none")]
    assert names(["none"], ["auto"], [2]) == [("none", "none")]
    assert [n for n, _ in names(["none", "none"], ["auto"], [2])] == ["none", "none#2"]
    swept = names(["auto", "suffix"], ["specx", "stock"], [1, 2])
    assert swept[0] == ("none@specx/1t", "none@specx/1t")
    assert ("suffix@stock/2t", "none@stock/2t") in swept and len(swept) == 12
