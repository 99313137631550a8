from __future__ import annotations

import fcntl
import importlib.util
import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from codecs import getincrementaldecoder
from dataclasses import dataclass
from pathlib import Path

import pytest

from specx.backends.places import model_aliases, model_folders

SCRIPT = Path(__file__).with_name("fake_specx.py")


def _load_fake():
    spec = importlib.util.spec_from_file_location("fake_specx", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_specx"] = module
    spec.loader.exec_module(module)
    return module


fake_specx = _load_fake()


@dataclass
class Outcome:
    code: int
    out: str
    err: str


class Runner:
    """Runs command lines in this process against one fake session."""

    def __init__(self, capfd, monkeypatch, model: Path):
        self.capfd, self.monkeypatch, self.model = capfd, monkeypatch, str(model)
        self.session = fake_specx.Session()
        self.settings = []

    def open(self, settings, *, progress, notice):
        self.settings.append(settings)
        self.session.drafter_name = settings.drafter
        return self.session

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> Outcome:
        from specx.cli.app import run

        if stdin is not None:
            self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        self.monkeypatch.setattr("specx.cli.complete.stdin_is_piped", lambda: stdin is not None)
        code = run(arguments)
        out, err = self.capfd.readouterr()
        return Outcome(code, out, err)


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("SPECX_", "LLAMA_ARG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SPECX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("SPECX_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("COLUMNS", "100")
    yield
    model_folders.clear()  # what a configuration has named
    model_aliases.clear()


@pytest.fixture(autouse=True)
def _nothing_is_ignored():
    """Programs started in the background, or by nohup, inherit that some signals are ignored."""
    usual = dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP), signal.SIG_DFL)
    usual[signal.SIGINT] = signal.default_int_handler
    ignored = [number for number in usual if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, usual[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def specx(capfd, monkeypatch, model):
    runner = Runner(capfd, monkeypatch, model)
    monkeypatch.setattr("specx.engine.session.Session.open", runner.open)
    return runner


@pytest.fixture
def spawn():
    """Starts the command with the fake session in a process of its own."""
    started = []

    def start(*arguments, **options):
        environment = {**os.environ, **options.pop("env", {})}
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "env": environment,
                "bufsize": 0,
                **options,
            },
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


PATIENCE = 240  # seconds that anything may take on a busy machine
READY = "\x1b[?2004h"  # the line editor switches bracketed paste on when it begins to listen


class Terminal:
    """A command on a pseudo-terminal of 24 lines of 80 columns, or as many as given.

    Attributes:
        shown: everything that it was sent.
    """

    def __init__(self, start, *arguments, env, columns=80):
        self.master, slave = pty.openpty()
        self._columns, self._events = columns, []  # what it was sent, and other numbers of columns
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = start(
            *arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "", "LINES": "", **env},
            start_new_session=True,
        )
        os.close(slave)
        self.shown, self._decoder = "", getincrementaldecoder("utf-8")("replace")

    def until(self, text: str, times: int = 1):
        """Wait until the terminal has been sent `text` so many times."""
        deadline = time.monotonic() + PATIENCE
        while self.shown.count(text) < times:
            assert time.monotonic() < deadline, f"{text!r} did not appear in {self.shown!r}"
            if select.select([self.master], [], [], 0.2)[0] and not self._read():
                break
        assert self.shown.count(text) >= times, self.shown

    def until_end(self):
        """Wait until the command has ended."""
        deadline = time.monotonic() + PATIENCE
        while not select.select([self.master], [], [], 0.2)[0] or self._read():
            assert time.monotonic() < deadline, self.shown
        self.process.wait(PATIENCE)

    def _read(self) -> bool:
        """Take what it is sent; whether there can be more."""
        try:
            piece = self._decoder.decode(os.read(self.master, 65536))
        except OSError:
            return False
        self.shown += piece
        self._events.append(piece)
        return True

    def type(self, text: str, after: int = 0):
        """Type `text`, once the line editor has begun to listen `after` times."""
        self.until(READY, after)
        os.write(self.master, text.encode())

    def lines(self):
        """What can be read on it, what has scrolled away included.

        It cuts lines off where it becomes narrower, as xterm does.
        """
        import pyte

        screen = pyte.HistoryScreen(self._columns, 24, history=1000)
        stream = pyte.Stream(screen)
        for event in self._events:
            if isinstance(event, int):
                screen.resize(24, event)
            else:
                stream.feed(event)
        gone = ["".join(line[x].data for x in range(len(line))) for line in screen.history.top]
        return [line.rstrip() for line in (*gone, *screen.display)]

    def resize(self, columns):
        """Make it narrower or wider."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._events.append(columns)
        self.process.send_signal(signal.SIGWINCH)

    def close(self):
        """Hang up."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def open_terminal():
    """Starts `start(*arguments)` on a terminal; other keywords than `columns` are environment variables."""
    opened = []

    def open_one(start, *arguments, columns=80, **env):
        opened.append(Terminal(start, *arguments, env=env, columns=columns))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()
