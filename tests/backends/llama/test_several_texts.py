"""Several texts of one GGUF model: each is what it would be alone, whatever the others do.

Where a text has a stream of its own, its logits are the same to the last bit. Where texts share the cells of
one cache they agree to five digits on the tiny models, whose weights are 32-bit floats.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from specx.backends.base import Tree, Want, chain_parents
from specx.backends.errors import ContextFullError, ModelError, RollbackError
from specx.backends.llama import libllama
from specx.backends.llama.kernels import SPECX, STOCK, unavailable
from specx.backends.llama.model import LlamaModel
from specx.backends.settings import Load

SAME = 1e-3  # largest difference of a logit between two ways to compute it
TEXTS = 5
WORDS = (3, 320)  # tokens of the tiny models that are no control tokens
KINDS = ("streams", "shared")


@functools.cache
def repack(path):
    """Some compilers miscompile the AMX kernels; the package asks the same before it loads a model."""
    return libllama.runs_here(path) is not False


def load(path, kernels, texts, **options):
    """With specx's kernels each text has a stream, with llama.cpp's own they share one."""
    if kernels is SPECX and (reason := unavailable()):
        pytest.skip(reason)
    options = {"n_ctx": 256, "threads": 1, "threads_batch": 1, "type_k": "f32", "type_v": "f32", **options}
    if kernels is STOCK:
        options = {"flash_attn": "off", **options}
    return LlamaModel(Load(path, texts=texts, **options), kernels=kernels, repack=repack(path))


class Pool:
    """Models that are loaded once; their texts are closed between tests."""

    def __init__(self, paths):
        self._paths = paths
        self._models = {}
        self._opened = []

    def model(self, name, kind, texts, **options):
        key = name, kind, texts, *options.items()
        if key not in self._models:
            kernels = SPECX if kind == "streams" else STOCK
            self._models[key] = load(self._paths[name], kernels, texts, **options)
        return self._models[key]

    def open(self, name, kind, texts=TEXTS, count=TEXTS, **options):
        """The first `count` texts of a model, empty."""
        model = self.model(name, kind, texts, **options)
        for cache in [cache for cache in self._opened if cache.model is model]:
            cache.close()
            self._opened.remove(cache)
        caches = [model.open() for _ in range(count)]
        self._opened += caches
        return caches

    def alone(self, name, kind, **options):
        """The only text of another model of the same file."""
        return self.open(name, kind, 1, 1, **options)[0]

    def close(self):
        for model in self._models.values():
            model.close()


@pytest.fixture(scope="module")
def pool(tiny_models):
    made = Pool(tiny_models)
    yield made
    made.close()


def ints(*values):
    return np.array(values, np.int32)


def random_tokens(rng, n):
    return rng.integers(*WORDS, n).tolist()


def chain(cache, tokens):
    return Tree(cache, ints(*tokens), chain_parents(len(tokens)))


def together(*trees):
    """Logits of each tree, copied."""
    outputs = trees[0].cache.model.forward(trees)
    return [output.logits.copy() for output in outputs]


def keep_all(*trees):
    for tree in trees:
        tree.cache.keep(range(len(tree)))


def rows_alone(cache, text, tokens):
    """Logits of a chain after `text`, read from the beginning."""
    cache.rewind(0)
    cache.prefill(text)
    [rows] = together(chain(cache, tokens))
    cache.keep([0])
    return rows


def agree(kind, ours, theirs):
    if kind == "streams":
        return np.array_equal(ours, theirs)
    return np.abs(ours - theirs).max() < SAME


class Company:
    """Random operations on the texts of a model beside the plain lists of tokens that they should hold."""

    def __init__(self, pool, name, kind, seed):
        self.kind = kind
        self.model = pool.model(name, kind, TEXTS)
        self.texts = {cache: [] for cache in pool.open(name, kind, count=2)}
        self.reference = pool.alone(name, kind)
        self.rng = np.random.default_rng(seed)
        self.compared = 0

    def join(self):
        if len(self.texts) < TEXTS:
            self.texts[self.model.open()] = []
        else:
            with pytest.raises(RuntimeError, match=f"room for {TEXTS} texts"):
                self.model.open()

    def leave(self):
        cache = self.any()
        if len(self.texts) > 1:
            del self.texts[cache]
            cache.close()

    def any(self):
        return list(self.texts)[int(self.rng.integers(len(self.texts)))]

    def prefill(self):
        cache = self.any()
        tokens = random_tokens(self.rng, int(self.rng.integers(1, 40)))
        if cache.length + len(tokens) < 180:
            cache.prefill(tokens)
            self.texts[cache] += tokens

    def rewind(self):
        cache = self.any()
        reached = cache.reusable(int(self.rng.integers(cache.length + 1)))
        cache.rewind(reached)
        del self.texts[cache][reached:]

    def step(self):
        facts = self.model.facts
        some = [cache for cache in self.texts if self.rng.random() < 0.7] or [self.any()]
        self.rng.shuffle(some)
        most = min(facts.max_width, facts.max_rows // len(some), 9)
        width = int(self.rng.integers(1, most + 1))
        trees = []
        for cache in some:
            n = width if facts.even else int(self.rng.integers(1, most + 1))
            parents = chain_parents(n)
            if facts.max_leaves > 1 and n > 3:
                parents[n // 2] = 0  # two leaves
            trees.append(Tree(cache, ints(*random_tokens(self.rng, n)), parents))
        if any(tree.cache.length + len(tree) > 200 for tree in trees):
            return
        logits = together(*trees)
        self.compare(trees, logits)
        for tree in trees:
            last = len(tree) - 1
            path = [0, *range(len(tree) // 2, last + 1)] if (tree.parents[1:] == 0).sum() > 1 else None
            rows = (path or list(range(len(tree))))[: int(self.rng.integers(1, len(tree) + 1))]
            tree.cache.keep(rows)
            self.texts[tree.cache] += tree.tokens[rows].tolist()

    def compare(self, trees, logits):
        at = int(self.rng.integers(len(trees)))
        tree, row = trees[at], len(trees[at]) - 1
        path = []
        while row >= 0:
            path.insert(0, row)
            row = int(tree.parents[row])
        for start in range(0, len(path), self.reference.max_width):
            part = path[start : start + self.reference.max_width]
            text = [*self.texts[tree.cache], *tree.tokens[path[:start]].tolist()]
            expected = rows_alone(self.reference, text, tree.tokens[part].tolist())
            assert agree(self.kind, logits[at][part], expected)
            self.compared += 1

    def run(self, operations):
        kinds = [self.join, self.leave, self.prefill, self.rewind, *[self.step] * 5]
        for _ in range(operations):
            kinds[int(self.rng.integers(len(kinds)))]()
            for cache, text in self.texts.items():
                assert cache.length == len(text)
        for cache in self.texts:
            cache.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["full", "sliding", "recurrent"])
@pytest.mark.parametrize("seed", range(2))
def test_texts_that_come_and_go_are_each_what_they_are_alone(pool, name, kind, seed):
    company = Company(pool, name, kind, seed)
    company.run(50)
    assert company.compared > 10


@pytest.mark.parametrize("kind", KINDS)
def test_facts(pool, kind):
    facts = pool.model("full", kind, TEXTS).facts
    assert (facts.n_ctx, facts.max_texts, facts.max_width, facts.max_rows) == (256, TEXTS, 64, 64)
    assert facts.even is (kind == "streams")
    assert facts.max_leaves == (1 if facts.even else 8)
    assert facts.extractable == Want.LOGITS | Want.HIDDEN
    plain = pool.model("recurrent", kind, TEXTS).facts
    assert (plain.max_width, plain.max_leaves, plain.max_rows) == (1, 1, 64)
    assert pool.model("full", kind, 1).facts.even is False
    many = pool.model("full", kind, 70, n_ubatch=32, n_batch=64).facts
    assert many.max_rows == 70  # each text has its sure token
    assert many.max_leaves == 1


def test_many_texts_have_fewer_leaves_each(pool):
    caches, alone = pool.open("full", "shared", 16, 16), pool.alone("full", "shared")
    facts = caches[0].model.facts
    assert (facts.max_leaves, facts.max_rows) == (4, 64)  # llama.cpp sets a row aside for each leaf of each
    trees = [Tree(cache, ints(5, 6, 7, 8 + i), ints(-1, 0, 0, 0)) for i, cache in enumerate(caches)]
    rows = together(*trees)
    for i in (0, 15):
        assert agree("shared", rows[i][[0, 3]], rows_alone(alone, [], [5, 8 + i]))
        caches[i].keep([0, 3])


def test_more_texts_than_llama_cpp_has_sequences(tiny_models):
    with pytest.raises(ModelError, match="at most 256 texts at once, not 300") as error:
        load(tiny_models["full"], STOCK, 300)
    assert "256 or fewer" in error.value.hint


@pytest.mark.parametrize("kind", KINDS)
def test_more_texts_than_rows_of_a_small_batch(pool, kind):
    caches, alone = pool.open("full", kind, 70, 70, n_ubatch=32, n_batch=64), pool.alone("full", kind)
    trees = [chain(cache, [5 + i]) for i, cache in enumerate(caches)]
    rows = together(*trees)
    keep_all(*trees)
    for i in (0, 33, 69):
        assert np.abs(rows[i] - rows_alone(alone, [], [5 + i])).max() < SAME
    # Between the first and the last text lie more rows than the batch has.
    far = [chain(caches[i], [9] * 30) for i in (0, 69)]
    rows = together(*far)
    keep_all(*far)
    assert np.abs(rows[1] - rows_alone(alone, [74], [9] * 30)).max() < SAME


def test_streams_of_one_width_and_cells_of_any(pool):
    first, second = pool.open("full", "streams", count=2)
    with pytest.raises(ValueError, match="the same width"):
        first.model.forward([chain(first, [5, 6]), chain(second, [7])])
    first, second = pool.open("full", "shared", count=2)
    first.prefill([9, 8])
    trees = chain(first, [5, 6, 7]), chain(second, [7])
    assert [len(rows) for rows in together(*trees)] == [3, 1]
    keep_all(*trees)
    assert (first.length, second.length) == (5, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_given_back_in_the_order_they_were_asked_in(pool, kind):
    caches, alone = pool.open("full", kind), pool.alone("full", kind)
    for i, cache in enumerate(caches):
        cache.prefill([10 + i, 20 + i])
    trees = [chain(caches[i], [30 + i, 40]) for i in (3, 0, 4)]  # with holes between the slots
    for i, rows in zip((3, 0, 4), together(*trees), strict=True):
        assert agree(kind, rows, rows_alone(alone, [10 + i, 20 + i], [30 + i, 40]))
    keep_all(*trees)
    # What filled the holes left no trace in the texts there.
    trees = [chain(cache, [50]) for cache in caches]
    for i, rows in enumerate(together(*trees)):
        text = [10 + i, 20 + i, *([30 + i, 40] if i in (0, 3, 4) else [])]
        assert agree(kind, rows, rows_alone(alone, text, [50]))
    keep_all(*trees)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_waits_for_keep_while_others_are_computed(pool, kind):
    caches, alone = pool.open("full", kind, count=3), pool.alone("full", kind)
    for cache in caches:
        cache.prefill([11, 12, 13])
    together(chain(caches[1], [21, 22, 23]))
    trees = chain(caches[0], [31, 32]), chain(caches[2], [33, 34])  # on both sides of it
    together(*trees)
    keep_all(*trees)
    caches[1].keep([0, 1])
    [rows] = together(chain(caches[1], [24]))
    caches[1].keep([0])
    assert agree(kind, rows, rows_alone(alone, [11, 12, 13, 21, 22], [24]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hole_in_a_text_that_is_full(pool, kind):
    caches, alone = pool.open("full", kind, count=3), pool.alone("full", kind)
    caches[1].prefill([7] * 255)
    trees = chain(caches[0], [31, 32]), chain(caches[2], [33, 34])
    rows = together(*trees)
    keep_all(*trees)
    assert np.abs(rows[1] - rows_alone(alone, [], [33, 34])).max() < SAME
    [rows] = together(chain(caches[1], [8]))
    caches[1].keep([0])
    assert agree(kind, rows, rows_alone(alone, [7] * 255, [8]))


@pytest.mark.parametrize("kind", KINDS)
def test_going_back_and_shifting_leave_the_others_alone(pool, kind):
    (first, second, third), alone = pool.open("full", kind, count=3), pool.alone("full", kind)
    rng = np.random.default_rng(4)
    text = random_tokens(rng, 60)
    for cache in (first, second, third):
        cache.prefill(text)
    first.rewind(20)
    second.shift(3, 30)
    assert [cache.length for cache in (first, second, third)] == [20, 30, 60]
    trees = [chain(cache, [9, 8]) for cache in (first, second, third)]
    rows = together(*trees)
    keep_all(*trees)
    assert agree(kind, rows[0], rows_alone(alone, text[:20], [9, 8]))
    assert agree(kind, rows[2], rows_alone(alone, text, [9, 8]))
    alone.rewind(0)
    alone.prefill(text)
    alone.shift(3, 30)
    [shifted] = together(chain(alone, [9, 8]))
    alone.keep([0])
    assert agree(kind, rows[1], shifted)
    second.rewind(0)
    with pytest.raises(RollbackError):
        second.rewind(1)
    [again] = together(chain(third, [7]))
    third.keep([0])
    assert agree(kind, again, rows_alone(alone, [*text, 9, 8], [7]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["full", "sliding"])
def test_a_call_that_fails_leaves_no_trace_in_any_text(pool, name, kind):
    caches, alone = pool.open(name, kind, count=3), pool.alone(name, kind)
    text = list(range(5, 45))
    for cache in caches:
        cache.prefill(text)
    with pytest.raises(ModelError, match="could not compute a batch"):
        together(chain(caches[0], [6, 7]), chain(caches[2], [8, 10**6]))
    assert [cache.length for cache in caches] == [40] * 3
    trees = [chain(cache, [50 + i]) for i, cache in enumerate(caches)]
    for i, rows in enumerate(together(*trees)):
        assert agree(kind, rows, rows_alone(alone, text, [50 + i]))
    keep_all(*trees)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["full", "sliding", "recurrent"])
def test_a_prompt_that_ends_early_leaves_the_others_alone(pool, name, kind):
    caches = pool.open(name, kind, TEXTS, 3, n_ubatch=32)
    alone = pool.alone(name, kind, n_ubatch=32)
    text = list(range(5, 45))

    def stop(done, _total):
        if done == 64:
            raise KeyboardInterrupt

    for cache in caches[::2]:
        cache.prefill(text)
    with pytest.raises(KeyboardInterrupt):
        caches[1].prefill([7] * 200, progress=stop)
    assert caches[1].length == 64
    with pytest.raises(ModelError):
        caches[1].prefill([10**6])
    texts = [text, [7] * 64, text]
    if name == "recurrent" and caches[1].length == 0:
        texts[1] = []  # not even what a failed call left can be taken back
    assert [cache.length for cache in caches] == list(map(len, texts))
    trees = [chain(cache, [9]) for cache in caches]
    for before, rows in zip(texts, together(*trees), strict=True):
        assert agree(kind, rows, rows_alone(alone, before, [9]))
    keep_all(*trees)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_call_of_several_texts_refuses(pool, kind):
    first, second = pool.open("full", kind, count=2)
    stranger = pool.alone("full", kind)
    model = first.model
    for trees, message in (
        ([chain(first, [5]), chain(first, [5])], "one tree a text"),
        ([chain(first, [5] * 33), chain(second, [5] * 33)], "64 tokens in all"),
        ([chain(first, [5]), chain(stranger, [5])], "not one of this model's"),
        ([chain(first, [5] * 65)], "1 to 64 tokens"),
        ([chain(first, [5, 6]), Tree(second, ints(5, 6), ints(-1, 1))], "parents come first"),
    ):
        with pytest.raises(ValueError, match=message):
            model.forward(trees)
    with pytest.raises(ValueError, match="of no layer"):
        model.forward([chain(first, [5])], Want.LOGITS | Want.HIDDEN)
    second.prefill([5] * 250)
    with pytest.raises(ContextFullError, match="256 tokens is full"):
        model.forward([chain(first, [5] * 7), chain(second, [5] * 7)])
    trees = chain(first, [5, 6]), chain(second, [7, 8])  # none of them waits for `keep`
    together(*trees)
    with pytest.raises(RuntimeError, match="not followed by keep"):
        model.forward(trees)
    keep_all(*trees)


@pytest.mark.parametrize("kind", KINDS)
def test_room_is_made_by_closing(pool, kind):
    caches, alone = pool.open("full", kind), pool.alone("full", kind)
    model = caches[0].model
    with pytest.raises(RuntimeError, match=f"room for {TEXTS} texts"):
        model.open()
    for cache in caches:
        cache.prefill([5, 6, 7])
    caches[2].close()
    for use in (
        lambda: together(chain(caches[2], [5])),
        lambda: caches[2].prefill([5]),
        lambda: caches[2].rewind(0),
    ):
        with pytest.raises((ValueError, RuntimeError), match=r"not one of this model's|closed"):
            use()
    newcomer = model.open()
    assert newcomer.length == 0
    newcomer.prefill([8, 9])
    caches[2].close()  # once more: its place is another's by now
    trees = chain(newcomer, [10]), chain(caches[4], [8])
    rows = together(*trees)
    assert agree(kind, rows[0], rows_alone(alone, [8, 9], [10]))
    assert agree(kind, rows[1], rows_alone(alone, [5, 6, 7], [8]))
    newcomer.close()  # between forward and keep
    trees[1].cache.keep([0])


@pytest.mark.parametrize("kernels", [SPECX, STOCK], ids=["streams", "shared"])
def test_texts_after_their_model_was_closed(tiny_models, kernels):
    model = load(tiny_models["full"], kernels, 2)
    caches = [model.open(), model.open()]
    caches[0].prefill([5, 6])
    model.close()
    for use in (lambda: together(chain(caches[0], [7])), lambda: caches[1].prefill([7]), model.open):
        with pytest.raises((ValueError, RuntimeError), match=r"not one of this model's|closed"):
            use()
    for cache in caches:
        cache.close()
    model.close()


@pytest.mark.parametrize("kernels", [SPECX, STOCK], ids=["streams", "shared"])
def test_texts_of_a_real_model(smollm2, kernels):
    options = {"type_k": "f16", "type_v": "f16", "flash_attn": "on"}
    company = load(smollm2, kernels, 4, **options)
    alone = load(smollm2, kernels, 1, **options).open()
    sentences = (
        "The keeper of the lighthouse counted seven ships before noon",
        "def area(width, height):\n    return",
        "Once upon a time",
    )
    texts = [
        company.vocab.tokenize(sentence.encode(), add_special=True, parse_special=False)
        for sentence in sentences
    ]
    caches = [company.open() for _ in range(4)]
    caches.pop(1).close()  # a hole
    for cache, text in zip(caches, texts, strict=True):
        cache.prefill(text[:-3])
    trees = [chain(cache, text[-3:]) for cache, text in zip(caches, texts, strict=True)]
    for text, rows in zip(texts, together(*trees), strict=True):
        expected = rows_alone(alone, text[:-3], text[-3:])
        if kernels is SPECX:
            np.testing.assert_array_equal(rows, expected)
        else:
            assert np.abs(rows - expected).mean() < 0.4
            assert np.abs(rows[:-1] - expected[1:]).mean() > 0.8
    keep_all(*trees)
    company.close()
    alone.model.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["full", "sliding"])
def test_what_one_text_has_read_another_takes_over(pool, name, kind):
    # Copied in a row and from a copy, while the first text is being written; then all go on their own ways.
    rng = np.random.default_rng(11)
    caches = pool.open(name, kind, n_ctx=512)
    text = random_tokens(rng, 40)
    caches[0].prefill(text)
    length = caches[0].copyable(33)
    if not length:
        assert (name, kind) == ("sliding", "shared")
        return
    assert length == 33
    caches[1].prefill(random_tokens(rng, 9))  # which is forgotten
    caches[1].copy(caches[0], 33)
    caches[2].copy(caches[1], 20)
    texts = [text, text[:33], text[:20]]
    for _ in range(4):
        trees = [chain(cache, random_tokens(rng, 3)) for cache in caches[:3]]
        rows = together(*trees)
        for i, tree in enumerate(trees):
            alone = rows_alone(pool.alone(name, kind, n_ctx=512), texts[i], tree.tokens.tolist())
            assert agree(kind, rows[i], alone)
            tree.cache.keep([0, 1])
            texts[i] = [*texts[i], *tree.tokens[:2].tolist()]
    assert [cache.length for cache in caches[:3]] == [len(text) for text in texts]
    caches[0].rewind(0)  # the others still have what was copied
    rest = [chain(cache, random_tokens(rng, 3)) for cache in caches[1:3]]
    for i, (tree, row) in enumerate(zip(rest, together(*rest), strict=True)):
        alone = rows_alone(pool.alone(name, kind, n_ctx=512), texts[1 + i], tree.tokens.tolist())
        assert agree(kind, row, alone)
        tree.cache.keep([0])


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_copied_is_refused(pool, kind):
    rng = np.random.default_rng(12)
    caches = pool.open("full", kind)
    caches[0].prefill(random_tokens(rng, 30))
    assert caches[0].copyable(99) == 30
    for source, length in ((caches[1], 30), (caches[0], 31), (caches[1], 1)):
        with pytest.raises(ValueError, match="copied"):
            caches[1].copy(source, length)
    caches[1].copy(caches[0], 0)
    assert caches[1].length == 0
    together(chain(caches[0], [5]))
    with pytest.raises(RuntimeError, match="keep"):
        caches[1].copy(caches[0], 30)
    caches[0].keep([0])
    plain = pool.open("recurrent", kind)
    plain[0].prefill(random_tokens(rng, 30))
    assert plain[0].copyable(30) == 0


RING = {"n_ctx": 1024, "n_ubatch": 64}  # the windowed layers of "sliding" have 256 cells then


@pytest.mark.parametrize("texts", [1, 3])
def test_windows_that_come_round_leave_no_trace_of_what_was_guessed(pool, texts):
    # Cells of a window are used round and round. What is guessed over the end of the ring and taken back
    # leaves the following tokens in other cells, and sums depend on their order.
    rng = np.random.default_rng(13)
    tokens = random_tokens(rng, 700)
    plain = pool.open("sliding", "streams", 1, 1, **RING)[0]
    plain.prefill(tokens[:100])
    expected = []
    for token in tokens[100:]:
        expected += together(chain(plain, [token]))
        plain.keep([0])
    caches = pool.open("sliding", "streams", texts, texts, **RING)
    cache, others, narrow = caches[-1], caches[:-1], 0
    for start in range(0, 100, 30):
        cache.prefill(tokens[start : min(start + 30, 100)])
    for number, other in enumerate(others):
        other.prefill(random_tokens(rng, 40 + number))
    for i, token in enumerate(tokens[100:]):
        assert cache.room <= 256
        width = int(rng.integers(1, 9))
        narrow += width > cache.room
        width = min(width, cache.room)
        trees = [chain(cache, [token, *[7] * (width - 1)])]
        if others and i % 3 == 0 and others[0].room >= width:
            trees.append(
                chain(others[0], [9] * width)
            )  # the one between them takes no part, and is filled up
        assert np.array_equal(together(*trees)[0][0], expected[i][0])
        for tree in trees:
            tree.cache.keep([0])
    assert narrow


def test_a_ring_is_not_cut_over_its_end(pool):
    caches = pool.open("sliding", "streams", 3, 3, **RING)
    rng = np.random.default_rng(14)
    tokens = random_tokens(rng, 400)
    caches[0].prefill(tokens[:300])
    assert [caches[0].reusable(length) for length in (300, 280, 256, 255, 0)] == [300, 280, 256, 0, 0]
    assert [caches[0].copyable(length) for length in (300, 280, 255)] == [300, 280, 0]
    caches[1].copy(caches[0], 280)
    caches[1].prefill(tokens[280:390])
    [rows] = together(chain(caches[1], tokens[390:393]))
    caches[1].keep([0])
    alone = pool.alone("sliding", "streams", **RING)
    assert np.array_equal(rows, rows_alone(alone, tokens[:390], tokens[390:393]))
