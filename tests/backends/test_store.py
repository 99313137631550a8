"""The store: nothing in it is fatal, nothing half-written is read, and nobody else can read it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from specx.backends import store as store_module
from specx.backends.store import KINDS, VERSION, Store, cache_dir

ARRAYS = {"tokens": np.arange(50, dtype=np.int32), "logits": np.linspace(0, 1, 40, dtype=np.float32)}


@pytest.fixture
def notices():
    return []


@pytest.fixture
def store(tmp_path, notices):
    return Store(tmp_path / "cache", notices.append)


def fill(store, key="k"):
    store.save_json("staircase", key, {"steps": {"0": {"1": 2.5}}})
    store.save_arrays("history", key, ARRAYS)


def same(arrays):
    return (
        arrays is not None
        and set(ARRAYS) <= set(arrays)
        and all((arrays[k] == ARRAYS[k]).all() for k in ARRAYS)
    )


def test_what_was_saved_comes_back(store, notices):
    fill(store)
    assert store.load_json("staircase", "k") == {"steps": {"0": {"1": 2.5}}}
    arrays = store.load_arrays("history", "k")
    assert same(arrays)
    assert arrays["tokens"].dtype == np.int32
    assert store.load_json("staircase", "other") is None
    assert store.load_arrays("calibration", "k") is None
    assert [(e.kind, e.key) for e in store.entries()] == [("staircase", "k"), ("history", "k")]
    assert notices == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_whatever_lies_in_the_place_of_a_mapped_array_is_no_harm(store):
    array = np.arange(12, dtype=np.int32).reshape(2, 6)
    assert store.save_mapped("corpus", "k", {}, array)
    [path] = store.root.rglob("*.map")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"[2, 6]", b"[2, 1e999]"))
    assert store.load_mapped("corpus", "k") is None
    head = whole[12:-48].rstrip() + b" "  # its array no longer begins at a multiple of 64
    path.write_bytes(whole[:8] + len(head).to_bytes(4, "little") + head + whole[-48:])
    assert store.load_mapped("corpus", "k") is None
    os.mkfifo(path)
    assert store.load_mapped("corpus", "k") is None


def test_a_mapped_array_comes_back_without_being_read(store, notices):
    array = np.arange(12, dtype=np.int32).reshape(2, 6)
    assert store.save_mapped("corpus", "k", {"name": "a"}, array)
    value, mapped = store.load_mapped("corpus", "k")
    assert value == {"name": "a"}
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    assert mapped.tolist() == array.tolist()
    assert store.load_mapped("corpus", "other") is None
    store.remove("corpus", "k")
    store.remove("corpus", "k")
    assert store.load_mapped("corpus", "k") is None
    assert mapped.tolist() == array.tolist()
    assert not Store(None).save_mapped("corpus", "k", {}, array)
    assert Store(None).load_mapped("corpus", "k") is None
    assert notices == []


def test_only_the_user_can_read_it(store):
    fill(store)
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    for entry in store.entries():
        assert stat.S_IMODE(entry.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(entry.path.parent.stat().st_mode) == 0o700


def test_no_store_keeps_nothing(tmp_path, monkeypatch, notices):
    monkeypatch.chdir(tmp_path)
    store = Store(None, notices.append)
    fill(store)
    assert store.load_json("staircase", "k") is None
    assert store.load_arrays("history", "k") is None
    assert (store.entries(), store.clear(), notices, list(tmp_path.iterdir())) == ([], 0, [], [])


@pytest.mark.parametrize(("given", "meant"), [("~", "."), ("~/.specx", ".specx")])
def test_a_home_directory_may_be_abbreviated(monkeypatch, tmp_path, given, meant):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPECX_CACHE", given)
    assert cache_dir() == tmp_path / meant
    monkeypatch.setenv("SPECX_CACHE", "~nobody-of-that-name/x")
    assert not cache_dir().is_absolute()  # there is nothing better to do than to take it as it stands


def test_the_environment_says_where(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECX_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    monkeypatch.delenv("SPECX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert "specx" in cache_dir().parts


DAMAGED_JSON = [b"", b"{", b"[]", b"7", b'"x"', b"null", b"{}", b"\xff\xfe", b"[" * 200_000, b'{"steps": {}}']


@pytest.mark.parametrize("data", DAMAGED_JSON, ids=lambda data: repr(data[:12]))
def test_damaged_json_is_set_aside_with_one_notice(store, notices, data):
    fill(store)
    path = store.root / "staircase" / "k.json"
    path.write_bytes(data)
    assert store.load_json("staircase", "k") is None
    assert not path.exists()
    assert store.load_json("staircase", "k") is None
    assert len(notices) == 1
    assert path.name in notices[0]
    kept = [e.path for e in store.entries() if e.kind == "staircase"]
    assert [p.read_bytes() for p in kept] == [data]
    fill(store)  # rebuilt
    assert store.load_json("staircase", "k") is not None


def test_arrays_damaged_anywhere_are_read_right_or_set_aside(store, tmp_path):
    fill(store)
    path = store.root / "history" / "k.npz"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    missing = 0
    for trial in range(600):
        data = bytearray(whole)
        if trial < 100:
            data = data[: int(rng.integers(len(whole)))]
        else:
            at = int(rng.integers(len(whole)))
            data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data))
        notices = []
        arrays = Store(store.root, notices.append).load_arrays("history", "k")
        if arrays is None:
            missing += 1
            assert len(notices) <= 1  # none if it reads as another version
        else:  # a check sum covers the values, not every byte of the container
            assert all(np.array_equal(arrays[k], ARRAYS[k]) for k in ARRAYS if k in arrays)
    assert missing > 300


def test_an_array_that_is_no_archive(store, notices):
    fill(store)
    path = store.root / "history" / "k.npz"
    with path.open("wb") as file:
        np.save(file, np.arange(3))
    assert store.load_arrays("history", "k") is None
    assert len(notices) == 1


def test_objects_are_never_unpickled(store, notices):
    fill(store)
    path = store.root / "history" / "k.npz"
    with path.open("wb") as file:
        np.savez(file, version=np.int64(VERSION), tokens=np.array([{"a": 1}], object))
    assert store.load_arrays("history", "k") is None
    assert len(notices) == 1


def test_another_version_is_missing_and_left_alone(store, notices, monkeypatch):
    fill(store)
    monkeypatch.setattr(store_module, "VERSION", VERSION + 1)
    assert store.load_json("staircase", "k") is None
    assert store.load_arrays("history", "k") is None
    monkeypatch.undo()
    assert store.load_json("staircase", "k") is not None
    assert same(store.load_arrays("history", "k"))
    assert notices == []


def refuse(*_args, **_kwargs):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_read_only_store_is_read_and_written_about_once(store, notices, monkeypatch):
    fill(store)
    monkeypatch.setattr(store_module.tempfile, "mkstemp", refuse)  # root may write anywhere, so pretend
    fill(store)
    fill(store, "other")
    assert store.load_json("staircase", "k") is not None
    assert store.load_json("staircase", "other") is None
    assert len(notices) == 1
    assert f"the cache {store.root} cannot be written (Permission denied)" in notices[0]


def test_a_store_of_another_user_is_not_called_empty(store, notices, monkeypatch):
    fill(store)
    monkeypatch.setattr(store_module.Path, "iterdir", refuse)
    assert store.entries() == [] and store.told
    assert notices == ["the cache cannot be read (Permission denied)"]


def test_damage_that_cannot_be_set_aside(store, notices, monkeypatch):
    fill(store)
    (store.root / "staircase" / "k.json").write_bytes(b"{")
    monkeypatch.setattr(store_module.Path, "replace", refuse)
    assert store.load_json("staircase", "k") is None
    assert len(notices) == 1


@pytest.mark.parametrize("place", ["file", "file/below", "file/below/it"])
def test_a_place_that_cannot_be_a_directory(tmp_path, notices, place):
    (tmp_path / "file").write_text("mine")
    store = Store(tmp_path / place, notices.append)
    assert store.load_json("staircase", "k") is None
    fill(store)
    assert store.load_arrays("history", "k") is None
    assert (store.entries(), store.clear()) == ([], 0)
    assert len(notices) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_what_was_there(store, notices, monkeypatch):
    fill(store)
    before = {e.path: e.path.read_bytes() for e in store.entries()}
    real = os.fdopen

    class Full:
        def __init__(self, handle, mode):
            self.file = real(handle, mode)

        def __enter__(self):
            return self

        def __exit__(self, *_exc):
            self.file.close()

        def write(self, data):
            self.file.write(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.os, "fdopen", Full)
    store.save_json("staircase", "k", {"steps": {}})
    store.save_arrays("history", "k", {"tokens": np.zeros(3)})
    monkeypatch.undo()
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert {path: path.read_bytes() for path in files} == before
    assert len(notices) == 1
    assert "No space left" in notices[0]


WRITE_OFTEN = """
import sys, pathlib, numpy as np
from specx.backends.store import Store

