"""How one model is talked to: its chat template, and what in its answers is not meant for the reader."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from specx.backends.base import Vocab
from specx.backends.errors import TemplateError
from specx.engine.api.asks import Ask
from specx.engine.api.call_grammar import ROOT, THEN, grammar_after, grammar_of_block, grammar_of_calls
from specx.engine.api.calls import BARE, FORMATS, HERMES, Format, Reader
from specx.engine.api.guard import Guard
from specx.engine.api.harmony import HARMONY, HarmonyParser
from specx.engine.api.parsing import AnswerParser, Parser, Tags
from specx.engine.api.told import (
    Message,
    all_as_text,
    calls_as_text,
    instructed,
    with_descriptions,
    with_texts,
)
from specx.engine.api.tools import Tool
from specx.engine.sampling import Constraint
from specx.engine.session import Session
from specx.engine.text.specials import SpecialTexts
from specx.engine.text.template import ChatTemplate

__all__ = ["Dialect", "Talk", "dialect_of"]

REASONING = (
    Tags("<think>", "</think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<seed:think>", "</seed:think>"),
)
"""What models write their reasoning between; a template that knows the tags of its model names both."""

_SAMPLE = {
    "type": "function",
    "function": {
        "name": "qzvtool",
        "description": "qzvsaid",
        "parameters": {
            "type": "object",
            "properties": {"qzvkey": {"type": "string"}},
            "required": ["qzvkey"],
        },
    },
}
_ASKED = {"role": "user", "content": "qzvasked"}
_CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "qzvid0000",  # nine letters and digits: some templates want that
            "type": "function",
            "function": {"name": "qzvtool", "arguments": {"qzvkey": "qzvvalue"}},
        }
    ],
}
_ANSWERED = {"role": "tool", "tool_call_id": "qzvid0000", "name": "qzvtool", "content": "qzvresult"}


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation, ready to be answered.

    Attributes:
        tokens: the prompt.
        keep: how many of them stay when the context shifts.
        stops: strings that end an answer, besides those of the request.
        grammar, root: what an answer must follow, and the rule that all of it matches.
        tags, inside: as in `AnswerParser`.
        format, tools: how calls are written, and of what; None if none are to be read.
        harmony: whether the answer consists of messages in channels.
        guard: the grammar of what follows the opening of a block of calls in an answer that is free.
        shown: control tokens that are tags.
    """

    tokens: list[int]
    keep: int
    stops: tuple[str, ...]
    grammar: str | None
    root: str
    tags: Tags | None
    inside: bool
    format: Format | None
    tools: tuple[Tool, ...]
    shown: frozenset[int]
    harmony: bool = False
    guard: str | None = None

    def constraint(self, session: Session, ask: Ask) -> Constraint | None:
        """What one answer must follow; None if it is free.

        Raises:
            GrammarError: the grammar cannot be used.
        """
        if self.grammar is not None:
            return session.grammar(self.grammar, self.root)
        guard, format = self.guard, self.format
        if guard is None or format is None or ask.choice is None:
            return None
        return Guard(
            session.vocab,
            format.opens,
            lambda: session.grammar(guard, ROOT),
            tags=self.tags,
            inside=self.inside,
            once=not ask.choice.parallel,
        )

    def parser(self) -> Parser:
        """Takes one answer apart."""
        if self.harmony:
            return HarmonyParser(calls=bool(self.tools))
        held = self.guard is not None or self.root != "root"  # in both a grammar makes the calls
        reader = None if self.format is None else Reader(self.format, self.tools, held=held)
        return AnswerParser(self.tags, inside=self.inside, calls=reader)


