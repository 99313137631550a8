"""Answers of gpt-oss, which consist of messages in channels: the harmony format.

A message is a header, `<|message|>` and its text, up to `<|end|>` or the start of the next one. An analysis
is reasoning, what is said to a function is a call, and the rest is content.
"""

from __future__ import annotations

import re
from typing import Literal

from specx.engine.api.call_readers import WrongError, read_arguments
from specx.engine.api.parsing import Part, StagedParser, overlap

__all__ = ["HARMONY", "HarmonyParser"]

HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>")
"""Control tokens that structure an answer; a template that has the first four writes messages so."""

_MESSAGE, _ENDS = "<|message|>", ("<|end|>", "<|start|>")
_BEGINNINGS = ("<|channel|>", "<|start|>", "to=")
_RECIPIENT = re.compile(r"to=(?:functions\.)?([^\s<]+)")

_Kind = Literal["content", "reasoning"]


class HarmonyParser(StagedParser):
    """Takes such an answer in arbitrary pieces.

    Args:
        calls: whether there are functions to be called; else what is said to one is content.
    """

    def __init__(self, *, calls: bool) -> None:
        super().__init__()
        self._calls = calls
        self._stage = self._beginning
        self._kind: _Kind = "content"
        self._header, self._name = "", ""  # of a call
        self._said: set[str] = set()  # kinds of text that there were so far
        self._fresh = False  # whether nothing of this message was told yet

    def _beginning(self) -> bool:
        text = self._held.lstrip()
        if not self._ended and any(each.startswith(text) for each in _BEGINNINGS):
            return False
        self._stage = self._in_header if text.startswith(_BEGINNINGS) else self._in_message
        return True

    def _in_header(self) -> bool:
        header, found, rest = self._held.partition(_MESSAGE)
        if not found:
            if self._ended:  # a header that was cut short says nothing
                self._held = ""
                self._say("content", "" if header.lstrip().startswith(_BEGINNINGS) else header)
            return False
        recipient = _RECIPIENT.search(header) if self._calls else None
        self._kind = "reasoning" if "<|channel|>analysis" in header else "content"
        self._name = recipient[1] if recipient is not None else ""
        self._header, self._held, self._fresh = header + found, rest, True
        self._stage = self._in_message
        return True

    def _in_message(self) -> bool:
        ends = [at for each in _ENDS if (at := self._held.find(each)) >= 0]
        if ends or self._ended:
            at = min(ends, default=len(self._held))
            text, self._held = self._held[:at], self._held[at:].removeprefix("<|end|>")
            self._finish_message(text, cut=self._full and not ends)
            self._stage, self._name = self._in_header, ""
            return bool(self._held)
        if not self._name:
            size = len(self._held) - max(overlap(self._held, end) for end in _ENDS)
            text, self._held = self._held[:size], self._held[size:]
            self._say(self._kind, text)
        return False

    def _finish_message(self, text: str, *, cut: bool) -> None:
        if not self._name:
            self._say(self._kind, text)
            return
        try:
            self._parts.append(Part("call", call=read_arguments(self._name, text)))
        except (ValueError, RecursionError, WrongError):
            self.cut = cut
            self._say("content", "" if cut else self._header + text)

    def _say(self, kind: _Kind, text: str) -> None:
        if not text:
            return
        if self._fresh and kind in self._said:
            text = "\n\n" + text
        self._fresh = False
        self._said.add(kind)
        self._parts.append(Part(kind, text))
