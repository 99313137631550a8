"""Copies of packed weights: used where they are right, never where anything is wrong, and bounded.

Every way to load a model has to give the same logits to the last bit.
"""

from __future__ import annotations

import functools
import os
import resource
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from specx.backends.llama import libllama, packed
from specx.backends.llama.kernels import SPECX, unavailable
from specx.backends.llama.model import LlamaModel
from specx.backends.llama.packed import PackedCopy
from specx.backends.settings import Load
from specx.backends.store import PACKED, Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no large pages for files")
FINGERPRINT = "f" * 32


@functools.cache
def repack(path):
    """Some compilers miscompile the AMX kernels; the package asks the same before it loads a model."""
    return libllama.runs_here(path) is not False


@pytest.fixture(autouse=True)
def _every_model_is_worth_a_copy(monkeypatch, tmp_path):
    if reason := unavailable():
        pytest.skip(reason)
    monkeypatch.setattr(packed, "LEAST_BYTES", 1)
    monkeypatch.setattr(packed, "LEAST_S", 0.0)
    monkeypatch.setattr(packed, "SETTLED_S", -1.0)  # the models were written just now
    monkeypatch.setattr(packed, "LARGE_PAGES", tmp_path / "none")  # which the tiny ones do not fill


class Starts:
    """Starts of one model with the same store; each gives the logits of some tokens."""

    def __init__(self, path, store, monkeypatch):
        self.path, self.store = path, store
        self.told = []
        self.seen = []
        end = packed.end_packing

        def ended():
            self.seen.append(end())
            return self.seen[-1]

        monkeypatch.setattr(packed, "end_packing", ended)

    def start(self, fingerprint=FINGERPRINT, *, progress=None, **options):
        load = replace(Load(self.path, 2, 2, n_ctx=256, snapshots=8), **options)
        copy = PackedCopy(self.store, fingerprint, load, self.told.append)
        model = LlamaModel(load, kernels=SPECX, repack=repack(self.path), packed=copy, progress=progress)
        try:
            tokens = np.arange(5, 13, dtype=np.int32)
            return model.open().forward(tokens, np.arange(-1, 7, dtype=np.int32)).logits.copy()
        finally:
            model.close()

    @property
    def last(self):
        return self.seen[-1]

    @property
    def files(self):
        """What lies beside the times: copies, and what is half written."""
        folder = self.store.place(PACKED, "")
        return sorted(p for p in folder.glob("*") if p.suffix != ".json") if folder.is_dir() else []

    def with_a_copy(self):
        """The logits that all starts must have, and the copy."""
        right = self.start()
        assert self.last.packed > 0
        assert not self.files
        np.testing.assert_array_equal(self.start(), right)
        assert self.last.complete
        (copy,) = self.files
        return right, copy


@pytest.fixture
def tiny(tiny_hybrids, tmp_path, monkeypatch):
    path = tmp_path / "tiny.gguf"
    shutil.copy(tiny_hybrids["lfm2"], path)
    return Starts(path, Store(tmp_path / "cache"), monkeypatch)


def test_the_third_start_packs_nothing(smollm2_q4_0, tmp_path, monkeypatch):
    starts = Starts(smollm2_q4_0, Store(tmp_path / "cache"), monkeypatch)
    right, copy = starts.with_a_copy()
    made = starts.last
    assert made.packed == starts.seen[0].packed
    np.testing.assert_array_equal(starts.start(), right)
    assert (starts.last.packed, starts.last.found) == (0, made.packed)
    assert starts.files == [copy]
    assert copy.stat().st_mode & 0o777 == 0o600
    assert len(starts.told) == 1
    assert "--no-packed-copy" in starts.told[0]


def flipped(data, at):
    data[at] ^= 1


