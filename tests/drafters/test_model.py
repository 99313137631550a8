"""A draft model follows each text, whatever came true of its guesses, and chooses by the target's rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from specx.backends.base import Output, Want
from specx.backends.errors import ModelError
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.drafters.base import EMPTY_DRAFT, NO_TRUNCATION, Text, Verified
from specx.drafters.guesser import GuessCosts
from specx.drafters.model import DraftModel
from specx.kernels._native import rank_tokens

V = 64


NOTHING = Output(np.zeros((1, V), np.float32))  # the draft model does not look at the target's logits


def source_of(model, *, n_ctx=4096, shared=V, clock=None, **costs):
    times = {"token_ms": 1.0, "further_ms": 0.1, "read_ms": 0.2, "open_ms": 50.0, **costs}
    options = {} if clock is None else {"clock": clock}
    return DraftModel(lambda: model, n_ctx=n_ctx, shared=shared, costs=GuessCosts(**times), **options)


def text_of(tokens, seed=7, temperature=0.0, truncation=NO_TRUNCATION):
    return Text(list(tokens), seed, temperature, truncation)


def emit(text, guesser, tokens):
    text.append(tokens)
    guesser.observe(Verified(tokens, EMPTY_DRAFT, NOTHING))


def chosen(model, context, position, temperature, truncation):
    logits = model.logits(context)
    return rank_tokens(logits, 7, position, temperature, *truncation, 3)


class Reading(ScriptedModel):
    """Keeps what was computed, tree by tree, and how many caches were opened."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.calls = []
        self.opened = 0

    def open(self):
        self.opened += 1
        return super().open()

    def forward(self, trees, want=Want.LOGITS):
        self.calls += [tree.tokens.tolist() for tree in trees]
        return super().forward(trees, want)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("width", [1, 4, 64])
def test_every_proposal_is_the_choice_of_the_model_after_the_whole_text(temperature, width):
    rng = np.random.default_rng(width)
    model, truncation = ScriptedModel(V, max_width=width), (20, 0.9, 0.02, 1.0)
    source = source_of(model)
    for generation in range(3):
        text = text_of(rng.integers(1, V, int(rng.integers(1, 40))), 7, temperature, truncation)
        text.position += 100 * generation  # older tokens were forgotten
        guesser = source.follow(text)
        for _ in range(30):
            chain = []
            for _ in range(int(rng.integers(0, 5))):
                guess = guesser.guess(chain)
                at = text.position + len(chain)
                ids, scores = chosen(model, [*text.tokens, *chain], at, temperature, truncation)
                assert guess.token == ids[0]
                assert guess.margin == pytest.approx(scores[0] - scores[1] if len(ids) > 1 else np.inf)
                assert [token for token, _ in guess.others] == ids[1:3].tolist()
                assert [behind for _, behind in guess.others] == pytest.approx(scores[0] - scores[1:3])
                chain.append(guess.token)
            right = int(rng.integers(0, len(chain) + 1))
            emit(text, guesser, [*chain[:right], int(rng.integers(1, V))])
            assert guesser.unread(()) <= len(text.tokens)
        guesser.close()


def test_what_was_read_is_not_read_again():
    model = Reading(V)
    source, prompt = source_of(model), list(range(1, 9))
    text = text_of(prompt)
    guesser = source.follow(text)
    assert guesser.unread(()) == 8
    first = guesser.guess([]).token
    assert model.calls == [prompt]
    second = guesser.guess([first]).token
    assert model.calls[1:] == [[first]]
    emit(text, guesser, [first, second, 9])
    assert guesser.unread(()) == 2
    guesser.guess([])
    assert model.calls[2:] == [[second, 9]]
    guesser.close()
    branch = source.follow(text_of([*prompt[:5], 5]))  # another branch of the conversation
    assert branch.unread(()) == 1
    branch.guess([])
    assert model.calls[3:] == [[5]]
    branch.close()
    again = source.follow(text_of([*prompt[:5], 5]))
    assert again.unread(()) == 1  # the logits after the last token are needed, even if it was read
    assert model.opened == 1


def test_a_long_prompt_is_read_in_one_stretch_and_told_apart_from_short_calls():
    model = Reading(V)
    text = text_of(range(1, 41))
    guesser = source_of(model).follow(text)
    assert guesser.guess([]).token == int(np.argmax(model.logits(text.tokens)))
    assert model.calls == [[40]]  # the others were read without their logits


def test_a_text_longer_than_its_context():
    model = Reading(V, n_ctx=32)
    source, rng = source_of(model, n_ctx=32), np.random.default_rng(0)
    text = text_of(rng.integers(1, V, 50))
    guesser = source.follow(text)
    for _ in range(40):
        # It would be an error to give the cache more than it holds.
        assert guesser.guess([]).token == int(np.argmax(model.logits(text.tokens)))
        emit(text, guesser, [int(rng.integers(1, V))])
        assert guesser.unread(()) <= 16


def test_tokens_that_it_does_not_have():
    source = source_of(ScriptedModel(V), shared=40)
    assert not source.follow(text_of([1, 2, 50])).usable
    text = text_of([1, 2, 30])
    guesser = source.follow(text)
    assert guesser.usable
    assert guesser.guess([]).token < 40
    emit(text, guesser, [45])
    assert not guesser.usable


