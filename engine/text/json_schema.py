"""JSON schemas as GBNF grammars."""

from __future__ import annotations

import json

from specx.backends.errors import GrammarError

__all__ = ["grammar_of_schema"]

EXAMPLE = 'for example \'{"type": "object", "properties": {"name": {"type": "string"}}}\', in single quotes'


def grammar_of_schema(schema: str) -> str:
    """The GBNF grammar of the JSON texts that `schema` allows, by llama-cpp-python's converter.

    Raises:
        GrammarError: it is not a JSON schema, or uses what the converter does not know.
    """
    try:
        parsed = json.loads(schema)
    except ValueError as problem:
        raise GrammarError(f"the JSON schema is not valid JSON: {problem}", EXAMPLE) from problem
    if not isinstance(parsed, dict):
        raise GrammarError("the JSON schema is not a JSON object", EXAMPLE)
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        return str(json_schema_to_gbnf(json.dumps(parsed or {"type": "object"})))
    except Exception as problem:  # the converter raises whatever it stumbles over
        reason = str(problem).partition(" (use --")[0] or type(problem).__name__  # a flag of another program
        raise GrammarError(
            f"the JSON schema cannot be turned into a grammar: {reason}",
            "use type, properties, items, enum, const, anyOf, and $ref within the schema",
        ) from problem
