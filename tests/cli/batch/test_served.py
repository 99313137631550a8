"""A batch beside a running server of the same model: what comes out is the same, and nothing is loaded."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from specx.backends.errors import SpecxError
from specx.cli.batch.served import ServedRun
from specx.engine.api.asks import Defaults
from specx.engine.batch.feed import Feed
from specx.engine.batch.items import Reader, Reading
from specx.engine.batch.source import read_lines

SCRIPT = Path(__file__).with_name("scripted_specx.py")
PATIENCE = 240


@pytest.fixture
def runtime(monkeypatch, tmp_path_factory):
    """A runtime directory with a path that is short enough for sockets."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("r")))


def specx(*arguments, stdin=b""):
    return subprocess.run(
        [sys.executable, "-P", str(SCRIPT), *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture
def server(runtime, model):
    begun = specx("serve", "--background", model, "--idle", "2m")
    assert begun.returncode == 0, begun.stderr
    yield begun
    specx("serve", "--stop")


def seen(out):
    """The records without what a clock says, and what was cached."""
    records = []
    for line in out.split(b"\n"):
        if line:
            value = json.loads(line)
            body = (value.get("response") or {}).get("body") or value
            for name in ("created", "timings"):
                body.pop(name, None)
            body.get("usage", {}).pop("prompt_tokens_details", None)
            records.append(value)
    return records


def both(*arguments, stdin=b""):
    done = [specx("batch", *arguments, "--server", server, stdin=stdin) for server in ("auto", "no")]
    assert [b"loading" in each.stderr for each in done] == [False, True], done
    return done


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    bodies = [{"prompt": f"w{i % 5}", "max_tokens": 3 + i % 7, "n": 1 + i % 2} for i in range(12)]
    bodies[3] = {"prompt": "x", "temperature": "hot"}
    bodies[5] = {"messages": [{"role": "user", "content": "hi"}], "stop": "e", "repetition_penalty": 1.3}
    bodies[6] = {"prompt": "a", "temperature": None, "seed": 3, "stop": ["x", "y"]}
    bodies[8] = {"prompt": [1, 2, 3], "logprobs": 2, "max_tokens": 4}
    lines = [json.dumps(body).encode() for body in bodies]
    path.write_bytes(b"\n".join([*lines, b"{broken", b"7"]) + b"\n")
    return path


def test_the_same_with_a_server_and_without(server, model, source):
    for more in (("-n", "9", "-s", "4"), ("-n", "9", "-s", "4", "-r", "o", "--temp", "0.3", "-l", "5+1")):
        there, here = both(model, source, *more)
        assert seen(there.stdout) == seen(here.stdout) and len(seen(there.stdout)) == 14
        assert there.returncode == here.returncode == 3
    there, here = both(model, "-s", "1", "-n", "5", "--text", stdin=b"red\ngreen\n\nblue\n")
    assert there.stdout == here.stdout and there.stdout.count(b"\n") == 4


def test_a_request_that_the_server_does_not_take_is_an_error_of_its_own(server, model):
    small = b'{"prompt": "a", "max_tokens": 3}\n'
    large = b'{"prompt": "b", "max_tokens": 3, "user": "%s"}\n' % (b"x" * (17 << 20))
    done = specx("batch", model, "-", "-s", "1", stdin=small + large + small)
    first, refused, last = seen(done.stdout)
    assert first["choices"] and last["choices"] and "at most" in refused["error"]["message"]
    assert done.returncode == 3 and b"loading" not in done.stderr


def test_what_another_context_would_answer_is_not_asked_of_a_server(server, model, source):
    for more in (("-c", "2048"), ("-n", "-1", "-c", "0")):
        done = specx("batch", model, source, "-s", "1", *more)
        assert b"loading" in done.stderr, more


@pytest.mark.parametrize(
    ("more", "how"),
    [([], signal.SIGKILL), (["--unordered"], signal.SIGKILL), ([], signal.SIGTERM)],
)
def test_a_server_that_ends_is_done_without(runtime, model, tmp_path, monkeypatch, more, how):
    monkeypatch.setenv("SCRIPTED_DELAY", "0.05")
    assert specx("serve", "--background", model, "--idle", "2m").returncode == 0
    monkeypatch.delenv("SCRIPTED_DELAY")
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a", "max_tokens": 12, "ignore_eos": true}\n' * 60)
    asked = ["batch", model, source, "-s", "1", *more]
    process = subprocess.Popen(
        [sys.executable, "-P", SCRIPT, *asked, "-o", output],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE
    while not (output.exists() and output.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    told = next(Path(os.environ["XDG_RUNTIME_DIR"]).rglob("*.json")).read_text()
    os.kill(json.loads(told)["pid"], how)
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, err
    assert b"the server that holds the model ended" in err and b": the model is loaded here" in err
    alone = specx(*asked, "--server", "no")
    records, expected = seen(output.read_bytes()), seen(alone.stdout)
    assert len(records) == 60
    assert records == expected if not more else sorted(map(str, records)) == sorted(map(str, expected))


def test_what_nobody_has_foreseen_ends_the_run_and_nobody_waits(monkeypatch):
    remote = SimpleNamespace(socket=Path("nowhere"), at_once=2)
    items = list(Reader(Reading("jsonl"), read_lines(io.BytesIO(b'{"prompt": "a"}\n' * 3), "in")))
    monkeypatch.setattr(ServedRun, "_ask", lambda *_: {}["choices"])
    run = ServedRun(
        remote,
        Feed(items),
        Defaults(),
        1,
        at_once=None,
        ordered=True,
        written=lambda _tokens: None,
        here=None,
    )
    with pytest.raises(SpecxError, match="KeyError"):
        list(run.answers())


def catches_sigterm(pid):
    """Whether a process has a handler by now, where the system says so."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        time.sleep(2)
        return True
    (mask,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def test_a_second_signal_drops_what_the_server_has(server, model, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a", "max_tokens": 1900, "ignore_eos": true}\n' * 9)
    process = subprocess.Popen(
        [sys.executable, "-P", SCRIPT, "batch", model, source, "-o", output, "-n", "1"],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE
    while not (Path(f"{output}.batch").exists() and catches_sigterm(process.pid)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert any(b"SIGTERM: " in line for line in process.stderr)  # it was heard: two at once are one
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 128 + signal.SIGTERM and b"Traceback" not in err
