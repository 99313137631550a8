"""OpenAI's own client against the server: whole answers, streams, errors, and leaving in the middle."""

from __future__ import annotations

import openai
import pytest

from specx.cli.serve.gate import Policy

MESSAGES = [{"role": "user", "content": "the cat"}]


@pytest.fixture
def client():
    """Makes clients of a server; all are closed at the end."""
    made = []

    def connect(server, *, key="anything", retries=0):
        made.append(openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=retries, timeout=60))
        return made[-1]

    yield connect
    for each in made:
        each.close()


def test_a_chat_and_its_stream_are_the_same(serve, client):
    api = client(serve())
    asked = {
        "model": "scripted",
        "messages": MESSAGES,
        "max_completion_tokens": 20,
        "seed": 5,
        "temperature": 1,
    }
    whole = api.chat.completions.create(**asked)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 20
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 20
    stream = api.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    text, usage, ids, reasons = "", None, set(), []
    for chunk in stream:
        ids.add(chunk.id)
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            reasons.append(chunk.choices[0].finish_reason)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage.model_dump(exclude={"prompt_tokens_details"}) == whole.usage.model_dump(
        exclude={"prompt_tokens_details"}
    )
    assert usage.prompt_tokens_details.cached_tokens > 0  # the whole was asked for before
    assert len(ids) == 1 and "" not in ids
    assert [reason for reason in reasons if reason] == ["length"]


def test_several_answers_and_their_probabilities(serve, client):
    api = client(serve())
    answer = api.chat.completions.create(
        model="x", messages=MESSAGES, max_tokens=6, n=3, temperature=1, seed=1, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert len(choice.logprobs.content) == 6
        for token in choice.logprobs.content:
            assert token.logprob <= 0
            assert len(token.top_logprobs) == 2
            assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob


def test_a_text_goes_on_with_echo_and_probabilities(serve, client):
    api = client(serve())
    answer = api.completions.create(
        model="x", prompt="the cat", max_tokens=1, echo=True, logprobs=1, temperature=0
    )
    (choice,) = answer.choices
    assert choice.text.startswith("the cat")
    logprobs = choice.logprobs
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens) == choice.text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)


def test_models(serve, client):
    (model,) = client(serve()).models.list().data
    assert model.id == "scripted"
    assert model.context_length == 4096


def test_errors_are_those_that_the_client_knows(serve, client):
    server = serve(policy=Policy(keys=("right",)))
    with pytest.raises(openai.AuthenticationError):
        client(server, key="wrong").models.list()
    api = client(server, key="right")
    with pytest.raises(openai.BadRequestError) as refused:
        api.chat.completions.create(model="x", messages=MESSAGES, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as refused:
        api.completions.create(model="x", prompt="a" * 20_000)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        api.embeddings.create(model="x", input="y")


def test_a_busy_server_is_asked_again(serve, client):
    server = serve(texts=1, slow_ms=2.0, most_waiting=0)
    api, patient = client(server), client(server, retries=5)
    endless = api.completions.create(
        model="x",
        prompt="the cat",
        max_tokens=3000,
        stream=True,
        temperature=1,
        extra_body={"ignore_eos": True},
    )
    next(iter(endless))
    with pytest.raises(openai.RateLimitError) as refused:
        api.completions.create(model="x", prompt="the", max_tokens=1)
    assert int(refused.value.response.headers["retry-after"]) >= 1
    endless.close()
    assert patient.completions.create(model="x", prompt="the", max_tokens=1).usage.completion_tokens == 1
    server.quiet()
