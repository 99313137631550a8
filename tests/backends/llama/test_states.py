"""Models with recurrent states: drafts are taken back by going to an earlier state, if one was kept.

With specx's kernels everything here is the same to the last bit, in any company; llama.cpp's own give that
only where batches have the same width.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from specx.backends.base import Tree, chain_parents
from specx.backends.errors import ContextFullError, RollbackError
from specx.backends.llama import libllama
from specx.backends.llama.kernels import SPECX, STOCK, unavailable
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import Load

HYBRIDS = ("qwen35", "qwen35moe", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe")
WORDS = (3, 300)
KEPT = 7
ONE = chain_parents(1)


@functools.cache
def repack(path):
    """Some compilers miscompile the AMX kernels; the package asks the same before it loads a model."""
    return libllama.runs_here(path) is not False


@pytest.fixture
def load():
    """Loads a model, which is closed when the test ends."""
    loaded = []

    def open_model(path, kernels=SPECX, **options):
        if kernels is SPECX and (reason := unavailable()):
            pytest.skip(reason)
        options = {"n_ctx": 512, "threads": 1, "threads_batch": 1, "snapshots": KEPT, **options}
        loaded.append(LlamaModel(Load(path, **options), kernels=kernels, repack=repack(path)))
        return loaded[-1]

    yield open_model
    for model in loaded:
        model.close()


@pytest.fixture
def text():
    return np.random.default_rng(3).integers(*WORDS, 500).astype(np.int32)


def row_after(cache, token):
    """Logits (V,) after one more token, which is committed."""
    row = cache.forward(np.array([token], np.int32), ONE).logits[0].copy()
    cache.keep([0])
    return row


def rows_one_by_one(cache, prompt, tokens):
    """Logits (n, V) after each of `tokens`, read from the beginning without any guess."""
    cache.rewind(0)
    cache.prefill(prompt)
    return np.stack([row_after(cache, token) for token in tokens])


def guessed(rng, tokens, most):
    """A chain that begins as `tokens` do, and how many of it are right: the first always is."""
    n = min(int(rng.integers(1, most + 1)), len(tokens))
    right = n if rng.random() < 0.4 else int(rng.integers(1, n + 1))
    return np.concatenate([tokens[:right], rng.integers(*WORDS, n - right).astype(np.int32)]), right


def rows_with_guesses(cache, prompt, tokens, seed=1):
    """The same in chains that are often wrong from somewhere on, and how many were."""
    rng, rows, done, wrong = np.random.default_rng(seed), [], 0, 0
    cache.rewind(0)
    cache.prefill(prompt)
    while done < len(tokens):
        chain, right = guessed(rng, tokens[done:], cache.max_width)
        rows.append(cache.forward(chain, chain_parents(len(chain))).logits[:right].copy())
        cache.keep(range(right))
        done, wrong = done + right, wrong + (right < len(chain))
    return np.concatenate(rows), wrong


@pytest.mark.parametrize("name", HYBRIDS)
def test_wrong_guesses_leave_no_trace(tiny_hybrids, load, text, name):
    model = load(tiny_hybrids[name])
    assert (model.facts.plain_reason, model.facts.max_width, model.facts.max_leaves) == (None, KEPT + 1, 1)
    cache = model.open()
    plain = rows_one_by_one(cache, text[:90], text[90:400])
    drafted, wrong = rows_with_guesses(cache, text[:90], text[90:400])
    assert wrong > 30
    assert np.array_equal(plain, drafted)
    assert len({row.tobytes() for row in plain}) == len(plain)  # it matters where in the text a token is


@pytest.mark.parametrize("name", HYBRIDS)
def test_keeping_states_changes_no_bit(tiny_hybrids, load, text, name):
    rows = []
    for snapshots in (0, 3, KEPT):
        model = load(tiny_hybrids[name], snapshots=snapshots)
        rows.append(rows_one_by_one(model.open(), text[:90], text[90:130]))
        assert (model.facts.plain_reason is None) == (snapshots > 0)
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


@pytest.mark.parametrize("name", ["qwen35", "lfm2", "nemotron_h"])
def test_on_other_kernels_they_leave_none_beyond_rounding(write_hybrid, tmp_path, load, text, name):
    path = write_hybrid(tmp_path / "floats.gguf", name)
    cache = load(path, STOCK, flash_attn="off", type_k="f32", type_v="f32").open()
    plain = rows_one_by_one(cache, text[:90], text[90:300])
    drafted, wrong = rows_with_guesses(cache, text[:90], text[90:300])
    assert wrong > 20
    assert np.abs(plain - drafted).max() < 5e-3
    assert np.abs(plain[1:] - drafted[:-1]).max(axis=1).min() > 0.1


@pytest.mark.parametrize(("name", "texts"), [*((name, 4) for name in HYBRIDS), ("qwen35", 12), ("lfm2", 12)])
def test_many_texts_are_each_as_alone(tiny_hybrids, load, name, texts):
    """Texts take part in some steps only, so that llama.cpp moves their states about."""
    rng = np.random.default_rng(4)
    tokens = rng.integers(*WORDS, (texts, 160)).astype(np.int32)
    model = load(tiny_hybrids[name], texts=texts, n_ctx=256)
    assert model.facts.even
    caches = [model.open() for _ in range(texts)]
    starts = rng.integers(3, 40, texts).tolist()
    for cache, row, start in zip(caches, tokens, starts, strict=True):
        cache.prefill(row[:start])
    found = [[] for _ in range(texts)]
    for _ in range(25):
        chosen = [i for i in range(texts) if rng.random() < 0.7] or [0]
        width = int(rng.integers(1, min(model.facts.max_width, model.facts.max_rows // len(chosen)) + 1))
        chosen = [i for i in chosen if caches[i].length + width < 160]
        trees, rights = [], []
        for i in chosen:
            ahead = tokens[i, caches[i].length : caches[i].length + width].copy()
            right = int(rng.integers(1, width + 1))
            ahead[right:] = rng.integers(*WORDS, width - right)
            trees.append(Tree(caches[i], ahead, chain_parents(width)))
            rights.append(right)
        for i, output, right in zip(chosen, model.forward(trees) if trees else (), rights, strict=True):
            found[i].append(output.logits[:right].copy())
        for tree, right in zip(trees, rights, strict=True):
            tree.cache.keep(range(right))
    alone = load(tiny_hybrids[name], n_ctx=256).open()
    for cache, row, start, rows in zip(caches, tokens, starts, found, strict=True):
        expected = rows_one_by_one(alone, row[:start], row[start : cache.length])
        assert np.array_equal(np.concatenate(rows), expected)


def test_going_back_ends_where_no_state_was_kept(tiny_hybrids, load, text):
    cache, other = (load(tiny_hybrids["qwen35"]).open() for _ in range(2))
    cache.prefill(text[:100])
    assert [cache.reusable(n) for n in (100, 99, 93, 92, 50, 0)] == [100, 99, 93, 0, 0, 0]
    cache.rewind(95)
    assert [cache.reusable(n) for n in (95, 94)] == [95, 0]  # libllama goes back once
    assert np.array_equal(row_after(cache, text[95]), rows_one_by_one(other, text[:95], text[95:96])[0])
    # libllama itself would go back to a state that is not the one of that token.
    assert cache.reusable(95) == 0
    with pytest.raises(RollbackError):
        cache.rewind(95)
    cache.forward(text[96:100], chain_parents(4))
    cache.keep(range(4))
    assert [cache.reusable(n) for n in (100, 97, 96)] == [100, 97, 0]
    cache.forward(text[100:104], chain_parents(4))
    cache.keep(range(2))
    assert [cache.reusable(n) for n in (102, 101)] == [102, 0]
    rows = rows_one_by_one(other, text[:102], text[102:140])
    assert np.array_equal(np.stack([row_after(cache, token) for token in text[102:140]]), rows)


@pytest.mark.parametrize("name", ["qwen35", "lfm2moe", "nemotron_h"])
def test_a_mark_can_be_come_back_to(tiny_hybrids, load, text, name):
    model = load(tiny_hybrids[name], texts=2)
    beside, cache = model.open(), model.open()
    beside.prefill(text[200:250])
    cache.prefill(text[:60])
    cache.forward(text[60:66], chain_parents(6))
    cache.keep(range(2))
    assert cache.mark()
    rows = [row_after(cache, token) for token in text[62:100]]
    assert [cache.reusable(n) for n in (99, 80, 62, 61)] == [62, 62, 62, 0]
    for _ in range(2):
        cache.rewind(62)
        assert np.array_equal([row_after(cache, token) for token in text[62:100]], rows)
    cache.prefill(text[100:120])
    cache.rewind(62)
    assert cache.length == 62
    cache.rewind(0)
    assert cache.reusable(62) == 0
    cache.prefill(text[:40])
    assert cache.reusable(62) == 40
    after = rows_one_by_one(load(tiny_hybrids[name]).open(), text[200:250], text[250:260])
    assert np.array_equal([row_after(beside, token) for token in text[250:260]], after)


def test_a_mark_serves_those_that_decode_plainly_as_well(tiny_models, load, text):
    cache = load(tiny_models["recurrent"], STOCK).open()
    assert cache.mark()
    cache.prefill(text[:50])
    assert cache.mark()
    row = row_after(cache, text[50])
    row_after(cache, text[51])
    cache.rewind(50)
    assert np.array_equal(row_after(cache, text[50]), row)


def test_what_needs_single_tokens_to_be_forgotten_is_refused(tiny_hybrids, load, text):
    model = load(tiny_hybrids["nemotron_h"], texts=2)
    first, second = model.open(), model.open()
    first.prefill(text[:50])
    assert first.copyable(50) == 0
    with pytest.raises(ValueError, match="cannot be copied"):
        second.copy(first, 50)
    assert not model.can_shift
    with pytest.raises(ContextFullError, match="cannot shift"):
        first.shift(0, 10)
    with pytest.raises(ValueError, match="leaves"):
        first.forward(text[:3], np.array([-1, 0, 0], np.int32))
    assert first.length == 50


def test_after_a_call_that_failed_nothing_is_left(tiny_hybrids, load, text):
    """libllama would take the tokens of a call that was ended back to states it has not kept."""
    cache, other = (load(tiny_hybrids["lfm2"], n_ubatch=64).open() for _ in range(2))

    class StopError(Exception):
        pass

    def stop(done, _total):
        if done >= 128:
            raise StopError

    with pytest.raises(StopError):
        cache.prefill(text[:400], progress=stop)
    rest = cache.length
    cache.prefill(text[rest:400])
    expected = rows_one_by_one(other, text[:400], text[400:401])[0]
    assert np.array_equal(row_after(cache, text[400]), expected)


def test_there_are_no_more_states_than_a_graph_has_room_for(tiny_hybrids, write_hybrid, tmp_path, load):
    layers = "r" * 24
    for name in ("lfm2", "nemotron_h"):
        model = load(write_hybrid(tmp_path / f"{name}.gguf", name, layers=layers), snapshots=99)
        assert model.facts.max_width == 8
    assert load(tiny_hybrids["qwen35"], snapshots=99).facts.max_width == 32
    assert load(tiny_hybrids["qwen35"], n_ubatch=4).facts.max_width == 3
    assert load(tiny_hybrids["qwen35"], texts=16, n_ctx=256).facts.max_width == 4
    crowd = load(tiny_hybrids["qwen35"], texts=40, n_ctx=256)
    assert crowd.facts.max_width == 1 and crowd.facts.plain_reason
