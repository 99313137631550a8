"""An answer taken apart as it streams: what the model thinks, what it says, and the tools that it calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["AnswerParser", "Call", "CallReader", "Parser", "Part", "StagedParser", "Tags", "overlap"]


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands before and after the model's reasoning."""

    opening: str
    closing: str


@dataclass(frozen=True, slots=True)
class Call:
    """A tool called: its name, its arguments as a JSON text, and its id if the model gave one."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer: text of a kind, a call, or more of the arguments of the last one."""

    kind: Literal["content", "reasoning", "call", "arguments"]
    text: str = ""
    call: Call | None = None


class Parser(Protocol):
    """Takes an answer apart.

    Attributes:
        cut: whether the answer has ended within a call.
    """

    cut: bool

    def feed(self, text: str) -> list[Part]:
        """The parts that `text` completes."""

    def finish(self, *, full: bool = False) -> list[Part]:
        """What is left at the end, which is that of a limit if the answer is `full`."""


class StagedParser:
    """A `Parser` that goes from stage to stage.

    A stage takes from what is held, adds to the parts, and says whether there is more to do; it may set the
    next stage. After the end of the answer, nothing more is waited for.

    Attributes:
        cut: whether the answer has ended within a call.
    """

    cut = False

    def __init__(self) -> None:
        self._held = ""
        self._ended = self._full = False
        self._parts: list[Part] = []
        self._stage: Callable[[], bool]

    def feed(self, text: str) -> list[Part]:
        """The parts that `text` completes."""
        self._held += text
        while self._stage():
            pass
        parts, self._parts = self._parts, []
        return parts

    def finish(self, *, full: bool = False) -> list[Part]:
        """What is left at the end, which is that of a limit if the answer is `full`."""
        self._ended, self._full = True, full
        return self.feed("")


class BlockStream(Protocol):
    """Tells the calls of a block as they are written."""

    @property
    def told(self) -> bool:
        """Whether a call has begun; until then nothing was taken."""

    @property
    def within(self) -> bool:
        """Whether what is still held is part of a call."""

    def take(self, text: str) -> tuple[list[Part], str, Literal["more", "done", "odd"]]:
        """What `text` adds, the rest of it, and whether there is more to come, the end, or something else."""


class CallReader(Protocol):
    """How a model writes calls down."""

    @property
    def opens(self) -> Sequence[str]:
        """Texts that a block of calls begins with; at least one."""

    @property
    def closes(self) -> str:
        """The text that a block ends with; empty if it goes on to the end of the answer."""

    def read(self, block: str) -> list[Call] | None:
        """The calls of a block, which stands between its two ends; None if it is not right."""

    def stream(self) -> BlockStream | None:
        """What tells a block as it is written; None if it has to be read as a whole."""

    def goes_on(self, block: str) -> bool:
        """Whether `block`, which is not right, may be right with what follows its closing text."""

    def begins(self, text: str) -> bool:
        """Whether an answer that begins with `text` may be calls without anything before them."""


