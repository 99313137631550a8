"""What people read on terminals of 60, 80 and 200 columns: one that is emulated, and tmux."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pyte
import pytest

from specx.backends.gguf.file import read_gguf
from specx.backends.store import Store, cache_dir
from specx.cli.app import run
from specx.cli.terminal import console
from specx.cli.terminal.flow import Flow
from specx.cli.terminal.markdown import MarkdownStream
from specx.cli.terminal.tables import show_fields, show_table

SCRIPT = Path(__file__).parents[1] / "fake_specx.py"
PATIENCE = 240  # seconds that anything may take on a busy machine
WIDTHS = (60, 80, 200)
COMMANDS = ("show", "show --list", "plan --no-measure", "drafter list", "cache show")
LONG = (
    "Speculative decoding guesses the next tokens cheaply, lets the model check several guesses in one step, "
    "and keeps what the model would have written anyway."
)


def words(lines) -> list[str]:
    return " ".join(lines).split()


@pytest.fixture
def shown_at(monkeypatch):
    """Runs something with stdout and stderr on a terminal; gives the lines that it leaves there."""

    def at(columns, action):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        pieces = []

        def read():
            while not (pieces and pieces[-1].endswith(b"\x04")):
                pieces.append(os.read(master, 65536))

        reader = threading.Thread(target=read)
        reader.start()
        with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, terminal)
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", str(columns))  # Rich asks the descriptors that the process began with
            patch.delenv("NO_COLOR", raising=False)
            for each in (console.stdout, console.stderr):
                each.cache_clear()
            try:
                action()
                terminal.write("\x04")
                terminal.flush()
            finally:
                for each in (console.stdout, console.stderr):
                    each.cache_clear()
        reader.join(PATIENCE)
        os.close(master)
        screen = pyte.HistoryScreen(columns, 24, history=1000)
        pyte.ByteStream(screen).feed(b"".join(pieces)[:-1])
        gone = ["".join(line[x].data for x in range(columns)) for line in screen.history.top]
        return [line.rstrip() for line in (*gone, *screen.display)]

    return at


@pytest.mark.parametrize("columns", WIDTHS)
def test_sentences_and_tables_end_lines_between_words(shown_at, columns):
    columns_of_it = ("name", "bytes", "what there is to say of it")

    def say():
        console.notice(LONG)
        show_table(columns_of_it, [("one", "1,234", LONG), ("two", "5", "")])
        show_fields([("a label", LONG), ("another", "short")])

    lines = [line for line in shown_at(columns, say) if line]
    assert max(map(len, lines)) <= columns
    expected = ["name bytes what there is to say of it", f"one 1,234 {LONG}", "two 5"]
    assert words(lines) == words([LONG, *expected, f"a label {LONG}", "another short"])
    table = lines[lines.index(next(line for line in lines if line.startswith("name"))) :]
    first = table[1].index("Speculative")
    rest = table[2 : next(i for i, line in enumerate(table) if line.startswith("two"))]
    assert all(line.startswith(" " * first) for line in rest) and bool(rest) == (columns < 200)
    assert table[-1] == f"{'another':15}short"


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize(
    "command", ["show", "show --list", "plan --no-measure", "drafter list", "cache show"]
)
def test_what_commands_report_of_a_real_model(shown_at, capsys, smollm2, command, columns):
    cache_dir().mkdir()
    Store(cache_dir()).save_json("kernels", f"{read_gguf(smollm2).fingerprint}-x", {"choice": "specx"})
    named = [] if command in ("show --list", "cache show") else [str(smollm2)]
    assert run([*command.split(), *named]) == 0
    whole = words(capsys.readouterr().out.splitlines())
    lines = shown_at(columns, lambda: run([*command.split(), *named]))
    assert max(map(len, lines)) <= columns
    short = {word for word in whole if len(word) <= 20 and not re.search(r"\d", word)}
    assert len(short) > 3 and short <= set(words(lines))  # the others are names and numbers


def test_long_reading_shows_the_time_that_is_left(shown_at, monkeypatch, specx):
    bars = []

    def reading(label, **how):
        bars.append((label, how))
        return console.Progress(label, **how)

    monkeypatch.setattr("specx.cli.generation.Progress", reading)
    assert specx("complete", specx.model, "-p", "x").code == 0
    label, how = bars[-1]
    seconds = itertools.count()
    monkeypatch.setattr("rich.console.monotonic", lambda: next(seconds))
    monkeypatch.setattr(console, "SHOW_AFTER", 0.0)
    monkeypatch.setattr(console, "REFRESH_EVERY", 0.0)

    def read():
        bar = console.Progress(label, **how)
        for done in range(4):
            bar.count(done, 100)
        bar._open.close()  # and it is still there

    assert any(re.search(r"reading the prompt.* 3% \d+:\d\d$", line) for line in shown_at(80, read))


def test_the_status_line_ends_between_clauses():
    text = "12 tokens, 100.0 tokens/s, 1.00 tokens/step, 33% of drafts accepted (auto)"
    assert console._cut(text, 80) == text
    assert console._cut(text, 50) == "12 tokens, 100.0 tokens/s, 1.00 tokens/step"
    assert console._cut("x" * 90, 50) == "x" * 50


def test_the_last_column_gives_way_first(shown_at):
    path = "/a/folder/that/is/deep/and/deeper/model.gguf"
    rows = [("a-model-of-a-long-name.gguf", "12 MB", path)]
    lines = [line for line in shown_at(60, lambda: show_table(("name", "size", "path"), rows)) if line]
    assert max(map(len, lines)) <= 60
    assert lines[1].startswith("a-model-of-a-long-name.gguf  12 MB  /a/folder")
    at = lines[1].index("/")
    assert "".join(line[at:] for line in lines[1:]) == path


@pytest.mark.parametrize("columns", WIDTHS)
def test_an_answer_ends_its_lines_between_words(shown_at, columns):
    text = f"{LONG}\n    code that is indented\n{LONG} {'x' * 250} 日本語の文章は空白なしで続きます。{LONG}"

    def stream():
        flow = Flow()
        for start in range(0, len(text), 3):
            flow.add(text[start : start + 3])

    lines = [line for line in shown_at(columns, stream) if line]
    assert "    code that is indented" in lines
    assert "".join(words(lines)) == "".join(text.split())
    kept = [word for word in LONG.split() if word in words(lines)]
    assert kept == LONG.split()  # none of them was broken
    assert any(len(line) >= columns - 16 for line in lines)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_tabs_end_where_they_do_however_the_text_is_cut(shown_at, size):
    text = "ab\tc\n\tabc\td\te\n"

    def stream():
        flow = Flow()
        for start in range(0, len(text), size):
            flow.add(text[start : start + size])

    assert [line for line in shown_at(60, stream) if line] == ["ab  c", "    abc d   e"]


@pytest.mark.parametrize("size", [1, 7, 13, 60])
def test_a_word_longer_than_a_line_fills_its_lines(capsys, monkeypatch, size):
    monkeypatch.setattr(Flow, "_columns", lambda _self: 20)
    flow, word = Flow(), "0123456789" * 7
    flow._able = True
    for start in range(0, len(word), size):
        flow.add(word[start : start + size])
    assert [len(line) for line in capsys.readouterr().out.split("\n")] == [20, 20, 20, 10]


@pytest.mark.parametrize(
    "emoji", ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "\U0001f44d\U0001f3fd"]
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_emoji_that_terminals_may_join_are_never_taken_away(capsys, monkeypatch, emoji, size):
    text = " ".join(f"{'a' * (i % 7)}{emoji}b" for i in range(60))
    monkeypatch.setattr(Flow, "_columns", lambda _self: 40)
    flow = Flow()
    flow._able = True
    for start in range(0, len(text), size):
        flow.add(text[start : start + size])
    written = re.sub(r"\x1b\[(\d+)D\x1b\[K", r"<\1>", capsys.readouterr().out)
    for word, taken in re.findall(r"([^\s<]*)<(\d)>\n", written):
        assert int(taken) == sum(1 if char in "ab\u2764" else 2 for char in word)
        assert not re.search("[\u200d\ufe0f\U0001f3fd]", word)
    written = re.sub(r"[^\s<]*<\d>", "", written)
    most = {"\u200d": 0, "\ufe0f": 1, "\u2764": 1, "a": 1, "b": 1, " ": 1}
    for line in written.split("\n"):
        assert sum(most.get(char, 2) for char in line) <= 40
    assert "".join(written.split()) == text.replace(" ", "")


def test_a_pipe_gets_an_answer_as_it_is(capsys):
    flow = Flow()
    flow.add(LONG)
    assert capsys.readouterr().out == LONG


MARKDOWN = (
    f"# A heading that is long enough\n\n{LONG}\n\n- one\n- two\n\n```python\n"
    + "".join(f"line_{i} = {i}\n" for i in range(40))
    + f"```\n\nIts end: {LONG}\n"
)


@pytest.mark.parametrize("columns", WIDTHS)
def test_markdown_as_it_streams_is_what_it_is_at_once(shown_at, monkeypatch, columns):
    monkeypatch.setattr("specx.cli.terminal.markdown.REFRESH_EVERY", 0.0)

    def stream(size):
        made = MarkdownStream()
        for start in range(0, len(MARKDOWN), size):
            made.add(MARKDOWN[start : start + size])
        made.close()

    streamed = shown_at(columns, lambda: stream(5))
    while not streamed[-1]:
        streamed.pop()
    at_once = shown_at(columns, lambda: stream(len(MARKDOWN)))
    assert streamed == at_once[: len(streamed)]
    numbers = [line.strip() for line in streamed if line.strip().startswith("line_")]
    assert numbers == [f"line_{i} = {i}" for i in range(40)]


@pytest.fixture
def terminal(spawn, model, open_terminal):
    return lambda *arguments, **env: open_terminal(spawn, "chat", model, *arguments, **env)


def test_a_chat_at_80_columns(terminal, monkeypatch):
    shell = terminal("-n", "40", FAKE_ENDLESS="1", FAKE_WORDS="extraordinary ", FAKE_LABEL=LONG)
    shell.type("hello\r", after=1)
    shell.until("drafts accepted")
    shell.type("/help\r", after=2)
    shell.type("/bye\r", after=3)
    assert shell.process.wait(PATIENCE) == 0
    shell.until("> /bye")
    lines = [line for line in shell.lines() if line]
    assert words(lines).count("extraordinary") == 40
    begin = next(i for i, line in enumerate(lines) if line.startswith("fake, drafter"))
    hint = "/help lists the commands, Ctrl-D leaves"
    assert words(lines[begin : lines.index("> hello")]) == words([f"fake, drafter auto, {LONG}", hint])
    help_lines = lines[lines.index("> /help") + 1 : lines.index("> /bye")]
    assert all(line.startswith(("/", '"""', " " * 15, "in one", "message")) for line in help_lines)
    assert {"/bye", "/reset"} <= {line.split()[0] for line in help_lines}
    statistics = " ".join(lines)
    assert "40 tokens (the most that -n allows), 100.0 tokens/s, 1.00 tokens/step" in statistics


