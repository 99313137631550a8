"""llama.cpp gives up: one line says why, a second what to do, and the process ends with exit code 1."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import sys, threading
from specx.backends.llama import last_words
from specx.backends.llama.libllama import lib
library = lib().llama_cpp._lib
"""
ABORT = "library.ggml_abort(b'/a/b/model.cpp', 7, b'GGML_ASSERT(n > 0) failed')\n"
TOLD = "error: llama.cpp gave up: GGML_ASSERT(n > 0) failed (model.cpp:7)"


def run(code):
    return subprocess.run(
        [sys.executable, "-P", "-c", BEGIN + code], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_reason_is_told_and_what_was_written_is_not_lost():
    done = run("sys.stdout.write('written')\n" + ABORT)
    assert done.returncode == 1
    assert done.stdout == "written"
    error, hint = done.stderr.splitlines()
    assert error == TOLD
    assert hint.startswith("hint: ")


def test_the_model_is_named():
    done = run("last_words.working_on('a.gguf')\n" + ABORT)
    assert done.stderr.startswith(
        "error: llama.cpp gave up on a.gguf: GGML_ASSERT(n > 0) failed (model.cpp:7)\n"
    )


def test_from_a_thread_while_another_waits_within_c():
    code = f"""
import ctypes, time
thread = threading.Thread(target=lambda: {ABORT.strip()})
thread.start()
ctypes.CDLL(None).sleep(60)
"""
    done = run(code)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, TOLD)


def test_two_threads_at_once_tell_it_once():
    code = f"""
def give_up():
    {ABORT.strip()}
for _ in range(8):
    threading.Thread(target=give_up).start()
"""
    done = run(code)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == TOLD
    assert len(done.stderr.splitlines()) == 2


def test_an_exception_that_nobody_catches():
    done = run("library._ZSt9terminatev()")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("error: llama.cpp gave up: ")
    assert len(done.stderr.splitlines()) == 2


def test_what_is_to_be_put_in_order_comes_first():
    code = """
def restore(): sys.stderr.write('restored\\n')
def tell(problem): sys.stderr.write(f'told: {problem.message}\\n')
last_words.before_the_end(restore, tell)
"""
    done = run(code + ABORT)
    assert done.stderr.splitlines() == ["restored", TOLD.replace("error", "told")]
    assert done.returncode == 1


@pytest.mark.parametrize("where", ["restore", "tell"])
def test_what_fails_meanwhile_changes_nothing(where):
    restore, tell = (
        ("fail", "lambda p: sys.stderr.write(p.message)") if where == "restore" else ("int", "fail")
    )
    done = run(f"def fail(*_): raise ValueError\nlast_words.before_the_end({restore}, {tell})\n" + ABORT)
    assert done.returncode == 1
    assert "GGML_ASSERT(n > 0) failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_does_not_return_does_not_keep_the_process():
    code = "last_words.before_the_end(lambda: threading.Event().wait(), print)\n"
    done = run(code + ABORT)
    assert done.returncode == 1
