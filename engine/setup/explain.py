"""How decisions are told: with their numbers, to those who ask for them."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Explain", "gibibytes", "silent"]

Explain = Callable[[str], None]
"""Told one decision and the numbers it rests on, one sentence at a time."""


def silent(_text: str) -> None:
    """Nobody asked."""


def gibibytes(nbytes: int) -> str:
    """A size for people: "1.2 GiB", "35 MiB", "2 KiB"."""
    if nbytes >= 1 << 30:
        return f"{nbytes / (1 << 30):.1f} GiB"
    if 0 < nbytes < 1 << 20:
        return f"{nbytes / 1024:.0f} KiB" if nbytes >= 1 << 10 else f"{nbytes} bytes"
    return f"{max(nbytes, 0) / (1 << 20):.0f} MiB"
