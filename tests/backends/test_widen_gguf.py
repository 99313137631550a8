"""A model that benchmarks/widen_gguf.py has padded computes what it did before."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specx.backends.base import chain_parents
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import Load

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
