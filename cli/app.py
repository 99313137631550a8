"""The `specx` command: its commands, and how every way to end becomes an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.main

from specx.backends.errors import SpecxError, UsageError
from specx.cli import cache, chat, complete, pull, show, verify
from specx.cli.config import config_path, option_defaults
from specx.cli.console import error
from specx.cli.help import GroupedCommand

__all__ = ["app", "main", "run"]

INTERRUPTED = 130
CLOSED_PIPE = 141
"""As a shell reports a program that SIGPIPE ended, which is what `| head -1` does to other tools."""

CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
"""The base of what parsing raises. Typer brings its own copy of click, in a private module."""

EPILOG = (
    "Options can also be set in the environment as SPECX_ and their long name (SPECX_CTX_SIZE=8192), by "
    "llama.cpp's LLAMA_ARG_ variables, and in config.toml in the user's configuration directory."
)

app = typer.Typer(
    name="specx",
    help="Faster decoding of GGUF models by speculation that never changes the text.",
    epilog=EPILOG,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the traceback of an unexpected error.")
    ] = False,
) -> None:
    """Show help, or read the configuration before a command runs."""
    if version:
        from specx import __version__

        typer.echo(f"specx {__version__}")
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
    elif config_path().is_file():
        commands: Any = ctx.command
        ctx.default_map = option_defaults(commands.commands)


for module in (chat, complete, verify, show, pull, cache):
    module.register(app)
for command in app.registered_commands:
    command.cls = GroupedCommand


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and say how it ended.

    Returns:
        The exit code: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C, 141 if stdout was closed.
    """
    try:
        code = _invoke(list(arguments))
        sys.stdout.flush()
    except SpecxError as problem:
        code = _report(problem)
    except CLICK_ERROR as problem:
        code = _parse_error(problem)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
        if sys.stderr.isatty():
            sys.stderr.write("\n")
    except BrokenPipeError:
        code = CLOSED_PIPE
        _abandon_stdout()
    except Exception as problem:  # noqa: BLE001 (the last resort: nobody should meet a traceback)
        code = _unexpected(problem, verbose="--verbose" in arguments or "-v" in arguments)
    return code


def _invoke(arguments: list[str]) -> int:
    if "_SPECX_COMPLETE" in os.environ:
        app(arguments, prog_name="specx")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal cannot show must not end a generation
            stream.reconfigure(errors="replace")
    command = typer.main.get_command(app)
    try:
        with command.make_context("specx", arguments) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return int(ended.exit_code)
    return 0


def _report(problem: SpecxError) -> int:
    error(problem)
    return problem.exit_code


def _parse_error(problem: Any) -> int:
    """A parser's complaint in the words of every other error."""
    if type(problem).__name__ == "NoArgsIsHelpError":  # a group of commands was named alone
        typer.echo(str(problem))
        return 0
    likely = getattr(problem, "possibilities", None)
    message = (problem.message if likely else problem.format_message()).rstrip(".")
    context = getattr(problem, "ctx", None)
    hint = f"see `{context.command_path if context else 'specx'} --help`"
    if likely:
        hint = f"did you mean {' or '.join(likely)}? {hint}"
    return _report(UsageError(message[:1].lower() + message[1:], hint))


def _unexpected(problem: Exception, *, verbose: bool) -> int:
    if verbose:
        traceback.print_exception(problem)
    text = str(problem).strip() or "no message"
    hint = "" if verbose else "run it again as `specx --verbose ...` to see where it happened"
    return _report(SpecxError(f"unexpected {type(problem).__name__}: {text}", hint))


def _abandon_stdout() -> None:
    """Whoever read stdout is gone: make the flush at exit silent."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        return
