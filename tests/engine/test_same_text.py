"""Whatever is asked of whichever model, the text is that of plain decoding.

Tiny vocabularies and contexts, one token over and over, settings at the ends of what numbers can be, damaged
weights, grammars that leave one choice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.errors import SpecxError
from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

LARGEST = float(np.finfo(np.float32).max)
INFINITE = float("inf")
ENDS = st.sampled_from(
    [1.0, 0.0, 0.3, LARGEST, -LARGEST, 1e308, -1e308, INFINITE, -INFINITE, 5e-324, 1e-45, -1e-45]
)
BROKEN = np.array([np.nan, np.inf, -np.inf, LARGEST, -LARGEST, 1e-45], np.float32)


class Damaged(ScriptedModel):
    """Some of its logits are no numbers, infinite, or nearly so."""

    def __init__(self, share, **options):
        super().__init__(**options)
        self._share = share

    def _compute(self, state):
        row, rng = super()._compute(state).copy(), self._generator(("damage", state))
        broken = rng.random(len(row)) < self._share
        row[broken] = rng.choice(BROKEN, np.count_nonzero(broken))
        return row


class Allowing:
    """One token of `tokens` after the other; of several, each in its turn."""

    def __init__(self, tokens):
        self._tokens, self._emitted = tokens, 0

    def allowed(self, ids):
        return np.isin(ids, self._tokens[self._emitted % len(self._tokens)])

    def accept(self, _token):
        self._emitted += 1


@st.composite
def models(draw):
    size = draw(st.sampled_from([2, 3, 4, 64]))
    tokens = st.integers(0, size - 1)
    script = draw(st.sampled_from([(), (1,), (1,) * 30]) | st.lists(tokens, min_size=1, max_size=30))
    return size, {
        "vocab_size": size,
        "order": draw(st.integers(0, 2)),
        "script": script,
        "peak": draw(st.sampled_from([0.5, 0.9, 0.999])),
        "sharpness": draw(st.sampled_from([0.0, 2.0, 1e30])),
        "n_ctx": draw(st.sampled_from([2, 3, 8, 16, 64])),
        "max_width": draw(st.sampled_from([1, 2, 3, 64])),
        "max_leaves": draw(st.sampled_from([1, 16])),
        "can_rewind": draw(st.sampled_from([True, True, True, False])),
        "even": draw(st.booleans()),
        "share": draw(st.sampled_from([0.0, 0.0, 0.1, 0.9])),
    }


@st.composite
def samplings(draw, size):
    return SamplingSettings(
        seed=draw(st.sampled_from([0, -1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**40])),
        temperature=draw(st.sampled_from([0.0, 0.8, 5e-324, 1e-250, 1e-249, 1e-38, 1e308, INFINITE])),
        top_k=draw(st.sampled_from([0, 1, 40, 2**40])),
        top_p=draw(st.sampled_from([1.0, 0.95, 0.0, 5e-324])),
        min_p=draw(st.sampled_from([0.0, 0.05, 1.0, 5e-324])),
        typical_p=draw(st.sampled_from([1.0, 0.5, 5e-324])),
        repeat_penalty=draw(ENDS),
        repeat_last_n=draw(st.sampled_from([0, 1, 64, -1])),
        frequency_penalty=draw(ENDS),
        presence_penalty=draw(ENDS),
        logit_bias=draw(st.dictionaries(st.integers(0, size - 1), ENDS, max_size=2)),
    )


def outcomes(options, asked, requests):
    """What came of requests, one after the other, and how many drafted tokens were right."""
    clock, found, right = SimulatedClock(), [], 0
    model = Damaged(clock=clock, step_costs={1: 10.0, 64: 11.0}, **options)
    learned = Learned(Store(None), model_key="model", cost_key="cost")
    session = Session(
        model, Asked(Path("scripted.gguf"), store=False, **asked), learned, name="scripted", clock=clock
    )
    session.staircase.load_json({"0": {str(n): 10.0 + n / 100 for n in range(1, 65)}})
    for prompt, sampling, allowing, further in requests:
        generation = session.generate(
            prompt, sampling, constraint=Allowing(allowing) if allowing else None, **further
        )
        failure = None
        try:
            for chunk in generation:
                right += sum(source != "target" for source in chunk.sources)
        except SpecxError as problem:
            failure = str(problem)
        found.append((generation.result.tokens, generation.result.finish_reason, failure))
    session.close()
    return found, right


@settings(max_examples=25)
@given(data=st.data())
def test_the_text_is_that_of_plain_decoding(data):
    size, options = data.draw(models(), label="model")
    tokens, room = st.integers(0, size - 1), options["n_ctx"] - 1
    length = data.draw(st.sampled_from([1, room, max(room - 1, 1), (room + 1) // 2]), label="length")
    prompt = data.draw(st.just([1] * length) | st.lists(tokens, min_size=length, max_size=length))
    some = st.none() | st.lists(st.lists(tokens, min_size=1, max_size=2), min_size=1, max_size=4)
    further = {
        "n_predict": data.draw(st.sampled_from([0, 1, 5, 80])),
        "ignore_eos": data.draw(st.booleans()),
        "evidence": data.draw(st.booleans()),
        "keep": data.draw(st.sampled_from([0, 1, 1000])),
    }
    # Twice, so that the second finds what the first has written.
    requests = [(prompt, data.draw(samplings(size), label="sampling"), data.draw(some), further)] * 2
    asked = {"context_shift": data.draw(st.booleans(), label="shift")}
    plain, _ = outcomes(options, {**asked, "drafter": "none"}, requests)
    for drafter in ("suffix", "recycle", "auto"):
        most = data.draw(st.sampled_from([None, 1, 2]))
        assert outcomes(options, {**asked, "drafter": drafter, "draft_max": most}, requests)[0] == plain


def test_such_texts_are_drafted():
    options = {"vocab_size": 3, "script": (1,) * 20, "peak": 0.999, "n_ctx": 64, "share": 0.0}
    requests = [([1] * 10, SamplingSettings(seed=1, temperature=0.0), None, {"n_predict": 40})] * 2
    plain, _ = outcomes(options, {"drafter": "none"}, requests)
    drafted, right = outcomes(options, {"drafter": "auto"}, requests)
    assert drafted == plain and right > 40


def test_what_nobody_can_choose_ends_a_text_only_where_it_comes():
    options = {"vocab_size": 3, "script": (1,) * 20, "peak": 0.999, "n_ctx": 64, "share": 0.0}
    allowing = [[1], [1], []]
    for most, end in ((2, "length"), (5, "error")):
        requests = [([1] * 10, SamplingSettings(seed=1, temperature=0.0), allowing, {"n_predict": most})] * 2
        plain, _ = outcomes(options, {"drafter": "none"}, requests)
        assert [each[:2] for each in plain] == [([1, 1], end)] * 2
        assert outcomes(options, {"drafter": "auto"}, requests)[0] == plain
