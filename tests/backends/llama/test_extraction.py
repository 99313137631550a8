"""What enters a layer: right for every token, whatever is computed beside it, and no logit differs for it.

What a model gives is held against its own head: where the layers from one on add nothing, the logits are what
the head makes of what enters that layer.
"""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from specx.backends.base import Tree, Want, chain_parents
from specx.backends.errors import ModelError
from specx.backends.gguf.layer_inputs import LAYER_INPUTS, LAYER_OUTPUTS
from specx.backends.llama import extraction, libllama
from specx.backends.llama.kernels import SPECX, STOCK, unavailable
from specx.backends.llama.model import LlamaModel
from specx.backends.llama.skipping import SkippingModel
from specx.backends.settings import Load

NOTED = ("llama", "qwen3")
TAPPED = ("gemma2", "gemma3", "qwen2", "phi3", "smollm3", "granite")
BOTH = Want.LOGITS | Want.HIDDEN
EMPTY = 3  # the layers of a model from this one on add nothing
SAME = 1e-3  # largest difference between two ways to compute the same
SHARED = 5e-3  # the same where texts share a cache; another row differs by 1
WIDTH, VOCAB = 64, 304
PRECISE = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
TEXT = [1, *np.random.default_rng(3).integers(3, VOCAB, 90).tolist()]


@pytest.fixture(scope="module")
def files(tmp_path_factory, write_tiny):
    """Architecture -> a model whose last layers add nothing."""
    folder = tmp_path_factory.mktemp("models")
    made = {}

    def file(architecture):
        if architecture not in made:
            path = folder / f"{architecture}.gguf"
            blocks = 12 if architecture == "smollm3" else 6
            made[architecture] = write_tiny(path, architecture, silent=frozenset(range(EMPTY, blocks)))
        return made[architecture]

    return file


@pytest.fixture
def load():
    """Loads models, and closes them."""
    loaded = []

    def load(path, *, kernels=STOCK, **options):
        if kernels is SPECX and (reason := unavailable()):
            pytest.skip(reason)
        options = {"n_ctx": 256, "threads": 1, "threads_batch": 1, **PRECISE, **options}
        if kernels is SPECX:
            options["flash_attn"] = "on"
        repack = libllama.runs_here(path) is not False
        loaded.append(LlamaModel(Load(path, **options), kernels=kernels, repack=repack))
        return loaded[-1]

    yield load
    for model in loaded:
        model.close()


def ints(*values):
    return np.array(values, np.int32)


def read(cache, tokens):
    """Hidden states (n, k * d) of a prompt."""
    seen = []
    cache.prefill(tokens, features=lambda which, rows: seen.append((which.tolist(), rows.copy())))
    assert [token for which, _ in seen for token in which] == list(tokens)
    return np.concatenate([rows for _, rows in seen])


def step(model, *trees):
    """Logits and hidden states of each tree."""
    outputs = model.forward([Tree(*tree) for tree in trees], BOTH)
    return [(output.logits.copy(), output.hidden.copy()) for output in outputs]


def by_its_head(path, hidden):
    """Logits (n, V) that the head of a tiny model makes of what the last layer hands on (n, d)."""
    file = gguf.GGUFReader(path)
    tensors = {tensor.name: np.array(tensor.data) for tensor in file.tensors}
    architecture = file.fields["general.architecture"].contents()
    normed = hidden / np.sqrt((hidden**2).mean(axis=1, keepdims=True) + 1e-5)
    logits = normed * tensors["output_norm.weight"] @ tensors["token_embd.weight"].T
    if architecture == "granite":
        logits /= file.fields["granite.logit_scale"].contents()
    cap = 30.0 if architecture == "gemma2" else 0.0  # llama.cpp's where the file has none
    return cap * np.tanh(logits / cap) if cap else logits


@pytest.mark.parametrize("architecture", [*NOTED, *TAPPED])
def test_what_enters_a_layer_is_what_the_head_reads_if_no_layer_adds_anything(architecture, files, load):
    path = files(architecture)
    model = load(path)
    assert Want.HIDDEN in model.facts.extractable
    cache = model.open()
    model.extract([1, EMPTY, EMPTY + 1])
    read(cache, TEXT[:-4])
    [(logits, hidden)] = step(model, (cache, ints(*TEXT[-4:]), chain_parents(4)))
    assert hidden.shape == (4, 3 * WIDTH)
    first, last, same = np.split(hidden, 3, axis=1)
    np.testing.assert_array_equal(last, same)
    assert np.abs(first - last).max() > 0.01
    np.testing.assert_allclose(by_its_head(path, last), logits, atol=SAME)


