"""What is learned, that it is the same again, and that an interruption changes nothing."""

from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from specx.backends.errors import FileError, SpecxError  # noqa: E402
from specx.drafters.train.batches import BATCH, BATCH_ON_GPU, Batches, Rows  # noqa: E402
from specx.drafters.train.checkpoint import before, load_checkpoint, save_checkpoint  # noqa: E402
from specx.drafters.train.head import Head, Keys  # noqa: E402
from specx.drafters.train.loop import Learning, Trainer, batch_loss  # noqa: E402
from specx.drafters.train.memory import batch_that_fits, training_bytes  # noqa: E402
from specx.drafters.train.run import PATIENCE, Limits, Training, best_weights  # noqa: E402
from specx.drafters.train.shape import HeadShape  # noqa: E402
from specx.drafters.train.states import Layout, States, StatesFile, StatesWriter  # noqa: E402

V, D = 40, 16
SHAPE = HeadShape((1, 2, 3), D, D, 4, 2, 4, 32, 32, 1e-5, 1000.0)
LAYOUT = Layout("target", SHAPE.target_layers, D, best=4)
ROWS = Rows(np.arange(32, dtype=np.int32), V)


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """Texts in which the next token is the one before plus its place modulo three."""
    path = tmp_path_factory.mktemp("loop") / "states"
    rng = np.random.default_rng(2)
    table = rng.standard_normal((V, 3 * D)).astype(np.float16)
    with StatesWriter(path, LAYOUT) as writer:
        for _ in range(32):
            tokens = (rng.integers(32) + np.cumsum(np.arange(30) % 3)) % 32
            following = (tokens + np.arange(1, 31) % 3) % 32
            best = (following[:, None] + np.arange(4) * 7) % 32
            scores = np.tile(np.array([0, -4, -5, -6], np.float16), (30, 1))
            writer.append(States(tokens.astype(np.int32), 4, table[tokens], best.astype(np.int32), scores))
    return StatesFile(path, LAYOUT)


def a_trainer(states, **others):
    torch.manual_seed(1)
    head = Head(SHAPE, torch.randn(V, D), torch.randn(32, D) * 0.2)
    learning = Learning(**{"steps": 3, "rate": 0.01, "seed": 4, **others})
    return Trainer(head, Batches(states, range(28), ROWS, seed=4, size=256), learning)


def a_training(states, path, steps, **others):
    held = Batches(states, range(28, 32), ROWS, seed=4)
    return Training(a_trainer(states), held, ROWS, Limits(None, steps), path, lambda: 0.0, **others)


def test_a_head_learns(states, tmp_path):
    training = a_training(states, tmp_path / "checkpoint", 100)
    training.run(lambda *_: None, lambda: False)
    assert training.measured[0]["length"] + 0.3 < training.measured[-1]["length"]
    assert training.measured[-1]["loss"] < training.measured[0]["loss"]


def test_chains_that_go_on_do_not_depend_on_others(states):
    """Of the chains that are computed together each is what it is with all others."""
    trainer = a_trainer(states)
    batch = trainer._batches.load(trainer._batches.windows[:2])
    head, tokens = trainer.head, torch.from_numpy(batch.tokens)
    few, found = torch.tensor([2, 3, 11, 20]), []
    with torch.no_grad():
        for chosen in (torch.arange(25), few):
            known, starts = Keys(), torch.arange(25)
            hidden = head.encode(torch.from_numpy(batch.features)[:, :25])
            for k in range(4):
                if k == 1:
                    starts, hidden = chosen, hidden[:, chosen]
                hidden = head.step(tokens[:, starts + k + 1], hidden, known, starts)
            found.append(hidden)
    assert torch.allclose(found[0][:, few], found[1], atol=1e-5)


def test_the_sum_over_drawn_tokens_is_the_sum_over_all(states, monkeypatch):
    """With every row drawn the loss is the cross-entropy over all rows."""
    trainer = a_trainer(states)
    batch = trainer._batches.load(trainer._batches.windows[:3])
    with torch.no_grad():
        found = batch_loss(trainer.head, batch, 1)
        hidden = trainer.head.step(
            torch.from_numpy(batch.tokens[:, 1:]),
            trainer.head.encode(torch.from_numpy(batch.features[:, :-1])),
            Keys(),
            torch.arange(29),
        )
        said = trainer.head.logits(hidden).log_softmax(-1)
        wanted = torch.zeros_like(said).scatter_add_(
            -1, torch.from_numpy(batch.rows[:, 1:]), torch.from_numpy(batch.likely[:, 1:])
        )
        weights = torch.from_numpy(batch.weights[:, 1:])
        exact = -((said * wanted).sum(-1) * weights).sum() / weights.sum()
    assert abs(found - exact) < 1e-5


