"""Several texts at once: each is what it would be alone, whoever joins and leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.errors import GrammarError, UsageError
from specx.backends.llama import kernels as ggml_device
from specx.backends.scripted import ScriptedCache, ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.drafters.free import FreeDrafting
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

V = 64
SCRIPT = [int(token) for token in np.random.default_rng(7).integers(1, 28, 40)]
STEPS = {"0": {str(n): 10.0 + n / 4 for n in range(1, 65)}}
SAMPLING = (
    SamplingSettings(seed=5, temperature=0.0),
    SamplingSettings(seed=6, temperature=0.8),
    SamplingSettings(seed=7, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.2),
)


def session_of(*, texts=8, drafter="auto", settings=None, notice=lambda _text: None, **options):
    """A session on a scripted model whose steps cost little more for many tokens than for one."""
    clock = SimulatedClock()
    options = {"vocab_size": V, "script": SCRIPT, "peak": 0.9, "order": 3, "max_texts": texts, **options}
    model = ScriptedModel(clock=clock, step_costs={1: 10.0, 8: 12.0, 64: 26.0}, **options)
    asked = Asked(Path("scripted.gguf"), drafter=drafter, store=False, **(settings or {}))
    learned = Learned(Store(None), model_key="model", cost_key="cost")
    session = Session(model, asked, learned, name="scripted", clock=clock, notice=notice)
    session.staircase.load_json(STEPS)
    return session


def prompt_of(number):
    start = number * 5 % len(SCRIPT)
    return (SCRIPT * 3)[start : start + 3 + number * 7 % 90]


def requests_of(session, count, *, n_predict=30, **options):
    return [
        session.generate(
            prompt_of(i), SAMPLING[i % 3], n_predict=n_predict + 11 * (i % 4), ignore_eos=True, **options
        )
        for i in range(count)
    ]


def alone(count, **options):
    """What each text is by itself, without drafts."""
    session = session_of(texts=1, drafter="none")
    generations = requests_of(session, count, **options)
    for generation in generations:
        list(generation)
    return [generation.result.tokens for generation in generations]


@settings(max_examples=40)
@given(data=st.data())
def test_texts_are_the_same_in_any_company(data):
    # Texts of uneven length join as there is room, are cancelled, and leave in any order.
    count = data.draw(st.integers(1, 14), label="texts")
    drafter = data.draw(st.sampled_from(["none", "auto", "suffix", "recycle"]))
    session = session_of(
        texts=data.draw(st.integers(1, 9), label="room"),
        drafter=drafter,
        even=data.draw(st.booleans()),
        max_leaves=data.draw(st.sampled_from([1, 8])),
        max_width=data.draw(st.sampled_from([1, 2, 8, 64])),
    )
    generations = requests_of(session, count)
    cancelled = data.draw(st.dictionaries(st.integers(0, count - 1), st.integers(0, 30)), label="cancelled")
    seen = [[] for _ in generations]
    at_once = data.draw(st.integers(1, 9), label="at once")
    patient = data.draw(st.booleans(), label="patient")
    for generation, chunk in session.together(iter(generations), at_once, patient=patient):
        number = generations.index(generation)
        seen[number] += chunk.tokens
        if len(seen[number]) >= cancelled.get(number, 1000):
            generation.cancel()
    for number, (generation, expected) in enumerate(zip(generations, alone(count), strict=True)):
        result = generation.result
        assert result.tokens == seen[number] == expected[: len(result.tokens)]
        if number in cancelled:
            assert result.finish_reason in ("cancelled", "length")
            assert len(result.tokens) >= min(cancelled[number], len(expected))
        else:
            assert (result.finish_reason, len(result.tokens)) == ("length", len(expected))
    # And whoever comes later finds everything as it was.
    later = session.generate(prompt_of(2), SAMPLING[0], n_predict=20, ignore_eos=True)
    list(later)
    assert later.result.tokens == session_tokens(prompt_of(2), SAMPLING[0], 20)


def session_tokens(prompt, sampling, n_predict):
    session = session_of(texts=1, drafter="none")
    generation = session.generate(prompt, sampling, n_predict=n_predict, ignore_eos=True)
    list(generation)
    return generation.result.tokens


def test_more_texts_share_a_step_and_drafts_are_spread_over_them():
    session = session_of(even=True)
    generations = requests_of(session, 8, n_predict=60)
    shared, widths = set(), set()
    for _, chunk in session.together(generations):
        if chunk.step is not None:
            shared.add(chunk.step.texts)
            widths.add((chunk.step.texts, chunk.drafted + 1))
    assert max(shared) == 8
    assert {texts for texts, width in widths if width > 1} >= {8}  # texts draft in company, too
    assert all(texts * width <= 64 for texts, width in widths)
    assert [generation.result.tokens for generation in generations] == alone(8, n_predict=60)
    accepted = sum(generation.result.timings.draft_n_accepted for generation in generations)
    steps = max(generation.result.timings.steps for generation in generations)
    assert accepted > 100
    assert steps < 93  # tokens of the longest one


def test_nobody_waits_long_for_steps_at_a_new_depth():
    # A deeper text joins one that is written: its steps are timed one by one, in a part of the time.
    session = session_of(even=True, vocab_size=64)
    first = session.generate(prompt_of(0), SAMPLING[0], n_predict=800, ignore_eos=True)
    second = session.generate((SCRIPT * 30)[:1100], SAMPLING[1], n_predict=400, ignore_eos=True)
    known, told, waits = session.staircase.depths, session.clock(), []
    for generation, _ in session.together([first, second], patient=False):
        if generation is first:
            told, before = session.clock(), told
            waits.append(told - before)
    assert len(session.staircase.depths) > len(known) == 1
    assert max(session.staircase.depths) >= 1099
    assert max(waits) < 0.1  # three steps and a piece of a prompt


@pytest.mark.parametrize(("even", "texts"), [(True, 8), (False, 1)])
def test_exact_texts_have_company_in_streams_of_their_own(even, texts):
    notices = []
    session = session_of(even=even, settings={"exact": True}, notice=notices.append, vocab_size=300)
    assert session.at_once == texts
    assert any("one text at a time" in notice for notice in notices) == (texts == 1)


def test_a_text_drafts_from_what_another_one_is_writing():
    # Neither repeats itself, and each is where the other has been a few steps before.
    def accepted(texts):
        session = session_of(texts=texts, drafter="suffix", even=True)
        generations = [
            session.generate(SCRIPT[start : start + 4], SAMPLING[0], n_predict=25, ignore_eos=True)
            for start in (0, 10)
        ]
        seen = []
        for generation, chunk in session.together(generations):
            sources = chunk.sources if generation is generations[0] else []
            seen += [source for source in sources if source != "target"]
        return seen, [generation.result.tokens for generation in generations]

    together, tokens = accepted(2)
    assert together.count("history") == len(together) > 5
    after_another, expected = accepted(1)
    assert after_another == []  # the first is alone
    assert tokens == expected == [SCRIPT[4:29], SCRIPT[14:39]]


@pytest.mark.parametrize("even", [True, False])
def test_together_they_take_less_time(even):
    def seconds(texts, drafter):
        session = session_of(texts=texts, drafter=drafter, even=even)
        generations = requests_of(session, 8, n_predict=80)
        start = session.clock()
        list(session.together(generations))
        return session.clock() - start

    one_by_one, together, drafted = seconds(1, "none"), seconds(8, "none"), seconds(8, "auto")
    assert one_by_one > 3 * together
    assert drafted < together


def test_a_long_prompt_is_read_in_pieces_between_the_steps_of_others():
    session = session_of(drafter="none")
    first = session.generate(prompt_of(1), SAMPLING[0], n_predict=50, ignore_eos=True)
    long = session.generate((SCRIPT * 30)[:1000], SAMPLING[0], n_predict=5, ignore_eos=True)
    order = []
    for generation, chunk in session.together([first, long], patient=False):
        order.append((generation is long, len(chunk.tokens)))
    began = next(i for i, (is_long, _) in enumerate(order) if is_long)
    assert began >= 1000 // 64 - 1  # the first one went on meanwhile
    assert long.result.timings.prompt_n == 1000
    assert long.result.tokens == session_tokens((SCRIPT * 30)[:1000], SAMPLING[0], 5)


class Counting(ScriptedCache):
    """Counts the tokens that are read."""

    read = 0

    def prefill(self, tokens, **options):
        Counting.read += len(tokens)
        super().prefill(tokens, **options)


def branching(data):
    """Prompts that begin with each other's beginnings: (prompt, sampling) by number."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    prompts = [rng.integers(1, 28, data.draw(st.integers(2, 150))).tolist()]
    for _ in range(data.draw(st.integers(1, 9))):
        mother = prompts[data.draw(st.integers(0, len(prompts) - 1))]
        kept = data.draw(st.integers(0, len(mother)))
        prompts.append([*mother[:kept], *rng.integers(1, 28, data.draw(st.integers(1, 60))).tolist()])
    return prompts


