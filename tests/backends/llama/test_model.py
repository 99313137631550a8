"""GGUF models on libllama: token trees, taking tokens back, sliding windows, and what can go wrong.

What needs many steps runs on tiny models with random 32-bit weights. Without flash attention, which rounds to
16 bits, the logits of one context then agree to about 1e-4 however it was computed, and one token more or
less in view moves them by 1e-2 and more. In a real quantized model a difference in the last bit is amplified,
because activations are rounded to 8 bits, to a mean difference of up to 0.3 per logit, while the neighbouring
context is 1 to 10 away.

One thread each: threads that wait for each other are no use on a busy machine.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from specx.backends.errors import ContextFullError, ModelError, RollbackError, SpecxError
from specx.backends.llama import libllama, params
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import Load
from specx.backends.store import Store
from specx.engine.cost.timing import unwatched
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

SAME = 1e-3  # largest difference of a logit on a tiny model
ROUNDED = 0.04  # the same with flash attention
NEAR, FAR = 0.4, 0.8  # mean differences on a real model: the same context, another one
ONE = np.array([-1], np.int32)
PRECISE = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
TEXT = (
    "The keeper of the lighthouse counted seven ships before noon, wrote their names into the book and went "
    "down to the rocks, where the tide had left a bottle with a letter in it, signed by nobody at all."
)


@functools.cache
def repack(path):
    """Some compilers miscompile the AMX kernels; the package asks the same before it loads a model."""
    return libllama.runs_here(path) is not False


def load(path, **options):
    settings = Load(path, **{"n_ctx": 512, "threads": 1, "threads_batch": 1, **options})
    return LlamaModel(settings, repack=repack(path))


def load_text(path, **options):
    """Room for the only text of a model of its own."""
    return load(path, **options).open()


def ints(*values):
    return np.array(values, np.int32)


def chain(n):
    return np.arange(-1, n - 1, dtype=np.int32)


def logits_after(cache, tokens):
    """Logits (V,) after `tokens`, read from the beginning."""
    cache.rewind(0)
    cache.prefill(tokens[:-1])
    return next_logits(cache, tokens[-1])


def next_logits(cache, token):
    row = cache.forward(ints(token), ONE).logits[0].copy()
    cache.keep([0])
    return row


def path_to(parents, row):
    rows = []
    while row >= 0:
        rows.append(int(row))
        row = parents[row]
    return rows[::-1]


def random_tree(rng, most, leaves):
    """Parents of a random tree with at most `leaves` leaves, sometimes a chain, sometimes a bush."""
    n = int(rng.integers(1, most + 1))
    parents = [-1]
    for row in range(1, n):
        inner = set(parents)
        open_leaves = [i for i in range(row) if i not in inner]
        anywhere = len(open_leaves) < leaves and rng.random() < 0.6
        parents.append(int(rng.integers(row)) if anywhere else int(rng.choice(open_leaves)))
    return np.array(parents, np.int32)


@pytest.fixture(scope="module")
def tiny(tiny_models):
    """An empty text of a tiny model by name, which is loaded once for each set of options."""

    @functools.cache
    def make(name, copy=0, **options):
        return load(tiny_models[name], **{**PRECISE, "n_ubatch": 512 if copy else 64, **options})

    opened = {}

    def get(name, copy=0, **options):
        model = make(name, copy, **options)
        if model in opened:  # whatever state a test left it in
            opened[model].close()
        opened[model] = model.open()
        return opened[model]

    yield get
    for model in opened:
        model.close()


class Walk:
    """Random operations on a text beside the plain list of tokens it should hold."""

    def __init__(self, cache, reference, seed, tolerance=SAME):
        self.cache, self.reference, self.tolerance = cache, reference, tolerance
        self.rng = np.random.default_rng(seed)
        self.tokens = []
        self.refused = 0

    def random(self, n):
        return self.rng.integers(3, self.cache.model.vocab.size, n).tolist()

    def prefill(self, most):
        tokens = self.random(int(self.rng.integers(1, most)))
        if len(self.tokens) + len(tokens) < self.cache.n_ctx - 40:
            self.cache.prefill(tokens)
            self.tokens += tokens

    def rewind(self, most):
        target = max(0, len(self.tokens) - int(self.rng.integers(0, most)))
        reached = self.cache.reusable(target)
        assert reached in (0, target)
        if reached != target:
            self.refused += 1
            with pytest.raises(RollbackError):
                self.cache.rewind(target)
            assert self.cache.length == len(self.tokens)
            if self.rng.random() < 0.5:
                return
        self.cache.rewind(reached)
        del self.tokens[reached:]

    def step(self, check=False):
        room = min(self.cache.max_width, self.cache.n_ctx - len(self.tokens))
        if room < 1:
            return self.rewind(len(self.tokens))
        parents = random_tree(self.rng, room, self.cache.max_leaves)
        tokens = ints(*self.random(len(parents)))
        logits = self.cache.forward(tokens, parents).logits
        if check:
            self.compare(tokens, parents, logits)
        rows = path_to(parents, int(self.rng.integers(len(parents))))
        self.cache.keep(rows)
        self.tokens += tokens[rows].tolist()
        return None

    def compare(self, tokens, parents, logits):
        leaves = set(range(len(parents))) - set(parents.tolist())
        for leaf in sorted(leaves)[:3]:
            rows = path_to(parents, leaf)
            self.reference.rewind(0)
            self.reference.prefill(self.tokens)
            expected = self.reference.forward(tokens[rows], chain(len(rows))).logits
            assert np.abs(logits[rows] - expected).max() < self.tolerance
            self.reference.keep([0])

    def run(self, operations, longest_prefill, longest_rewind):
        for turn in range(operations):
            kind = self.rng.random()
            if kind < 0.1:
                self.prefill(longest_prefill)
            elif kind < 0.2:
                self.rewind(longest_rewind)
            else:
                self.step(check=turn % 5 == 0)
            assert self.cache.length == len(self.tokens)


@pytest.mark.parametrize("seed", range(6))
def test_a_random_walk_of_trees(tiny, seed):
    walk = Walk(tiny("full"), tiny("full", copy=1), seed)
    walk.run(120, 40, 60)
    assert walk.refused == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_random_walk_far_beyond_the_sliding_window(tiny, seed):
    # 256 cells for a window of 24: they are used over and over.
    walk = Walk(tiny("sliding", n_ctx=2048), tiny("sliding", copy=1, n_ctx=2048), seed)
    walk.prefill(400)
    walk.run(100, 120, 400 if seed % 2 else 30)
    assert len(walk.tokens) > 256 or walk.refused


@pytest.mark.parametrize(
    "options", [{"swa_full": True}, {"flash_attn": "on"}, {"n_batch": 8}, {"type_k": "f16"}], ids=repr
)
def test_a_random_walk_with_other_settings(tiny, options):
    name = "sliding" if "swa_full" in options else "full"
    tolerance = SAME if options.keys() & {"swa_full", "n_batch"} else ROUNDED
    walk = Walk(tiny(name, **options), tiny(name, copy=1, **options), 5, tolerance)
    walk.run(100, 60, 100)
    assert walk.refused == 0


@pytest.mark.parametrize("name", ["full", "sliding"])
def test_a_wrong_context_would_be_seen(tiny, name):
    cache = tiny(name)
    tokens = np.random.default_rng(3).integers(3, 320, 150).tolist()
    right = logits_after(cache, tokens)
    for at in range(0, 150, 10):
        without = tokens[:at] + tokens[at + 1 :]
        assert np.abs(logits_after(cache, without) - right).max() > 5 * SAME


def test_the_window_reaches_exactly_as_far_as_reusable_says(tiny):
    cache, reference = tiny("sliding", n_ctx=2048), tiny("sliding", copy=1, n_ctx=2048)
    tokens = np.random.default_rng(5).integers(3, 320, 700).tolist()
    cache.prefill(tokens)
    reachable = [length for length in range(701) if cache.reusable(length) == length]
    shortest = reachable[1]
    assert reachable == [0, *range(shortest, 701)]
    oldest = libllama.lib().llama_memory_seq_pos_min(cache.model.memory, cache.main)
    assert shortest == oldest + cache.model.n_swa - 1  # that token sees the oldest one, and no older one
    with pytest.raises(RollbackError, match="cannot go back from 700"):
        cache.rewind(shortest - 1)
    cache.rewind(shortest)
    again = next_logits(cache, tokens[shortest])
    assert np.abs(again - logits_after(reference, tokens[: shortest + 1])).max() < SAME


def test_measuring_steps_where_every_cell_is_in_use(tiny):
    cache = tiny("sliding", n_ctx=2048)
    reference = tiny("sliding", copy=1, n_ctx=2048)
    tokens = np.random.default_rng(6).integers(3, 320, 900).tolist()
    for done in range(100, 900, 100):
        cache.prefill(tokens[done - 100 : done])
        for _ in range(12):  # guesses that are all forgotten, as the staircase does
            cache.forward(np.zeros(32, np.int32), chain(32))
            cache.keep([0])
            cache.rewind(done)
    assert np.abs(next_logits(cache, tokens[800]) - logits_after(reference, tokens[:801])).max() < SAME


def test_a_session_reads_again_what_the_window_has_lost(tiny_models):
    sampling = SamplingSettings(seed=1, temperature=0.0)

    def session(n_ubatch):
        path = tiny_models["sliding"]
        model = load(path, n_ctx=2048, n_ubatch=n_ubatch, **PRECISE)
        learned = Learned(Store(None), model_key="m", cost_key="c")
        ticking = itertools.count(0.0, 0.01).__next__  # what a step really takes must not decide a test
        made = Session(model, Asked(path, drafter="auto"), learned, name="tiny", clock=ticking)
        made.staircase.watch = unwatched
        made.staircase.load_json({"0": {str(n): 10 + n / 10 for n in range(1, 33)}})
        return made

    def answer(session, prompt):
        generation = session.generate(prompt, sampling, n_predict=20, ignore_eos=True)
        list(generation)
        return generation.result

    prompt = (np.random.default_rng(9).integers(3, 320, 60).tolist()) * 9
    first, fresh = session(64), session(512)
    answer(first, prompt)
    other = [*prompt[:100], 7, *prompt[100:110]]
    again = answer(first, other)
    assert again.timings.prompt_n == len(other)  # all of it
    assert again.tokens == answer(fresh, other).tokens
    turn = [*other, *again.tokens, 9, 9, 8]
    continued = answer(first, turn)
    assert continued.timings.prompt_n in (3, 4)
    fresh.forget_conversation()
    assert continued.tokens == answer(fresh, turn).tokens
    for one in (first, fresh):
        one.close()


@pytest.mark.parametrize("keep", [0, 1, 7])
def test_shifting(tiny, keep):
    cache, reference = tiny("full"), tiny("full", copy=1)
    rng = np.random.default_rng(keep)
    tokens = rng.integers(3, 320, 60).tolist()
    cache.prefill(tokens[:40])
    drafts = ints(tokens[40], 9, *tokens[41:44], 8)
    cache.forward(drafts, ints(-1, 0, 0, 2, 3, 1))
    cache.keep([0, 2, 3, 4])  # the second branch: another sequence is the main one now
    cache.prefill(tokens[44:])
    reference.prefill(tokens)
    for one in (cache, reference):
        one.shift(keep, 25)
        assert one.length == 35
    after = next_logits(cache, 11)
    assert np.abs(after - next_logits(reference, 11)).max() < SAME
    # What is left was computed with the forgotten tokens in view, so it is not what a fresh cache has.
    left = [*tokens[:keep], *tokens[keep + 25 :], 11]
    assert np.abs(after - logits_after(reference, left)).max() > SAME
    tree = cache.forward(ints(4, 5, 6), ints(-1, 0, 0)).logits.copy()
    cache.keep([0, 2])
    again = logits_chain(cache, [7])
    reference.rewind(0)
    reference.prefill(tokens)
    reference.shift(keep, 25)
    expected = logits_chain(reference, [11, 4, 6, 7])
    assert np.abs(tree[[0, 2]] - expected[1:3]).max() < SAME
    assert np.abs(again[0] - expected[3]).max() < SAME
    cache.rewind(20)
    assert (cache.length, cache.reusable(20)) == (20, 20)


def logits_chain(cache, tokens):
    logits = cache.forward(ints(*tokens), chain(len(tokens))).logits.copy()
    cache.keep(list(range(len(tokens))))
    return logits


def test_shifting_what_cannot_be_shifted(tiny):
    cache = tiny("full")
    cache.prefill([5] * 10)
    for keep, discard in ((0, 11), (5, 6), (-1, 3), (0, -1)):
        with pytest.raises(ValueError, match="cannot be forgotten"):
            cache.shift(keep, discard)
    for name in ("sliding", "recurrent"):
        other = tiny(name)
        other.prefill([5] * 10)
        assert not other.model.can_shift
        with pytest.raises(ContextFullError, match="cannot shift"):
            other.shift(0, 5)
        assert other.length == 10


def test_a_recurrent_model_decodes_plainly(tiny):
    cache, reference = tiny("recurrent"), tiny("recurrent", copy=1)
    assert "recurrent" in cache.model.facts.plain_reason
    assert (cache.max_width, cache.max_leaves) == (1, 1)
    tokens = np.random.default_rng(2).integers(3, 320, 30).tolist()
    cache.prefill(tokens[:20])
    rows = [next_logits(cache, token) for token in tokens[20:]]
    assert np.abs(rows[-1] - logits_after(reference, tokens)).max() < SAME
    assert [cache.reusable(length) for length in (0, 15, 29, 30, 99)] == [0, 0, 0, 30, 30]
    with pytest.raises(RollbackError):
        cache.rewind(29)
    with pytest.raises(ValueError, match="1 to 1 tokens"):
        cache.forward(ints(1, 2), chain(2))
    cache.rewind(30)
    cache.rewind(0)
    assert np.abs(logits_after(cache, tokens) - rows[-1]).max() < SAME
    # Not even what a failed call left can be taken back, so everything goes.
    with pytest.raises(ModelError):
        cache.forward(ints(10**6), ONE)
    assert cache.length in (0, 30)
    assert np.abs(logits_after(cache, tokens) - rows[-1]).max() < SAME


def test_misuse(tiny):
    cache = tiny("full")
    cache.prefill([5, 6, 7])
    with pytest.raises(RuntimeError, match="without forward"):
        cache.keep([0])
    for tokens, parents in (
        (ints(), ints()),
        (ints(1, 2), ints(-1)),
        (np.ones(65, np.int32), chain(65)),
        (ints(1), ints(0)),
        (ints(1, 2), ints(-1, -1)),
        (ints(1, 2), ints(-1, 1)),
        (ints(1, 2, 3), ints(-1, 2, 0)),
        (np.ones(10, np.int32), ints(-1, *[0] * 9)),
    ):
        with pytest.raises(ValueError):
            cache.forward(tokens, parents)
    cache.forward(ints(1, 2, 3, 4), ints(-1, 0, 0, 1))
    for rows in ([], [1], [0, 3], [0, 1, 2], [0, 0], [0, 4], [-1]):
        with pytest.raises(ValueError):
            cache.keep(rows)
    for call in (
        lambda: cache.forward(ints(1), ONE),
        lambda: cache.prefill([1]),
        lambda: cache.rewind(0),
        lambda: cache.shift(0, 1),
    ):
        with pytest.raises(RuntimeError, match="not followed by keep"):
            call()
    cache.keep([0, 1, 3])
    assert cache.length == 6
    for length in (-1, 7):
        with pytest.raises(RollbackError):
            cache.rewind(length)
    expected = logits_after(tiny("full", copy=1), [5, 6, 7, 1, 2, 4, 9])
    assert np.abs(next_logits(cache, 9) - expected).max() < SAME


def test_a_call_that_fails_leaves_no_trace(tiny):
    cache = tiny("full")
    tokens = list(range(5, 45))
    cache.prefill(tokens)
    for broken in (
        lambda: cache.forward(ints(7, 10**6, 8), ints(-1, 0, 0)),
        lambda: cache.prefill([9, -5]),
        lambda: cache.prefill([9] * 70 + [10**6]),
    ):
        with pytest.raises(ModelError, match="could not compute a batch"):
            broken()
        cache.rewind(40)
        cache.forward(ints(1, 2, 3), ints(-1, 0, 0))
        cache.keep([0])
        cache.rewind(40)
    assert np.abs(next_logits(cache, 4) - logits_after(tiny("full", copy=1), [*tokens, 4])).max() < SAME


def test_a_full_context(tiny):
    cache = tiny("full", n_ctx=256)
    assert cache.n_ctx == 256
    with pytest.raises(ContextFullError, match="257 tokens and the context holds 256") as error:
        cache.prefill([5] * 257)
    assert "-c 1024" in error.value.hint
    assert cache.length == 0
    cache.prefill([5] * 250)
    with pytest.raises(ContextFullError, match="257 tokens"):
        cache.prefill([5] * 7)
    with pytest.raises(ContextFullError, match="256 tokens is full"):
        cache.forward(np.ones(7, np.int32), chain(7))
    cache.forward(ints(1, 2, 3, 4, 5, 6), ints(-1, 0, 1, 0, 3, 4))
    cache.keep([0, 3, 4, 5])
    cache.forward(ints(7, 8), ints(-1, 0))
    cache.keep([0, 1])
    assert cache.length == 256
    with pytest.raises(ContextFullError):
        cache.forward(ints(1), ONE)
    cache.rewind(255)
    expected = logits_after(tiny("full", copy=1), [*[5] * 250, 1, 4, 5, 6, 7, 9])
    assert np.abs(next_logits(cache, 9) - expected).max() < SAME


def test_reading_a_prompt(tiny):
    cache, reference = tiny("full"), tiny("full", copy=1)
    tokens = np.random.default_rng(1).integers(3, 320, 300).tolist()
    seen, rows = [], []
    cache.prefill(
        tokens,
        progress=lambda done, total: seen.append((done, total)),
        rows=lambda ids, logits: rows.append((ids.copy(), logits.copy())),
    )
    assert seen == sorted(seen)
    assert {(64, 300), (128, 300), (192, 300), (256, 300), (300, 300)} <= set(seen)
    [(last, logits)] = rows
    assert last.tolist() == tokens[-len(last) :]
    assert 0 < len(last) <= params.PROMPT_ROWS
    reference.prefill(tokens[: -len(last)])
    for row, token in zip(logits, last.tolist(), strict=True):
        assert np.abs(row - next_logits(reference, token)).max() < SAME
    for pieces in ([300], [1, 299], [100, 100, 100], [7] * 42 + [6]):
        reference.rewind(0)
        start = 0
        for n in pieces:
            reference.prefill(tokens[start : start + n])
            start += n
        assert reference.length == 300
        got = next_logits(reference, 9)
        cache.rewind(300)
        assert np.abs(next_logits(cache, 9) - got).max() < SAME
    cache.prefill([])
    cache.prefill([4], rows=lambda t, x: rows.append((t, x)))
    assert len(rows[-1][0]) == 1


def test_a_prompt_that_is_interrupted(tiny):
    cache = tiny("full")
    tokens = list(range(3, 303))

    def interrupt(done, _total):
        if done == 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.prefill(tokens, progress=interrupt)
    assert cache.length == 128
    cache.prefill(tokens[128:])
    assert np.abs(next_logits(cache, 4) - logits_after(tiny("full", copy=1), [*tokens, 4])).max() < SAME


def test_limits_that_follow_from_the_settings(tiny_models):
    path = tiny_models["full"]
    with_small_batch = load_text(path, n_batch=8, n_ubatch=4)
    assert with_small_batch.max_width == 8
    with_small_batch.forward(np.ones(8, np.int32), ints(-1, *[0] * 7))
    with_small_batch.keep([0, 7])
    with pytest.raises(ValueError, match="1 to 8 tokens"):
        with_small_batch.forward(np.ones(9, np.int32), chain(9))
    with_small_batch.prefill([5] * 100)
    assert with_small_batch.length == 102
    short = load_text(path, n_ctx=16)  # llama.cpp rounds the context up, but not its largest batch
    assert short.max_width == 16
    short.forward(np.ones(16, np.int32), chain(16))
    short.keep([0])
    assert load(path, n_ctx=300).facts.n_ctx == 512  # rounded up
    assert load(path).facts.n_ctx_train == 8192
    model = load(path, threads=2, threads_batch=1)
    assert (model.n_threads, model.n_threads_batch) == (2, 1)
    model.close()
    model.close()


def test_files_that_cannot_be_loaded(tiny_models, tmp_path):
    missing = tmp_path / "missing.gguf"
    with pytest.raises(ModelError, match=r"could not load missing\.gguf"):
        LlamaModel(Load(missing, 1, 1))
    strange = tmp_path / "strange.gguf"
    writer = gguf.GGUFWriter(strange, "quetzalcoatl")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="architecture 'quetzalcoatl'"):
        LlamaModel(Load(strange, 1, 1))
    cut = tmp_path / "cut.gguf"
    shutil.copy(tiny_models["full"], cut)
    with cut.open("r+b") as file:
        file.truncate(cut.stat().st_size - 5000)
    with pytest.raises(ModelError) as error:
        LlamaModel(Load(cut, 1, 1))
    assert "quetzalcoatl" not in str(error.value)  # the reason of this file, not of the last one
    assert "cut.gguf" in str(error.value)
    text = tmp_path / "text.gguf"
    text.write_text("no model at all")
    with pytest.raises(ModelError):
        LlamaModel(Load(text, 1, 1))


@pytest.mark.parametrize("options", [{"type_k": "q9_9"}, {"type_v": "i32"}, {"type_k": "q8_0"}], ids=repr)
def test_cache_types_that_cannot_be_had(tiny_models, options):
    # Heads of 16 do not divide into blocks of 32.
    with pytest.raises(ModelError):
        load(tiny_models["full"], **options)


def test_loading_can_be_interrupted(tiny_models):
    seen = []
    load_settings = Load(tiny_models["full"], 1, 1, n_ctx=256)
    LlamaModel(load_settings, progress=seen.append, repack=False)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    for problem in (KeyboardInterrupt, OSError):

        def fail(_fraction, problem=problem):
            raise problem

        with pytest.raises(problem):
            LlamaModel(load_settings, progress=fail, repack=False)


def test_what_is_found_out_about_a_build(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(libllama, "system_info", lambda: "CPU : AMX_INT8 = 1 |")
    assert libllama.runs_here(tiny_models["full"]) in (True, False)
    assert libllama.runs_here(tmp_path / "missing.gguf") is None  # says nothing of the build
    monkeypatch.setattr(libllama, "SELFTEST_S", 0.01)
    assert libllama.runs_here(tiny_models["full"]) is None
    monkeypatch.setattr(libllama, "system_info", lambda: "CPU : AVX2 = 1 |")
    assert libllama.runs_here(tmp_path / "missing.gguf") is True


@pytest.mark.parametrize(
    ("rearranged", "plain", "known"), [(0, 0, True), (-11, 0, False), (-11, -11, None), (1, 1, None)]
)
def test_a_damaged_model_says_nothing_of_a_build(monkeypatch, rearranged, plain, known):
    """What crashes without AMX as well is not AMX's fault."""
    monkeypatch.setattr(libllama, "system_info", lambda: "CPU : AMX_INT8 = 1 |")
    ran = []

    def run(command, **_options):
        ran.append(command[4:])
        return subprocess.CompletedProcess(command, plain if "plain" in command else rearranged)

    monkeypatch.setattr(subprocess, "run", run)
    assert libllama.runs_here(Path("m.gguf")) is known
    assert ran == [["m.gguf"]] + [["m.gguf", "plain"]] * (rearranged < 0)