def test_what_is_typed_during_an_answer_begins_the_next_message(terminal):
    shell = terminal("-n", "30", "-q", FAKE_ENDLESS="1", FAKE_WORDS="word ", FAKE_DELAY="0.05")
    shell.type("hello\r", after=1)
    shell.until("word")
    os.write(shell.master, b"typed ahead")
    shell.type(" and after\r", after=2)
    shell.until("word", 60)
    shell.type("/bye\r", after=3)
    assert shell.process.wait(PATIENCE) == 0
    lines = [line for line in shell.lines() if line]
    first = lines.index("> hello")
    second = lines.index("> typed ahead and after")
    assert set(words(lines[first + 1 : second])) == {"word"}
    assert words(lines[first + 1 : second]).count("word") == 30


def test_pasted_lines_during_an_answer_are_one_message(terminal):
    shell = terminal("-n", "20", "--no-stats", FAKE_ENDLESS="1", FAKE_WORDS="word ", FAKE_DELAY="0.05")
    shell.type("hello\r", after=1)
    shell.until("2004h", 2)  # an answer begins: pastes are marked
    shell.until("word")
    os.write(shell.master, b"\x1b[200~one\rtwo\r\x1b[201~")
    shell.type("\r", after=2)
    shell.until("word", 40)
    shell.type("/bye\r", after=3)
    assert shell.process.wait(PATIENCE) == 0
    lines = shell.lines()
    assert "> one" in lines and lines[lines.index("> one") + 1] == "... two"


