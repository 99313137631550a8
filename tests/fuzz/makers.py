"""What a hostile world hands in, at random: by kind, a case made from a source of random numbers."""

from __future__ import annotations

import json
import struct

ODD_NUMBERS = (0, 1, 2, 3, 7, 255, 256, 2000, 2001, 65_536, 10**6, 10**9, 2**31, 2**32 - 1, 2**63 - 1, 10**20)
ODD_TEXTS = (
    *("", " ", "\0", "\x1b[2J", "\ud800", "é", "\U0001f600", "<|im_end|>", "<|im_", "../../x", "a" * 5000),
    *("{{", "{%", "%}", "\\", '"', "NaN", "-0", "1e999", "\u202e", "\r\n"),
)


def header(random, good):
    """A GGUF file with some of its bytes wrong; the header is hit more often than the rest."""
    data = bytearray(good)
    for _ in range(random.choice((1, 1, 2, 5, 40))):
        size = max(1, min(len(data), 14_000))
        data += b"\0" * (not data)
        at, what = random.randrange(size), random.randrange(5)
        if what == 0:
            data[at] = random.randrange(256)
        elif what == 1:
            number = random.choice(ODD_NUMBERS) & (2**64 - 1)
            data[at : at + 8] = struct.pack("<Q", number)
        elif what == 2:
            data[at : at + 4] = struct.pack("<I", random.choice(ODD_NUMBERS) & (2**32 - 1))
        elif what == 3:
            other, length = random.randrange(size), random.randrange(64)
            data[at : at + length] = data[other : other + length]
        elif random.random() < 0.2:
            del data[random.randrange(len(data)) :]
    return bytes(data)


PLAIN = ("a", "x\n", "é", "<|im_end|>", "\\n", "a" * 999)
EXPRESSIONS = (
    *(
        "messages",
        "messages[0].content",
        "tools",
        "bos_token",
        "range({n})",
        "'{t}'",
        "{n}",
        "m",
        "ns.x",
        "[{e}]",
    ),
    *("{e} + {e}", "{e} ~ {e}", "{e} * {n}", "{e} ** {n}", "({e}) | indent({n})", "({e}) | center({n})"),
    *("({e}) | tojson(indent={n})", "({e}) | replace('a', {e})", "({e}) | list", "({e}) | join({e})"),
    *("({e}) | length", "({e})[{n}]", "({e})[{n}:]", "({e}) | wordwrap({n})", "({e}).split('{t}')"),
    *("{e} if {e} else {e}", "{e} in {e}", "dict(a={e})", "'%{n}d' % {n}", "'{t}'.format({e})", "f({e})"),
    *(
        "({e}) | sort",
        "({e}) | map('upper') | list",
        "namespace(x={e})",
        "({e}) | batch({n}) | list",
        "loop.index",
    ),
)
STATEMENTS = (
    *(
        "{t}",
        "{{{{ {e} }}}}",
        "{{% set ns.x = {e} %}}",
        "{{% set m = {e} %}}",
        "{{% break %}}",
        "{{% continue %}}",
    ),
    *("{{% for m in {e} %}}{s}{{% endfor %}}", "{{% if {e} %}}{s}{{% else %}}{s}{{% endif %}}"),
    *("{{% macro f(m) %}}{s}{{{{ f(m) }}}}{{% endmacro %}}", "{{% for m in messages %}}{s}{{% endfor %}}"),
    *(
        "{{% generation %}}{s}{{% endgeneration %}}",
        "{{{{ raise_exception({e}) }}}}",
        "{{{{ strftime_now({e}) }}}}",
    ),
)


def template(random):
    """A Jinja template, mostly a valid one."""

    def grown(kinds, depth):
        pattern = random.choice(kinds if depth else kinds[:6])
        return pattern.format(
            e=grown(EXPRESSIONS, depth - 1) if "{e}" in pattern else "",
            s=grown(STATEMENTS, depth - 1) if "{s}" in pattern else "",
            n=random.choice(ODD_NUMBERS),
            t=random.choice(
                ("a", "x\n", "é", "<|im_end|>", "\\n", "a" * 999) if random.random() < 0.97 else ODD_TEXTS
            ),
        )

    head = "{% set ns = namespace(x=1) %}"
    head += "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    return head + "".join(grown(STATEMENTS, random.randrange(1, 12)) for _ in range(random.randrange(1, 5)))


