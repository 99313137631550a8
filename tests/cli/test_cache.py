"""`specx cache add` and `remove`: texts in, listed and out again, and sentences for what cannot be."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from specx.backends.gguf.file import read_gguf
from specx.backends.llama.vocab import load_vocabulary
from specx.backends.store import Store
from specx.engine.learned.corpora import all_texts
from specx.engine.learned.knowledge import Learned


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.txt").write_text("SELECT name FROM singer ORDER BY age DESC\n")
    (tmp_path / "b.jsonl").write_text('{"answer": "SELECT count(*) FROM singer"}\n{"answer": "SELECT 1"}\n')
    return [str(tmp_path / name) for name in ("a.txt", "b.jsonl")]


def test_texts_are_added_shown_and_removed(specx, files, smollm2, tmp_path):
    added = specx("cache", "add", *files, "--model", str(smollm2))
    assert (added.code, added.out) == (0, "")
    names = [line.split(":")[0] for line in added.err.splitlines()]
    assert names == ["a.txt", "b.jsonl"]
    shown = specx("cache", "show")
    assert [line.split()[0] for line in shown.out.splitlines()[-3:]] == ["text", "a.txt", "b.jsonl"]
    record = json.loads(specx("cache", "show", "--json").out)
    [(_, first), (_, second)] = all_texts(Store(tmp_path / "cache"))
    assert [(t["name"], t["tokens"], t["bytes"]) for t in record["texts"]] == [
        ("a.txt", first.tokens, 8 * first.tokens),
        ("b.jsonl", second.tokens, 8 * second.tokens),
    ]
    removed = specx("cache", "remove", "a.txt")
    assert removed.code == 0 and removed.err.startswith(f"removed a.txt: {first.tokens} tokens")
    again = specx("cache", "remove", "a.txt")
    assert again.code == 2 and "there are b.jsonl" in again.err
    assert specx("cache", "clear", "corpus").err.startswith("removed 1 entry")
    assert json.loads(specx("cache", "show", "--json").out)["texts"] == []


def test_a_name_of_two_lines_is_told_in_one(specx, files, smollm2):
    added = specx("cache", "add", files[0], "--name", "x\ny", "--model", str(smollm2))
    assert added.err.startswith("x\\ny: ") and added.err.count("\n") == 1
    assert specx("cache", "remove", "x").err.endswith("hint: there are x\\ny\n")
    assert specx("cache", "remove", "x\ny").err.startswith("removed x\\ny: ")


def test_files_under_one_name_are_one_text(specx, files, smollm2):
    specx("cache", "add", *files, "-m", str(smollm2), "--name", "answers")
    [text] = json.loads(specx("cache", "show", "--json").out)["texts"]
    assert text["name"] == "answers"


@pytest.mark.parametrize(
    ("data", "arguments", "said"),
    [
        (None, (), "cannot read"),
        (b"", (), "there is no text in"),
        (b"\x7fELF\0\1", (), "is no text in UTF-8: it has NUL bytes"),
        (b"\xff", (), "is no text in UTF-8: byte 0xff at offset 0"),
        (b"text", ("--name", ""), "--name is empty"),
    ],
)
def test_what_cannot_be_added_is_told_in_a_sentence(specx, tmp_path, smollm2, data, arguments, said):
    path = tmp_path / "file"
    if data is not None:
        path.write_bytes(data)
    told = specx("cache", "add", str(path), "-m", str(smollm2), *arguments)
    assert told.code in (1, 2)
    assert said in told.err.splitlines()[0] and "hint: " in told.err
    assert all_texts(Store(tmp_path / "cache")) == []


def test_a_file_that_is_no_model_is_told_in_a_sentence(specx, files, model):
    told = specx("cache", "add", *files, "-m", str(model))
    assert told.code == 1 and told.err.startswith("error: ")


def test_nothing_can_be_added_where_nothing_is_kept(specx, files, smollm2, monkeypatch):
    monkeypatch.setattr("specx.backends.store.cache_dir", lambda: None)
    told = specx("cache", "add", *files, "-m", str(smollm2))
    assert told.code == 1 and "nothing is kept on this machine" in told.err


def test_earlier_answers_are_shown_as_text(specx, smollm2, tmp_path):
    store, key = Store(tmp_path / "cache"), read_gguf(smollm2).fingerprint
    with load_vocabulary(smollm2) as vocab:
        said = ("One\n", "Zwölf")
        texts = [vocab.tokenize(t.encode(), add_special=False, parse_special=False) for t in said]
    store.save_arrays("history", key, {"tokens": np.array([*texts[0], -1, *texts[1], -1, 10**6], np.int32)})
    assert "nothing says where its file is" in specx("cache", "show", "--text").err
    learned = Learned(store, model_key=key, cost_key="", origin=("Small", smollm2))
    learned.save()
    shown = specx("cache", "show", "--text")
    assert (shown.code, shown.out, shown.err) == (0, "--- Small\nOne\n--- Small\nZwölf\n", "")
    rows = [json.loads(line) for line in specx("cache", "show", "--text", "--json").out.splitlines()]
    assert rows == [{"model": "Small", "text": "One\n"}, {"model": "Small", "text": "Zwölf"}]
    listed = specx("cache", "show").out
    assert all(line.endswith("  Small") for line in listed.splitlines()[2:])
    store.save_json("model", key, {"name": "x" * 99, "path": str(tmp_path / "gone.gguf")})
    gone = specx("cache", "show", "--text")
    assert (gone.code, gone.out) == (0, "") and "gone.gguf" in gone.err
    assert max(map(len, specx("cache", "show").out.splitlines()[1:])) <= 80


@pytest.mark.parametrize("arguments", [(), ("--text",), ("--json",)])
def test_a_cache_of_another_user_is_not_called_empty(specx, monkeypatch, arguments):
    def refuse(_path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may read anywhere, so pretend
    shown = specx("cache", "show", *arguments)
    assert shown.err == "the cache cannot be read (Permission denied)\n"
    assert "nothing is kept" not in shown.out