class AnswerParser(StagedParser):
    """Takes an answer in arbitrary pieces; what comes out does not depend on how it was cut.

    Nothing is lost: reasoning that does not end stays reasoning, and what only looks like a call is content.
    Only a call that a limit cuts off before it can be told is left out, as its tags are no content.
    White space between reasoning, content and calls is left out. Text that may turn out to be a tag, or the
    white space before one, is held back.

    Args:
        tags: of the model's reasoning, which stands at the beginning; None if it is not told apart.
        inside: whether the prompt ends within the reasoning.
        calls: how calls are written; None if there are none.
    """

    def __init__(
        self, tags: Tags | None = None, *, inside: bool = False, calls: CallReader | None = None
    ) -> None:
        super().__init__()
        self._tags, self._calls = tags, calls
        self._stage = self._content if tags is None else self._thinking if inside else self._beginning
        self._trim = tags is not None and inside  # white space that comes now separates
        self._begun = False  # whether there was anything but reasoning
        self._gap: str | None = None  # white space before calls, for content on both sides; None before any
        self._searched = 0  # of a block: how much of it has no closing text
        self._opened = ""  # what the block began with, white space before it included
        self._stream: BlockStream | None = None  # of the block

    def _beginning(self) -> bool:
        assert self._tags is not None
        text, opening = self._held.lstrip(), self._tags.opening
        if text.startswith(opening):
            self._held, self._stage, self._trim = text[len(opening) :], self._thinking, True
            return True
        if opening.startswith(text) and not self._ended:
            return False
        self._stage = self._content
        return True

    def _thinking(self) -> bool:
        assert self._tags is not None
        closing = self._tags.closing
        text, end, _ = self._held.partition(closing)
        if end:
            self._say("reasoning", text.rstrip())
            self._held = self._held[len(text) + len(closing) :]
            self._stage, self._trim = self._content, True
            return True
        self._release("reasoning", (closing,))
        return False

    def _content(self) -> bool:
        if self._calls is None:
            self._release("content", ())
            return False
        if not self._begun and self._calls.begins(self._held.lstrip()):
            self._stage, self._opened, self._searched = self._bare, "", 0
            return True
        found = [
            (at, -len(opening), opening)
            for opening in self._calls.opens
            if (at := self._held.find(opening)) >= 0
        ]
        if not found:
            self._release("content", self._calls.opens)
            return False
        at, _, opening = min(found)
        text = self._held[:at].rstrip()
        self._say("content", text)
        self._opened = self._held[len(text) : at + len(opening)]
        self._held = self._held[at + len(opening) :]
        self._stage, self._searched, self._stream = self._block, 0, self._calls.stream()
        return True

    def _block(self) -> bool:
        assert self._calls is not None
        if self._stream is not None and not self._passes(self._stream):
            return self._stage == self._content
        closing = self._calls.closes
        while closing and (at := self._held.find(closing, self._searched)) >= 0:
            calls = self._calls.read(self._held[:at])
            if calls is not None or not self._calls.goes_on(self._held[:at]):
                return self._leave(calls, at + len(closing))
            self._searched = at + len(closing)
        if not self._ended:
            if closing:
                self._searched = max(self._searched, len(self._held) - len(closing) + 1)
            return False
        return self._leave_cut(self._calls.read(self._held))

    def _passes(self, stream: BlockStream) -> bool:
        """Tell what there is of a block; returns whether it has to be read as a whole instead."""
        parts, rest, status = stream.take(self._held)
        self._parts += parts
        if status == "more" and not self._ended:
            self._held = rest
            return False
        if not stream.told:
            self._stream = None
            return True
        if status == "more" and stream.within:
            rest, self.cut = "", True
        self._leave([], len(self._held) - len(rest))
        return False

    def _bare(self) -> bool:
        """Calls from the beginning to the end of the answer."""
        assert self._calls is not None
        if not self._ended and self._calls.begins(self._held.lstrip()):
            return False
        if not self._ended:
            self._begun, self._stage = True, self._content
            return True
        return self._leave_cut(self._calls.read(self._held))

    def _leave_cut(self, calls: list[Call] | None) -> bool:
        """The answer has ended within a block, which may be right as it is."""
        if calls is None and self._full:
            self.cut, calls, self._opened = True, [], ""
        return self._leave(calls, len(self._held))

    def _leave(self, calls: list[Call] | None, end: int) -> bool:
        """The block has ended at `end`; if it is not right, its opening was text like any other."""
        self._stage, self._begun = self._content, True
        if calls is None:
            self._say("content", self._opened)
            return True
        if self._gap == "":
            self._gap = self._opened[: len(self._opened) - len(self._opened.lstrip())]
        self._parts += [Part("call", call=call) for call in calls]
        self._held, self._trim = self._held[end:], True
        return True

    def _release(self, kind: Literal["content", "reasoning"], tags: Sequence[str]) -> None:
        """Say what is held, but for what may be the beginning of a tag, and the white space before it."""
        text = self._held
        if not self._ended:
            if tags:
                text = text[: len(text) - max(overlap(text, tag) for tag in tags)].rstrip()
        elif kind == "reasoning":
            text = text.rstrip()
        self._held = "" if self._ended else self._held[len(text) :]
        self._say(kind, text)

    def _say(self, kind: Literal["content", "reasoning"], text: str) -> None:
        if self._trim:
            text = text.lstrip()
        if not text:
            return
        self._trim = False
        if kind == "content":
            text, self._gap, self._begun = (self._gap or "") + text, "", True
        self._parts.append(Part(kind, text))


def overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    for size in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0