def complain(text):
    raise AssertionError(text)

root, number = pathlib.Path(sys.argv[1]), int(sys.argv[2])
store = Store(root, complain)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(100):
    value = number * 1000 + turn
    store.save_arrays("history", "k", {"tokens": np.full(2000, value)})
    store.save_json("staircase", "k", {"values": [value] * 500})
    assert len(set(store.load_arrays("history", "k")["tokens"].tolist())) == 1
    assert len(set(store.load_json("staircase", "k")["values"])) == 1
"""


def test_two_processes_write_the_same_entry(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-P", "-c", WRITE_OFTEN, str(tmp_path / "c")]
    workers = [subprocess.Popen([*command, str(number)], **pipes) for number in range(2)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    errors = [worker.communicate(timeout=240)[1] for worker in workers]
    assert [(worker.returncode, error) for worker, error in zip(workers, errors, strict=True)] == [
        (0, "")
    ] * 2
    assert sorted(path.name for path in (tmp_path / "c").rglob("*.*")) == ["k.json", "k.npz"]


def test_the_oldest_entries_go_when_it_grows_too_large(store, monkeypatch):
    for age, key in enumerate(("new", "middle", "old")):
        store.save_json("staircase", key, {"steps": "x" * 1000})
        os.utime(store.root / "staircase" / f"{key}.json", (time.time() - 100 * age - 50,) * 2)
    monkeypatch.setattr(store_module, "MAX_BYTES", 3 * 1100)
    store.save_json("identity", "k", {"classes": "x" * 1000})
    assert [e.key for e in store.entries()] == ["middle", "new", "k"]


def test_files_being_written_are_no_entries_and_go_when_stale(store):
    fill(store)
    fresh, stale = (store.root / "history" / name for name in (".fresh.tmp", ".stale.tmp"))
    for path in (fresh, stale):
        path.write_bytes(b"half")
    os.utime(stale, (time.time() - 2 * store_module.STALE_S,) * 2)
    assert len(store.entries()) == 2
    fill(store)
    assert fresh.exists()
    assert not stale.exists()
    store.clear()
    assert not fresh.exists()


def test_clear(store, notices):
    for kind in KINDS:
        store.save_json(kind, "k", {"a": 1})
    (store.root / "staircase" / "k.json").write_bytes(b"{")
    store.load_json("staircase", "k")
    assert store.clear("identity") == 1
    assert store.load_json("identity", "k") is None
    assert store.clear() == len(KINDS) - 1  # what was set aside included: it may hold what the user typed
    assert [path for path in store.root.rglob("*") if path.is_file()] == []
    assert store.load_json("build", "k") is None


def test_damaged_entries_are_known_as_such_and_can_be_removed_alone(store):
    fill(store, "a.b")
    for entry in store.entries():
        entry.path.write_bytes(b"{")
    assert (store.load_json("staircase", "a.b"), store.load_arrays("history", "a.b")) == (None, None)
    fill(store, "a.b")
    assert {(e.kind, e.key, e.damaged) for e in store.entries()} == {
        (kind, "a.b", damaged) for kind in ("staircase", "history") for damaged in (False, True)
    }
    assert store.clear(only_damaged=True) == 2
    assert [e.damaged for e in store.entries()] == [False, False]


def test_a_lock_is_waited_for_but_not_for_ever(store, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "LOCK_S", 0.05)
    with store.locked():
        entered = []
        with Store(store.root).locked():  # the other one never lets go
            entered.append(1)
        assert entered
    for place in (None, tmp_path / "file" / "below"):
        (tmp_path / "file").write_text("")
        with Store(place).locked():  # where there can be no lock
            entered.append(1)
    assert len(entered) == 3
    assert store.clear() == 0


def test_one_measures_at_a_time_and_whoever_waited_knows(store, monkeypatch):
    waited = []
    with store.measuring(lambda: waited.append("never")) as first:
        assert not first
        with store.locked():  # another lock: what is found is kept meanwhile
            store.save_json("machine", "key", {})

        def other():
            with Store(store.root).measuring(lambda: waited.append("told")) as second:
                waited.append((second, store.load_json("machine", "late")))

        thread = threading.Thread(target=other)
        thread.start()
        while not waited:
            time.sleep(0.001)
        store.save_json("machine", "late", {"x": 1})
    thread.join()
    assert waited == ["told", (True, {"x": 1})]
    monkeypatch.setattr(store_module, "MEASURING_S", 0.05)
    with store.measuring(), Store(store.root).measuring() as second:
        assert second  # and goes on, as the other one never ends
    with Store(None).measuring(lambda: waited.append("nowhere")) as alone:
        assert not alone and len(waited) == 2


def test_clear_goes_on_past_what_cannot_be_removed(store, notices, monkeypatch):
    fill(store)
    real = store_module.Path.unlink

    def unlink(path, **kwargs):
        if path.suffix == ".json":
            refuse()
        real(path, **kwargs)

    monkeypatch.setattr(store_module.Path, "unlink", unlink)
    assert store.clear() == 1
    assert [e.kind for e in store.entries()] == ["staircase"]
    assert len(notices) == 1
