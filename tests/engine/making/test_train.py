"""Training from end to end: text, states, a head; and whatever happens on the way."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from specx.backends.errors import FileError, SpecxError, UsageError
from specx.backends.gguf.file import read_gguf
from specx.drafters.make.gguf_writing import Source
from specx.engine.making.collecting import AT_ONCE, CHECKPOINT, DONE, LIBRARIES, STATES, TEXTS, texts_that_fit
from specx.engine.making.train import TrainTold, Wanted, default_output, train
from specx.engine.settings import Asked

torch = pytest.importorskip("torch")

TESTS = Path(__file__).parents[2]
WANTED = {"self_tokens": 2500, "steps": 12, "rows": 288, "seed": 3}


@pytest.fixture(scope="module")
def target(write_tiny, tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("train") / "tiny.gguf", "llama")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("specx.engine.making.written.ANSWER", 24)
    monkeypatch.setattr("specx.drafters.train.run.EVERY_STEPS", 5)


def asked(target):
    return Asked(target, threads=1, store=False, measure=False)


def tensors(path):
    return {name: tensor.data.copy() for name, tensor in Source(read_gguf(path)).tensors.items()}


@pytest.fixture(scope="module")
def whole(target, tmp_path_factory):
    """A head that was trained at once, and what was told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specx.engine.making.written.ANSWER", 24)
        patch.setattr("specx.drafters.train.run.EVERY_STEPS", 5)
        path, told = tmp_path_factory.mktemp("whole") / "head.gguf", []
        progress = TrainTold(lambda what, done, detail: told.append((what, done, detail)))
        return train(asked(target), Wanted(output=path, **WANTED), progress), told


def test_a_head_and_a_report(whole, target):
    report, told = whole
    assert list(dict.fromkeys(what for what, _, _ in told)) == [
        "loading tiny.gguf", "writing text", "capturing states", "ranking tokens", "training",
    ]  # fmt: skip
    assert (report.rows, report.captured >= 2500) == (288, True)
    assert [each["tokens"] for each in report.curve][-1] == report.learned
    info = read_gguf(report.path)
    assert info.architecture == "eagle3" and info.metadata["eagle3.target_layers"] == (1, 3, 5)
    assert not list(report.path.parent.glob("*.training"))
    assert default_output(target) == target.with_name("tiny-head.gguf")


