"""Forced tokens are drafted, and the text does not depend on it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.text.grammar import GrammarConstraint
from specx.engine.text.json_schema import grammar_of_schema

NAMES = ("customer_identifier", "preferred_delivery_address", "number_of_items_ordered")
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "integer", "maximum": 99, "minimum": 0} for name in NAMES},
    "required": list(NAMES),
    "additionalProperties": False,
}
STEPS = {str(n): 10.0 + n for n in range(1, 65)}


@pytest.fixture(scope="module")
def session(smollm2):
    with Session.open(Asked(smollm2, store=False, n_ctx=512, threads=1, drafter="free")) as session:
        session.staircase.load_json({"0": STEPS, "512": STEPS})
        session.measure_staircase = lambda *_given: None
        yield session


def write(session, drafter, temperature, *, probing=True):
    """An answer, and the source of each of its tokens step by step."""
    session.forget_learned()
    session.set_drafter(drafter)
    grammar = grammar_of_schema(json.dumps(SCHEMA))
    constraint = session.grammar(grammar) if probing else GrammarConstraint(session.vocab.pointer, grammar)
    sampling = SamplingSettings(temperature=temperature, seed=11)
    prompt = session.prompt_of([{"role": "user", "content": "An order as JSON."}])
    answer = session.generate(prompt, sampling, n_predict=80, constraint=constraint)
    steps = [(chunk.sources, chunk.step.draft) for chunk in answer if chunk.step is not None]
    return answer.result.tokens, answer.result.text, steps


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_long_names_of_a_schema_take_few_steps(session, temperature):
    plain, text, every = write(session, "none", temperature)
    assert set(json.loads(text)) == set(NAMES) and len(every) >= len(plain)
    tokens, _, without = write(session, "free", temperature, probing=False)
    assert tokens == plain
    tokens, _, steps = write(session, "free", temperature)
    assert tokens == plain
    forced = sum(sources.count("grammar") for sources, _ in steps)
    assert forced >= 8 and len(steps) <= 0.8 * len(without) < len(every)


def test_nothing_outside_the_grammar_is_drafted_as_forced(session):
    tokens, _, steps = write(session, "free", 0.0)
    forced, seen, at = session.drafter.source_names.index("grammar"), 0, 0
    for sources, draft in steps:
        following = session.grammar(grammar_of_schema(json.dumps(SCHEMA)))
        for token in tokens[:at]:
            following.accept(token)
        for token, source in zip(draft.tokens.tolist(), draft.sources.tolist(), strict=True):
            if not following.allowed(np.array([token], np.int32))[0]:
                assert source != forced
                break
            following.accept(token)
            seen += source == forced
        at += len(sources)
    assert seen >= 8
