"""JSON schemas as GBNF grammars."""

from __future__ import annotations

from specx.engine.text.schema.converter import gbnf
from specx.engine.text.schema.document import Document

__all__ = ["grammar_of_schema"]


def grammar_of_schema(schema: str, prefix: str = "") -> str:
    """The GBNF grammar of JSON texts that are valid against `schema`, a JSON text; `{}` is any object.

    White space is limited, and of what a schema leaves open only what people mean is written: properties that
    it does not list only where it speaks of them, numbers of at most 40 digits. All names of rules begin with
    `prefix`, so that several grammars can be put together; the rule of the whole text is "root" after it.

    Raises:
        GrammarError: it is not a JSON schema, uses what a grammar cannot follow, or allows nothing.
    """
    return gbnf(Document(schema), prefix)
