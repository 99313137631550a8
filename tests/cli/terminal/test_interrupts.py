"""Ctrl-C while C calls back into Python, where ctypes would swallow an exception."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from specx.cli.terminal import interrupts
from specx.cli.terminal.interrupts import interruptible, on_end, on_interrupt

SORT = """
import ctypes, signal
from specx.backends.llama.callbacks import called_by_c
from specx.cli.terminal.interrupts import interruptible, on_interrupt

@called_by_c
def compare(_a, _b):
    helper()
    return 0

def helper():
    signal.raise_signal(signal.SIGINT)

kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
qsort = ctypes.CDLL(None).qsort
with interruptible(), INNER:
    qsort((ctypes.c_int * 2)(), 2, 4, kind(compare))
    print("went on", flush=True)
"""


def sort(inner: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", SORT.replace("INNER", inner)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="no qsort in the process")
def test_within_a_callback():
    done = sort("interruptible()")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    done = sort("on_interrupt(lambda: print('stop', flush=True))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "stop\nwent on\n", "")


def test_outside_of_one():
    before = signal.getsignal(signal.SIGINT)
    seen = []
    with pytest.raises(KeyboardInterrupt), interruptible(), on_interrupt(lambda: seen.append("first")):
        signal.raise_signal(signal.SIGINT)
        assert seen == ["first"]
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


WHILE_C_IS_AT_WORK = """
import ctypes, os, signal, threading, time
from specx.cli.terminal.heard import hearing, times
from specx.cli.terminal.interrupts import interruptible, on_end, on_interrupt, on_stop

libc, lock = ctypes.CDLL(None), (ctypes.c_long * 16)()
libc.pthread_mutex_lock(lock)
main = f"/proc/self/task/{threading.get_native_id()}/syscall"
waits = hex(ctypes.addressof(lock))

def come(*numbers):
    \"\"\"Let signals come while the main thread waits in C, which no signal interrupts.\"\"\"
    def send():
        while open(main).read().split()[1:2] != [waits]:
            time.sleep(0.001)
        for number in numbers:
            before = times(number)
            os.kill(os.getpid(), number)
            while times(number) == before:
                time.sleep(0.001)
        libc.pthread_mutex_unlock(lock)
    threading.Thread(target=send, daemon=True).start()
    libc.pthread_mutex_lock(lock)

INT, TERM = signal.SIGINT, signal.SIGTERM
told = lambda number=None: print("told", number and int(number), flush=True)
with interruptible(), INNER:
    come(NUMBERS)
    print("went on", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a lock is made of differs")
@pytest.mark.parametrize(
    ("inner", "numbers", "code", "out"),
    [
        ("on_interrupt(told)", "INT", 0, "told None\nwent on\n"),
        ("on_interrupt(told)", "INT, INT", 130, "told None\n"),
        ("on_stop(told)", "TERM", 0, "told 15\nwent on\n"),
        ("on_stop(told)", "TERM, TERM", 0, "told 15\ntold 15\nwent on\n"),
        ("on_stop(told)", "TERM, INT", 0, "told 2\ntold 15\nwent on\n"),
        ("on_stop(told)", "TERM, TERM, TERM", -15, "told 15\ntold 15\n"),
        ("on_stop(told)", "INT, INT, INT", 130, "told 2\ntold 2\n"),
        ("on_end(told)", "TERM", 0, "told 15\nwent on\n"),
        ("on_end(told)", "TERM, TERM", -15, None),  # told or not, as a thread hears them as well
    ],
)
def test_signals_that_come_while_c_is_at_work_all_count(inner, numbers, code, out):
    program = WHILE_C_IS_AT_WORK.replace("INNER", inner).replace("NUMBERS", numbers)
    program = f"try:\n    exec({program!r})\nexcept KeyboardInterrupt:\n    raise SystemExit(130)"
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == out or (out is None and "went on" not in done.stdout)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone():
    seen = []

    def work():
        with on_interrupt(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def run(code: str, *folders) -> subprocess.CompletedProcess[str]:
    prefix = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    prefix += f"sys.path += {[str(folder) for folder in folders]}\n"
    command = [sys.executable, "-P", "-c", prefix + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_within_an_import_that_would_answer_with_an_error_of_its_own(tmp_path):
    (tmp_path / "hiding.py").write_text(
        "import signal\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\n"
        "except BaseException:\n    raise ImportError('something is broken')\n"
    )
    done = run(
        "from specx.cli.terminal.interrupts import interruptible\nwith interruptible():\n    import hiding\n",
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_within_a_finalizer_where_python_drops_exceptions():
    done = run("""
from specx.cli.terminal.interrupts import interruptible
class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
with interruptible():
    Dying()
    print("went on")
""")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    "module",
    ["signal", "specx.backends.errors", "specx.cli.terminal.interrupts", "specx.cli.commands", "typer"],
)
def test_while_specx_begins(module):
    """Ctrl-C when a module is about to be imported, from the first one that `main` imports on."""
    done = run(f"""
from specx.cli.app import main
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.modules.pop({module!r}, None)
sys.argv = ["specx", "--version"]
main()
""")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_when_specx_ends():
    done = run("""
import atexit
from specx.cli.app import main
atexit.register(signal.raise_signal, signal.SIGINT)
sys.argv = ["specx", "--version"]
main()
""")
    assert (done.returncode, done.stderr) == (130, "") and done.stdout.startswith("specx ")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
def test_a_signal_that_comes_at_once(monkeypatch):
    """Before anything counts signals."""
    heard, told = interrupts.hearing, []

    @contextmanager
    def late(watch):
        signal.raise_signal(signal.SIGHUP)
        with heard(watch):
            yield

    monkeypatch.setattr(interrupts, "hearing", late)
    with on_end(told.append):
        pass
    assert told == [signal.SIGHUP]
