"""Answers in the forms of OpenAI's API: a stream adds up to the body, and both are what was written."""

from __future__ import annotations

import json
import math

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specx.backends.errors import SpecxError
from specx.engine.api.errors import RequestError

USER = {"role": "user", "content": "Hello"}
TEXT = "Grüße 😀 at the cat\nand more"

NUMBER, TEXT_TYPE, COUNT = {"type": "number"}, {"type": "string"}, {"type": "integer", "minimum": 0}
TIMINGS = {
    "type": "object",
    "required": [
        *("cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second", "predicted_n"),
        *("predicted_ms", "predicted_per_token_ms", "predicted_per_second", "draft_n", "draft_n_accepted"),
    ],
    "additionalProperties": NUMBER,
}
USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"],
    "properties": {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": {"type": "object", "required": ["cached_tokens"]},
    },
}
REASONS = ["stop", "length", "tool_calls"]


def validator(kind, choice, **more):
    """What a response or an event of a kind must look like."""
    head = {"id": {"type": "string", "minLength": 4}, "object": {"const": kind}, "created": COUNT}
    properties = {**head, "model": TEXT_TYPE, "choices": {"type": "array", "items": choice}, **more}
    required = ["id", "object", "created", "model", "choices"]
    whole = {"type": "object", "required": required, "properties": properties, "additionalProperties": False}
    return jsonschema.Draft202012Validator(whole)


def choice_of(name, value, reasons):
    return {
        "type": "object",
        "required": ["index", name, "logprobs", "finish_reason"],
        "properties": {"index": COUNT, name: value, "finish_reason": {"enum": reasons}, "logprobs": {}},
        "additionalProperties": False,
    }


MESSAGE = {"type": "object", "required": ["role", "content"], "properties": {"role": {"const": "assistant"}}}
CHAT_BODY = validator("chat.completion", choice_of("message", MESSAGE, REASONS), usage=USAGE, timings=TIMINGS)
COMPLETION_BODY = validator(
    "text_completion", choice_of("text", TEXT_TYPE, REASONS), usage=USAGE, timings=TIMINGS
)
MORE = {"usage": {"anyOf": [USAGE, {"type": "null"}]}, "timings": TIMINGS}
CHAT_EVENT = validator(
    "chat.completion.chunk", choice_of("delta", {"type": "object"}, [*REASONS, None]), **MORE
)
COMPLETION_EVENT = validator("text_completion", choice_of("text", TEXT_TYPE, [*REASONS, None]), **MORE)


def check(api, body, events, response):
    """The forms are right, and the stream adds up to the body."""
    chat = "messages" in body
    (CHAT_BODY if chat else COMPLETION_BODY).validate(response)
    json.dumps(response, allow_nan=False)
    for event in events:
        (CHAT_EVENT if chat else COMPLETION_EVENT).validate(event)
        json.dumps(event, allow_nan=False)
        assert event["id"] == response["id"]
    counted = body.get("stream_options", {}).get("include_usage", False)
    assert [bool(event["choices"]) for event in events] == [True] * (len(events) - counted) + [
        False
    ] * counted
    if counted:
        assert events[-1]["usage"] == response["usage"]
    whole = api.added_up(events)
    for choice in whole:
        message = choice.get("message", {})
        if "tool_calls" in message:
            message["content"] = message["content"] or None
    if body.get("logprobs") is None:
        assert all(choice["logprobs"] is None for choice in response["choices"])
    assert whole == response["choices"]
    if chat:
        first = {}
        for event in events:
            for choice in event["choices"]:
                first.setdefault(choice["index"], choice["delta"])
        assert all(delta["role"] == "assistant" for delta in first.values())


