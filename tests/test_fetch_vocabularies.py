"""Fetching the vocabularies of llama.cpp: what a source package gives, and what is said when it fails."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
MODELS = "llama_cpp_python-1.2.3/vendor/llama.cpp/models"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("fetch_vocabularies")


def package(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_vocabularies_alone_are_taken(script, tmp_path):
    files = {
        f"{MODELS}/ggml-vocab-a.gguf": b"first",
        f"{MODELS}/ggml-vocab-b.gguf": b"second",
        f"{MODELS}/ggml-vocab-a.gguf.inp": b"texts",
        f"{MODELS}/templates/ggml-vocab-c.gguf": b"elsewhere",
        "llama_cpp_python-1.2.3/setup.py": b"raise SystemExit",
    }
    folder = tmp_path / "new" / "folder"
    assert script.extract(package(tmp_path / "x.tar.gz", files), folder) == 2
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == {"ggml-vocab-a.gguf": b"first", "ggml-vocab-b.gguf": b"second"}


def test_an_archive_cut_short_leaves_no_file_that_looks_complete(script, tmp_path):
    whole = package(tmp_path / "x.tar.gz", {f"{MODELS}/ggml-vocab-a.gguf": os.urandom(1 << 20)})
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[: 1 << 19])
    with pytest.raises((EOFError, tarfile.TarError)):
        script.extract(cut, tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


def test_what_is_there_is_not_fetched_again(script, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(script, "version", lambda _name: "1.2.3")
    monkeypatch.setattr(script, "fetch", lambda wanted, folder: calls.append((wanted, folder)))
    monkeypatch.setattr(sys, "argv", ["fetch_vocabularies.py", str(tmp_path)])
    assert (script.main(), script.main()) == (0, 0)
    assert calls == [("llama-cpp-python==1.2.3", tmp_path)]
    assert capsys.readouterr().out.count("0 vocabularies in") == 2
    monkeypatch.setattr(script, "version", lambda _name: "1.2.4")  # llama.cpp was updated
    assert script.main() == 0
    assert len(calls) == 2


def test_without_a_network_it_says_so(script, tmp_path, monkeypatch, capsys):
    def offline(command, **_options):
        assert command[1:4] == ["-m", "pip", "download"]
        return subprocess.CompletedProcess(command, 1, "", "WARNING: ...\nERROR: no route to host\n")

    monkeypatch.setattr(script.subprocess, "run", offline)
    monkeypatch.setattr(sys, "argv", ["fetch_vocabularies.py", str(tmp_path / "v")])
    assert script.main() == 1
    assert capsys.readouterr().err.endswith(": ERROR: no route to host\n")
    assert not (tmp_path / "v").exists()
