"""Whatever way a text of others takes to a terminal, it cannot drive it; pipes and JSON get it as it is."""

import io
import json
import re

import pytest
from rich.markdown import Markdown
from rich.panel import Panel
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from specx.backends.errors import FileError
from specx.backends.llama import libllama
from specx.cli.terminal import console
from specx.cli.terminal.markdown import MarkdownStream, rendered

EVIL = "a\x1b]0;owned\x07b\x9b2Jc\x7f\u202ed\rE"
OURS = re.compile(r"\x1b\[[0-9;?]*[mKlhAG]|\r")  # colours, and what a bar needs


@pytest.fixture
def screen(monkeypatch):
    made = console._console(stderr=False)
    made._force_terminal, made.file = True, io.StringIO()
    monkeypatch.setattr(console, "stdout", lambda: made)
    return made


def table():
    made = Table(EVIL)
    made.add_row(EVIL)
    return made


@pytest.mark.parametrize(
    "shown",
    [
        EVIL,
        Text(EVIL),
        Text.assemble(("x", "bold"), EVIL),
        table(),
        Markdown(EVIL),
        rendered(f"# {EVIL}"),
        Panel(EVIL),
    ],
    ids=["text", "Text", "assembled", "table", "Markdown", "rendered", "panel"],
)
def test_nothing_that_is_printed_drives_the_terminal(screen, shown):
    screen.print(shown)
    out = OURS.sub("", screen.file.getvalue())
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)
    assert "owned" in out


def test_bars_and_streams_of_markdown(screen, monkeypatch):
    with Progress(TextColumn("{task.description}", markup=False), console=screen) as bar:
        bar.add_task(EVIL)
    monkeypatch.setattr("specx.cli.terminal.markdown.stdout", lambda: screen)
    stream = MarkdownStream()
    stream.add(f"{EVIL} [bank](http://elsewhere.example) &#27;[2J\n\n")
    stream.close()
    out = screen.file.getvalue()
    assert "\x1b]" not in out and "\x07" not in out and "\x1b[2J" not in out
    assert "http://elsewhere.example" in out


def test_the_log_of_llama_cpp_is_shown_without_control_characters(monkeypatch, capsys):
    lib = libllama.lib()
    assert lib is not None
    monkeypatch.setattr(libllama, "_copy", "-")
    libllama._keep_alive[0](2, b"name = \x1b[2Jx\n", None)
    assert capsys.readouterr().err == "name = \\x1b[2Jx\n"


def test_the_log_of_llama_cpp_goes_where_it_is_told_to(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(libllama, "_copy", "")  # and afterwards as before
    libllama.lib()
    libllama.set_log(str(tmp_path / "x.log"))
    libllama._keep_alive[0](2, b"one\n", None)
    libllama.set_log("")
    libllama._keep_alive[0](2, b"two\n", None)
    assert (tmp_path / "x.log").read_text() == "one\n" and capsys.readouterr().err == ""
    with pytest.raises(FileError, match=r"nowhere/x\.log cannot be written: No such file"):
        libllama.set_log(str(tmp_path / "nowhere" / "x.log"))
    (tmp_path / "model").write_bytes(b"GGUF and more")
    with pytest.raises(FileError, match="model is a model"):
        libllama.set_log(str(tmp_path / "model"))
    assert (tmp_path / "model").read_bytes() == b"GGUF and more"


def test_json_is_exact(capsys):
    console.write(json.dumps({"name": EVIL}) + "\n" + EVIL)
    first, rest = capsys.readouterr().out.split("\n", 1)
    assert (json.loads(first)["name"], rest) == (EVIL, EVIL)
