"""Heads beside a scripted target: what they are given is what the target computed, and the text is the same.

The head here knows the target and says what comes next, rightly or not as a test wants. It looks at every
hidden state it is given: each must be that of the token before the pair's token, in the text as it is.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.base import Output, Want
from specx.backends.errors import ModelError
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.settings import HEAD_HELD
from specx.backends.store import Store
from specx.drafters.base import Draft, Text, Verified
from specx.drafters.guesser import GuessCosts
from specx.drafters.head import DraftHead
from specx.drafters.pairs import PairRunner, pair_head
from specx.engine.cost.timing import unwatched
from specx.engine.drafting import DraftModels
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.setup.finder import Candidate

V, ORDER = 24, 2
LAYERS = (1, 4, 6)


class KnowingHead:
    """A `PairModel` whose states are the target's own, with a mark where they are its own guess.

    Attributes:
        calls: (slot, number of pairs, position) of each.
        right: whether it says what the target would.
    """

    def __init__(self, target, *, texts=4, n_ctx=512, columns=None, right=True, sleep=lambda _: None):
        self.target, self.right, self.sleep = target, right, sleep
        self.columns, self.n_ctx, self.max_texts = columns, n_ctx, texts
        self.held = [[] for _ in range(texts)]  # tokens of the pairs of each text
        self.calls = []
        self.closed = False

    def encode(self, features):
        return np.pad(features, ((0, 0), (0, 1)))

    def step(self, slot, tokens, hidden, position):
        held = self.held[slot]
        assert len(held) == position and position + len(tokens) <= self.n_ctx
        self.calls.append((slot, len(tokens), position))
        self.sleep(0.4e-3 + 0.1e-3 * len(tokens))
        for token, state in zip(tokens.tolist(), hidden, strict=True):
            if len(held) >= ORDER:  # what the state depends on is known
                self.check(held[-ORDER:], state)
            held.append(token)
        context = held[-ORDER:]
        logits = self.target.logits(context if self.right else [context[-1], (context[-1] + 1) % V])
        state = np.append(self.target.hidden(context), 1.0).astype(np.float32)
        return logits if self.columns is None else logits[self.columns], state

    def check(self, context, state):
        np.testing.assert_array_equal(state[:-1], self.target.hidden(context))

    def forget(self, slot, position):
        del self.held[slot][position:]

    def close(self):
        self.closed = True


def made_target(**options):
    target = ScriptedModel(V, order=ORDER, seed=3, **options)
    target.extract(LAYERS)
    return target


def features_of(target, text, start, end):
    return np.stack([target.hidden(text[: i + 1]) for i in range(start, end)])


def test_what_is_drafted_goes_on_from_what_was_given():
    target = made_target()
    head = KnowingHead(target)
    runner = PairRunner(head, 0)
    text = [5, 7, 1, 9, 3, 2]
    with pytest.raises(ValueError, match="nothing to go on from"):
        runner.logits([1])
    runner.accept(0, text[:5], features_of(target, text, 0, 5))
    assert runner.unread(text[5:]) == 5 and runner.unread(text[5:], 3) == 8
    np.testing.assert_array_equal(runner.logits(text[5:]), target.logits(text))
    np.testing.assert_array_equal(runner.logits([2, 8]), target.logits([*text, 8]))
    np.testing.assert_array_equal(runner.logits([2, 8, 4]), target.logits([*text, 8, 4]))
    assert [call[1:] for call in head.calls] == [(5, 0), (1, 5), (1, 6)]
    # Another branch, from where it differs; and the same one again is computed once more.
    np.testing.assert_array_equal(runner.logits([2, 8, 11, 6]), target.logits([2, 8, 11, 6]))
    np.testing.assert_array_equal(runner.logits([2, 8, 11, 6]), target.logits([2, 8, 11, 6]))
    assert [call[1:] for call in head.calls[3:]] == [(1, 6), (1, 7), (1, 7)]


def test_pairs_of_drafted_tokens_are_forgotten_when_the_target_has_computed_them():
    """But for the first one, whose token was certain and whose state was the target's."""
    target = made_target()
    head = KnowingHead(target)
    runner = PairRunner(head, 0)
    text = [5, 7, 1, 9, 3, 2]
    runner.accept(0, text[:4], features_of(target, text, 0, 4))
    runner.logits([3, 2, 8])
    runner.accept(4, [3, 2], features_of(target, text, 4, 6))
    assert len(head.held[0]) == 4 and runner.unread([6]) == 2
    np.testing.assert_array_equal(runner.logits([6]), target.logits([2, 6]))
    assert head.calls[-1] == (0, 2, 4)


