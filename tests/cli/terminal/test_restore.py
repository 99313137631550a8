"""The terminal is as it was found, whatever ends or stops specx."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time

import pytest

from specx.backends.printable import printable
from specx.cli.terminal.tables import show_table

PATIENCE = 240  # seconds that a process may take on a busy machine
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
CODES = {signal.SIGTERM: 143, signal.SIGHUP: 129}  # of a chat, which ends in order
REGION, WHOLE = "\x1b[1;23r", "\x1b[r"  # the scrolling region during an answer, and the usual one
PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"


def clean(shown: str) -> bool:
    """Whether everything that was switched on has been switched off since."""
    pairs = ((REGION, WHOLE), (PASTE_ON, PASTE_OFF), (HIDDEN, SHOWN))
    return all(shown.rfind(on) <= shown.rfind(off) for on, off in pairs)


@pytest.fixture
def terminal(spawn, model, open_terminal):
    def start(*arguments, **env):
        shell = open_terminal(spawn, "chat", model, *arguments, **env)
        shell.attributes = termios.tcgetattr(shell.master)
        return shell

    return start


def rest(shell):
    """Read until everybody has closed the terminal."""
    while True:
        try:
            data = os.read(shell.master, 65536)
        except OSError:
            return
        if not data:
            return
        shell.shown += data.decode(errors="replace")


def ended(shell, number: int, code: int | None = None) -> None:
    assert shell.process.wait(PATIENCE) == (-number if code is None else code)
    attributes = termios.tcgetattr(shell.master)
    rest(shell)
    assert attributes == shell.attributes
    assert clean(shell.shown), shell.shown[-200:]
    assert "Traceback" not in shell.shown


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_during_an_answer(terminal, number, tmp_path):
    closed = tmp_path / "closed"
    shell = terminal("-p", "hello", FAKE_ENDLESS="1", FAKE_DELAY="0.02", FAKE_CLOSED=str(closed))
    shell.until(REGION)
    shell.until("tokens/step", 2)
    shell.process.send_signal(number)
    ended(shell, number, CODES.get(number))
    assert closed.exists() == (number in CODES)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_at_the_prompt(terminal, number, tmp_path):
    closed = tmp_path / "closed"
    shell = terminal(FAKE_CLOSED=str(closed))
    shell.type("half a message", after=1)
    shell.until("half a message"[-1])
    shell.process.send_signal(number)
    ended(shell, number, CODES.get(number))
    assert closed.exists() == (number in CODES)


def test_what_was_said_before_a_signal_is_kept(terminal, tmp_path):
    shell = terminal("--no-stats", SPECX_CACHE=str(tmp_path / "kept"))
    shell.type("a message\r", after=1)
    shell.until(PASTE_ON, 2)
    shell.process.send_signal(signal.SIGTERM)
    ended(shell, signal.SIGTERM, 143)
    assert "a message" in (tmp_path / "kept" / "history" / "chat.txt").read_text()


def test_a_terminal_that_is_closed(spawn, model, open_terminal, tmp_path):
    """What was learned is kept, although nobody takes what is left to say."""

    def start(*arguments, **options):  # a process that the terminal controls
        return spawn(*arguments, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **options)

    closed = tmp_path / "closed"
    shell = open_terminal(
        *(start, "chat", model, "-p", "hello"),
        **{"FAKE_ENDLESS": "1", "FAKE_DELAY": "0.02", "FAKE_CLOSED": str(closed)},
    )
    shell.until("tokens/step", 2)
    os.close(shell.master)
    shell.master = os.open(os.devnull, os.O_RDONLY)
    assert shell.process.wait(PATIENCE) == 129
    assert closed.exists()


def test_a_second_signal_ends_at_once(terminal):
    shell = terminal("-p", "hello", FAKE_ENDLESS="1", FAKE_DELAY="3600")
    shell.until(REGION)
    shell.until("Hello")
    for _ in range(2):
        shell.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # two that come at once are one to the system
    ended(shell, signal.SIGTERM)


def test_a_signal_while_markdown_is_drawn(terminal):
    shell = terminal("-p", "hello", "--markdown", FAKE_ENDLESS="1", FAKE_DELAY="0.02")
    shell.until("Hello")
    shell.process.send_signal(signal.SIGTERM)
    ended(shell, signal.SIGTERM, 143)


def stopped(shell) -> None:
    """Wait until it has stopped."""
    result = os.waitid(os.P_PID, shell.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert result is not None and result.si_code == os.CLD_STOPPED


def test_stopped_and_continued(spawn, model, open_terminal):
    def start(*arguments, **options):  # in a process group of its own, which is not an orphan
        return spawn(*arguments, **{**options, "start_new_session": False, "process_group": 0})

    shell = open_terminal(start, "chat", model, FAKE_ENDLESS="1", FAKE_DELAY="0.02")
    shell.type("hello\r", after=1)
    shell.until("tokens/step")
    drawn = shell.shown.count(REGION)
    shell.process.send_signal(signal.SIGTSTP)
    stopped(shell)
    shell.until(WHOLE)
    shell.process.send_signal(signal.SIGCONT)
    shell.until(REGION, drawn + 1)
    shell.process.send_signal(signal.SIGINT)
    shell.until(PASTE_ON, 2)
    shell.type("\x1a")  # Ctrl-Z, which the line editor sees as a key
    stopped(shell)
    shell.until(PASTE_OFF, 2)
    assert termios.tcgetattr(shell.master)[3] & termios.ICANON
    shell.process.send_signal(signal.SIGCONT)
    shell.until(PASTE_ON, 3)
    shell.type("\x04")
    assert shell.process.wait(PATIENCE) == 0


def in_c(number: signal.Signals, code: str, **options) -> subprocess.CompletedProcess[str]:
    """Ask for a signal in an hour's sleep of the C library, within a change of the terminal."""
    program = f"""
import ctypes, os, subprocess, sys, time
from specx.cli.terminal.restore import changed
libc = ctypes.CDLL(None)
{code}
with changed(lambda: "undone"):
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -{int(number)} {{os.getpid()}}"])
    libc.sleep(3600)
print("went on", flush=True)
    """
    return subprocess.run([sys.executable, "-P", "-c", program], timeout=PATIENCE, check=False, **options)


