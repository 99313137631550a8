"""Grammars that make an answer call a tool: in the model's own format, and with arguments of its schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

from specx.backends.errors import GrammarError
from specx.engine.api.calls import Format, Shape
from specx.engine.api.errors import RequestError
from specx.engine.api.parsing import Tags
from specx.engine.api.tools import Tool, ToolChoice
from specx.engine.text.json_schema import grammar_of_schema
from specx.engine.text.schema.rules import literal

__all__ = ["ROOT", "THEN", "grammar_after", "grammar_of_block", "grammar_of_calls"]

ROOT = "specx-answer"
"""The rule that a whole answer matches, where a grammar is put together here."""

THEN = "specx-reasoned"
"""The same, where reasoning comes before it."""

_CALLS = "specx-calls"


def grammar_of_calls(
    shape: Shape, tools: Sequence[Tool], choice: ToolChoice, other: str | None = None
) -> str:
    """The grammar of an answer that consists of calls, with the rule `ROOT`.

    Args:
        shape: how calls are written.
        tools: those of the request.
        choice: which of them may be called, and whether several may.
        other: a grammar with a rule `root` that the answer may match instead; None if it may not.

    Raises:
        RequestError: a schema cannot be turned into a grammar.
    """
    more = choice.parallel and choice.name is None
    calls = f"{_CALLS} ::= {_block(shape, more)}"
    answer = f"{ROOT} ::= {_CALLS if other is None else f'{_CALLS} | root'}"
    return "\n".join([answer, calls, _each(shape, tools, choice), other or ""])


def grammar_of_block(format: Format, tools: Sequence[Tool], choice: ToolChoice) -> str | None:
    """The grammar of what follows the opening of a block of calls, with the rule `ROOT`.

    None if that is not known, or the schema of a tool cannot be turned into a grammar.
    """
    shape = format.inner
    if shape is None:
        return None
    try:
        calls = _each(shape, tools, choice)
    except RequestError:
        return None
    return f"{ROOT} ::= {_block(shape, bool(shape.begin) and choice.parallel)}\n{calls}"


def _block(shape: Shape, more: bool) -> str:
    following = f" ({literal(shape.between)} specx-call)*" if more else ""
    return f"{literal(shape.begin)} specx-call{following} {literal(shape.end)}"


def _each(shape: Shape, tools: Sequence[Tool], choice: ToolChoice) -> str:
    """The rules of a call of one of the tools."""
    parts, calls = [], []
    for number, tool in enumerate(tool for tool in tools if choice.name in (None, tool.name)):
        prefix = f"specx-{number}-"
        parts.append(_arguments(tool, prefix))
        calls.append(f"{literal(shape.named(tool.name))} {prefix}root {literal(shape.tail)}")
    return "\n".join([f"specx-call ::= {' | '.join(calls)}", *parts])


def grammar_after(tags: Tags, grammar: str, root: str) -> str:
    """The grammar of reasoning that goes on to its end, and then of what `grammar` has as `root`: `THEN`."""
    closing, rules = tags.closing, []
    letters = "".join(dict.fromkeys(closing))
    for read in range(len(closing)):  # letters of its end that were read last (Knuth, Morris and Pratt, 1977)
        ways = [f"[^{''.join(map(_in_class, letters))}] {_rule(0)}"]
        for letter in letters:
            text = closing[:read] + letter
            after = next(n for n in range(len(text), -1, -1) if text.endswith(closing[:n]))
            ways.append(f"{literal(letter)} {_rule(after)}")
        rules.append(f"{_rule(read)} ::= {' | '.join(ways)}")
    rules.append(f"{_rule(len(closing))} ::= [ \\n]{{0,4}} {root}")
    return "\n".join([*rules, grammar])


def _rule(read: int) -> str:
    """The rule of reasoning of whose end so many letters were read last."""
    return f"{THEN}-{read}" if read else THEN


def _in_class(char: str) -> str:
    return f"\\x{ord(char):02X}" if char in "\\]^-[" else char


def _arguments(tool: Tool, prefix: str) -> str:
    try:
        return _grammar(json.dumps({"type": "object", **tool.parameters}, ensure_ascii=False), prefix)
    except GrammarError as problem:
        raise RequestError(
            f"the parameters of the tool {tool.name[:60]!r}: {problem.message}", "tools", hint=problem.hint
        ) from problem


@lru_cache(maxsize=256)  # an agent sends the same tools with every request
def _grammar(schema: str, prefix: str) -> str:
    return grammar_of_schema(schema, prefix)
