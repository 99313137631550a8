"""The options that are about a model that stays loaded: of `specx serve`, and of the commands that use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from specx.cli.options.panels import panel

__all__ = ["SERVER", "ResidentOptions", "ServerOptions"]

SERVER = ("auto", "no")

IDLE = "30m"

_option = panel("In the background")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentOptions:
    """A server that goes on when its shell does not."""

    background: Annotated[
        bool,
        _option("--background", text="Return when it answers, and go on without a terminal."),
    ] = False
    idle: Annotated[
        str | None,
        _option(
            "--idle",
            text="End after so long without a request: 90s, 30m, 1h; 0 is never.",
            metavar="TIME",
            show_default=f"{IDLE} in the background, else never",
        ),
    ] = None
    status: Annotated[bool, _option("--status", text="List the servers that commands here can use.")] = False
    stop: Annotated[bool, _option("--stop", text="End the one that holds MODEL, or the only one.")] = False
    every: Annotated[bool, _option("--all", text="With --stop: end all of them.")] = False

    @property
    def idle_s(self) -> float | None:
        """Seconds without a request after which it ends; None for never.

        Raises:
            UsageError: it is no time.
        """
        from specx.cli.options.values import duration

        given = self.idle if self.idle is not None else IDLE if self.background else "0"
        return duration("--idle", given) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Whose memory the model is in. None of it changes the text."""

    server: Annotated[
        str,
        panel("Model")(
            "--server",
            text="Use a running `specx serve` of this model and these settings: if there is one, or never.",
            metavar="|".join(SERVER),
        ),
    ] = "auto"
