"""Token trees under specx's kernels: every row, and every text after an accepted branch, has the bits that it
has without the other branches."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from specx.backends.base import chain_parents
from specx.backends.errors import ModelError
from specx.backends.llama import kernels as ggml_device
from specx.backends.llama.kernels import SPECX
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import Load

TOKENS = 420


@pytest.fixture
def load(smollm2):
    if reason := ggml_device.unavailable():
        pytest.skip(f"specx's kernels: {reason}")
    if "generic" in ggml_device.describe():
        pytest.skip("specx multiplies on no instruction set of this machine")
    with ExitStack() as opened:

        def load(**options):
            settings = {"n_ctx": 512, "threads": 1, "threads_batch": 1, **options}
            model = LlamaModel(Load(smollm2, **settings), kernels=SPECX)
            opened.callback(model.close)
            return model

        yield load


def random_text():
    return np.random.default_rng(3).integers(100, 20000, TOKENS).astype(np.int32)


def plain_logits(cache, text):
    """Logits after every token, computed one by one."""
    rows = np.stack([keeping(cache, text[at : at + 1]) for at in range(len(text))])
    cache.rewind(0)
    return rows


def keeping(cache, tokens):
    logits = cache.forward(tokens, chain_parents(len(tokens))).logits[0].copy()
    cache.keep(range(len(tokens)))
    return logits


def random_tree(rng, text, leaves, most):
    """A tree with the first tokens of `text` on one of its ways: tokens, parents, rows of that way."""
    n = int(rng.integers(1, most + 1))
    parents, inner = [-1], {0}
    for row in range(1, n):
        branches = row - len(inner) < leaves - 1  # leaves so far, the last row among them
        parent = int(rng.integers(row)) if branches and rng.random() < 0.4 else row - 1
        parents.append(parent)
        inner.add(parent)
    tokens = rng.integers(100, 20000, n).astype(np.int32)
    row, way = int(rng.integers(n)), list[int]()
    while row >= 0:
        way.insert(0, row)
        row = parents[row]
    way = way[: len(text)]
    tokens[way] = text[: len(way)]
    return tokens, np.array(parents, np.int32), way


@pytest.mark.parametrize(("kind", "settles"), [("f16", 1), ("q8_0", 1), ("f16", 3)])
def test_every_row_has_the_bits_of_plain_decoding(load, kind, settles):
    """On a GPU a chain has as many sequences as a tree, so that llama.cpp builds no graph anew."""
    model, text, rng = load(type_k=kind, type_v=kind), random_text(), np.random.default_rng(5)
    model.facts = replace(model.facts, settles=settles)
    cache, batch = model.open(), model._batch
    assert cache.max_leaves > 1
    expected = plain_logits(cache, text)
    repeated = 0
    for most in (4, 12, 40):
        at = int(rng.integers(60))
        cache.prefill(text[:at].tolist())
        while at < TOKENS - 1:
            tokens, parents, way = random_tree(rng, text[at:], cache.max_leaves, most)
            again = len(cache.again)
            repeated += again
            logits = cache.forward(tokens, parents).logits
            assert logits.shape[0] == len(tokens)
            used = {
                seq for row in range(again + len(tokens)) for seq in batch.members[row, : batch.counts[row]]
            }
            branched = len(parents) - len(set(parents.tolist())) > 0
            assert len(used) == (cache.max_leaves if branched or settles > 1 else 1)
            np.testing.assert_array_equal(logits[way], expected[at : at + len(way)])
            cache.keep(way)
            at += len(way)
            assert cache.length == at
        cache.rewind(0)
    assert repeated > 20


def test_whatever_is_done_with_a_text_that_has_something_to_read_again(load):
    """Prompts, marks, rewinds and shifts come between an accepted branch and the next step."""
    model, text = load(), random_text()
    cache, rng = model.open(), np.random.default_rng(6)
    expected = plain_logits(cache, text)

    def branched(at):
        """Accept three tokens, of which two are beside the first chain."""
        wrong = rng.integers(100, 20000, 2)
        tokens = np.array([text[at], *wrong, text[at + 1], text[at + 2]], np.int32)
        cache.forward(tokens, np.array([-1, 0, 1, 0, 3], np.int32))
        cache.keep([0, 3, 4])
        assert list(cache.again) == text[at + 1 : at + 3].tolist() and cache.length == at + 3

    def check(at):
        assert cache.length == at
        np.testing.assert_array_equal(keeping(cache, text[at : at + 1]), expected[at])

    cache.prefill(text[:70].tolist())
    branched(70)
    check(73)
    branched(74)
    cache.prefill(text[77:90].tolist())
    check(90)
    branched(91)
    assert cache.mark() and not cache.again
    check(94)
    for back, left in ((0, 2), (1, 1), (2, 0), (3, 0), (10, 0)):
        at = cache.length
        branched(at)
        cache.rewind(cache.length - back)
        assert len(cache.again) == left
        check(at + 3 - back)
    branched(cache.length)
    wide = np.arange(100, 164, dtype=np.int32)  # with what is read again more than a step takes: in two calls
    cache.forward(wide, chain_parents(64))
    cache.keep([0])
    cache.rewind(cache.length - 1)
    check(cache.length)
    branched(cache.length)
    cache.shift(4, 8)
    assert not cache.again


@pytest.mark.parametrize(("keep", "discard", "at"), [(4, 8, 100), (0, 200, 420), (4, 128, 300)])
def test_after_a_shift_there_are_chains_with_the_bits_of_plain_decoding(load, keep, discard, at):
    # The next tokens lie in the cells that became free, before those that are left.
    model = load()
    cache, text = model.open(), np.resize(random_text(), at + 8)

    def shifted():
        cache.rewind(0)
        assert cache.max_leaves == model.facts.max_leaves > 1
        cache.prefill(text[:at].tolist())
        cache.shift(keep, discard)
        assert cache.max_leaves == 1

    shifted()
    expected = np.stack([keeping(cache, text[i : i + 1]) for i in range(at, at + 8)])
    shifted()
    logits = cache.forward(text[at : at + 8], chain_parents(8)).logits
    np.testing.assert_array_equal(logits, expected)
    cache.keep([0])
    assert cache.max_leaves == 1
    cache.rewind(keep)  # what is left lies as it would have been read: branches are possible again
    assert cache.max_leaves > 1
    cache.prefill(text[keep:70].tolist())
    expected = np.stack([keeping(cache, text[i : i + 1]) for i in range(70, 74)])
    cache.rewind(70)
    wrong = np.array([5, 6, 7], np.int32)
    tokens, parents = np.array([text[70], *wrong, *text[71:74]], np.int32), [-1, 0, 1, 2, 0, 4, 5]
    logits = cache.forward(tokens, np.array(parents, np.int32)).logits
    np.testing.assert_array_equal(logits[[0, 4, 5, 6]], expected)
    cache.keep([0])


def test_where_llama_cpp_computes_attention_nothing_is_read_again(load):
    text = random_text()
    for options in ({"flash_attn": "off"}, {"type_k": "q4_0", "type_v": "q4_0"}):
        cache = load(**options).open()
        cache.prefill(text[:30].tolist())
        cache.forward(np.array([text[30], 7, text[31]], np.int32), np.array([-1, 0, 0], np.int32))
        cache.keep([0, 2])
        assert cache.length == 32 and not cache.again


def test_a_step_that_fails_reads_it_again_all_the_same(load, monkeypatch):
    model, text = load(), random_text()
    cache = model.open()
    expected = plain_logits(cache, text)
    cache.prefill(text[:30].tolist())
    tokens = np.array([text[30], 7, text[31]], np.int32)
    cache.forward(tokens, np.array([-1, 0, 0], np.int32))
    cache.keep([0, 2])
    decode = model._lib.llama_decode
    for call in (lambda: keeping(cache, text[32:33]), lambda: cache.prefill([1, 2]), cache.mark):
        with monkeypatch.context() as broken:
            broken.setattr(model._lib, "llama_decode", lambda *_: -3)
            with pytest.raises(ModelError):
                call()
        assert model._lib.llama_decode is decode
        assert cache.length == 32 and list(cache.again) == [text[31]]
    np.testing.assert_array_equal(keeping(cache, text[32:33]), expected[32])


def test_several_texts_take_chains(load):
    assert load(texts=2).open().max_leaves == 1
