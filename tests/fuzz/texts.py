"""Texts that a hostile world hands in, at random: templates, grammars, schemas and requests in JSON.

Most are nearly right: what is refused at its first word reaches little of what is tried.
"""

from __future__ import annotations

import json

ODD_NUMBERS = (0, 1, 2, 3, 7, 255, 256, 2000, 2001, 65_536, 10**6, 10**9, 2**31, 2**32 - 1, 2**63 - 1, 10**20)
ODD_TEXTS = (
    *("", " ", "\0", "\x1b[2J", "\ud800", "é", "\U0001f600", "<|im_end|>", "<|im_", "../../x", "a" * 5000),
    *("{{", "{%", "%}", "\\", '"', "NaN", "-0", "1e999", "\u202e", "\r\n"),
)
PLAIN = ("a", "x\n", "é", "<|im_end|>", "\\n", "a" * 999)
FEW = (0, 1, 2, 3, 7)

# What an expression of a template is made of, by its type: {x} is a text, {l} a list, {i} a number, {n} a
# literal number and {t} a literal text.
EXPRESSIONS = {
    "x": (
        *("messages[0].content", "'{t}'", "bos_token", "ns.x", "{i} | string", "{x} ~ {x}", "({x}) * {n}"),
        *("({x}) | indent({n})", "({x}) | center({n})", "({l}) | tojson(indent={n})", "({x})[{n}:]"),
        *("({x}) | replace('a', {x})", "({l}) | join({x})", "({x}) | wordwrap({n})", "{x} if {i} else {x}"),
        *("'%{n}d' % {n}", "'{t}'.format({x})", "({x}) | upper | trim", "f({x}) | string", "({x})[{n}:{n}]"),
    ),
    "l": (
        *("messages", "tools", "range({n})", "[{x}]", "[{x}, {i}]", "({x}) | list", "({x}).split('{t}')"),
        *("({l}) | map('string') | list", "({l}) | batch({n}) | list", "({l}) + ({l})", "({l}) * {n}"),
        *("({l}) | sort", "({l})[{n}:]", "dict(a={x}) | items | list", "({l}) | unique | list"),
    ),
    "i": ("{n}", "({x}) | length", "({l}) | length", "{i} + {i}", "{i} * {n}", "{i} ** {n}", "{x} in {x}"),
}
STATEMENTS = (
    *("{t}", "{{{{ {x} }}}}", "{{% set ns.x = {x} %}}", "{{% set m = {l} %}}"),
    *("{{{{ strftime_now({x}) }}}}", "{{{{ ({x}) | string }}}}", "{{% for m in {l} %}}{s}{{% endfor %}}"),
    *("{{% if {i} %}}{s}{{% else %}}{s}{{% endif %}}", "{{% for m in messages %}}{s}{{% endfor %}}"),
    *("{{% macro f(m) %}}{s}{{% endmacro %}}{{{{ f({x}) }}}}", "{{% filter upper %}}{s}{{% endfilter %}}"),
    *("{{% generation %}}{s}{{% endgeneration %}}", "{{% for m in {l} %}}{s}{{% break %}}{{% endfor %}}"),
    *(
        "{{% break %}}",
        "{{% macro f(m) %}}{s}{{{{ f(m) }}}}{{% endmacro %}}",
        "{{{{ raise_exception({x}) }}}}",
    ),
)
WRONG_STATEMENTS = 3  # the last ones: these end in an error


def template(random):
    """A Jinja template, mostly one that can be rendered."""
    numbers = ODD_NUMBERS if random.random() < 0.4 else FEW
    odd = random.random() < 0.2

    def grown(kind, depth):
        if kind == "s":
            kinds = STATEMENTS if odd else STATEMENTS[:-WRONG_STATEMENTS]
            pattern = random.choice(kinds if depth > 0 else kinds[:4])
        else:
            other = random.choice("xli") if random.random() < 0.03 else kind
            pattern = random.choice(EXPRESSIONS[other][: None if depth > 0 else 3])
        parts = {part: grown(part, depth - 1) for part in "xlis" if f"{{{part}}}" in pattern}
        text = random.choice(ODD_TEXTS if odd and random.random() < 0.1 else PLAIN)
        return pattern.format(**parts, n=random.choice(numbers), t=text)

    head = "{% set ns = namespace(x='') %}{% macro f(m) %}{{ m }}{% endmacro %}"
    head += "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    return head + "".join(grown("s", random.randrange(1, 10)) for _ in range(random.randrange(1, 5)))


def grammar(random):
    """Something like GBNF, mostly a grammar that a text completes."""
    names = ["root", *(f"r{i}" for i in range(random.choice((1, 3, 50))))]
    odd = random.random() < 0.4
    few = FEW[1:] if not odd else ODD_NUMBERS[: 9 if random.random() < 0.1 else 5]
    signs = ("", "", "", "*", "+", "?", "{{{0},}}", "{{{0}}}", "{{0,{0}}}", "{{{0},{1}}}")

    def item(depth):
        times = random.choice(signs).format(*sorted((random.choice(few), random.choice(few))))
        if depth and random.random() < 0.4:
            return ("(" if odd else '("g" ') + " ".join(items(depth - 1)) + ")" + times
        later = random.choice(names[1:]) if random.random() < 0.3 else '"ab"'
        one = random.choice((later, later, '"ab"', "[a-z]", ".", '"\\x41"', "[^\\n]", '"é"', '""', '| "y"'))
        return one if one in ('""', '| "y"') else one + times

    def items(depth):
        return [item(depth) for _ in range(random.randrange(1, 5))]

    lines = [f'{name} ::= "x" | "z" {" ".join(items(random.choice((1, 2, 6))))}' for name in names]
    text = "\n".join(lines)
    if odd and random.random() < 0.4:
        at = random.randrange(len(text))
        text = text[:at] + random.choice((*ODD_TEXTS, "(" * 5000, ")" * 9, "::=")) + text[at:]
    return text


