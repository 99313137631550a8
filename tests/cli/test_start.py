"""What a start imports and a process leaves undone at its end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from specx import cli

PATIENCE = 240  # seconds that a process may take on a busy machine
NEEDLESS = (
    "asyncio",
    "http",
    "huggingface_hub",
    "importlib.metadata",
    "jinja2",
    "prompt_toolkit",
    "pydantic",
    "rich",
    "secrets",
    "socket",
    "ssl",
    "specx.backends.llama.rpc",
    "specx.cli.resident.remote",
    "starlette",
    "uvicorn",
)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def test_complete_imports_what_it_uses():
    done = python(
        "import sys; from specx.cli.commands import _load; _load('complete'); "
        "from specx.cli.generation import _session_class; _session_class(); import specx.engine.setup.open; "
        f"print(sorted(set({NEEDLESS}) & set(sys.modules)))"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("given", [None, "3"])
def test_the_environment_is_as_before_when_numpy_is_loaded(given):
    set_it = "" if given is None else f"os.environ['OPENBLAS_NUM_THREADS'] = {given!r}; "
    done = python(
        f"import os; {set_it}from specx.cli.generation import _session_class; _session_class(); "
        "print(os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    assert done.stdout == f"{given}\n"


def test_what_is_registered_for_the_end_runs_and_is_written():
    done = python(
        "import atexit, sys; atexit.register(lambda: print('the end', end='')); "
        "from specx.cli.app import main; sys.argv = ['specx', '--version']; main()"
    )
    version, end = done.stdout.splitlines()
    assert version.startswith("specx ") and end == "the end" and done.returncode == 0


def test_objects_are_not_taken_apart_at_the_end():
    code = (
        "import sys\n"
        "class Loud:\n"
        "    def __del__(self): print('freed')\n"
        "loud = Loud()\n"
        "from specx.cli.app import main\n"
        "sys.argv = ['specx', 'complete', '--nonsense']\n"
        "main()\n"
    )
    done = python(code)
    assert (done.stdout, done.returncode) == ("", 2) and "no such option" in done.stderr


def test_threads_that_go_on_are_waited_for():
    done = python(
        "import sys, threading, time; "
        "threading.Thread(target=lambda: (time.sleep(0.5), print('after'))).start(); "
        "from specx.cli.app import main; sys.argv = ['specx', '--version']; main()"
    )
    assert done.stdout.endswith("after\n") and done.returncode == 0


def test_what_native_code_holds_when_other_threads_end_late_is_no_leak():
    done = python(
        "import sys, threading, time; from specx.kernels._native import SuffixAutomaton; "
        "held = [SuffixAutomaton()]; held.append(held); "
        "threading.Thread(target=time.sleep, args=(0.5,)).start(); "
        "threading.Thread(target=lambda kept: time.sleep(60), args=(held,), daemon=True).start(); "
        "from specx.cli.app import main; sys.argv = ['specx', '--version']; main()"
    )
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("ends", [False, True])
def test_a_model_is_freed_unless_the_process_ends(specx, monkeypatch, ends):
    monkeypatch.setattr(cli, "process_ends", ends)
    assert specx("complete", specx.model, "-p", "Hi", "-n", "2").code == 0
    assert specx.session.closed and specx.session.freed is not ends