@pytest.mark.parametrize("at", [1, 13])
def test_an_interruption_changes_nothing(states, tmp_path, monkeypatch, at):
    monkeypatch.setattr("specx.drafters.train.run.EVERY_STEPS", 6)
    whole = a_training(states, tmp_path / "whole", 16)
    whole.run(lambda *_: None, lambda: False)
    first = a_training(states, tmp_path / "part", 16)
    with pytest.raises(KeyboardInterrupt):
        first.run(lambda *_: None, lambda: first.trainer.step == at)
    second = a_training(states, tmp_path / "part", 16)
    second.restore(load_checkpoint(tmp_path / "part", pytest.fail))
    second.run(lambda *_: None, lambda: False)
    ours, theirs = best_weights(whole), best_weights(second)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert whole.measured == second.measured


def test_it_ends_when_nothing_more_is_gained(states, tmp_path, monkeypatch):
    training = a_training(states, tmp_path / "checkpoint", 10_000)
    monkeypatch.setattr(training.trainer, "learn", lambda _done: 1.0)  # learns nothing
    monkeypatch.setattr("specx.drafters.train.run.EVERY_STEPS", 1)
    training.trainer.step = 1
    training.run(lambda *_: None, lambda: False)
    assert training.no_longer_pays
    assert len(training.measured) == PATIENCE + 1


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    path, told = tmp_path / "checkpoint", []
    assert load_checkpoint(path, told.append) is None
    for step in (1, 2):
        save_checkpoint(path, {"step": step})
    assert load_checkpoint(path, told.append) == {"step": 2}
    data = bytearray(path.read_bytes())
    for at in (3, 60, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert load_checkpoint(path, told.append) == {"step": 1}
    path.write_bytes(data[: len(data) // 2])
    assert load_checkpoint(path, told.append) == {"step": 1}
    assert len(told) == 5 and all("damaged" in text for text in told)
    before(path).write_bytes(b"")
    assert load_checkpoint(path, told.append) is None


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    save_checkpoint(path, {"step": 1})

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="No space left"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path, pytest.fail) == {"step": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint"]


def test_batches_that_are_loaded_ahead_are_the_same(states):
    plain, ahead = a_trainer(states), a_trainer(states)
    ahead._loads_ahead = True
    once = len(plain._epoch.batches)
    losses = [plain.learn(0.1) for _ in range(2 * once + 3)]
    assert [ahead.learn(0.1) for _ in range(once + 2)] == losses[: once + 2]
    later = a_trainer(states)
    later._loads_ahead = True
    later.learn(0.0)
    later.load(ahead.state())
    assert [later.learn(0.1) for _ in range(once + 1)] == losses[once + 2 :]


def test_every_window_is_read_once_in_each_pass(states, tmp_path):
    # Texts of many lengths: passes have more or fewer batches.
    rng = np.random.default_rng(8)
    with StatesWriter(tmp_path / "states", LAYOUT) as writer:
        for _ in range(60):
            n = int(rng.integers(5, 120))
            text = states[0]
            picked = rng.integers(0, len(text.tokens), n)
            arrays = (text.tokens[picked], text.features[picked], text.best[picked], text.scores[picked])
            writer.append(States(arrays[0], 2, *arrays[1:]))
    mixed = StatesFile(tmp_path / "states", LAYOUT)

    def trainer():
        torch.manual_seed(1)
        head = Head(SHAPE, torch.randn(V, D), torch.randn(32, D) * 0.2)
        return Trainer(head, Batches(mixed, range(60), ROWS, seed=4, size=256), Learning(3, 0.01, seed=4))

    whole, again = trainer(), trainer()
    lengths = [len(whole._batches.epoch(number)) for number in range(6)]
    assert len(set(lengths)) > 1
    seen = Counter(window for step in range(sum(lengths)) for window in whole._windows(step))
    assert set(seen) == set(whole._batches.windows) and set(seen.values()) == {6}
    later = sum(lengths[:4]) + 2
    assert again._windows(later) == trainer()._windows(later)  # one that is gone on with
    assert whole._windows(0) == again._windows(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_a_gpu_learns_the_same(states):
    slow = a_trainer(states)
    torch.manual_seed(1)
    head = Head(SHAPE, torch.randn(V, D), torch.randn(32, D) * 0.2).to("cuda")
    fast = Trainer(head, Batches(states, range(28), ROWS, seed=4, size=256), Learning(3, 0.01, seed=4))
    losses = [[trainer.learn(step / 60) for step in range(60)] for trainer in (slow, fast)]
    assert np.mean(losses[1][40:]) == pytest.approx(np.mean(losses[0][40:]), rel=0.2)
    assert np.mean(losses[1][40:]) < 0.8 * np.mean(losses[1][:5])


def test_batches_fit_the_memory():
    shape, learning = HeadShape((7, 18, 29), 576, 576, 9, 3, 64, 1536, 16384, 1e-5, 1e5), Learning()
    whole = training_bytes(shape, 49152, learning, BATCH)
    assert batch_that_fits(shape, 49152, learning, whole) == BATCH
    assert batch_that_fits(shape, 49152, learning, whole - 1) == BATCH // 2
    assert batch_that_fits(shape, 49152, learning, 64 << 30, on_gpu=True) == BATCH_ON_GPU
    with pytest.raises(SpecxError, match="of memory") as caught:
        batch_that_fits(shape, 49152, learning, 500 << 20)
    assert "--vocab" in caught.value.hint