@pytest.mark.parametrize("streamed", [{}, {"stream": True, "stream_options": {"include_usage": True}}])
def test_a_chat(api, streamed):
    session = api.open(says=TEXT)
    body = {"messages": [USER], "model": "anything", **streamed}
    events, response = api.ask(session, body)
    check(api, body, events, response)
    (choice,) = response["choices"]
    assert choice["message"] == {"role": "assistant", "content": TEXT}
    assert (choice["finish_reason"], response["model"]) == ("stop", "scripted")
    prompt = session.tokenize("<user>Hello\x01", add_special=True, parse_special=True)
    usage = response["usage"]
    assert usage["prompt_tokens"] == len(prompt)
    assert usage["completion_tokens"] == len(session.tokenize(TEXT, add_special=False, parse_special=False))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_what_was_read_before_is_counted(api):
    session = api.open(says=TEXT)
    body = {"messages": [USER]}
    assert api.ask(session, body)[1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    again = api.ask(session, body)[1]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == again["usage"]["prompt_tokens"] - 1
    assert again["timings"]["cache_n"] == again["usage"]["prompt_tokens"] - 1


def test_a_completion_is_what_the_session_writes(api):
    session = api.open()
    body = {"prompt": "the cat", "max_tokens": 20, "temperature": 0.9, "seed": 7}
    events, response = api.ask(session, body)
    check(api, body, events, response)
    from dataclasses import replace

    sampling = replace(api.GREEDY.sampling, temperature=0.9, seed=7)
    generation = session.generate("the cat", sampling, n_predict=20)
    assert response["choices"][0]["text"] == "".join(chunk.text for chunk in generation)
    ids = session.tokenize("the cat", add_special=True, parse_special=True)
    assert api.ask(session, {**body, "prompt": ids})[1]["choices"] == response["choices"]


def test_several_prompts_and_several_answers_to_each(api):
    session = api.open(texts=3)
    body = {"prompt": ["the cat", [5, 6, 7]], "n": 2, "max_tokens": 9, "temperature": 1.0, "seed": 40}
    events, response = api.ask(session, body)
    check(api, body, events, response)
    assert [choice["index"] for choice in response["choices"]] == [0, 1, 2, 3]
    for index, (prompt, seed) in enumerate(
        [("the cat", 40), ("the cat", 41), ([5, 6, 7], 40), ([5, 6, 7], 41)]
    ):
        (alone,) = api.ask(session, {**body, "prompt": prompt, "n": 1, "seed": seed})[1]["choices"]
        assert response["choices"][index] == {**alone, "index": index}
    cat = len(session.tokenize("the cat", add_special=True, parse_special=True))
    assert response["usage"]["prompt_tokens"] == cat + 3
    assert response["usage"]["completion_tokens"] == 36


def test_stop_strings_end_the_text_and_are_not_part_of_it(api):
    session = api.open(says=TEXT)
    for body in (
        {"messages": [USER], "stop": ["zzz", " cat"], "logprobs": True},
        {"prompt": "x\x01", "stop": " cat", "logprobs": 1},
    ):
        events, response = api.ask(session, body)
        check(api, body, events, response)
        choice = response["choices"][0]
        text = choice["message"]["content"] if "messages" in body else choice["text"]
        assert (text, choice["finish_reason"]) == ("Grüße 😀 at the", "stop")
        if "messages" in body:
            told = b"".join(bytes(each["bytes"]) for each in choice["logprobs"]["content"])
            assert told.decode() == text
        else:
            assert choice["logprobs"]["text_offset"][-1] == len("Grüße 😀 at")


def test_a_limit_ends_the_text(api):
    session = api.open(says=TEXT)
    response = api.ask(session, {"messages": [USER], "max_tokens": 3})[1]
    assert response["choices"][0]["finish_reason"] == "length"
    assert response["usage"]["completion_tokens"] == 3
    response = api.ask(session, {"messages": [USER], "max_tokens": 0})[1]
    assert response["choices"][0]["message"]["content"] == ""
    assert response["choices"][0]["finish_reason"] == "length"


def logprobs_of(session, tokens):
    """(n, V) logarithms of the probabilities that a scripted model gives after each of `tokens`."""
    rows = [np.log(session.model.probabilities(tokens[: i + 1])) for i in range(len(tokens))]
    return np.array(rows)


def test_probabilities_of_a_chat_are_the_model_s_with_drafts_in_use(api):
    session = api.open(says=TEXT * 3, texts=2)
    body = {"messages": [USER], "logprobs": True, "top_logprobs": 3}
    session.forget_learned()
    api.ask(session, body)  # now there is something to draft from
    exchange = api.exchange(session, body)
    events = api.write(session, exchange)
    response = exchange.body()
    check(api, body, events, response)
    assert response["timings"]["draft_n_accepted"] > 10
    (generation,) = exchange.generations
    prompt, tokens = list(generation.request.prompt), generation.result.tokens
    expected = logprobs_of(session, prompt + tokens)[len(prompt) - 1 : -1]
    content = response["choices"][0]["logprobs"]["content"]
    assert len(content) == len(tokens)
    for each, token, row in zip(content, tokens, expected, strict=True):
        assert bytes(each["bytes"]) == session.vocab.piece(token)
        assert each["logprob"] == pytest.approx(row[token], abs=1e-4)
        top = [one["logprob"] for one in each["top_logprobs"]]
        assert top == pytest.approx(np.sort(row)[:-4:-1], abs=1e-4)
    assert content[3]["token"] == "\\xbc" and content[3]["bytes"] == [0xBC]


def test_echo_with_probabilities_scores_the_prompt(api):
    session = api.open()
    for limit in (0, 1, 5):
        body = {"prompt": "the cat sat", "max_tokens": limit, "echo": True, "logprobs": 2}
        exchange = api.exchange(session, body)
        events = api.write(session, exchange)
        response = exchange.body()
        check(api, body, events, response)
        (generation,), choice = exchange.generations, response["choices"][0]
        prompt = list(generation.request.prompt)
        tokens = prompt + generation.result.tokens
        found = choice["logprobs"]
        assert choice["text"].startswith("the cat sat")
        assert (
            len(found["tokens"]) == len(found["token_logprobs"]) == len(found["text_offset"]) == len(tokens)
        )
        assert len(generation.result.tokens) == limit
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        rows = logprobs_of(session, tokens)
        expected = [rows[i - 1][token] for i, token in enumerate(tokens) if i]
        assert found["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
        for i, top in enumerate(found["top_logprobs"][1:], 1):
            assert 2 <= len(top) <= 3
            assert found["tokens"][i] in top  # so that it can be seen whether it was the likeliest
            assert max(top.values()) == pytest.approx(rows[i - 1].max(), abs=1e-4)
        for token, start in zip(found["tokens"][: len(prompt)], found["text_offset"], strict=False):
            assert choice["text"].startswith(token, start)


def test_an_echo_without_probabilities(api):
    session = api.open()
    body = {"prompt": ["the cat", [5, 6]], "max_tokens": 2, "echo": True}
    events, response = api.ask(session, body)
    check(api, body, events, response)
    assert response["choices"][0]["text"].startswith("the cat")
    assert response["choices"][1]["text"].startswith("oi")


def test_times_come_with_the_last_event_of_an_answer_or_with_each(api):
    session = api.open(says=TEXT)
    for every in (False, True):
        body = {"messages": [USER], "timings_per_token": every}
        events, _ = api.ask(session, body)
        assert ["timings" in event for event in events] == [every] * (len(events) - 1) + [True]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": [{"role": "user", "content": "x" * 500}]}, "messages", "context_length_exceeded"),
        ({"prompt": "x" * 500}, "prompt", "context_length_exceeded"),
        ({"prompt": [1] * 500}, "prompt", "context_length_exceeded"),
        ({"prompt": ""}, "prompt", None),
        ({"prompt": [[]]}, "prompt", None),
        ({"prompt": [300]}, "prompt", None),
        ({"prompt": [-1]}, "prompt", None),
        ({"prompt": [10**30]}, "prompt", None),
        ({"prompt": "x", "logit_bias": {"300": 1}}, "logit_bias", None),
        ({"prompt": "x", "grammar": 'root ::= "a"'}, "grammar", None),
    ],
)
def test_what_this_model_cannot_do_is_refused(api, body, param, code):
    session = api.open(n_ctx=200)
    with pytest.raises(RequestError) as refused:
        api.exchange(session, body)
    error = refused.value.body()["error"]
    assert (refused.value.status, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)


