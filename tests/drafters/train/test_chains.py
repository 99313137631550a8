"""Chains side by side are what one chain after the other gives, and decoding is counted as it goes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from specx.drafters.train.batches import Batch  # noqa: E402
from specx.drafters.train.chains import Acceptance, deviations, measure_chains, right_lengths  # noqa: E402
from specx.drafters.train.head import Head, Keys  # noqa: E402
from specx.drafters.train.shape import HeadShape  # noqa: E402

V, T, DEPTH = 12, 14, 5
IDS = np.array([0, 1, 2, 3, 5, 7, 8, 9], np.int32)
SHAPE = HeadShape((1, 2, 3), 8, 8, 4, 2, 4, 16, len(IDS), 1e-5, 100.0)


def a_head(seed):
    torch.manual_seed(seed)
    return Head(SHAPE, torch.randn(V, 8), torch.randn(len(IDS), 8))


def a_batch(tokens, chosen_from=0):
    tokens = np.asarray(tokens, np.int64)[None]
    features = np.random.default_rng(5).standard_normal((1, tokens.shape[1], 24)).astype(np.float32)
    rows = np.zeros((*tokens.shape, 1), np.int64)
    weights = np.ones(tokens.shape, np.float32)
    chosen = (np.arange(1, tokens.shape[1] + 1) >= chosen_from) & (
        np.arange(tokens.shape[1]) < tokens.shape[1] - 1
    )
    return Batch(tokens, features, rows, np.ones(rows.shape, np.float32), weights, chosen[None])


@torch.no_grad()
def drafted(head, batch, start, depth):
    """The tokens that the head drafts from one position, fed with its own, all computed anew for each."""
    tokens = [int(token) for token in batch.tokens[0, : start + 2]]
    known = Keys()
    hidden = head.encode(torch.from_numpy(batch.features[:, : start + 1]))
    state = head.step(torch.tensor([tokens[1:]]), hidden, known, torch.arange(start + 1))[:, -1:]
    found = [int(IDS[head.logits(state)[0, 0].argmax()])]
    for _ in range(depth - 1):
        known.keys[1:] = [key[:, :, -1:] for key in known.keys[1:]]
        state = head.step(torch.tensor([found[-1:]]), state, known, torch.tensor([start]))
        found.append(int(IDS[head.logits(state)[0, 0].argmax()]))
    return found


def follows(head, first, length):
    """A text that goes as the head drafts for a while, so that chains are right somewhere."""
    tokens = list(first)
    while len(tokens) < length:
        batch = a_batch(tokens + [0] * (length - len(tokens)))
        tokens += drafted(head, batch, len(tokens) - 2, 1)
        if len(tokens) % 4 == 0:
            tokens[-1] = int(IDS[(tokens[-1] + 3) % len(IDS)])
    return tokens


@pytest.mark.parametrize("seed", range(4))
def test_right_lengths_are_those_of_single_chains(seed):
    head = a_head(seed)
    batch = a_batch(follows(head, [3, 7, 1], T))
    lengths = right_lengths(head, batch, IDS, DEPTH)[0]
    text = batch.tokens[0].tolist()
    expected = []
    for start in range(T - 1):
        right = 0
        for mine, theirs in zip(drafted(head, batch, start, DEPTH), text[start + 2 :], strict=False):
            if mine != theirs:
                break
            right += 1
        expected.append(right)
    assert lengths.tolist() == expected
    assert max(expected) >= 1


def test_decoding_is_counted_step_by_step(monkeypatch):
    lengths = np.array([[0, 2, 9, 9, 1, 0, 9, 2, 9]])
    monkeypatch.setattr("specx.drafters.train.chains.right_lengths", lambda *_: lengths)
    found = measure_chains(None, [a_batch(range(10), chosen_from=2)], IDS, depth=3)
    # from 1 two are right, then from 4 one, from 6 three within the text, whose end is not known
    assert (found.steps, found.tokens) == (2, 5)
    assert found.reached.tolist() == [2, 2, 1]
    assert found.right.tolist() == [2, 1, 0]
    assert found.length == 2.5


def counted(lengths):
    return Acceptance(0, 0, np.zeros(8, np.int64), np.zeros(8, np.int64), np.asarray(lengths, np.int64))


def test_how_surely_chains_are_longer():
    chance = np.random.default_rng(3)
    before = chance.integers(0, 4, 2000)
    same = before + chance.integers(-1, 2, 2000)
    assert abs(deviations(counted(before), counted(same))) < 2.5
    longer = before + (chance.random(2000) < 0.1)
    assert deviations(counted(before), counted(longer)) > 5
    assert deviations(counted(longer), counted(before)) < -5
    assert deviations(counted(before), counted(before)) == 0
    assert deviations(counted(before[:40]), counted(before[:40] + 1)) == 0  # of one block nothing follows
    assert deviations(counted(before), counted(before + 1)) == np.inf
