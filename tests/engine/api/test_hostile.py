"""Whatever a request says, it is prepared or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.engine.api.asks import read_ask
from specx.engine.api.errors import RequestError
from specx.engine.api.exchange import Exchange
from specx.engine.api.paths import CHAT, COMPLETIONS

USER = {"role": "user", "content": "Hello"}
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["required", "auto", "look", "user", "tool", "assistant", "</think>", "\0", "{}"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "type", "function", "name", "self", "x"]), inner),
    max_leaves=8,
)  # fmt: skip
FIELDS = [
    *("messages", "prompt", "n", "stop", "max_tokens", "logit_bias", "logprobs", "tools", "tool_choice"),
    *("response_format", "json_schema", "grammar", "chat_template_kwargs", "echo", "seed", "temperature"),
    *(
        "continue_final_message",
        "reasoning_effort",
        "top_k",
        "repeat_last_n",
        "n_keep",
        "parallel_tool_calls",
    ),
]


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=4), st.booleans())
def test_whatever_is_sent_it_is_prepared_or_refused(api, plain, odd, chat):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    body = {"messages": [USER], "tools": [tool]} if chat else {"prompt": "the cat"}
    path = CHAT if chat else COMPLETIONS
    try:
        exchange = Exchange(plain, read_ask({**body, **odd}, path, api.GREEDY))
    except RequestError as refused:
        assert refused.status == 400 and json.dumps(refused.body(), allow_nan=False)
    else:
        assert 1 <= len(exchange.generations) <= 128


@pytest.mark.parametrize("name", ["self", "messages", "tools"])
def test_variables_of_templates_that_are_not_for_requests(api, plain, name):
    with pytest.raises(RequestError) as refused:
        api.exchange(plain, {"messages": [USER], "chat_template_kwargs": {name: 1}})
    assert refused.value.param == "chat_template_kwargs"
