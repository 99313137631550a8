"""`specx drafter`: what can draft for a model, and making drafters."""

from __future__ import annotations

import typer

from specx.cli.drafter import inspect, listing, shrink, train, trim
from specx.cli.help import ListedGroup

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    text = "Show what can draft for a model here, and make drafters."
    group = typer.Typer(help=text, no_args_is_help=True, cls=ListedGroup)
    for module in (listing, inspect, trim, shrink, train):
        module.register(group)
    app.add_typer(group, name="drafter")