@settings(max_examples=25)
@given(data=st.data())
def test_what_prompts_begin_with_is_copied_and_the_texts_are_the_same(data):
    prompts = branching(data)
    cost = data.draw(st.sampled_from([0, 8, 64]), label="cost of a copy")
    session = session_of(
        texts=data.draw(st.integers(1, 9), label="room"),
        drafter=data.draw(st.sampled_from(["none", "auto"])),
        even=data.draw(st.booleans()),
        copy_tokens=cost,
        cache_class=Counting,
    )
    generations = [
        session.generate(prompt, SAMPLING[i % 3], n_predict=5 + i % 4 * 7, ignore_eos=True)
        for i, prompt in enumerate(prompts)
    ]
    cancelled = data.draw(st.sets(st.integers(0, len(prompts) - 1), max_size=2), label="cancelled")
    Counting.read = 0
    first = True
    for _ in session.together(generations, patient=data.draw(st.booleans())):
        for number in cancelled if first else ():
            generations[number].cancel()
        first = False
    read = 0
    for i, generation in enumerate(generations):
        timings = generation.result.timings
        expected = session_tokens(prompts[i], SAMPLING[i % 3], 5 + i % 4 * 7)
        assert generation.result.tokens == expected[: len(generation.result.tokens)]
        if i not in cancelled:
            assert len(generation.result.tokens) == len(expected)
            assert timings.cached_n + timings.prompt_n == len(prompts[i])
        read += max(timings.prompt_n - 1, 0)
    assert Counting.read <= read
    assert all(slot.user is None and slot.cache.length == len(slot.cached) for slot in session.slots)


