"""What a head starts with is what least squares find, and says what the target says before it has learned."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from torch.nn import functional  # noqa: E402

from specx.drafters.train.batches import Batches, Rows  # noqa: E402
from specx.drafters.train.chains import measure_chains  # noqa: E402
from specx.drafters.train.head import Head  # noqa: E402
from specx.drafters.train.shape import HeadShape  # noqa: E402
from specx.drafters.train.start import LastLayer, start  # noqa: E402
from specx.drafters.train.states import Layout, States, StatesFile, StatesWriter  # noqa: E402

V, D, F = 24, 16, 32
SHAPE = HeadShape((1, 2, 3), D, D, 4, 4, 8, F, V, 1e-5, 1000.0)
LAYOUT = Layout("target", SHAPE.target_layers, D, best=4)
ROWS = Rows(np.arange(V, dtype=np.int32), V)


@pytest.fixture(scope="module")
def weights():
    """Embedding, output matrix, and the network of the last layer."""
    torch.manual_seed(5)
    ffn = (torch.ones(D), torch.randn(F, D) / 4, torch.randn(F, D) / 4, torch.randn(D, F) / 2)
    return torch.randn(V, D), torch.randn(V, D), LastLayer(torch.ones(D), ffn)


@pytest.fixture(scope="module")
def states(weights, tmp_path_factory):
    """Texts of a target whose last input is a linear map of the token and of half of the input before."""
    embedding, output, last = weights
    torch.manual_seed(6)
    mixing = torch.linalg.qr(torch.randn(D, D)).Q
    path = tmp_path_factory.mktemp("start") / "states"
    rng = np.random.default_rng(6)
    with StatesWriter(path, LAYOUT) as writer:
        for _ in range(80):
            token, x, tokens, features, best = int(rng.integers(V)), torch.zeros(D), [], [], []
            for _ in range(40):
                x = embedding[token] + mixing @ x * 0.5
                tokens.append(token)
                features.append(torch.cat([x.roll(1), -x, x]).numpy())
                y = functional.rms_norm(last.left(x[None], 1e-5), (D,))
                best.append((y @ output.T)[0].argsort(descending=True)[:4].numpy())
                token = int(best[-1][0]) if rng.random() < 0.8 else int(rng.integers(V))
            scores = np.tile(np.array([0, -3, -4, -5], np.float16), (40, 1))
            ids = np.array(tokens, np.int32), np.array(best, np.int32)
            writer.append(States(ids[0], 1, np.array(features, np.float16), ids[1], scores))
    return StatesFile(path, LAYOUT)


def a_head(weights):
    torch.manual_seed(7)
    return Head(SHAPE, weights[0], weights[1])


def first_right(head, states):
    """Share of first drafts that are right, of texts that nothing was fitted on."""
    held = Batches(states, range(64, 80), ROWS, seed=0)
    return measure_chains(head, held.each(held.windows), ROWS.ids, 2).to_json()["by_step"][0]


def test_a_head_says_what_the_target_says_before_it_has_learned(weights, states):
    head = a_head(weights)
    random = first_right(head, states)
    start(head, weights[2], states, range(64), ROWS)
    assert random < 0.2
    assert first_right(head, states) > 0.5


def test_a_network_that_tells_nothing_is_not_taken_over(weights, states):
    norm, gate, up, down = weights[2].ffn
    wrong = LastLayer(weights[2].output_norm, (norm, gate, up.flip(0), down * 4))
    head = a_head(weights)
    gate_before = head.ffn_gate.detach().clone()
    start(head, wrong, states, range(64), ROWS)
    assert torch.equal(head.ffn_gate, gate_before)
    start(head, weights[2], states, range(64), ROWS)
    assert torch.equal(head.ffn_gate, gate)


def test_a_start_is_the_same_again(weights, states):
    found = []
    for _ in range(2):
        head = a_head(weights)
        start(head, weights[2], states, range(64), ROWS)
        found.append({name: weight.detach().clone() for name, weight in head.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
