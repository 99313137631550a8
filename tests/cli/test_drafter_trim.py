"""`specx drafter trim`: the command line around it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from specx.cli.app import run

TINY = Path(__file__).resolve().parents[1] / "backends" / "conftest.py"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The small model of the tests of backends."""
    spec = importlib.util.spec_from_file_location("tiny", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path_factory.mktemp("trim") / "whole.gguf"
    module._llama(path)
    return path


def trim(whole, *options):
    return run(["drafter", "trim", str(whole), "--for", str(whole), "--keep", "288", *options])


def test_json_and_text_tell_of_the_file(whole, tmp_path, capfd):
    (tmp_path / "more.txt").write_text("w1 w2 w3")
    options = ("--tokens", "100", "--text", str(tmp_path / "more.txt"), "-o", str(tmp_path / "small.gguf"))
    assert trim(whole, *options, "--json") == 0
    told = capfd.readouterr()
    record = json.loads(told.out)
    assert record["path"] == str(tmp_path / "small.gguf") and record["rows"] == 288
    assert record["counted"] > 100
    assert trim(whole, *options, "--force") == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert f"288 of 320 tokens, chosen on {record['counted']:,} tokens of text" in shown
    assert "delete it to undo this" in shown


def test_what_is_there_is_kept(whole, tmp_path, capfd):
    (tmp_path / "small.gguf").write_text("mine")
    assert trim(whole, "-o", str(tmp_path / "small.gguf")) == 1
    told = capfd.readouterr().err
    assert "there is a file" in told and "hint:" in told and "--force" in told
    assert (tmp_path / "small.gguf").read_text() == "mine"


def test_a_text_that_is_missing(whole, tmp_path, capfd):
    assert trim(whole, "--text", str(tmp_path / "nowhere.txt")) == 1
    assert "cannot read" in capfd.readouterr().err
