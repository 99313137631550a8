"""Help in plain text, options under the headings of their groups.

Typer's own help needs Rich's Markdown and takes twice as long to appear as everything before it.
"""

from __future__ import annotations

import os
import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from specx.backends.errors import UsageError
from specx.cli.options.foreign import own_name
from specx.cli.options.values import quickened

__all__ = ["CLICK_ERROR", "GroupedCommand", "ListedGroup", "source", "taken_option"]

NEEDED = re.compile(r"^\{([^{}|]+)\}")
WRONG_USAGE: type[Exception] = typer.BadParameter.__mro__[1]
WHOLE = 1000  # characters of a sentence that is not to be cut
CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
"""The bases of what parsing raises. Typer brings its own copy of click, in a private module."""


def source(parameter: Any, context: Any) -> str:
    """Where a value is from, if that is the environment or the configuration file."""
    source = context.get_parameter_source(parameter.name)
    if source is not None and source.name == "DEFAULT_MAP":
        return " (from the configuration file)"
    if source is None or source.name != "ENVIRONMENT":
        return ""
    names = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or ()
    return next((f" (from {name})" for name in names if os.environ.get(name)), "")


def taken_option(context: Any) -> tuple[str, str] | None:
    """What is wrong and what to do where an option took the next one for its value: llama.cpp's may stand
    alone. None if none did; a text may be anything."""
    parameters = context.command.params
    names = (name for parameter in parameters for name in getattr(parameter, "opts", ()))
    options = {name for name in names if name.startswith("-")}  # an argument has one as well
    for parameter in parameters:
        value, texts = context.params.get(parameter.name), parameter.metavar in ("TEXT", "GBNF", "SCHEMA")
        if isinstance(value, str) and value in options and not texts and parameter.opts[0].startswith("-"):
            one = parameter.metavar or "VALUE"
            return (
                f"{parameter.opts[0]} took {value} for its value",
                f"give it one: {parameter.opts[0]} {one}",
            )
    return None


class ListedGroup(TyperGroup):
    """A group that says of each command all that there is to say of it in one sentence, on as many lines as
    that takes: click would end it after one."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands."""
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, each.get_short_help_str(WHOLE)) for name, each in named if each and not each.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class GroupedCommand(TyperCommand):
    """A command whose options are listed under their `rich_help_panel`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, each of which reads its values quickly."""
        return quickened(super().get_params(ctx))

    def make_parser(self, ctx: Any) -> Any:
        """A parser that knows what other programs call options, before it takes one for a row of letters."""
        parser: Any = super().make_parser(ctx)
        read = parser._process_opts  # no other place sees options and no values

        def read_known(text: str, state: Any) -> None:
            name, equals, value = text.partition("=")
            if not ctx.resilient_parsing:
                own = (*parser._long_opt, *parser._short_opt)
                name = own_name(name, own, ctx.find_root().command.every_command())
            read(f"{name}{equals}{value}", state)

        parser._process_opts = read_known
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments."""
        try:
            rest: list[str] = super().parse_args(ctx, list(args))
            if ctx.resilient_parsing:  # a shell asks how the line may go on
                return rest
            if (profile := ctx.params.get("profile")) is not None:
                from specx.cli.options.config import profile_defaults

                found = profile_defaults(profile, ctx.info_name, ctx.find_root().command.every_command())
                ctx.default_map = {**(ctx.default_map or {}), **found}
                ctx.params.clear()
                rest = super().parse_args(ctx, list(args))
        except WRONG_USAGE as problem:
            wrong: Any = problem
            wrong.ctx = wrong.ctx or ctx  # an option without its value does not say of which command
            raise
        if taken := taken_option(ctx):
            raise UsageError(*taken)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command. What it says is wrong with a value is told with where that is from."""
        try:
            return super().invoke(ctx)
        except UsageError as problem:
            words = set(re.split(r"[\s/:]+", problem.message))
            named = (p for p in self.params if words.intersection((*p.opts, *p.secondary_opts)))
            problem.message += next(filter(None, (source(parameter, ctx) for parameter in named)), "")
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What follows the command; an argument that must be there has no braces around its name."""
        return [NEEDED.sub(r"\1", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                argument = parameter.param_type_name == "argument"
                if argument:  # its name says enough; Typer adds the type of Python
                    record = (parameter.metavar, record[1])
                heading = (
                    "Arguments" if argument else getattr(parameter, "rich_help_panel", None) or "Options"
                )
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records, col_max=34)