@pytest.mark.parametrize("architecture", [*NOTED, *TAPPED])
def test_no_logit_differs_for_it(architecture, files, load):
    path, seen = files(architecture), []
    for layers in ((), (1, 2, 4)):
        model = load(path)
        cache = model.open()
        model.extract(layers)
        rows = []
        options = {"features": lambda *_: None} if layers else {}
        cache.prefill(TEXT[:-6], rows=lambda _, logits, rows=rows: rows.append(logits.copy()), **options)
        for tokens in (TEXT[-6:-5], TEXT[-5:]):
            tree = Tree(cache, ints(*tokens), chain_parents(len(tokens)))
            rows.append(model.forward([tree], BOTH if layers else Want.LOGITS)[0].logits.copy())
            cache.keep(range(len(tokens)))
        seen.append(np.concatenate(rows))
    np.testing.assert_array_equal(*seen)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_a_prompt_gives_them_in_order_however_it_is_divided(architecture, files, load):
    path, found = files(architecture), []
    for options in ({}, {"n_batch": 32, "n_ubatch": 8}, {"n_batch": 7, "n_ubatch": 7}):
        model = load(path, **options)
        model.extract([2, 4])
        cache = model.open()
        rows = read(cache, TEXT[:50])
        found.append(np.concatenate([rows, read(cache, TEXT[50:])]))
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, atol=SAME)
    assert np.abs(np.diff(found[0], axis=0)).max(axis=1).min() > 0.01  # no row is another's


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_every_node_of_a_tree_has_what_its_path_gives(architecture, files, load):
    model = load(files(architecture))
    model.extract([3])
    cache = model.open()
    cache.prefill(TEXT[:40])
    tokens, parents = ints(*TEXT[40:47]), ints(-1, 0, 0, 1, 2, 2, 4)
    [(_, hidden)] = step(model, (cache, tokens, parents))
    cache.keep([0])
    cache.rewind(40)
    for row in range(len(tokens)):
        path = [row]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        chain = tokens[path[::-1]]
        [(_, alone)] = step(model, (cache, chain, chain_parents(len(chain))))
        cache.keep([0])
        cache.rewind(40)
        np.testing.assert_allclose(hidden[row], alone[-1], atol=SAME)


