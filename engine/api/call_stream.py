"""Calls told while they are written: where a grammar sees to it that they have the shape of their format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from specx.engine.api.parsing import Call, Part

__all__ = ["CallStream"]

Status = Literal["more", "done", "odd"]


class CallStream:
    """One block of calls, behind its opening.

    Args:
        lead: what comes before the first call.
        heads: what a call of each tool begins with -> name of the tool; its arguments follow, a JSON object.
        tail: what a call ends with.
        between: what stands before another call; None if the block has but one.
        end: what the block ends with.

    Attributes:
        told: whether a call has begun; until then nothing was taken.
    """

    def __init__(self, lead: str, heads: Mapping[str, str], tail: str, between: str | None, end: str) -> None:
        self._lead, self._heads, self._tail, self._between, self._end = lead, heads, tail, between, end
        self._stage: Literal["head", "arguments", "tail"] = "head"
        self._depth = 0  # of braces in the arguments
        self._quoted = self._escaped = False
        self.told = False

    def take(self, text: str) -> tuple[list[Part], str, Status]:
        """Take what is complete of `text`.

        Returns:
            What that adds; the rest of the text; and whether there is more to come, the block is done, or
            something else stands there.
        """
        parts: list[Part] = []
        while True:
            if self._stage == "head":
                status, text = self._head(text, parts)
            elif self._stage == "arguments":
                status, text = self._arguments(text, parts)
            else:
                status, text = self._after(text)
            if status is not None:
                return parts, text, status

    @property
    def within(self) -> bool:
        """Whether what is still held is no text of its own: the middle of a call, or its tail."""
        return self._stage != "head"

    def _head(self, text: str, parts: list[Part]) -> tuple[Status | None, str]:
        for head, name in self._heads.items():
            whole = self._lead + head
            if text.startswith(whole + "{"):
                self._stage, self.told = "arguments", True
                parts.append(Part("call", call=Call(name, "")))
                return None, text[len(whole) :]
        begins = any((self._lead + head + "{").startswith(text) for head in self._heads)
        return ("more" if begins else "odd"), text

    def _arguments(self, text: str, parts: list[Part]) -> tuple[Status | None, str]:
        end = len(text)
        for place, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = char == "\\", char != '"'
            elif char == '"':
                self._quoted = True
            elif char in "{}":
                self._depth += 1 if char == "{" else -1
                if not self._depth:
                    self._stage, end = "tail", place + 1
                    break
        if end:
            parts.append(Part("arguments", text[:end]))
        return (None if self._stage == "tail" else "more"), text[end:]

    def _after(self, text: str) -> tuple[Status | None, str]:
        last = self._tail + self._end
        if text.startswith(last):
            return "done", text[len(last) :]
        another = last if self._between is None else self._tail + self._between
        if text.startswith(another):
            self._lead, self._stage = "", "head"
            return None, text[len(another) :]
        return ("more" if last.startswith(text) or another.startswith(text) else "odd"), text
