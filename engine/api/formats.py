"""What form an answer must have: `response_format`, or a grammar or schema as llama.cpp's server takes it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from specx.backends.errors import GrammarError
from specx.engine.api.errors import RequestError
from specx.engine.api.fields import Fields
from specx.engine.text.grammar_check import check_grammar
from specx.engine.text.json_schema import grammar_of_schema

__all__ = ["grammar_of", "read_grammar"]

KINDS = ("text", "json_object", "json_schema")


def read_grammar(body: Fields) -> str | None:
    """The GBNF grammar that an answer must follow; None if it is free.

    Raises:
        RequestError: there are several, or one cannot be used.
    """
    given = [(name, text) for name, text in _given(body) if text is not None]
    if len(given) > 1:
        (first, _), (second, _) = given[:2]
        raise body.refuse(
            second, f"{first} and {second} both say what the answer must be", "send one of them"
        )
    return given[0][1] if given else None


def _given(body: Fields) -> list[tuple[str, str | None]]:
    grammar = body.text("grammar") or None  # clients send an empty one for none
    if grammar is not None:
        try:
            check_grammar(grammar)
        except GrammarError as problem:
            raise RequestError.of(problem, body.param("grammar")) from problem
    schema, known = body.get("json_schema"), "json_schema" in body.values
    if isinstance(schema, str):
        raise body.wrong("json_schema", "a JSON schema")
    return [
        ("grammar", grammar),
        ("json_schema", grammar_of(schema, "json_schema") if known and schema is not None else None),
        ("response_format", _of_format(body)),
    ]


def _of_format(body: Fields) -> str | None:
    form = body.object("response_format")
    if form is None:
        return None
    kind = form.choice("type", KINDS)
    if kind is None:
        raise form.refuse("type", "response_format.type is missing", f"it is one of {', '.join(KINDS)}")
    if kind == "text":
        return None
    if kind == "json_object":
        return grammar_of(form.get("schema") or {}, "response_format.schema")
    nested = form.object("json_schema")  # OpenAI's form; llama.cpp's has the schema beside the type
    schema = nested.get("schema") if nested is not None else form.get("schema")
    if schema is None:
        raise form.refuse("json_schema", "response_format.json_schema.schema is missing")
    return grammar_of(schema, "response_format.json_schema.schema" if nested else "response_format.schema")


def grammar_of(schema: Any, param: str) -> str:
    """The grammar of JSON that is valid against a schema of the request.

    Raises:
        RequestError: it is no schema, or uses what a grammar cannot follow.
    """
    if not isinstance(schema, dict | bool):
        raise RequestError(f"{param} is no JSON schema: it is neither an object nor true or false", param)
    try:
        return _grammar(json.dumps(schema, ensure_ascii=False))
    except GrammarError as problem:
        raise RequestError.of(problem, param) from problem


@lru_cache(maxsize=64)  # the lines of a batch, and an agent's requests, mostly have the same
def _grammar(schema: str) -> str:
    return grammar_of_schema(schema)