@pytest.mark.parametrize("kernels", [STOCK, SPECX], ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_each_text_has_its_own(architecture, kernels, files, load):
    """Texts between those of a step, of which rows are filled up, and widths that differ."""
    path, exact = files(architecture), kernels is SPECX
    together, single = load(path, kernels=kernels, texts=5), load(path, kernels=kernels)
    alone = single.open()
    for model in (together, single):
        model.extract([2, 4])
    caches, starts = [together.open() for _ in range(5)], (20, 31, 12, 40, 25)
    for cache, start in zip(caches, starts, strict=True):
        cache.prefill(TEXT[start : start + 15])
    for chosen in ((0, 1, 2, 3, 4), (3, 1), (0, 2, 4), (4,)):
        widths = [3 if together.facts.even else 2 + i for i in range(len(chosen))]
        trees = [
            (caches[i], ints(*TEXT[starts[i] + 15 :][:width]), chain_parents(width))
            for i, width in zip(chosen, widths, strict=True)
        ]
        outputs = step(together, *trees)
        for (cache, tokens, parents), (_, hidden) in zip(trees, outputs, strict=True):
            start = starts[caches.index(cache)]
            cache.keep([0])
            cache.rewind(15)
            alone.rewind(0)
            alone.prefill(TEXT[start : start + 15])
            [(_, expected)] = step(single, (alone, tokens, parents))
            alone.keep([0])
            np.testing.assert_allclose(hidden, expected, atol=0 if exact else SHARED)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_they_go_on_after_the_context_was_shifted(architecture, files, load):
    path = files(architecture)
    model = load(path)
    model.extract([EMPTY])
    cache = model.open()
    read(cache, TEXT[:60])
    cache.shift(10, 20)
    assert cache.length == 40
    [(logits, hidden)] = step(model, (cache, ints(*TEXT[60:63]), chain_parents(3)))
    np.testing.assert_allclose(by_its_head(path, hidden), logits, atol=SAME)


def test_both_ways_to_get_them_give_the_same_bits(smollm2, load, monkeypatch):
    """On a real model, whose sums are rounded: a callback sees what the graph notes as well."""
    found = []
    for architectures in (LAYER_INPUTS, frozenset()):
        monkeypatch.setattr(extraction, "LAYER_INPUTS", architectures)
        monkeypatch.setattr(extraction, "LAYER_OUTPUTS", LAYER_OUTPUTS | {"llama"})
        model = load(smollm2, n_ubatch=32)
        model.extract([2, 15, 27])
        cache = model.open()
        prompt = read(cache, TEXT)
        [(logits, hidden)] = step(model, (cache, ints(5, 6, 7), ints(-1, 0, 0)))
        found.append((prompt, logits, hidden))
    for noted, tapped in zip(*found, strict=True):
        np.testing.assert_array_equal(noted, tapped)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_call_that_failed_leaves_nothing_behind(architecture, files, load, monkeypatch):
    """The next call computes rows that nobody wants hidden states of: they do not come in their place."""
    model = load(files(architecture))
    model.extract([1])
    cache = model.open()
    cache.prefill(TEXT[:5])
    tree = Tree(cache, ints(9, 8), chain_parents(2))
    decode = model._lib.llama_decode
    monkeypatch.setattr(model._lib, "llama_decode", lambda *_: -2)
    with pytest.raises(ModelError, match="too little memory"):
        model.forward([tree], BOTH)
    monkeypatch.setattr(model._lib, "llama_decode", decode)
    rows = model._inputs._rows
    rows[:] = 7.0
    model.forward([tree])
    assert (rows == 7.0).all()
    cache.keep([0])
    [(_, hidden)] = step(model, (cache, ints(9), ints(-1)))
    assert hidden.shape == (1, WIDTH) and (hidden != 7.0).all()


def test_layers_are_chosen_once_and_given_up(files, load):
    model = load(files("llama"))
    cache = model.open()
    cache.prefill(TEXT[:5])
    tree = Tree(cache, ints(9), ints(-1))
    for wanted in (
        lambda: model.forward([tree], BOTH),
        lambda: cache.prefill([4], features=lambda *_: None),
    ):
        with pytest.raises(ValueError, match="of no layer"):
            wanted()
    with pytest.raises(ValueError, match="only of 0 to 5"):
        model.extract([1, 6])
    model.extract([0, 3, 5])
    model.extract([0, 3, 5])
    with pytest.raises(ValueError, match="given already"):
        model.extract([0, 3])
    assert model.forward([tree])[0].hidden is None
    cache.keep([0])
    model.extract([])
    model.extract([1])
    assert step(model, (cache, ints(9), ints(-1)))[0][1].shape == (1, WIDTH)


def test_the_first_layer_is_told_by_libllama_alone(files, load):
    model = load(files("qwen2"))
    with pytest.raises(ValueError, match="only of 1 to 5"):
        model.extract([0])


@pytest.mark.parametrize("architecture", ["llama", "falcon"])
def test_a_build_without_the_functions_does_everything_else(architecture, files, load, monkeypatch):
    """As does a model of an architecture of which nothing is known."""
    path = files("llama")
    if architecture == "llama":
        monkeypatch.setattr(extraction, "cxx_function", lambda *_: None)
    else:
        monkeypatch.setattr(extraction, "LAYER_INPUTS", frozenset())
    model = load(path)
    assert model.facts.extractable == Want.LOGITS
    with pytest.raises(ModelError, match="no hidden states"):
        model.extract([1])
    cache = model.open()
    cache.prefill(TEXT[:5])
    assert model.forward([Tree(cache, ints(9), ints(-1))])[0].logits.shape == (1, VOCAB)


def test_a_missing_function_is_none():
    assert extraction.cxx_function("_Z9not_therev", None) is None


def test_a_model_whose_layers_are_skipped_is_another_one(files, load):
    """It has a callback of its own."""
    path = files("qwen2")
    model = load(path)
    model.extract([1])
    skipping = SkippingModel(Load(path, threads=1, threads_batch=1, n_ctx=256, **PRECISE))
    cache = model.open()
    before = skipping.predictions(TEXT, frozenset({1}))
    rows = read(cache, TEXT)
    assert rows.shape == (len(TEXT), WIDTH)
    np.testing.assert_array_equal(skipping.predictions(TEXT, frozenset({1})), before)
    skipping.close()
