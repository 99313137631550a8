"""Sessions and generations on a scripted model: whatever is drafted, the answer is the same."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from specx.backends.base import Want
from specx.backends.errors import ContextFullError, GrammarError, UsageError
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.drafters import registry
from specx.drafters.base import Draft, Room
from specx.drafters.model import ModelGuesser
from specx.engine.cost.measuring import WAITING
from specx.engine.cost.timing import unwatched
from specx.engine.drafting import DraftModels
from specx.engine.learned.knowledge import Learned
from specx.engine.learned.lengths import Outlook
from specx.engine.offers import Asking, Reason
from specx.engine.plan import Plan
from specx.engine.session import Session, Timings
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.setup.finder import Candidate
from specx.engine.text.answer import Request

V = 64
SCRIPT = [int(token) for token in np.random.default_rng(7).integers(1, 28, 40)]  # letters
PROMPT = SCRIPT * 2
GREEDY = SamplingSettings(seed=5, temperature=0.0)
SETTINGS = {
    "greedy": GREEDY,
    "cool": SamplingSettings(seed=5, temperature=0.7),
    "warm": SamplingSettings(seed=6, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0),
    "penalties": SamplingSettings(seed=7, temperature=0.9, repeat_penalty=1.3, presence_penalty=0.4),
    "greedy penalties": SamplingSettings(seed=7, temperature=0.0, frequency_penalty=0.6, repeat_last_n=20),
}
STEPS = {n: 10.0 + n / 100 for n in range(1, 65)}  # milliseconds, on a simulated clock
FLAT = {"0": {str(n): ms for n, ms in STEPS.items()}}
DRAFTERS = registry.names()


class Watched(ScriptedModel):
    """Notes how wide its trees are; `before` is called with that before each call."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []
        self.before = lambda _widths: None

    def forward(self, trees, want=Want.LOGITS):
        self.seen.append([len(tree) for tree in trees])
        self.before(self.seen[-1])
        return super().forward(trees, want)


class Drafts:
    """One scripted draft model: by default the target's own law."""

    def __init__(self, clock, **options):
        self.clock, self.options, self.loaded = clock, options, []

    def search(self):
        return iter(())

    def obstacle(self, candidate):
        return None

    def load(self, candidate):
        self.loaded.append(ScriptedModel(step_costs={1: 1.0, 64: 2.0}, clock=self.clock, **self.options))
        return self.loaded[-1]


CANDIDATE = Candidate(Path("draft.gguf"), "draft", "draft", V, 1, 1)
DRAFT_LAWS = {
    "identical": {},
    "perturbed": {"seed": 3, "peak": 0.5},
    "useless": {"seed": 4, "script": ()},
    "short context": {"n_ctx": 96},
}


def session_of(
    root=None,
    notices=None,
    *,
    load=FLAT,
    drafter="auto",
    draft=None,
    draft_max=None,
    shift=False,
    kind=Watched,
    **options,
):
    """A session on a scripted model. The law of the draft model is the target's, but for `draft`."""
    clock = SimulatedClock()
    draft_law = {"vocab_size": V, "script": SCRIPT, "peak": 0.9, **(draft or {})}

    def draft_models(session):
        return DraftModels(
            Drafts(clock, **draft_law),
            session.learned,
            session.staircase,
            step_bytes=10,
            n_ctx=draft_law.get("n_ctx", session.n_ctx),
            vocab=session.vocab,
            forced=replace(CANDIDATE, shared=V if draft_law["vocab_size"] == V else 0),
            notice=session.notice,
            clock=clock,
        )

    law = {"vocab_size": V, "script": SCRIPT, "peak": 0.9}
    target = kind(**{**law, "step_costs": STEPS, "clock": clock, **options})
    settings = Asked(
        Path("scripted.gguf"),
        drafter=drafter,
        draft_max=draft_max,
        context_shift=shift,
        store=root is not None,
    )
    notice = (lambda _text: None) if notices is None else notices.append
    learned = Learned(Store(root, notice), model_key="model", cost_key="cost")
    session = Session(
        target,
        settings,
        learned,
        name="scripted",
        notice=notice,
        draft_models=draft_models if draft is not None or drafter == "model" else None,
        clock=clock,
    )
    session.staircase.watch = unwatched
    if load:
        session.staircase.load_json(load)
    return session


class WithBos:
    """A vocabulary whose metadata wants token 1 at the beginning."""

    bos = added_bos = 1

    def __init__(self, vocab):
        self.size = vocab.size

    def tokenize(self, text, *, add_special, parse_special):
        return [1] * add_special + [1] * text.startswith(b"<s>") + [2]

    def piece(self, token, *, special=False):
        return b"<s>"


def test_a_second_bos_is_kept_and_told_once():
    notices = []
    session = session_of(notices=notices)
    session.vocab = WithBos(session.vocab)
    warnings = []
    session.warn = warnings.append
    assert session.tokenize("a", add_special=True, parse_special=True) == [1, 2]
    assert session.tokenize("<s>a", add_special=False, parse_special=True) == [1, 2]
    assert not warnings
    for _ in range(2):
        assert session.tokenize("<s>a", add_special=True, parse_special=True) == [1, 1, 2]
    assert warnings == ["the prompt begins with <s>, and the model adds it as well: both are kept"]
    assert not notices


def run(session, sampling=GREEDY, prompt=PROMPT, n_predict=60, **options):
    generation = session.generate(prompt, sampling, n_predict=n_predict, **options)
    chunks = list(generation)
    result = generation.result
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert [token for chunk in chunks for token in chunk.tokens] == result.tokens
    check_timings(session, result, prompt, chunks)
    return result


def latest(session):
    """The room where the last text was written."""
    return session.slots[-1]


