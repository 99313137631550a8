"""Files and streams that people name: some have no end."""

import io
import os
import sys
import threading
from pathlib import Path

import pytest

from specx.backends.errors import FileError
from specx.cli import complete
from specx.cli.batch.reading import open_input
from specx.cli.terminal import files
from specx.cli.terminal.files import read_bytes, read_stdin, read_text
from specx.cli.terminal.lines import PlainLines
from specx.engine.batch.source import read_lines
from specx.engine.bench.suites import load_suite


def test_a_file_without_end_is_not_read_for_ever(monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 1 << 20)
    with pytest.raises(FileError, match="more than 1,048,576 bytes"):
        read_bytes(Path("/dev/zero"))


def test_a_file_of_exactly_so_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 4)
    path = tmp_path / "text"
    path.write_bytes(b"four")
    assert read_text(path) == "four"
    path.write_bytes(b"five!")
    with pytest.raises(FileError, match="more than 4 bytes"):
        read_text(path)


@pytest.mark.parametrize("write", [files.check_folder, lambda path: files.write_atomically(path, "a text")])
def test_a_model_is_not_written_over(tmp_path, write):
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF and more")
    with pytest.raises(FileError, match="is a model, and stays one"):
        write(model)
    assert model.read_bytes() == b"GGUF and more"
    write(tmp_path / "answer.txt")


@pytest.fixture
def write_only(tmp_path, monkeypatch):
    """Standard input is a file that was opened for writing."""
    with (tmp_path / "written").open("wb", buffering=0) as file:
        text = io.TextIOWrapper(io.BufferedReader(io.FileIO(file.fileno(), closefd=False)))
        monkeypatch.setattr(sys, "stdin", text)
        yield


@pytest.mark.parametrize(
    "read",
    [
        read_stdin,
        lambda: PlainLines().read(),
        lambda: list(read_lines(open_input("-").file, "standard input")),
        lambda: open_input("-").is_json(),
        lambda: load_suite("-"),
    ],
    ids=["complete", "chat", "batch", "batch before", "bench"],
)
def test_standard_input_that_was_opened_for_writing(write_only, read):
    with pytest.raises(FileError, match="cannot read standard input: it was opened for writing"):
        read()


def test_a_chat_ends_after_what_it_cannot_read(write_only):
    lines = PlainLines()
    with pytest.raises(FileError):
        lines.read()
    assert lines.read() is None


def test_a_message_without_end_is_not_read_for_ever(monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 1 << 20)
    with Path("/dev/zero").open() as endless:
        monkeypatch.setattr(sys, "stdin", endless)
        lines = PlainLines()
        with pytest.raises(FileError, match="a message has more than 1,048,576 bytes"):
            lines.read()
    assert lines.read() is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_in_which_nobody_writes_yet_is_waited_for_aloud(tmp_path, monkeypatch):
    pipe, told = tmp_path / "pipe", []
    os.mkfifo(pipe)
    monkeypatch.setattr(files, "WAIT_S", 0.05)
    writes = threading.Thread(target=pipe.write_text, args=("a text",))

    def notice(text):
        told.append(text)
        writes.start()

    monkeypatch.setattr(files, "notice", notice)
    assert read_bytes(pipe) == b"a text"
    writes.join()
    assert told == [f"waiting for something to be written to {pipe}"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
@pytest.mark.parametrize(("waiting", "says"), [(False, "which is the prompt"), (True, "before the prompt")])
def test_standard_input_that_does_not_come_is_waited_for_aloud(monkeypatch, waiting, says):
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "w") as other_end:
        monkeypatch.setattr(sys, "stdin", stdin)
        for name in ("WAIT_S", "LONG_WAIT_S"):
            monkeypatch.setattr(complete, name, 0.05)
        told = []

        def notice(text):
            told.append(text)
            other_end.write("a text")
            other_end.close()

        monkeypatch.setattr(complete, "notice", notice)
        assert complete._piped(waiting=waiting) == "a text"
    assert len(told) == 1 and says in told[0]
