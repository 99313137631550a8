"""Files and streams that people name: some have no end."""

from pathlib import Path

import pytest

from specx.backends.errors import FileError
from specx.cli.terminal import files
from specx.cli.terminal.files import read_bytes, read_text


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
