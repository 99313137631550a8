"""How one model is talked to: its chat template, and what in its answers is not meant for the reader."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from specx.backends.base import Vocab
from specx.backends.errors import TemplateError
from specx.engine.api.asks import Ask
from specx.engine.api.parsing import AnswerParser, CallReader, Tags
from specx.engine.session import Session
from specx.engine.text.template import ChatTemplate

__all__ = ["Dialect", "Talk", "dialect_of"]

REASONING = (
    Tags("<think>", "</think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<seed:think>", "</seed:think>"),
)
"""What models write their reasoning between; a template that knows the tags of its model names both."""


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation, ready to be answered.

    Attributes:
        tokens: the prompt.
        keep: how many of them stay when the context shifts.
        stops: strings that end an answer, besides those of the request.
        grammar: what an answer must follow.
        tags, inside, calls: as in `AnswerParser`.
        shown: control tokens that are tags.
    """

    tokens: list[int]
    keep: int
    stops: tuple[str, ...]
    grammar: str | None
    tags: Tags | None
    inside: bool
    calls: CallReader | None
    shown: frozenset[int]

    def parser(self) -> AnswerParser:
        """Takes one answer apart."""
        return AnswerParser(self.tags, inside=self.inside, calls=self.calls)


class Dialect:
    """One chat template. Safe to use from several threads.

    Args:
        source: the template's own text; None takes ChatML.
        bos, eos: texts of the tokens that templates write.

    Raises:
        TemplateError: it is not a valid template.
    """

    def __init__(self, source: str | None, bos: str, eos: str) -> None:
        self._template = ChatTemplate(source, bos=bos, eos=eos)
        self._lock = threading.Lock()  # a template counts what it does
        text = source or ""
        self._tags = next((t for t in REASONING if t.opening in text and t.closing in text), None)

    def talk(self, ask: Ask, session: Session) -> Talk:
        """The prompt of a conversation, and how its answer is read.

        Raises:
            TemplateError: the template fails, or refuses the messages.
        """
        with self._lock:
            text = self._render(ask.messages, ask.variables)
            keep = ask.messages and session.context_shift
            opening = self._template.opening_length(ask.messages, session.tokenize) if keep else 0
        tags = self._tags if ask.reasoning else None
        return Talk(
            tokens=self._template.tokenize(text, session.tokenize),
            keep=opening,
            stops=self._template.stops,
            grammar=ask.grammar,
            tags=tags,
            inside=tags is not None and text.rstrip().endswith(tags.opening),
            calls=None,
            shown=_control_tokens(session.vocab, () if tags is None else (tags.opening, tags.closing)),
        )

    def _render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """The prompt; arguments of calls as values, or as text if the template wants that."""
        try:
            return self._template.render(messages, **variables)
        except TemplateError:
            texts = [_with_texts(message) for message in messages]
            if texts == list(messages):
                raise
            try:
                return self._template.render(texts, **variables)
            except TemplateError:
                pass
            raise


def _with_texts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message with the arguments of its calls as JSON texts."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function, arguments = call["function"], call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**function, "arguments": text}})
    return {**message, "tool_calls": calls}


def _control_tokens(vocab: Vocab, tags: Sequence[str]) -> frozenset[int]:
    """Those of the tags that are one token without a text of its own."""
    found = set()
    for tag in tags:
        tokens = vocab.tokenize(tag.encode(), add_special=False, parse_special=True)
        if len(tokens) == 1 and not vocab.piece(tokens[0]):
            found.add(tokens[0])
    return frozenset(found)


def dialect_of(session: Session) -> Dialect:
    """The dialect of a session's model, read once.

    Raises:
        TemplateError: it has no valid template.
    """
    return _dialect(session.chat_template, session.bos_text, session.eos_text)


@lru_cache(maxsize=8)
def _dialect(source: str | None, bos: str, eos: str) -> Dialect:
    return Dialect(source, bos, eos)
