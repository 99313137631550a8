"""libllama as llama-cpp-python ships it: its log, its build, and a guard against builds that crash.

Everything that touches the C library goes through here, `vocab.py` or `llama.py`. The low-level functions
are used throughout; the high-level `Llama` class is not.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.bare import bare_package
from specx.backends.errors import FileError, ModelError
from specx.backends.llama import last_words
from specx.backends.llama.callbacks import called_by_c
from specx.backends.places import is_model
from specx.backends.printable import printable

__all__ = [
    "build_fingerprint",
    "computing_here",
    "floats_at",
    "forget_log",
    "lib",
    "recent_errors",
    "recent_log",
    "runs_here",
    "set_log",
    "system_info",
]

_LOG_LINES = 200
_FUNCTION = re.compile(r"^[A-Za-z_][\w:~]*: ")
SELFTEST_S = 300.0  # loading a large model from a slow disk takes minutes
SPINS = "1000"  # of a thread that waits, before it sleeps; 10,000 are too many beside another process
_ERROR = 4  # of ggml's log levels
_log: deque[str] = deque(maxlen=_LOG_LINES)
_errors: deque[str] = deque(maxlen=_LOG_LINES)
_copy = ""  # the file that the log goes to as well
_keep_alive: list[Any] = []  # a collected log callback is a segmentation fault in the next log line


@functools.cache
def lib() -> Any:
    """The `llama_cpp` module with the backend initialised and the log captured."""
    # Threads wait for each other hundreds of times a token. Beside another busy process GNU's OpenMP would
    # spin through its share of the processors each time. It reads this when it is loaded, and loses nothing
    # by it when it is alone.
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    # Where llama.cpp gives up it would call a debugger; what is to be told is told by `last_words`.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    _share_cxx_library()
    llama_cpp = bare_package("llama_cpp", "llama_cpp")

    @called_by_c
    def on_log(level: int, text: bytes, _data: Any) -> None:
        line = text.decode("utf-8", "replace")
        _log.append(line)
        if level == _ERROR:
            _errors.append(line)
        _copied(line)

    callback = llama_cpp.llama_log_callback(on_log)
    _keep_alive.append(callback)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    last_words.install(llama_cpp.llama_cpp._lib)
    llama_cpp.llama_backend_init()
    return llama_cpp


@functools.cache
def _first_process() -> int:
    """That in which a model was loaded first."""
    return os.getpid()


def computing_here() -> None:
    """A model is loaded, or computes.

    Raises:
        ModelError: this process was forked from one that had loaded a model. The threads that compute have
            stayed there, and a step would wait for them without end.
    """
    if _first_process() != os.getpid():
        raise ModelError(
            "this process was forked from one in which a model had been loaded",
            'start it anew instead: multiprocessing.get_context("spawn")',
        )


def floats_at(pointer: Any, rows: int, columns: int) -> NDArray[np.float32]:
    """The array (rows, columns) at a pointer of libllama's; borrowed."""
    whole = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * (rows * columns))).contents
    floats: NDArray[np.float32] = np.ctypeslib.as_array(whole).reshape(rows, columns)
    return floats


def _share_cxx_library() -> None:
    """Have every library take the names of the C++ library from one copy of it.

    A libggml-cuda that was linked by nvcc can hold most of libstdc++ itself, and export it. Which copy
    libllama then gets hold of depends on what was loaded before, name by name, and with some of both
    `std::regex` calls a function of another class: the process dies while it reads a vocabulary.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # another C++ library
            ctypes.CDLL("libstdc++.so.6", mode=ctypes.RTLD_GLOBAL)


def set_log(file: str) -> None:
    """Add llama.cpp's own messages to a file as they come; "-" is standard error, "" none.

    Raises:
        FileError: the file cannot be written, or is a model.
    """
    global _copy  # noqa: PLW0603 -- the C library has one log for the whole process
    if file not in ("", "-"):
        hint = "name another file, or - for standard error"
        if is_model(Path(file)):
            raise FileError(f"--log-file: {file} is a model", hint)
        try:
            Path(file).open("a").close()
        except OSError as problem:
            raise FileError(f"--log-file: {file} cannot be written: {problem.strerror}", hint) from problem
    _copy = file


def _copied(line: str) -> None:
    text = printable(line)  # a model file has names in it
    if _copy == "-":
        sys.stderr.write(text)
    elif _copy:
        with suppress(OSError), Path(_copy).open("a", encoding="utf-8") as file:
            file.write(text)


def recent_log(contains: str = "") -> list[str]:
    """The last lines of llama.cpp's log, oldest first, optionally only those with `contains`."""
    lines = "".join(_log).splitlines()
    return [line for line in lines if contains in line]


def recent_errors() -> list[str]:
    """What llama.cpp called an error since the log was started, oldest first, without names of functions."""
    lines = (_FUNCTION.sub("", line).strip() for line in "".join(_errors).splitlines())
    return [line for line in lines if line]


def forget_log() -> None:
    """Start the log afresh, so that what `recent_log` finds belongs to what comes next."""
    _log.clear()
    _errors.clear()


def system_info() -> str:
    """llama.cpp's own line about the instruction sets it was built for."""
    text: bytes = lib().llama_print_system_info()
    return text.decode("utf-8", "replace").strip()


@functools.cache
def build_fingerprint() -> str:
    """Short hex digest of the native libraries in use and their build flags: a key for measurements."""
    module = lib()
    digest = hashlib.sha256(_version(module).encode())
    digest.update(system_info().encode())
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(module.__file__).parent / "lib")
    for path in sorted(folder.glob("*llama*")) + sorted(folder.glob("*ggml*")):
        digest.update(f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _version(module: Any) -> str:
    """Of llama-cpp-python, which says so in the part of it that is not imported."""
    said = re.search(
        r'^__version__ = "(.+)"', Path(module.__file__).read_text(encoding="utf-8"), re.MULTILINE
    )
    return said[1] if said else ""


def runs_here(model: Path) -> bool | None:
    """Whether this build of llama.cpp survives one small batch of `model`, tried in a child process.

    None means that nothing was found out: the child could not load the model, took too long, or crashed
    without AMX as well, for which a damaged model is enough.

    Some compilers miscompile the AMX path, which then faults at its first instruction. A build without
    AMX is trusted; with AMX the answer costs one load of the model and should be remembered by the caller
    under `build_fingerprint()`.
    """
    if "AMX_INT8 = 1" not in system_info():
        return True
    code = _selftest(model)
    if code < 0 and _selftest(model, "plain") == 0:
        return False
    return True if code == 0 else None


def _selftest(*arguments: Path | str) -> int:
    """Exit code of a batch in a child process, negative for a signal; 1 if it takes too long."""
    command = [sys.executable, "-P", "-m", "specx.backends.llama.selftest", *map(str, arguments)]
    try:
        return subprocess.run(command, capture_output=True, timeout=SELFTEST_S, check=False).returncode
    except subprocess.TimeoutExpired:
        return 1
