"""The commands of `specx`, and what their parser complains about.

A command is one line of `TABLE` and a module, which is imported when the command runs or shows its help.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from itertools import chain
from typing import Annotated, Any, NamedTuple

import typer
import typer.main
from typer.core import TyperCommand

from specx.backends.errors import UsageError
from specx.cli.help import CLICK_ERROR, GroupedCommand, ListedGroup, source, taken_option
from specx.cli.options.values import quickened

__all__ = ["TABLE", "app", "every_command", "invoke"]


class Entry(NamedTuple):
    """A command whose module is not imported yet."""

    module: str
    """Below `specx.cli`; its `register` adds the command to a Typer application."""

    help: str
    """The first line of its help."""


TABLE = {
    "chat": Entry("chat", "Talk to a model."),
    "complete": Entry("complete", "Continue a prompt from -p, -f or standard input."),
    "batch": Entry("batch.command", "Answer many requests from a file or a pipe, several at once."),
    "serve": Entry("serve.command", "Answer other programs, over HTTP and as OpenAI's API does."),
    "plan": Entry(
        "plan", "Say what would be decided for a model here, and why: memory, placement, kernels, drafts."
    ),
    "bench": Entry(
        "bench.command",
        "Compare drafted with plain decoding: speed, latency and text, taking turns on the same prompts.",
    ),
    "verify": Entry(
        "verify", "Compare drafted text with plain text, token by token, and say how exact this machine is."
    ),
    "probe": Entry(
        "probe",
        "Say what this machine is and can do; with a model, find the number of threads that is best for it.",
    ),
    "show": Entry("show", "Show what a model file holds and what it takes to run it."),
    "pull": Entry(
        "pull", "Download a model once, into the cache that llama.cpp and Hugging Face tools use too."
    ),
    "drafter": Entry("drafter", "Show what can draft for a model here, and make drafters."),
    "cache": Entry(
        "cache", "Show or clear what specx keeps on this machine, and give it texts to draft from."
    ),
    "completion": Entry(
        "completion",
        "Write the script that makes a shell complete commands, options, their values and models.",
    ),
}
"""The commands by name, in the order in which they are listed."""

NOT_A_NUMBER = {"valid integer": "a whole number", "valid number": "a number"}
BOUND = re.compile(r"should be (greater|less) than or equal to (-?[\d.]+)")
EPILOG = (
    "Options can also be set in the environment as SPECX_ and their long name (SPECX_CTX_SIZE=8192), by "
    "llama.cpp's LLAMA_ARG_ variables, and in config.toml in the user's configuration directory."
)


@cache
def _load(name: str) -> Any:
    """A command from its module."""
    alone = typer.Typer(rich_markup_mode=None, add_completion=False)
    alone.callback()(lambda: None)  # without one, the only command of an application loses its name
    import_module(f"specx.cli.{TABLE[name].module}").register(alone)
    groups = [group.typer_instance for group in alone.registered_groups]
    below = [group.registered_commands for group in groups if group is not None]
    for command in (*alone.registered_commands, *chain.from_iterable(below)):
        command.cls = GroupedCommand
    group: Any = typer.main.get_command(alone)
    return group.commands[name]


class _Commands(Mapping[str, Any]):
    def __getitem__(self, name: str) -> Any:
        if name not in TABLE:
            raise KeyError(name)
        return _load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(TABLE)

    def __len__(self) -> int:
        return len(TABLE)


def every_command() -> Mapping[str, Any]:
    """The click commands by name. Each is loaded when it is looked up."""
    return _Commands()


class LazyGroup(ListedGroup):
    """A group that lists its commands from `TABLE` and loads the one that is named."""

    every_command = staticmethod(every_command)

    def __init__(self, **settings: Any) -> None:
        listed = {name: TyperCommand(name, help=entry.help) for name, entry in TABLE.items()}
        super().__init__(**{**settings, "commands": listed})

    def get_params(self, ctx: Any) -> list[Any]:
        """The options of `specx` itself."""
        return quickened(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that is named first in `args`, and the rest of them."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else _load(name), rest


app = typer.Typer(
    name="specx",
    cls=LazyGroup,
    help="Faster decoding of GGUF models by speculation that never changes the text.",
    epilog=EPILOG,
    invoke_without_command=True,
    add_completion=False,
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
    from specx.cli.options.config import config_path, option_defaults

    running = ctx.invoked_subcommand
    if version:
        from specx import __version__

        typer.echo(f"specx {__version__}")
    elif running is None:
        typer.echo(ctx.get_help())
    elif (path := config_path()) is not None:
        ctx.default_map = {running: option_defaults(path, running, every_command())}


def invoke(arguments: list[str]) -> int:
    """Run one command line; returns the exit code of a command that ended in order.

    Raises:
        SpecxError: it cannot be run, wrong usage included.
        KeyboardInterrupt: Ctrl-C.
    """
    if "_SPECX_COMPLETE" in os.environ:
        from specx.cli.completion import answer

        sys.stdout.write(answer(typer.main.get_command(app), arguments))
        return 0
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal cannot show must not end a generation
            stream.reconfigure(errors="replace")
    for size in ("COLUMNS", "LINES"):
        if not os.environ.get(size, "").strip("0"):  # none is known; Rich would write nothing at all
            os.environ.pop(size, None)
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
    context = getattr(problem, "ctx", None)
    if (parameter := getattr(problem, "param", None)) is not None and context is not None:
        if wanted := _wanted(problem.message):
            given = _quoted(getattr(problem, "given", ""))
            told = f"{_named(parameter)} is {given}{source(parameter, context)}"
            return UsageError(told, f"give {wanted}; see `{context.command_path} --help`")
        problem.message += source(parameter, context)
    message = (problem.message if likely else problem.format_message()).rstrip(".")
    hint = f"see `{context.command_path if context else 'specx'} --help`"
    parameters = context.command.params if context else ()
    if "extra argument" in message and any("-p" in parameter.opts for parameter in parameters):
        if taken := taken_option(context):
            return UsageError(*taken)
        hint = f"a prompt goes after -p, in quotes; {hint}"
    option = getattr(problem, "option_name", None)
    if "requires an argument" in message and (one := _value_of(str(option), parameters)):
        hint = f"give it one: {one}; {hint}"
    elif option and context is not None and context.parent is None and _takes(option):
        hint = f"it comes after the command: specx COMMAND {option}; {hint}"
    elif likely:
        hint = f"did you mean {' or '.join(likely)}? {hint}"
    return UsageError(message[:1].lower() + message[1:], hint)


def _value_of(option: str, parameters: Any) -> str:
    """An option with what its help says for its value; empty where that is not known."""
    metavars = (parameter.metavar for parameter in parameters if option in parameter.opts)
    return next((f"{option} {metavar}" for metavar in metavars if metavar), "")


def _wanted(message: str) -> str:
    """What a value ought to be that Pydantic says `message` of; empty if that is not known."""
    for phrase, words in NOT_A_NUMBER.items():
        if phrase in message:
            return words
    bound = BOUND.search(message)
    return f"a number of at {'least' if bound[1] == 'greater' else 'most'} {bound[2]}" if bound else ""


def _named(parameter: Any) -> str:
    """An option as every other error calls it: by its first name, and its first long one."""
    first = parameter.opts[0]
    long = next((name for name in parameter.opts if name.startswith("--")), first)
    return str(first) if long == first else f"{first}/{long}"


def _quoted(given: Any) -> str:
    """What was given, in quotes unless it is a number; of an option that may be repeated, all of it."""
    if isinstance(given, list | tuple):
        return ", ".join(map(_quoted, given))
    return str(given) if re.fullmatch(r"[+-]?[0-9.]+", str(given)) else repr(given)


def _takes(option: str) -> bool:
    """Whether a command has it."""
    parameters = (parameter for command in every_command().values() for parameter in command.params)
    return any(option in parameter.opts for parameter in parameters)
