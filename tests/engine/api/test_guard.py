"""Text is free until a call begins, which then is as the schema of its tool has it."""

from __future__ import annotations

import numpy as np
import pytest

from specx.engine.api.call_grammar import ROOT, grammar_of_block
from specx.engine.api.calls import BARE, FORMATS, HERMES, Reader
from specx.engine.api.guard import Guard
from specx.engine.api.parsing import AnswerParser, Tags
from specx.engine.api.tools import Tool, ToolChoice

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = (Tool("get_weather", PARAMETERS, {}), Tool("clock", {"type": "object", "properties": {}}, {}))
SHAPED = [format for format in FORMATS if format.shape is not None and not format.bare]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>'
THINK = Tags("<think>", "</think>")


def guard_of(session, format=HERMES, parallel=True, **options):
    choice = ToolChoice(parallel=parallel)
    grammar = grammar_of_block(format, TOOLS, choice)
    assert grammar is not None
    make = lambda: session.grammar(grammar, ROOT)  # noqa: E731
    return Guard(session.vocab, format.opens, make, once=not parallel, **options)


def followed(session, guard, text):
    """How much of `text` is allowed, token by token, and whether the answer may end there."""
    told = b""
    for token in session.vocab.tokenize(text.encode(), add_special=False, parse_special=False):
        if not guard.allowed(np.array([token], np.int32))[0]:
            break
        guard.accept(token)
        told += session.vocab.piece(token)
    return told.decode("utf-8", "replace"), bool(
        guard.allowed(np.array([*session.vocab.eog], np.int32)).all()
    )


def test_calls_are_held_to_the_tools_and_their_schemas(real):
    for text in ("Just text, < and <tool.", f"Let me see. {CALL}\n{CALL} So much for that.", CALL):
        assert followed(real, guard_of(real), text) == (text, True)
    for wrong in (
        CALL.replace("get_weather", "get_water"),
        CALL.replace("3", '"3"'),
        CALL.replace('"city": "Rome", ', ""),
        CALL.replace("\n</tool_call>", ", and"),
    ):
        told, may_end = followed(real, guard_of(real), f"So: {wrong}")
        assert len(told) < len(wrong) + 4 and not may_end
        assert told.startswith("So: <tool_call>")


def test_what_is_forced_is_told(real):
    guard = guard_of(real)
    followed(real, guard, "<tool_call>")
    assert guard.forced().startswith(b'\n{"name": "')
    assert guard_of(real).forced() == b""


def test_after_the_only_call_the_answer_ends(real):
    guard = guard_of(real, parallel=False)
    told, may_end = followed(real, guard, f"{CALL}\n{CALL}")
    assert (told, may_end) == (CALL, True)


@pytest.mark.parametrize("inside", [True, False])
def test_nothing_is_a_call_within_the_reasoning(real, inside):
    thought = "hm <tool_call> hm </think>"
    text = ("" if inside else "\n<think>") + thought + CALL
    assert followed(real, guard_of(real, tags=THINK, inside=inside), text) == (text, True)
    wrong = text.replace("get_weather", "get_water")
    assert not followed(real, guard_of(real, tags=THINK, inside=inside), wrong)[1]


@pytest.mark.parametrize("format", SHAPED, ids=lambda format: format.opens[0])
def test_every_format_goes_on_behind_its_opening(real, format):
    """Whatever the guard lets through of random choices is read back as calls."""
    opening = format.opens[0]
    guard = guard_of(real, format)
    followed(real, guard, opening)
    generator, text = np.random.default_rng(3), opening
    allowed_bytes = [t for t in range(real.vocab.size) if 0 < len(real.vocab.piece(t)) == 1][:200]
    ids = np.array(allowed_bytes, np.int32)
    for _ in range(400):
        if bool(guard.allowed(np.array([*real.vocab.eog], np.int32)).all()):
            break
        forced = guard.forced()
        if forced:
            token = real.vocab.tokenize(forced[:1], add_special=False, parse_special=False)[0]
        else:
            choices = ids[guard.allowed(ids)]
            closing = [t for t in choices if real.vocab.piece(int(t)) in (b'"', b"}", b"]", b",")]
            token = int(generator.choice(closing or choices))
        guard.accept(token)
        text += real.vocab.piece(token).decode("latin-1")
    parser = AnswerParser(calls=Reader(format, TOOLS))
    parts = [*parser.feed(text), *parser.finish()]
    assert parts and all(part.call is not None for part in parts), text


def test_where_a_grammar_is_not_known_the_text_is_free():
    odd = (Tool("odd", {"not": {}}, {}),)
    assert grammar_of_block(HERMES, odd, ToolChoice()) is None
    assert grammar_of_block(BARE, TOOLS, ToolChoice()) is None
    assert grammar_of_block(FORMATS[0], TOOLS, ToolChoice()) is None
