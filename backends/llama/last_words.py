"""What is told when llama.cpp gives up: a check of its own fails, or an exception of C++ is not caught.

Either ends the process wherever it happens, in a thread of llama.cpp's as well. So the reason is told from
within, the terminal and the output are left as they should be, and the process ends with exit code 1.

Nothing of this may hang: a thread of llama.cpp's gets Python's lock, because whoever waits for it has given
the lock away, and a timer that needs no lock ends the process if anything else does not return.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from specx.backends.errors import ModelError
from specx.backends.llama.callbacks import called_by_c

if TYPE_CHECKING:
    import ctypes

__all__ = ["before_the_end", "ending_with", "install", "working_on"]

LONGEST_S = 3.0  # until the process ends, whatever is still to be done
_PLACE = re.compile(r"(?:.*[/\\])?(?P<file>[^/\\:]+):(?P<line>\d+): (?P<what>.*)", re.DOTALL)

_RPC = "ggml-rpc.cpp:"

_ending = threading.Lock()
_keep_alive: list[Any] = []
_actions: list[Callable[[], None]] = []
_tell: list[Callable[[ModelError], None]] = []
_model = ""


def working_on(model: str) -> None:
    """`model` is the name of the model that llama.cpp was given last."""
    global _model  # noqa: PLW0603 -- the C library has one callback for the whole process
    _model = model


def before_the_end(action: Callable[[], None], tell: Callable[[ModelError], None]) -> None:
    """Have `action` run before the reason is told, and the reason be told by `tell`.

    Both may be called in any thread, while another one is within llama.cpp.
    """
    _actions[:], _tell[:] = [action], [tell]


@contextmanager
def ending_with(action: Callable[[], None]) -> Iterator[None]:
    """Where llama.cpp gives up inside, `action` runs as well, before the reason is told."""
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


def install(library: ctypes.CDLL) -> None:
    """Be told when llama.cpp gives up.

    Args:
        library: libllama. What it depends on is found through it: a wheel has several copies of ggml, and
            only one of them is in use.
    """
    import ctypes  # commands that load no model are spared it

    on_abort = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_on_abort)
    library.ggml_set_abort_callback.restype = ctypes.c_void_p
    library.ggml_set_abort_callback(on_abort)
    _keep_alive.append(on_abort)
    with suppress(AttributeError):  # another C++ library than those of GNU and LLVM: then it ends as it did
        set_terminate = library._ZSt13set_terminatePFvvE
        on_terminate = ctypes.CFUNCTYPE(None)(called_by_c(lambda: _end(_uncaught(library))))
        set_terminate.restype = ctypes.c_void_p
        set_terminate(on_terminate)
        _keep_alive.append(on_terminate)


@called_by_c
def _on_abort(message: bytes) -> None:
    _end(_reason(message.decode("utf-8", "replace").strip()))


def _uncaught(library: ctypes.CDLL) -> str:
    """What was thrown and not caught."""
    import ctypes

    with suppress(AttributeError, ValueError):
        library.__cxa_current_exception_type.restype = ctypes.POINTER(ctypes.c_char_p)
        thrown = library.__cxa_current_exception_type()
        if thrown:  # a std::type_info: its table of functions, and its name
            library.__cxa_demangle.restype = ctypes.c_char_p
            name = library.__cxa_demangle(thrown[1], None, None, None) or thrown[1]
            return f"it met an error that it does not handle ({name.decode('ascii', 'replace')})"
    return "it met an error that it does not handle"


def _reason(message: str) -> str:
    """What llama.cpp says, its own place in the source behind it."""
    match = _PLACE.fullmatch(message)
    if match is None:
        return message
    what = " ".join(match["what"].split())
    return f"{what} ({match['file']}:{match['line']})"


def _end(reason: str) -> None:
    """Tell why, and end the process. The first caller does; others wait for that."""
    if not _ending.acquire(blocking=False):
        while True:
            time.sleep(1)
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            faulthandler.dump_traceback_later(LONGEST_S, exit=True, file=nowhere)
            for action in _actions:
                with suppress(Exception):
                    action()
            with suppress(Exception):
                sys.stdout.flush()
            _told(_problem(reason))
            with suppress(Exception):
                sys.stderr.flush()
    finally:
        os._exit(ModelError.exit_code)


def _problem(reason: str) -> ModelError:
    of = f" on {_model}" if _model else ""
    if _RPC in reason:
        return ModelError(
            f"an RPC server can be used no more: {reason}",
            "see whether it still runs, of the same version of llama.cpp, and with memory for its layers",
        )
    return ModelError(
        f"llama.cpp gave up{of}: {reason}",
        "the file may be damaged, or need a newer llama.cpp: `specx show` tells what it holds, and "
        "--log-file - shows what llama.cpp did",
    )


def _told(problem: ModelError) -> None:
    for tell in _tell:
        with suppress(Exception):
            tell(problem)
            return
    with suppress(OSError):
        os.write(2, f"error: {problem.message}\nhint: {problem.hint}\n".encode("utf-8", "replace"))
