"""A prompt with gaps: `Summarize: {text}`, filled from the columns of a table or the fields of an object."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from typing import Any

from specx.backends.errors import UsageError

__all__ = ["LINE_FIELDS", "Template"]

LINE_FIELDS = ("text", "line", "")
"""What a plain line is called in a template; the last one is `{}`."""

HINT = "a gap is a name in braces, such as {text}; braces of the text itself are doubled: {{ and }}"


class Template:
    """A text with gaps in braces; doubled braces are single ones of the text.

    Args:
        text: the template.

    Attributes:
        text: the template itself.
        fields: names of the gaps, in order, each once.

    Raises:
        UsageError: a brace is left open, or something stands behind a name.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts: list[tuple[str, str | None]] = []
        try:
            for before, name, form, conversion in string.Formatter().parse(text):
                if form or conversion:
                    tail = f":{form}" if form else f"!{conversion}"
                    raise UsageError(f"--template has {{{name}{tail}}}", HINT)
                self._parts.append((before, name))
        except ValueError as problem:
            raise UsageError(f"--template cannot be read: {problem}", HINT) from problem
        self.fields = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))

    def check(self, names: Iterable[str], what: str) -> None:
        """Whether every gap has one of the `names` that `what` has.

        Raises:
            UsageError: one does not.
        """
        names = tuple(names)
        for field in self.fields:
            if field not in names:
                shown = ", ".join(name or "{}" for name in names[:20])
                raise UsageError(
                    f"--template names {{{field}}}, which {what} does not have", f"it has {shown}"
                )

    def fill(self, values: Mapping[str, Any]) -> str:
        """The text with `values` in its gaps: strings as they are, other values as JSON.

        Raises:
            KeyError: a value is missing.
        """
        text = []
        for before, name in self._parts:
            text.append(before)
            if name is not None:
                value = values[name]
                text.append(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        return "".join(text)
