"""JSON schemas: which texts their grammars allow, and which schemas are refused."""

from __future__ import annotations

import json
from datetime import date

import pytest

from specx.backends.errors import GrammarError
from specx.engine.text.json_schema import grammar_of_schema


def obj(properties, **more):
    return {"type": "object", "properties": properties, **more}


INTEGER, STRING, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}
TREE = obj({"v": INTEGER, "kids": {"type": "array", "items": {"$ref": "#/$defs/tree_node"}}}, required=["v"])

DEEP = {"$ref": "#/$defs/n", "$defs": {"n": {"items": {"$ref": "#/$defs/n"}}}, "const": []}
for _ in range(89):
    DEEP["const"] = [DEEP["const"]]

ALLOWED = {
    "strings": (STRING, [r'"\ud83d\ude00"', r'"é"', r'"\/"', '"é😀"', '""']),
    "any object": ({}, ["{}", '{"a": [1, {"b": null}]}', '{\n  "a": 1\n}']),
    "anything": (True, ["1", "{}", "null", '"x"', "[[]]", "-1.5e3"]),
    "long strings": ({**STRING, "maxLength": 1500}, ['"' + "a" * 1500 + '"', '""']),
    "longer strings": (
        {**STRING, "minLength": 2200, "maxLength": 3100},
        [f'"{"a" * n}"' for n in (2200, 3100)],
    ),
    "many items": ({"items": INTEGER, "minItems": 500}, [json.dumps([1] * 500)]),
    "bounds": ({**INTEGER, "minimum": 5, "maximum": 19}, ["5", "9", "10", "19"]),
    "signs": ({**INTEGER, "minimum": -12, "exclusiveMaximum": 1005}, ["-12", "-1", "0", "1004", "999"]),
    "large": ({**INTEGER, "minimum": 10**50}, [str(10**50), str(10**50 + 7)]),
    "numbers": ({"type": "number", "minimum": -1.5, "maximum": 2.25}, ["-1.5", "-1.50", "0", "2.25", "-0.1"]),
    "draft 4": ({**INTEGER, "minimum": 3, "exclusiveMinimum": True}, ["4"]),
    "cents": ({"type": "number", "multipleOf": 0.01, "minimum": 0}, ["0.01", "10.25", "3", "100.1"]),
    "sevens": ({**INTEGER, "multipleOf": 7}, ["0", "7", "-14", "700", "7" * 40]),
    "nullable enum": ({"type": ["string", "null"], "enum": ["red", None]}, ['"red"', "null"]),
    "nullable array": ({"type": ["array", "null"], "items": INTEGER}, ["[1, 2]", "null", "[]"]),
    "one type listed": ({"type": ["string"], "minLength": 2}, ['"ab"']),
    "tuple": ({"type": "array", "prefixItems": [INTEGER, STRING], "minItems": 2}, ['[1, "a"]']),
    "short tuple": (
        {"prefixItems": [INTEGER, STRING], "items": NULL, "maxItems": 4},
        ["[]", "[1]", '[1,"a",null]'],
    ),
    "old tuple": ({"items": [INTEGER], "additionalItems": NULL}, ["[1,null]", "[]"]),
    "unlisted": (obj({"a": INTEGER}, additionalProperties=STRING), ['{"a":1,"b":"x"}', '{"b":"x"}']),
    "patterns": (
        obj({}, patternProperties={"^x": INTEGER, "y$": {"minimum": 5}}, additionalProperties=STRING),
        ['{"xa":1,"xy":5,"y":7,"q":"r"}'],
    ),
    "names": (
        {"propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": INTEGER},
        ['{"abc":1}', "{}"],
    ),
    "some": (
        obj(dict.fromkeys("abcd", INTEGER), minProperties=2, maxProperties=3),
        ['{"a":1,"d":2}', '{"b":1,"c":2,"d":3}'],
    ),
    "unlisted required": ({"type": "object", "required": ["a b"]}, ['{"a b":1,"c":2}']),
    "order": (obj({"b": INTEGER, "a": INTEGER}), ['{"b":1,"a":2}', "{}"]),
    "all": (
        {
            "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"y": INTEGER}, "required": ["y"]}],
            "$defs": {"base": obj({"x": {"maxLength": 3}}, required=["x"])},
            "properties": {"x": STRING},
        },
        ['{"x":"abc","y":3}'],
    ),
    "all of a reference": (
        obj(
            {"c": {"allOf": [{"$ref": "#/definitions/C"}], "default": "red"}},
            definitions={"C": {"enum": ["red"]}},
        ),
        ['{"c": "red"}'],
    ),
    "root reference": (
        {"$ref": "#/$defs/tree_node", "$defs": {"tree_node": TREE}},
        ['{"v":1,"kids":[{"v":2}]}'],
    ),
    "recursion to the root": (obj({"a": {"$ref": "#"}}), ['{"a":{"a":{}}}']),
    "pointers": ({"$ref": "#/$defs/a~1b~0c%25d", "$defs": {"a/b~c%d": INTEGER}}, ["1"]),
    "anchors": ({"$ref": "#here", "$defs": {"x": {"$anchor": "here", **INTEGER}}}, ["1"]),
    "identifiers": (
        {"$id": "http://a/b", "items": {"$ref": "http://a/b#/$defs/x"}, "$defs": {"x": INTEGER}},
        ["[1]"],
    ),
    "names of rules": (
        obj({"root": {"$ref": "#/$defs/string"}}, **{"$defs": {"string": INTEGER}}),
        ['{"root":1}'],
    ),
    "told apart": (
        {"oneOf": [obj({"k": {"const": k}, k: INTEGER}, required=["k"]) for k in "ab"]},
        ['{"k":"a","a":1}', '{"k":"b"}'],
    ),
    "told apart by names": (
        {"oneOf": [obj({k: INTEGER}, required=[k]) for k in "ab"]},
        ['{"a":1}', '{"b":1}'],
    ),
    "told apart by length": (
        {"oneOf": [{**STRING, "maxLength": 3}, {**STRING, "minLength": 4}]},
        ['"abc"', '"abcd"'],
    ),
    "listed in one": ({"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]}, ["1", "3"]),
    "formats are remarks": (
        {"enum": ["09:00", "http://[::1]:8080/"], "format": "time"},
        ['"09:00"', '"http://[::1]:8080/"'],
    ),
    "pattern and length": ({**STRING, "pattern": "^(a|b)*c$", "maxLength": 5}, ['"abc"', '"ababc"']),
    "format and length": (
        {**STRING, "format": "uri", "minLength": 1, "maxLength": 2083},
        ['"https://a.b/c"'],
    ),
    "email and length": ({**STRING, "format": "email", "maxLength": 254}, [f'"{"a" * 200}@b.cd"']),
    "look-aheads": (
        {**STRING, "pattern": r"^(?=.*\d)(?!x)(?!.*\.\.)[a-z\d.]+$"},
        ['"a1"', '"1"', '"a.1.b"'],
    ),
    "look-ahead of a decimal": (
        {**STRING, "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
        ['"1.5"', '"-.5"', '"0"'],
    ),
    "look-ahead to the end": ({**STRING, "pattern": "^(?!ab$)a"}, ['"a"', '"abc"']),
    "a property called schema": (obj({"schema": INTEGER}), ['{"schema":1}']),
    "doubles": (
        {"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
        ["1e5", "-0.5", "9" * 40],
    ),
    "half of the doubles": (
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1.79e308},
        ["0.1", "9" * 40],
    ),
    "large doubles": ({**INTEGER, "minimum": 10**50, "maximum": 1e308}, [str(10**50), str(10**300)]),
    "a set of many": (
        {"items": {"enum": list(range(30))}, "uniqueItems": True, "minItems": 2, "maxItems": 5},
        ["[0, 29]", "[1,2,3,4,5]"],
    ),
    "a set of all": (
        {"items": {"enum": list(range(12))}, "uniqueItems": True},
        [json.dumps([*range(12)]), "[]", "[11]"],
    ),
    "exponents": ({"type": "number"}, ["1e5", "-0.5E-12", "12.50"]),
    "deep value": (DEEP, ["[" * 90 + "]" * 90]),
    "many values": ({"enum": list(range(3000))}, ["0", "2999"]),
    "many names": (obj({str(i): INTEGER for i in range(1000)}), ['{"5":1,"999":2}']),
    "remarks": ({**INTEGER, "title": "not", "x-if": 1, "format": "int64", "examples": [{"not": {}}]}, ["1"]),
}

FORBIDDEN = {
    "strings": ['"\n"', '"\x7f"', r'"\ud83d"', r'"\ude00"', r'"\ud83dx"', r'"\x"', '"', "'a'"],
    "any object": ["[]", "1", '{"a":1,}', "{a:1}", "{" + " " * 40 + "}", '{"a"\n\n:1}'],
    "anything": ["", "01", "+1", ".5", "nul", "1.", "1e", "True"],
    "long strings": ['"' + "a" * 1501 + '"'],
    "longer strings": [f'"{"a" * n}"' for n in (2199, 3101)],
    "many items": [json.dumps([1] * 499), "{}"],
    "formats are remarks": ['"10:00"'],
    "bounds": ["4", "20", "-5", "05", "5.0", "100"],
    "signs": ["-13", "1005", "-0", "-20", "10000"],
    "large": ["5", str(10**50 - 1)],
    "numbers": ["-1.51", "2.251", "3", "-2", "2.26", "1e0"],
    "draft 4": ["3"],
    "cents": ["0.001", "1.255", "-1"],
    "sevens": ["1", "15", "-0", "7" * 41],
    "nullable enum": ['"blue"', '""'],
    "nullable array": ['["a"]', "[null]"],
    "one type listed": ['"a"', "1"],
    "tuple": ["[1]", '[1,"a",3]', '["a",1]'],
    "short tuple": ['[1,"a",null,null,null]', '["a"]'],
    "old tuple": ["[null]", "[1,1]"],
    "unlisted": ['{"b":1}', '{"b":"x","a":1}', '{"a":1,"a":"x"}', r'{"\u0061":"x"}'],
    "patterns": ['{"xy":4}', '{"xa":"s"}', '{"q":1}', '{"y":4}'],
    "names": ['{"A":1}', '{"":1}'],
    "some": ["{}", '{"a":1}', '{"a":1,"b":2,"c":3,"d":4}', '{"b":1,"a":2}'],
    "unlisted required": ["{}", '{"c":2}'],
    "order": ['{"a":2,"b":1}', '{"c":1}'],
    "all": ['{"x":"s"}', '{"y":3}', '{"x":"abcd","y":3}', '{"x":1,"y":3}'],
    "all of a reference": ['{"c":"green"}'],
    "root reference": ['{"kids":[]}', "{}"],
    "recursion to the root": ['{"a":1}', "[]"],
    "pointers": ['"a"'],
    "anchors": ['"a"'],
    "identifiers": ['["a"]'],
    "names of rules": ['{"root":"a"}'],
    "told apart": ['{"k":"c"}', "{}", '{"k":"a","b":1}'],
    "told apart by names": ['{"a":1,"b":1}', "{}"],
    "told apart by length": ["1"],
    "listed in one": ["2"],
    "pattern and length": ['"abababc"', '"ab"'],
    "format and length": ['"a b"', '""', '"https://' + "a" * 2083 + '"'],
    "email and length": [f'"{"a" * 250}@b.cd"', '"a"'],
    "look-aheads": ['"a"', '"x1"', '"a..1"', '"A1"'],
    "look-ahead of a decimal": ['""', '"-"', '"."', '"+.-"', '"1.5.2"'],
    "look-ahead to the end": ['"ab"', '"b"'],
    "a property called schema": ["1"],
    "doubles": ["1e999", "9" * 41],
    "half of the doubles": ["0", "-1", "0.0"],
    "large doubles": ["5", str(10**50 - 1), str(10**308 + 1)],
    "a set of many": ["[0]", "[2,1]", "[1,1]", "[1,2,3,4,5,6]", "[29,30]"],
    "a set of all": ["[1,1]", "[12]"],
    "exponents": ["1e", "1e999"],
    "deep value": ["[" * 89 + "]" * 89],
    "many values": ["3000", "-1"],
    "many names": ['{"999":1,"5":2}', '{"1000":1}'],
    "remarks": ['"a"'],
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_a_schema_allows(texts, case):
    schema, allowed = ALLOWED[case]
    grammar = grammar_of_schema(json.dumps(schema))
    assert [text for text in allowed if not texts.accept(grammar, text)] == []
    assert [text for text in FORBIDDEN[case] if texts.accept(grammar, text)] == []


def test_any_character_of_a_listed_value(texts):
    values = [
        "C:\\new",
        "two\nlines",
        'say "hi"',
        "é😀\x7f\u2028[]^-",
        1.5,
        None,
        True,
        {'6" pipe': [{}]},
        10**30,
    ]
    grammar = grammar_of_schema(json.dumps({"enum": values}))
    for value in values:
        text = json.dumps(value, ensure_ascii=False)
        assert texts.accept(grammar, text.replace("\x7f", "\\u007f"))
        assert not texts.accept(grammar, text + " ")
        as_name = grammar_of_schema(json.dumps(obj({str(value): INTEGER}, required=[str(value)])))
        name = json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        assert texts.accept(as_name, f"{{{name}: 1}}")


FORMATS = {
    "date": (
        ["2024-02-29", "2000-02-29", "2023-12-31"],
        ["2023-02-29", "1900-02-29", "2024-13-01", "0000-01-01"],
    ),
    "time": (["12:00:00Z", "23:59:59.123+01:00"], ["24:00:00Z", "12:00:00", "12:60:00Z"]),
    "date-time": (["2024-02-29T12:00:00Z"], ["2024-02-29", "2024-02-30T12:00:00Z"]),
    "duration": (["P1D", "PT5M", "P1Y2M3DT4H", "P2W"], ["P", "PT", "P1H"]),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
    "ipv4": (["1.2.3.4", "255.0.0.1"], ["256.1.1.1", "01.1.1.1", "1.2.3"]),
    "ipv6": (
        ["::", "::1", "1::", "1:2:3:4:5:6:7:8", "fe80::1.2.3.4", "1::3:4:5:6:7:8"],
        ["1:2:3", "1::2::3", ":::"],
    ),
    "hostname": (["a.b-c.d", "x"], ["-a", "a..b", "a_b"]),
    "email": (["a@b.co", "x.y+z@ex-am.ple.org"], ["a@b", "@b.c", "a b@c.de"]),
    "uri": (["http://a.b/c?d#e", "mailto:x@y.z", "urn:a:b"], ["a b", "//x", "http://a b"]),
    "json-pointer": (["", "/a/0", "/~0~1"], ["a", "/~2"]),
    "relative-json-pointer": (["0", "1/a~1b", "12#"], ["", "/a", "01", "-1", "1a"]),
    "uri-reference": (["", "/a/b", "../c?d#e", "//h/x", "http://a.b/c", "#f"], ["a b", "\\", "a\nb", "%zz"]),
    "iri": (["http://a.b/c?d#e"], ["/a", "a b"]),
    "iri-reference": (["", "/a"], ["a b"]),
    "uri-template": (["", "/a/{b}", "{?q,r*}", "{+p:3}/x"], ["{", "}", "a b", "{}", "{a b}"]),
    "idn-hostname": (["a.b-c"], ["-a", "a b"]),
    "idn-email": (["a@b.co"], ["a", "a b@c.de"]),
    "regex": (["", "^a+b?$", r"\d{3}-\d*?|[a-z_]", "(a|bc)"], ["(", "*", "a**", "[", "\\"]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(texts, name):
    grammar = grammar_of_schema(json.dumps({**STRING, "format": name}))
    right, wrong = FORMATS[name]
    assert [text for text in right if not texts.accept(grammar, json.dumps(text))] == []
    assert [text for text in wrong if texts.accept(grammar, json.dumps(text))] == []


def test_dates_are_those_of_the_calendar(texts):
    grammar = grammar_of_schema(json.dumps({**STRING, "format": "date"}))
    for year in (1, 4, 100, 400, 1999, 2000, 2024, 2100):
        for month, day in ((2, 29), (4, 30), (4, 31), (12, 31), (6, 0)):
            text = f"{year:04}-{month:02}-{day:02}"
            try:
                date.fromisoformat(text)
            except ValueError:
                assert not texts.accept(grammar, f'"{text}"')
            else:
                assert texts.accept(grammar, f'"{text}"')


REFUSED = [
    ("contains", {"contains": {}}),
    ("uniqueItems .*not listed", {"type": "array", "uniqueItems": True}),
    ("uniqueItems .*not listed", {"prefixItems": [INTEGER, INTEGER], "uniqueItems": True}),
    *(
        (f"{key} within not, if or oneOf .{place}", schema)
        for key, inner in {
            "items": {"items": INTEGER},
            "multipleOf": {"multipleOf": 2},
            "format": {"format": "date"},
            "minimum": {"minimum": 2, "exclusiveMinimum": True},
        }.items()
        for place, schema in (("#/not", {"not": inner}), ("#/items", {"items": {"if": inner}}))
    ),
    ("single arrays", {"type": "array", "not": {"const": [1]}}),
    ("not .*is not a schema", {"not": []}),
    ("dependentRequired .*lists of names", {"dependentRequired": {"a": "b"}}),
    ("refers to itself", {"not": {"$ref": "#/not"}}),
    ("no value", {"not": {}}),
    ("no value", {**STRING, "enum": ["a"], "not": {"const": "a"}}),
    ("no value", {"items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 3}),
    ("minProperties", {"type": "object", "minProperties": 2}),
    ("dynamicRef", {"$dynamicRef": "#x"}),
    ("contains .#/properties/a/items", obj({"a": {"items": {"contains": {}}}})),
    ("telepathy", {"type": "telepathy"}),
    ("minLength .*whole number", {"minLength": -1}),
    ("required .*list of names", {"required": "a"}),
    ("oneOf", {**obj({}), "oneOf": [obj({"a": STRING}, required=["a"]), {"const": {"a": "x"}}]}),
    ("format within .*oneOf", {**STRING, "oneOf": [{"format": "date"}, {"pattern": "^2"}]}),
    ("refers to itself", {"$ref": "#"}),
    (
        "100 references",
        {"$ref": "#/$defs/0", "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(200)}},
    ),
    ("refers to itself", {"anyOf": [{"$ref": "#"}, STRING]}),
    ("no value", obj({"a": {"$ref": "#"}}, required=["a"])),
    ("no value", {**STRING, "minLength": 3, "maxLength": 2}),
    ("no value", {**INTEGER, "minimum": 3, "exclusiveMaximum": 4, "multipleOf": 2}),
    ("no value", False),
    ("https://nowhere/x. .*not within the schema", {"$ref": "https://nowhere/x"}),
    ("#/nowhere. .*leads nowhere", {"$ref": "#/nowhere"}),
    ("not valid UTF-8", {"$ref": "#/%ff"}),
    ("counts to 1000000;.* 100000", {**STRING, "maxLength": 10**6}),
    ("20000 states", {**STRING, "pattern": "(a|b)*a(a|b){20}"}),
    *(
        (reason, {**STRING, "pattern": pattern})
        for reason, patterns in {
            "look-ahead that is not": ("(?!a)b", "^b(?=a)", "^(?:(?!a)b)", "^(?!(?!a)b)c", "x|^(?!a)"),
            "one of its cases": ("^(?!a)b|c",),
            "anchor is repeated": ("^(?!a)*b",),
            "without its": ("^(?=a",),
        }.items()
        for pattern in patterns
    ),
    ("around a JSON schema", {"name": "x", "strict": True, "schema": obj({"a": INTEGER})}),
    ("around a JSON schema", {"type": "json_schema", "json_schema": {"name": "x", "schema": INTEGER}}),
    *((key, {**INTEGER, key: 2}) for key in ("divisibleBy", "extends", "disallow")),
    ("look-behind", {**STRING, "pattern": "(?<!a)b"}),
    ("back-reference", {**STRING, "pattern": r"(a)\1"}),
    ("property of Unicode", {**STRING, "pattern": r"\p{L}"}),
    ("without its", {**STRING, "pattern": "(a"}),
    ("ends before it begins", {**STRING, "pattern": "a{3,2}"}),
    ("surrogate pair", {"const": "\ud83d"}),
]


@pytest.mark.parametrize(("reason", "schema"), REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(reason, schema):
    with pytest.raises(GrammarError, match=reason) as refused:
        grammar_of_schema(json.dumps(schema))
    assert refused.value.hint and "\n" not in refused.value.message


def test_intersections_of_closed_objects_are_told_what_they_lack():
    closed = [obj({name: INTEGER}, required=[name], additionalProperties=False) for name in "ab"]
    with pytest.raises(GrammarError, match="no value") as refused:
        grammar_of_schema(json.dumps({"allOf": closed}))
    assert "additionalProperties: false within allOf" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"type":', "not valid JSON"),
        ("", "empty"),
        ("[]", "not a JSON object"),
        ('{"minimum": NaN}', "NaN is not a number"),
        ('{"minimum": 1e999}', "400 digits"),
        ('{"minimum": ' + "9" * 5000 + "}", "400 digits"),
        ('{"items":' * 7000 + "{}" + "}" * 7000, "nested more than 100 deep"),
        ("[" * 50003, "nested more than 100 deep"),
    ],
)
def test_what_is_no_schema_is_refused(text, reason):
    with pytest.raises(GrammarError, match=reason) as refused:
        grammar_of_schema(text)
    assert refused.value.hint and len(refused.value.message) < 300


def test_trivial_uses_of_what_is_refused_pass(texts):
    schema = {"type": "array", "uniqueItems": True, "maxItems": 1, "unevaluatedItems": True, "items": INTEGER}
    assert texts.accept(grammar_of_schema(json.dumps(schema)), "[1]")
    assert grammar_of_schema('{"type": "array", "uniqueItems": false}')
