"""`--adapt`: whether a draft head learns from what is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from specx.backends.errors import UsageError
from specx.cli.options.panels import panel
from specx.engine.settings import Asked

__all__ = ["AdaptOptions"]

_option = panel("Drafting")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptOptions:
    """Whether a draft head learns."""

    adapt: Annotated[
        bool,
        _option(
            "--adapt",
            text="Between answers, let the draft head learn from them: half the cores, 1 GiB, needs torch.",
        ),
    ] = False

    def of(self, asked: Asked) -> Asked:
        """What was asked, with this.

        Raises:
            UsageError: nothing may be kept.
        """
        if self.adapt and not asked.store:
            raise UsageError("--adapt keeps texts and a head, and --no-cache nothing", "give one of both")
        return replace(asked, adapt=self.adapt)