@pytest.mark.parametrize(
    ("what", "fraction"),
    [("writing text", 0.5), ("capturing states", 0.5), ("training", 0.01), ("training", 0.6)],
)
def test_interrupted_and_gone_on_with_is_the_same_head(whole, target, tmp_path, what, fraction):
    seen = []

    def progress(step, done, _detail):
        seen.append(step == what and done >= fraction)

    wanted = Wanted(output=tmp_path / "head.gguf", **WANTED)
    with pytest.raises(KeyboardInterrupt):
        train(asked(target), wanted, TrainTold(progress, interrupted=lambda: any(seen)))
    with pytest.raises(FileError, match="unfinished training") as caught:
        train(asked(target), wanted, TrainTold())
    assert "--resume" in caught.value.hint
    train(asked(target), Wanted(output=tmp_path / "head.gguf", resume=True, **WANTED), TrainTold())
    ours, theirs = tensors(tmp_path / "head.gguf"), tensors(whole[0].path)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_killed_while_it_learns(whole, target, tmp_path, monkeypatch):
    """Nothing is written when it dies, and the last checkpoint and the states have lost their ends."""
    monkeypatch.setattr("specx.drafters.train.run.SAVED_S", 0.0)

    class Killed(BaseException):
        pass

    def progress(step, done, _detail):
        if step == "training" and done > 0.5:
            raise Killed

    wanted = {"output": tmp_path / "head.gguf", **WANTED}
    with pytest.raises(Killed):
        train(asked(target), Wanted(**wanted), TrainTold(progress))
    folder = tmp_path / "head.training"
    data = (folder / CHECKPOINT).read_bytes()
    (folder / CHECKPOINT).write_bytes(data[: len(data) // 2])
    told = []
    train(asked(target), Wanted(resume=True, **wanted), TrainTold(notice=told.append))
    assert any("checkpoint is damaged" in text for text in told)
    ours, theirs = tensors(tmp_path / "head.gguf"), tensors(whole[0].path)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_damaged_states_are_told_and_left_out(target, tmp_path):
    wanted = {"output": tmp_path / "head.gguf", **WANTED}
    with pytest.raises(KeyboardInterrupt):
        seen = []
        told = TrainTold(lambda what, *_: seen.append(what == "training"), interrupted=lambda: any(seen))
        train(asked(target), Wanted(**wanted), told)
    folder = tmp_path / "head.training"
    for name in (CHECKPOINT, STATES):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
    (folder / "settings.json").write_text("{")
    said = []
    report = train(asked(target), Wanted(resume=True, **wanted), TrainTold(notice=said.append))
    assert report.path.exists()
    assert {text.split(" ")[0] for text in said} >= {"settings.json", "the"}
    assert any("damaged bytes of captured states" in text for text in said)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_what_is_no_file_is_not_waited_for(target, tmp_path):
    folder = tmp_path / "head.training"
    folder.mkdir()
    os.mkfifo(folder / STATES)
    wanted = Wanted(output=tmp_path / "head.gguf", resume=True, **WANTED)
    with pytest.raises(FileError, match="is no file") as caught:
        train(asked(target), wanted, TrainTold())
    assert "--force" in caught.value.hint
    (folder / STATES).unlink()
    (folder / DONE).touch()  # but what was collected is gone
    assert train(asked(target), wanted, TrainTold()).captured >= 2500


def test_text_of_a_person_alone(target, tmp_path):
    report = train(
        asked(target),
        Wanted(texts=["w1 w2 w3 " * 2000], self_tokens=0, steps=2, rows=288, output=tmp_path / "head.gguf"),
        TrainTold(),
    )
    assert report.captured > 4000


def test_what_is_refused(target, tmp_path, monkeypatch):
    output = tmp_path / "head.gguf"
    with pytest.raises(SpecxError, match="tokens of finished texts were captured"):
        train(
            asked(target),
            Wanted(texts=["w1 w2 " * 50], self_tokens=0, steps=2, rows=288, output=output),
            TrainTold(),
        )
    with pytest.raises(UsageError, match="begun otherwise: seed"):
        train(asked(target), Wanted(seed=9, rows=288, steps=2, resume=True, output=output), TrainTold())
    output.write_text("mine")
    with pytest.raises(FileError, match="there is a file"):
        train(asked(target), Wanted(output=output), TrainTold())
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SpecxError, match="torch") as caught:
        train(asked(target), Wanted(output=output), TrainTold())
    assert "pip install 'torch>=" in caught.value.hint


def test_so_many_texts_are_written_together_as_the_memory_holds(target):
    info = read_gguf(target)
    each = 6 * 512 * 2 * 32 * 2  # layers, tokens, keys and values, of two heads of 16, bytes
    for texts in (1, 3, AT_ONCE):
        assert texts_that_fit(info, 512, info.weight_bytes + LIBRARIES + texts * each) == texts
    assert texts_that_fit(info, 512, 0) == 1
    assert texts_that_fit(info, 512, 1 << 40) == AT_ONCE


def test_disk_that_may_be_used_is_kept_to(target, tmp_path):
    said, output = [], tmp_path / "head.gguf"
    wanted = Wanted(output=output, disk=1_600_000, **WANTED)
    seen = []
    told = TrainTold(lambda what, *_: seen.append(what == "training"), said.append, lambda: any(seen))
    with pytest.raises(KeyboardInterrupt):
        train(asked(target), wanted, told)
    assert any("--disk has no room" in text for text in said)
    assert (tmp_path / "head.training" / STATES).stat().st_size <= 1_600_000
    assert (tmp_path / "head.training" / TEXTS).exists()


@pytest.mark.parametrize("disk", [0, 1, 400_000])
def test_disk_for_too_few_tokens_is_refused_before_any_work(target, tmp_path, disk):
    with pytest.raises(UsageError, match=r"--disk is .* bytes, and 2,000 tokens") as refused:
        train(asked(target), Wanted(output=tmp_path / "head.gguf", disk=disk, **WANTED), TrainTold())
    assert refused.value.hint.startswith("give it at least ")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_else_stays(target, tmp_path):
    output = tmp_path / "head.gguf"
    folder = tmp_path / "head.training"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    for wanted in (Wanted(output=output, force=True, **WANTED), Wanted(output=output, resume=True, **WANTED)):
        with pytest.raises(FileError, match=r"notes\.txt is none of a training's files"):
            train(asked(target), wanted, TrainTold())
    assert (folder / "notes.txt").read_text() == "mine"


def test_what_cannot_be_is_refused_before_anything_is_written(target, tmp_path):
    output = tmp_path / "head.gguf"
    with pytest.raises(UsageError, match="too few") as caught:
        train(asked(target), Wanted(output=output, rows=10), TrainTold())
    assert "--vocab" in caught.value.hint
    with pytest.raises(SpecxError, match="of memory"):
        train(asked(target), Wanted(output=output, rows=288, memory=1 << 20), TrainTold())
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(FileError, match="is a folder"):
        train(asked(target), Wanted(output=tmp_path / "folder.gguf", force=True), TrainTold())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.gguf"]