@pytest.mark.parametrize("patient", [True, False])
@pytest.mark.parametrize("order", [3, 1])
def test_what_prompts_begin_with_is_read_once(patient, order):
    session = session_of(texts=8, cache_class=Counting, copy_tokens=10)
    system = (SCRIPT * 9)[:300]
    prompts = [[*system, *range(1, 2 + i)] for i in range(6)][::order]
    prompts += [prompts[-1]] * 3  # samples of one prompt
    Counting.read = 0
    generations = [
        session.generate(prompt, SamplingSettings(seed=i), n_predict=6, ignore_eos=True)
        for i, prompt in enumerate(prompts)
    ]
    list(session.together(generations, patient=patient))
    assert Counting.read <= 300 + sum(len(prompt) - 300 for prompt in prompts)
    later = [timings.cached_n for timings in (each.result.timings for each in generations[1:])]
    assert min(later) >= 300
    for i, prompt in enumerate(prompts):
        assert generations[i].result.tokens == session_tokens(prompt, SamplingSettings(seed=i), 6)


def test_a_copy_must_be_worth_it_and_where_contexts_shift_there_is_none():
    for options in ({"copy_tokens": 400}, {"settings": {"context_shift": True}}, {"can_rewind": False}):
        session = session_of(texts=4, cache_class=Counting, **options)
        system = (SCRIPT * 9)[:300]
        generations = [session.generate([*system, 1 + i], SAMPLING[0], n_predict=3) for i in range(4)]
        list(session.together(generations))
        assert [each.result.timings.cached_n for each in generations] == [0] * 4


