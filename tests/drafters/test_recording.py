"""What is recorded of a text is what the target computed of it, wherever the text went."""

from __future__ import annotations

import numpy as np
import pytest

from specx.backends.base import Output
from specx.backends.scripted import ScriptedModel
from specx.drafters.base import Draft, Text, Verified
from specx.drafters.recording import LEAST, RECORDED, Recorder

V, LAYERS = 64, (1, 4, 6)


@pytest.fixture
def target():
    target = ScriptedModel(V, order=2, seed=3)
    target.extract(LAYERS)
    return target


def states_of(target, tokens, start, end):
    return np.stack([target.hidden(tokens[: i + 1]) for i in range(start, end)])


def grow(target, text, record, tokens):
    """A step that emits `tokens`, which were drafted but for the last, beside branches that were wrong."""
    at = len(text.tokens) - 1
    wrong = [(token + 1) % V for token in tokens[:-1]]
    drafted = [token for pair in zip(wrong, tokens[:-1], strict=True) for token in pair]
    parents = [2 * ((i // 2) - 1) + 1 if i >= 2 else -1 for i in range(len(drafted))]
    draft = Draft(
        np.array(drafted, np.int32), np.array(parents, np.int32), np.ones(len(drafted), np.float32),
        np.zeros(len(drafted), np.uint8),
    )  # fmt: skip
    paths = [text.tokens]
    for token, parent in zip(drafted, parents, strict=True):
        paths.append([*paths[parent + 1], token])
    logits = np.stack([target.logits(path) for path in paths])
    hidden = np.stack([target.hidden(path) for path in paths])
    text.tokens.extend(tokens)
    seen = Verified(tokens, draft, Output(logits, hidden))
    record.observe(at, seen, seen.rows())


def check(target, text, states, begin, chosen):
    n = len(states.tokens)
    assert states.tokens.tolist() == text.tokens[begin : begin + n] and states.start == chosen - begin
    np.testing.assert_array_equal(
        states.features, states_of(target, text.tokens, begin, begin + n).astype(np.float16)
    )
    for i in range(n):
        logits = target.logits(text.tokens[: begin + i + 1])
        if begin + i < chosen - 1:
            assert np.isneginf(states.scores[i]).all()
            continue
        best = np.argsort(-logits, kind="stable")[:RECORDED]
        np.testing.assert_array_equal(states.best[i], best)
        np.testing.assert_allclose(states.scores[i], logits[best] - logits[best[0]], atol=2e-3)


def test_a_text_with_its_prompt(target):
    text = Text(list(range(10, 22)))
    recorder = Recorder(1, target.hidden([1]).size)
    record = recorder.follow(text)
    record.read(0, states_of(target, text.tokens, 0, 5))
    record.read(5, states_of(target, text.tokens, 5, 11))
    for tokens in ([3], [4, 5, 6], [7, 8]):
        grow(target, text, record, tokens)
    assert recorder.take() == []
    record.finish()
    (states,) = recorder.take()
    assert len(states.tokens) == 11 + 6
    check(target, text, states, 0, 12)
    assert recorder.take() == []


def test_a_gap_begins_another_stretch_and_little_is_left_out(target):
    text = Text(list(range(10, 22)))
    recorder = Recorder(1, target.hidden([1]).size)
    record = recorder.follow(text)
    record.read(2, states_of(target, text.tokens, 2, 11))
    grow(target, text, record, [3, 9])
    text.tokens += [4, 5]  # a step of which no states were given
    for token in range(LEAST):
        grow(target, text, record, [token])
    record.finish()
    first, second = recorder.take()
    assert len(first.tokens) == 11 and len(second.tokens) == LEAST
    check(target, text, first, 2, 12)
    check(target, text, second, 15, 15)
    short = recorder.follow(Text([1, 2, 3]))
    grow(target, short._text, short, [3])
    short.finish()
    given = recorder.follow(Text(list(range(30))))
    given.read(0, states_of(target, list(range(30)), 0, 29))
    given.finish()
    assert recorder.take() == []  # too short, and nothing that the target chose


def test_states_are_cut_and_scaled_and_texts_are_bounded(target):
    width = target.hidden([1]).size
    recorder = Recorder(1, width - 1, scale=4.0, most=42)
    texts = [Text(list(range(20))) for _ in range(4)]
    for text in texts:
        record = recorder.follow(text)
        record.read(0, states_of(target, text.tokens, 0, 19))
        grow(target, text, record, [3, 9])
        record.finish()
    held = recorder.take()
    assert [len(states.tokens) for states in held] == [21, 21]
    long = Text(list(range(20)))
    record = recorder.follow(long)
    record.read(0, states_of(target, long.tokens, 0, 19))
    for token in range(30):
        grow(target, long, record, [token])
    record.finish()
    assert [(len(states.tokens), states.start) for states in recorder.take()] == [(42, 20)]
    expected = (states_of(target, texts[0].tokens, 0, 21)[:, :-1] / 4.0).astype(np.float16)
    np.testing.assert_array_equal(held[0].features, expected)
