"""What reads the calls of tools in the kinds of forms that models write them in.

Each takes a block of calls and the schemas of the tools, and raises ValueError, TypeError or `WrongError`
if the block is not right.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from specx.engine.api.parsing import Call

__all__ = [
    "GEMMA_QUOTE",
    "NAME_KEYS",
    "Schemas",
    "WrongError",
    "headed",
    "in_gemma",
    "in_string",
    "in_text",
    "read_arguments",
    "read_gemma",
    "read_json",
    "read_keyed",
    "read_python",
    "tagged",
]

Schemas = Mapping[str, Mapping[str, Any]]
"""Name of a tool -> JSON schema of its arguments."""

NAME_KEYS = ("name", "tool_name")
ARGUMENT_KEYS = ("arguments", "parameters")
ID_KEYS = ("id", "call_id", "tool_call_id")


class WrongError(Exception):
    """This is no call."""


# Calls as JSON: objects with a name and arguments, one or several or a list.


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _refuse(_name: str) -> NoReturn:
    raise WrongError


def _values(text: str) -> list[Any]:
    """JSON values that stand one after the other, with nothing but commas or semicolons between."""
    decoder, values, at = json.JSONDecoder(parse_constant=_refuse), [], 0
    while (at := re.compile(r"[\s,;]*").match(text, at).end()) < len(text):  # type: ignore[union-attr]
        value, at = decoder.raw_decode(text, at)
        values += value if isinstance(value, list) else [value]
    return values


def read_arguments(name: str, text: str) -> Call:
    """A call of `name` with the arguments that a JSON text holds."""
    return _call(name, text)


def _call(name: Any, arguments: Any, label: Any = None) -> Call:
    """A call whose arguments are a JSON object, or the text of one."""
    if isinstance(arguments, str):
        arguments = _loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise WrongError
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    text.encode()  # half a surrogate pair cannot be sent
    return Call(name, text, label if isinstance(label, str) and label else None)


def _first(value: Mapping[str, Any], keys: Sequence[str], default: Any = None) -> Any:
    return next((value[key] for key in keys if key in value), default)


def read_json(block: str, _schemas: Schemas) -> list[Call]:
    """Calls that are JSON objects with a name and arguments, one or several or a list."""
    calls = []
    for value in _values(block):
        if not isinstance(value, dict):
            raise WrongError
        inner = value.get("function")
        said = {**value, **inner} if isinstance(inner, dict) else value
        calls.append(_call(_first(said, NAME_KEYS), _first(said, ARGUMENT_KEYS, {}), _first(said, ID_KEYS)))
    return calls


def read_keyed(block: str, _schemas: Schemas) -> list[Call]:
    """Objects whose only key is the name of the tool."""
    values = _values(block)
    if not all(isinstance(value, dict) and len(value) == 1 for value in values):
        raise WrongError
    return [_call(*pair) for value in values for pair in value.items()]


def in_string(block: str) -> bool:
    """Whether JSON ends within a string."""
    return len(re.findall(r'(?<!\\)(?:\\\\)*"', block)) % 2 == 1


# Calls with their names before the JSON of their arguments.


def headed(head: str, tail: str = "") -> Callable[[str, Schemas], list[Call]]:
    """Reads calls between two patterns; that of the head has groups `name` and perhaps `id`."""
    before, after = re.compile(rf"\s*{head}\s*"), re.compile(rf"\s*{tail}\s*")

    def read(block: str, _schemas: Schemas) -> list[Call]:
        decoder, calls, at = json.JSONDecoder(parse_constant=_refuse), [], 0
        while at < len(block):
            found = before.match(block, at)
            if found is None:
                raise WrongError
            arguments, at = decoder.raw_decode(block, found.end())
            end = after.match(block, at)
            if end is None:
                raise WrongError
            at = end.end()
            calls.append(_call(found["name"], arguments, found.groupdict().get("id")))
        return calls

    return read


# Calls with a tag around each argument.


def tagged(
    call: str, argument: str, tail: str = "", *, known: bool = False
) -> Callable[[str, Schemas], list[Call]]:
    """Reads calls whose arguments are told one by one, with groups `name`, and `key` and `value`.

    Only of tools that are `known`, where any word could be a name.
    """
    before, each, after = re.compile(rf"\s*{call}\s*"), re.compile(argument, re.DOTALL), re.compile(tail)

    def read(block: str, schemas: Schemas) -> list[Call]:
        calls: list[Call] = []
        at, end_at = 0, len(block.rstrip())
        while at < end_at:
            found = before.match(block, at)
            if found is None:
                raise WrongError
            arguments: dict[str, Any] = {}
            name, at = found["name"], found.end()
            if known and name not in schemas:
                raise WrongError
            while (one := each.match(block, at)) is not None:
                arguments[one["key"]] = _typed(one, schemas.get(name, {}))
                at = re.compile(r"\s*").match(block, one.end()).end()  # type: ignore[union-attr]
            end = after.match(block, at)
            if end is None:
                raise WrongError
            at = end.end()
            calls.append(_call(name, arguments))
        return calls

    return read


def _typed(argument: re.Match[str], schema: Mapping[str, Any]) -> Any:
    """An argument as the schema of its tool has it: text, or the JSON value that is written there."""
    key, text = argument["key"], argument["value"]
    if text.startswith("\n"):  # the line ends of the tags
        text = text[1:].removesuffix("\n")
    mode = argument.groupdict().get("string")
    properties = schema.get("properties")
    known = properties.get(key) if isinstance(properties, Mapping) else None
    kinds = _kinds(known, schema)
    if mode == "true" or kinds == {"string"}:
        return text
    try:
        value = _loads(text)
    except (ValueError, WrongError):
        return text.strip() == "True" if kinds == {"boolean"} and text.strip() in ("True", "False") else text
    return text if "string" in kinds and not kinds & _kinds({"const": value}, {}) - {"string"} else value


NAMES = {bool: {"boolean"}, int: {"integer", "number"}, float: {"number"}, str: {"string"}, list: {"array"}}
DEEPEST = 16  # schemas within each other that are looked into


def _kinds(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The types that a schema names, as far as it does; `root` is what its references are looked up in."""
    if not isinstance(schema, Mapping) or depth == DEEPEST:
        return set()
    kind = schema.get("type")
    found = {each for each in (kind if isinstance(kind, list) else [kind]) if isinstance(each, str)}
    if found:
        return found
    listed = schema.get("enum")
    values = [*listed] if isinstance(listed, list) else []
    for value in [*values, *([schema["const"]] if "const" in schema else [])]:
        found |= {"null"} if value is None else NAMES.get(type(value), {"object"})
    for key in ("anyOf", "oneOf"):
        for each in schema[key] if isinstance(schema.get(key), list) else ():
            found |= _kinds(each, root, depth + 1)
    name = schema.get("$ref")
    if isinstance(name, str) and name.startswith("#/"):
        target: Any = root
        for part in name[2:].split("/"):
            target = target.get(part) if isinstance(target, Mapping) else None
        found |= _kinds(target, root, depth + 1)
    return found