WORDS = ("-n", "60", "--no-cache")
SLOWLY = {"FAKE_ENDLESS": "1", "FAKE_WORDS": "extraordinary ", "FAKE_DELAY": "0.02"}


@pytest.mark.parametrize("columns", [50, 120])
def test_a_terminal_of_another_width_during_markdown(terminal, columns):
    shell = terminal(*WORDS, "--markdown", XTERM_VERSION="emulated", **SLOWLY)
    shell.type("hello\r", after=1)
    shell.until("extraordinary", 40)
    shell.resize(columns)
    shell.until("drafts accepted")
    assert words(shell.lines()).count("extraordinary") == 60


@pytest.fixture
def tmux(tmp_path, model):
    """Starts the command in tmux, which breaks lines in two where it becomes narrower."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    socket = str(tmp_path / "tmux")

    def call(*arguments):
        done = subprocess.run(["tmux", "-S", socket, *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    def start(*arguments, **env):
        settings = [f"{name}={value}" for name, value in {**env, "COLUMNS": "", "LINES": ""}.items()]
        command = ["env", *settings, sys.executable, str(SCRIPT), "chat", str(model), *arguments]
        call("-f", os.devnull, "new-session", "-d", "-x", "80", "-y", "24", *command, ";",
             "set-option", "-g", "remain-on-exit", "on")  # fmt: skip
        return call

    yield start
    call("kill-server")


def until(call, text: str, times: int = 1) -> list[str]:
    """The lines that tmux shows once `text` is in them so many times."""
    deadline = time.monotonic() + PATIENCE
    while (shown := call("capture-pane", "-p", "-S", "-")).count(text) < times:
        assert time.monotonic() < deadline, shown
        time.sleep(0.05)
    return [line.rstrip() for line in shown.splitlines()]


@pytest.mark.parametrize(
    ("flag", "columns"), [("--markdown", 50), ("--markdown", 120), ("--no-markdown", 50)]
)
def test_tmux_of_another_width_during_an_answer_and_after_it(tmux, flag, columns):
    call = tmux(*WORDS, flag, **SLOWLY)
    until(call, "\n>")
    for times in (1, 2, 3):  # the screen is full
        call("send-keys", "/help", "Enter")
        until(call, "/bye", times)
    call("send-keys", "hello", "Enter")
    until(call, "extraordinary", 30)
    call("resize-window", "-x", str(columns))
    lines = until(call, "60 tokens (the most that -n allows)")
    assert "".join(words(lines)).count("extraordinary") == 60
    call("resize-window", "-x", "64")
    call("send-keys", "x")
    lines = until(call, "> x")
    assert "".join(words(lines)).count("extraordinary") == 60
    assert "".join(words(lines)).count("tokens/step") == 1
