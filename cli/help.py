"""Help in plain text, options under the headings of their groups.

Typer's own help needs Rich's Markdown and takes twice as long to appear as everything before it.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from specx.cli.options.values import quickened

__all__ = ["CLICK_ERROR", "GroupedCommand"]

WRONG_USAGE, CLICK_ERROR = typer.BadParameter.__mro__[1:3]
"""The bases of what parsing raises. Typer brings its own copy of click, in a private module."""


class GroupedCommand(TyperCommand):
    """A command whose options are listed under their `rich_help_panel`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, each of which reads its values quickly."""
        return quickened(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments."""
        try:
            return super().parse_args(ctx, args)
        except WRONG_USAGE as problem:
            problem.ctx = problem.ctx or ctx  # an option without its value does not say of which command
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                argument = parameter.param_type_name == "argument"
                heading = (
                    "Arguments" if argument else getattr(parameter, "rich_help_panel", None) or "Options"
                )
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records, col_max=34)
