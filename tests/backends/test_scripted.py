"""The scripted model against plain lists of tokens, one text at a time and several."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from specx.backends.base import Tree, Want
from specx.backends.errors import ContextFullError, RollbackError
from specx.backends.scripted import HIDDEN_SIZE, ScriptedModel, ScriptedVocab, SimulatedClock

V = 12


def tree(tokens, parents):
    return np.array(tokens, np.int32), np.array(parents, np.int32)


def forward(cache, tokens, parents):
    return cache.forward(*tree(tokens, parents))


def open_text(*arguments, **options):
    """Room for a text of a model of its own."""
    return ScriptedModel(*arguments, **options).open()


class AgainstAList(RuleBasedStateMachine):
    """Random trees, keeps and rewinds of a text, which is a list besides."""

    def __init__(self):
        super().__init__()
        self.model = ScriptedModel(V, order=3, n_ctx=60, max_width=8, max_leaves=3)
        self.cache = self.model.open()
        self.committed: list[int] = []
        self.tree: tuple[list[int], list[int]] | None = None

    @precondition(lambda self: self.tree is None)
    @rule(tokens=st.lists(st.integers(0, V - 1), max_size=20))
    def prefill(self, tokens):
        if len(self.committed) + len(tokens) > 60:
            with pytest.raises(ContextFullError):
                self.cache.prefill(tokens)
            return
        seen = []
        self.cache.prefill(
            tokens, rows=lambda ids, logits: seen.extend(zip(ids.tolist(), logits, strict=True))
        )
        assert [token for token, _ in seen] == tokens
        for i, (_, logits) in enumerate(seen):
            context = self.committed + tokens[: i + 1]
            np.testing.assert_array_equal(logits, self.model.logits(context))
        self.committed += tokens

    @precondition(lambda self: self.tree is None)
    @rule(data=st.data(), n=st.integers(1, 8))
    def forward(self, data, n):
        tokens = data.draw(st.lists(st.integers(0, V - 1), min_size=n, max_size=n))
        parents = [-1, *(data.draw(st.integers(0, i)) for i in range(n - 1))]
        if n - len(set(parents[1:])) > 3:
            with pytest.raises(ValueError, match="leaves"):
                forward(self.cache, tokens, parents)
            return
        if len(self.committed) + n > 60:
            with pytest.raises(ContextFullError):
                forward(self.cache, tokens, parents)
            return
        output = forward(self.cache, tokens, parents)
        assert output.logits.shape == (n, V)
        paths = []
        for token, parent in zip(tokens, parents, strict=True):
            paths.append([*(paths[parent] if parent >= 0 else self.committed), token])
        for path, logits in zip(paths, output.logits, strict=True):
            np.testing.assert_array_equal(logits, self.model.logits(path))
        self.tree = (tokens, parents)

    @precondition(lambda self: self.tree is not None)
    @rule(data=st.data())
    def keep(self, data):
        tokens, parents = self.tree
        rows = [0]
        while data.draw(st.booleans()):
            below = [row for row, parent in enumerate(parents) if parent == rows[-1]]
            if not below:
                break
            rows.append(data.draw(st.sampled_from(below)))
        self.cache.keep(rows)
        self.committed += [tokens[row] for row in rows]
        self.tree = None

    @precondition(lambda self: self.tree is not None)
    @rule()
    def misuse_before_keep(self):
        with pytest.raises(RuntimeError):
            forward(self.cache, [0], [-1])
        with pytest.raises(RuntimeError):
            self.cache.prefill([1])
        with pytest.raises(RuntimeError):
            self.cache.rewind(0)

    @precondition(lambda self: self.tree is None)
    @rule(length=st.integers(0, 60))
    def rewind(self, length):
        assert self.cache.reusable(length) == min(length, len(self.committed))
        if length > len(self.committed):
            with pytest.raises(RollbackError):
                self.cache.rewind(length)
            return
        self.cache.rewind(length)
        del self.committed[length:]

    @invariant()
    def same_tokens(self):
        assert self.cache.length == len(self.committed)
        assert list(self.cache.tokens) == self.committed


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(max_examples=60, stateful_step_count=30)


def test_logits_are_a_function_of_the_last_tokens():
    model = ScriptedModel(V, order=2)
    np.testing.assert_array_equal(model.logits([5, 1, 2]), model.logits([7, 7, 1, 2]))
    assert not np.array_equal(model.logits([1, 2]), model.logits([2, 1]))
    assert not np.array_equal(model.logits([1, 2]), ScriptedModel(V, order=2, seed=1).logits([1, 2]))
    np.testing.assert_array_equal(model.logits([1, 2]), ScriptedModel(V, order=2).logits([1, 2]))
    assert model.logits([]).dtype == np.float32


def test_probabilities_are_the_softmax_of_the_logits():
    model = ScriptedModel(V, sharpness=3.0)
    law = model.probabilities([1, 2])
    assert law.sum() == pytest.approx(1)
    logits = model.logits([1, 2]).astype(np.float64)
    np.testing.assert_allclose(np.log(law[0] / law[5]), logits[0] - logits[5])
    np.testing.assert_allclose(ScriptedModel(V, sharpness=0.0).probabilities([1]), 1 / V)


def test_a_script_is_recited():
    script = [4, 5, 6, 7, 4, 8]
    model = ScriptedModel(V, script=script, peak=0.9)
    text = [4, 5]
    for _ in range(10):
        law = model.probabilities(text)
        assert law.max() == pytest.approx(0.9)
        assert law.sum() == pytest.approx(1)
        text.append(int(law.argmax()))
    assert text == [4, 5, 6, 7, 4, 8, 4, 5, 6, 7, 4, 8]
    assert model.probabilities([11, 7]).argmax() == 4  # the longest known part of the context counts
    assert model.probabilities([11, 11]).argmax() == 4  # nothing known: from the start
    certain = ScriptedModel(V, script=script, peak=1.0).probabilities([5])
    assert certain.max() == 1


def test_rows_kept_must_be_a_path():
    cache = open_text(V)
    with pytest.raises(RuntimeError):
        cache.keep([0])
    forward(cache, [1, 2, 3, 4], [-1, 0, 0, 1])
    for rows in ([], [1], [0, 3], [0, 1, 2], [0, 4], [0, -1], [0, 0]):
        with pytest.raises(ValueError, match=r"path|root"):
            cache.keep(rows)
    cache.keep([0, 1, 3])
    assert cache.tokens == (1, 2, 4)
    with pytest.raises(RuntimeError):
        cache.keep([0])


@pytest.mark.parametrize(
    ("tokens", "parents"),
    [
        ([], []),
        ([1] * 9, range(-1, 8)),
        ([1, 2], [-1]),
        ([1], [0]),
        ([1, 2], [-1, 1]),
        ([1, 2], [-1, -1]),
        ([V], [-1]),
    ],
)
def test_what_is_not_a_tree_is_refused(tokens, parents):
    cache = open_text(V, max_width=8)
    with pytest.raises(ValueError, match=r"takes|root|parent|token"):
        forward(cache, tokens, parents)
    assert forward(cache, [1], [-1]).logits.shape == (1, V)


def test_output_is_borrowed_until_the_next_forward():
    cache = open_text(V)
    first = forward(cache, [1], [-1])
    saved = first.logits.copy()
    cache.keep([0])
    np.testing.assert_array_equal(first.logits, saved)
    forward(cache, [2], [-1])
    assert not np.array_equal(first.logits, saved)


def test_a_model_that_cannot_take_tokens_back():
    cache = open_text(V, can_rewind=False)
    facts = cache.model.facts
    assert facts.plain_reason
    assert (facts.max_width, facts.max_leaves) == (1, 1)
    cache.prefill([1, 2, 3])
    assert (cache.reusable(2), cache.reusable(3), cache.reusable(9)) == (0, 3, 3)
    with pytest.raises(RollbackError):
        cache.rewind(2)
    cache.rewind(3)
    cache.rewind(0)
    assert cache.length == 0


def test_progress_and_shift():
    cache = open_text(V)
    seen = []
    cache.prefill(list(range(10)) * 15, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 150), (128, 150), (150, 150)]
    cache.rewind(8)
    cache.shift(1, 3)
    assert cache.tokens == (0, 4, 5, 6, 7)
    cache.close()
    cache.close()


def test_step_costs():
    cache = open_text(V, step_costs={1: 0.0, 4: 30.0})
    start = time.perf_counter()
    forward(cache, [1, 2], [-1, 0])
    assert time.perf_counter() - start >= 0.029  # a sleep never ends early


def test_step_costs_on_a_clock_that_passes_when_somebody_waits():
    clock = SimulatedClock()
    model = ScriptedModel(V, step_costs={1: 2.0, 2: 3.0, 8: 5.0}, clock=clock)
    caches = [model.open() for _ in range(3)]
    model.forward([Tree(cache, *tree([1], [-1])) for cache in caches[:2]])
    assert clock() == pytest.approx(3e-3)  # of all its rows together
    for cache in caches[:2]:
        cache.keep([0])
    model.forward([Tree(cache, *tree([1, 2], [-1, 0])) for cache in caches])
    assert clock() == pytest.approx(8e-3)


def test_vocabulary():
    vocab = ScriptedVocab(400)
    assert vocab.size == 400
    assert vocab.eog == {0}
    assert vocab.piece(0) == b""
    assert vocab.piece(0, special=True) == b"<eog>"
    pieces = [vocab.piece(token) for token in range(1, 400)]
    assert len(set(pieces)) == 399
    text = "the cat sat on the mat.\n caf\xe9 \U0001f600 \u4e2d <eog>"
    tokens = vocab.tokenize(text.encode(), add_special=True, parse_special=False)
    assert b"".join(map(vocab.piece, tokens)).decode() == text
    assert vocab.tokenize(b" the cat", add_special=False, parse_special=False) == [
        pieces.index(b" the") + 1,
        pieces.index(b" cat") + 1,
    ]
    assert vocab.tokenize(b"<eog>e", add_special=False, parse_special=True) == [0, pieces.index(b"e") + 1]
    # A character split over tokens, for streaming.
    emoji = vocab.tokenize("\U0001f600".encode(), add_special=False, parse_special=False)
    assert len(emoji) == 2
    with pytest.raises(ValueError, match="0x61"):
        ScriptedVocab(2).tokenize(b"a", add_special=False, parse_special=False)
    with pytest.raises(ValueError, match="no token"):
        vocab.piece(400)
    assert ScriptedVocab(400).fingerprint == vocab.fingerprint != ScriptedVocab(399).fingerprint


class SeveralTexts(RuleBasedStateMachine):
    """Texts that join, leave, and are computed together or apart: each is a list of its own."""

    def __init__(self):
        super().__init__()
        self.model = ScriptedModel(V, order=3, n_ctx=40, max_width=6, max_leaves=3, max_texts=3, max_rows=10)
        self.texts = {}

    @rule()
    def join(self):
        if len(self.texts) == 3:
            with pytest.raises(RuntimeError, match="room for 3 texts"):
                self.model.open()
            return
        cache = self.model.open()
        assert cache.length == 0 and cache.model is self.model
        self.texts[cache] = []

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def leave(self, data):
        cache = data.draw(st.sampled_from(list(self.texts)))
        del self.texts[cache]
        cache.close()
        cache.close()
        with pytest.raises(ValueError, match="not one of this model's"):
            forward(cache, [1], [-1])

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, V - 1), max_size=8))
    def prefill(self, data, tokens):
        cache = data.draw(st.sampled_from(list(self.texts)))
        if len(self.texts[cache]) + len(tokens) <= 40:
            cache.prefill(tokens)
            self.texts[cache] += tokens

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def go_back(self, data):
        cache = data.draw(st.sampled_from(list(self.texts)))
        length = data.draw(st.integers(0, cache.length))
        if data.draw(st.booleans()):
            cache.rewind(length)
            del self.texts[cache][length:]
        else:
            cache.shift(length, 2)
            del self.texts[cache][length : length + 2]

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def step(self, data):
        caches = data.draw(st.lists(st.sampled_from(list(self.texts)), min_size=1, unique_by=id))
        trees = []
        for cache in caches:
            n = data.draw(st.integers(1, 4))
            tokens = data.draw(st.lists(st.integers(0, V - 1), min_size=n, max_size=n))
            parents = [-1, *(data.draw(st.integers(max(0, i - 1), i)) for i in range(n - 1))]
            trees.append(Tree(cache, *tree(tokens, parents)))
        if sum(map(len, trees)) > 10:
            with pytest.raises(ValueError, match="10 tokens in all"):
                self.model.forward(trees)
            return
        if any(cache.length + len(t) > 40 for cache, t in zip(caches, trees, strict=True)):
            with pytest.raises(ContextFullError):
                self.model.forward(trees)
            return  # nothing is to be kept of any of them
        self.model.extract([1])
        outputs = self.model.forward(trees, Want.LOGITS | Want.HIDDEN)
        for t, output in zip(trees, outputs, strict=True):
            text, paths = self.texts[t.cache], []
            for token, parent in zip(t.tokens.tolist(), t.parents.tolist(), strict=True):
                paths.append([*(paths[parent] if parent >= 0 else text), token])
            for path, logits, hidden in zip(paths, output.logits, output.hidden, strict=True):
                np.testing.assert_array_equal(logits, self.model.logits(path))
                np.testing.assert_array_equal(hidden, self.model.hidden(path))
            t.cache.keep([0])
            text.append(int(t.tokens[0]))

    @invariant()
    def same_tokens(self):
        for cache, text in self.texts.items():
            assert list(cache.tokens) == text


TestSeveralTexts = SeveralTexts.TestCase
TestSeveralTexts.settings = settings(max_examples=60, stateful_step_count=20)


def test_what_a_call_of_several_texts_refuses():
    model = ScriptedModel(V, max_width=4, max_texts=3, max_rows=5)
    first, second = model.open(), model.open()
    stranger = open_text(V)

    def trees(*pairs):
        return [Tree(cache, *tree([1] * n, range(-1, n - 1))) for cache, n in pairs]

    with pytest.raises(ValueError, match="5 tokens in all"):
        model.forward(trees((first, 3), (second, 3)))
    with pytest.raises(ValueError, match="one tree a text"):
        model.forward(trees((first, 1), (first, 1)))
    with pytest.raises(ValueError, match="not one of this model's"):
        model.forward(trees((first, 1), (stranger, 1)))
    with pytest.raises(ValueError, match="1 to 4 tokens"):
        model.forward(trees((first, 5)))
    # No text waits for a `keep` after a call that was refused.
    outputs = model.forward(trees((first, 3), (second, 2)))
    assert [output.logits.shape for output in outputs] == [(3, V), (2, V)]
    with pytest.raises(RuntimeError, match="not followed by keep"):
        model.forward(trees((second, 1)))
    first.keep([0, 1])
    first.prefill([3])  # the other one still waits
    second.keep([0])
    assert (first.length, second.length) == (3, 1)
    assert model.forward([]) == []


def test_even_models_take_trees_of_one_width():
    model = ScriptedModel(V, even=True)
    caches = [model.open() for _ in range(2)]
    with pytest.raises(ValueError, match="the same width"):
        model.forward([Tree(c, *tree([1] * n, range(-1, n - 1))) for n, c in enumerate(caches, 1)])
    outputs = model.forward([Tree(c, *tree([4, 5], [-1, 0])) for c in caches])
    np.testing.assert_array_equal(outputs[0].logits, outputs[1].logits)
    assert model.facts.even


def test_facts_follow_from_the_arguments():
    facts = ScriptedModel(V, n_ctx=99, max_width=7, max_leaves=2, max_texts=12, max_rows=8).facts
    assert (facts.n_ctx, facts.max_width, facts.max_leaves, facts.max_texts) == (99, 7, 2, 12)
    assert facts.max_rows == 12  # each text has its sure token
    assert facts.extractable == Want.LOGITS | Want.HIDDEN and not facts.even
    cache = open_text(V, n_ctx=99, max_width=7, max_leaves=2)
    assert (cache.n_ctx, cache.max_width, cache.max_leaves) == (99, 7, 2)


def test_hidden_rows_are_given_when_they_are_asked_for():
    model = ScriptedModel(V, order=2)
    cache = model.open()
    assert forward(cache, [1, 2], [-1, 0]).hidden is None
    cache.keep([0])
    for wanted in (
        lambda: model.forward([Tree(cache, *tree([5], [-1]))], Want.LOGITS | Want.HIDDEN),
        lambda: cache.prefill([5], features=lambda *_: None),
    ):
        with pytest.raises(ValueError, match="of no layer"):
            wanted()
    assert cache.length == 1
    model.extract([3])
    with pytest.raises(ValueError, match="given already"):
        model.extract([3, 4])
    with pytest.raises(ValueError, match="no layers"):
        model.extract([8])
    [output] = model.forward([Tree(cache, *tree([5, 6, 7], [-1, 0, 0]))], Want.LOGITS | Want.HIDDEN)
    assert output.hidden.shape == (3, HIDDEN_SIZE) and output.hidden.dtype == np.float32
    np.testing.assert_array_equal(output.hidden[2], model.hidden([9, 9, 5, 7]))  # of the last two tokens
    assert not np.array_equal(output.hidden[1], output.hidden[2])
    cache.keep([0])
    model.extract([])
    model.extract([0, 3])
    seen = []
    cache.prefill([5] * 70, features=lambda tokens, rows: seen.append((len(tokens), rows.copy())))
    assert [n for n, _ in seen] == [64, 6]  # in pieces, in order
    np.testing.assert_array_equal(seen[1][1][-1], model.hidden([5, 5]))
    assert seen[0][1].shape == (64, 2 * HIDDEN_SIZE)


def test_room_is_made_by_closing():
    model = ScriptedModel(V, max_texts=2)
    first, second = model.open(), model.open()
    first.prefill([1, 2])
    second.prefill([3])
    first.close()
    third = model.open()
    assert (third.length, second.tokens) == (0, (3,))
    first.close()  # once more: the place belongs to another text by now
    np.testing.assert_array_equal(forward(third, [4], [-1]).logits[0], model.logits([4]))
    third.close()  # between forward and keep
    assert model.open().length == 0
    for use in (lambda: third.prefill([1]), lambda: third.rewind(0), lambda: third.shift(0, 0)):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    model.close()
    for use in (lambda: second.prefill([1]), model.open):
        with pytest.raises(RuntimeError, match="closed"):
            use()
