"""How `specx` begins and how every way to end becomes an exit code.

Ctrl-C counts from the first moment on, and an interrupt within an import would leave a traceback. So nothing
that Python has not loaded by itself is imported before `main` has seen to that.
"""

from __future__ import annotations

import os
import sys

from specx import cli
from specx.cli import INTERRUPTED  # this package: Python has loaded it

TYPE_CHECKING = False  # that of typing would have to be imported
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from specx.backends.errors import SpecxError

__all__ = ["main", "run"]

CLOSED_PIPE = 141
"""As a shell reports a program that SIGPIPE ended, which is what `| head -1` does to other tools."""

LEAST_ADDRESSES = 256 << 20
"""Bytes of addresses (`ulimit -v`) below which the modules that every command needs cannot be loaded."""

OBJECTS_AT_START = 400_000
"""New containers after which Python looks for garbage until a model is loaded. A start makes some 150,000."""


def main() -> None:
    """Entry point of the console script."""
    # Built in; the module around it takes milliseconds to import.
    import _signal as signal  # type: ignore[import-not-found]

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored: then it stays so
        signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(INTERRUPTED))
    # What is imported is no garbage: to look through it two hundred times takes a tenth of a start.
    import gc

    gc.set_threshold(OBJECTS_AT_START)
    cli.process_ends = True
    _leave(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and say how it ended.

    Returns:
        The exit code: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C, 141 if stdout was closed.
    """
    from specx.backends.errors import SpecxError
    from specx.cli.terminal.interrupts import interruptible

    try:
        with interruptible():
            _open_streams()
            _check_addresses()
            from specx.cli.commands import invoke

            _prepare_last_words()

            code = invoke(list(arguments))
            sys.stdout.flush()
    except SpecxError as problem:
        code = _report(problem)
    except KeyboardInterrupt:
        code = INTERRUPTED
        if sys.stderr.isatty():
            sys.stderr.write("\n")
    except BrokenPipeError:
        code = CLOSED_PIPE
        _abandon_stdout()
    except MemoryError:
        code = _report(
            SpecxError("there is too little memory", "end other programs, or take a smaller model")
        )
    except Exception as problem:  # noqa: BLE001 (the last resort: nobody should meet a traceback)
        code = _unexpected(problem, verbose="--verbose" in arguments or "-v" in arguments)
    return code


def _leave(code: int) -> NoReturn:
    """End the process, which the kernel does faster than Python takes its modules and objects apart.

    As at Python's own end, threads that are no daemons are waited for, then what is registered for the end
    runs, and what is written is flushed.
    """
    threads = sys.modules.get("threading")
    if threads is not None:
        threads._shutdown()  # a server's may not have ended yet
    import atexit

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            sys.exit(code)  # Python says what there is to say
    os._exit(code)


def _open_streams() -> None:
    """Give the streams that the shell closed (`<&-`) their numbers back, or a model file would get them.

    Raises:
        SpecxError: standard output is closed.
    """
    from specx.backends.errors import SpecxError

    output = sys.stdout
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    if output is None:
        raise SpecxError("standard output is closed", "send it somewhere: a terminal, a pipe or a file")


def _check_addresses() -> None:
    """Refuse to begin where a library would end the process for want of addresses.

    Raises:
        SpecxError: too few are allowed.
    """
    try:
        import resource
    except ImportError:  # not every system limits them
        return
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY and allowed < LEAST_ADDRESSES:
        from specx.backends.errors import SpecxError

        raise SpecxError(
            f"this process may use {allowed >> 20:,} MiB of memory (ulimit -v), and specx needs "
            f"{LEAST_ADDRESSES >> 20} before any model",
            "allow it more: ulimit -v unlimited",
        )


def _prepare_last_words() -> None:
    """Say why llama.cpp gives up, if it does, on a terminal that is as it was found."""
    from specx.backends.llama.last_words import before_the_end
    from specx.cli.terminal.console import error
    from specx.cli.terminal.restore import restore

    before_the_end(restore, error)


def _report(problem: SpecxError) -> int:
    try:
        from specx.cli.terminal.console import error

        error(problem)
    except MemoryError:
        os.write(2, f"error: {problem.message}\nhint: {problem.hint}\n".encode("utf-8", "replace"))
    return problem.exit_code


def _unexpected(problem: Exception, *, verbose: bool) -> int:
    import errno

    from specx.backends.errors import SpecxError, unexpected

    unwritable = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
    if isinstance(problem, OSError) and problem.filename is None and problem.errno in unwritable:
        _abandon_stdout()
        reason, hint = problem.strerror, "make room, or send it elsewhere"
        if problem.errno == errno.EBADF:
            reason, hint = "it was opened for reading", "send it somewhere: a terminal, a pipe or a file"
        return _report(SpecxError(f"the output cannot be written: {reason}", hint))
    if isinstance(problem, OSError) and problem.errno in (errno.EMFILE, errno.ENFILE):
        return _report(SpecxError("too many files are open", "allow more of them: ulimit -n 1024"))
    if isinstance(problem, FileNotFoundError) and problem.filename is None and _is_nowhere():
        return _report(SpecxError("the current folder was deleted", "go to another one: cd FOLDER"))
    if isinstance(problem, ImportError) and problem.name == "specx.kernels._native":
        return _report(SpecxError(f"specx's native code cannot be used: {problem.msg}", _rebuild()))
    if verbose:
        import traceback

        traceback.print_exception(problem)
    hint = "" if verbose else "run it again as `specx --verbose ...` to see where it happened"
    return _report(unexpected(problem, hint))


def _is_nowhere() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 (Path asks the same)
    except FileNotFoundError:
        return True
    return False


def _rebuild() -> str:
    from pathlib import Path

    source = Path(cli.__file__).parents[1]
    editable = (source / "pyproject.toml").is_file()
    return f"build it again: pip install -e {source}" if editable else "install specx again"


def _abandon_stdout() -> None:
    from specx.cli.terminal.console import abandon

    abandon(sys.stdout)
