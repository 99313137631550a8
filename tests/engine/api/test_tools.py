"""Tools from the request to the response: what the model is told, and what clients are."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.engine.api.asks import read_ask
from specx.engine.api.calls import FORMATS, HERMES
from specx.engine.api.dialect import Dialect
from specx.engine.api.errors import RequestError
from specx.engine.api.paths import CHAT
from specx.engine.settings import SamplingSettings

USER = {"role": "user", "content": "What is the weather?"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>'
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
        }
    ],
}
SEEN = {"role": "tool", "tool_call_id": "abcdefghi", "content": "sun"}

QWEN = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls %}"
    '\n<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}{% endfor %}\x01"
)
MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]</s>{% else %}[{{ m.role }}]{{ m.content }}{% endif %}"
    "{% endfor %}\x01"
)
WANTS_TEXT = QWEN.replace("{{ c.function.arguments | tojson }}", "{{ c.function.arguments + '' }}")
LLAMA = (
    '{% if tools %}Answer with {"name": function name, "parameters": its arguments}.'
    "{{ tools | tojson }}{% endif %}{% for m in messages %}{% if m.tool_calls %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('one') }}{% endif %}"
    "{% set f = m.tool_calls[0].function %}"
    '{"name": "{{ f.name }}", "parameters": '
    "{{ f.arguments | tojson }}}<eot>{% else %}<{{ m.role }}>{{ m.content }}{% endif %}"
    "{% endfor %}\x01"
)
CUE = "\x01<think>\n"
THINKS = "{# <think> </think> #}" + QWEN.removesuffix("\x01") + CUE


def dialect(source):
    return Dialect(source, "", "</s>")


def told(api, session, **body):
    """The prompt of a request, as text."""
    exchange = api.exchange(session, {"messages": [USER], **body})
    prompt = exchange.generations[0].request.prompt
    return b"".join(session.vocab.piece(token) for token in prompt).decode()


def test_formats_are_recognised_from_what_the_template_makes_of_a_call():
    assert dialect(QWEN).format is HERMES
    assert dialect(WANTS_TEXT).format is HERMES
    assert dialect(THINKS).format is HERMES
    assert dialect(MISTRAL).format.opens == ("[TOOL_CALLS]",)
    assert dialect(LLAMA).format is FORMATS[-1]
    assert all(dialect(source).tells_tools for source in (QWEN, MISTRAL, LLAMA, WANTS_TEXT))
    assert dialect(None).format is HERMES and not dialect(None).tells_tools


def test_the_template_is_given_the_tools_unless_none_is_to_be_called(api):
    session = api.open(says="x", template=QWEN)
    assert '"get_weather"' in told(api, session, tools=[WEATHER])
    assert "get_weather" not in told(api, session, tools=[WEATHER], tool_choice="none")


def test_a_template_for_tools_alone_is_taken_where_there_are_some(api):
    """Some models have two (`tokenizer.chat_template.tool_use`)."""
    session = api.open(says="x", template=api.TEMPLATE, tool_template=QWEN)
    with_tools = told(api, api.open(says="x", template=QWEN), tools=[WEATHER])
    assert told(api, session, tools=[WEATHER]) == with_tools
    without = told(api, api.open(says="x", template=api.TEMPLATE))
    assert told(api, session) == told(api, session, tools=[WEATHER], tool_choice="none") == without


def test_a_template_that_knows_no_tools_is_told_in_words(api):
    session = api.open(says="x")
    messages = [{"role": "system", "content": "Be brief."}, USER, CALLED, SEEN]
    text = told(api, session, messages=messages, tools=[WEATHER])
    assert text.startswith("<system>Be brief.") and '"get_weather"' in text and "<tool_call>" in text
    assert (
        '<assistant><tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
        in text
    )
    assert "<user><tool_response>\nsun\n</tool_response>" in text
    assert "tools>" not in told(api, session, messages=messages)


@pytest.mark.parametrize("source", [QWEN, MISTRAL, LLAMA, WANTS_TEXT])
def test_earlier_calls_come_as_the_template_wants_them(api, source):
    session = api.open(says="x", template=source)
    text = told(api, session, messages=[USER, CALLED, SEEN], tools=[WEATHER])
    assert '{"city": "Paris"}' in text and "sun" in text


def test_earlier_calls_that_a_template_refuses_are_text(api):
    session = api.open(says="x", template=LLAMA)
    twice = {**CALLED, "tool_calls": CALLED["tool_calls"] * 2}
    text = told(api, session, messages=[USER, twice, SEEN], tools=[WEATHER])
    assert text.count("<tool_call>\n") == 2


WANTS_MORE = QWEN.replace("{{ tool | tojson }}", "{{ tool.function.description + (tool | tojson) }}")
LOOPS = QWEN.replace("{% if tools %}", "").replace("</tools>{% endif %}", "</tools>")
FORGETS = QWEN.replace("{% for c in m.tool_calls %}", "{% for c in [] %}")
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('take turns') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}\x01"
)


@pytest.mark.parametrize("source", [WANTS_MORE, LOOPS, FORGETS, ALTERNATES])
@pytest.mark.parametrize("tools", [[WEATHER], []])
def test_templates_that_want_more_or_tell_less(api, source, tools):
    session = api.open(says="x", template=source)
    twice = {**CALLED, "tool_calls": CALLED["tool_calls"] * 2}
    for messages in ([USER], [USER, twice, SEEN, {**SEEN, "content": "rain"}, USER]):
        text = told(api, session, messages=messages, tools=tools)
        assert text.count("What is the weather?") == sum(message is USER for message in messages)
        assert ("get_weather" in text) == bool(tools or len(messages) > 1)
        if len(messages) > 1:
            assert text.count('{"city": "Paris"}') == 2
            assert text.index("Paris") < text.index("sun") < text.index("rain") < text.rindex("weather?")


ANSWERS = [
    (QWEN, CALL, ""),
    (QWEN, f"Let me see.\n\n{CALL}\n{CALL}\n", "Let me see."),
    (MISTRAL, '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]', ""),
    (LLAMA, '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}', ""),
    (None, CALL, ""),
]


@pytest.mark.parametrize(("source", "says", "content"), ANSWERS)
def test_calls_are_told_as_clients_want_them(api, source, says, content):
    session = api.open(says=says, template=source)
    body = {"messages": [USER], "tools": [WEATHER, CLOCK], "logprobs": True}
    events, response = api.ask(session, body)
    (choice,) = response["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == (content or None)
    for call in message["tool_calls"]:
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris", "days": 3}
        assert call["type"] == "function" and len(call["id"]) == 9 and call["id"].isalnum()
    assert len({call["id"] for call in message["tool_calls"]}) == says.count('"get_weather"')
    (whole,) = api.added_up(events)
    whole["message"]["content"] = whole["message"]["content"] or None
    assert whole == choice
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "tool_call" not in "".join(delta.get("content") or "" for delta in deltas).lower()
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_ids_of_calls_follow_from_the_id_of_the_response(api):
    ids = []
    for label in ("one", "one", "two"):
        session = api.open(says=CALL, template=QWEN)
        response = api.ask(session, {"messages": [USER], "tools": [WEATHER]}, id=label)[1]
        assert response["id"] == label
        ids.append(response["choices"][0]["message"]["tool_calls"][0]["id"])
    assert ids[0] == ids[1] != ids[2]


def test_without_tools_what_looks_like_a_call_is_content(api):
    session = api.open(says=CALL, template=QWEN)
    for body in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        message = api.ask(session, {"messages": [USER], **body})[1]["choices"][0]["message"]
        assert message == {"role": "assistant", "content": CALL}


def test_a_call_that_is_cut_off_is_content(api):
    session = api.open(says=CALL, template=QWEN)
    choice = api.ask(session, {"messages": [USER], "tools": [WEATHER], "max_tokens": 20})[1]["choices"][0]
    assert choice["finish_reason"] == "length" and "tool_calls" not in choice["message"]
    assert CALL.startswith(choice["message"]["content"])


def test_reasoning_is_told_apart_unless_that_is_not_wanted(api):
    session = api.open(says="hm\n</think>\n\nHello", template=THINKS, cue=CUE)
    message = api.ask(session, {"messages": [USER]})[1]["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Hello", "reasoning_content": "hm"}
    plain = api.ask(session, {"messages": [USER], "reasoning_format": "none"})[1]["choices"][0]["message"]
    assert plain == {"role": "assistant", "content": "\nhm\n</think>\n\nHello"}


def test_calls_behind_reasoning_that_is_not_told_apart(api):
    session = api.open(says=f"hm</think>{CALL}", template=THINKS, cue=CUE)
    body = {"messages": [USER], "tools": [WEATHER], "reasoning_format": "none"}
    message = api.ask(session, body)[1]["choices"][0]["message"]
    assert message["content"] == "\nhm</think>" and len(message["tool_calls"]) == 1


WORDS = [CALL, "<tool_call>", "oops", "</tool_call>", "\n", " ", "é\U0001f600", "<", '{"a"', "hm</think>"]


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from(WORDS), max_size=6),
    st.sampled_from([QWEN, THINKS]),
    st.sampled_from([[], ["oo"], ["</", "\U0001f600"]]),
    st.integers(0, 60),
    st.sampled_from(["auto", "none"]),
    st.booleans(),
)
def test_streams_add_up_to_bodies_with_tools(api, words, source, stop, limit, reasoning, parallel):
    cue = CUE if source is THINKS else api.CUE
    session = api.open(says="".join(words) or "x", template=source, cue=cue, order=40)
    body = {"messages": [USER], "tools": [WEATHER], "stop": stop, "logprobs": True}
    body |= {"reasoning_format": reasoning, "parallel_tool_calls": parallel}
    if limit:
        body["max_tokens"] = limit
    events, response = api.ask(session, body)
    (whole,), (choice,) = api.added_up(events), response["choices"]
    if "tool_calls" in whole["message"]:
        whole["message"]["content"] = whole["message"]["content"] or None
    assert whole == choice


@pytest.fixture
def ask_real(api, real):
    def ask(**body):
        body = {"messages": [USER], "tools": [WEATHER, CLOCK], "max_tokens": 120, **body}
        events, response = api.ask(real, body)
        (whole,), (choice,) = api.added_up(events), response["choices"]
        if "tool_calls" in whole["message"]:
            whole["message"]["content"] = whole["message"]["content"] or None
        assert whole == choice
        return choice

    return ask


def arguments_of(choice):
    return [(call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in choice["message"]["tool_calls"]]  # fmt: skip


def test_a_call_that_is_required_is_made(ask_real):
    for seed in range(2):
        choice = ask_real(tool_choice="required", seed=seed, temperature=1.0, parallel_tool_calls=False)
        ((name, arguments),) = arguments_of(choice)
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        jsonschema.validate(arguments, PARAMETERS if name == "get_weather" else {"maxProperties": 0})


def test_arguments_are_told_while_they_are_written(api, real):
    body = {"messages": [USER], "tools": [WEATHER], "tool_choice": "required", "max_tokens": 60, "seed": 1}
    events, _ = api.ask(real, {**body, "parallel_tool_calls": False})
    deltas = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert len(deltas) > 3 and deltas[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert all(set(each) == {"index", "function"} and each["index"] == 0 for each in deltas[1:])


def test_a_tool_that_is_named_is_called(ask_real):
    for name in ("get_weather", "clock"):
        choice = ask_real(
            tool_choice={"type": "function", "function": {"name": name}}, seed=3, temperature=1.0
        )
        assert [called for called, _ in arguments_of(choice)] == [name]


def test_a_form_of_the_answer_or_a_call(ask_real):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(3):
        choice = ask_real(response_format=form, seed=seed, temperature=1.0, parallel_tool_calls=False)
        if choice["message"]["content"] is not None:
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
        else:
            assert arguments_of(choice)


def test_a_schema_that_no_grammar_follows_is_refused_by_the_name_of_its_tool(api, real):
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"not": {}}}}
    body = {"messages": [USER], "tools": [odd], "tool_choice": "required"}
    with pytest.raises(RequestError, match="'odd'") as refused:
        api.exchange(real, body)
    assert refused.value.param == "tools"
    assert read_ask({**body, "tool_choice": "auto"}, CHAT, api.GREEDY).tools


@pytest.mark.parametrize("format", [each for each in FORMATS if each.shape is not None])
def test_grammars_make_what_is_read_back(texts, format):
    """Each format that a grammar can make: the texts of the grammar are calls of that format."""
    import random

    from specx.engine.api.call_grammar import ROOT, grammar_of_calls
    from specx.engine.api.calls import Reader
    from specx.engine.api.parsing import AnswerParser
    from specx.engine.api.tools import Tool, ToolChoice

    tools = (Tool("get_weather", PARAMETERS, {}), Tool("clock", {"type": "object", "properties": {}}, {}))
    grammar = grammar_of_calls(format.shape, tools, ToolChoice(must=True)) + f"\nroot ::= {ROOT}\n"
    generator, made = random.Random(4), 0
    for _ in range(6):
        text = texts.random(grammar, generator.choice)
        if text is None:
            continue
        parser = AnswerParser(calls=Reader(format, tools))
        parts = [*parser.feed(text), *parser.finish()]
        assert parts and all(part.call is not None for part in parts), text
        made += 1
    assert made


@pytest.mark.parametrize("inside", [True, False])
def test_what_is_thought_comes_before_what_a_grammar_says(texts, inside):
    from specx.engine.api.call_grammar import THEN, grammar_after
    from specx.engine.api.parsing import Tags

    grammar = 'reply ::= "yes" | "no"\n'
    if inside:
        grammar = grammar_after(Tags("<think>", "</think>"), grammar, "reply")
    grammar += f"root ::= {THEN if inside else 'reply'}\n"
    for text, good in (
        ("hm </b> < </think>\n\nyes", inside),
        ("yes", not inside),
        ("hm</think>maybe", False),
        ("1 <</think>yes", inside),  # its end is where the parser sees it
        ("1 <</</t</thin</think>no", inside),
        ("1 <</think>maybe</think>yes", False),
    ):
        assert texts.accept(grammar, text) == good


@pytest.mark.parametrize("closing", ["</think>", "abab!", "]]]", "[/THINK]", "^a-b^"])
def test_reasoning_ends_where_its_end_stands_for_the_first_time(texts, closing):
    from specx.engine.api.call_grammar import THEN, grammar_after
    from specx.engine.api.parsing import Tags

    grammar = grammar_after(Tags("<", closing), 'reply ::= "."\n', "reply") + f"root ::= {THEN}\n"
    generator = random.Random(5)
    for _ in range(60):
        text = "".join(generator.choice([*closing, closing[:-1], closing, "x"]) for _ in range(5))
        _, end, rest = text.partition(closing)
        good = bool(end) and not rest
        assert texts.accept(grammar, text + ".") == good, text


def test_answers_in_channels(api):
    source = "{# <|start|><|channel|><|message|><|end|> #}" + QWEN
    analysis = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
    session = api.open(says=f"{analysis}<|channel|>final<|message|>Hello", template=source)
    message = api.ask(session, {"messages": [USER]})[1]["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Hello", "reasoning_content": "hm"}
    call = '<|channel|>commentary to=functions.clock <|constrain|>json<|message|>{"at": 1}'
    session = api.open(says=analysis + call, template=source)
    choice = api.ask(session, {"messages": [USER], "tools": [CLOCK]})[1]["choices"][0]
    assert arguments_of(choice) == [("clock", {"at": 1})] and choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "hm" and choice["message"]["content"] is None


def test_control_tokens_that_are_tags_have_a_text(real):
    token = real.vocab.tokenize(b"<file_sep>", add_special=False, parse_special=True)[0]
    assert real.vocab.piece(token) == b""
    sampling = SamplingSettings(seed=1, temperature=0.0, logit_bias={token: 1e6})
    for shown, text in ((frozenset(), "x"), (frozenset({token}), "<file_sep>x")):
        constraint = real.grammar('root ::= "<file_sep>" "x"')
        made = real.generate("a", sampling, constraint=constraint, shown=shown)
        assert ("".join(chunk.text for chunk in made), made.result.tokens[0]) == (text, token)