# Calls as Python.


class _Json(ast.NodeTransformer):
    """Reads the names that JSON has for values."""

    VALUES: ClassVar[dict[str, bool | None]] = {"true": True, "false": False, "null": None}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A name."""
        return ast.Constant(self.VALUES[node.id]) if node.id in self.VALUES else node


def read_python(block: str, schemas: Schemas) -> list[Call]:
    """Calls as Python has them, with arguments by name, one or a list.

    Values may be called as JSON calls them, and tools as Python could not.
    """
    names = {f"specx_tool_{i}": name for i, name in enumerate(schemas) if not name.isidentifier()}
    for stand_in, name in names.items():
        block = re.sub(rf"(?<![\w.-]){re.escape(name)}(?=\s*\()", stand_in, block)
    try:
        tree = ast.parse(block.strip(), mode="eval").body
    except (SyntaxError, MemoryError) as problem:
        raise WrongError from problem
    calls = []
    for each in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(each, ast.Call) or each.args:
            raise WrongError
        arguments = {}
        for keyword in each.keywords:
            if keyword.arg is None:
                raise WrongError
            arguments[keyword.arg] = _named(ast.literal_eval(_Json().visit(keyword.value)), names)
        name = ast.unparse(each.func)
        calls.append(_call(names.get(name, name), arguments))
    return calls


def _named(value: Any, names: Mapping[str, str]) -> Any:
    """A value in whose texts the names stand again that others stood in for."""
    if isinstance(value, str):
        for stand_in, name in names.items():
            value = value.replace(stand_in, name)
    elif isinstance(value, dict):
        return {_named(key, names): _named(each, names) for key, each in value.items()}
    elif isinstance(value, list | tuple | set):
        return type(value)(_named(each, names) for each in value)
    return value


def in_text(block: str) -> bool:
    """Whether Python ends within a string."""
    return in_string(re.sub(r"'(?:[^'\\]|\\.)*'", "", block)) or block.count("'") % 2 == 1


# Calls as Gemma 4 has them: call:name{key:<|"|>text<|"|>,other:5}

GEMMA_QUOTE = '<|"|>'


def read_gemma(block: str, _schemas: Schemas) -> list[Call]:
    """One call in Gemma 4's own notation."""
    found = re.fullmatch(r"\s*call:(?P<name>[^\s{]+)\s*(?P<arguments>\{.*\})\s*", block, re.DOTALL)
    if found is None:
        raise WrongError
    parts = found["arguments"].split(GEMMA_QUOTE)
    for place, part in enumerate(parts):
        quoted = re.sub(r'([{,]\s*)([^\s{}\[\],:"]+)\s*:', r'\1"\2":', part)
        parts[place] = json.dumps(part) if place % 2 else quoted
    return [_call(found["name"], _loads("".join(parts)))]


def in_gemma(block: str) -> bool:
    """Whether it ends within a string."""
    return block.count(GEMMA_QUOTE) % 2 == 1
