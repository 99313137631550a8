"""How options are declared: the panel of the help that lists them, and what a shell completes them with."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import typer

from specx.backends.settings import CACHE_TYPES

__all__ = ["COMPLETING", "completed", "panel"]

COMPLETING = "_SPECX_COMPLETE" in os.environ
"""Whether a shell asks what an option may be: otherwise nobody needs to know."""


def completed(names: tuple[str, ...], metavar: str) -> Callable[[str], list[str]] | None:
    """What completes an option: the values in its metavar, types of a cache, or models."""
    from specx.cli.options.completing import model_names, values

    if "|" in metavar:
        return values(*(value for value in metavar.split("|") if value.islower()))
    if any("cache-type" in name for name in names):
        return values(*CACHE_TYPES)
    return model_names if {"-m", "-md"} & {*names} else None


def panel(name: str) -> Callable[..., Any]:
    """Declares the options of a panel."""

    def option(*names: str, text: str, **extra: Any) -> Any:
        if COMPLETING:
            extra["autocompletion"] = completed(names, extra.get("metavar") or "")
        return typer.Option(*names, help=text, rich_help_panel=name, **extra)

    return option