def test_a_gap_starts_it_anew():
    target = made_target()
    head = KnowingHead(target)
    runner = PairRunner(head, 0)
    text = list(range(20))
    runner.accept(0, text[:4], features_of(target, text, 0, 4))
    runner.logits([4])
    runner.accept(9, text[9:12], features_of(target, text, 9, 12))
    assert (runner.first, runner.length) == (9, 12)
    np.testing.assert_array_equal(runner.logits([12]), target.logits(text[:13]))


def test_it_goes_back_in_a_text():
    target = made_target()
    head = KnowingHead(target)
    runner = PairRunner(head, 0)
    text = [5, 7, 1, 9, 3, 2, 4, 8]
    runner.accept(0, text[:7], features_of(target, text, 0, 7))
    runner.logits(text[7:])
    other = [*text[:4], 11, 12]
    assert runner.common(other) == 4
    runner.rewind(4)
    assert runner.length == 4 and runner.unread([11]) == 1
    runner.accept(4, [11], features_of(target, other, 4, 5))
    np.testing.assert_array_equal(runner.logits([12]), target.logits(other))
    runner.rewind(0)
    assert (runner.first, runner.length, head.held[0]) == (0, 0, [])


def test_a_full_context_keeps_the_end():
    target = made_target()
    head = KnowingHead(target, n_ctx=32)
    runner = PairRunner(head, 0)
    text = [int(token) for token in np.random.default_rng(2).integers(0, V, 100)]
    for end in range(10, 90, 7):
        runner.accept(runner.length, text[runner.length : end], features_of(target, text, runner.length, end))
        np.testing.assert_array_equal(runner.logits(text[end : end + 1]), target.logits(text[: end + 1]))
        np.testing.assert_array_equal(runner.logits(text[end : end + 2]), target.logits(text[: end + 2]))
        assert len(head.held[0]) <= 32
    assert runner.first > 0


@settings(max_examples=60)
@given(st.data())
def test_whatever_comes_the_states_are_those_of_the_text(data):
    target = made_target()
    head = KnowingHead(target, n_ctx=24)
    runner = PairRunner(head, 0)
    text = data.draw(st.lists(st.integers(0, V - 1), min_size=2, max_size=6))
    runner.accept(0, text[:-1], features_of(target, text, 0, len(text) - 1))
    for _ in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from(["draft", "grow", "rewind"]))
        new = data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=4))
        if kind == "draft":
            drafted = [text[-1], *new[1:]]
            known = min(runner.length - runner.first - 1 + len(drafted), ORDER)  # tokens of the head's pairs
            expected = target.logits([*text, *new[1:]][-known:])
            np.testing.assert_array_equal(runner.logits(drafted), expected)
        elif kind == "grow":
            before, text = len(text) - 1, [*text, *new]
            runner.accept(before, text[before:-1], features_of(target, text, before, len(text) - 1))
        else:
            length = data.draw(st.integers(1, len(text) - 1))
            runner.rewind(length)
            text = text[: length + 1]
            if runner.length == runner.first:  # nothing is left, and the target reads on
                runner.accept(length, [text[-1]], features_of(target, text, length, length + 1))
                text = [*text, new[0]]


def made_source(target, head, **options):
    costs = GuessCosts(0.1, 0.02, 0.01, 0.0)
    return DraftHead(lambda: pair_head(head), costs=costs, **options)


@pytest.mark.parametrize("held", [HEAD_HELD, 4])
def test_a_guesser_waits_with_what_it_reads(held):
    target = made_target()
    head = KnowingHead(target)
    source = made_source(target, head, held=held)
    text = Text([int(token) for token in np.random.default_rng(1).integers(0, V, 400)])
    guesser = source.follow(text)
    assert not guesser.usable
    for start, end in ((0, 150), (150, 399)):
        guesser.read(start, features_of(target, text.tokens, start, end))
    assert guesser.usable and not source.loaded and guesser.unread(()) == held
    guess = guesser.guess(())
    assert guess.token == int(np.argmax(target.logits(text.tokens))) and guess.margin > 0
    assert head.calls == [(0, held, 0)] and guesser.unread([guess.token]) == 1
    following = guesser.guess([guess.token])
    assert following.token == int(np.argmax(target.logits([*text.tokens, guess.token])))


