"""Trimmed models by their headers: what they say, and what is wrong with damaged ones."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import numpy as np
import pytest

from specx.backends.errors import ModelError
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import read_gguf
from specx.backends.gguf.trim import IDS, ROWS, TABLE_TYPE, is_trimmed
from specx.backends.llama.kernels import STOCK
from specx.backends.llama.memory import predict_memory
from specx.backends.settings import Load
from specx.drafters.make.gguf_writing import Appendix, Source, int32s, text, uint32, write_gguf
from specx.drafters.make.trim import write_trimmed

KEPT = np.arange(0, 320, 5, dtype=np.int32)


@pytest.fixture
def trimmed(tiny_models, tmp_path):
    info = read_gguf(tiny_models["full"])
    path = tmp_path / "small.trim.gguf"
    write_trimmed(path, info, KEPT, info, {"keep": len(KEPT)})
    return path


def rewritten(path, **entries):
    """The same file with other values, and what lies behind its tensors."""
    info = read_gguf(path)
    source = Source(info)
    changed = {**source.entries, **entries}
    changed.pop("specx.trim.table")
    table = np.frombuffer(path.read_bytes(), np.uint8)[info.trim.table_at :]
    write_gguf(path, changed, list(source.tensors.values()), Appendix("specx.trim.table", table))
    return path


def test_what_it_says(trimmed, tiny_models):
    info, whole = read_runnable(trimmed, drafting=True), read_gguf(tiny_models["full"])
    assert is_trimmed(trimmed) and not is_trimmed(tiny_models["full"])
    assert (info.head_rows, info.vocabulary_size, whole.head_rows) == (64, 320, 320)
    assert info.trim.ids(trimmed) == tuple(KEPT.tolist())
    table = np.frombuffer(trimmed.read_bytes(), np.float32, 320 * 64, info.trim.table_at).reshape(320, 64)
    embedding = Source(whole).tensors["token_embd.weight"].data.view(np.float32)
    assert np.array_equal(table, embedding)
    assert info.metadata["specx.made.from_fingerprint"] == whole.fingerprint


def test_it_is_no_target(trimmed):
    with pytest.raises(ModelError, match="scores 64 of 320 tokens, and can only draft") as caught:
        read_runnable(trimmed)
    assert "-md" in caught.value.hint


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({IDS: int32s(KEPT[::-1])}, "does not rise"),
        ({IDS: int32s(KEPT + 10)}, "does not rise from 0 to below 320"),
        ({IDS: int32s(KEPT - 1)}, "does not rise from 0"),
        ({IDS: int32s(KEPT[1:])}, "ids tells of 63 tokens, and the head has 64 rows"),
        ({ROWS: uint32(65)}, "rows tells of 65 tokens, and the head has 64 rows"),
        ({TABLE_TYPE: text("Q9_9")}, "cut short"),
        ({TABLE_TYPE: text("F64")}, "cut short"),
        ({TABLE_TYPE: text("f32")}, "cut short"),
        ({IDS: struct.pack("<IIQ", 9, 0, 257) + bytes(257)}, "tells of 64.25 tokens"),
    ],
)
def test_damage_is_told(trimmed, entries, problem):
    with pytest.raises(ModelError, match=problem):
        read_runnable(rewritten(trimmed, **entries), drafting=True)


def test_a_table_that_is_cut_short(trimmed):
    trimmed.write_bytes(trimmed.read_bytes()[:-1])
    with pytest.raises(ModelError, match="embedding behind its tensors is cut short"):
        read_runnable(trimmed, drafting=True)


def test_a_table_before_the_file(trimmed):
    info = read_gguf(trimmed)
    problems = replace(info.trim, table_at=-64).problems(trimmed, trimmed.stat().st_size, 320, 64)
    assert list(problems) == ["the embedding behind its tensors is cut short"]


def test_memory_is_that_of_its_rows(trimmed, tiny_models):
    """And of the tokens that are looked up behind the tensors, which no buffer holds."""

    def need(path):
        info = read_gguf(path)
        return predict_memory(info, Load(path, 1, 1, n_ctx=256), kernels=STOCK, drafting=False)

    whole, small = need(tiny_models["full"]), need(trimmed)
    assert small.logits == whole.logits // 5
    assert whole.weights - small.weights == 256 * 64 * 4  # rows of the head that are gone
    assert small.base < whole.base


def test_show_says_what_it_is(trimmed, capfd):
    from specx.cli.app import run

    assert run(["show", str(trimmed)]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "trimmed scores 64 of them: it drafts only" in shown
    assert "trim of full.gguf for full.gguf (keep=64)" in shown
    assert run(["show", str(trimmed), "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert record["head_rows"] == 64 and record["drafts_only"] is True
    assert run(["complete", str(trimmed), "-p", "x"]) == 1
    told = capfd.readouterr()
    assert told.out == "" and "is a trimmed draft model" in told.err and "hint:" in told.err