def grammar(random):
    """Something like GBNF."""
    names = ["root", *(f"r{i}" for i in range(random.choice((1, 3, 50))))]

    def item(depth):
        times = random.choice(("", "", "", "*", "+", "?", "{{{0},}}", "{{{0}}}", "{{0,{0}}}", "{{{0},{1}}}"))
        few = ODD_NUMBERS[: 9 if random.random() < 0.02 else 5]
        times = times.format(*sorted((random.choice(few), random.choice(few))))
        if depth and random.random() < 0.4:
            return "(" + " ".join(items(depth - 1)) + ")" + times
        later = random.choice(names[1:]) if random.random() < 0.3 else '"ab"'
        one = random.choice((later, later, '"ab"', "[a-z]", '""', ".", '"\\x41"', "[^\\n]", '"é"', "|"))
        return one if one in ("|", '""') and random.random() < 0.99 else one + times

    def items(depth):
        return [item(depth) for _ in range(random.randrange(1, 5))]

    lines = [f'{name} ::= "x" | {" ".join(items(random.choice((1, 2, 6))))}' for name in names]
    text = "\n".join(lines)
    if random.random() < 0.2:
        at = random.randrange(len(text))
        text = text[:at] + random.choice((*ODD_TEXTS, "(" * 5000, ")" * 9, "::=")) + text[at:]
    return text


KEYWORDS = (
    *(
        "type",
        "properties",
        "required",
        "items",
        "prefixItems",
        "anyOf",
        "oneOf",
        "allOf",
        "not",
        "enum",
        "const",
    ),
    *("minLength", "maxLength", "pattern", "format", "minimum", "maximum", "multipleOf"),
    *(
        "minItems",
        "maxItems",
        "uniqueItems",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "$ref",
    ),
    *(
        "minProperties",
        "maxProperties",
        "if",
        "then",
        "else",
        "contains",
        "dependentRequired",
        "$defs",
        "nullable",
    ),
)
PATTERNS = (
    "^a*$",
    "a{2,5}",
    "(a|b)*a(a|b){12}",
    "[",
    "^(a{1000}){1000}$",
    "\\d+",
    "(?=x)",
    "(((((a)))))",
    "^[^a]+$",
    "x{9999}",
)


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


def schema(random):
    """Something like a JSON schema, as text."""

    def made(depth):
        found = {}
        for _ in range(random.randrange(1, 4)):
            key = random.choice(KEYWORDS)
            found[key] = setting(key, depth)
        return found

    def setting(key, depth):
        if random.random() < 0.08 or not depth:
            return value(random, 2)
        inner = [made(depth - 1) for _ in range(random.randrange(1, 4))]
        if key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            return inner
        if key in ("properties", "patternProperties", "$defs"):
            return {random.choice(("a", "b", "^x", *PATTERNS)): each for each in inner}
        if key in ("items", "not", "additionalProperties", "propertyNames", "if", "then", "else", "contains"):
            return inner[0]
        if key == "type":
            kinds = ("string", "integer", "number", "object", "array", "boolean", "null")
            return random.choice((random.choice(kinds), random.sample(kinds, 2)))
        if key in ("enum", "required"):
            return [value(random, 1) for _ in range(random.randrange(4))]
        if key in ("pattern", "format", "$ref"):
            return random.choice((*PATTERNS, "date-time", "uuid", "#", "#/$defs/a", "#/properties/a", "ipv4"))
        return random.choice(ODD_NUMBERS)

    text = json.dumps(made(random.choice((1, 3, 5))))
    if random.random() < 0.05:
        text = random.choice(("[" * 50_000, '{"not":' * 3000, text[: len(text) // 2], text + "x"))
    return text


def body(random):
    """A request in OpenAI's form, with something odd in it."""
    message = {"role": "user", "content": random.choice(ODD_TEXTS)}
    asked = {
        "messages": [message],
        "prompt": random.choice(("x", ["x", "y"], [1, 2], [[1]], 7)),
        "model": "m",
        "max_tokens": 4,
        "temperature": 0.5,
        "stop": ["x"],
        "n": 1,
        "logprobs": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
        "logit_bias": {"1": 1},
        "seed": 1,
        "stream": False,
    }
    for key in random.sample(sorted(asked), random.randrange(len(asked))):
        if random.random() < 0.4:
            del asked[key]
        else:
            asked[key] = value(random, 3)
    if random.random() < 0.2 and isinstance(asked.get("messages"), list):
        asked["messages"].append(value(random, 3))
    return asked


def spoiled(random, good):
    """What a file of the store may hold instead of `good`."""
    what = random.randrange(6)
    if what == 0:
        return json.dumps(value(random, 4)).encode(errors="replace")
    if what == 1:
        return good[: random.randrange(len(good) + 1)]
    if what == 2:
        return bytes(random.randrange(256) for _ in range(random.randrange(200)))
    if what == 3:
        return random.choice((b"[" * 100_000, b"", b"\0" * 4096, b'{"version": 1}', b"9" * 6000))
    data = bytearray(good)
    for _ in range(random.choice((1, 3, 20))):
        if data:
            data[random.randrange(len(data))] = (
                random.randrange(256) if what == 4 else random.choice(b'0-9."[]{}e')
            )
    return bytes(data)
