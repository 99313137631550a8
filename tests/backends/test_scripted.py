"""The scripted backend against a plain list of tokens."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from specx.backends.errors import ContextFullError, RollbackError
from specx.backends.scripted import ScriptedBackend, ScriptedVocab

V = 12


def tree(tokens, parents):
    return np.array(tokens, np.int32), np.array(parents, np.int32)


def forward(backend, tokens, parents):
    return backend.forward(*tree(tokens, parents))


class AgainstAList(RuleBasedStateMachine):
    """Random trees, keeps and rewinds; the model is a list, and a backend that only ever prefills."""

    def __init__(self):
        super().__init__()
        self.backend = ScriptedBackend(V, order=3, n_ctx=60, max_width=8, max_leaves=3)
        self.committed: list[int] = []
        self.tree: tuple[list[int], list[int]] | None = None

    @precondition(lambda self: self.tree is None)
    @rule(tokens=st.lists(st.integers(0, V - 1), max_size=20))
    def prefill(self, tokens):
        if len(self.committed) + len(tokens) > 60:
            with pytest.raises(ContextFullError):
                self.backend.prefill(tokens)
            return
        seen = []
        self.backend.prefill(
            tokens, rows=lambda ids, logits: seen.extend(zip(ids.tolist(), logits, strict=True))
        )
        assert [token for token, _ in seen] == tokens
        for i, (_, logits) in enumerate(seen):
            context = self.committed + tokens[: i + 1]
            np.testing.assert_array_equal(logits, self.backend.logits(context))
        self.committed += tokens

    @precondition(lambda self: self.tree is None)
    @rule(data=st.data(), n=st.integers(1, 8))
    def forward(self, data, n):
        tokens = data.draw(st.lists(st.integers(0, V - 1), min_size=n, max_size=n))
        parents = [-1, *(data.draw(st.integers(0, i)) for i in range(n - 1))]
        if n - len(set(parents[1:])) > 3:
            with pytest.raises(ValueError, match="leaves"):
                forward(self.backend, tokens, parents)
            return
        if len(self.committed) + n > 60:
            with pytest.raises(ContextFullError):
                forward(self.backend, tokens, parents)
            return
        output = forward(self.backend, tokens, parents)
        assert output.logits.shape == (n, V)
        paths = []
        for token, parent in zip(tokens, parents, strict=True):
            paths.append([*(paths[parent] if parent >= 0 else self.committed), token])
        for path, logits in zip(paths, output.logits, strict=True):
            np.testing.assert_array_equal(logits, self.backend.logits(path))
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
        self.backend.keep(rows)
        self.committed += [tokens[row] for row in rows]
        self.tree = None

    @precondition(lambda self: self.tree is not None)
    @rule()
    def misuse_before_keep(self):
        with pytest.raises(RuntimeError):
            forward(self.backend, [0], [-1])
        with pytest.raises(RuntimeError):
            self.backend.prefill([1])
        with pytest.raises(RuntimeError):
            self.backend.rewind(0)

    @precondition(lambda self: self.tree is None)
    @rule(length=st.integers(0, 60))
    def rewind(self, length):
        assert self.backend.reusable(length) == min(length, len(self.committed))
        if length > len(self.committed):
            with pytest.raises(RollbackError):
                self.backend.rewind(length)
            return
        self.backend.rewind(length)
        del self.committed[length:]

    @invariant()
    def same_tokens(self):
        assert self.backend.length == len(self.committed)
        assert list(self.backend.tokens) == self.committed


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(max_examples=60, stateful_step_count=30)


def test_logits_are_a_function_of_the_last_tokens():
    backend = ScriptedBackend(V, order=2)
    np.testing.assert_array_equal(backend.logits([5, 1, 2]), backend.logits([7, 7, 1, 2]))
    assert not np.array_equal(backend.logits([1, 2]), backend.logits([2, 1]))
    assert not np.array_equal(backend.logits([1, 2]), ScriptedBackend(V, order=2, seed=1).logits([1, 2]))
    np.testing.assert_array_equal(backend.logits([1, 2]), ScriptedBackend(V, order=2).logits([1, 2]))
    assert backend.logits([]).dtype == np.float32


def test_probabilities_are_the_softmax_of_the_logits():
    backend = ScriptedBackend(V, sharpness=3.0)
    law = backend.probabilities([1, 2])
    assert law.sum() == pytest.approx(1)
    logits = backend.logits([1, 2]).astype(np.float64)
    np.testing.assert_allclose(np.log(law[0] / law[5]), logits[0] - logits[5])
    np.testing.assert_allclose(ScriptedBackend(V, sharpness=0.0).probabilities([1]), 1 / V)


def test_a_script_is_recited():
    script = [4, 5, 6, 7, 4, 8]
    backend = ScriptedBackend.from_script(script, 0.9, vocab_size=V)
    text = [4, 5]
    for _ in range(10):
        law = backend.probabilities(text)
        assert law.max() == pytest.approx(0.9)
        assert law.sum() == pytest.approx(1)
        text.append(int(law.argmax()))
    assert text == [4, 5, 6, 7, 4, 8, 4, 5, 6, 7, 4, 8]
    assert backend.probabilities([11, 7]).argmax() == 4  # the longest known part of the context counts
    assert backend.probabilities([11, 11]).argmax() == 4  # nothing known: from the start
    certain = ScriptedBackend.from_script(script, 1.0, vocab_size=V).probabilities([5])
    assert certain.max() == 1


def test_rows_kept_must_be_a_path():
    backend = ScriptedBackend(V)
    with pytest.raises(RuntimeError):
        backend.keep([0])
    forward(backend, [1, 2, 3, 4], [-1, 0, 0, 1])
    for rows in ([], [1], [0, 3], [0, 1, 2], [0, 4], [0, -1], [0, 0]):
        with pytest.raises(ValueError, match=r"path|root"):
            backend.keep(rows)
    backend.keep([0, 1, 3])
    assert backend.tokens == (1, 2, 4)
    with pytest.raises(RuntimeError):
        backend.keep([0])


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
    backend = ScriptedBackend(V, max_width=8)
    with pytest.raises(ValueError, match=r"takes|root|parent|token"):
        forward(backend, tokens, parents)
    assert forward(backend, [1], [-1]).logits.shape == (1, V)


def test_output_is_borrowed_until_the_next_forward():
    backend = ScriptedBackend(V)
    first = forward(backend, [1], [-1])
    saved = first.logits.copy()
    backend.keep([0])
    np.testing.assert_array_equal(first.logits, saved)
    forward(backend, [2], [-1])
    assert not np.array_equal(first.logits, saved)


def test_a_model_that_cannot_take_tokens_back():
    backend = ScriptedBackend(V, can_rewind=False)
    assert backend.plain_reason
    assert (backend.max_width, backend.max_leaves) == (1, 1)
    backend.prefill([1, 2, 3])
    assert (backend.reusable(2), backend.reusable(3), backend.reusable(9)) == (0, 3, 3)
    with pytest.raises(RollbackError):
        backend.rewind(2)
    backend.rewind(3)
    backend.rewind(0)
    assert backend.length == 0


def test_progress_and_shift():
    backend = ScriptedBackend(V)
    seen = []
    backend.prefill(list(range(10)) * 15, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 150), (128, 150), (150, 150)]
    backend.rewind(8)
    backend.shift(1, 3)
    assert backend.tokens == (0, 4, 5, 6, 7)
    backend.close()
    backend.close()


def test_step_costs():
    backend = ScriptedBackend(V, step_costs={1: 0.0, 4: 30.0})
    start = time.perf_counter()
    forward(backend, [1, 2], [-1, 0])
    assert time.perf_counter() - start >= 0.029  # a sleep never ends early


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