def check_timings(session, result, prompt, chunks):
    timings = result.timings
    assert timings.predicted_n == len(result.tokens)
    assert 0 <= timings.draft_n_accepted <= timings.draft_n
    assert timings.draft_n == sum(chunk.drafted for chunk in chunks)
    assert timings.draft_n_accepted == sum(chunk.accepted for chunk in chunks)
    assert timings.steps == sum(chunk.seconds > 0 for chunk in chunks)
    assert len(result.tokens) <= timings.steps + timings.draft_n_accepted
    assert all(len(chunk.sources) == len(chunk.tokens) for chunk in chunks)
    assert all(slot.cache.length == len(slot.cached) for slot in session.slots)
    if timings.steps:
        assert 1 <= timings.prompt_n <= len(prompt)
        seconds = sum(chunk.seconds for chunk in chunks)
        assert timings.predicted_ms == pytest.approx(seconds * 1e3)
        assert -1e-6 <= timings.host_ms <= timings.predicted_ms
        assert 0 <= timings.overhead_ms <= timings.predicted_ms
        assert 0 <= timings.explored_ms <= timings.draft_ms
        assert timings.predicted_per_second == pytest.approx(timings.predicted_n / seconds)
        assert timings.prompt_per_second == pytest.approx(
            timings.prompt_n / max(timings.prompt_ms, 1e-3) * 1e3
        )


def plainly(sampling=GREEDY, *args, **options):
    generating = {k: options.pop(k) for k in ("prompt", "n_predict", "ignore_eos", "stop") if k in options}
    return run(session_of(drafter="none", **options), sampling, *args, **generating)


class RandomPlan(Plan):
    """Any prefix of what is proposed, and now and then a random tree of random tokens."""

    def __init__(self, session, seed):
        super().__init__(session.staircase, clock=session.clock)
        self.rng = np.random.default_rng(seed)

    def choose(self, jobs, facts):
        [job], [part] = jobs, (decision := super().choose(jobs, facts)).parts
        limit = min(facts.max_width, facts.n_ctx - job.cache.length) - 1
        draft = job.drafting.propose(Room(limit, facts.max_leaves))
        draft = draft.head(int(self.rng.integers(len(draft) + 1)))
        if self.rng.random() < 0.3:
            n = int(self.rng.integers(min(limit, facts.max_leaves, 8) + 1))
            parents = np.array([self.rng.integers(-1, i) for i in range(n)], np.int32)
            tokens = self.rng.integers(0, V, n).astype(np.int32)
            draft = Draft(tokens, parents, np.zeros(n, np.float32), np.zeros(n, np.uint8))
        return replace(decision, parts=(replace(part, draft=draft),))

    def observe(self, *_step):
        """Nothing: what these steps cost says nothing of the steps a plan would choose."""


class NoTokenTwice:
    """A constraint that remembers: no token may follow itself within three tokens."""

    def __init__(self):
        self.recent = []

    def allowed(self, ids):
        return ~np.isin(ids, self.recent[-3:])

    def accept(self, token):
        assert token not in self.recent[-3:]
        self.recent.append(token)


class Within:
    """Allows the tokens of one set at each place in turn; the end after the first, and then only that."""

    def __init__(self, *places, end=0):
        self.places, self.end, self.emitted = places, end, []

    def allowed(self, ids):
        place = len(self.emitted)
        here = self.places[place] if place < len(self.places) else ()
        return np.isin(ids, [*here, self.end] if place else here)

    def accept(self, token):
        assert self.allowed(np.array([token]))[0]
        self.emitted.append(token)


@pytest.mark.parametrize("drafter", ["none", "auto"])
@pytest.mark.parametrize("shift", [False, True])
def test_a_finished_grammar_ends_the_answer_whatever_is_ignored(drafter, shift):
    places = [[3, 4], [0, 5, 6], [7]]
    for sampling in (GREEDY, replace(GREEDY, logit_bias={0: 40.0}), SETTINGS["warm"]):
        session = session_of(drafter=drafter, shift=shift)
        result = run(session, sampling, ignore_eos=True, constraint=Within(*places))
        assert result.finish_reason == "stop"
        assert [token in place for token, place in zip(result.tokens, places, strict=True)] == [True] * 3
    banned = run(session, replace(GREEDY, logit_bias={0: float("-inf")}), constraint=Within(*places))
    assert (banned.finish_reason, len(banned.tokens)) == ("stop", 3)
    early = run(session, replace(GREEDY, logit_bias={0: 40.0}), constraint=Within(*places))
    assert (early.finish_reason, len(early.tokens)) == ("stop", 1)