class Dialect:
    """One chat template. Safe to use from several threads.

    Args:
        source: the template's own text; None takes ChatML.
        bos, eos: texts of the tokens that templates write.
        specials: control tokens that messages cannot write; None if they may.

    Attributes:
        format: how calls of tools are written.
        tells_tools: whether the template tells the model of tools.

    Raises:
        TemplateError: it is not a valid template.
    """

    def __init__(self, source: str | None, bos: str, eos: str, specials: SpecialTexts | None = None) -> None:
        self._template = ChatTemplate(source, bos=bos, eos=eos, specials=specials)
        self._lock = threading.Lock()  # a template counts what it does
        text = source or ""
        self._tags = next((t for t in REASONING if t.opening in text and t.closing in text), None)
        self._harmony = all(mark in text for mark in HARMONY[:4])
        self.tells_tools = "qzvtool" in self._tried([_ASKED], True)
        called = self._tried([_ASKED, _CALLED, _ANSWERED], True)
        self._tells_calls = "qzvtool" in called and "qzvvalue" in called
        self.format = self._recognised(text) if self.tells_tools else HERMES

    def talk(self, ask: Ask, session: Session) -> Talk:
        """The prompt of a conversation, and how its answer is read.

        Raises:
            TemplateError: the template fails, or refuses the messages.
            RequestError: a schema cannot be turned into a grammar.
        """
        with self._lock:
            text = self._prompt(ask)
            shifts = session.context_shift
            keep = self._template.opening_length(ask.messages, session.tokenize) if shifts else 0
        tags = self._tags if ask.reasoning else None
        begun: str = ask.messages[-1]["content"] if ask.continues else ""
        tokens = self._template.tokenize(text, session.tokenize)
        if begun:  # as all that messages say it is text, whatever it looks like
            tokens += session.tokenize(begun, add_special=False, parse_special=False)
        inside = self._tags is not None and (text + begun).rstrip().endswith(self._tags.opening)
        format = self._format_for(ask)
        grammar, root = self._grammar(ask, format, inside)
        harmony = self._harmony and grammar is None and ask.reasoning
        marks = HARMONY if harmony else format.tags if format else ()
        marks += (tags.opening, tags.closing) if tags else ()
        return Talk(
            tokens=tokens,
            keep=keep,
            stops=self._template.stops,
            grammar=grammar,
            root=root,
            tags=tags,
            inside=inside,
            format=format,
            tools=ask.tools,
            shown=_control_tokens(session.vocab, marks),
            harmony=harmony,
            guard=self._guard(ask, format) if grammar is None and not harmony else None,
        )

    def _format_for(self, ask: Ask) -> Format | None:
        """How the calls of an answer are written: in JSON alone where a grammar has to know better."""
        if ask.choice is None:
            return None
        constrained = ask.choice.must or ask.grammar is not None
        unknown = self._harmony or self.format.shape is None
        return BARE if constrained and unknown else self.format

    def _grammar(self, ask: Ask, format: Format | None, inside: bool) -> tuple[str | None, str]:
        grammar, root = ask.grammar, "root"
        if ask.choice is not None and format is not None and (ask.choice.must or grammar is not None):
            assert format.shape is not None
            other = None if ask.choice.must else grammar
            grammar, root = grammar_of_calls(format.shape, ask.tools, ask.choice, other), ROOT
        if grammar is not None and inside:
            assert self._tags is not None
            grammar, root = grammar_after(self._tags, grammar, root), THEN
        return grammar, root

    def _guard(self, ask: Ask, format: Format | None) -> str | None:
        if format is None or ask.choice is None:
            return None
        return grammar_of_block(format, ask.tools, ask.choice)

    def _prompt(self, ask: Ask) -> str:
        """The text of a conversation; what the template cannot say of tools is said in words.

        Messages and tools are tried as they are first, and then in forms that fewer templates want.
        """
        messages: Sequence[Message] = ask.messages[:-1] if ask.continues else ask.messages
        given: list[Sequence[Message] | None] = [[tool.given for tool in ask.tools] or None]
        if not self.tells_tools:
            messages, given = instructed(all_as_text(messages), ask.tools), [None]
        elif not self._tells_calls:
            messages = [calls_as_text(message) for message in messages]
        if given[0] is not None:
            given.append([with_descriptions(tool) for tool in given[0]])
        forms = [messages]
        if any("tool_calls" in message for message in messages):
            forms.append([with_texts(message) for message in messages])
        if any("tool_calls" in message or message["role"] == "tool" for message in messages):
            forms.append(all_as_text(messages))
        first: TemplateError | None = None
        for form, tools in itertools.product(forms, given):
            try:
                return self._template.render(form, tools=tools, **ask.variables)
            except TemplateError as problem:
                first = first or problem
        assert first is not None
        raise first

    def _recognised(self, source: str) -> Format:
        """The format whose tags the template has, and whose reading of what it writes is the call."""
        fitting = [each for each in FORMATS if all(mark in source for mark in each.marks)]
        text = self._tried([_ASKED, _CALLED], False)
        text = text.rpartition("qzvasked")[2]
        tool = Tool("qzvtool", _SAMPLE["function"]["parameters"], _SAMPLE)  # type: ignore[index]
        for format in fitting:
            start = text.find("{") if format.bare else 0
            for end in (len(text), max(text.rfind("}"), text.rfind("]")) + 1):
                parser = AnswerParser(calls=Reader(format, [tool]))
                parts = [*parser.feed(text[max(start, 0) : end]), *parser.finish()]
                calls = [part.call for part in parts if part.call is not None]
                if [(call.name, call.arguments) for call in calls] == [("qzvtool", '{"qzvkey": "qzvvalue"}')]:
                    return format
        return fitting[0] if fitting else HERMES

    def _tried(self, messages: Sequence[Mapping[str, Any]], opens: bool) -> str:
        """What the template makes of an example; empty if it fails."""
        for form in (messages, [with_texts(message) for message in messages]):
            try:
                return self._template.render(form, tools=[_SAMPLE], add_generation_prompt=opens)
            except TemplateError:
                continue
        return ""


def _control_tokens(vocab: Vocab, tags: Sequence[str]) -> frozenset[int]:
    """Those of the tags that are one token without a text of its own."""
    found = set()
    for tag in tags:
        tokens = vocab.tokenize(tag.encode(), add_special=False, parse_special=True)
        if len(tokens) == 1 and not vocab.piece(tokens[0]):
            found.add(tokens[0])
    return frozenset(found)


def dialect_of(session: Session, *, tools: bool) -> Dialect:
    """The dialect of a session's model, read once. Some have another one for conversations with `tools`.

    Raises:
        TemplateError: it has no valid template.
    """
    source = (session.tool_template if tools else None) or session.chat_template
    return _dialect(source, session.bos_text, session.eos_text, session.special_texts)


@lru_cache(maxsize=8)
def _dialect(source: str | None, bos: str, eos: str, specials: SpecialTexts | None) -> Dialect:
    return Dialect(source, bos, eos, specials)
