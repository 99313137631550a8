"""How a person types a message of several lines: between three quotes, or with backslashes at the ends."""

from __future__ import annotations

__all__ = ["QUOTES", "is_open", "unwrap"]

QUOTES = '"""'


def is_open(text: str) -> bool:
    """Whether a message goes on: it ends in a backslash, or its three quotes have not been closed."""
    if text.lstrip().startswith(QUOTES):
        return text.count(QUOTES) < 2
    return text.endswith("\\")


def unwrap(text: str) -> str:
    """The message without its three quotes and without the backslashes of continued lines."""
    text = text.strip("\n")
    inner = text.strip()
    if inner.startswith(QUOTES):
        return inner.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return text.replace("\\\n", "\n").removesuffix("\\")