def test_no_wait_for_a_long_call_of_the_library():
    assert in_c(signal.SIGTERM, "", capture_output=True).returncode == -signal.SIGTERM


def test_what_is_ignored_stays_ignored():
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); libc.sleep = lambda _s: time.sleep(0.5)"
    )
    done = in_c(signal.SIGHUP, code, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"went on\n")


def test_handlers_are_there_only_while_they_are_needed():
    code = """
import signal
from specx.cli.terminal.restore import changed
def handlers():
    return [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)]
before = handlers()
with changed(str):
    assert signal.SIG_DFL not in handlers()
    with changed(str):
        pass
    assert signal.SIG_DFL not in handlers()
assert handlers() == before == [signal.SIG_DFL] * 3 and signal.set_wakeup_fd(-1) == -1
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bar_hides_the_cursor_and_a_signal_shows_it(open_terminal):
    code = """
import signal, time
from specx.cli.terminal.console import Progress
with Progress("[/odd] name\\x1b]0;x\\x07") as progress:
    while True:
        time.sleep(0.05)
        progress.update(0.5)
"""

    def start(*_arguments, env, **options):
        command = [sys.executable, "-P", "-c", code]
        return subprocess.Popen(command, env={**os.environ, **env}, **options)

    shell = open_terminal(start)
    shell.until("[/odd] name\\x1b]0;x\\x07")
    shell.process.send_signal(signal.SIGTERM)
    assert shell.process.wait(PATIENCE) == -signal.SIGTERM
    rest(shell)
    assert HIDDEN in shell.shown and clean(shell.shown)
    assert "\x1b]0;" not in shell.shown


# --- what is typed and what is pasted -----------------------------------------------------------------------


def paste(text: str) -> str:
    return f"\x1b[200~{text}\x1b[201~"


DOC = '"""Module docstring."""\ndef f():\n    return 1\n'
DOCKER = "docker run \\\n  --rm \\\n  image"


KEYS_AND_MESSAGES = [
    ([paste(DOC), "\r"], DOC.strip()),
    ([paste(DOC.replace("\n", "\r")), "\r"], DOC.strip()),
    ([paste(DOCKER), "\r"], DOCKER),
    ([paste('a lone """ is text'), "\r"], 'a lone """ is text'),
    (["see: ", paste("C:\\"), "\r"], "see: C:\\"),
    (['"""\r', paste(DOC), '"""\r'], DOC.strip()),
    (["one\\\r", paste(DOCKER), "\\\r", "three\r"], f"one\n{DOCKER}\nthree"),
    ([paste("x\\"), "\x7f\\\r", "y\r"], "x\ny"),  # the pasted backslash is replaced by a typed one
    ([paste('"""doc"""'), "\x01", "look: ", "\r"], 'look: """doc"""'),
    (['"""typed"""\r'], "typed"),
]


def test_what_is_pasted_arrives_as_it_stands(terminal, tmp_path):
    path = tmp_path / "talk.json"
    shell = terminal("--no-stats")
    for number, (keys, _message) in enumerate(KEYS_AND_MESSAGES):
        shell.until(PASTE_ON, 2 * number + 1)
        for key in keys:
            shell.type(key)
        shell.type("\x1b[A\r", after=2 * number + 2)  # and so it does when it is brought back
    shell.type(f"/save {path}\r", after=2 * len(KEYS_AND_MESSAGES) + 1)
    shell.until("messages kept")
    shell.type("/bye\r")
    assert shell.process.wait(PATIENCE) == 0
    said = [entry["content"] for entry in json.loads(path.read_text()) if entry["role"] == "user"]
    assert said == [message for _keys, message in KEYS_AND_MESSAGES for _time in range(2)]


def test_undo_knows_what_was_pasted():
    from specx.cli.terminal.pasting import Pasted, disguised

    pasted = Pasted()
    pasted.edited('"""', 0, pasted=True)
    pasted.edited('""""', 3)
    pasted.edited('"""', 3)
    pasted.edited("", 0)
    pasted.edited('"""', 3)  # undo
    assert pasted.disguised() == disguised('"""')
    pasted.forget()
    pasted.edited('"""', 0)
    assert pasted.disguised() == '"""'