@pytest.fixture(scope="module")
def smol(smollm2):
    caches = {kind: load_text(smollm2, type_k=kind, type_v=kind) for kind in ("f16", "q8_0")}
    yield caches
    for cache in caches.values():
        cache.model.close()


def tokens_of(cache, text=TEXT):
    return cache.model.vocab.tokenize(text.encode(), add_special=True, parse_special=False)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_tree_of_a_real_model_has_the_logits_of_its_chains(smol, kind):
    cache = smol[kind]
    cache.rewind(0)
    tokens = tokens_of(cache)[:30]
    drafts = tokens_of(cache, " and then he saw nothing but old black water")[:8]
    cache.prefill(tokens[:-1])
    parents = ints(-1, 0, 0, 1, 2, 3, 0, 6)
    tree = ints(tokens[-1], *drafts[:7])
    logits = cache.forward(tree, parents).logits.copy()
    cache.keep([0])
    for leaf in (4, 5, 7):
        cache.rewind(29)
        rows = path_to(parents, leaf)
        expected = logits_chain(cache, tree[rows].tolist())
        assert np.abs(logits[rows] - expected).mean() < NEAR
        assert np.abs(logits[7 if leaf != 7 else 5] - expected[-1]).mean() > FAR
    # Accept the last branch, and go on.
    cache.rewind(29)
    cache.forward(tree, parents)
    cache.keep([0, 6, 7])
    after = next_logits(cache, drafts[7])
    expected = logits_after(cache, [*tokens, int(tree[6]), int(tree[7]), drafts[7]])
    assert np.abs(after - expected).mean() < NEAR
    assert after.argmax() == expected.argmax() or np.ptp(np.sort(expected)[-2:]) < NEAR


