"""How options are declared: the panel of the help that lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

__all__ = ["panel"]


def panel(name: str) -> Callable[..., Any]:
    """Declares the options of a panel."""

    def option(*names: str, text: str, **extra: Any) -> Any:
        return typer.Option(*names, help=text, rich_help_panel=name, **extra)

    return option
