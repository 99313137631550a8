"""The commands of `specx`, and what their parser complains about."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
import typer.main

from specx.backends.errors import UsageError
from specx.cli import cache, chat, complete, drafter, plan, probe, pull, show, verify
from specx.cli.bench import command as bench
from specx.cli.help import GroupedCommand
from specx.cli.options.config import config_path, option_defaults

__all__ = ["app", "invoke"]

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
    elif (path := config_path()) is not None:
        commands: Any = ctx.command
        ctx.default_map = option_defaults(path, commands.commands)


for module in (chat, complete, plan, bench, verify, probe, show, pull, drafter, cache):
    module.register(app)
for command in app.registered_commands:
    command.cls = GroupedCommand


def invoke(arguments: list[str]) -> int:
    """Run one command line; returns the exit code of a command that ended in order.

    Raises:
        SpecxError: it cannot be run, wrong usage included.
        KeyboardInterrupt: Ctrl-C.
    """
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
    except typer.Abort:
        raise KeyboardInterrupt from None
    except CLICK_ERROR as problem:
        if type(problem).__name__ != "NoArgsIsHelpError":
            raise _usage_error(problem) from None
        typer.echo(str(problem))  # a group of commands was named alone
    return 0


def _usage_error(problem: Any) -> UsageError:
    """A parser's complaint in the words of every other error."""
    likely = getattr(problem, "possibilities", None)
    message = (problem.message if likely else problem.format_message()).rstrip(".")
    context = getattr(problem, "ctx", None)
    hint = f"see `{context.command_path if context else 'specx'} --help`"
    parameters = context.command.params if context else ()
    if "extra argument" in message and any("-p" in parameter.opts for parameter in parameters):
        hint = f"a prompt goes after -p, in quotes; {hint}"
    if likely:
        hint = f"did you mean {' or '.join(likely)}? {hint}"
    return UsageError(message[:1].lower() + message[1:], hint)
