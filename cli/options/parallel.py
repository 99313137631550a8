"""`--parallel`: how many texts at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import typer

from specx.backends.errors import UsageError

__all__ = ["MOST_TEXTS", "ParallelOptions", "read_texts"]

NUMBER = re.compile(r"\d{1,3}", re.ASCII)
MOST_TEXTS = 256  # of llama.cpp: its LLAMA_MAX_SEQ


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelOptions:
    """How many texts there is room for."""

    parallel: Annotated[
        str | None,
        typer.Option(
            "-np",
            "--parallel",
            metavar="auto|N",
            help="Texts that are written at once; auto goes by memory and speed.",
            show_default="one",
            envvar="LLAMA_ARG_N_PARALLEL",
        ),
    ] = None


def read_texts(parallel: str) -> int | None:
    """A number of texts; None for "auto", which llama.cpp writes as -1.

    Raises:
        UsageError: it is neither.
    """
    if parallel in ("auto", "-1"):
        return None
    number = int(parallel) if NUMBER.fullmatch(parallel) else 0
    if not 1 <= number <= MOST_TEXTS:
        raise UsageError(f"-np/--parallel is {parallel!r}", f"give auto, or a number from 1 to {MOST_TEXTS}")
    return number
