"""Commands beside a real `specx serve` of a scripted model: the same as without it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specx.cli.resident.client import ask
from specx.cli.resident.remote import Remote, UnavailableError
from specx.engine.settings import SamplingSettings

SCRIPT = Path(__file__).parents[1] / "serve" / "scripted_specx.py"
BATCH = Path(__file__).parents[1] / "batch" / "scripted_specx.py"
PATIENCE = 120
UNLIKE = ("setup", "timings")


def specx(*arguments: str, script: Path = SCRIPT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
        check=False,
    )


def lines(err: str) -> list[str]:
    """What was said, without what a scripted model says at its end, and without speeds."""
    return [
        line.split(" tokens/s")[0].rpartition(",")[0] or line for line in err.splitlines() if line != "closed"
    ]


@pytest.fixture
def background(runtime, model):
    """A server in the background."""
    begun = specx("serve", "--background", model, "--idle", "2m")
    assert (begun.returncode, begun.stdout) == (0, ""), begun.stderr
    yield begun
    specx("serve", "--stop", "--all")


def both(*arguments: str) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    return specx(*arguments, "--server", "auto"), specx(*arguments, "--server", "no")


def test_the_same_with_a_server_and_without(background, model):
    assert "in the background (pid " in background.stderr.splitlines()[-1]
    asked = ["complete", str(model), "-p", "2,3,4", "-s", "7", "-n", "40"]
    for more in ([], ["--temp", "0", "-r", "9", "--display-prompt"], ["-n", "0"]):
        there, here = both(*asked, *more)
        assert (there.returncode, there.stdout) == (here.returncode, here.stdout), (more, there.stderr)
        assert lines(there.stderr) == lines(here.stderr)
        assert "closed" in here.stderr and "closed" not in there.stderr  # it loaded nothing
    there, here = (json.loads(each.stdout) for each in both(*asked, "--json"))
    assert {k: v for k, v in there.items() if k not in UNLIKE} == {
        k: v for k, v in here.items() if k not in UNLIKE
    }
    assert set(there["timings"]) == set(here["timings"])
    for wrong in (["-l", "99999+1"], ["--grammar", "root ::= x"]):
        there, here = both(*asked, *wrong)
        assert (there.returncode, there.stdout, there.stderr.replace("closed\n", "")) == (
            here.returncode,
            here.stdout,
            here.stderr.replace("closed\n", ""),
        )


def test_it_is_listed_and_ended(background, model):
    again = specx("serve", "--background", model)
    assert again.returncode == 1 and "already in a server" in again.stderr
    shown = specx("serve", "--status").stdout.splitlines()
    assert len(shown) == 4 and shown[0].startswith("ready          pid ")
    assert shown[1] == f"model          {model}" and shown[3].startswith(
        "started as     specx serve --background"
    )
    assert specx("serve", "--stop", model.with_name("other.gguf")).returncode == 1
    assert specx("serve", "--stop", model).stderr.startswith(f"ended the server of {model.name} (pid ")
    assert "no model is in a server" in specx("serve", "--status").stderr
    assert "no model is in a server" in specx("serve", "--stop").stderr
    assert specx("complete", model, "-p", "2", "-n", "3", "-q").returncode == 0


def test_of_several_one_has_to_be_named(background, model):
    other = model.with_name("other.gguf")
    other.write_bytes(model.read_bytes())
    assert specx("serve", "--background", other, "--idle", "2m").returncode == 0
    unclear = specx("serve", "--stop")
    assert unclear.returncode == 2 and "error: 2 servers are running" in unclear.stderr
    assert all(f" {each} " in unclear.stderr for each in (model, other))
    assert specx("serve", "--status").stdout.count("ready ") == 2
    assert specx("serve", "--stop", "--all").stderr.count("ended the server of ") == 2
    assert "no model is in a server" in specx("serve", "--status").stderr


def test_it_has_left_its_shell(background, runtime):
    (record,) = (runtime / "specx").glob("*.json")
    told = json.loads(record.read_text())
    assert os.getsid(told["pid"]) != os.getsid(0)
    assert Path(told["log"]).stat().st_mode & 0o077 == 0
    (socket,) = (runtime / "specx").glob("*.sock")
    assert socket.stat().st_mode & 0o777 == 0o600
    os.kill(told["pid"], signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while "gone" not in (shown := specx("serve", "--status").stdout):
        assert time.monotonic() < deadline, shown
    assert "had ended already" in specx("serve", "--stop").stderr
    assert list((runtime / "specx").iterdir()) == []


def test_it_ends_when_nobody_asks(runtime, model):
    assert specx("serve", "--background", model, "--idle", "0.3s").returncode == 0
    deadline = time.monotonic() + PATIENCE
    while list((runtime / "specx").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_that_cannot_begin_says_why(runtime, model):
    missing = specx("serve", "--background", model.with_name("missing.gguf"))
    assert missing.returncode == 1 and "missing.gguf" in missing.stderr
    taken = specx("serve", "--background", model, "--socket", runtime / "no" / "folder")
    assert taken.returncode == 1 and taken.stderr.startswith("error: there is no folder")
    wrong = specx("serve", "--background", model, "--idle", "soon")
    assert wrong.returncode == 2 and "--idle is 'soon'" in wrong.stderr
    assert list((runtime / "specx").glob("*.json")) == []


def test_ctrl_c_ends_an_answer_at_the_server(runtime, model):
    assert specx("serve", "--background", model, SCRIPTED_MS="20").returncode == 0
    try:
        endless = ["complete", str(model), "-p", "2", "--ignore-eos", "-n", "4000"]
        process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), *endless],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130 and b"seed: " in err
        again = specx("complete", model, "-p", "2", "-n", "3", "--json")
        assert json.loads(again.stdout)["finish_reason"] in ("length", "stop")
    finally:
        assert specx("serve", "--stop").returncode == 0


@pytest.mark.parametrize("order", [[], ["--unordered"]])
def test_a_batch_in_a_server(runtime, model, tmp_path, order):
    assert specx("serve", "--background", model, script=BATCH).returncode == 0
    requests = [{"prompt": f"{i},{i + 1}", "max_tokens": 3 + i % 5} for i in range(12)]
    requests += [{"prompt": "2", "max_tokens": "many"}, {"prompt": "3,4", "seed": 5}, {"prompt": "5", "n": 2}]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    asked = ["batch", str(model), str(path), "-s", "3", "-n", "9", *order]
    try:
        told = specx(*asked, "--verbose", script=BATCH).stderr
        there, here = (specx(*asked, "--server", server, script=BATCH) for server in ("auto", "no"))
    finally:
        assert specx("serve", "--stop", script=BATCH).returncode == 0
    assert "the model is in a server (pid " in told
    assert (there.returncode, here.returncode) == (3, 3), (there.stderr, here.stderr)
    records, expected = ([json.loads(line) for line in each.stdout.splitlines()] for each in (there, here))
    assert len(records) == len(requests)
    if order:
        records, expected = (sorted(each, key=json.dumps) for each in (records, expected))
    for record in (*records, *expected):
        drop_times(record)
    assert records == expected


def test_that_there_is_no_room_is_said_so_that_a_command_knows_it(runtime, model):
    assert specx("serve", "--background", model, "-np", "1", "--queue", "0", SCRIPTED_MS="20").returncode == 0
    (socket,) = (runtime / "specx").glob("*.sock")
    remote = Remote(socket, ask(socket, "/specx/hello", {}, PATIENCE))
    options = {"ignore_eos": True, "n_predict": 4000}
    writing = iter(remote.generate([2], SamplingSettings(seed=1), **options))
    try:
        next(writing)
        with pytest.raises(UnavailableError, match="the server is busy"):
            next(iter(remote.generate([2], SamplingSettings(seed=1), **options)))
        assert ask(socket, "/specx/hello", {}, PATIENCE)["busy"]
    finally:
        assert specx("serve", "--stop").returncode == 0


def drop_times(value):
    """Take out what says when, and how long it took."""
    if isinstance(value, dict):
        for name in ("created", "timings", "usage"):
            value.pop(name, None)
        for each in value.values():
            drop_times(each)
    elif isinstance(value, list):
        for each in value:
            drop_times(each)
