"""`not`, conditions, what is unevaluated and what differs: grammars against a validator, value by value."""

from __future__ import annotations

import itertools
import json
import random
from decimal import Decimal

import pytest
from jsonschema import Draft202012Validator

from specx.engine.text.json_schema import grammar_of_schema

INTEGER, STRING, BOOLEAN = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}


def obj(properties, **more):
    return {"type": "object", "properties": properties, **more}


def where(name, value, **more):
    return {"if": {"properties": {name: {"const": value}}, "required": [name]}, **more}


def objects(**values):
    """Objects of these names in this order, each with one of its values or left out."""
    choices = [[(name, value) for value in each] + [None] for name, each in values.items()]
    return [dict(filter(None, chosen)) for chosen in itertools.product(*choices)]


def arrays(values, most):
    return [list(each) for n in range(most + 1) for each in itertools.product(values, repeat=n)]


NAMES = [chr(ord("a") + i) for i in range(12)]
KIND = obj({"k": {"enum": ["a", "b", "c"]}}, required=["k"])
KINDS = objects(k=["a", "b", "c", 1], n=[1, "x"], s=[1, "x"])
ABC = objects(a=[1, 7], b=[1, "x"], c=[1])
SCALARS = ["", "a", "ab", "the", "b1", 0, 1, 5, 7, -2, 12, 1.5, True, False, None]

