"""A model that benchmarks/widen_gguf.py has padded computes what it did before."""

from __future__ import annotations

import importlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType

from specx.backends.base import chain_parents
from specx.backends.gguf.file import read_gguf
from specx.backends.gguf.head_target import HEAD_TARGET, head_target, widened_by
from specx.backends.gguf.heads import check_head, read_head
from specx.backends.llama.head import LlamaHead
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import HEAD_ROWS, Load

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_heads import write_eagle3

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("widen_gguf")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["full", "sliding"])
def test_a_widened_model_computes_the_same_logits(tool, tiny_models, tmp_path, monkeypatch, name, tied):
    monkeypatch.setattr(tool, "ROWS", 100)  # the embedding is written in several parts
    path = shutil.copy(tiny_models[name], tmp_path / "source")
    reader = tool.GGUFReader(path, "r+")
    epsilon = f"{tool.architecture_of(reader)}.attention.layer_norm_rms_epsilon"
    reader.fields[epsilon].parts[-1][0] = 0.2  # large enough to tell whether it weighs as much as before
    if tied:
        reader.tensors = [tensor for tensor in reader.tensors if tensor.name != "output.weight"]
    own = tool.own_shape(reader)
    for target, wide in (("narrow", own), ("wide", tool.Shape(4 * own.width, 160, 8, 4, own.head))):
        tool.widen(reader, tmp_path / target, own, wide, "F16")
    narrow, wide = (logits(tmp_path / target) for target in ("narrow", "wide"))
    assert np.abs(wide - narrow).max() < 1e-3 * np.abs(narrow).max()


def test_what_cannot_be_widened_is_refused(tool, tiny_models, tmp_path):
    with pytest.raises(ValueError, match="mamba is neither llama nor gemma3"):
        tool.own_shape(tool.GGUFReader(tiny_models["recurrent"]))
    reader = tool.GGUFReader(tiny_models["sliding"])
    own = tool.own_shape(reader)
    for changed in ({"width": own.width // 2}, {"heads": own.heads + 1}):
        with pytest.raises(ValueError, match="dimensions may only grow"):
            tool.widen(reader, tmp_path / "wide", own, replace(own, **changed), "F16")


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_head_of_the_narrow_model_reads_the_wide_one(tool, write_tiny, tmp_path, architecture):
    reader = tool.GGUFReader(write_tiny(tmp_path / "source", architecture))
    own = tool.own_shape(reader)
    for target, wide in (("narrow", own), ("wide", tool.Shape(4 * own.width, 160, 8, 4, own.head))):
        tool.widen(reader, tmp_path / target, own, wide, "F16")
    narrow, wide = (read_gguf(tmp_path / target) for target in ("narrow", "wide"))
    assert wide.embedding_length == 4 * narrow.embedding_length
    made_for = ((HEAD_TARGET, head_target(narrow), GGUFValueType.STRING),)
    path = tmp_path / "head.gguf"
    write_eagle3(
        path, d_target=own.width, n_vocab=narrow.vocabulary_size, layers=(1, 3, 4), n_draft=96,
        tokens=tmp_path / "source", extra=made_for,
    )  # fmt: skip
    head = read_head(path)
    assert check_head(head, narrow) is None and check_head(head, wide) is None
    states = []
    for target in (narrow, wide):
        load = Load(path, n_ctx=256, threads=1, threads_batch=1, n_batch=HEAD_ROWS, n_ubatch=HEAD_ROWS)
        loaded = LlamaHead(head, load, scale=widened_by(target))
        states.append(loaded.encode(features(target.path, head.layers)))
        loaded.close()
    assert np.abs(states[1] - states[0]).max() < 2e-2 * np.abs(states[0]).max()


def features(path, layers):
    """What enters these layers at each of some tokens."""
    model, seen = LlamaModel(Load(path, n_ctx=256, threads=1, threads_batch=1)), []
    try:
        model.extract(layers)
        model.open().prefill(range(5, 25), features=lambda _, rows: seen.append(rows.copy()))
    finally:
        model.close()
    return np.concatenate(seen)


def logits(path):
    """After each of some tokens, computed in one batch and in steps past the sliding window."""
    tokens = [int(token) for token in np.random.default_rng(1).integers(3, 300, 40)]
    found = []
    model = LlamaModel(Load(path, n_ctx=256, threads=1, threads_batch=1))
    try:
        cache = model.open()
        cache.prefill(tokens[:32])
        for token in tokens[32:]:
            found.append(cache.forward(np.array([token], np.int32), chain_parents(1)).logits.copy())
            cache.keep([0])
    finally:
        model.close()
    return np.concatenate(found)