def test_a_conversation_is_left_where_it_is_if_its_beginning_can_be_copied():
    session = session_of(texts=3, copy_tokens=10)
    system = (SCRIPT * 9)[:200]
    long = [*system, *(SCRIPT[::-1] * 9)[:250]]
    list(session.generate(long, SAMPLING[0], n_predict=4, ignore_eos=True))
    other = session.generate([*system, 3, 4], SAMPLING[0], n_predict=4, ignore_eos=True)
    list(other)
    again = session.generate(long, SAMPLING[0], n_predict=4, ignore_eos=True)
    list(again)
    assert other.result.timings.cached_n == 200
    assert again.result.timings.cached_n == len(long) - 1


def test_a_short_prompt_need_not_wait_for_long_ones():
    def steps_before(patient):
        session = session_of(texts=8, drafter="none")
        long = [session.generate([i, *(SCRIPT * 30)[:1000]], SAMPLING[0], n_predict=5) for i in range(1, 8)]
        short = session.generate([9, 8, 7], SAMPLING[0], n_predict=5)
        start = session.clock()
        for generation, chunk in session.together([*long, short], patient=patient):
            if generation is short and chunk.tokens:
                return session.clock() - start, sum(each.left == 0 for each in long)
        return None

    assert steps_before(False)[1] == 0
    assert steps_before(True)[1] == 7


@pytest.mark.parametrize("patient", [True, False])
def test_the_time_that_others_are_read_counts_as_that_of_who_waits(patient):
    session = session_of(texts=2, drafter="none")
    first = session.generate(prompt_of(1), SAMPLING[0], n_predict=50, ignore_eos=True)
    long = session.generate(
        (SCRIPT * 30)[:1000], SAMPLING[0], n_predict=5, progress=lambda *_: session.clock.sleep(0.1)
    )
    ended = {}
    start = session.clock()
    for generation, chunk in session.together(Hand(first, None, long), patient=patient):
        if chunk.last:
            ended[generation] = session.clock() - start
    timings = first.result.timings
    assert timings.overhead_ms >= 1000
    assert timings.prompt_ms + timings.predicted_ms == pytest.approx(ended[first] * 1e3)


def test_a_prompt_is_read_in_larger_pieces_where_nobody_waits(monkeypatch):
    session, sizes = session_of(drafter="none"), []
    prefill = ScriptedCache.prefill
    monkeypatch.setattr(
        ScriptedCache, "prefill", lambda *a, **k: (sizes.append(len(a[1])), prefill(*a, **k))[1]
    )
    for costs, most in (
        (STEPS, int(250 / 26 * 64)),
        ({"0": {"1": 50.0, "64": 250.0}}, 64),
        ({"0": {"1": 20.0, "24": 120.0, "64": 250.0}}, 64),  # fewer take longer each
        ({"0": {"1": 20.0, "16": 56.0, "64": 224.0}}, 32),  # fewer take no longer each
        ({}, 64),
    ):
        session.forget_conversation()
        session.staircase.load_json(costs)
        sizes.clear()
        only = session.generate((SCRIPT * 50)[:1700], SAMPLING[0], n_predict=2, ignore_eos=True)
        list(session.together([only], patient=False))
        assert sizes[0] == max(sizes) == most
        assert sum(sizes) == 1699


def recording_prefills(monkeypatch):
    """(cache, tokens, whether logits are wanted) of each prefill from now on."""
    seen, prefill = [], ScriptedCache.prefill

    def recording(cache, tokens, *, rows=None, **options):
        seen.append((cache, len(tokens), rows is not None))
        prefill(cache, tokens, rows=rows, **options)

    monkeypatch.setattr(ScriptedCache, "prefill", recording)
    return seen


def test_only_the_end_of_a_prompt_in_pieces_has_its_logits_computed(monkeypatch):
    session = session_of(drafter="none")
    session.staircase.load_json({})
    seen = recording_prefills(monkeypatch)
    only = session.generate((SCRIPT * 50)[:400], SAMPLING[0], n_predict=2, ignore_eos=True)
    list(session.together([only], patient=False))
    assert [wanted for _, _, wanted in seen] == [False] * 5 + [True] * 2  # 64 tokens each, 15 at the end