DAMAGE = {
    "first byte": lambda data: flipped(data, 0),
    "a weight": lambda data: flipped(data, len(data) // 3),
    "a record": lambda data: flipped(data, -200),
    "the key": lambda data: flipped(data, -50),
    "the last byte": lambda data: flipped(data, -1),
    "two words in turn": lambda data: data.__setitem__(slice(0, 16), data[8:16] + data[:8]),
    "cut by a byte": lambda data: data.pop(),
    "cut in the middle": lambda data: data.__delitem__(slice(len(data) // 2, None)),
    "one byte more": lambda data: data.append(0),
    "empty": lambda data: data.clear(),
    "zeros": lambda data: data.__setitem__(slice(0, 4096), bytes(4096)),
    "all zeros": lambda data: data.__setitem__(slice(None), bytes(len(data))),
    "something else": lambda data: data.__setitem__(slice(None), b"GGUF"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_is_not_used_and_goes(tiny, damage):
    right, copy = tiny.with_a_copy()
    data = bytearray(copy.read_bytes())
    DAMAGE[damage](data)
    copy.write_bytes(data)
    np.testing.assert_array_equal(tiny.start(), right)
    assert tiny.last.packed > 0
    if tiny.files:  # another one was made at once
        assert tiny.last.complete
    else:
        tiny.start()
    np.testing.assert_array_equal(tiny.start(), right)
    assert tiny.last.packed == 0


def test_a_copy_of_a_file_that_was_changed_is_not_used(tiny):
    right, copy = tiny.with_a_copy()
    data = bytearray(tiny.path.read_bytes())
    data[-1000:] = data[-2000:-1000]  # the header, which is all that names it, stays
    tiny.path.write_bytes(data)
    changed = tiny.start()
    assert tiny.last.found == 0
    assert not np.array_equal(changed, right)
    (other,) = tiny.files  # the old one went when it was made
    assert other != copy
    np.testing.assert_array_equal(tiny.start(), changed)


def test_a_copy_under_the_name_of_another_is_not_used(tiny):
    right, copy = tiny.with_a_copy()
    foreign = copy.read_bytes()
    copy.unlink()
    os.utime(tiny.path, (1, 1))
    tiny.start()
    (own,) = tiny.files
    own.write_bytes(foreign)
    np.testing.assert_array_equal(tiny.start(), right)
    assert tiny.last.found == 0


def test_a_file_that_changes_while_it_is_loaded_has_no_copy(tiny):
    tiny.start()
    tiny.start(progress=lambda _fraction: os.utime(tiny.path))
    assert tiny.last.complete
    assert not tiny.files


def test_a_file_that_was_just_written_has_no_copy(tiny, monkeypatch):
    monkeypatch.setattr(packed, "SETTLED_S", 3600.0)
    tiny.start()
    tiny.start()
    assert not tiny.files


@pytest.mark.parametrize("options", [{"mmap": False}, {"mlock": True}], ids=str)
def test_what_is_not_mapped_or_is_locked_has_no_copy(tiny, options):
    for _ in range(2):
        tiny.start(**options)
    assert not tiny.files
    assert not tiny.seen


def test_without_a_store_nothing_is_kept(tiny, tmp_path):
    tiny.store = Store(None)
    for _ in range(2):
        tiny.start()
    assert not any(path.suffix == packed.ENDING for path in tmp_path.rglob("*"))


def test_only_what_packs_slowly_has_a_copy(tiny, monkeypatch):
    for name, value in (("LEAST_S", 1e6), ("LEAST_BYTES", 1 << 40)):
        with monkeypatch.context() as patch:
            patch.setattr(packed, name, value)
            tiny.start()
            tiny.start()
            assert not tiny.files
    right = tiny.start()
    if not tiny.files:
        np.testing.assert_array_equal(tiny.start(), right)
    assert tiny.files


def test_a_full_disk_has_no_copy(tiny, monkeypatch):
    right = tiny.start()
    usage = shutil.disk_usage(tiny.path)
    size = tiny.last.packed
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda _path: usage._replace(free=9 * size))
    np.testing.assert_array_equal(tiny.start(), right)
    assert not tiny.files


@contextmanager
def limited_files():
    """Gives what limits the size of files, until the end: to write more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_is_noticed_before_packing(tiny):
    right = tiny.start()
    with limited_files() as limit:
        limit(4096)
        found = tiny.start()
    np.testing.assert_array_equal(found, right)
    assert not tiny.last.complete
    assert not [path for path in tiny.store.place(PACKED, "").iterdir() if path.suffix != ".json"]


@pytest.mark.parametrize("after", [0.0, 0.3, 0.6])
def test_a_disk_that_fails_while_it_is_written_to_costs_the_copy_alone(
    smollm2_q4_0, tmp_path, monkeypatch, after
):
    starts = Starts(smollm2_q4_0, Store(tmp_path / "cache"), monkeypatch)
    right = starts.start()
    with limited_files() as limit:
        found = starts.start(
            progress=lambda done: limit(int(after * starts.seen[0].packed)) if done > after else None
        )
    np.testing.assert_array_equal(found, right)
    assert not starts.last.complete
    assert not starts.files


def test_a_cache_that_cannot_be_written_is_no_error(tiny, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / PACKED).write_text("not a folder")
    right = tiny.start()
    np.testing.assert_array_equal(tiny.start(), right)
    assert (tmp_path / "cache" / PACKED).read_text() == "not a folder"


def test_one_process_makes_a_copy_at_a_time(tiny):
    right = tiny.start()
    other = tiny.store.claim(PACKED)
    np.testing.assert_array_equal(tiny.start(), right)
    assert not tiny.files
    os.close(other)
    np.testing.assert_array_equal(tiny.start(), right)
    assert tiny.files


def test_a_copy_that_is_removed_while_it_is_used_stays_in_memory(tiny):
    right, copy = tiny.with_a_copy()
    load = Load(tiny.path, 2, 2, n_ctx=256, snapshots=8)
    model = LlamaModel(
        load, kernels=SPECX, repack=repack(tiny.path), packed=PackedCopy(tiny.store, FINGERPRINT, load)
    )
    assert tiny.last.packed == 0
    assert tiny.store.clear() > 0
    assert not copy.exists()
    tokens = np.arange(5, 13, dtype=np.int32)
    logits = model.open().forward(tokens, np.arange(-1, 7, dtype=np.int32)).logits
    np.testing.assert_array_equal(logits, right)
    model.close()


def test_a_copy_that_is_cleared_while_it_is_written_is_not_kept(tiny):
    right = tiny.start()

    def progress(fraction):
        if fraction > 0.5:
            tiny.store.clear()

    np.testing.assert_array_equal(tiny.start(progress=progress), right)
    assert not tiny.files


@pytest.mark.parametrize("after", [-1.0, 0.5, 0.9])
def test_an_interrupted_start_leaves_nothing_half_written(tiny, after):
    right = tiny.start()

    def progress(fraction):
        if fraction > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.start(progress=progress)
    assert [path.suffix for path in tiny.store.place(PACKED, "").iterdir()] == [".json"]
    np.testing.assert_array_equal(tiny.start(), right)
    assert tiny.last.complete
    with pytest.raises(KeyboardInterrupt):
        tiny.start(progress=progress)
    np.testing.assert_array_equal(tiny.start(), right)
    assert tiny.last.packed == 0


def test_what_another_process_left_half_written_goes(tiny):
    tiny.start()
    half = tiny.store.place(PACKED, ".abc.tmp")
    half.write_bytes(b"half")
    tiny.start()
    assert not half.exists()
    assert tiny.files


def test_copies_are_bounded_and_the_last_used_stay(tiny, monkeypatch):
    for i, fingerprint in enumerate("abc"):
        tiny.start(fingerprint * 32)
        tiny.start(fingerprint * 32)
        copy = next(path for path in tiny.files if path.name.startswith(fingerprint * 32))
        os.utime(copy, (1000 + i, 1000 + i))
    size = copy.stat().st_size
    tiny.start("a" * 32)  # the oldest, used again
    assert tiny.last.packed == 0
    monkeypatch.setattr(packed, "MOST_BYTES", 3 * size)
    tiny.start("d" * 32)
    tiny.start("d" * 32)
    assert [path.name[0] for path in tiny.files] == ["a", "c", "d"]
    monkeypatch.setattr(packed, "MOST_BYTES", size // 2)
    tiny.start("e" * 32)
    tiny.start("e" * 32)
    assert [path.name[0] for path in tiny.files] == ["a", "c", "d"]


def test_a_copy_in_small_pages_is_not_kept_where_memory_has_large_ones(tiny, monkeypatch, tmp_path):
    large = tmp_path / "enabled"
    large.write_text("always [madvise] never\n")
    monkeypatch.setattr(packed, "LARGE_PAGES", large)
    tiny.start()
    tiny.start()
    assert tiny.last.complete
    assert not tiny.files
    tiny.start()
    assert not tiny.last.complete  # it is not tried again


def test_the_store_lists_and_clears_copies(tiny):
    _right, copy = tiny.with_a_copy()
    listed = [entry for entry in tiny.store.entries() if entry.path == copy]
    assert [(entry.kind, entry.key[:32], entry.damaged) for entry in listed] == [(PACKED, FINGERPRINT, False)]
    tiny.store.save_json("model", "x", {"a": 1})
    assert copy.exists()  # whatever else is kept
    tiny.store.clear(PACKED)
    assert not copy.exists()
    assert tiny.store.load_json("model", "x") is not None
