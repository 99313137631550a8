"""llama.cpp's server as a process to compare with: a stub stands in for it."""

from __future__ import annotations

import json
import sys

import pytest

from specx.backends.errors import PeerError
from specx.backends.llama.server import LlamaServer, speculation_arguments

STUB = """#!{python}
import http.server, json, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({{"status": "ok"}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        timings = {{"prompt_n": len(asked["prompt"]), "prompt_ms": 1.5}}
        timings |= {{"predicted_n": 4, "predicted_ms": 8.0}}
        if "--spec-type" in sys.argv:
            timings |= {{"draft_n": 5, "draft_n_accepted": 3}}
        if asked["prompt"] == [13]:
            timings["prompt_n"] = 2
        if asked["prompt"] == [14]:
            del timings["prompt_ms"]
        if asked["prompt"] == [15]:
            print("out of luck", flush=True)
            os._exit(3)
        seen = {{key: asked[key] for key in ("temperature", "n_predict", "ignore_eos", "cache_prompt")}}
        with open({log!r}, "a") as log:
            print(json.dumps([seen, sorted(k for k in os.environ if k.startswith("LLAMA"))]), file=log)
        if asked["prompt"] == [16]:
            return self.reply({{"error": "busy"}}, 503)
        self.reply({{"content": "text", "tokens": [5, 6, os.getpid(), 2, 2], "timings": timings}})

    def reply(self, body, status=200):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_arguments):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

GREEDY = {"temperature": 0.0}


@pytest.fixture
def stub(tmp_path):
    path = tmp_path / "llama-server"
    path.write_text(STUB.format(python=sys.executable, log=str(tmp_path / "log")))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", ""),
        ("ngram-mod", "--spec-type ngram-mod"),
        (
            "ngram-mod:n-min=2:n-max=8",
            "--spec-type ngram-mod --spec-ngram-mod-n-min 2 --spec-ngram-mod-n-max 8",
        ),
    ],
)
def test_a_kind_of_speculation_says_how_the_server_is_started(spec, expected):
    assert " ".join(speculation_arguments(spec)) == expected


def test_an_answer_has_the_servers_times_and_loses_what_ends_it(stub):
    with LlamaServer(stub, [], frozenset({2})) as server:
        done = server.complete([1, 2, 3], 4, GREEDY)
        again = server.complete([1, 2, 3], 4, GREEDY)
        assert server.load_s > 0
        assert server.peak_bytes is None or server.peak_bytes > 1_000_000
    assert (done.prompt_n, done.prompt_ms, done.predicted_n, done.predicted_ms) == (3, 1.5, 4, 8.0)
    assert done.draft_n == 0 and done.tokens[:2] == [5, 6] and len(done.tokens) == 3
    assert again == done


def test_a_server_that_remembers_is_started_anew_for_each_answer(stub):
    arguments = speculation_arguments("ngram-mod")
    with LlamaServer(stub, arguments, frozenset({2}), forgetful=True) as server:
        first, second = server.complete([1], 4, GREEDY), server.complete([1], 4, GREEDY)
    assert first.tokens != second.tokens  # the stub answers with its process id
    assert (first.draft_n, first.draft_n_accepted) == (5, 3)


def test_the_request_asks_for_no_cache_and_no_variable_changes_the_server(stub, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_ARG_TEMPERATURE", "2")
    with LlamaServer(stub, [], frozenset()) as server:
        server.complete([1], 7, {"temperature": 0.5}, ignore_eos=True)
    seen, variables = json.loads((tmp_path / "log").read_text())
    assert seen == {"temperature": 0.5, "n_predict": 7, "ignore_eos": True, "cache_prompt": False}
    assert variables == []


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([13], "read 2 tokens of 1"),
        ([14], "no 'prompt_ms'"),
        ([15], "has ended: out of luck"),
        ([16], "answered 503"),
    ],
)
def test_an_answer_that_cannot_be_used_is_an_error(stub, prompt, said):
    with LlamaServer(stub, [], frozenset()) as server, pytest.raises(PeerError, match=said):
        server.complete(prompt, 4, GREEDY)


def test_a_server_that_does_not_start_says_why(stub):
    stub.write_text("#!/bin/sh\necho no such model; exit 1\n")
    with pytest.raises(PeerError, match="has ended: no such model"), LlamaServer(stub, [], frozenset()):
        pass


def test_what_is_no_program_is_refused_before_anything_is_started(tmp_path):
    with pytest.raises(PeerError, match="no program"):
        LlamaServer(tmp_path / "nothing", [], frozenset())