@pytest.mark.parametrize("turns", range(8))  # whatever number of pieces was read before, or steps were taken
def test_a_short_prompt_beside_long_ones_is_the_next_one_that_is_read(monkeypatch, turns):
    session = session_of(drafter="none")
    seen = recording_prefills(monkeypatch)
    writes = session.generate(prompt_of(1), SAMPLING[0], n_predict=200, ignore_eos=True)
    long = [session.generate([i + 1, *SCRIPT * 17], SAMPLING[0], n_predict=2) for i in range(5)]
    short = session.generate([40, 41, *SCRIPT[:30]], SAMPLING[0], n_predict=1, ignore_eos=True)
    for generation, _ in session.together(Hand(writes, *long, *[None] * (turns + 1), short), patient=False):
        if generation is short:
            break
    assert [size for _, size, _ in seen] == [9, *[32] * (turns // 2), 31]


def test_a_long_prompt_is_read_though_short_ones_keep_coming():
    session = session_of(texts=2, drafter="none")
    long = session.generate((SCRIPT * 30)[:1000], SAMPLING[0], n_predict=5, ignore_eos=True)
    short = [session.generate([i % 27 + 1, 5], SAMPLING[0], n_predict=1) for i in range(400)]
    began = {}
    for count, (generation, _) in enumerate(session.together([long, *short], patient=False)):
        began.setdefault(id(generation), count)
    assert began[id(long)] < began[id(short[-1])]


class Hand:
    """Hands out generations: some at once, some when asked later, and counts the waits."""

    def __init__(self, *turns):
        self.turns, self.waits = list(turns), 0

    def take(self, wait):
        self.waits += wait
        while self.turns:
            coming = self.turns.pop(0)
            if coming is not None:
                return coming
            if not wait:
                return None
        return None


@pytest.mark.parametrize("patient", [True, False])
def test_they_arrive_while_others_are_written_and_each_has_one_end(patient):
    session = session_of(texts=3)
    made = requests_of(session, 7)
    made[2] = session.generate(prompt_of(2), SAMPLING[2], n_predict=0, label="two")
    made[4].cancel()
    made[6] = session.generate(prompt_of(6), SAMPLING[0], constraint=Dies(), ignore_eos=True)
    hand = Hand(made[0], None, None, made[1], made[2], *[None] * 300, *made[3:])
    ends, tokens = [], {id(each): [] for each in made}
    for generation, chunk in session.together(hand, patient=patient):
        assert id(generation) not in ends
        tokens[id(generation)] += chunk.tokens
        if chunk.last:
            ends.append(id(generation))
            assert generation.result.tokens == tokens[id(generation)]
    assert sorted(ends) == sorted(map(id, made))
    assert hand.waits >= 2  # at the beginning, in the middle where nothing was written, and at the end
    assert made[2].label == "two"
    reasons = [generation.result.finish_reason for generation in made]
    assert reasons == ["length", "length", "length", "length", "cancelled", "length", "error"]
    for number, expected in enumerate(alone(7)):
        if number not in (2, 4, 6):
            assert made[number].result.tokens == expected


def test_prompts_are_scored_whatever_is_cached():
    session, prompt = session_of(texts=2), prompt_of(11)
    assert len(prompt) > 64  # more than is read at once
    list(session.generate(prompt, SAMPLING[0], n_predict=3, ignore_eos=True))
    scored = session.generate(prompt, SAMPLING[0], n_predict=0, score_prompt=True)
    writes = session.generate(prompt, SAMPLING[1], n_predict=9, score_prompt=True, evidence=True)
    ends = [
        (generation, chunk.text) for generation, chunk in session.together([scored, writes]) if chunk.last
    ]
    assert [generation for generation, _ in ends] == [scored, writes]
    assert (scored.result.tokens, scored.result.finish_reason) == ([], "length")
    model = session.model
    for generation in (scored, writes):
        found = generation.result.prompt_evidence
        assert len(found) == len(prompt) - 1
        for i, evidence in enumerate(found):
            expected = np.log(model.probabilities(prompt[: i + 1]))
            assert evidence.logprob == pytest.approx(expected[prompt[i + 1]], abs=1e-4)
            assert evidence.logits - evidence.total == pytest.approx(expected[evidence.ids], abs=1e-4)
            assert evidence.margin == 0
    text = [*prompt, *writes.result.tokens]
    for i, evidence in enumerate(writes.result.evidence):
        expected = np.log(model.probabilities(text[: len(prompt) + i]))
        assert evidence.logprob == pytest.approx(expected[text[len(prompt) + i]], abs=1e-4)
    assert writes.result.tokens == session_tokens(prompt, SAMPLING[1], 30)[:9]


@pytest.mark.parametrize(("rise", "texts"), [(0.0, 8), (10.0, 1), (0.25, 8)])
def test_as_many_are_written_at_once_as_pay(rise, texts):
    # Where a step of several costs as much as that of each, one after the other is as fast, and the first is
    # finished sooner.
    session = session_of(drafter="none", settings={"texts": None})
    session.staircase.load_json({"0": {str(n): 10.0 + rise * (n - 1) for n in range(1, 65)}})
    generations = requests_of(session, 9, n_predict=10)
    shared = {chunk.step.texts for _, chunk in session.together(generations) if chunk.step}
    assert max(shared) == texts
    asked = session_of(drafter="none", settings={"texts": 8})
    asked.staircase.load_json({"0": {str(n): 10.0 + rise * (n - 1) for n in range(1, 65)}})
    shared = {chunk.step.texts for _, chunk in asked.together(requests_of(asked, 9)) if chunk.step}
    assert max(shared) == 8


def test_what_one_text_has_written_the_next_one_drafts_from_while_others_go_on():
    session = session_of(texts=2, script=(), order=6, sharpness=3.0)
    prompt = [3, 1, 4, 1, 5]
    long = session.generate([2, 7, 1], SAMPLING[1], n_predict=400, ignore_eos=True)
    alike = [session.generate(prompt, SAMPLING[0], n_predict=60, ignore_eos=True) for _ in range(4)]
    list(session.together([long, *alike]))
    first, *later = (generation.result.timings for generation in alike)
    assert first.draft_n_accepted < 30
    assert min(timings.draft_n_accepted for timings in later) > 40
    assert len({tuple(generation.result.tokens) for generation in alike}) == 1


class Dies:
    """A constraint that allows nothing from the eighth token on."""

    def __init__(self):
        self.count = 0

    def allowed(self, ids):
        return np.full(len(ids), self.count < 7)

    def accept(self, token):
        self.count += 1


def test_one_that_fails_leaves_the_others_alone():
    session = session_of()
    generations = requests_of(session, 5)
    generations[2] = session.generate(prompt_of(2), SAMPLING[2], constraint=Dies(), ignore_eos=True)
    for _ in session.together(generations):
        pass
    failed = generations[2].result
    assert isinstance(failed.failure, GrammarError)
    assert failed.finish_reason == "error"
    assert 0 < len(failed.tokens) <= 7
    for number, expected in enumerate(alone(5)):
        if number != 2:
            assert generations[number].result.tokens == expected
    with pytest.raises(GrammarError):
        list(session.generate(prompt_of(2), SAMPLING[2], constraint=Dies(), ignore_eos=True))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_what_breaks_a_step_after_tokens_were_kept_is_told_and_all_texts_can_go_on(at):
    expected = alone(3)
    session = session_of()
    generations = requests_of(session, 3)
    observe, calls = FreeDrafting.observe, []

    def broken(drafting, seen):
        calls.append(seen)
        if len(calls) == 3 * 2 + at:
            raise ValueError("a drafter has a fault")
        observe(drafting, seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FreeDrafting, "observe", broken)
        with pytest.raises(ValueError, match="a drafter has a fault"):
            list(session.together(generations))
    again = requests_of(session, 3)
    list(session.together(again))
    assert [generation.result.tokens for generation in again] == expected


@pytest.mark.parametrize("drafter", ["none", "suffix", "recycle", "auto"])
def test_any_seed_is_taken_as_64_bits_whatever_drafts(drafter):
    session = session_of(drafter=drafter)
    for seed in (-2, -(2**63), 2**64, 2**64 + 5, 2**70 - 1):
        texts = []
        for same in (seed, seed % 2**64):
            generation = session.generate(
                prompt_of(1), replace(SAMPLING[1], seed=same), n_predict=30, ignore_eos=True
            )
            list(generation)
            texts.append(generation.result.tokens)
        assert len(texts[0]) == 30 and texts[0] == texts[1]
        assert generation.result.seed == seed % 2**64


def test_a_prompt_with_a_token_of_no_vocabulary_is_refused():
    session = session_of()
    for prompt in ([1, V], [-1], [2**40, 1]):
        with pytest.raises(UsageError, match="none of the 64"):
            session.generate(prompt, SAMPLING[0])


def test_an_answer_is_written_once():
    session = session_of()
    generation = session.generate(prompt_of(1), SAMPLING[0], n_predict=5, ignore_eos=True)
    assert len(list(generation)) > 0
    with pytest.raises(UsageError, match="has been written"):
        list(generation)
    assert len(generation.result.tokens) == 5


@pytest.mark.parametrize("held", [False, True])
def test_one_generation_is_written_once(held):
    """Twice in one call or in two: where it waits for another as well, it is there already."""
    session = session_of()
    prompt = prompt_of(1)
    first, twice = (session.generate(prompt, SAMPLING[0], n_predict=5) for _ in range(2))
    with pytest.raises(UsageError, match="is being written"):
        list(session.together([*([first] if held else []), twice, twice]))
    finished = session.generate(prompt, SAMPLING[0], n_predict=5)
    list(session.together([finished]))
    with pytest.raises(UsageError, match="has been written"):
        list(session.together([finished]))
    assert len(finished.result.tokens) == 5


def test_a_full_context_ends_one_text_only():
    session = session_of(n_ctx=120)
    generations = requests_of(session, 6, n_predict=60)
    for _ in session.together(generations):
        pass
    for generation, expected in zip(generations, alone(6, n_predict=60), strict=True):
        room = 120 - (len(generation.request.prompt) - 1)
        assert generation.result.tokens == expected[:room]
        assert generation.result.finish_reason == ("length" if len(expected) <= room else "context")


def test_contexts_shift_one_by_one():
    options = {"n_ctx": 64, "settings": {"context_shift": True}}
    session = session_of(**options)
    generations = requests_of(session, 4, n_predict=100, keep=4)
    list(session.together([each for each in generations if len(each.request.prompt) < 60]))
    for number, generation in enumerate(generations):
        if len(generation.request.prompt) < 60:
            single = session_of(texts=1, drafter="none", **options)
            expected = requests_of(single, 4, n_predict=100, keep=4)[number]
            list(expected)
            assert generation.result.tokens == expected.result.tokens


def test_prompts_find_what_is_cached_of_them():
    session = session_of(texts=3)
    turns = [prompt_of(i) for i in (1, 2, 3)]
    first = [session.generate(turn, SAMPLING[0], n_predict=10, ignore_eos=True) for turn in turns]
    list(session.together(first))
    again = [
        session.generate([*turn, *answer.result.tokens, 5], SAMPLING[0], n_predict=5, ignore_eos=True)
        for turn, answer in zip(turns, first, strict=True)
    ]
    list(session.together(reversed(again)))
    assert all(generation.result.timings.prompt_n <= 2 for generation in again)


@pytest.mark.parametrize("even", [True, False])
def test_steps_are_timed_where_the_cells_of_others_are_not_in_the_way(even):
    session = session_of(texts=2, even=even)
    list(session.generate(prompt_of(1), SAMPLING[0], n_predict=5))
    list(session.generate([9, *(SCRIPT * 10)[:290]], SAMPLING[0], n_predict=5))
    assert session.staircase.depths == ([0, 290] if even else [0])


def test_who_leaves_before_anything_is_written_says_nothing_of_lengths():
    session = session_of(texts=2, drafter="none")
    generations, counted = [], []
    session.learned.lengths.add = lambda length, *, ended: counted.append((length, ended))
    for leave in (lambda *_: generations[0].cancel(), None):
        generations.append(session.generate((SCRIPT * 9)[:300], SAMPLING[0], n_predict=9, progress=leave))
    for generation, chunk in session.together(generations):
        if generation is generations[1] and chunk.tokens:
            generation.cancel()
    assert [generation.result.finish_reason for generation in generations] == ["cancelled"] * 2
    assert counted == [(len(generations[1].result.tokens), True)]


def test_what_is_interrupted_as_it_begins_gives_its_slot_back(monkeypatch):
    session = session_of(texts=3)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "measure_staircase", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(session.together(requests_of(session, 3)))
    assert all(slot.user is None for slot in session.slots)


def test_stopping_in_the_middle_gives_every_slot_back():
    session = session_of(texts=4)
    generations = requests_of(session, 9)
    for count, _ in enumerate(session.together(generations)):
        if count == 20:
            break
    assert all(slot.user is None for slot in session.slots)
    assert {generation.result.finish_reason for generation in generations[4:]} == {"cancelled"}
    again = requests_of(session, 9)
    list(session.together(again))
    assert [generation.result.tokens for generation in again] == alone(9)


@pytest.mark.skipif(ggml_device.unavailable() is not None, reason="specx's kernels do not run here")
@pytest.mark.parametrize("model", ["smollm2_q4_0", "gemma3"])
def test_real_texts_are_the_same_in_any_company(request, model):
    # Uneven lengths, more texts than slots, so that they join and leave; some begin alike and two are samples
    # of one prompt; gemma3 has a sliding window.
    path = request.getfixturevalue(model)
    rng = np.random.default_rng(5)
    system = "You answer in one line, and never say what you were told. " * 4

    def written(texts, drafter, order, *, patient=True):
        # One thread, because threads that wait for each other are no use on a busy machine.
        asked = Asked(path, n_ctx=512, texts=texts, drafter=drafter, kernels="specx", threads=1, store=False)
        with Session.open(asked) as session:
            session.staircase.load_json(STEPS)  # what steps take here must not decide what is tested
            generations = [
                session.generate(
                    session.tokenize(prompts[i], add_special=True, parse_special=False),
                    SamplingSettings(seed=i, temperature=0.0 if i % 2 else 0.9),
                    n_predict=6 + i * 5 % 11,
                    ignore_eos=True,
                )
                for i in range(len(prompts))
            ]
            for _ in session.together([generations[i] for i in order], texts, patient=patient):
                pass
            cached = [generation.result.timings.cached_n for generation in generations]
            return [generation.result.tokens for generation in generations], cached

    prompts = [f"The story of {i} birds{', and of the sea' * (i * 9 % 14)}:" for i in range(6)]
    prompts += [f"{system}What is {i}?" for i in (1, 2, 3, 3)]
    expected, _ = written(1, "none", range(10))
    for drafter, patient in (("none", True), ("auto", False)):
        found, cached = written(8, drafter, rng.permutation(10), patient=patient)
        assert found == expected
        assert sum(count > 40 for count in cached) >= 3


@pytest.mark.skipif(ggml_device.unavailable() is not None, reason="specx's kernels do not run here")
def test_real_prompts_are_scored_alike_in_pieces_and_from_their_first_token(smollm2_q4_0):
    text = "The sea was calm, and the birds of the harbour slept. " * 12
    asked = Asked(smollm2_q4_0, n_ctx=512, texts=2, drafter="none", kernels="specx", threads=1, store=False)
    with Session.open(asked) as session:
        prompt = session.tokenize(text, add_special=True, parse_special=False)
        first = session.generate(prompt, SAMPLING[0], n_predict=0, score_prompt=True)
        again = session.generate(prompt, SAMPLING[0], n_predict=3, score_prompt=True)
        written = session.generate(prompt[:20], SAMPLING[0], n_predict=9, evidence=True)
        for _ in session.together([first, written, again], patient=False):
            pass
        longer = [*prompt[:20], *written.result.tokens]
        scored = session.generate(longer, SAMPLING[0], n_predict=0, score_prompt=True)
        list(scored)
    for one, other in zip(first.result.prompt_evidence, again.result.prompt_evidence, strict=True):
        assert (one.logprob, one.total) == (other.logprob, other.total)
    assert len(first.result.prompt_evidence) == len(prompt) - 1
    # What was written with such a probability has it when it is read.
    logprobs = [evidence.logprob for evidence in written.result.evidence]
    assert logprobs == [evidence.logprob for evidence in scored.result.prompt_evidence[19:]]