def test_a_step_that_gave_no_states_is_a_gap():
    target = made_target()
    source = made_source(target, KnowingHead(target))
    text = Text([1, 2, 3])
    guesser = source.follow(text)
    guesser.read(0, features_of(target, text.tokens, 0, 2))
    draft = Draft.of_chain([7, 8], [0.5, 0.4])
    text.append([7, 9])
    logits = np.zeros((3, V), np.float32)
    guesser.observe(Verified([7, 9], draft, Output(logits)))
    assert not guesser.usable
    text.append([4])
    hidden = features_of(target, text.tokens, 4, 5)
    guesser.observe(Verified([4], Draft.of_chain([], []), Output(logits[:1], hidden)))
    assert guesser.usable and guesser.guess(()).token == int(np.argmax(target.logits([4])))


def test_rows_of_what_was_kept_follow_the_tree():
    tokens, parents = np.array([3, 4, 5, 6], np.int32), np.array([-1, -1, 1, 2], np.int32)
    draft = Draft(tokens, parents, np.ones(4, np.float32), np.zeros(4, np.uint8))
    output = Output(np.zeros((5, V), np.float32))
    assert Verified([4, 5, 9], draft, output).rows() == [0, 2, 3]
    assert Verified([8], draft, output).rows() == [0]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_chosen_with_the_noise_of_the_target_among_those_it_scores(temperature):
    target = made_target()
    columns = np.array([1, 4, 5, 9, 16, 23], np.int32)
    source = made_source(target, KnowingHead(target, columns=columns))
    whole = made_source(target, KnowingHead(target))
    seen = set()
    for seed in range(12):
        text = Text([1, 2, 3], seed, temperature)
        guessers = [each.follow(text) for each in (source, whole)]
        for guesser in guessers:
            guesser.read(0, features_of(target, text.tokens, 0, 2))
        some, any_ = (guesser.guess(()).token for guesser in guessers)
        assert some in columns
        if any_ in columns:  # then it is the best of some, too
            assert some == any_
        seen.add(some)
        for guesser in guessers:
            guesser.close()
    assert (len(seen) > 1) == (temperature > 0)


@pytest.mark.parametrize("columns", [None, np.array([1, 4, 5, 9, 16, 23], np.int32)])
def test_tokens_that_the_target_does_not_have_are_not_proposed(columns):
    target = made_target()
    source = made_source(target, KnowingHead(target, columns=columns), shared=6)
    seen = set()
    for seed in range(20):
        text = Text([1, 2, 3], seed, temperature=2.0)
        guesser = source.follow(text)
        guesser.read(0, features_of(target, text.tokens, 0, 2))
        guess = guesser.guess(())
        seen |= {guess.token, *(token for token, _ in guess.others)}
        guesser.close()
    assert len(seen) > 1 and max(seen) < 6


def test_a_head_that_fails_is_asked_no_more():
    target = made_target()
    head = KnowingHead(target)
    head.step = lambda *_: (_ for _ in ()).throw(ModelError("it broke"))
    source = made_source(target, head)
    text = Text([1, 2, 3])
    guesser = source.follow(text)
    guesser.read(0, features_of(target, text.tokens, 0, 2))
    assert guesser.guess(()) is None and source.failed and source.failure == "it broke"
    assert not guesser.usable and guesser.guess(()) is None


def test_texts_beyond_its_room_are_not_followed():
    target = made_target()
    source = made_source(target, KnowingHead(target, texts=1))
    guessers = [source.follow(Text([1, 2, 3])) for _ in range(2)]
    for guesser in guessers:
        guesser.read(0, features_of(target, [1, 2, 3], 0, 2))
    assert guessers[0].guess(()) is not None
    assert guessers[1].guess(()) is None and not guessers[1].usable and not source.failed
    guessers[0].close()
    again = source.follow(Text([1, 2, 5]))  # goes on from what the finished text has in common
    assert again.usable and again.unread(()) == 1


class Files:
    """A `ModelSource` with one head."""

    def __init__(self, candidate, target, heads, error=None):
        self.candidate, self.target, self.heads, self.error = candidate, target, heads, error

    def search(self):
        yield self.candidate

    def obstacle(self, candidate):
        return None

    def load_head(self, candidate):
        if self.error is not None:
            raise self.error
        return pair_head(next(self.heads))

    def watch(self, layers):
        self.target.extract(layers)


