"""Text of others on a terminal: a model, a file or a name must not be able to drive it."""

from __future__ import annotations

import re

__all__ = ["is_text", "one_line", "printable"]

CONTROLS = re.compile(
    r"\r\n|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""C0 and C1 controls but tabs and ends of lines, what turns text around, bytes that are not UTF-8."""


def is_text(text: str) -> bool:
    """Whether UTF-8 can express `text`: not the lone surrogates that stand for bytes or come from JSON."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """`text` with its control characters written as escapes, such as `\\x1b`."""
    return CONTROLS.sub(_escape, text)


def one_line(text: str) -> str:
    """The same with ends of lines and tabs escaped, too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    if char == "\r\n":
        return "\n"
    if "\udc80" <= char <= "\udcff":  # a byte that is not UTF-8, as Python keeps it
        return f"\\x{ord(char) - 0xDC00:02x}"
    return f"\\x{ord(char):02x}" if char < "\u0100" else f"\\u{ord(char):04x}"
