"""Requests are read and checked: what is asked for, and what is refused, by the field that is wrong."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specx.engine.api.asks import Defaults, read_ask
from specx.engine.api.errors import RequestError
from specx.engine.api.paths import CHAT, COMPLETIONS
from specx.engine.api.tools import ToolChoice
from specx.engine.settings import SamplingSettings

PLAIN = Defaults()
USER = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def allowed(mode, *names):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def chat(defaults=PLAIN, **fields):
    return read_ask({"messages": [USER], **fields}, CHAT, defaults)


def completion(defaults=PLAIN, **fields):
    return read_ask({"prompt": "Once", **fields}, COMPLETIONS, defaults)


def test_what_is_not_said_is_as_the_defaults_have_it():
    sampling = SamplingSettings(temperature=0.3, seed=4)
    defaults = Defaults(sampling, 77, ("\n",), 'root ::= "a"', True, "small")
    for ask in (chat(defaults), completion(defaults)):
        assert (ask.sampling, ask.n_predict, ask.stop) == (sampling, 77, ("\n",))
        assert (ask.grammar, ask.ignore_eos, ask.model, ask.n) == ('root ::= "a"', True, "small", 1)
        assert (ask.stream, ask.include_usage, ask.logprobs, ask.echo) == (False, False, None, False)
    assert chat(defaults, seed=None, stop=None, max_tokens=None, tools=None).sampling.seed == 4


def test_fields_of_sampling_have_openai_s_names_and_llama_cpp_s():
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.8,
        "top_k": 7,
        "frequency_penalty": -0.5,
        "presence_penalty": 1,
        "repeat_penalty": 1.1,
        "repeat_last_n": -1,
        "seed": 12,
    }
    assert chat(**fields).sampling == SamplingSettings(**fields)
    assert chat(logit_bias={"5": -100, "6": 2.5}).sampling.logit_bias == {5: -100.0, 6: 2.5}
    assert chat(logit_bias=[[5, 1], [7, False]]).sampling.logit_bias == {5: 1.0, 7: -math.inf}
    assert chat(repetition_penalty=1.3).sampling.repeat_penalty == 1.3
    assert chat(seed=-1).sampling.seed is None
    assert chat(seed=3.0).sampling.seed == 3


def test_limits():
    assert chat(max_tokens=5).n_predict == 5
    assert chat(max_tokens=5, max_completion_tokens=6).n_predict == 6
    assert chat(n_predict=7).n_predict == 7
    assert chat(Defaults(n_predict=9), n_predict=-1).n_predict is None
    assert completion(max_tokens=0).n_predict == 0
    assert chat(stop=["a", "", "b", "a"]).stop == ("a", "b")
    assert chat(stop="").stop == ()


def test_messages_are_strings_whatever_form_they_came_in():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "x", "type": "function", "function": {"name": "look", "arguments": '{"at": [1]}'}}
    asked = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts, "name": "me"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "x", "content": "seen"},
            {"role": "function", "name": "look", "content": "seen"},
            {"role": "assistant", "content": "ok", "reasoning_content": "hm"},
        ]
    ).messages
    assert [message["role"] for message in asked] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert [message["content"] for message in asked] == ["Be brief.", "ab", "", "seen", "seen", "ok"]
    assert asked[2]["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": [1]}}
    assert (asked[1]["name"], asked[3]["tool_call_id"], asked[5]["reasoning_content"]) == ("me", "x", "hm")


def test_messages_in_the_forms_that_answers_have():
    old = {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"at": 1}'}}
    new = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": '{"at": 1}'}}]}
    (said,), (meant,) = chat(messages=[old]).messages, chat(messages=[new]).messages
    assert said == meant
    assert said["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": 1}}
    refused = {"role": "assistant", "content": None, "refusal": "I won't", "function_call": None}
    assert chat(messages=[refused]).messages == ({"role": "assistant", "content": "I won't"},)


def test_what_others_call_the_form_of_an_answer_is_refused_with_the_name_it_has_here():
    for name in ("guided_json", "structured_outputs", "format"):
        with pytest.raises(RequestError) as refused:
            completion(**{name: {"type": "object"}})
        assert "response_format" in refused.value.hint
    assert chat(guided_json=None, format="", min_tokens=0, stop_token_ids=[]) == chat()


def test_arguments_of_calls_that_are_no_json_stay_text():
    for text in ("not json", "[1]", "{", '"text"'):
        call = {"function": {"name": "look", "arguments": text}}
        (message,) = chat(messages=[{"role": "assistant", "tool_calls": [call]}]).messages
        assert message["tool_calls"][0]["function"]["arguments"] == text


def test_prompts_are_texts_or_token_ids_one_or_many():
    assert completion().prompts == ("Once",)
    assert completion(prompt=[1, 2]).prompts == ((1, 2),)
    assert completion(prompt=["a", "b"]).prompts == ("a", "b")
    assert completion(prompt=[[1], [2, 3]]).prompts == ((1,), (2, 3))
    assert completion(prompt=["a", [3]]).prompts == ("a", (3,))


def test_tools_and_which_may_be_called():
    asked = chat(tools=[TOOL])
    assert [tool.name for tool in asked.tools] == ["look"]
    assert asked.choice is not None and not asked.choice.must and asked.choice.parallel
    required = chat(tools=[TOOL], tool_choice="required", parallel_tool_calls=False).choice
    assert required is not None and required.must and not required.parallel
    named = chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "look"}}).choice
    assert named is not None and (named.must, named.name) == (True, "look")
    more = [TOOL, {"type": "function", "function": {"name": "other"}}]
    some = chat(tools=more, tool_choice=allowed("auto", "other"))
    assert [tool.name for tool in some.tools] == ["other"] and some.choice == ToolChoice(False, None, True)
    assert chat(tools=more, tool_choice=allowed("required", "look", "other")).choice == ToolChoice(must=True)
    for none in (chat(tools=[TOOL], tool_choice="none"), chat(tools=[]), chat(tool_choice="auto")):
        assert (none.tools, none.choice) == ((), None)


def test_forms_of_answers_come_as_openai_and_as_llama_cpp_have_them():
    nested = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    same = [
        chat(response_format=nested),
        chat(response_format={"type": "json_schema", "schema": SCHEMA}),
        chat(response_format={"type": "json_object", "schema": SCHEMA}),
        chat(json_schema=SCHEMA),
        completion(json_schema=SCHEMA),
    ]
    assert len({ask.grammar for ask in same}) == 1 and same[0].grammar is not None
    assert chat(response_format={"type": "text"}).grammar is None
    assert "root" in str(chat(response_format={"type": "json_object"}).grammar)
    assert chat(grammar='root ::= "a"').grammar == 'root ::= "a"'
    assert chat(grammar="").grammar is None


def test_probabilities():
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=True, top_logprobs=5).logprobs == 5
    assert chat(logprobs=False).logprobs is None
    assert completion(logprobs=3, echo=True).logprobs == 3
    assert completion(logprobs=0).logprobs == 0


def test_what_the_template_is_told_besides():
    asked = chat(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low")
    assert asked.variables == {"reasoning_effort": "low", "enable_thinking": False}
    assert asked.reasoning and not chat(reasoning_format="none").reasoning


def test_streams():
    asked = chat(stream=True, stream_options={"include_usage": True}, timings_per_token=True)
    assert (asked.stream, asked.include_usage, asked.timings_per_token) == (True, True, True)


def test_fields_that_nobody_knows_are_left_alone():
    assert chat(user="me", metadata={"a": 1}, store=True, cache_prompt=True, id_slot=3, service_tier="auto")


IMAGE = [{"type": "image_url", "image_url": {"url": "data:,"}}]
DEEP = [[]]
for _ in range(200):
    DEEP = [DEEP]
WRONG = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": IMAGE}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"messages": [USER] * 10_001}, "messages"),
    ({"messages": [{"role": "user", "content": DEEP}]}, "messages"),
    ({"temperature": "warm"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": math.inf}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"repeat_penalty": 0}, "repeat_penalty"),
    ({"top_k": 10**400}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"seed": 2**64}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"n_predict": -2}, "n_predict"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": False}, "n"),
    ({"best_of": 3}, "best_of"),
    ({"stop": 5}, "stop"),
    ({"stop": [None]}, "stop"),
    ({"stop": ["ab"] * 1_000_000}, "stop"),
    ({"stream": 1}, "stream"),
    ({"stream_options": []}, "stream_options"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": "1"}}, "logit_bias"),
    ({"logit_bias": {"5": math.nan}}, "logit_bias"),
    ({"logit_bias": [5]}, "logit_bias"),
    ({"logit_bias": [[10**5000, 1]]}, "logit_bias"),
    ({"logprobs": 5}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"function": {}}]}, "tools[0].function"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function"),
    ({"tools": [{"function": {"name": "f", "parameters": 4}}]}, "tools[0].function.parameters"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "look"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"function": {"name": "other"}}}, "tool_choice"),
    ({"functions": []}, "functions"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": 4}}},
     "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_schema", "schema": {"not": {}}}}, "response_format.schema"),
    ({"json_schema": "x"}, "json_schema"),
    ({"grammar": 'root ::= "a"', "json_schema": SCHEMA}, "json_schema"),
    ({"grammar": "root ::= " + "(" * 2000 + '"a"' + ")" * 2000}, "grammar"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"mirostat": 2}, "mirostat"),
    ({"guided_json": SCHEMA}, "guided_json"),
    ({"guided_choice": ["a", "b"]}, "guided_choice"),
    ({"structured_outputs": {"regex": "a+"}}, "structured_outputs"),
    ({"guided_grammar": 'root ::= "a"'}, "guided_grammar"),
    ({"format": "json"}, "format"),
    ({"min_tokens": 5}, "min_tokens"),
    ({"stop_token_ids": [5]}, "stop_token_ids"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"messages": [{"role": "user", "function_call": {"name": "f"}}]}, "messages[0].function_call"),
    ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages[0].function_call"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": allowed("must", "look")}, "tool_choice.allowed_tools.mode"),
    ({"tools": [TOOL], "tool_choice": allowed("auto", "x")}, "tool_choice.allowed_tools.tools[0].function"),
    ({"tools": [TOOL], "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
    ({"messages": [{"role": "user", "content": None, "refusal": "no"}]}, "messages[0].content"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"model": 5}, "model"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"), WRONG, ids=[f"{param}-{i}" for i, (_, param) in enumerate(WRONG)]
)
def test_what_is_wrong_is_refused_by_its_name(fields, param):
    with pytest.raises(RequestError) as refused:
        chat(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)
    body = refused.value.body()["error"]
    assert body["type"] == "invalid_request_error" and body["param"] == param
    assert 0 < len(body["message"]) < 400


@pytest.mark.parametrize(
    "prompt", [None, "", 5, [], [True], [1, "a"], [[1], [None]], ["a"] * 129, {"a": 1}, [[]], [1.5]]
)
def test_prompts_that_are_none(prompt):
    if prompt in ("", [[]]):
        return  # whether that is a prompt depends on the model
    with pytest.raises(RequestError) as refused:
        completion(prompt=prompt)
    assert refused.value.param == "prompt"


def test_endpoints_and_bodies():
    for body in (None, [], "x", 4):
        with pytest.raises(RequestError, match="not a JSON object"):
            read_ask(body, CHAT, Defaults())
    with pytest.raises(RequestError) as refused:
        read_ask({}, "/v1/embeddings", Defaults())
    assert refused.value.status == 404
    with pytest.raises(RequestError, match="answers"):
        completion(prompt=["a"] * 100, n=2)


NAMES = [
    *("messages", "prompt", "temperature", "top_p", "top_k", "seed", "n", "stop", "max_tokens", "logit_bias"),
    *(
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "response_format",
        "json_schema",
        "grammar",
        "stream",
    ),
    *(
        "stream_options",
        "echo",
        "best_of",
        "chat_template_kwargs",
        "repeat_last_n",
        "functions",
        "modalities",
    ),
    *(
        "role",
        "content",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "type",
        "text",
        "schema",
        "parameters",
    ),
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["user", "assistant", "function", "auto", "json_schema", "\ud800", '{"a": 1}', "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6) | VALUES, st.sampled_from([CHAT, COMPLETIONS])
)
def test_whatever_is_sent_it_is_read_or_refused(body, path):
    try:
        read_ask(body, path, Defaults())
    except RequestError as refused:
        assert refused.body()["error"]["message"].encode()


@given(st.sampled_from(NAMES), VALUES, st.sampled_from([CHAT, COMPLETIONS]))
def test_one_strange_field_in_a_good_request_is_read_or_refused(name, value, path):
    body = {"messages": [USER], "prompt": "x", "tools": [TOOL], name: value}
    try:
        read_ask(body, path, Defaults())
    except RequestError as refused:
        assert refused.body()["error"]["message"].encode()
