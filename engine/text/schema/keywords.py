"""The keywords of JSON Schema: which of them a grammar can follow, and what their values must be."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from specx.backends.errors import GrammarError

__all__ = ["ASSERTIONS", "CONDITIONS", "TYPES", "check"]

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

# Which type a keyword is about. It says nothing of values of other types.
ASSERTIONS = {
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
    **dict.fromkeys(
        ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"), "array"
    ),
    **dict.fromkeys(("properties", "required", "additionalProperties", "patternProperties"), "object"),
    **dict.fromkeys(("propertyNames", "minProperties", "maxProperties", "unevaluatedProperties"), "object"),
    "unevaluatedItems": "array",
    **dict.fromkeys(("type", "enum", "const"), ""),
}

# What holds only if something else does.
CONDITIONS = ("if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies")

REFUSED = {
    "contains": "say what all items are with items, or the first ones with prefixItems",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    "divisibleBy": "use multipleOf",  # this and the next are those of draft 3
    "extends": "use allOf",
    "disallow": "say what is allowed instead, with type or enum",
}


def check(schema: dict[str, Any], where: str) -> None:
    """Raises GrammarError if `schema` has a keyword that a grammar cannot follow, or a value that is wrong.

    Keywords that are not known are remarks, as JSON Schema has it.
    """
    for key, value in schema.items():
        if key in REFUSED:
            raise GrammarError(
                f"the JSON schema uses {key} ({where}), which no grammar here can follow", REFUSED[key]
            )
        fits = SHAPES.get(key)
        if fits is not None and not fits[0](value):
            raise GrammarError(f"{key} ({where}) in the JSON schema is not {fits[1]}", "correct it")
    unknown = [each for each in _types(schema) if each not in TYPES]
    if unknown:
        raise GrammarError(
            f"there is no type {unknown[0]!r} in JSON schemas ({where})", f"use type: {', '.join(TYPES)}"
        )


def _types(schema: dict[str, Any]) -> list[str]:
    value = schema.get("type", [])
    return value if isinstance(value, list) else [value]


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _is_limit(value: Any) -> bool:
    return isinstance(value, bool) or _is_number(value)  # a bool in draft 4


def _is_multiple(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_type(value: Any) -> bool:
    return _is_text(value) or (_are_texts(value) and bool(value))


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _is_schema_or_schemas(value: Any) -> bool:
    return _is_schema(value) or value == [] or _are_schemas(value)


def _name_dependencies(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_schema(each) or _are_texts(each) for each in value.values())


def _name_lists(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_are_texts, value.values()))


def _name_schemas(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


_Shape = tuple[Callable[[Any], bool], str]
_COUNT: _Shape = (_is_count, "a whole number of at least 0")
_NUMBER: _Shape = (_is_number, "a number")
_SCHEMA: _Shape = (_is_schema, "a schema")
_BOOL: _Shape = (lambda value: isinstance(value, bool), "true or false")

SHAPES: dict[str, _Shape] = {
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _COUNT),
    **dict.fromkeys(("minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("minimum", "maximum"), _NUMBER),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), (_is_limit, "a number")),
    "multipleOf": (_is_multiple, "a number above 0"),
    **dict.fromkeys(("additionalProperties", "additionalItems", "propertyNames"), _SCHEMA),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems", "not", "if", "then", "else"), _SCHEMA),
    "items": (_is_schema_or_schemas, "a schema"),
    **dict.fromkeys(
        ("properties", "patternProperties", "dependentSchemas"), (_name_schemas, "an object of schemas")
    ),
    "dependentRequired": (_name_lists, "an object of lists of names"),
    "dependencies": (_name_dependencies, "an object of schemas or lists of names"),
    **dict.fromkeys(("prefixItems", "allOf", "anyOf", "oneOf"), (_are_schemas, "a list of schemas")),
    "required": (_are_texts, "a list of names"),
    "enum": (_is_list, "a list of values"),
    "type": (_is_type, "the name of a type or a list of such names"),
    "uniqueItems": _BOOL,
    **dict.fromkeys(("pattern", "format", "$ref"), (_is_text, "a text")),
}