def test_a_real_model_with_a_sliding_window_after_many_rejections(gemma3):
    cache = load_text(gemma3, n_ctx=1024, n_ubatch=128)  # 768 cells for the window of 512
    assert (cache.model.n_swa, cache.max_leaves) == (512, 1)
    rng = np.random.default_rng(0)
    tokens = (tokens_of(cache, TEXT + " " + TEXT.upper()) * 12)[:830]
    wrong = tokens_of(cache, "xylophone quantum zebra")
    cache.prefill(tokens[:600])
    position = 600
    while position < 800:
        right = int(rng.integers(1, 12))
        draft = ints(*tokens[position : position + right], *wrong[1:])
        cache.forward(draft, chain(len(draft)))
        cache.keep(list(range(right)))
        position += right
        if rng.random() < 0.4:
            back = int(rng.integers(1, 30))
            cache.rewind(position - back)
            cache.prefill(tokens[position - back : position])
    assert cache.length == position
    after = next_logits(cache, tokens[position])
    assert cache.reusable(position - 500) == 0
    with pytest.raises(RollbackError):
        cache.rewind(position - 500)
    expected = logits_after(cache, tokens[: position + 1])
    another = logits_after(cache, [*tokens[: position - 1], wrong[1], tokens[position]])
    assert np.abs(after - expected).mean() < NEAR
    assert np.abs(after - another).mean() > 2 * np.abs(after - expected).mean()
    cache.model.close()


def test_errors_have_a_hint(tiny):
    cache = tiny("full")
    for call in (lambda: cache.prefill([5] * 600), lambda: cache.rewind(9)):
        with pytest.raises(SpecxError) as error:
            call()
        assert error.value.hint


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_is_told_that_models_stayed_behind(tiny_models):
    # It would wait for threads that it does not have.
    model = load(tiny_models["full"], threads=2, threads_batch=2)
    cache = model.open()
    cache.prefill([1, 2, 3])
    child = os.fork()
    if child == 0:
        refused = 0
        for use in (
            lambda: cache.prefill([4]),
            lambda: next_logits(cache, 5),
            lambda: load(tiny_models["full"]),
        ):
            try:
                use()
            except ModelError as problem:
                refused += "forked" in str(problem)
        os._exit(3 - refused)
    deadline = time.monotonic() + 60
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    if not ended[0]:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)
    assert next_logits(cache, 5).shape == (model.vocab.size,)
    model.close()
