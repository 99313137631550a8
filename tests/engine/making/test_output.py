"""What speaks against writing a file is said before the work, not after it."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from specx.backends.errors import FileError
from specx.backends.gguf.file import read_gguf
from specx.engine.making import output, shrink, train, trim
from specx.engine.making.output import check_room
from specx.engine.settings import Asked


@pytest.fixture(scope="module")
def model(tmp_path_factory, write_tiny):
    return write_tiny(tmp_path_factory.mktemp("output") / "tiny.gguf", "llama")


def trimmed(model, path):
    trim.trim(model, model, trim.Wanted(keep=290, output=path), trim.Trimming())


def shrunk(model, path):
    told = shrink.Shrinking()
    shrink.shrink(Asked(model, store=False), shrink.Wanted(output=path), told)


def trained(model, path):
    pytest.importorskip("torch")
    train.train(Asked(model, store=False), train.Wanted(output=path, rows=290), train.TrainTold())


@pytest.mark.parametrize("make", [trimmed, shrunk, trained])
def test_a_disk_without_room_is_told_before_any_work(model, tmp_path, monkeypatch, make):
    def works(*_args, **_options):
        raise AssertionError("it works already")

    monkeypatch.setattr("specx.engine.session.Session.open", works)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(FileError, match=r"made.gguf needs [\d,.]+ MB, and .* has 0 MB free"):
        make(model, tmp_path / "made.gguf")
    assert list(tmp_path.iterdir()) == []


def test_what_is_least_is_no_more_than_what_comes(model, tmp_path, monkeypatch):
    """A disk that has just the room is not refused."""
    monkeypatch.setattr("specx.engine.making.trim._samples", lambda *_: [])
    told = []
    monkeypatch.setattr(trim, "check_output", lambda *_, least, **__: told.append(least))
    trimmed(model, tmp_path / "made.gguf")
    assert 0.5 * read_gguf(model).size < told[0] <= (tmp_path / "made.gguf").stat().st_size


def test_a_limit_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "_longest_file", lambda: 1 << 20)
    check_room(tmp_path / "made.gguf", 1 << 20)
    with pytest.raises(
        FileError, match=r"needs 2 MB, and this process may write 1 MB to a file \(ulimit -f\)"
    ):
        check_room(tmp_path / "made.gguf", 2_000_000)
