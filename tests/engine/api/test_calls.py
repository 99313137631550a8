"""Answers taken apart: calls in the formats of models, reasoning, and what only looks like either."""

# ruff: noqa: RUF001 -- the bars of DeepSeek's tags are wide ones

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.engine.api.calls import BARE, FORMATS, HERMES, Reader
from specx.engine.api.harmony import HarmonyParser
from specx.engine.api.parsing import AnswerParser, Tags
from specx.engine.api.tools import Tool

PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}, "tags": {"type": "array"}}
WEATHER = Tool("get_weather", {"type": "object", "properties": PROPERTIES}, {})
CLOCK = Tool("clock", {"type": "object", "properties": {}}, {})
THINK = Tags("<think>", "</think>")

ARGS = '{"city": "Paris", "days": 3}'
NAMED = f'{{"name": "get_weather", "arguments": {ARGS}}}'
LLAMA = f'{{"name": "get_weather", "parameters": {ARGS}}}'
HERMES_CALL = f"<tool_call>\n{NAMED}\n</tool_call>"
TAGGED = (
    "<function=get_weather>\n<parameter=city>{0}Paris{0}</parameter>\n<parameter=days>{0}3{0}</parameter>\n"
)
CODER = "<tool_call>\n" + TAGGED.format("\n") + "</function>\n</tool_call>"
SEED = "<seed:tool_call>\n" + TAGGED.format("") + "</function>\n</seed:tool_call>"
GLM = "<tool_call>get_weather{0}<arg_key>city</arg_key>{0}<arg_value>Paris</arg_value>{0}"
GLM += "<arg_key>days</arg_key>{0}<arg_value>3</arg_value>{0}</tool_call>"
INVOKE = '<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
INVOKE += '<parameter name="days">3</parameter>\n</invoke>\n'
MINICPM = (
    '<function name="get_weather"><param name="city">Paris</param><param name="days">3</param></function>'
)
COMMAND = f'{{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {ARGS}}}'
R1 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n" + ARGS + "\n```<｜tool▁call▁end｜>"
V3 = f"<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{ARGS}<｜tool▁call▁end｜>"
DSML = '<｜DSML｜invoke name="get_weather">\n'
DSML += '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
DSML += '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
KIMI = f"<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{ARGS}<|tool_call_end|>"
PYTHON = "get_weather(city='Paris', days=3)"
GEMMA = '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>'

# What models write for two calls of get_weather(city="Paris", days=3).
WRITTEN = {
    "hermes": f"{HERMES_CALL}\n{HERMES_CALL}",
    "qwen-coder": f"{CODER}\n{CODER}",
    "seed": f"{SEED}\n{SEED}",
    "glm": GLM.format("\n") + "\n" + GLM.format(""),
    "minimax": f"<minimax:tool_call>\n{INVOKE}{INVOKE}</minimax:tool_call>",
    "listed": f"<tool_calls>[{NAMED}, {NAMED}]</tool_calls>",
    "lines": f"<tool_calls>\n{NAMED}\n{NAMED}\n</tool_calls>",
    "nemotron": f"<TOOLCALL>[{NAMED}, {NAMED}]</TOOLCALL>",
    "minicpm": f"{MINICPM}\n{MINICPM}",
    "functionary": f"<function=get_weather>{ARGS}</function><function=get_weather>{ARGS}</function>",
    "mistral": f'[TOOL_CALLS][{NAMED[:-1]}, "id": "abcdefghi"}}, {NAMED}]',
    "mistral-args": f"[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{ARGS}"
    f"[TOOL_CALLS]get_weather[ARGS]{ARGS}",
    "command": f"<|START_ACTION|>[\n    {COMMAND},\n    {COMMAND}\n]<|END_ACTION|>",
    "apertus": f'<|tools_prefix|>[{{"get_weather": {ARGS}}}, {{"get_weather": {ARGS}}}]<|tools_suffix|>',
    "deepseek-r1": f"<｜tool▁calls▁begin｜>{R1}\n{R1}<｜tool▁calls▁end｜>",
    "deepseek-v3.1": f"<｜tool▁calls▁begin｜>{V3}{V3}<｜tool▁calls▁end｜>",
    "dsml": f"<｜DSML｜tool_calls>\n{DSML}{DSML}</｜DSML｜tool_calls>",
    "kimi": f"<|tool_calls_section_begin|>{KIMI}{KIMI}<|tool_calls_section_end|>",
    "lfm": f"<|tool_call_start|>[{PYTHON}, {PYTHON}]<|tool_call_end|>",
    "gemma3": f"```tool_code\n{PYTHON}\n```\n```tool_code\n[{PYTHON}]\n```",
    "gemma4": f"{GEMMA}{GEMMA}",
    "granite": f"<|tool_call|>[{NAMED}, {NAMED}]",
    "llama": f"{LLAMA}; {LLAMA}",
    "llama-tag": f'<|python_tag|>{LLAMA}\n{{"type": "function", {LLAMA[1:]}',
}


def readers_of(text, held=False):
    """Every format of the table that such a text could be in."""
    opened = [
        each for each in (*FORMATS, BARE) if text.startswith(each.opens) or (each.bare and text[0] == "{")
    ]
    return [Reader(each, (WEATHER, CLOCK), held=held) for each in opened]


def taken_apart(text, calls=None, *, tags=None, inside=False, cuts=()):
    """(reasoning, content, calls) of an answer that comes in pieces."""
    parser = AnswerParser(tags, inside=inside, calls=calls)
    ends = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    parts = [part for a, b in pairwise(ends) for part in parser.feed(text[a:b])]
    parts += parser.finish()
    said, calls = {"reasoning": "", "content": ""}, []
    for part in parts:
        if part.call is not None:
            calls.append(part.call)
        elif part.kind == "arguments":
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + part.text)
        else:
            said[part.kind] += part.text
    return said["reasoning"], said["content"], calls


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_are_read_in_every_format(name):
    text, found = WRITTEN[name], []
    for reader in readers_of(text):
        for before, after in (("", ""), ("Let me see.\n", "\n")):
            if before and text.startswith("{"):
                continue  # JSON behind other text is no call
            reasoning, content, calls = taken_apart(before + text + after, reader)
            if [(c.name, json.loads(c.arguments)) for c in calls] == [
                ("get_weather", {"city": "Paris", "days": 3})
            ] * 2:
                assert (reasoning, content) == ("", before.strip())
                found.append(reader)
    assert found


@pytest.mark.parametrize("name", ["hermes", "listed", "nemotron", "functionary", "mistral-args", "apertus"])
def test_calls_that_a_grammar_made_are_told_as_they_are_written(name):
    text = "So:\n" + WRITTEN[name].replace("[CALL_ID]abcdefghi", "") + " \n"
    found = 0
    for reader in readers_of(WRITTEN[name], held=True):
        parser, told = AnswerParser(calls=reader), []
        for char in text:
            told.append(parser.feed(char))
        told.append(parser.finish())
        fragments = [part for parts in told for part in parts if part.kind == "arguments"]
        _, content, calls = taken_apart(text, reader)
        if [(call.name, call.arguments) for call in calls] == [("get_weather", ARGS)] * 2:
            found += content == "So:" and len(fragments) == 2 * len(ARGS)
    assert found


def test_a_call_that_is_cut_short_while_it_is_told():
    reader = Reader(HERMES, (WEATHER,), held=True)
    text = "So: " + HERMES_CALL
    for end in range(len(text)):
        _, content, calls = taken_apart(text[:end], reader)
        if calls:
            assert content == "So:" and ARGS.startswith(calls[0].arguments)
        else:
            assert text[:end] == content
    odd = text.replace("}\n</tool_call>", "} and more")
    assert taken_apart(odd, reader)[1] == "So: } and more"


CUTS = st.lists(st.integers(0, 2**16), max_size=30)


@given(st.sampled_from(sorted(WRITTEN)), CUTS, st.sampled_from(["", "Well, ", "a < b\n\n"]), st.booleans())
def test_how_an_answer_is_cut_does_not_matter(name, cuts, before, cut_short):
    text = before + WRITTEN[name]
    text = text[: len(text) * 2 // 3] if cut_short else text
    for reader in (*readers_of(WRITTEN[name]), *readers_of(WRITTEN[name], held=True)):
        whole = taken_apart(text, reader)
        assert taken_apart(text, reader, cuts=cuts) == whole
        assert taken_apart(text, reader, cuts=range(len(text))) == whole


PIECES = [
    *("<tool_call>", "</tool_call>", "<tool", "<", "{", "}", '"', "\n", " ", "text", "é"),
    *("<think>", "</think>"),
    '{"name": "clock", "arguments": {}}', '<tool_call>{"name": "clock", "arguments": {}}</tool_call>',
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12), CUTS, st.booleans(), st.booleans(), st.booleans())
def test_nothing_is_lost_and_no_tag_of_a_call_is_told(pieces, cuts, reads, thinks, inside):
    text = "".join(pieces)
    reader = Reader(HERMES, (CLOCK,)) if reads else None
    options = {"tags": THINK if thinks else None, "inside": inside and thinks}
    reasoning, content, calls = taken_apart(text, reader, cuts=cuts, **options)
    assert (reasoning, content, calls) == taken_apart(text, reader, **options)
    told = reasoning + content + "".join(f"{call.name}{call.arguments}" for call in calls)
    tags = ("<tool_call>", "</tool_call>", "<think>", "</think>")

    def letters(text):  # but for white space and tags, and with calls as JSON has them
        text = text.replace('{"name": "clock", "arguments": {}}', "clock{}")
        for tag in tags:
            text = text.replace(tag, "")
        return sorted("".join(text.split()))

    assert letters(told) == letters(text)
    if not (reads or thinks):
        assert content == text
    assert "<tool_call>" not in content or not reads or _has_broken(content)


def _has_broken(content):
    """Whether what is left of a call there is not one."""
    block = content.split("<tool_call>", 1)[1]
    return Reader(HERMES, (CLOCK,)).read(block.split("</tool_call>")[0]) is None


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>oops</tool_call>",
        '<tool_call>{"name": "clock"',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call> and on',
        '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "clock", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "clock", "arguments": {"a": 1e999}}</tool_call>',
        '<tool_call>{"name": "clock", "arguments": {"a": "\\ud800"}}</tool_call>',
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        "<tool_call>" * 300,
        "<tool_call></tool_call>",
    ],
)
def test_what_is_no_call_is_content(text):
    assert taken_apart(text, Reader(HERMES, (CLOCK,))) == ("", text, [])


def test_a_call_after_one_that_is_broken():
    text = 'a <tool_call>oops <tool_call>{"name": "clock", "arguments": {}}</tool_call> b'
    reasoning, content, calls = taken_apart(text, Reader(HERMES, (CLOCK,)))
    assert (reasoning, content) == ("", "a <tool_call>oops b")
    assert [call.name for call in calls] == ["clock"]


def test_a_closing_tag_within_an_argument():
    arguments = {"city": '</tool_call> \\" </tool_call>'}
    text = f"<tool_call>{json.dumps({'name': 'get_weather', 'arguments': arguments})}</tool_call>"
    for cuts in ((), range(len(text))):
        _, content, calls = taken_apart(text, Reader(HERMES, (WEATHER,)), cuts=cuts)
        assert content == "" and json.loads(calls[0].arguments) == arguments
    text = CODER.replace("Paris", "x </tool_call> y")
    (_, content, calls) = taken_apart(text, Reader(FORMATS[0], (WEATHER,)))
    assert content == "" and json.loads(calls[0].arguments) == {"city": "x </tool_call> y", "days": 3}


def test_a_call_whose_end_is_missing_is_one_all_the_same():
    _, content, calls = taken_apart('<tool_call>{"name": "clock", "arguments": {}}', Reader(HERMES, (CLOCK,)))
    assert content == "" and [call.name for call in calls] == ["clock"]


def test_arguments_in_tags_are_of_the_types_of_the_schema():
    block = "<tool_call><function=get_weather><parameter=city>3</parameter><parameter=days>3</parameter>"
    block += "<parameter=tags>[1, 2]</parameter><parameter=more>x y</parameter></function></tool_call>"
    _, _, calls = taken_apart(block, Reader(FORMATS[0], (WEATHER,)))
    assert json.loads(calls[0].arguments) == {"city": "3", "days": 3, "tags": [1, 2], "more": "x y"}


@pytest.mark.parametrize(
    "text", ['{"name": "Alice", "age": 3}', '{"answer": 4}', "{x", '{"name": "get_weather"} no']
)
def test_json_that_is_no_call_is_content(text):
    assert taken_apart(text, Reader(BARE, (WEATHER,))) == ("", text, [])
    assert taken_apart(text, Reader(BARE, (WEATHER,)), cuts=range(len(text))) == ("", text, [])


@pytest.mark.parametrize(
    ("text", "inside", "expected"),
    [
        ("<think>\nhm\n</think>\n\nHello", False, ("hm", "Hello")),
        ("\n<think></think>Hello", False, ("", "Hello")),
        ("hm\n</think>\nHello", True, ("hm", "Hello")),
        ("hm, and on", True, ("hm, and on", "")),
        ("<think>hm, and on\n", False, ("hm, and on", "")),
        ("Hello <think>x</think>", False, ("", "Hello <think>x</think>")),
        ("<thin", False, ("", "<thin")),
        ("hm</thin", True, ("hm</thin", "")),
        ("", True, ("", "")),
    ],
)
def test_reasoning_is_told_apart(text, inside, expected):
    for cuts in ((), range(len(text))):
        assert taken_apart(text, tags=THINK, inside=inside, cuts=cuts) == (*expected, [])


def test_reasoning_then_content_then_calls():
    text = "<think>\nhm <tool_call>\n</think>\n\nI look.\n\n" + WRITTEN["hermes"]
    for cuts in ((), range(len(text))):
        reasoning, content, calls = taken_apart(text, Reader(HERMES, (WEATHER,)), tags=THINK, cuts=cuts)
        assert (reasoning, content, len(calls)) == ("hm <tool_call>", "I look.", 2)


def test_ids_that_models_give_are_kept():
    reader = Reader(FORMATS[[each.opens for each in FORMATS].index(("[TOOL_CALLS]",))], (WEATHER,))
    _, _, calls = taken_apart(WRITTEN["mistral-args"], reader)
    assert [call.id for call in calls] == ["abcdefghi", None]


HARMONY_CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}'
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "called"),
    [
        (f"{ANALYSIS}hm <b{NEXT}{FINAL}Hi", "hm <b", "Hi", 0),
        (f"{FINAL}Hi", "", "Hi", 0),
        ("Hi, plainly", "", "Hi, plainly", 0),
        (f"{ANALYSIS}hm", "hm", "", 0),
        (f"{ANALYSIS}hm{NEXT}{HARMONY_CALL}", "hm", "", 1),
        (f"<|channel|>commentary<|message|>I look.{NEXT}{HARMONY_CALL}", "", "I look.", 1),
        (" to=functions.get_weather<|channel|>commentary json<|message|>{}", "", "", 1),
        (HARMONY_CALL[:-1], "", HARMONY_CALL[:-1], 0),
        (f"{ANALYSIS}a{NEXT}{ANALYSIS}b{NEXT}<|channel|>commentary<|message|>c<|start|>assistant{FINAL}d",
         "a\n\nb", "c\n\nd", 0),
        ("<|chan", "", "<|chan", 0),
        (f"{ANALYSIS}hm{NEXT}<|channel|>fi", "hm", "", 0),
        ("", "", "", 0),
    ],
)  # fmt: skip
def test_messages_in_channels(text, reasoning, content, called):
    for cuts in ([], range(len(text))):
        parser = HarmonyParser(calls=True)
        parts = [part for a, b in pairwise([0, *cuts, len(text)]) for part in parser.feed(text[a:b])]
        parts += parser.finish()
        said = {"reasoning": "", "content": ""}
        for part in parts:
            if part.call is None:
                said[part.kind] += part.text
        assert said == {"reasoning": reasoning, "content": content}
        assert [part.call.name for part in parts if part.call] == ["get_weather"] * called


def test_calls_in_channels_are_content_where_there_are_no_tools():
    parser = HarmonyParser(calls=False)
    parts = [*parser.feed(HARMONY_CALL), *parser.finish()]
    assert "".join(part.text for part in parts) == '{"city": "Paris"}'


@pytest.mark.parametrize(
    ("schema", "written", "read"),
    [
        ({"type": "string"}, "123", "123"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "123", "123"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", None),
        ({"type": ["string", "null"]}, "true", "true"),
        ({"type": ["string", "integer"]}, "7", 7),
        ({"type": ["string", "integer"]}, "7.5", "7.5"),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({"$ref": "#/$defs/id"}, "7", "7"),
        ({"$ref": "#/$defs/nowhere"}, "7", 7),
        ({"$ref": "#/$defs/loop"}, "7", 7),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "number"}, "3", 3),
        ({}, "[1]", [1]),
        ("odd", "x", "x"),
    ],
)
def test_what_is_told_in_tags_has_the_type_that_its_schema_has(schema, written, read):
    definitions = {"id": {"type": "string"}, "loop": {"$ref": "#/$defs/loop"}}
    tool = Tool("f", {"type": "object", "properties": {"a": schema}, "$defs": definitions}, {})
    text = f"<tool_call>\n<function=f>\n<parameter=a>\n{written}\n</parameter>\n</function>\n</tool_call>"
    found = []
    for each in FORMATS:
        if text.startswith(each.opens):
            _, content, calls = taken_apart(text, Reader(each, (tool,)))
            if not content:
                found += [json.loads(call.arguments) for call in calls]
    assert {"a": read} in found
    assert type(read) in {type(arguments["a"]) for arguments in found}


@pytest.mark.parametrize(
    ("block", "name", "arguments"),
    [
        ('[f(s="a", b=true, n=null, t=True)]', "f", {"s": "a", "b": True, "n": None, "t": True}),
        ("[f-g.h(n=-5, l=[1, false])]", "f-g.h", {"n": -5, "l": [1, False]}),
        (
            '[f-g.h(s="call f-g.h(1)", o={"k": "f-g.h(2)"})]',
            "f-g.h",
            {"s": "call f-g.h(1)", "o": {"k": "f-g.h(2)"}},
        ),
    ],
)
def test_calls_as_python_may_have_names_that_python_has_not(block, name, arguments):
    tools = tuple(Tool(each, {"type": "object"}, {}) for each in ("f", "f-g.h", "a b"))
    text, found = f"<|tool_call_start|>{block}<|tool_call_end|>", []
    for each in FORMATS:
        if text.startswith(each.opens):
            _, content, calls = taken_apart(text, Reader(each, tools))
            found.append((content, [(call.name, json.loads(call.arguments)) for call in calls]))
    assert ("", [(name, arguments)]) in found


def test_an_answer_that_ends_within_a_call_is_known_to():
    for end, cut in ((len(HERMES_CALL) - 20, True), (len(HERMES_CALL), False)):
        [reader] = [each for each in readers_of(HERMES_CALL, held=True) if each.stream() is not None][:1]
        parser = AnswerParser(calls=reader)
        parser.feed(HERMES_CALL[:end])
        parser.finish()
        assert parser.cut is cut


@pytest.mark.parametrize("name", WRITTEN)
def test_a_call_that_a_limit_cuts_off_leaves_no_tags_in_the_content(name):
    text, cuts, found = WRITTEN[name], 0, 0
    before = "" if text.startswith("{") else "So: "
    for reader in (*readers_of(text), *readers_of(text, held=True)):
        if len(taken_apart(text, reader)[2]) != 2:
            continue
        found += 1
        for end in range(max(map(len, reader.opens)), len(text)):
            parser = AnswerParser(calls=reader)
            parts = [*parser.feed(before + text[:end]), *parser.finish(full=True)]
            content = "".join(part.text for part in parts if part.kind == "content")
            assert not any(opening in content for opening in reader.opens), text[:end]
            cuts += parser.cut
    assert found and cuts


def test_a_message_to_a_function_that_a_limit_cuts_off_is_no_content():
    for full in (False, True):
        parser = HarmonyParser(calls=True)
        parts = [*parser.feed(HARMONY_CALL[:-1]), *parser.finish(full=full)]
        assert "".join(part.text for part in parts) == ("" if full else HARMONY_CALL[:-1])
        assert parser.cut is full