FOLLOWED = (
    *("type", "properties", "required", "items", "prefixItems", "anyOf", "oneOf", "allOf", "enum", "const"),
    *("minLength", "maxLength", "pattern", "format", "minimum", "maximum", "multipleOf", "minItems"),
    *("maxItems", "additionalProperties", "$ref", "$defs", "minProperties", "maxProperties", "nullable"),
)
KEYWORDS = (
    *FOLLOWED,
    *("not", "uniqueItems", "patternProperties", "propertyNames", "if", "then", "else", "contains"),
    *("dependentRequired",),
)
PATTERNS = ("^a*$", "a{2,5}", "^[^a]+$", "\\d+", "(((((a)))))", "[", "^(a{1000}){1000}$", "(?=x)", "x{9999}")
MILD_PATTERNS = 5
FORMATS = ("date-time", "uuid", "ipv4", "email", "x")


def value(random, depth):
    """Any JSON value."""
    what = random.randrange(7 if depth else 5)
    if what == 0:
        return random.choice((None, True, False))
    if what == 1:
        return random.choice((1, -1)) * random.choice(ODD_NUMBERS)
    if what == 2:
        return random.choice((0.5, -1e300, 1e-300, float("inf"), 2.0))
    if what in (3, 4):
        return random.choice(ODD_TEXTS)
    if what == 5:
        return [value(random, depth - 1) for _ in range(random.randrange(4))]
    return {
        random.choice((*KEYWORDS, *ODD_TEXTS)): value(random, depth - 1) for _ in range(random.randrange(4))
    }


TYPED = {
    "string": ("minLength", "maxLength", "pattern", "format", "enum"),
    "integer": ("minimum", "maximum", "multipleOf", "enum"),
    "number": ("minimum", "maximum", "const"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties", "minProperties", "$defs"),
    "boolean": ("const",),
    "null": (),
}


def schema(random):
    """Something like a JSON schema, as text; mostly one that a text can follow."""
    odd = random.random() < 0.4
    numbers = ODD_NUMBERS if odd else (0, 1, 2, 3, 7, 255)

    def made(depth):
        if random.random() < 0.15:
            keys = random.sample(KEYWORDS if odd else FOLLOWED, random.randrange(1, 4))
        else:
            kind = random.choice(tuple(TYPED))
            keys = random.sample(TYPED[kind], min(len(TYPED[kind]), random.randrange(3)))
            found = {"type": kind}
            return found | {key: setting(key, depth, kind) for key in keys}
        return {key: setting(key, depth, "") for key in keys}

    def setting(key, depth, kind):
        if (odd and random.random() < 0.1) or depth < 0:
            return value(random, 2)
        inner = [made(depth - 1) for _ in range(random.randrange(1, 4))]
        if key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            return inner
        if key in ("properties", "patternProperties", "$defs"):
            return {random.choice(("a", "b", "c", *PATTERNS[:2])): each for each in inner}
        if key in ("items", "not", "additionalProperties", "propertyNames", "if", "then", "else", "contains"):
            return inner[0]
        if key == "type":
            return random.choice((random.choice(tuple(TYPED)), random.sample(tuple(TYPED), 2)))
        if key in ("enum", "required"):
            texts = [random.choice((*ODD_TEXTS[5:10], "a", "b")) for _ in range(random.randrange(1, 4))]
            return texts if kind != "integer" else [random.choice(numbers)]
        if key == "const":
            return {"boolean": True}.get(kind, random.choice(numbers))
        if key in ("pattern", "format", "$ref"):
            refs = ("#", "#/$defs/a", "#/properties/a")
            return random.choice(
                {"pattern": PATTERNS[: None if odd else MILD_PATTERNS], "format": FORMATS, "$ref": refs}[key]
            )
        return random.choice(numbers)

    text = json.dumps(made(random.choice((1, 3, 5))))
    if random.random() < 0.05:
        text = random.choice(("[" * 50_000, '{"not":' * 3000, text[: len(text) // 2], text + "x"))
    return text


def body(random):
    """A request in OpenAI's form, with something odd in it."""
    message = {"role": "user", "content": random.choice(("the cat", *ODD_TEXTS))}
    asked = {
        "messages": [message],
        "prompt": random.choice(("x", ["x", "y"], [1, 2], [[1]], 7)),
        "model": "m",
        "max_tokens": 4,
        "temperature": 0.5,
        "stop": ["x"],
        "n": 1,
        "logprobs": random.choice((True, 1)),
        "response_format": random.choice(
            ({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}, {"type": "text"})
        ),
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
        "logit_bias": {"1": 1},
        "seed": 1,
        "stream": random.random() < 0.5,
    }
    for key in random.sample(sorted(asked), random.choice((0, 1, 1, 2, 5, 12))):
        if random.random() < 0.6:
            del asked[key]
        else:
            asked[key] = value(random, 3)
    if random.random() < 0.1 and isinstance(asked.get("messages"), list):
        asked["messages"].append(value(random, 3))
    return asked
