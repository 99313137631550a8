"""DFlash and DSpark heads on libllama compute what NumPy computes, for several texts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from specx.backends.gguf.heads import read_head
from specx.backends.llama import libllama
from specx.backends.llama.block_head import LlamaBlockHead
from specx.backends.llama.kernels import SPECX, STOCK, unavailable
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import HEAD_ROWS, Load
from specx.drafters.blocks import BlockRunner, block_head

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tiny_heads import NumpyBlockHead, write_dflash

WIDTH, VOCAB, N_DRAFT, SIZE = 64, 304, 96, 6
SAME = 2e-3  # largest difference of a logit


@pytest.fixture(scope="module")
def target(tmp_path_factory, write_tiny):
    """A tiny llama."""
    return write_tiny(tmp_path_factory.mktemp("target") / "target.gguf", "llama")


@pytest.fixture
def made(tmp_path, target):
    """Writes a head for it, and loads it."""
    loaded = []

    def made(texts=1, n_ctx=256, kernels=STOCK, **options):
        if kernels is SPECX and (reason := unavailable()):
            pytest.skip(reason)
        path = tmp_path / f"head{len(loaded)}.gguf"
        weights = write_dflash(path, n_vocab=VOCAB, layers=(1, 3, 4, 2), tokens=target, **options)
        load = Load(path, 1, 1, n_ctx=n_ctx, texts=texts, n_batch=HEAD_ROWS, n_ubatch=HEAD_ROWS)
        if kernels is STOCK:
            load = replace(load, type_k="f32", type_v="f32", flash_attn="off")
        repack = libllama.runs_here(target) is not False
        head = LlamaBlockHead(read_head(path), load, kernels=kernels, repack=repack)
        loaded.append(head)
        return head, weights

    yield made
    for head in loaded:
        head.close()


FORMS = {
    "plain": {},
    "some tokens": {"n_draft": N_DRAFT},
    "causal": {"causal": True},
    "one layer": {"blocks": 1},
    "a block of two": {"size": 2},
    "biased": {"markov": 8},
    "biased, after the anchor": {"markov": 8, "from_anchor": False},
    "biased, some tokens": {"markov": 8, "n_draft": N_DRAFT},
}


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_it_computes_what_numpy_computes(made, options):
    head, weights = made(**options)
    named = {name: options[name] for name in ("size", "causal", "from_anchor") if name in options}
    oracle = NumpyBlockHead(weights, **named)
    assert head.most == oracle.size - oracle.first
    rng = np.random.default_rng(1)
    features = rng.standard_normal((40, 4 * WIDTH)).astype(np.float32)
    head.accept(0, features[:35], 0)  # in two calls
    wanted = oracle.draft(features[:35], 7)
    for _ in range(2):  # nothing of a block is held
        np.testing.assert_allclose(head.draft(0, 7, 35), wanted, atol=SAME)
    head.accept(0, features[35:], 35)
    np.testing.assert_allclose(head.draft(0, 9, 40), oracle.draft(features, 9), atol=SAME)
    head.forget(0, 12)
    np.testing.assert_allclose(head.draft(0, 9, 12), oracle.draft(features[:12], 9), atol=SAME)


@pytest.mark.parametrize("kernels", [STOCK, SPECX], ids=lambda kernels: kernels.name)
def test_texts_are_followed_at_once(made, kernels):
    head, weights = made(texts=3, kernels=kernels)
    oracle, rng = NumpyBlockHead(weights), np.random.default_rng(2)
    close = SAME if kernels is STOCK else 0.2  # a cache of 16 bits
    opened = block_head(head)
    runners = [opened.open() for _ in range(3)]
    assert opened.open() is None
    texts = [rng.integers(3, VOCAB, 30).tolist() for _ in range(3)]
    states = [rng.standard_normal((30, 4 * WIDTH)).astype(np.float32) for _ in range(3)]
    for end in (5, 9, 20):
        for text, features, runner in zip(texts, states, runners, strict=True):
            runner.accept(runner.length, text[runner.length : end], features[runner.length : end])
        for text, features, runner in zip(texts, states, runners, strict=True):
            wanted = oracle.draft(features[:end], text[end])
            for i in range(SIZE - 1):
                assert runner.unread([text[end], *range(i)]) == (1 if i else SIZE)
                found = runner.logits([text[end], *range(i)])
                np.testing.assert_allclose(found, wanted[i], atol=close)


def test_a_text_that_is_taken_back_or_goes_on_later_is_drafted_from_as_a_fresh_one(made):
    head, weights = made(n_ctx=256)
    oracle, rng, runner = NumpyBlockHead(weights), np.random.default_rng(3), BlockRunner(head, 0)
    text = rng.integers(3, VOCAB, 900).tolist()
    features = rng.standard_normal((900, 4 * WIDTH)).astype(np.float32)

    def same():
        at = runner.length
        assert runner.first < at and runner.common(text[:at]) == at
        wanted = oracle.draft(features[runner.first : at], text[at])
        np.testing.assert_allclose(runner.logits([text[at]]), wanted[0], atol=5 * SAME)

    runner.accept(0, text[:20], features[:20])
    same()
    runner.rewind(11)
    same()
    runner.accept(11, text[11:40], features[11:40])
    same()
    runner.accept(90, text[90:100], features[90:100])  # with a gap
    assert runner.first == 90
    same()
    while runner.length < 500:  # more than there is room for
        runner.accept(runner.length, text[runner.length :][:30], features[runner.length :][:30])
        same()
    assert 250 < runner.first < 400
    runner.accept(500, text[500:890], features[500:890])  # more than there is room for, at once
    assert runner.first == 890 - (256 - SIZE)
    same()
    runner.rewind(runner.first)
    assert runner.length == runner.first
    with pytest.raises(ValueError, match="nothing to go on from"):
        runner.logits([5])


def test_it_reads_the_matrices_of_its_target(target, tmp_path):
    path = tmp_path / "lends.gguf"
    write_dflash(path, n_vocab=VOCAB, layers=(1, 2), tokens=target, own_embeddings=False, own_output=False)
    repack = libllama.runs_here(target) is not False
    for kernels in (STOCK, SPECX) if not unavailable() else (STOCK,):
        model = LlamaModel(Load(target, 1, 1, n_ctx=256), kernels=kernels, repack=repack)
        load = Load(path, 1, 1, n_ctx=256, n_batch=HEAD_ROWS, n_ubatch=HEAD_ROWS)
        options = {"target_context": model.context, "kernels": kernels, "repack": repack}
        head = LlamaBlockHead(read_head(path), load, **options)
        head.accept(0, np.ones((2, 2 * WIDTH), np.float32), 0)
        logits = head.draft(0, 5, 2)
        assert logits.shape == (SIZE - 1, VOCAB) and np.isfinite(logits).all() and np.ptp(logits) > 0
        head.close()
        head.close()
        model.close()


def test_a_head_that_rotates_in_sections_gets_four_positions_a_row(made):
    sections = (("dflash.rope.dimension_sections", [8, 0, 0, 0], gguf.GGUFValueType.INT32),)
    head, weights = made(extra=sections)
    features = np.random.default_rng(4).standard_normal((20, 4 * WIDTH)).astype(np.float32)
    head.accept(0, features, 0)
    np.testing.assert_allclose(head.draft(0, 7, 20), NumpyBlockHead(weights).draft(features, 7), atol=SAME)
