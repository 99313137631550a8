"""Layers of the target's own file that draft: found and asked by themselves, and the text is the same.

Those of random weights are never right for long, so they are asked whatever that costs, and never dropped.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from specx.backends.gguf.file import read_gguf
from specx.backends.gguf.mtp import has_mtp
from specx.backends.llama import head as head_module
from specx.backends.llama import mtp as mtp_module
from specx.backends.llama.kernels import unavailable
from specx.backends.llama.memory import predict_memory
from specx.engine import budget, drafting
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.setup.finder import Finder, own_candidate
from specx.engine.setup.wanted import draft_load, wanted_load

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from steady import Willing, steadied

STEPS = {str(n): 10.0 + n / 10 for n in range(1, 9)}


@pytest.fixture(scope="module")
def models(tmp_path_factory, write_hybrid):
    """Architecture -> file of a tiny model with one layer that drafts."""
    folder = tmp_path_factory.mktemp("mtp")
    return {
        name: write_hybrid(folder / f"{name}.gguf", name, nextn=1, quantized=True)
        for name in ("qwen35", "qwen35moe", "nemotron_h_moe")
    }


@pytest.fixture
def asked_for(monkeypatch):
    """How many pairs were asked for, by call; nothing is looked for on this machine.

    What is drafted is hardly ever right, and goes on all the same.
    """
    asked = []
    monkeypatch.setattr(budget, "ALLOWANCE", budget.MOST)
    monkeypatch.setattr(drafting, "REMEMBERED", 1 << 30)
    monkeypatch.setattr(drafting.DraftModels, "_pays", lambda *_: True)
    monkeypatch.setattr(Finder, "search", lambda _self: iter(()))
    step = head_module.LlamaHead.step

    def counted(self, slot, tokens, hidden, position):
        asked.append(len(tokens))
        return step(self, slot, tokens, hidden, position)

    monkeypatch.setattr(head_module.LlamaHead, "step", counted)
    return asked


def opened(path, notices=None, **options):
    if reason := unavailable():
        pytest.skip(reason)
    common = {"n_ctx": 512, "threads": 1, "kernels": "specx", "store": False, "measure": False}
    asked = Asked(path, **{**common, **options})
    session = Session.open(asked, notice=(notices if notices is not None else []).append)
    # Beside the time that they took already, it costs little to verify tokens that are hardly ever right.
    return steadied(session, {"0": STEPS, "288": STEPS}, asking=Willing, guess_ms=20.0)


def written(session, temperature):
    """Answers to prompts that go on from each other, and go back; and the sources of their tokens."""
    base = [1, *range(259, 299)]
    found, sources = [], []
    for prompt, n in ((base, 120), ([*base, *range(270, 300)], 60), (base[:20], 60)):
        sampling = SamplingSettings(temperature=temperature, seed=11)
        generation = session.generate(prompt, sampling, n_predict=n, ignore_eos=True)
        for _ in generation:
            pass
        found.append(generation.result.tokens)
        sources.append(generation.result.timings.draft_n)
    return found, sum(sources)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["qwen35", "qwen35moe", "nemotron_h_moe"])
def test_texts_are_the_same(models, asked_for, name, temperature):
    with opened(models[name], drafter="none") as session:
        plain, _ = written(session, temperature)
    assert not asked_for
    with opened(models[name]) as session:
        found, drafted = written(session, temperature)
        assert session.draft_models.name == "MTP layers"
        calibration = session.draft_models.model.calibration
        assert calibration.trials > 10  # of its tokens that were verified
    assert found == plain and drafted > 40
    assert len(asked_for) > 40


def test_several_texts(models, asked_for):
    prompts = [[1, *range(259, 270 + 5 * i)] for i in range(3)]
    found = []
    for drafter in ("none", "auto"):
        with opened(models["qwen35"], drafter=drafter, texts=3) as session:
            sampling = SamplingSettings(temperature=0.8, seed=2)
            generations = [session.generate(p, sampling, n_predict=60, ignore_eos=True) for p in prompts]
            for _ in session.together(generations):
                pass
            found.append([generation.result.tokens for generation in generations])
    assert found[0] == found[1]
    assert len(asked_for) > 40


def test_a_build_without_them_writes_all_the_same(models, asked_for, monkeypatch):
    monkeypatch.setattr(mtp_module, "nextn_functions", lambda: None)
    notices = []
    with opened(models["qwen35"], notices) as session:
        found, _ = written(session, 0.0)
    with opened(models["qwen35"], drafter="none") as session:
        assert written(session, 0.0)[0] == found
    assert any("MTP layers are not available in this build" in notice for notice in notices)
    assert not asked_for


def test_only_whole_layers_that_can_be_run(models, tiny_hybrids):
    assert own_candidate(read_gguf(tiny_hybrids["qwen35"])) is None
    for name, path in models.items():
        info = read_gguf(path)
        assert own_candidate(info).layers == (info.blocks - 1,)
        for tensor in ("nextn.eh_proj", "nextn.hnorm", "attn_v", "post_attention_norm"):
            left = f"blk.{info.blocks - 1}.{tensor}.weight"
            damaged = replace(info, tensors=tuple(t for t in info.tensors if t.name != left))
            assert not has_mtp(damaged), (name, tensor)
        assert not has_mtp(replace(info, nextn_layers=2))
        assert not has_mtp(replace(info, architecture="llama"))


def test_they_are_loaded_where_drafts_are_left_to_specx(models):
    info = read_gguf(models["qwen35"])
    asked = Asked(info.path, n_ctx=512)
    load = wanted_load(info, asked)
    assert load.mtp and not draft_load(asked, info.path, load).mtp
    for drafter in ("none", "free", "suffix", "model"):
        assert not wanted_load(info, replace(asked, drafter=drafter)).mtp
    with_them, without = (predict_memory(info, replace(load, mtp=mtp)) for mtp in (True, False))
    assert with_them.weights > without.weights
    cache = 512 * 2 * 2 * 16 * 2
    assert with_them.draft > cache and without.draft == 0
