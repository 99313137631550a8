"""`specx drafter train`: the command line around it."""

import importlib.util
import json
import os
import signal
import subprocess
import sys

import pytest

from specx.cli.app import run


@pytest.fixture(scope="module")
def target(write_tiny, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("train") / "tiny.gguf", "llama")


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("w1 w2 w3 w5 w8 " * 700)
    return tmp_path / "text.txt"


def arguments(target, text, *options):
    output = str(text.with_name("head.gguf"))
    fixed = ["--data", str(text), "--self", "0", "--vocab", "288", "-t", "1", "-o", output]
    return ["drafter", "train", str(target), *fixed, *options]


def test_json_and_text_tell_of_the_head(target, text, capfd):
    pytest.importorskip("torch")
    assert run(arguments(target, text, "--steps", "3", "--json")) == 0
    told = capfd.readouterr()
    record = json.loads(told.out)
    assert record["rows"] == 288 and record["path"].endswith("head.gguf") and record["curve"]
    assert "of the training:" in told.err
    assert run(arguments(target, text, "--steps", "3", "--force", "-q")) == 0
    told = capfd.readouterr()
    shown = " ".join(told.out.split())
    assert f"learned from {record['learned']:,} tokens" in shown
    assert "tokens a step" in shown and "delete it to undo this" in shown
    assert "of the training:" not in told.err


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for another process")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_ends_it_is_told_how_to_go_on(target, text, sent, code):
    pytest.importorskip("torch")
    command = [sys.executable, "-P", "-m", "specx.cli", *arguments(target, text, "--time", "500s")]
    told, pressed = [], False
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            told.append(line)
            if "of the training:" in line and not pressed:  # twice would leave it no time for a checkpoint
                os.kill(process.pid, sent)
                pressed = True
    assert process.returncode == code, told
    assert "what was done is kept; go on with: specx drafter train" in told[-1]
    assert told[-1].rstrip().endswith("--resume")
    assert (text.with_name("head.training") / "checkpoint").exists()


def test_without_torch(target, text, capfd, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert run(arguments(target, text)) == 1
    told = capfd.readouterr().err
    assert "torch" in told and "pip install 'torch>=" in told


@pytest.mark.parametrize("option", ["--memory", "--disk", "--time"])
@pytest.mark.parametrize("value", ["much", "9" * 400])
def test_sizes_that_are_none(target, text, capfd, option, value):
    assert run(arguments(target, text, option, value)) == 2
    assert f"{option} is '{value}'" in capfd.readouterr().err


def test_no_time_at_all(target, text, capfd):
    assert run(arguments(target, text, "--time", "0s")) == 2
    assert "at least 1s" in capfd.readouterr().err
