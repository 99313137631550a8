"""Captured texts on disk: what is damaged is left out and counted, the rest is there."""

import gc
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from specx.backends.errors import FileError
from specx.drafters.train.batches import WINDOW, Batches, Rows
from specx.drafters.train.states import HEAD, Layout, States, StatesFile, StatesWriter

LAYOUT = Layout("a target", (1, 2, 3), width=8, best=4)
LENGTHS = (5, 300, 17, 40)


def some_states(n, start, seed):
    rng = np.random.default_rng(seed)
    return States(
        rng.integers(0, 100, n).astype(np.int32),
        start,
        rng.standard_normal((n, 24)).astype(np.float16),
        rng.integers(0, 100, (n, 4)).astype(np.int32),
        -np.sort(rng.random((n, 4)), 1).astype(np.float16),
    )


@pytest.fixture
def texts():
    return [some_states(n, i + 1, i) for i, n in enumerate(LENGTHS)]


@pytest.fixture
def path(tmp_path, texts):
    with StatesWriter(tmp_path / "states", LAYOUT) as writer:
        for text in texts:
            writer.append(text)
    return tmp_path / "states"


def same(one, other):
    arrays = ("tokens", "features", "best", "scores")
    return one.start == other.start and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


def offset(texts, index):
    """Where the record of a text begins."""
    return len(LAYOUT.header()) + sum(HEAD.size + len(t.tokens) * LAYOUT.token_bytes for t in texts[:index])


def test_texts_come_back(path, texts):
    file = StatesFile(path, LAYOUT)
    assert (len(file), file.lost, file.tokens) == (4, 0, sum(LENGTHS))
    assert all(same(file[i], text) for i, text in enumerate(texts))


@pytest.mark.parametrize("cut", [1, HEAD.size - 1, HEAD.size + 3])
def test_a_record_that_was_cut_off_is_left_out_and_written_over(path, texts, cut):
    whole = offset(texts, 3)
    path.write_bytes(path.read_bytes()[: whole + cut])
    file = StatesFile(path, LAYOUT)
    assert (len(file), file.lost) == (3, cut)
    with StatesWriter(path, LAYOUT) as writer:
        writer.append(texts[3])
    file = StatesFile(path, LAYOUT)
    assert (len(file), file.lost) == (4, 0)
    assert same(file[3], texts[3])


@pytest.mark.parametrize("at", [0, 8, 12, 16, 20, HEAD.size, HEAD.size + 1000])
def test_a_damaged_record_is_left_out_and_the_next_one_found(path, texts, at):
    data = bytearray(path.read_bytes())
    data[offset(texts, 1) + at] ^= 0x41
    path.write_bytes(data)
    file = StatesFile(path, LAYOUT)
    assert [file.length(i) for i in range(len(file))] == [5, 17, 40]
    assert file.lost == offset(texts, 2) - offset(texts, 1)
    assert all(same(file[i], text) for i, text in enumerate([texts[0], *texts[2:]]))


def test_states_of_another_model_are_refused(path):
    other = Layout("another target", (1, 2, 3), width=8, best=4)
    for opened in (StatesFile, StatesWriter):
        with pytest.raises(FileError, match="from another model"):
            opened(path, other)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files")
def test_a_full_disk_leaves_whole_records(path, texts):
    import resource

    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with StatesWriter(path, LAYOUT) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        try:
            with pytest.raises(FileError, match="cannot write") as caught:
                writer.append(texts[0])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "--resume" in caught.value.hint
        assert path.read_bytes() == before
        writer.append(texts[0])
    assert len(StatesFile(path, LAYOUT)) == 5


def test_windows_cover_what_the_target_chose(path, texts):
    file = StatesFile(path, LAYOUT)
    batches = Batches(file, range(4), Rows(np.arange(0, 100, 2, dtype=np.int32), 100), seed=1, size=256)
    for number in (0, 1):
        windows = [window for batch in batches.epoch(number) for window in batch]
        covered = sorted((w.text, t) for w in windows for t in range(w.begin, w.end))
        assert covered == [(i, t) for i, n in enumerate(LENGTHS) for t in range(n)]
        assert all(w.end - w.begin <= WINDOW for w in windows)
    assert batches.epoch(0) != batches.epoch(1)
    assert batches.epoch(1) == Batches(
        file, range(4), Rows(np.arange(0, 100, 2, dtype=np.int32), 100), 1, 256
    ).epoch(1)


def test_a_batch_has_probabilities_of_tokens_with_rows(path, texts):
    file = StatesFile(path, LAYOUT)
    rows = Rows(np.arange(0, 100, 2, dtype=np.int32), 100)
    batches = Batches(file, [2], rows, seed=1)
    (batch,) = batches.each(batches.windows)
    even = texts[2].best[:, 0] % 2 == 0
    assert np.array_equal(batch.likely[0].sum(1) > 0, even)
    assert np.allclose(batch.likely[0].sum(1)[even], 1, atol=1e-5)
    assert np.array_equal(batch.rows[0][even, 0], texts[2].best[even, 0] // 2)
    own = np.arange(1, 18) >= texts[2].start
    assert np.array_equal(batch.weights[0] == 1, own & even)
    assert np.array_equal(batch.chosen[0], own & (np.arange(17) < 16))


def test_a_folder_in_place_of_the_file(tmp_path):
    with pytest.raises(FileError, match="cannot"):
        StatesWriter(Path(tmp_path), LAYOUT)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files")
def test_a_disk_without_room_for_the_beginning(tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with pytest.raises(FileError, match="cannot write") as caught:
                StatesWriter(tmp_path / "states", LAYOUT)
            del caught
            gc.collect()  # of a file that was left open this warns
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert told == []