def test_a_typed_byte_that_is_not_utf8(terminal):
    shell = terminal("--no-stats")
    shell.until(PASTE_ON)
    os.write(shell.master, b"caf\xe9?\r")
    shell.until("the message is not valid UTF-8 and was not sent")
    shell.type("hello\r", after=2)
    shell.until("are you?")
    shell.type("\x04", after=3)
    assert shell.process.wait(PATIENCE) == 0


ODD = "a\x1b]0;title\x07\x9b31m\rb\r\n\tc\x7f\0é"


def test_pipes_get_the_text_as_it_is(spawn, model):
    process = spawn("complete", model, "-p", "x", "-q", env={"FAKE_WORDS": ODD.replace("\0", "")})
    out, _err = process.communicate(timeout=PATIENCE)
    assert out.decode() == ODD.replace("\0", "")


def test_printable():
    assert printable(ODD) == "a\\x1b]0;title\\x07\\x9b31m\\x0db\n\tc\\x7f\\x00é"
    assert printable("caf\udce9 \ud83d") == "caf\\xe9 \\ud83d"


def test_a_table_of_names_that_are_odd(capfd):
    show_table(("name",), [("a\nb\x1b[2J\udce9",)])
    assert capfd.readouterr().out == "name\na\\nb\\x1b[2J\\xe9\n"


def test_the_model_does_not_drive_the_terminal(terminal):
    shell = terminal("-p", "hello", "--no-stats", FAKE_WORDS="a\x1b]0;title\x07\x1b[2J\x9b31m\tb")
    shell.until("a\\x1b]0;title\\x07\\x1b[2J\\x9b31m")
    shell.type("/load \x16\x1b]0;name\r", after=1)
    shell.until("cannot read")
    shell.type("\x04", after=2)
    assert shell.process.wait(PATIENCE) == 0
    assert not re.search(r"\x1b\]|\x9b|\x1b\[2J", shell.shown)
