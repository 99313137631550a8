"""Which models on this machine can draft for a target, and what they promise."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specx.backends.errors import ModelError
from specx.backends.gguf.file import read_gguf
from specx.backends.gguf.header import Part
from specx.backends.gguf.reading import read_span
from specx.backends.hub.models import FoundModel, find_model
from specx.backends.llama.vocab import load_vocabulary
from specx.backends.store import Store
from specx.drafters.calibration.model import ModelCalibration
from specx.drafters.guesser import GuessCosts
from specx.engine.forecast import forecast, known_pair
from specx.engine.learned.knowledge import Learned
from specx.engine.setup import finder as candidates
from specx.engine.setup.finder import Candidate, Finder, Forecast, Unfit, check_candidate
from specx.engine.setup.layers import step_bytes

WORDS = [f"word{i}" for i in range(64)]


@pytest.fixture
def target(tmp_path, write_model):
    return read_gguf(write_model(tmp_path / "target.gguf", 64, layers=4))


def listed(*paths):
    return lambda: [FoundModel(path, path.stem, "here", path.stat().st_size) for path in paths]


def search(target, store=None, models=list):
    return [found for found in Finder(target, store or Store(None), models).search() if found is not None]


def test_bytes_that_a_token_reads(target):
    assert step_bytes(target) == 4 * (64 * 64 + 4 * 7 * 64 * 64)  # the head and the layers, not the embedding


def test_bytes_that_a_token_reads_of_experts(target):
    rest = target.tensors[1:]
    ffn = next(tensor for tensor in rest if tensor.name == "blk.0.ffn_up.weight")
    experts = replace(ffn, name="blk.0.ffn_up_exps.weight", shape=(*ffn.shape, 8), nbytes=8 * ffn.nbytes)
    others = tuple(tensor for tensor in target.tensors if tensor is not ffn)
    moe = replace(target, tensors=(*others, experts), experts=8, experts_used=2)
    assert step_bytes(moe) == step_bytes(target) + ffn.nbytes  # two of eight where there was one
    drafting = replace(target, nextn_layers=1)
    assert step_bytes(drafting) == step_bytes(target) - 4 * 7 * 64 * 64  # its last layer only drafts


@pytest.mark.parametrize("what", ["no vocabulary", "encoder"])
def test_what_writes_no_text_drafts_none(target, tmp_path, write_model, what):
    tokens = WORDS if what == "encoder" else []
    path = write_model(tmp_path / "odd.gguf", 16, tokens=tokens, architecture="t5" if tokens else "llama")
    found = check_candidate(target, path)
    assert isinstance(found, Unfit)
    assert what in found.reason


def test_what_lies_beside_the_target_and_in_the_places_known(target, tmp_path, write_model):
    (tmp_path / "elsewhere").mkdir()
    write_model(tmp_path / "small.gguf", 16)
    write_model(tmp_path / "elsewhere" / "tiny.gguf", 8)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    write_model(tmp_path / "foreign.gguf", 16, tokens=["x", *WORDS[1:]])
    write_model(tmp_path / "large.gguf", 60, layers=3)
    write_model(tmp_path / "recurrent.gguf", 16, architecture="mamba", recurrent=True)
    write_model(tmp_path / "huge.gguf", 96, layers=4)
    known = listed(tmp_path / "elsewhere" / "tiny.gguf", tmp_path / "small.gguf", target.path)
    found = search(target, models=known)
    assert sorted(c.name for c in found if isinstance(c, Candidate)) == ["foreign", "large", "small", "tiny"]
    assert [c.name for c in found if isinstance(c, Candidate) and c.translated] == ["foreign"]
    reasons = {c.name: c.reason for c in found if isinstance(c, Unfit)}
    assert sorted(reasons) == ["broken", "recurrent"]  # a larger file is not even opened
    assert "recurrent" in reasons["recurrent"]


def test_of_drafts_each_token_is_taken_back(target, tmp_path, tiny_hybrids):
    """States that are kept serve a target, which computes a draft in one call; a draft takes one a token."""
    small = tmp_path / "hybrid.gguf"
    small.write_bytes(tiny_hybrids["lfm2"].read_bytes())
    found = check_candidate(target, small)
    assert isinstance(found, Unfit) and "recurrent" in found.reason


def odd_things(folder):
    """Whatever can lie beside a model under the name of one."""
    (folder / "dangling.gguf").symlink_to(folder / "gone")
    (folder / "loop.gguf").symlink_to(folder / "loop.gguf")
    (folder / "a-loop.gguf").symlink_to(folder / "b-loop.gguf")
    (folder / "b-loop.gguf").symlink_to(folder / "a-loop.gguf")
    (folder / "folder.gguf").mkdir()
    (folder / "through.gguf").symlink_to(folder / "target.gguf" / "x")
    (folder / "device.gguf").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.gguf")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "s.gguf"))
    for name in (
        "m-00001-of-00000",
        "m-00000-of-00000",
        "m-00003-of-00002",
        "m-00001-of-99999",
        "n-00002-of-00002",
    ):
        (folder / f"{name}.gguf").write_bytes(b"GGUF")
    (folder / "secret.gguf").write_bytes(b"GGUF")
    (folder / "secret.gguf").chmod(0)
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "new\nline\x1b.gguf").write_bytes(b"GGUF")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.gguf")).write_bytes(b"GGUF")


def test_whatever_lies_beside_the_target_it_is_passed_over(target, tmp_path, write_model):
    write_model(tmp_path / "small.gguf", 16)
    odd_things(tmp_path)
    found = search(target)
    assert [c.name for c in found if isinstance(c, Candidate)] == ["small"]
    assert all(each.path.is_file() for each in found)
    assert find_model(str(target.path)) == target.path
    target.path.rename(tmp_path / "other name")
    (tmp_path / "m-00001-of-99999.gguf").unlink()
    with pytest.raises(ModelError, match="several models"):
        find_model(str(tmp_path))
    for each in ("dangling", "loop", "folder", "device", "pipe", "s", "m-00001-of-00000", "m-00003-of-00002"):
        with pytest.raises(ModelError):
            read_gguf(tmp_path / f"{each}.gguf")


def test_a_folder_with_one_model_among_odd_things(target, tmp_path, write_model):
    folder = tmp_path / "one"
    folder.mkdir()
    for name in ("dangling.gguf", "folder.gguf"):
        (folder / name).symlink_to(folder / "gone")
    os.mkfifo(folder / "pipe.gguf")
    model = write_model(folder / "small.gguf", 16)
    assert find_model(str(folder)) == model


def test_a_file_that_is_gone_or_cut_between_two_looks(target, tmp_path, write_model, monkeypatch):
    for name in ("cut", "gone", "small"):
        write_model(tmp_path / f"{name}.gguf", 16)
    names = []

    def changing(target, path, name):
        names.append(name)
        (tmp_path / "gone.gguf").unlink(missing_ok=True)
        if name == "cut":
            os.truncate(path, path.stat().st_size // 2)
            with pytest.raises(ModelError, match="changed while it was read"):
                read_span(path, (0, 1 << 20))
        return check_candidate(target, path, name)

    monkeypatch.setattr(candidates, "check_candidate", changing)
    found = search(target)
    assert names == ["cut", "small"]
    assert [c.name for c in found if isinstance(c, Candidate)] == ["small"]


def test_a_neighbour_that_surprises_everybody_does_not_end_the_search(
    target, tmp_path, write_model, monkeypatch
):
    write_model(tmp_path / "small.gguf", 16)

    def surprise(*_, **__):
        raise RecursionError("deep")

    monkeypatch.setattr(candidates, "read_gguf", surprise)
    (found,) = search(target)
    assert isinstance(found, Unfit) and "RecursionError" in found.reason


def test_a_file_is_examined_once(target, tmp_path, monkeypatch, write_model):
    opened = []

    def counted(target, path, name=None):
        opened.append(path.name)
        return check_candidate(target, path, name)

    monkeypatch.setattr(candidates, "check_candidate", counted)
    store = Store(tmp_path / "store")
    small, foreign = (
        write_model(tmp_path / "small.gguf", 16),
        write_model(tmp_path / "f.gguf", 16, tokens=["x"] * 64),
    )
    first = search(target, store)
    assert sorted(opened) == ["f.gguf", "small.gguf"]
    assert search(target, store) == first
    assert len(opened) == 2
    write_model(small, 8, layers=2)  # another file of that name
    assert search(target, store) != first
    assert opened[2:] == ["small.gguf"]
    foreign.unlink()
    assert [c.name for c in search(target, store)] == ["small"]
    search(replace(target, fingerprint="another"), store)
    assert len(opened) == 4


def test_what_is_known_of_files_stays_if_a_search_is_not_finished(target, tmp_path, write_model):
    store = Store(tmp_path / "store")
    for name in ("b", "c"):
        write_model(tmp_path / f"{name}.gguf", 16)
    assert len(search(target, store)) == 2
    write_model(tmp_path / "a.gguf", 16)  # a new one, looked into first
    short = Finder(target, store, list).search()
    assert next(short) is None
    short.close()  # the process ends
    kept = store.load_json("candidates", target.fingerprint)["files"]
    assert {Path(path).name for path in kept} == {"b.gguf", "c.gguf"}
    (tmp_path / "c.gguf").unlink()
    search(target, store)
    kept = store.load_json("candidates", target.fingerprint)["files"]
    assert {Path(path).name for path in kept} == {"a.gguf", "b.gguf"}


@pytest.mark.parametrize("data", [{"files": 3}, {"files": {"x": 4}}, {"files": {}, "rules": 1}, {}])
def test_a_damaged_memory_is_no_harm(target, tmp_path, data, write_model):
    store = Store(tmp_path / "store")
    path = write_model(tmp_path / "small.gguf", 16)
    status = path.stat()
    stamp = [status.st_size, status.st_mtime_ns]
    store.save_json("candidates", target.fingerprint, data)
    assert [c.name for c in search(target, store)] == ["small"]
    store.save_json("candidates", target.fingerprint, {"files": {str(path): {"stamp": stamp, "size": "?"}}})
    assert [c.name for c in search(target, store)] == ["small"]


def test_not_too_many_files_in_one_session(target, tmp_path, monkeypatch, write_model):
    monkeypatch.setattr(candidates, "EXAMINED", 2)
    store = Store(tmp_path / "store")
    for i in range(5):
        write_model(tmp_path / f"small{i}.gguf", 8)
    assert [len(search(target, store)) for _ in range(4)] == [2, 4, 5, 5]


def test_the_forecast_is_the_objective():
    candidate = Candidate(Path("d.gguf"), "d", "f", 64, 1, 1)
    costs = np.array([np.inf, 10.0, 11.0, 12.0, 13.0, 30.0])
    forecast = Forecast.of(candidate, costs, 0.8, 2.0)
    rates = [sum(0.8**i for i in range(n + 1)) / (n * 2 + costs[n + 1]) for n in range(4)]
    assert forecast.rate == pytest.approx(max(rates))
    assert forecast.plain_rate == pytest.approx(0.1)
    assert "assumed" in forecast.explained() and "2.0 ms" in forecast.explained()
    assert "counted on 90 tokens" in Forecast.of(candidate, costs, 0.8, 2.0, 90).explained()
    assert Forecast.of(candidate, costs, 0.8, 50.0).rate == pytest.approx(0.1)  # it would never be asked


def test_a_trial_counts_until_enough_was_scored_here(tmp_path):
    head = Candidate(Path("h.gguf"), "h", "f", 64, 1, 1, (1, 2, 3), ((300, 600), (90, 300)))
    unknown = replace(head, trial=())
    costs = np.array([np.inf, 10.0, 11.0, 12.0, 13.0, 30.0])
    learned = Learned(Store(tmp_path), model_key="m", cost_key="c")
    promised = forecast(head, learned, costs, 10)
    assert (promised.acceptance, promised.remembered) == (390 / 900, 900)
    assert promised.rate == pytest.approx(max(1 / 10, 1.5 / (11 + 1), 1.65 / (12 + 2)))  # by token
    assert forecast(unknown, learned, costs, 10).remembered == 0
    poor = replace(head, trial=((60, 600), (6, 60)))
    assert forecast(poor, learned, costs, 10).rate < promised.rate
    assert forecast(poor, learned, costs, 10).rate == forecast(poor, learned, costs, 10).plain_rate
    assert known_pair(head, learned)[0].acceptance == promised.acceptance
    learned.save_pair("f", ModelCalibration.of_trial(80, 100), GuessCosts(1.0, 0.1, 0.1, 5.0))
    assert forecast(head, learned, costs, 10).acceptance == 0.8  # what was counted here is worth more


def test_vocabularies_that_lose_text_are_told_from_those_that_do_not(vocabulary_files):
    text = "Ça,  va?"
    lossy = {"bert-bge": "WPM", "nomic-bert-moe": "UGM"}
    for name, path in vocabulary_files.items():
        tokenizer = Part(path).text("tokenizer.ggml.model")
        with load_vocabulary(path) as vocab:
            tokens = vocab.tokenize(text.encode(), add_special=False, parse_special=False)
            written = b"".join(map(vocab.piece, tokens)).decode().removeprefix(" ")
        assert (written == text) == (tokenizer in candidates.EXACT) == (name not in lossy), name
        assert candidates.LOSSY.get(tokenizer) == lossy.get(name), name
