"""Work that calls itself once for every character, on a stack that is deep enough for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from specx.backends.errors import UsageError
from specx.backends.llama.deep_stack import on_deep_stack

DEEP = 64 << 20


def test_the_result_comes_back():
    assert on_deep_stack(lambda: 7, 100) == 7
    assert on_deep_stack(lambda: 7, DEEP) == 7


def test_an_exception_comes_back():
    with pytest.raises(KeyError, match="gone"):
        on_deep_stack(lambda: {}["gone"], DEEP)


def test_shallow_work_stays_in_its_thread():
    assert on_deep_stack(threading.current_thread, 100) is threading.current_thread()
    assert on_deep_stack(threading.current_thread, DEEP) is not threading.current_thread()


def test_the_size_of_other_stacks_stays():
    before = threading.stack_size()
    on_deep_stack(lambda: None, DEEP)
    assert threading.stack_size() == before


def test_no_room():
    with pytest.raises(UsageError, match="too long"):
        on_deep_stack(lambda: None, 1 << 50)
    assert on_deep_stack(lambda: 7, DEEP) == 7


def test_an_interrupt_waits_for_the_work():
    code = f"""
import os, signal, time
from specx.backends.llama.deep_stack import on_deep_stack
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may ignore it
done = []
def work():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.3)
    done.append(1)
try:
    on_deep_stack(work, {DEEP})
except KeyboardInterrupt:
    print("interrupted", done)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "interrupted [1]\n", done.stderr
    assert done.returncode != -signal.SIGINT
