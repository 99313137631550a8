"""EAGLE-3 heads on libllama compute what NumPy computes, for several texts, with what is taken back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from specx.backends.errors import ModelError
from specx.backends.gguf.heads import read_head
from specx.backends.llama import extraction, libllama
from specx.backends.llama import head as head_module
from specx.backends.llama.head import LlamaHead
from specx.backends.llama.kernels import SPECX, STOCK, unavailable
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import HEAD_ROWS, Load
from specx.drafters.pairs import PairRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tiny_heads import NumpyHead, write_eagle3

WIDTH, VOCAB, N_DRAFT = 64, 304, 96
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
        options = {"d_target": WIDTH, "layers": (1, 3, 4), "n_draft": N_DRAFT, **options}
        path = tmp_path / f"head{len(loaded)}.gguf"
        weights = write_eagle3(path, n_vocab=VOCAB, tokens=target, **options)
        load = Load(path, 1, 1, n_ctx=n_ctx, texts=texts, n_batch=HEAD_ROWS, n_ubatch=HEAD_ROWS)
        load = load if kernels is SPECX else _precise(load)
        repack = libllama.runs_here(target) is not False
        head = LlamaHead(read_head(path), load, kernels=kernels, repack=repack)
        loaded.append(head)
        return head, weights

    yield made
    for head in loaded:
        head.close()


def _precise(load):
    from dataclasses import replace

    return replace(load, type_k="f32", type_v="f32", flash_attn="off")


def columns_of(logits, head):
    return logits if head.columns is None else logits[head.columns]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_draft": None},
        {"norm_before_fc": True},
        {"norm_before_residual": True},
        {"norm_before_fc": True, "norm_before_residual": True, "n_draft": None},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_it_computes_what_numpy_computes(made, options):
    head, weights = made(**options)
    oracle = NumpyHead(weights, norm_before_residual=options.get("norm_before_residual", False))
    rng = np.random.default_rng(1)
    features = rng.standard_normal((40, 3 * WIDTH)).astype(np.float32)
    tokens = rng.integers(3, VOCAB, 44)
    expected = oracle.encode(features)
    found = head.encode(features)  # in two calls
    np.testing.assert_allclose(found, expected, atol=SAME)
    for token, hidden in zip(tokens[:40], expected, strict=True):
        wanted, state = oracle.step(token, hidden)
    logits, given = head.step(0, tokens[:40].astype(np.int32), found, 0)
    np.testing.assert_allclose(logits, wanted, atol=SAME)
    np.testing.assert_allclose(given, state, atol=SAME)
    for position, token in enumerate(tokens[40:], 40):
        wanted, state = oracle.step(token, state)
        logits, given = head.step(0, np.array([token], np.int32), given[None], position)
        np.testing.assert_allclose(logits, wanted, atol=SAME)


@pytest.mark.parametrize("kernels", [STOCK, SPECX], ids=lambda kernels: kernels.name)
def test_texts_are_followed_at_once(made, kernels):
    head, weights = made(texts=3, kernels=kernels)
    rng = np.random.default_rng(2)
    close = SAME if kernels is STOCK else 0.2  # a cache of 16 bits
    texts = [rng.integers(3, VOCAB, 30).tolist() for _ in range(3)]
    states = [rng.standard_normal((30, 3 * WIDTH)).astype(np.float32) for _ in range(3)]
    runners = [PairRunner(head, slot) for slot in range(3)]
    for end in (5, 9, 20):
        for text, features, runner in zip(texts, states, runners, strict=True):
            runner.accept(runner.length, text[runner.length : end], features[runner.length : end])
        for text, features, runner in zip(texts, states, runners, strict=True):
            oracle = NumpyHead(weights)
            for token, hidden in zip(text[1 : end + 1], oracle.encode(features[:end]), strict=True):
                wanted, state = oracle.step(token, hidden)
            np.testing.assert_allclose(runner.logits(text[end : end + 1]), wanted, atol=close)
            wanted, _ = oracle.step(7, state)
            np.testing.assert_allclose(runner.logits([text[end], 7]), wanted, atol=close)


def test_a_head_reads_the_matrices_of_its_target(made, target, tmp_path):
    path = tmp_path / "lends.gguf"
    write_eagle3(
        path, d_target=WIDTH, n_vocab=VOCAB, layers=(1, 2, 3), tokens=target,
        own_embeddings=False, own_output=False,
    )  # fmt: skip
    repack = libllama.runs_here(target) is not False
    for kernels in (STOCK, SPECX) if not unavailable() else (STOCK,):
        model = LlamaModel(Load(target, 1, 1, n_ctx=256), kernels=kernels, repack=repack)
        load = Load(path, 1, 1, n_ctx=256, n_batch=HEAD_ROWS, n_ubatch=HEAD_ROWS)
        head = LlamaHead(read_head(path), load, target_context=model.context, kernels=kernels, repack=repack)
        states = head.encode(np.ones((2, 3 * WIDTH), np.float32))
        logits, _ = head.step(0, np.array([5, 6], np.int32), states, 0)
        assert logits.shape == (VOCAB,) and np.isfinite(logits).all() and np.ptp(logits) > 0
        head.close()
        model.close()


def test_widened_states_are_read_as_far_as_they_are_the_model_s(made, tmp_path, target):
    head, _weights = made()
    rng = np.random.default_rng(3)
    narrow = rng.standard_normal((4, 3, WIDTH)).astype(np.float32)
    wide = np.concatenate([narrow, rng.standard_normal((4, 3, 32))], axis=2).astype(np.float32)
    np.testing.assert_array_equal(head.encode(wide.reshape(4, -1)), head.encode(narrow.reshape(4, -1)))


def test_a_build_without_the_functions_says_so(made, monkeypatch):
    monkeypatch.setattr(head_module, "nextn_functions", lambda: None)
    with pytest.raises(ModelError, match="not available in this build"):
        made()


def test_closing_twice_is_safe(made):
    head, _ = made()
    head.close()
    head.close()
    assert extraction.cxx_function.cache_info().currsize  # resolved once