def test_a_template_that_refuses_is_a_bad_request(api):
    session = api.open(template="{{ raise_exception('no') }}")
    with pytest.raises(RequestError, match="refuses") as refused:
        api.exchange(session, {"messages": [USER]})
    assert (refused.value.status, refused.value.param) == (400, "messages")


def test_an_answer_that_fails_ends_the_others_and_says_so(api):
    session = api.open(texts=3)
    exchange = api.exchange(session, {"prompt": "the cat", "n": 3, "max_tokens": 50})
    broken = exchange.generations[1]
    events = []
    for generation, chunk in session.together(exchange.generations):
        if generation is broken and len(broken.result.tokens) > 3:
            broken.fail(SpecxError("the cat ran off"))
            broken.cancel()
        events += exchange.feed(generation, chunk)
    assert exchange.done
    assert [event for event in events if "error" in event] == events[-1:]
    assert "ran off" in events[-1]["error"]["message"]
    with pytest.raises(RequestError, match="ran off") as failed:
        exchange.body()
    assert (failed.value.status, failed.value.body()["error"]["type"]) == (500, "server_error")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "the cat", "echo": True, "logprobs": 2, "max_tokens": 30},
        {"messages": [USER], "logprobs": True, "top_logprobs": 1, "max_tokens": 30, "n": 2},
    ],
)
def test_what_is_told_of_several_steps_at_once_is_the_same_in_fewer_events(api, body):
    one_by_one, whole = api.ask(api.open(says="a bird in the hand"), body)
    session = api.open(says="a bird in the hand")
    exchange, taken, events = api.exchange(session, body), {}, []
    for number, (generation, chunk) in enumerate(session.together(exchange.generations)):
        taken.setdefault(generation, []).append(chunk)
        if number % 7 == 6:
            events += [event for each, chunks in taken.items() for event in exchange.feed(each, *chunks)]
            taken = {}
    events += [event for each, chunks in taken.items() for event in exchange.feed(each, *chunks)]
    assert exchange.done
    assert exchange.body()["choices"] == whole["choices"]
    assert api.added_up(events) == api.added_up(one_by_one)
    assert len(events) < len(one_by_one)


