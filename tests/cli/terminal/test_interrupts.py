"""Ctrl-C while C calls back into Python, where ctypes would swallow an exception."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from specx.cli.terminal.interrupts import interruptible, on_interrupt

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
