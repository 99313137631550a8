"""What `not`, conditions and oneOf say, in other words: as cases that a grammar can follow.

Such a schema is made, not written, and stands at a place of its own below the one that it comes from: behind
`COMPLEMENT` what is valid where that one is not, behind `CASES` what its conditions come to. Nothing is lost
or added, so that what contradicts the one contradicts the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

from specx.backends.errors import GrammarError
from specx.engine.text.schema.keywords import ASSERTIONS, CONDITIONS, TYPES

__all__ = ["CASES", "COMPLEMENT", "MARKS", "derived", "is_excluding", "is_reference", "says"]

# No key of a schema is half a surrogate pair: the document refuses them.
COMPLEMENT, CASES = "\ud800", "\ud801"
MARKS = (COMPLEMENT, CASES)

Schema = dict[str, Any] | bool

_OPEN = ("additionalProperties", True)
_SAYING = {*ASSERTIONS, *CONDITIONS, "$ref", "allOf", "anyOf", "oneOf", "not"}


def derived(mark: str, schema: Schema, where: str) -> Schema:
    """The schema that stands behind `mark` below `schema`.

    Raises:
        GrammarError: the complement of `schema`, at `where`, cannot be said.
    """
    if mark == CASES:
        cases = [] if isinstance(schema, bool) else list(_cases(schema))
        return {"allOf": cases} if cases else True
    if isinstance(schema, bool):
        return not schema
    pieces: list[Schema] = []
    for key in says(schema):
        draft_4 = any(isinstance(schema.get(each), bool) for each in ("exclusiveMinimum", "exclusiveMaximum"))
        if key not in _COMPLEMENTS or (draft_4 and key.casefold().endswith("imum")):
            raise GrammarError(
                f"the JSON schema uses {key} within not, if or oneOf ({where}), which no grammar can follow",
                "say what is allowed with anyOf instead",
            )
        pieces += _COMPLEMENTS[key](schema[key])
    return {"anyOf": pieces} if pieces else False


def says(schema: dict[str, Any]) -> list[str]:
    """The keywords of a schema that are no mere remarks."""
    return [key for key, value in schema.items() if key in _SAYING and (key, value) != _OPEN]


def is_excluding(schema: dict[str, Any]) -> bool:
    """Whether the `not` of a schema is an assertion as it stands: of listed values, of strings that have a
    pattern, or of numbers that are whole."""
    inner, kind = schema.get("not"), schema.get("type")
    if not isinstance(inner, dict):
        return False
    said = says(inner)
    return (
        said in (["const"], ["enum"])
        or (said == ["pattern"] and kind == "string")
        or (said == ["type"] and inner["type"] == "integer" and kind == "number")
    )


def is_reference(schema: Schema) -> bool:
    """Whether a schema says no more than what it refers to."""
    return isinstance(schema, dict) and says(schema) == ["$ref"]


def _cases(schema: dict[str, Any]) -> Iterator[Schema]:
    if "if" in schema:
        condition = schema["if"]
        yield {
            "anyOf": [
                {"allOf": [condition, schema.get("then", True)]},
                {"allOf": [{"not": condition}, schema.get("else", True)]},
            ]
        }
    for key in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, needed in schema.get(key, {}).items():
            more = {"required": needed} if isinstance(needed, list) else needed
            yield {"anyOf": [{"properties": {name: False}}, {"allOf": [{"required": [name]}, more]}]}


def _other_types(types: Any) -> list[Schema]:
    named = {types} if isinstance(types, str) else set(types)
    others = [each for each in TYPES if each not in {*named, "integer"}]
    if "integer" not in named or "number" in named:
        return [{"type": others}] if others else []
    others.remove("number")
    return [{"type": others}, {"type": "number", "not": {"type": "integer"}}]


def _lacking(names: list[str]) -> list[Schema]:
    return [{"type": "object", "properties": {name: False}} for name in names]


def _having(properties: dict[str, Schema]) -> list[Schema]:
    return [
        {"type": "object", "properties": {name: {"not": schema}}, "required": [name]}
        for name, schema in properties.items()
    ]


def _none_of(schemas: list[Schema]) -> list[Schema]:
    return [{"allOf": [{"not": each} for each in schemas]}]


def _beyond(kind: str, key: str, step: int) -> Callable[[Any], list[Schema]]:
    """What is beyond a limit, which is said with the opposite one; `step` 0 is for numbers."""

    def pieces(limit: Any) -> list[Schema]:
        return [{"type": kind, key: limit + step}] if limit + step >= 0 or not step else []

    return pieces


_COMPLEMENTS: dict[str, Callable[[Any], list[Schema]]] = {
    "type": _other_types,
    "const": lambda value: [{"not": {"const": value}}],
    "enum": lambda values: [{"not": {"enum": values}}],
    "pattern": lambda pattern: [{"type": "string", "not": {"pattern": pattern}}],
    "required": _lacking,
    "properties": _having,
    "$ref": lambda ref: [{"not": {"$ref": ref}}],
    "not": lambda schema: [schema],
    "allOf": lambda schemas: [{"not": each} for each in schemas],
    "anyOf": _none_of,
    "oneOf": lambda schemas: [
        *_none_of(schemas),
        *({"allOf": list(two)} for two in combinations(schemas, 2)),
    ],
    "minimum": _beyond("number", "exclusiveMaximum", 0),
    "maximum": _beyond("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": _beyond("number", "maximum", 0),
    "exclusiveMaximum": _beyond("number", "minimum", 0),
    "minLength": _beyond("string", "maxLength", -1),
    "maxLength": _beyond("string", "minLength", 1),
    "minItems": _beyond("array", "maxItems", -1),
    "maxItems": _beyond("array", "minItems", 1),
    "minProperties": _beyond("object", "maxProperties", -1),
    "maxProperties": _beyond("object", "minProperties", 1),
}
