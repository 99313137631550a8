"""Commands and a server that answers whatever a test wants it to."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading

import pytest

from specx import __version__
from specx.cli.resident import remote
from specx.cli.resident.client import Connection, LostError

from .conftest import ABOUT, response

TIMINGS = {
    **{"prompt_n": 3, "predicted_n": 2, "predicted_ms": 20.0, "steps": 2},
    **{"draft_n": 6, "draft_n_accepted": 2},
}
ENCODED = response({"tokens": [1, 2, 3], "text": "<s>Once", "stops": [], "keep": 0, "notices": []})


def chunk(text: str, *, last: bool = False) -> dict:
    tokens = [] if last else [7]
    return {
        "chunk": {
            **{"text": text, "tokens": tokens, "drafted": 3, "accepted": 1, "seconds": 0.01},
            **{"sources": [], "last": last},
        }
    }


def result(**other) -> dict:
    whole = {"text": "Hello wörld", "tokens": [7, 7], "finish_reason": "stop", "seed": 77, "timings": TIMINGS}
    return {"result": {**whole, **other}, "drafter_name": "auto", "drafter_label": "auto, model tiny"}


ANSWER = ({"read": [2, 3]}, chunk("Hello"), chunk(" wörld"), chunk("", last=True), result())


@pytest.fixture
def answering(server):
    server.answers |= {"encode": ENCODED, "generate": response(*ANSWER)}
    return server


@pytest.mark.parametrize("chunked", [True, False])
def test_the_answer_of_a_server(specx, answering, chunked):
    answering.answers["generate"] = response(*ANSWER, chunked=chunked)
    outcome = specx("complete", specx.model, "-p", "Once", "-s", "77")
    assert (outcome.code, outcome.out) == (0, "Hello wörld")
    assert outcome.err == (
        "seed: 77, 2 tokens, 100.0 tokens/s, 1.00 tokens/step, 33% of drafts accepted (auto, model tiny)\n"
    )
    assert specx.settings == []  # nothing was loaded
    assert [route for route, _ in answering.asked] == ["hello", "encode", "generate"]


def test_all_that_was_asked_arrives(specx, answering):
    specx(
        *(
            "complete",
            specx.model,
            "-p",
            "Once",
            "-sys",
            "Be brief",
            "-s",
            "5",
            "--temp",
            "0.5",
            "-l",
            "3-inf",
        ),
        *("-n", "9", "-r", "how", "--ignore-eos", "--keep", "4", "--grammar", 'root ::= "x"'),
    )
    asked = dict(answering.asked)
    assert asked["encode"] == {"text": "Once", "chat": False, "system": "Be brief"}
    body = asked["generate"]
    assert (body["prompt"], body["n_predict"], body["stop"], body["keep"]) == ([1, 2, 3], 9, ["how"], 4)
    assert body["ignore_eos"] and body["grammar"] == 'root ::= "x"'
    assert (body["sampling"]["seed"], body["sampling"]["temperature"]) == (5, 0.5)
    assert body["sampling"]["logit_bias"] == [[3, "-inf"]]


def test_a_seed_is_chosen_if_none_was_given(specx, answering):
    for _ in range(2):
        specx("complete", specx.model, "-p", "Once")
    first, second = (body["sampling"]["seed"] for route, body in answering.asked if route == "generate")
    assert first != second and 0 <= first < 2**32


def test_json_is_what_it_always_is(specx, answering):
    whole = json.loads(specx("complete", specx.model, "-p", "Once", "--json", "--server", "auto").out)
    local = json.loads(specx("complete", specx.model, "-p", "Once", "--json", "--server", "no").out)
    assert set(whole) == set(local) and set(whole["timings"]) >= set(local["timings"])
    assert (whole["text"], whole["model"], whole["drafter"]) == ("Hello wörld", "fake", "auto")
    lines = specx("complete", specx.model, "-p", "Once", "--stream-json").out.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["Hello", " wörld", "Hello wörld"]


def test_other_settings_do_not_find_it(specx, answering):
    for arguments in (["-c", "512"], ["--server", "no"], ["--drafter", "none"], ["--no-cache"]):
        assert specx("complete", specx.model, "-p", "Once", *arguments).code == 0
    assert len(specx.settings) == 4 and answering.asked == []
    wrong = specx("complete", specx.model, "-p", "x", "--server", "maybe")
    assert wrong.code == 2 and "allowed are auto, no" in wrong.err


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (response({**ABOUT, "version": __version__ + "1"}), "is of another version"),
        (response({**ABOUT, "busy": True}), "takes no more requests"),
        (response({"error": {"message": "loading"}}, status=503), "does not answer"),
        (response({"version": __version__}), "does not answer"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not answer"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "does not answer"),
        (response({})[:-9], "does not answer"),
        (b"", "does not answer"),
        (None, "does not answer"),
    ],
)
def test_a_server_that_is_of_no_use_is_left_alone(specx, server, monkeypatch, hello, why):
    monkeypatch.setattr(remote, "HELLO_S", 0.2)
    server.answers["hello"] = hello
    outcome = specx("complete", specx.model, "-p", "Once", "-q")
    assert (outcome.code, outcome.out, outcome.err) == (0, "Hello wörld, how are you?", "")
    assert len(specx.settings) == 1
    told = specx("complete", specx.model, "-p", "Once", "--verbose").err
    assert why in told


def test_a_socket_that_nobody_listens_at(specx, place):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place.socket))
    outcome = specx("complete", specx.model, "-p", "Once", "-q")
    assert (outcome.code, outcome.err, len(specx.settings)) == (0, "", 1)


@pytest.mark.parametrize("cut", [-1, -9, -200, -300])
def test_a_server_that_dies_in_mid_answer(specx, answering, tmp_path, cut):
    answering.answers["generate"] = response(*ANSWER)[:cut]
    path = tmp_path / "out.txt"
    path.write_text("before")
    outcome = specx("complete", specx.model, "-p", "Once", "-o", str(path))
    assert specx.settings == []
    if cut == -1:  # all of it has come
        assert outcome.code == 0
        return
    if cut == -9:  # the result has
        assert outcome.code in (0, 1)
        return
    assert (outcome.code, path.read_text()) == (1, "before")
    assert outcome.err.startswith("error: the server that holds the model ended before it had answered")
    assert "hint: run it again" in outcome.err and "Traceback" not in outcome.err
    assert [each.name for each in tmp_path.iterdir() if "tmp" in each.suffix] == []


@pytest.mark.parametrize("said", [b'HTTP/1.1 413 Too Large\r\ncontent-length: 11\r\n\r\n{"error":1}', b""])
def test_why_a_request_is_not_taken_is_heard(tmp_path_factory, said):
    path = tmp_path_factory.mktemp("r") / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def refuse():
            connection, _ = listener.accept()
            connection.recv(100)
            connection.sendall(said)
            connection.close()

        refusing = threading.Thread(target=refuse)
        refusing.start()
        with Connection(path, 60.0) as connection:
            connection.send("/specx/answer", {"text": "x" * (4 << 20)})
            if said:
                assert list(connection.lines()) == [{"error": 1}] and connection.status == 413
            else:
                with pytest.raises(LostError, match=r"Broken pipe|reset"):
                    list(connection.lines())
        refusing.join()


BUSY = {"message": "the server is busy", "hint": "try again in 1 s", "exit_code": 1, "unavailable": True}
LOADING = response({"error": {"message": "the model is being loaded"}}, status=503)


@pytest.mark.parametrize(
    ("route", "answer"),
    [
        ("generate", response({"error": BUSY})),
        ("generate", response({"read": [2, 3]}, {"error": BUSY})),
        ("generate", LOADING),
        ("generate", response(*ANSWER)[:30]),
        ("generate", b""),
        ("encode", response({"error": BUSY}, status=429)),
        ("encode", LOADING),
        ("encode", b""),
    ],
)
def test_a_server_that_takes_no_more_is_done_without(specx, answering, route, answer):
    answering.answers[route] = answer
    outcome = specx("complete", specx.model, "-p", "Once", "-s", "5", "--grammar", 'root ::= "x"')
    assert (outcome.code, outcome.out) == (0, "Hello wörld, how are you?")
    assert outcome.err.startswith("seed: 5, ") and specx.session.closed
    assert len(specx.settings) == 1 and len(specx.session.requests) == 1
    assert specx.session.samplings[0].seed == 5
    assert specx.session.requests[0]["constraint"] == 'root ::= "x"'
    assert [asked for asked, _ in answering.asked][-1] == route  # it is not asked again


def test_why_a_server_is_done_without_is_told(specx, answering):
    answering.answers["generate"] = response({"error": BUSY})
    outcome = specx("complete", specx.model, "-p", "Once", "--verbose", "--json")
    assert "the server is busy: the model is loaded here" in outcome.err
    assert json.loads(outcome.out)["setup"] == {}  # of what was loaded


def test_a_chat_goes_on_without_a_server_that_has_ended(specx, answering):
    answering.answers |= {"tokenize": response({"tokens": [1, 2]}), "specials": response({"tokens": None})}
    answering.answers["generate"] = response({"error": BUSY})
    outcome = specx("chat", specx.model, stdin=b"hi\n/drafter none\nho\n")
    assert (outcome.code, outcome.out) == (0, "Hello wörld, how are you?\n" * 2)
    assert [asked for asked, _ in answering.asked].count("generate") == 1
    assert len(specx.settings) == 1 and specx.session.drafter_name == "none"


def test_an_error_of_the_server_is_an_error_here(specx, answering):
    problem = {"error": {"message": "the grammar has no root", "hint": "add one", "exit_code": 2}}
    answering.answers["generate"] = response(problem)
    outcome = specx("complete", specx.model, "-p", "Once")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: the grammar has no root\nhint: add one\n"
    problem["error"]["exit_code"] = 1
    answering.answers["generate"] = response(chunk("Hello"), problem)
    outcome = specx("complete", specx.model, "-p", "Once")
    assert (outcome.code, outcome.out) == (1, "Hello")


def test_notices_of_the_template_are_told(specx, answering):
    told = {"tokens": [1], "text": "T", "stops": ["<|end|>"], "keep": 1, "notices": ["this is ChatML"]}
    answering.answers["encode"] = response(told)
    outcome = specx("complete", specx.model, "-p", "Once", "--chat", "--display-prompt")
    assert outcome.err.startswith("this is ChatML\n") and outcome.out == "THello wörld"
    assert dict(answering.asked)["generate"]["stop"] == ["<|end|>"]


def test_a_chat_in_a_server(specx, answering):
    answering.answers |= {"tokenize": response({"tokens": [1, 2]}), "specials": response({"tokens": None})}
    outcome = specx("chat", specx.model, stdin=b"hi\n/drafter none\n/stats\n")
    assert outcome.out == "Hello wörld\n" and outcome.code == 1
    assert outcome.err.startswith("fake, drafter auto, in a server (pid ")
    assert "error: the drafter of a model in a server stays as it is" in outcome.err


def test_ctrl_c_ends_it_at_the_server(spawn, answering, model):
    head = response(chunk("Hello"), torn=True)
    answering.answers |= {"generate": None, "cancel": response({"cancelled": True})}
    process = spawn("complete", model, "-p", "x")
    answering.until("generate")
    process.send_signal(signal.SIGINT)
    answering.until("cancel")
    asked = dict(answering.asked)
    assert asked["cancel"]["id"] == asked["generate"]["id"]
    (held,) = answering._held
    end = response(result(finish_reason="cancelled", text="Hello", tokens=[7]))
    held.sendall(head + end.partition(b"\r\n\r\n")[2])
    held.close()
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (130, b"Hello")
    assert b"seed: 77" in err and b"loading" not in err


def test_a_second_ctrl_c_ends_at_once(spawn, answering, model):
    answering.answers |= {"generate": None, "cancel": response({"cancelled": True})}
    process = spawn("complete", model, "-p", "x")
    for route in ("generate", "cancel"):
        answering.until(route)
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=240)
    assert process.returncode == 130


def test_nothing_heavy_is_imported(answering, model):
    """It has to begin within a moment."""
    heavy = ("numpy", "llama_cpp", "gguf", "jinja2", "rich", "pydantic", "socket", "specx.engine.session")
    code = (
        "import sys\nfrom specx.cli.app import run\n"
        f"code = run(['complete', {str(model)!r}, '-p', 'x'])\n"
        f"assert (code, [name for name in {heavy!r} if name in sys.modules]) == (0, [])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "Hello wörld"), done.stderr