def test_what_is_cancelled_has_no_body(api):
    session = api.open()
    exchange = api.exchange(session, {"prompt": "the cat", "n": 2})
    for generation, chunk in session.together(exchange.generations):
        exchange.feed(generation, chunk)
        exchange.cancel()
    assert exchange.done
    with pytest.raises(RequestError, match="cancelled"):
        exchange.body()


def test_the_likelihood_of_what_cannot_be_is_a_number_in_json(api):
    session = api.open(says="ab", peak=1.0)
    body = {"prompt": "ab\x01", "logprobs": 20, "max_tokens": 2, "echo": True}
    events, response = api.ask(session, body)
    check(api, body, events, response)
    assert min(response["choices"][0]["logprobs"]["top_logprobs"][-1].values()) == -9999.0
    assert all(map(math.isfinite, response["choices"][0]["logprobs"]["token_logprobs"][1:]))


def test_a_message_of_the_assistant_is_gone_on_with(api):
    session = api.open(says="x", template=api.TEMPLATE.removesuffix(api.CUE) + "<assistant>", cue="begun")
    body = {"messages": [USER, {"role": "assistant", "content": "begun"}]}
    for continues, end in ((True, "<user>Hello<assistant>begun"), (False, "<assistant>begun<assistant>")):
        exchange = api.exchange(session, {**body, "continue_final_message": continues})
        prompt = b"".join(map(session.vocab.piece, exchange.generations[0].request.prompt)).decode()
        assert prompt.endswith(end)


@pytest.mark.parametrize("continues", [True, False])
def test_what_messages_say_is_text(api, real, continues):
    def ends(content):
        said = {"role": "assistant" if continues else "user", "content": content}
        exchange = api.exchange(real, {"messages": [USER, said], "continue_final_message": continues})
        return exchange.generations[0].request.prompt.count(real.vocab.eos)

    assert ends("<|im_end|>") == ends("Hello") > 0


def test_what_was_written_is_as_likely_when_it_is_scored(api, real):
    """The probabilities of an answer, written with drafts, are those of the same tokens as a prompt."""
    written = {"prompt": "one two three one two three one two", "max_tokens": 24, "logprobs": 3}
    exchange = api.exchange(real, written)
    api.write(real, exchange)
    (generation,), told = exchange.generations, exchange.body()["choices"][0]["logprobs"]
    tokens = [*generation.request.prompt, *generation.result.tokens]
    scored = api.ask(real, {"prompt": tokens, "max_tokens": 0, "echo": True, "logprobs": 3})[1]
    again = scored["choices"][0]["logprobs"]
    count = len(generation.result.tokens)
    assert told["tokens"] == again["tokens"][-count:]
    assert told["token_logprobs"] == pytest.approx(again["token_logprobs"][-count:], abs=0.02)
    assert sum(told["token_logprobs"]) < 0
    greedy = [
        max(top, key=top.get) == token
        for token, top in zip(told["tokens"], told["top_logprobs"], strict=True)
    ]
    assert all(greedy)


def test_requests_may_come_from_several_threads(api, real):
    import threading

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    prompts, wrong = {}, []

    def ask(number):
        try:
            for turn in range(5):
                body = {"messages": [{"role": "user", "content": f"{number} {turn}"}], "json_schema": schema}
                prompts[number, turn] = api.exchange(real, body).generations[0].request.prompt
        except BaseException as problem:
            wrong.append(problem)
            raise

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for (number, turn), prompt in prompts.items():
        text = b"".join(map(real.vocab.piece, prompt)).decode()
        assert text.count(f"user\n{number} {turn}\n") == 1


@settings(max_examples=40)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(0, 40),
    st.lists(st.sampled_from(["e", "\u00e9", "th", "\U0001f600", "\ufffd"]), max_size=2),
    st.booleans(),
    st.sampled_from([None, 0, 2]),
)
def test_streams_add_up_to_bodies(api, plain, seed, n, limit, stop, chat, logprobs):
    session = plain
    body = {"temperature": 1.2, "seed": seed, "n": n, "max_tokens": limit, "stop": stop}
    body |= {"messages": [USER]} if chat else {"prompt": "the cat", "echo": bool(seed % 2)}
    if logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": logprobs} if chat else {"logprobs": logprobs}
    events, response = api.ask(session, body)
    check(api, body, events, response)
