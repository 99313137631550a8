"""Files that grow by whole records."""

from __future__ import annotations

import errno
import os

import pytest

from specx.backends.errors import FileError, SpecxError
from specx.engine.batch.sink import SYNC_S, Sink


def test_records_follow_each_other(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"before\nmore")
    sink = Sink(path, "out")
    sink.cut(7)
    sink.write(b"after\n")
    assert path.read_bytes() == b"before\nafter\n" and sink.size == 13
    sink.close()
    sink.close()


def test_what_a_full_disk_cut_off_is_taken_back(tmp_path, monkeypatch):
    sink = Sink(tmp_path / "out", "out")
    sink.write(b"first\n")
    write, room = os.write, 4

    def full(descriptor, data):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(descriptor, bytes(data)[:room])
        room -= done
        return done

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SpecxError, match="No space left"):
        sink.write(b"second\n")
    assert (tmp_path / "out").read_bytes() == b"first\n"
    room = 100
    sink.write(b"third\n")
    sink.close()
    assert (tmp_path / "out").read_bytes() == b"first\nthird\n"


def test_a_short_write_is_gone_on_with(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:3]))
    sink = Sink(tmp_path / "out", "out")
    sink.write(b"0123456789\n")
    sink.close()
    assert (tmp_path / "out").read_bytes() == b"0123456789\n"


def test_a_pipe_that_is_full_is_waited_for(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    sink = Sink(writing, "pipe")
    data = b"x" * 200_000 + b"\n"
    if os.fork() == 0:
        os.close(writing)
        with open(reading, "rb") as file:
            os._exit(file.read() != data)
    os.close(reading)
    sink.write(data)
    sink.close()
    os.close(writing)
    assert os.wait()[1] == 0 and not sink.regular


def test_the_disk_has_everything_after_a_while(tmp_path, monkeypatch):
    synced, now = [], [0.0]
    monkeypatch.setattr(os, "fdatasync", synced.append, raising=False)
    sink = Sink(tmp_path / "out", "out", clock=lambda: now[0])
    sink.write(b"a\n")
    assert not synced
    now[0] = SYNC_S
    sink.write(b"b\n")
    assert len(synced) == 1
    sink.write(b"c\n")
    sink.close()
    assert len(synced) == 2


def test_nobody_else_writes_to_it(tmp_path):
    sink = Sink(tmp_path / "out", "out")
    with pytest.raises(FileError, match="another process"):
        Sink(tmp_path / "out", "out")
    sink.close()
    Sink(tmp_path / "out", "out").close()


def test_what_cannot_be_written(tmp_path):
    for path in (tmp_path, tmp_path / "none" / "out", tmp_path / "a\0b"):
        with pytest.raises(FileError, match="cannot write"):
            Sink(path, "out")


def test_the_same_file_by_another_name(tmp_path):
    path, link = tmp_path / "in", tmp_path / "link"
    path.write_bytes(b"x")
    link.symlink_to(path)
    sink = Sink(link, "out")
    with path.open("rb") as same, (tmp_path / "other").open("wb") as other:
        assert sink.is_file(same.fileno()) and not sink.is_file(other.fileno())
    sink.close()


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_file_that_is_no_longer_at_its_place(tmp_path, how):
    path, now = tmp_path / "out", [0.0]
    sink = Sink(path, "out", clock=lambda: now[0])
    sink.write(b"a\n")
    sink.check()
    if how == "moved":
        path.rename(tmp_path / "elsewhere")
    else:
        path.unlink()
    if how == "replaced":
        path.write_bytes(b"a\n")
    sink.write(b"b\n")
    now[0] = SYNC_S
    with pytest.raises(FileError, match="removed, moved or replaced"):
        sink.write(b"c\n")
    sink.close()