class Trimmed(ScriptedModel):
    """Gives the logits of every third token only."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.facts = replace(self.facts, head=np.arange(0, V, 3, dtype=np.int32))

    def forward(self, trees, want=Want.LOGITS):
        outputs = super().forward(trees, want)
        return [Output(np.ascontiguousarray(output.logits[:, self.facts.head])) for output in outputs]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_head_of_some_tokens_takes_their_noise(temperature):
    full, trimmed = ScriptedModel(V, max_width=4), Trimmed(V, max_width=4)
    text = text_of([1, 2, 3], temperature=temperature)
    guesser = source_of(trimmed, shared=50).follow(text)
    for _ in range(20):
        logits = np.full(V, -np.inf, np.float32)
        kept = trimmed.facts.head[trimmed.facts.head < 50]
        logits[kept] = full.logits(text.tokens)[kept]
        ids, scores = rank_tokens(logits, 7, text.position, temperature, *NO_TRUNCATION, 2)
        guess = guesser.guess([])
        assert guess.token == ids[0]
        assert guess.margin == pytest.approx(scores[0] - scores[1])
        emit(text, guesser, [int(ids[1])])


def test_several_texts_are_followed_side_by_side():
    model, rng = Reading(V, max_texts=3), np.random.default_rng(1)
    source = source_of(model)
    texts = [text_of(rng.integers(1, V, n), temperature=t) for n, t in ((5, 0.0), (12, 0.9), (7, 0.0))]
    guessers = [source.follow(text) for text in texts]
    for _ in range(10):
        for text, guesser in zip(texts, guessers, strict=True):
            guess = guesser.guess([])
            ids, _ = chosen(model, text.tokens, text.position, text.temperature, NO_TRUNCATION)
            assert guess.token == ids[0]
            emit(text, guesser, [guess.token])
            assert guesser.unread(()) == 1
    assert model.opened == 3
    # There is no room for a fourth: it is not drafted for, and the others are.
    fourth = source.follow(text_of([1, 2]))
    assert fourth.usable and fourth.guess([]) is None and not fourth.usable
    assert not source.failed and guessers[0].guess([]) is not None
    # One that is finished makes room, and what is most like the next text is gone on from.
    for guesser in guessers:
        guesser.close()
    calls = len(model.calls)
    turn = source.follow(text_of([*texts[1].tokens, 3, 4]))
    assert turn.unread(()) == 3  # the last token that was emitted was never asked about
    turn.guess([])
    assert model.calls[calls:] == [[texts[1].tokens[-1], 3, 4]]
    assert model.opened == 3


class Broken(ScriptedModel):
    def forward(self, trees, want=Want.LOGITS):
        raise ModelError("it is on fire")


def test_a_model_that_fails_is_not_asked_again():
    source = source_of(Broken(V))
    guesser, other = source.follow(text_of([1, 2])), source.follow(text_of([3]))
    assert guesser.guess([]) is None
    assert "on fire" in source.failure and not guesser.usable and not other.usable
    guesser.close()
    missing = source_of(None)
    guesser = missing.follow(text_of([1, 2]))
    assert guesser.guess([]) is None
    assert not guesser.usable and missing.failed and not missing.loaded


class Impossible(ScriptedModel):
    def logits(self, context):
        return np.full(self.vocab.size, -np.inf, np.float32)


def test_no_logit_above_minus_infinity():
    guesser = source_of(Impossible(V)).follow(text_of([1, 2]))
    assert guesser.guess([]) is None and not guesser.usable


class Interrupted(ScriptedModel):
    def forward(self, trees, want=Want.LOGITS):
        raise KeyboardInterrupt


def test_what_its_cache_holds_after_an_interruption_is_not_relied_on():
    source = source_of(Interrupted(V))
    guesser = source.follow(text_of([1, 2]))
    with pytest.raises(KeyboardInterrupt):
        guesser.guess([])
    assert source.failed and not guesser.usable
    guesser.close()


def test_it_is_loaded_when_it_is_first_asked_and_closed_for_good():
    loaded = []

    def load():
        loaded.append(ScriptedModel(V))
        return loaded[-1]

    source = DraftModel(load, n_ctx=64, shared=V, costs=GuessCosts(1.0, 0.1, 0.1, 9.0))
    guesser = source.follow(text_of([1, 2, 3]))
    assert not loaded and not source.loaded
    guesser.guess([])
    guesser.guess([1])
    assert len(loaded) == 1 and source.loaded
    source.close()
    assert not source.loaded and guesser.guess([]) is None and len(loaded) == 1
    guesser.close()
    assert source.follow(text_of([1, 2, 3])).guess([]) is None


def test_its_work_is_timed():
    clock = SimulatedClock()
    model = ScriptedModel(V, step_costs={1: 3.0, 2: 3.5, 8: 6.5}, clock=clock)
    source = source_of(model, clock=clock, token_ms=20.0, further_ms=5.0)
    text = text_of([1, 2])
    guesser = source.follow(text)
    for _ in range(60):
        chain = [guesser.guess([]).token]
        chain.append(guesser.guess(chain).token)
        emit(text, guesser, [*chain, 1])
    costs = source.costs
    assert costs.token_ms == pytest.approx(3.0)
    assert costs.further_ms == pytest.approx(0.5, rel=0.05)
    costs.observe_call(1, 5000.0)  # a hiccup
    assert costs.token_ms < 4
    costs.observe_reading(1000, 300.0)
    assert costs.reading(1) == 0
    assert costs.reading(501) == pytest.approx(150)
    again = GuessCosts.from_json(costs.to_json())
    assert again.token_ms == pytest.approx(costs.token_ms, abs=1e-3) and again.measured


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "x", None, 0.0])
def test_damaged_costs_are_refused(value):
    data = GuessCosts(1.0, 1.0, 1.0, 1.0).to_json() | {"token_ms": value}
    with pytest.raises((ValueError, TypeError)):
        GuessCosts.from_json(data)
