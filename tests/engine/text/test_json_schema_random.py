"""Random schemas: what their grammars allow is valid, and values made to be valid are allowed."""

from __future__ import annotations

import json
import random
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from specx.engine.text.json_schema import grammar_of_schema

NAMES = ("a", "b c", 'say "hi"', "C:\\new", "é😀", "string", "root", "$ref", "object-1")
PATTERNS = {
    "^[a-c]{2,4}$": ("ab", "cccc"),
    "x|^y$": ("axb", "y", "\nx"),
    r"^\d+\.\d{2}$": ("10.25",),
    r'^("|\\|\n)+$': ('"\\\n', '"'),
    r"^(foo|ba[rz])(-\w*)?$": ("foo", "baz-a_1", "bar-"),
    "^.$": ("x", '"', "😀", "\\", "\t"),
    "^[^a-z]*$": ("", "A\x00", "É"),
}
TEXT = st.text(st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cs"]), max_size=6)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), TEXT)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from(NAMES), v, max_size=2)
)


@st.composite
def numbers(draw):
    whole = draw(st.booleans())
    scale = 1 if whole else 100
    low, value, high = sorted(draw(st.integers(-100_000, 100_000)) for _ in range(3))
    schema = {"type": "integer" if whole else "number"}
    for key, limit in (("minimum", low), ("maximum", high)):
        if draw(st.booleans()):
            schema[key] = limit if whole else limit / scale
    if draw(st.booleans()) and low < value:
        schema["exclusiveMinimum"] = low / scale
    return schema, value if whole else value / scale


@st.composite
def strings(draw):
    if draw(st.booleans()):
        pattern = draw(st.sampled_from(sorted(PATTERNS)))
        return {"type": "string", "pattern": pattern}, draw(st.sampled_from(PATTERNS[pattern]))
    text = draw(TEXT)
    schema = {"type": "string", "minLength": draw(st.integers(0, len(text)))}
    if draw(st.booleans()):
        schema["maxLength"] = len(text) + draw(st.integers(0, 3))
    return schema, text


@st.composite
def listed(draw):
    values = draw(st.lists(VALUES, min_size=1, max_size=3))
    value = draw(st.sampled_from(values))
    return draw(st.sampled_from([{"enum": values}, {"const": value}])), value


@st.composite
def arrays(draw, inner):
    schema, value = draw(inner)
    count = draw(st.integers(0, 3))
    first = draw(st.lists(inner, max_size=2))
    if first and count == 0:
        return {
            "type": "array",
            "prefixItems": [each for each, _ in first],
            "minItems": len(first),
        }, [each for _, each in first]
    limits = {"minItems": draw(st.integers(0, count)), "maxItems": draw(st.integers(count, 4))}
    kept = {key: limit for key, limit in limits.items() if draw(st.booleans())}
    return {"type": "array", "items": schema, **kept}, [value] * count


@st.composite
def objects(draw, inner):
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    properties, value = {}, {}
    for name in names:
        properties[name], made = draw(inner)
        if draw(st.booleans()):
            value[name] = made
    schema = {"type": "object", "properties": properties}
    schema["required"] = [name for name in value if draw(st.booleans())]
    if draw(st.booleans()):
        schema["minProperties"] = draw(st.integers(0, len(value)))
    if draw(st.booleans()):
        schema["maxProperties"] = draw(st.integers(len(value), 6))
    others = draw(st.sampled_from(["none", "false", "schema", "pattern"]))
    if others == "false":
        schema["additionalProperties"] = False
    elif others == "schema" and len(value) < schema.get("maxProperties", 9):
        schema["additionalProperties"], made = draw(inner)
        value["new\n"] = made
    elif others == "pattern" and len(value) < schema.get("maxProperties", 9):
        schema["patternProperties"], made = {}, None
        schema["patternProperties"]["^x-"], made = draw(inner)
        value["x-1"] = made
    return schema, value


@st.composite
def unions(draw, inner):
    cases = draw(st.lists(inner, min_size=1, max_size=3))
    schema = {"anyOf": [schema for schema, _ in cases]}
    return schema, draw(st.sampled_from([value for _, value in cases]))


@st.composite
def intersections(draw, inner):
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=2, max_size=4))
    made = {name: draw(inner) for name in names}
    half = draw(st.integers(1, len(names) - 1))
    parts = [
        {"properties": {name: made[name][0] for name in some}, "required": some}
        for some in (names[:half], names[half:])
    ]
    if draw(st.booleans()):
        schema = {"type": "object", "allOf": parts}
    else:
        schema = {"type": "object", "allOf": parts[:1], **parts[1]}
    return schema, {name: made[name][1] for name in names}


def nested(inner):
    return st.one_of(arrays(inner), objects(inner), unions(inner), intersections(inner))


@st.composite
def cases(draw):
    """A schema and a value that is valid against it."""
    leaves = st.one_of(numbers(), strings(), listed(), VALUES.map(lambda value: (True, value)))
    definition, part = draw(leaves)
    named = st.just(({"$ref": "#/$defs/a~1%25%20~0"}, part))
    inner = st.recursive(st.one_of(leaves, named), nested, max_leaves=6)
    schema, value = draw(inner)
    if schema is True:
        schema, value = {"items": True}, [value]
    return {**schema, "title": "any", "$defs": {"a/% ~": definition}}, value


@settings(max_examples=80)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_grammars_of_random_schemas(texts, case, seed):
    schema, value = case
    grammar = grammar_of_schema(json.dumps(schema))
    for form in ({}, {"separators": (",", ":"), "ensure_ascii": False}, {"indent": 2}):
        if form.get("ensure_ascii", True) and not json.dumps(value).isascii():
            continue
        text = json.dumps(value, **{"ensure_ascii": False, **form}).replace("\x7f", "\\u007f")
        assert texts.accept(grammar, text), (text, grammar)
    validator = Draft202012Validator(json.loads(json.dumps(schema), parse_float=Decimal))
    choice = random.Random(seed).choice
    text = texts.random(grammar, choice)
    if text is not None:
        validator.validate(json.loads(text, parse_float=Decimal))
