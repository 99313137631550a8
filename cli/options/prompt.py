"""The options of a prompt, a group as those of `groups`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from specx.cli.options.panels import panel

__all__ = ["PromptOptions"]

_prompt = panel("Prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """What the model is asked."""

    TEXTS: ClassVar = ("prompt", "system_prompt")  # what must be UTF-8

    prompt: Annotated[str | None, _prompt("-p", "--prompt", text="The prompt.", metavar="TEXT")] = None
    file: Annotated[
        Path | None,
        _prompt("-f", "--file", text="A file with the prompt (- is standard input); it comes before -p."),
    ] = None
    system_prompt: Annotated[
        str | None, _prompt("-sys", "--system-prompt", text="The system message.", metavar="TEXT")
    ] = None
    escape: Annotated[
        bool,
        _prompt("-e", "--escape", text=r"Turn \n, \t and the like in -p, -sys and -r into characters."),
    ] = False