CASES = {
    "if, then, else": (
        {
            **KIND,
            **where("k", "a", then={"properties": {"n": INTEGER}, "required": ["n"]}),
            "else": {"properties": {"s": STRING}, "required": ["s"]},
        },
        objects(k=["a", "b", "c", 1], n=[1, "x"]) + objects(k=["a", "b", "c", 1], s=[1, "x"]),
    ),
    "a tag that may be missing": (
        obj(
            {"k": STRING, "n": INTEGER},
            **{"if": {"properties": {"k": {"const": "a"}}}, "then": {"required": ["n"]}},
        ),
        objects(k=["a", "b"], n=[1, "x"]),
    ),
    "many tags": (
        {
            **obj({"k": {"enum": NAMES}}, required=["k"]),
            "allOf": [where("k", x, then={"properties": {x: INTEGER}, "required": [x]}) for x in NAMES],
        },
        [{"k": x, y: 1} for x in NAMES for y in NAMES if x == y] + [{"k": x} for x in NAMES],
    ),
    "types": (
        {"if": STRING, "then": {"maxLength": 1}, "else": {**INTEGER, "minimum": 5}},
        ["", "a", "ab", 1, 5, 7],
    ),
    "then without if": ({**INTEGER, "then": False, "dependentRequired": {}}, SCALARS),
    "within each other": (
        {
            **obj({"k": INTEGER, "n": INTEGER}),
            "if": {"required": ["k"]},
            "then": where("k", 1, then={"required": ["n"]}),
        },
        objects(k=[1, 2], n=[1, "x"]),
    ),
    "recursion": (
        {
            "$ref": "#/$defs/t",
            "$defs": {
                "t": {
                    **obj({"v": INTEGER, "next": {"$ref": "#/$defs/t"}}, required=["v"]),
                    "if": {"required": ["next"]},
                    "then": {"properties": {"v": {"minimum": 1}}},
                    "else": {"properties": {"v": {"const": 0}}},
                }
            },
        },
        [
            {"v": 0},
            {"v": 1},
            {"v": 1, "next": {"v": 0}},
            {"v": 0, "next": {"v": 0}},
            {"v": 2, "next": {"v": 2}},
        ],
    ),
    "other strings": ({**STRING, "not": {"enum": ["", "the", 5]}, "maxLength": 3}, SCALARS),
    "other strings and numbers": (
        {"type": ["string", "integer"], "not": {"enum": ["a", 5, 7]}, "maximum": 9},
        SCALARS,
    ),
    "other numbers": (
        {"type": "number", "not": {"enum": [0, 1.5, -2]}, "minimum": -3, "maximum": 3},
        [0, 1.5, -2, -1, 2, 0.5, -2.5, 4],
    ),
    "other than a type and a value": ({"not": {"type": "string", "const": "a"}, "maxLength": 9}, SCALARS[:5]),
    "no true": ({"type": ["boolean", "null"], "not": {"const": True}}, SCALARS),
    "not empty": ({"type": "array", "items": INTEGER, "not": {"const": []}}, arrays([1, "x"], 2)),
    "not an empty object": (obj({"a": INTEGER}, **{"not": {"const": {}}}), objects(a=[1, "x"])),
    "other types": ({"not": {"type": ["object", "array", "string"]}}, SCALARS),
    "no pattern": ({**STRING, "not": {"pattern": "[aeiou]"}}, ["", "the", "b1", "xyz"]),
    "nothing": (obj({"a": {"not": {}}, "b": INTEGER}), objects(a=[1], b=[1])),
    "nothing in a choice": ({"anyOf": [{"not": {}}, INTEGER]}, SCALARS),
    "not both": (obj(dict.fromkeys("abc", INTEGER), **{"not": {"required": ["a", "b"]}}), ABC),
    "neither": (
        obj(
            dict.fromkeys("abc", INTEGER),
            **{"not": {"anyOf": [{"required": ["b"]}, {"properties": {"a": {"const": 1}}}]}},
        ),
        ABC,
    ),
    "not a reference": (
        {"type": ["string", "integer"], "not": {"$ref": "#/$defs/x"}, "$defs": {"x": STRING}},
        SCALARS,
    ),
    "not not": (
        obj({"a": INTEGER, "b": True}, **{"not": {"not": {"required": ["a"]}}}),
        objects(a=[1, "x"], b=[1]),
    ),
    "beyond limits": (
        {**INTEGER, "not": {"anyOf": [{"minimum": 10}, {"exclusiveMaximum": 1}, {"maximum": 3}]}},
        [-1, 1, 3, 4, 9, 10],
    ),
    "beyond lengths": (
        {**STRING, "not": {"allOf": [{"minLength": 1}, {"maxLength": 2}]}},
        ["", "a", "ab", "the"],
    ),
    "beyond counts": ({"type": "array", "items": INTEGER, "not": {"minItems": 2}}, arrays([1], 3)),
    "needed names": (
        obj(
            dict.fromkeys("abc", INTEGER),
            dependentRequired={"a": ["b"], "c": ["a"]},
            additionalProperties=False,
        ),
        ABC,
    ),
    "needed schemas": (
        obj(
            {"a": INTEGER, "b": True},
            dependentSchemas={"a": {"properties": {"b": INTEGER}, "required": ["b"]}},
        ),
        objects(a=[1], b=[1, "x"]),
    ),
    "the names of draft 7": (
        obj(
            dict.fromkeys("abc", INTEGER),
            dependentRequired={"a": ["b"]},
            dependentSchemas={"b": {"required": ["c"]}},
        ),
        ABC,
    ),
    "one or the other": (
        obj(
            dict.fromkeys("ab", INTEGER),
            oneOf=[{"required": [x], "not": {"required": [y]}} for x, y in ("ab", "ba")],
        ),
        objects(a=[1, "x"], b=[1, "x"]),
    ),
    "one required": (
        obj(dict.fromkeys("abc", INTEGER), oneOf=[{"required": [name]} for name in "abc"]),
        objects(a=[1, "x"], b=[1], c=[1]),
    ),
    "one pattern": ({**STRING, "oneOf": [{"pattern": "^[a-z]+$"}, {"enum": ["the", "b1"]}]}, SCALARS),
    "one bound": ({**INTEGER, "oneOf": [{"minimum": 1}, {"const": 5}, {"maximum": 7}]}, SCALARS),
    "one format": (
        {"oneOf": [{**STRING, "format": "date"}, {"enum": ["today", 1]}]},
        ["today", 1, "2024-02-29"],
    ),
    "one of cases within each other": (
        {
            **INTEGER,
            "oneOf": [
                {"anyOf": [{"const": 1}, {"minimum": 5}]},
                {"oneOf": [{"maximum": 7}, {"minimum": 12}]},
            ],
        },
        [0, 1, 2, 5, 7, 8, 11, 12, 13],
    ),
    "not whole": ({"not": {"type": ["integer", "string"]}, "maximum": 7}, [0, 1, 5.5, 0.25, 1.0, 9.5, "a"]),
    "one of types": ({"oneOf": [INTEGER, {"type": "number", "maximum": 7}]}, [0, 5, 1.5, 7, 12, 12.5]),
    "not one": (
        {**INTEGER, "not": {"oneOf": [{"minimum": 5}, {"maximum": 7}, {"const": 1}]}},
        [0, 1, 2, 5, 7, 8],
    ),
    "one of two objects": (
        {
            "oneOf": [
                obj({"a": INTEGER, "b": True}, required=["a"]),
                obj({"a": True, "b": {"const": 1}}, required=["b"]),
            ]
        },
        objects(a=[1, "x"], b=[1, 2]),
    ),
    "listed values": (
        {
            "enum": SCALARS,
            "not": {"enum": ["a", 1]},
            "if": STRING,
            "then": {"minLength": 2},
            "else": {"type": "number"},
        },
        SCALARS,
    ),
    "nothing else": (
        {"allOf": [obj({"a": INTEGER}), obj({"b": True}, required=["b"])], "unevaluatedProperties": False},
        ABC,
    ),
    "nothing but what a case has": (
        {
            "allOf": [obj({"a": INTEGER}, required=["a"])],
            "anyOf": [obj({"b": INTEGER}, required=["b"]), obj({"c": INTEGER}, required=["c"])],
            "unevaluatedProperties": False,
        },
        [each for each in ABC if not {"b", "c"} <= each.keys()],
    ),
    "nothing but what a condition has": (
        {
            "type": "object",
            **where("a", 7, then={"properties": {"b": INTEGER}}),
            "unevaluatedProperties": False,
        },
        ABC,
    ),
    "nothing else in listed values": (
        {
            "enum": ABC,
            "allOf": [
                {"properties": {"a": True}},
                {"anyOf": [{"properties": {"b": INTEGER}, "required": ["b"]}, {}]},
            ],
            "unevaluatedProperties": False,
        },
        ABC,
    ),
    "others with a schema": (
        {"allOf": [obj({"a": INTEGER})], "unevaluatedProperties": STRING},
        objects(a=[1, "x"], b=[1, "x"]),
    ),
    "inner additional ones": (
        {"allOf": [obj({"a": INTEGER}, additionalProperties=STRING)], "unevaluatedProperties": False},
        objects(a=[1, "x"], b=[1, "x"]),
    ),
    "no other items": (
        {
            "type": "array",
            "allOf": [{"prefixItems": [INTEGER]}, {"prefixItems": [True, STRING]}],
            "unevaluatedItems": False,
        },
        arrays([1, "x"], 3),
    ),
    "other items": (
        {"type": "array", "allOf": [{"prefixItems": [INTEGER]}], "unevaluatedItems": STRING},
        arrays([1, "x"], 3),
    ),
    "a set": (
        {"type": "array", "items": {"enum": ["x", 1, 2.5]}, "uniqueItems": True},
        arrays(["x", 1, 2.5], 4),
    ),
    "a set of some": (
        {
            "items": {"$ref": "#/$defs/c"},
            "uniqueItems": True,
            "minItems": 2,
            "maxItems": 2,
            "$defs": {"c": {"enum": NAMES[:3]}},
        },
        arrays(NAMES[:4], 3),
    ),
    "a set of what has few values": (
        {"type": "array", "items": {"type": ["boolean", "null"]}, "uniqueItems": True},
        arrays([True, False, None], 3),
    ),
    "a set with cases": (
        {
            "type": "array",
            "items": {"anyOf": [{"const": 1}, BOOLEAN, {"enum": ["q", 1.0]}]},
            "uniqueItems": True,
            "minItems": 1,
        },
        arrays([1, True, "q"], 3),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_grammar_allows_just_what_is_valid(texts, case):
    schema, values = CASES[case]
    validator = Draft202012Validator(json.loads(json.dumps(schema), parse_float=Decimal))
    grammar = grammar_of_schema(json.dumps(schema))
    valid = [value for value in values if validator.is_valid(value)]
    assert 0 < len(valid) < len(values)
    assert [value for value in values if texts.accept(grammar, json.dumps(value))] == valid
    for seed in range(8):
        text = texts.random(grammar, random.Random(seed).choice)
        if text is not None:
            validator.validate(json.loads(text, parse_float=Decimal))