def write(drafter, tmp_path, *, right=True, error=None, forced=True, texts=1, **sampling):
    """What is written to three prompts that share a beginning, one after the other, and the session."""
    steps = {1: 10.0, 2: 10.2, 4: 10.5, 8: 11.0, 16: 14.0, 32: 20.0, 64: 40.0}
    clock = SimulatedClock()
    target = ScriptedModel(V, order=ORDER, seed=3, sharpness=5.0, step_costs=steps, clock=clock, n_ctx=400)
    made, notices = [], []

    def heads():
        while True:
            made.append(KnowingHead(target, right=right, texts=8, sleep=clock.sleep))
            yield made[-1]

    candidate = Candidate(tmp_path / "head.gguf", "head", "f" * 32, V, 10, 1000, LAYERS)

    def models(session):
        return DraftModels(
            Files(candidate, target, heads(), error), session.learned, session.staircase, step_bytes=1000,
            n_ctx=400, vocab=target.vocab, forced=candidate if forced else None,
            notice=notices.append, clock=clock,
        )  # fmt: skip

    asked = Asked(tmp_path / "none.gguf", drafter=drafter, store=False, context_shift=True)
    learned = Learned(Store(None), model_key="m", cost_key="c")
    session = Session(
        target, asked, learned, name="target", clock=clock, draft_models=models, notice=notices.append
    )
    session.staircase.watch = unwatched
    rng = np.random.default_rng(4)
    shared = rng.integers(0, V, 90).tolist()
    prompts = [shared, [*shared[:60], *rng.integers(0, V, 30).tolist()], shared[:30]]
    found = [
        session.generate(p, SamplingSettings(seed=5, **sampling), n_predict=n, ignore_eos=True)
        for p, n in zip(prompts, (120, 60, 400), strict=True)
    ]
    if texts == 1:
        sources = [[s for chunk in generation for s in chunk.sources] for generation in found]
    else:
        sources = [[s for _, chunk in session.together(found, texts) for s in chunk.sources]]
    return [generation.result.tokens for generation in found], sources, made, session, notices


@pytest.mark.parametrize("texts", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_text_is_the_same_with_a_head(tmp_path, temperature, texts):
    """One text after the other, going back in what they share and over a shifted context, or all at once."""
    plain, _, _, _, _ = write("none", tmp_path, temperature=temperature)
    drafted, sources, heads, _, _ = write("model", tmp_path, temperature=temperature, texts=texts)
    assert drafted == plain
    from_head = sum(source == "head" for source in itertools.chain(*sources))
    assert from_head > 0.5 * sum(map(len, plain))
    assert max(n for head in heads for _, n, _ in head.calls) > 50  # it has read the prompt


def test_the_text_is_the_same_with_a_head_that_is_wrong(tmp_path):
    plain, _, _, _, _ = write("none", tmp_path, temperature=0.7)
    drafted, _, heads, _, _ = write("model", tmp_path, right=False, temperature=0.7)
    assert drafted == plain and heads


def test_a_head_that_was_found_reads_from_then_on(tmp_path):
    plain, _, _, _, _ = write("none", tmp_path, temperature=0.0)
    drafted, _, heads, session, _ = write("auto", tmp_path, forced=False, temperature=0.0)
    assert drafted == plain and heads
    assert session.draft_models.name == "head"
    session.draft_models.close()
    assert heads[0].closed
    session.model.extract([2])  # the layers were given up


def test_a_head_that_cannot_be_loaded_is_told_and_decoding_goes_on(tmp_path):
    plain, _, _, _, _ = write("none", tmp_path, temperature=0.0)
    error = ModelError("draft heads are not available in this build of llama.cpp")
    drafted, _, _, session, notices = write("auto", tmp_path, error=error, temperature=0.0)
    assert drafted == plain and session.draft_models.model is None
    assert [notice for notice in notices if "not available" in notice] == [
        "the draft head head cannot be loaded: draft heads are not available in this build of llama.cpp"
    ]
    assert Want.HIDDEN not in session.drafter.needs


def test_a_head_that_fails_as_nobody_has_foreseen_is_told_and_decoding_goes_on(tmp_path):
    plain, _, _, _, _ = write("none", tmp_path, temperature=0.0)
    drafted, _, _, _, notices = write("auto", tmp_path, error=KeyError("q8_0"), temperature=0.0)
    assert drafted == plain
    assert "the draft head head cannot be loaded: unexpected KeyError: 'q8_0'" in notices


def test_a_target_that_gives_no_states_is_told_and_decoding_goes_on(tmp_path, monkeypatch):
    plain, _, _, _, _ = write("none", tmp_path, temperature=0.0)

    def refuse(_self, layers):
        if layers:
            raise ModelError("this model gives no hidden states")

    monkeypatch.setattr(ScriptedModel, "extract", refuse)
    drafted, _, _, _session, notices = write("auto", tmp_path, temperature=0.0)
    assert drafted == plain
    assert "the draft head head is dropped: this model gives no hidden states" in notices
