"""What each path answers, and what it says of requests that it cannot answer."""

from __future__ import annotations

import json
import threading

import pytest

from specx.backends.errors import ModelError
from specx.cli.serve import gate

CHAT = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 8}


WRONG = [
    (b"", "JSON"),
    (b"{", "JSON"),
    (b"\xff\xfe", "JSON"),
    (b"[" * 100_000, "deeply"),
    (b'{"prompt": NaN}', "NaN"),
    (b"[]", "object"),
    (b"null", "object"),
    (b'{"prompt": 5}', "prompt"),
    (b'{"prompt": "x", "max_tokens": -3}', "max_tokens"),
    (b'{"prompt": "x", "n": 1e400}', ""),
    (b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}", ""),
    (b'{"prompt": "\\ud800"}', ""),
    (b'{"prompt": "x", "temperature": "hot"}', "temperature"),
    (b'{"prompt": [-1]}', ""),
    (b'{"prompt": [100000]}', ""),
    (b'{"prompt": "' + b"a" * 20_000 + b'"}', "context"),
]
"""Bodies of requests, and what must be said of them."""


def error_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize("prefix", ["/v1", ""])
def test_texts_are_written_with_and_without_v1(serve, prefix):
    server = serve()
    chat = server.post(f"{prefix}/chat/completions", CHAT).json()
    assert chat["object"] == "chat.completion"
    assert chat["model"] == "scripted"
    assert chat["choices"][0]["finish_reason"] == "length"
    assert chat["usage"]["completion_tokens"] == chat["timings"]["predicted_n"] == 8
    text = server.post(f"{prefix}/completions", {"prompt": "the cat", "max_tokens": 5}).json()
    assert text["object"] == "text_completion"
    assert text["choices"][0]["text"] == " sat on a mat and"
    server.quiet()


def test_the_beginning_of_a_prompt_is_read_once(serve):
    server = serve()
    first = server.post("/v1/completions", {"prompt": "the cat sat on a", "max_tokens": 4}).json()
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    again = server.post("/v1/completions", {"prompt": "the cat sat on a mat", "max_tokens": 4}).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 4
    assert again["timings"]["cache_n"] == again["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_the_model_says_how_long_its_context_is(serve):
    server = serve(n_ctx=2048)
    listed = server.client.get("/v1/models").json()
    (model,) = listed["data"]
    assert (listed["object"], model["id"], model["object"]) == ("list", "scripted", "model")
    assert model["context_length"] == model["max_model_len"] == model["meta"]["n_ctx"] == 2048
    assert server.client.get("/models").json() == listed
    assert server.client.get("/v1/models/scripted").json() == model
    assert error_of(server.client.get("/v1/models/other"), 404)["code"] == "model_not_found"


def test_properties_are_those_that_llama_cpp_names(serve):
    server = serve(texts=3)
    props = server.client.get("/props").json()
    assert props["total_slots"] == 3
    assert props["default_generation_settings"]["n_ctx"] == 4096
    assert props["default_generation_settings"]["params"]["temperature"] == 0.0
    assert "assistant" in props["chat_template"]
    assert props["model_alias"] == "scripted"
    slots = server.client.get("/slots").json()
    assert [slot["id"] for slot in slots] == [0, 1, 2]
    assert not any(slot["is_processing"] for slot in slots)


def test_tokens_and_text(serve):
    server = serve()
    tokens = server.post("/tokenize", {"content": "the cat"}).json()["tokens"]
    text = server.post("/detokenize", {"tokens": tokens}).json()
    assert text["content"] == text["prompt"] == "the cat"
    counted = server.post("/tokenize", {"prompt": "the cat", "add_special_tokens": False}).json()
    assert counted == {"tokens": tokens, "count": len(tokens), "max_model_len": 4096}
    assert "chat_template" in server.client.get("/tokenizer_info").json()
    pieces = server.post("/tokenize", {"content": "é", "with_pieces": True}).json()["tokens"]
    assert [piece["piece"] for piece in pieces] == [[0xC3], [0xA9]]
    assert [piece["id"] for piece in pieces] == server.post("/tokenize", {"content": "é"}).json()["tokens"]
    for body in (
        {},
        [],
        {"content": 5},
        {"content": "x", "add_special": 1},
        {"content": "\ud800"},
        None,
        {"prompt": []},
    ):
        error_of(server.client.post("/tokenize", content=json.dumps(body)), 400)
    for tokens in ("x", [-1], [400], [1.5], [True], [10**30], None):
        error_of(server.post("/detokenize", {"tokens": tokens}), 400)


def test_what_is_wrong_with_a_request_is_said(serve):
    server = serve()
    for body, said in WRONG:
        message = error_of(server.client.post("/v1/completions", content=body), 400)["message"]
        assert said in message, (body[:40], message)
    server.quiet()


def test_a_byte_order_mark_is_no_mistake(serve):
    server = serve()
    body = b"\xef\xbb\xbf" + json.dumps({"prompt": "the", "max_tokens": 1}).encode()
    assert server.client.post("/v1/completions", content=body).status_code == 200


def test_a_request_that_is_too_large_is_refused_before_it_is_read(serve, monkeypatch):
    monkeypatch.setattr(gate, "BODY_LIMIT", 1000)
    server = serve()
    error_of(server.client.post("/v1/completions", content=b"x" * 1001), 413)

    def pieces():
        for _ in range(100):
            yield b"x" * 100

    error_of(server.client.post("/v1/completions", content=pieces()), 413)
    assert server.client.get("/health").status_code == 200


def test_paths_and_methods_that_are_not_served(serve):
    server = serve()
    error_of(server.client.get("/v1/nothing"), 404)
    error_of(server.client.get("/v1/completions"), 405)
    error_of(server.client.post("/health"), 405)
    error_of(server.client.get("/health/"), 404)
    assert set(server.client.post("/health").headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_while_the_model_is_loaded_the_server_says_so(serve, session_of):
    go = threading.Event()

    def load():
        assert go.wait(60)
        return session_of()

    server = serve(load)
    for path in ("/health", "/v1/health", "/v1/models", "/props", "/metrics", "/slots"):
        assert error_of(server.client.get(path), 503)["code"] == "model_loading"
    error_of(server.post("/v1/chat/completions", CHAT), 503)
    go.set()
    server.ready()
    assert server.client.get("/health").json() == {"status": "ok"}


def test_a_model_that_cannot_be_loaded_ends_the_server(serve):
    def load():
        raise ModelError("the file is damaged", "fetch it again")

    server = serve(load)
    server.thread.join(60)
    assert isinstance(server.problem, ModelError)
    assert server.problem.message == "the file is damaged"


def test_the_log_has_no_text_that_was_typed(serve):
    server = serve()
    server.post("/v1/chat/completions?secret=1", CHAT)
    server.client.get("/health")
    (first, second) = server.logged
    assert first.startswith("127.0.0.1 POST /v1/chat/completions 200 ")
    assert second.startswith("127.0.0.1 GET /health 200 ")
    assert "cat" not in first and "secret" not in first
