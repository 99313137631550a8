"""A draft model follows the text, whatever of its guesses came true, and chooses by the target's own rule."""

from __future__ import annotations

import numpy as np
import pytest

from specx.backends.errors import ModelError
from specx.backends.scripted import ScriptedBackend, SimulatedClock
from specx.drafters.base import NO_TRUNCATION
from specx.drafters.model import DraftCosts, ModelDrafter
from specx.kernels._native import rank_tokens

V = 64


def drafter_of(backend, *, n_ctx=4096, shared=V, clock=None, **costs):
    times = {"token_ms": 1.0, "further_ms": 0.1, "read_ms": 0.2, "open_ms": 50.0, **costs}
    options = {} if clock is None else {"clock": clock}
    return ModelDrafter(lambda: backend, n_ctx=n_ctx, shared=shared, costs=DraftCosts(**times), **options)


def begin(drafter, context, seed=7, temperature=0.0, position=None, truncation=NO_TRUNCATION):
    drafter.begin(
        context,
        seed=seed,
        temperature=temperature,
        position=len(context) if position is None else position,
        truncation=truncation,
    )


def chosen(backend, context, position, temperature, truncation):
    logits = backend.logits(context)
    return rank_tokens(logits, 7, position, temperature, *truncation, 2)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("width", [1, 4, 64])
def test_every_proposal_is_the_choice_of_the_model_after_the_whole_text(temperature, width):
    rng = np.random.default_rng(width)
    backend, truncation = ScriptedBackend(V, max_width=width), (20, 0.9, 0.02, 1.0)
    drafter = drafter_of(backend)
    for generation in range(3):
        text = rng.integers(1, V, int(rng.integers(1, 40))).tolist()
        offset = 100 * generation  # older tokens were forgotten
        begin(drafter, text, temperature=temperature, position=len(text) + offset, truncation=truncation)
        for _ in range(30):
            chain = []
            for _ in range(int(rng.integers(0, 5))):
                proposal = drafter.propose(chain)
                at = len(text) + len(chain) + offset
                ids, scores = chosen(backend, [*text, *chain], at, temperature, truncation)
                assert proposal.token == ids[0]
                assert proposal.margin == pytest.approx(scores[0] - scores[1] if len(ids) > 1 else np.inf)
                chain.append(proposal.token)
            right = int(rng.integers(0, len(chain) + 1))
            emitted = [*chain[:right], int(rng.integers(1, V))]
            drafter.append(emitted)
            text += emitted
            assert drafter.unread(()) <= len(text)


def test_what_was_read_is_not_read_again():
    backend = ScriptedBackend(V)
    read = []
    forward, prefill = backend.forward, backend.prefill
    backend.forward = lambda tokens, parents: (read.extend(tokens.tolist()), forward(tokens, parents))[1]
    backend.prefill = lambda tokens: (read.extend(tokens), prefill(tokens))[1]
    drafter, text = drafter_of(backend), list(range(1, 21))
    begin(drafter, text)
    assert drafter.unread(()) == 20
    first = drafter.propose([]).token
    assert read == text
    second = drafter.propose([first]).token
    assert read == [*text, first]
    drafter.append([first, second, 9])
    assert drafter.unread(()) == 2
    drafter.propose([])
    assert read == [*text, first, second, 9]
    begin(drafter, [*text[:10], 5])  # another branch of the conversation
    assert drafter.unread(()) == 1
    drafter.propose([])
    assert read[-1] == 5 and len(read) == 24
    begin(drafter, [*text[:10], 5])
    assert drafter.unread(()) == 1  # the logits after the last token are needed, even if it was read


def test_a_text_longer_than_its_context():
    backend = ScriptedBackend(V, n_ctx=32)
    drafter, rng = drafter_of(backend, n_ctx=32), np.random.default_rng(0)
    text = rng.integers(1, V, 50).tolist()
    begin(drafter, text)
    for _ in range(40):
        proposal = drafter.propose([])
        assert proposal.token == int(np.argmax(backend.logits(text)))
        text.append(int(rng.integers(1, V)))
        drafter.append(text[-1:])
        assert drafter.unread(()) <= 16
    assert backend.length <= 32


def test_tokens_that_it_does_not_have():
    drafter = drafter_of(ScriptedBackend(V), shared=40)
    begin(drafter, [1, 2, 50])
    assert not drafter.usable
    begin(drafter, [1, 2, 30])
    assert drafter.usable
    assert drafter.propose([]).token < 40
    drafter.append([45])
    assert not drafter.usable


class Broken(ScriptedBackend):
    def forward(self, tokens, parents):
        raise ModelError("it is on fire")


def test_a_model_that_fails_is_not_asked_again():
    drafter = drafter_of(Broken(V))
    begin(drafter, [1, 2])
    assert drafter.propose([]) is None
    assert "on fire" in drafter.failure and not drafter.usable
    missing = drafter_of(None)
    begin(missing, [1, 2])
    assert missing.propose([]) is None
    assert not missing.usable and not missing.loaded


def test_no_logit_above_minus_infinity():
    backend = ScriptedBackend(V)
    backend.logits = lambda _context: np.full(V, -np.inf, np.float32)
    drafter = drafter_of(backend)
    begin(drafter, [1, 2])
    assert drafter.propose([]) is None and not drafter.usable


def test_it_is_loaded_when_it_is_first_asked_and_closed_for_good():
    loaded = []

    def load():
        loaded.append(ScriptedBackend(V))
        return loaded[-1]

    drafter = ModelDrafter(load, n_ctx=64, shared=V, costs=DraftCosts(1.0, 0.1, 0.1, 9.0))
    begin(drafter, [1, 2, 3])
    assert not loaded and not drafter.loaded
    drafter.propose([])
    drafter.propose([1])
    assert len(loaded) == 1 and drafter.loaded
    drafter.close()
    assert not drafter.loaded and drafter.propose([]) is None and len(loaded) == 1


def test_its_work_is_timed():
    clock = SimulatedClock()
    backend = ScriptedBackend(V, step_costs={1: 3.0, 2: 3.5, 8: 6.5}, clock=clock)
    drafter = drafter_of(backend, clock=clock, token_ms=20.0, further_ms=5.0)
    begin(drafter, [1, 2])
    for _ in range(60):
        chain = [drafter.propose([]).token]
        chain.append(drafter.propose(chain).token)
        drafter.append([*chain, 1])
    costs = drafter.costs
    assert costs.token_ms == pytest.approx(3.0)
    assert costs.further_ms == pytest.approx(0.5, rel=0.05)
    costs.observe_call(1, 5000.0)  # a hiccup
    assert costs.token_ms < 4
    costs.observe_reading(1000, 300.0)
    assert costs.reading(1) == 0
    assert costs.reading(501) == pytest.approx(150)
    again = DraftCosts.from_json(costs.to_json())
    assert again.token_ms == pytest.approx(costs.token_ms, abs=1e-3) and again.measured


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "x", None, 0.0])
def test_damaged_costs_are_refused(value):
    data = DraftCosts(1.0, 1.0, 1.0, 1.0).to_json() | {"token_ms": value}
    with pytest.raises((ValueError, TypeError)):
        DraftCosts.from_json(data)
