"""Heads of attention that begin by copying say what followed before, and nothing else of a head can."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from specx.drafters.train.batches import Batches, Rows  # noqa: E402
from specx.drafters.train.chains import measure_chains  # noqa: E402
from specx.drafters.train.head import Head  # noqa: E402
from specx.drafters.train.shape import HeadShape  # noqa: E402
from specx.drafters.train.start import LastLayer, start  # noqa: E402
from specx.drafters.train.states import Layout, States, StatesFile, StatesWriter  # noqa: E402

V, D = 24, 64
SHAPE = HeadShape((1, 2, 3), D, D, 5, 5, 32, D, V, 1e-5, 1e9, copying=3)
LAYOUT = Layout("target", SHAPE.target_layers, D, best=4)
ROWS = Rows(np.arange(V, dtype=np.int32), V)
HELD = range(64, 80)


@pytest.fixture(scope="module")
def embedding():
    torch.manual_seed(5)
    return torch.randn(V, D)


@pytest.fixture(scope="module")
def states(embedding, tmp_path_factory):
    """Texts in each of which other tokens follow each other, so that only the text itself tells which.

    What enters the last layer tells the token that comes, and less of the present one.
    """
    torch.manual_seed(8)
    turned = torch.linalg.qr(torch.randn(D, D)).Q
    path = tmp_path_factory.mktemp("copying") / "states"
    rng = np.random.default_rng(6)
    with StatesWriter(path, LAYOUT) as writer:
        for _ in range(80):
            follows = rng.permutation(V)
            tokens = [int(rng.integers(V))]
            for _ in range(100):
                tokens.append(int(follows[tokens[-1]]) if rng.random() < 0.9 else int(rng.integers(V)))
            now, ahead = torch.tensor(tokens[:-1]), torch.tensor(tokens[1:])
            x = embedding[ahead] + embedding[now] @ turned * 0.7
            features = torch.cat([embedding[now], embedding[now].roll(1, 1), x], 1)
            best = np.stack([(ahead.numpy() + i) % V for i in range(4)], 1).astype(np.int32)
            scores = np.tile(np.array([0, -5, -6, -7], np.float16), (100, 1))
            ids = np.array(tokens[:-1], np.int32)
            writer.append(States(ids, 1, features.numpy().astype(np.float16), best, scores))
    return StatesFile(path, LAYOUT)


def started(embedding, states, copying=3, **others):
    torch.manual_seed(7)
    head = Head(dataclasses.replace(SHAPE, copying=copying, **others), embedding, embedding)
    start(head, LastLayer(torch.ones(D)), states, range(64), ROWS)
    return head


def first_right(head, states):
    """Share of first drafts that are right, of texts that nothing was fitted on."""
    held = Batches(states, HELD, ROWS, seed=0)
    return measure_chains(head, held.each(held.windows), ROWS.ids, 2).to_json()["by_step"][0]


def test_what_followed_a_token_before_is_said_again(embedding, states):
    """Nine in ten tokens follow as before, where the text has had the present one."""
    assert first_right(started(embedding, states, copying=0), states) < 0.3
    assert first_right(started(embedding, states), states) > 0.5


def test_without_values_that_keep_their_place_nothing_is_copied(embedding, states):
    """Where the rotary embedding turns everything, no token is recognized."""
    head = started(embedding, states, rope_base=1.0)
    assert first_right(head, states) < 0.3


def test_of_texts_that_are_too_short_nothing_is_copied(embedding, states, tmp_path):
    path = tmp_path / "short"
    with StatesWriter(path, LAYOUT) as writer:
        for index in range(64):
            text = states[index]
            arrays = (each[:3] for each in (text.tokens, text.features, text.best, text.scores))
            tokens, *others = arrays
            writer.append(States(tokens, 1, *others))
    head = started(embedding, StatesFile(path, LAYOUT))
    assert all(torch.isfinite(weight).all() for weight in head.parameters())
    assert not head.attn_output[:, 64:].any()


def test_heads_that_copy_have_keys_of_their_own():
    for wrong in ({"heads": 10}, {"copying": 5}):
        with pytest.raises(ValueError, match="heads that copy"):
            dataclasses.replace(SHAPE, **wrong)