@pytest.mark.parametrize("drafter", [name for name in DRAFTERS if name != "none"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_drafter_does_not_change_the_answer(drafter, name):
    sampling = SETTINGS[name]
    plain, session = plainly(sampling, ignore_eos=True), session_of(drafter=drafter)
    result = run(session, sampling, ignore_eos=True)
    assert (result.tokens, result.text) == (plain.tokens, plain.text)
    assert len(result.tokens) == 60
    if "penalties" not in name:
        assert result.timings.steps < plain.timings.steps == 60  # something was drafted, and was right
    again = run(session, sampling, ignore_eos=True)
    assert again.tokens == plain.tokens


class Curious(Asking):
    """Asks the draft model a random number of times, whatever it costs."""

    rng = np.random.default_rng(11)

    def weigh(self, *_args):
        return (1.0, Reason.GAIN) if self.rng.random() < 0.7 else (0.0, None)


@pytest.mark.parametrize("leaves", [1, 2, 16])
@pytest.mark.parametrize("law", DRAFT_LAWS)
@pytest.mark.parametrize("drafter", ["auto", "model"])
def test_no_draft_model_changes_the_answer(drafter, law, leaves):
    session = session_of(drafter=drafter, draft=DRAFT_LAWS[law], max_leaves=leaves)
    for plan in (session.plan, Plan(session.staircase, clock=session.clock, asking=Curious)):
        session.plan = plan
        spent = []
        for name, sampling in SETTINGS.items():
            result = run(session, sampling, ignore_eos=True)
            assert result.tokens == plainly(sampling, ignore_eos=True).tokens, name
            spent.append(result.timings.draft_ms)
        assert max(spent) > 0
    assert session.draft_models.name == "draft"
    assert session.drafter_label == f"{drafter}, model draft"


@pytest.mark.parametrize("leaves", [1, 4])
@pytest.mark.parametrize("name", ["greedy", "cool", "warm"])
def test_no_draft_model_of_another_vocabulary_changes_the_answer(name, leaves):
    plain = run(session_of(drafter="none", vocab_size=320), SETTINGS[name], ignore_eos=True)
    session = session_of(
        drafter="model", draft={"vocab_size": 360, "seed": 5}, vocab_size=320, max_leaves=leaves
    )
    session.plan = Plan(session.staircase, clock=session.clock, asking=Curious)
    for _ in range(3):
        result = run(session, SETTINGS[name], ignore_eos=True)
        assert (result.tokens, result.text) == (plain.tokens, plain.text)
        assert result.timings.draft_ms > 0
    assert session.draft_models.name == "draft" and session.draft_models.model.calibration.trials > 20


@pytest.mark.parametrize("leaves", [1, 16])
def test_a_draft_model_that_checks_the_free_draft_does_not_change_the_answer(leaves, monkeypatch):
    checked, check = [], ModelGuesser.check

    def watched(guesser, chain, claimed):
        guesses = check(guesser, chain, claimed)
        checked.append((len(claimed), len(guesses)))
        return guesses

    monkeypatch.setattr(ModelGuesser, "check", watched)
    monkeypatch.setattr(Curious, "rng", np.random.default_rng(11))
    session = session_of(drafter="auto", draft={"peak": 0.7}, max_leaves=leaves)
    session.plan = Plan(session.staircase, clock=session.clock, asking=Curious)
    for name, sampling in SETTINGS.items():
        result = run(session, sampling, ignore_eos=True)
        assert result.tokens == plainly(sampling, ignore_eos=True).tokens, name
    several = [given for claimed, given in checked if claimed > 1]
    assert len(several) > 10 and max(several) > 3 > 1 == min(several)


def test_a_draft_model_of_the_same_law_is_always_right_whatever_the_temperature():
    # It knows the noise of every position, so it chooses what the target chooses.
    for name in ("greedy", "cool", "warm"):
        session = session_of(drafter="model", draft_max=16, max_leaves=1)  # which is never filled up
        generation = session.generate(PROMPT, SETTINGS[name], n_predict=100, ignore_eos=True)
        chunks = list(generation)
        assert sum(chunk.drafted for chunk in chunks) == sum(chunk.accepted for chunk in chunks) > 50
        assert {"model", "target"} == {source for chunk in chunks for source in chunk.sources}


@pytest.mark.parametrize("limits", [(1, 1), (2, 1), (3, 2), (8, 1), (64, 16)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_random_plans_do_not_change_the_answer(limits, seed):
    width, leaves = limits
    session = session_of(max_width=width, max_leaves=leaves, draft={"peak": 0.6})
    for name, sampling in SETTINGS.items():
        session.set_drafter(["auto", "none", "model"][seed])
        session.plan = RandomPlan(session, seed)
        result, plain = run(session, sampling, ignore_eos=True), plainly(sampling, ignore_eos=True)
        assert result.tokens == plain.tokens, name


@pytest.mark.parametrize("draft_max", [0, 1, 3])
def test_draft_max(draft_max):
    session = session_of(draft_max=draft_max, load={"0": {"1": 10.0, "64": 80.0}})
    generation = session.generate(PROMPT, GREEDY, n_predict=40)
    assert max(chunk.drafted for chunk in generation) <= draft_max
    assert generation.result.tokens == plainly(n_predict=40).tokens


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("widths", [{1}, {4}, {2, 8}, {3, 5, 64}], ids=str)
def test_only_some_widths(drafter, widths):
    # Token 0 fills a batch up; a model that likes it accepts some of that, with any drafter.
    script = [*SCRIPT[:6], 0, 0, 0, *SCRIPT[6:12], 0]
    session = session_of(drafter=drafter, script=script, n_ctx=120)
    session.plan = Plan(session.staircase, widths=frozenset(widths), clock=session.clock)
    result = run(session, prompt=script * 2, n_predict=-1, ignore_eos=True)
    plain = session_of(drafter="none", script=script, n_ctx=120)
    expected = run(plain, prompt=script * 2, n_predict=-1, ignore_eos=True)
    assert {width for [width] in session.model.seen} <= widths
    assert result.finish_reason == "context"
    assert result.tokens == expected.tokens[: len(result.tokens)]
    if widths != {1}:
        assert result.timings.draft_n_accepted > 0
    # The context ends min(widths) - 1 tokens earlier, unless filling happened to be right at the very end.
    assert 0 <= len(expected.tokens) - len(result.tokens) <= min(widths) - 1


@pytest.mark.parametrize("name", ["greedy", "warm"])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_constraint(drafter, name):
    expected = run(session_of(drafter="none"), SETTINGS[name], ignore_eos=True, constraint=NoTokenTwice())
    session = session_of(drafter=drafter)
    result = run(session, SETTINGS[name], ignore_eos=True, constraint=NoTokenTwice())
    assert result.tokens == expected.tokens
    assert all(len(set(result.tokens[i : i + 4])) == 4 for i in range(56))
    assert (
        run(session, SETTINGS[name], ignore_eos=True).tokens
        == plainly(SETTINGS[name], ignore_eos=True).tokens
    )


class Dies(NoTokenTwice):
    def allowed(self, ids):
        return np.zeros(len(ids), bool) if len(self.recent) == 7 else super().allowed(ids)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_an_error_in_the_middle_of_a_step_leaves_a_usable_session(drafter):
    session = session_of(drafter=drafter)
    generation = session.generate(PROMPT, GREEDY, n_predict=60, constraint=Dies())
    with pytest.raises(GrammarError):
        list(generation)
    assert generation.result.finish_reason == "error"
    assert isinstance(generation.result.failure, GrammarError)
    assert len(generation.result.tokens) <= 7
    assert all(slot.cache.length == len(slot.cached) for slot in session.slots)
    assert run(session).tokens == plainly().tokens


@pytest.mark.parametrize("drafter", ["none", "auto"])
def test_n_predict_cuts_inside_an_accepted_run(drafter):
    full = plainly(peak=0.999).tokens
    session = session_of(drafter=drafter, peak=0.999)
    accepted = 0
    for n in range(1, 25):
        result = run(session, n_predict=n)
        assert result.tokens == full[:n]
        assert result.finish_reason == "length"
        accepted = max(accepted, result.timings.draft_n_accepted - n)
        # What was computed beyond the cut is not taken for text.
        rest = run(session, prompt=[*PROMPT, *result.tokens], n_predict=10)
        assert rest.tokens == full[n : n + 10]
    assert (accepted > 0) == (drafter == "auto")  # there were cuts inside a run
    assert run(session, n_predict=0).finish_reason == "length"


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_end_of_generation_inside_an_accepted_run(drafter):
    script = [*SCRIPT[:12], 0, *SCRIPT[12:]]
    session = session_of(drafter=drafter, script=script, peak=0.999)
    result = run(session, prompt=script + script[:3], evidence=True)
    assert result.tokens == script[3:12]
    assert result.finish_reason == "stop"
    assert len(result.evidence) == len(result.tokens) + 1  # why it ended, too
    assert 0 not in latest(session).cached[len(script) :]
    again = run(session, prompt=script + script[:3], ignore_eos=True, n_predict=20)
    assert again.tokens == script[3:23]
    turn = [*script, *script[:3], *result.tokens, 0, *script[13:17]]
    assert run(session, prompt=turn, n_predict=5).tokens == script[17:22]
    # Where a stop string ends with the token before it, that is why, however many tokens come at once.
    ending = session.vocab.piece(script[11]).decode()
    stopped = run(session, prompt=script + script[:3], stop=[ending], evidence=True)
    assert stopped.tokens == script[3 : script.index(script[11], 3) + 1]
    assert len(stopped.evidence) == len(stopped.tokens)
    exactly = run(session, prompt=script + script[:3], n_predict=9)
    assert (exactly.tokens, exactly.finish_reason) == (script[3:12], "length")


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_stop_strings_wherever_they_fall(drafter):
    plain = plainly(peak=0.999)
    session = session_of(drafter=drafter, peak=0.999)
    rng = np.random.default_rng(1)
    for _ in range(15):
        start = int(rng.integers(2, len(plain.text) - 12))
        stop = plain.text[start : start + int(rng.integers(1, 10))]
        result = run(session, stop=[stop, "never in it"], evidence=True)
        assert result.text == plain.text.split(stop)[0]
        assert result.finish_reason == "stop"
        # The tokens end with the one that completed the stop string, whatever came along with it.
        texts = [b"".join(map(session.vocab.piece, plain.tokens[:n])) for n in range(61)]
        ends = next(n for n, text in enumerate(texts) if stop.encode() in text)
        assert result.tokens == plain.tokens[:ends]
        assert len(result.evidence) == ends
    assert run(session, stop=["\0"]).text == plain.text  # nothing held back is lost


def test_text_that_might_become_a_stop_string_comes_at_the_end():
    plain = plainly(n_predict=10)
    result = run(session_of(), n_predict=10, stop=[plain.text[-3:] + "\0"])
    assert (result.text, result.finish_reason) == (plain.text, "length")


@pytest.mark.parametrize("drafter", ["none", "auto"])
def test_cancel(drafter):
    session = session_of(drafter=drafter, draft_max=4)
    generation = session.generate(PROMPT, GREEDY, n_predict=60)
    for _chunk in generation:
        generation.cancel()
    result = generation.result
    assert result.finish_reason == "cancelled"
    assert result.timings.steps == 1
    assert result.tokens == plainly().tokens[: len(result.tokens)]
    assert run(session).tokens == plainly().tokens
    unborn = session.generate(PROMPT, GREEDY)
    unborn.cancel()
    assert [(chunk.text, chunk.last) for chunk in unborn] == [("", True)]
    assert (unborn.result.finish_reason, unborn.result.tokens) == ("cancelled", [])


def test_a_consumer_that_goes_away_and_one_that_comes_back_too_late():
    session, plain = session_of(draft_max=4, max_texts=1), plainly().tokens
    first = session.generate(PROMPT, GREEDY, n_predict=60)
    stream = iter(first)
    next(stream)
    next(stream)
    had = list(first.result.tokens)
    assert run(session).tokens == plain
    assert sum(len(chunk.tokens) for chunk in stream) == 0  # another has taken over
    assert first.result.finish_reason == "cancelled"
    assert first.result.tokens == had == plain[: len(had)]
    assert run(session).tokens == plain
    assert len(session.slots) == 1 and latest(session).cache.length == len(latest(session).cached)


def test_a_consumer_that_comes_back_goes_on_where_there_is_room_for_both():
    session, plain = session_of(draft_max=4), plainly().tokens
    first = session.generate(PROMPT, GREEDY, n_predict=60)
    stream = iter(first)
    next(stream)
    assert run(session).tokens == plain
    assert len(session.slots) == 2
    list(stream)
    assert (first.result.tokens, first.result.finish_reason) == (plain, "length")
    assert all(slot.user is None for slot in session.slots)


def test_threads_take_turns():
    """There is room for one text: without turns they would take it from each other."""
    session, plain = session_of(draft_max=4), plainly().tokens
    found, started = [], threading.Barrier(4)

    def write():
        started.wait()
        found.append(run(session).tokens)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [plain] * 4


def test_a_thread_waits_until_what_another_has_begun_is_given_up():
    session, plain = session_of(draft_max=4), plainly().tokens
    begun = iter(session.generate(PROMPT, GREEDY, n_predict=60))
    next(begun)
    found = []
    thread = threading.Thread(target=lambda: found.append(run(session).tokens))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and not found
    begun.close()
    thread.join()
    assert found == [plain]


def test_a_conversation_is_found_again_where_it_was_left():
    session, other = session_of(max_texts=2), [9, *PROMPT]
    first, second = run(session, n_predict=20), run(session, prompt=other, n_predict=20)
    assert (first.timings.prompt_n, second.timings.prompt_n) == (len(PROMPT), len(other))
    for prompt, answer in ((PROMPT, first), (other, second), (PROMPT, first)):
        again = run(session, prompt=[*prompt, *answer.tokens, 5], n_predict=3)
        assert again.timings.prompt_n <= 22
    run(session, prompt=[8, *PROMPT], n_predict=3)  # in place of the one that was left for the longest time
    assert len(session.slots) == 2
    assert run(session, n_predict=3).timings.prompt_n == 1


@pytest.mark.parametrize("drafter", ["none", "auto"])
def test_only_what_is_new_of_the_prompt_is_read(drafter):
    session = session_of(drafter=drafter)
    first = run(session, n_predict=20)
    assert first.timings.prompt_n == len(PROMPT)
    turn = [*PROMPT, *first.tokens, 5, 6, 7]
    second = run(session, prompt=turn, n_predict=20)
    # The last token was never computed, unless it was accepted in a step that went on.
    assert second.timings.prompt_n == 4 if drafter == "none" else second.timings.prompt_n in (3, 4)
    assert second.tokens == plainly(prompt=turn, n_predict=20).tokens
    other = [*PROMPT[:30], 9, *PROMPT[31:]]
    third = run(session, prompt=other, n_predict=20)
    assert third.timings.prompt_n == len(PROMPT) - 30
    assert third.tokens == plainly(prompt=other, n_predict=20).tokens
    assert run(session, prompt=other, n_predict=20).timings.prompt_n == 1
    assert (
        run(session, prompt=other[:5], n_predict=20).tokens == plainly(prompt=other[:5], n_predict=20).tokens
    )
    assert run(session, prompt=[3], n_predict=20).tokens == plainly(prompt=[3], n_predict=20).tokens


def test_a_model_that_cannot_take_tokens_back():
    notices = []
    session = session_of(notices=notices, load=None, can_rewind=False)
    assert session.drafter_name == "none"
    assert session.plain_reason in session.summary()
    assert len(notices) == 1
    first = run(session, n_predict=20)
    assert first.timings.draft_n == 0
    turn = [*PROMPT, *first.tokens, 5]
    assert run(session, prompt=turn, n_predict=20).timings.prompt_n == 2
    other = [*PROMPT[:30], 9]
    again = run(session, prompt=other, n_predict=20)
    assert again.timings.prompt_n == 31  # from the beginning
    assert again.tokens == plainly(prompt=other, n_predict=20).tokens
    with pytest.raises(GrammarError):
        list(session.generate(PROMPT, GREEDY, constraint=Dies()))
    assert run(session, n_predict=20).tokens == first.tokens


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_context_fills_up(drafter):
    session = session_of(drafter=drafter, n_ctx=100)
    result = run(session, n_predict=-1, ignore_eos=True)
    assert result.finish_reason == "context"
    assert len(result.tokens) == 100 - (len(PROMPT) - 1)
    assert result.tokens == plainly(ignore_eos=True).tokens[: len(result.tokens)]
    longest = run(session, prompt=[*PROMPT, *SCRIPT[:19]], n_predict=-1, ignore_eos=True)
    assert len(longest.tokens) == 2


@pytest.mark.parametrize("name", ["greedy", "warm", "penalties"])
@pytest.mark.parametrize("drafter", ["suffix", "auto", "random"])
def test_a_shifted_context_goes_on_the_same_way(drafter, name):
    options = {"n_ctx": 48, "order": 30, "script": SCRIPT, "shift": True}  # it depends on what is forgotten
    asked = {"prompt": SCRIPT[:20], "n_predict": 150, "ignore_eos": True}
    plain_session = session_of(drafter="none", **options)
    plain = run(plain_session, SETTINGS[name], **asked)
    session = session_of(drafter="auto" if drafter == "random" else drafter, **options)
    if drafter == "random":
        session.plan = RandomPlan(session, 3)
    result = run(session, SETTINGS[name], **asked)
    assert len(result.tokens) == 150
    assert result.finish_reason == "length"
    assert result.tokens == plain.tokens
    # What is left in the cache was computed with more in view than a new prompt has.
    left = list(latest(session).cache.tokens)[:30]
    fresh = run(session_of(drafter="none", **options), prompt=left, n_predict=10)
    again = run(session, prompt=left, n_predict=10)
    assert again.tokens == fresh.tokens
    assert again.timings.prompt_n == len(left)
    # And the same question once more has the same answer: its positions are counted anew.
    assert run(session, SETTINGS[name], **asked).tokens == plain.tokens


def test_a_shift_keeps_the_token_that_begins_a_sequence():
    session = session_of(drafter="none", n_ctx=48, shift=True)
    session.vocab.bos = 3
    run(session, prompt=[3, *SCRIPT[:20]], n_predict=100, ignore_eos=True)
    assert latest(session).cache.tokens[0] == 3
    assert latest(session).cached[0] == 3


@pytest.mark.parametrize(("keep", "kept"), [(0, 1), (1, 1), (12, 12), (-1, 21), (40, 21)])
def test_a_shift_keeps_as_much_of_the_prompt_as_was_asked_for(keep, kept):
    session = session_of(drafter="none", n_ctx=48, shift=True)
    session.vocab.bos = 3
    prompt = [3, *SCRIPT[:20]]
    result = run(session, prompt=prompt, n_predict=100, ignore_eos=True, keep=keep)
    assert len(result.tokens) == 100
    slot = latest(session)
    assert list(slot.cache.tokens[:kept]) == slot.cached[:kept] == prompt[:kept]
    assert slot.cached[kept] == -1  # and nothing more
    again = run(session, prompt=[*prompt[:kept], 9, 8, 7], n_predict=1)
    assert again.timings.prompt_n == 3


def test_a_context_that_is_nearly_all_kept_ends():
    session = session_of(drafter="none", n_ctx=48, shift=True)
    result = run(session, prompt=SCRIPT[:40], n_predict=1000, ignore_eos=True, keep=-1)
    assert len(result.tokens) == 1000
    result = run(session, prompt=[*SCRIPT[:40], *SCRIPT[:7]], n_predict=1000, ignore_eos=True, keep=-1)
    assert (len(result.tokens), result.finish_reason) == (2, "context")


def test_prompts_that_cannot_be_read():
    session = session_of(n_ctx=30)
    with pytest.raises(UsageError, match="empty"):
        session.generate([], GREEDY)
    with pytest.raises(ContextFullError, match="30 tokens and the context holds 30"):
        session.generate([1] * 30, GREEDY)
    for tokens, trained, hint in (
        (40, 30, "shorten it to its first 37%: the model was trained for 30 tokens of context"),
        (30, 0, "-c 1024"),
        (800, 8192, "-c 2048"),
        (8000, 8192, "-c 8192"),
        (8000, 8192, "or shorten it to its first 0%"),
        (8192, 8192, "shorten it to its first 96% and use -c 8192, all that the model was trained for"),
    ):
        session.model.facts = replace(session.model.facts, n_ctx_train=trained)
        with pytest.raises(ContextFullError) as caught:
            session.generate([1] * tokens, GREEDY)
        assert hint in caught.value.hint
    with pytest.raises(ContextFullError, match="7000 tokens") as caught:
        session.generate([1] * 7000, GREEDY)
    staircase = session.staircase
    widest = max(staircase.steps(staircase.depths[0]))
    seconds = 7 * staircase.cost(widest, 3500) / widest
    assert f"-c 8192 (reading it takes about {seconds:.0f} s)" in caught.value.hint
    staircase.forget()
    with pytest.raises(ContextFullError) as caught:
        session.generate([1] * 7000, GREEDY)
    assert "reading" not in caught.value.hint
    assert len(run(session, prompt=[1] * 29, n_predict=5).tokens) == 2
    with pytest.raises(UsageError, match="telepathy"):
        session.set_drafter("telepathy")
    assert session.drafter_name == "auto"
    with pytest.raises(GrammarError):
        session.grammar('root ::= "a"')


def test_the_seed_is_chosen_and_told():
    session = session_of()
    sampling = SamplingSettings(temperature=1.0)
    first, second = run(session, sampling), run(session, sampling)
    assert first.seed != second.seed
    told = SamplingSettings(seed=first.seed, temperature=1.0)
    assert run(session, told).tokens == first.tokens


def test_evidence_is_one_row_a_token():
    session = session_of()
    result = run(session, SETTINGS["cool"], evidence=True, ignore_eos=True)
    assert len(result.evidence) == len(result.tokens) == 60
    assert all(evidence.margin > 0 and len(evidence.ids) == V for evidence in result.evidence)
    assert run(session).evidence == []


def test_timings_have_the_names_of_the_contract():
    names = (
        "prompt_n",
        "prompt_ms",
        "prompt_per_second",
        "cached_n",
        "predicted_n",
        "predicted_ms",
        "predicted_per_second",
    )
    names += ("draft_n", "draft_n_accepted", "steps", "host_ms", "draft_ms", "explored_ms", "overhead_ms")
    assert tuple(field.name for field in fields(Timings)) == names
    assert tuple(Timings(predicted_ms=1.23456).as_dict().items())[5] == ("predicted_ms", 1.235)


def test_reset_forgets_the_session():
    session = session_of()
    first = run(session)
    session.set_drafter("suffix")
    session.reset()
    assert [(slot.cached, slot.cache.length) for slot in session.slots] == [([], 0)]
    assert session.drafter_name == "suffix"
    assert len(session.drafter.inner.history()) == 0
    again = run(session)
    assert again.timings.prompt_n == len(PROMPT)
    assert again.tokens == first.tokens


def test_measuring_happens_once_and_only_where_there_is_a_choice():
    notices = []
    session = session_of(notices=notices, load=None, drafter="none")
    run(session, n_predict=3)
    assert (notices, session.staircase.to_json()) == ([], {})
    session.set_drafter("auto")
    session.forget_conversation()
    run(session, n_predict=3)
    assert len(notices) == 1
    assert notices[0].startswith("measured this model on this machine in ")
    run(session, n_predict=3)
    assert len(notices) == 1
    assert "one token" in session.summary()


def test_measuring_is_told_also_when_there_is_a_conversation_already():
    notices = []
    session = session_of(notices=notices, load=None, drafter="none")
    first = run(session, n_predict=3)
    session.set_drafter("auto")
    run(session, prompt=[*PROMPT, *first.tokens, 5], n_predict=3)
    assert session.staircase.depths == [len(PROMPT) + 2]
    assert [notice[:8] for notice in notices] == ["measured"]


def test_a_run_with_narrow_steps_leaves_wider_ones_to_be_measured(tmp_path):
    notices = []
    for max_width, told in ((1, []), (3, []), (64, [4, 8, 16]), (1, None), (64, None)):
        notices.clear()
        with session_of(tmp_path, notices, load=None, max_width=max_width) as session:
            run(session, n_predict=3)
            assert set(range(1, max_width + 1)) & {1, 2, 4, 8, 16, 64} <= set(session.staircase.steps(0))
        measured = [text for text in notices if text.startswith("measured this model")]
        assert len(measured) == (told is not None)
        for n in (4, 8, 16) if measured else ():
            assert (f", {n} cost " in measured[0]) == (n in told)  # nothing is told that was not timed


class Disturbed(Watched):
    """Its calls take up to eight times as long, as on a machine that does something else."""

    def __init__(self, *, clock, **options):
        super().__init__(clock=clock, **options)
        self.rng = np.random.default_rng(2)
        self.before = lambda _widths: clock.sleep(0.01 * int(self.rng.integers(8)))


def test_a_disturbed_measurement_is_told_and_not_kept(tmp_path):
    with session_of(tmp_path, load=FLAT):
        pass
    before = kept_staircases(tmp_path)
    notices = []
    with session_of(tmp_path, notices, load=None, kind=Disturbed) as session:
        session.staircase.load_json({})
        run(session, n_predict=3)
        assert session.staircase.depths and session.staircase.disturbed
    assert len(notices) == 2
    assert notices[1].startswith("something else kept the machine busy")
    assert kept_staircases(tmp_path) == before != {}


def test_what_was_measured_beside_other_work_is_told_and_not_kept(tmp_path):
    notices = []
    with session_of(tmp_path, notices, load=None) as session:
        session.staircase.watch = lambda: lambda: True
        run(session, n_predict=3)
        assert session.staircase.depths and session.staircase.disturbed
        beside = session.staircase.steps(0)
    assert notices[-1].startswith("something else kept the machine busy")
    with session_of(tmp_path, notices, load=None) as session:  # still busy: nothing is measured, or said
        session.staircase.watch = lambda: lambda: True
        notices.clear()
        run(session, n_predict=3)
        assert session.staircase.steps(0) == pytest.approx(beside, rel=0.3)
        assert session.staircase.disturbed and session.staircase.to_json() == {} and notices == []
    with session_of(tmp_path, notices, load=None) as session:  # quiet now
        session.staircase.watch = unwatched
        run(session, n_predict=3)
        assert not session.staircase.disturbed and set(session.staircase.to_json()) == {"0", "288"}
        assert len([text for text in notices if text.startswith("measured this model")]) == 1
    with session_of(tmp_path, notices, load=None) as session:
        assert not session.staircase.provisional and session.staircase.depths == [0, 288]


def test_a_draft_model_that_was_asked_for_is_named_before_it_is_loaded(tmp_path):
    with session_of(tmp_path) as session:
        assert "drafter auto (suffix + recycle)," in session.summary()
    with session_of(tmp_path, draft={}) as session:
        assert f"drafter auto (suffix + recycle), {CANDIDATE.name} as asked" in session.summary()


def test_what_another_process_measured_meanwhile_is_taken_over(tmp_path):
    notices, waiting = [], threading.Event()
    other = session_of(tmp_path, [], load=None)
    late = session_of(tmp_path, notices, load=None)
    store = Store(tmp_path)

    def begin():
        late.notice = lambda text: (notices.append(text), waiting.set())
        run(late, n_predict=3)

    with store.measuring():
        thread = threading.Thread(target=begin)
        thread.start()
        assert waiting.wait(60)
        other.staircase.measure_first(other.cache, clock=other.clock)
        other.learned.save_staircase(other.staircase)
    thread.join()
    assert [text for text in notices if "measure" in text] == [WAITING]
    assert late.staircase.steps(0) == pytest.approx(other.staircase.steps(0), rel=0.3)
    late.close()
    other.close()


def test_what_is_kept_and_contradicted_by_real_steps_is_measured_again(tmp_path):
    notices = []
    wrong = {"0": {str(n): 100.0 + n for n in range(1, 65)}}
    with session_of(tmp_path, notices, load=wrong, draft_max=1) as session:
        for _ in range(10):
            run(session)
            if session.staircase.contradicted:
                break
            session.forget_conversation()
        assert session.staircase.contradicted
        session.forget_conversation()
        run(session)
        assert session.staircase.steps(session.staircase.depths[0])[1] == pytest.approx(STEPS[1])
    with session_of(tmp_path, notices, load=None) as session:
        assert session.staircase.cost(1, 100) == pytest.approx(STEPS[1], rel=0.1)


@pytest.mark.parametrize("calls", [1, 8, 40])
def test_cancelling_ends_a_measurement_at_once(tmp_path, calls):
    with session_of(tmp_path, load=None) as session:
        seen = session.model.seen
        generation = session.generate(PROMPT, GREEDY, n_predict=60)
        session.model.before = lambda _widths: generation.cancel() if len(seen) == calls else None
        assert [chunk.last for chunk in generation] == [True]
        assert generation.result.finish_reason == "cancelled"
        assert len(seen) <= calls + 1
        assert (session.staircase.depths, latest(session).cache.length) == ([], 0)
    assert kept_staircases(tmp_path) == {}


def test_where_nothing_is_written_no_steps_are_timed(tmp_path):
    with session_of(tmp_path, load=None) as session:
        list(session.generate(PROMPT, GREEDY, n_predict=0, score_prompt=True))
        assert session.staircase.depths == []
        list(session.generate(PROMPT, GREEDY, n_predict=2))
        assert session.staircase.depths


def test_what_is_measured_while_an_answer_is_written_is_told_apart():
    # Past a mark the steps are timed anew: that is time of the answer, but of no step, and little at once.
    session = session_of(n_ctx=2048, draft_max=4)
    generation = session.generate((SCRIPT * 7)[:270], GREEDY, n_predict=600, ignore_eos=True)
    chunks, slowest = [chunk for chunk in generation if chunk.step], max(STEPS.values())
    timings = generation.result.timings
    assert len(session.staircase.depths) == 2
    assert timings.overhead_ms > 10 * slowest
    assert timings.overhead_ms < 0.3 * timings.predicted_ms
    steps_ms = sum(STEPS[len(chunk.step.draft) + 1] for chunk in chunks)
    assert timings.predicted_ms - timings.overhead_ms == pytest.approx(steps_ms)
    assert 2 * slowest < max(chunk.seconds for chunk in chunks) * 1e3 < 4 * slowest
    assert max(chunk.step.seconds for chunk in chunks) * 1e3 == pytest.approx(slowest, rel=0.1)
    again = session.generate((SCRIPT * 7)[:270], GREEDY, n_predict=60, ignore_eos=True)
    assert list(again) and again.result.timings.overhead_ms == 0


def files(root):
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))


def kept_staircases(root):
    return {path: path.read_bytes() for path in files(root) if path.parent.name == "staircase"}


def test_what_was_learned_is_there_next_time(tmp_path):
    notices = []
    with session_of(tmp_path, notices, load=None) as session:
        first = run(session)
    assert [path.parent.name for path in files(tmp_path)] == [
        "calibration",
        "history",
        "lengths",
        "record",
        "recycle",
        "staircase",
    ]
    before = len(notices)
    with session_of(tmp_path, notices, load=None) as session:
        assert session.staircase.to_json()
        text = session.drafter.inner.history()
        assert first.tokens == text[: len(first.tokens)].tolist()
        assert len(session.drafter.inner.to_arrays()["tokens"]) > 0
        assert session.drafter.inner.calibration.counts.sum() > 0
        second = run(session)
    assert len(notices) == before  # nothing was measured again, and nothing was wrong
    assert second.tokens == first.tokens
    assert second.timings.steps <= first.timings.steps


def test_what_is_expected_of_an_answer_follows_from_the_request_and_from_earlier_ones(tmp_path):
    def expected(session, **options):
        return session.outlook(Request([1, 2], GREEDY, **options)).remaining

    unknown = Outlook(most=1000).remaining
    with session_of(tmp_path, drafter="none") as session:
        assert expected(session, n_predict=40, ignore_eos=True) == pytest.approx(40)
        assert expected(session, ignore_eos=True) == pytest.approx(session.n_ctx - 2)
        assert expected(session, n_predict=1000) == pytest.approx(unknown)
        for _ in range(20):
            run(session, n_predict=30, ignore_eos=True)  # these say nothing of where answers end
        assert expected(session, n_predict=1000) == pytest.approx(unknown)
        for _ in range(20):
            for _ in session.generate(PROMPT, GREEDY):
                break  # the reader has enough
    with session_of(tmp_path, drafter="none") as session:
        assert expected(session, n_predict=1000) < unknown
        for _ in range(40):
            run(session, n_predict=300)
    with session_of(tmp_path, drafter="none") as session:
        assert expected(session, n_predict=300) > 150 > expected(session, n_predict=20)


ANSWER = """
import pathlib, sys, time
from specx.backends.store import Store
from specx.engine.learned.knowledge import Learned

root, number = pathlib.Path(sys.argv[1]), int(sys.argv[2])


class Slow(Store):
    def load_arrays(self, *entry):  # time enough for the other one to come between reading and writing
        return (super().load_arrays(*entry), time.sleep(0.01))[0]


learned = Learned(Slow(root), model_key="model", cost_key="cost")
print("ready", flush=True)
sys.stdin.readline()
for turn in range(20):
    learned.remember([number, turn])
    learned.save()
"""


def test_two_processes_that_close_at_once_keep_both_histories(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-P", "-c", ANSWER, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(number)], **pipes) for number in (1, 2)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=240)
    assert [worker.returncode for worker in workers] == [0, 0]
    tokens = Store(tmp_path).load_arrays("history", "model")["tokens"].reshape(-1, 3).tolist()
    assert sorted(tokens) == [[number, turn, -1] for number in (1, 2) for turn in range(20)]
    assert [turn for number, turn, _ in tokens if number == 1] == list(range(20))


def test_an_answer_is_kept_once_however_often_the_session_is_closed(tmp_path):
    session = session_of(tmp_path)
    result = run(session, n_predict=5)
    session.close()
    session.close()
    tokens = Store(tmp_path).load_arrays("history", "model")["tokens"].tolist()
    assert tokens == [*result.tokens, -1]


def test_recycled_rows_survive_another_drafter_without_a_store():
    session = session_of()
    run(session)
    known = len(session.drafter.inner.to_arrays()["tokens"])
    session.set_drafter("none")
    session.set_drafter("recycle")
    assert len(session.drafter.inner.to_arrays()["tokens"]) == known > 0


@pytest.mark.parametrize("damage", [b"", b"garbage" * 50, None], ids=["empty", "garbage", "cut"])
def test_damaged_entries_do_no_harm(tmp_path, damage):
    with session_of(tmp_path, load=None) as session:
        first = run(session)
    for path in files(tmp_path):
        path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    notices = []
    with session_of(tmp_path, notices, load=None) as session:
        assert run(session).tokens == first.tokens
    assert sum("damaged" in notice for notice in notices) == 1  # told once
    with session_of(tmp_path, load=None) as session:
        assert session.staircase.to_json()


def test_sound_entries_of_something_else_do_no_harm(tmp_path):
    with session_of(tmp_path, load=None) as session:
        first = run(session)
    store = Store(tmp_path)
    wrong = {"tokens": np.array([V + 7, -9] * 20, np.int32), "counts": np.zeros((3, 2), np.float32)}
    others = (
        wrong,
        {"tokens": np.array(["a", "b"])},
        {"tokens": np.zeros((2, 2), np.int32)},
        {"x": np.zeros(3)},
    )
    for arrays in others:
        for kind in ("calibration", "history", "recycle"):
            store.save_arrays(kind, "model", arrays)
        store.save_json("staircase", "cost", {"steps": {"0": {"1": -1}}})
        with session_of(tmp_path, load=None) as session:
            assert run(session).tokens == first.tokens


def test_without_a_store_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECX_CACHE", str(tmp_path / "cache"))
    with session_of(load=None) as session:
        run(session)
        session.set_drafter("suffix")
    assert files(tmp_path) == []
    session.close()  # twice is fine
