"""A JSON schema as a document: read, its places named, its references followed."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn
from urllib.parse import unquote

from specx.backends.errors import GrammarError
from specx.engine.text.schema.derived import COMPLEMENT, MARKS, derived, is_reference
from specx.engine.text.schema.keywords import ASSERTIONS, CONDITIONS, check
from specx.engine.text.schema.pattern import shown

__all__ = ["EXAMPLE", "Document", "Place", "Schema", "canonical", "entered", "named"]

EXAMPLE = 'for example \'{"type": "object", "properties": {"name": {"type": "string"}}}\', in single quotes'
MAX_DEPTH = 100  # brackets within brackets
MAX_EXPONENT = 400  # the greatest number that programs know has 309 digits
_SAYING = {*ASSERTIONS, *CONDITIONS, "$ref", "allOf", "anyOf", "oneOf", "not", "$defs", "definitions"}

Place = tuple[str | int, ...]  # keys and indices from the root on, and marks of what is derived
Schema = dict[str, Any] | bool


class Document:
    """One JSON text that holds a schema.

    Raises:
        GrammarError: it is not JSON, or no schema.
    """

    def __init__(self, text: str) -> None:
        self.root = _read(text)
        self._checked: dict[Place, Schema] = {}
        self._derived: dict[Place, Schema] = {}
        self._listed: dict[Place, frozenset[Hashable]] = {}
        self._anchors: dict[str, Place] = {}
        self._ids: dict[str, Place] = {}
        self._name_places()

    def schema(self, place: Place) -> Schema:
        """The schema at `place`, known to use no more than what can be turned into a grammar.

        Raises:
            GrammarError: there is none, or it uses something else.
        """
        if place not in self._checked:
            value = self._value(place)
            if not isinstance(value, dict | bool):
                raise GrammarError(
                    f"{named(place)} in the JSON schema is no schema",
                    "a schema is an object, true or false",
                )
            if isinstance(value, dict):
                check(value, named(place))
            self._checked[place] = value
        return self._checked[place]

    def complement(self, place: Place) -> Place:
        """Where the schema stands of what is not valid against the one at `place`.

        Raises:
            GrammarError: there is none, or it uses something else.
        """
        active: tuple[Place, ...] = ()
        while is_reference(self.schema(place)):
            active = entered(active, place)
            place = self.target(place)
        return (*place, COMPLEMENT)

    def listed(self, place: Place, key: str) -> frozenset[Hashable]:
        """The values that the schema at `place` lists under "enum" or "const", each `canonical`."""
        if (*place, key) not in self._listed:
            value = self._value((*place, key))
            self._listed[*place, key] = frozenset(map(canonical, value if key == "enum" else [value]))
        return self._listed[*place, key]

    def target(self, place: Place) -> Place:
        """Where the `$ref` of the schema at `place` leads.

        Raises:
            GrammarError: out of the document, or nowhere.
        """
        ref: str = self._value(place)["$ref"]
        uri, _, fragment = ref.partition("#")
        base = self._base(place)
        if uri:
            if uri not in self._ids:
                self._lost(ref, "is not within the schema")
            base = self._ids[uri]
        try:
            fragment = unquote(fragment, errors="strict")
        except UnicodeDecodeError:
            self._lost(ref, "is not valid UTF-8")
        if fragment and not fragment.startswith("/"):
            if fragment not in self._anchors:
                self._lost(ref, "leads nowhere")
            return self._anchors[fragment]
        target: list[str | int] = list(base)
        value = self._value(base)
        for token in fragment.split("/")[1:]:
            key: str | int = token.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and re.fullmatch("0|[1-9][0-9]{0,8}", str(key)):
                key = int(key)
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                self._lost(ref, "leads nowhere")
            target.append(key)
        return tuple(target)

    def _value(self, place: Place) -> Any:
        value: Any = self.root
        for depth, key in enumerate(place, 1):
            value = self._derived_at(place[:depth]) if key in MARKS else value[key]
        return value

    def _derived_at(self, place: Place) -> Schema:
        if place not in self._derived:
            *source, mark = place
            self._derived[place] = derived(str(mark), self.schema(tuple(source)), named(place))
        return self._derived[place]

    def _base(self, place: Place) -> Place:
        """The innermost schema around `place` that has a name (`$id`) of its own."""
        for length in range(len(place), 0, -1):
            if place[:length] in self._ids.values():
                return place[:length]
        return ()

    def _name_places(self) -> None:
        waiting: list[tuple[Place, Any]] = [((), self.root)]
        for place, value in waiting:  # grows meanwhile
            if isinstance(value, list):
                waiting.extend(((*place, i), each) for i, each in enumerate(value))
            elif isinstance(value, dict):
                waiting.extend(((*place, key), each) for key, each in value.items())
                name = value.get("$id")
                if isinstance(name, str) and name.startswith("#"):  # as drafts up to 7 have it
                    self._anchors.setdefault(name[1:], place)
                elif isinstance(name, str):
                    self._ids.setdefault(name.removesuffix("#"), place)
                if isinstance(value.get("$anchor"), str):
                    self._anchors.setdefault(value["$anchor"], place)

    def _lost(self, ref: str, reason: str) -> NoReturn:
        raise GrammarError(
            f"the $ref {shown(ref)} in the JSON schema {reason}",
            "refer to something within the schema, such as #/$defs/name",
        )


def canonical(value: Any) -> Hashable:
    """What is the same for values that are the same in JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, list):
        return ("array", tuple(map(canonical, value)))
    if isinstance(value, dict):
        return ("object", frozenset((name, canonical(each)) for name, each in value.items()))
    return ("string", value) if isinstance(value, str) else value


def entered(active: tuple[Place, ...], place: Place) -> tuple[Place, ...]:
    """The schemas that are being resolved within each other, with one more.

    Raises:
        GrammarError: it is among them, or they are too many.
    """
    if place in active:
        raise GrammarError(
            f"the JSON schema at {named(place)} refers to itself and says nothing", "give it a type"
        )
    if len(active) >= MAX_DEPTH:
        raise GrammarError(
            f"more than {MAX_DEPTH} references of the JSON schema lead to each other ({named(place)})",
            "refer to the last of them",
        )
    return (*active, place)


def named(place: Place) -> str:
    """A place for a message, as a JSON pointer; for what is derived, that of its source."""
    written = next((depth for depth, key in enumerate(place) if key in MARKS), len(place))
    place = place[:written]
    if not place:
        return "its root"
    tokens = (str(key).replace("~", "~0").replace("/", "~1") for key in place)
    pointer = "".join(f"/{token}" for token in tokens)
    return "#" + (pointer if len(pointer) <= 80 else f"{pointer[:38]}...{pointer[-38:]}")


def _read(text: str) -> Schema:
    if not text.strip():
        raise GrammarError("the JSON schema is empty", EXAMPLE)
    _check_depth(text)
    try:
        value = json.loads(text, parse_float=_decimal, parse_constant=_no_number, parse_int=_integer)
    except ValueError as problem:
        raise GrammarError(f"the JSON schema is not valid JSON: {problem}", EXAMPLE) from problem
    if not isinstance(value, dict | bool):
        raise GrammarError("the JSON schema is not a JSON object", EXAMPLE)
    _check_wrapped(value)
    _check_text(value)
    return value


def _check_depth(text: str) -> None:
    """JSON is read by recursion, which ends in an error of its own where the text is nested too deep."""
    depth = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', text, re.DOTALL):
        bracket = match.group()
        depth += (bracket in "[{") - (bracket in "]}")
        if depth > MAX_DEPTH:
            raise GrammarError(
                f"the JSON schema is nested more than {MAX_DEPTH} deep",
                "give the inner parts names in $defs, and refer to them",
            )


def _check_wrapped(root: Schema) -> None:
    """What OpenAI's API has around a schema would be one that allows everything."""
    if not isinstance(root, dict) or (root.get("type") != "json_schema" and root.keys() & _SAYING):
        return
    if isinstance(root.get("schema"), dict) or isinstance(root.get("json_schema"), dict):
        raise GrammarError(
            "this is what a request has around a JSON schema, not the schema",
            'give only what stands under "schema"',
        )


def _check_text(root: Any) -> None:
    """Raises GrammarError if there is half a surrogate pair in a name or a string."""
    waiting = [root]
    for value in waiting:  # grows meanwhile
        if isinstance(value, dict):
            waiting.extend(value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str) and any(0xD800 <= ord(each) < 0xE000 for each in value):
            raise GrammarError(
                f"the text {value[:60]!a} in the JSON schema has half a surrogate pair",
                "write the character itself, or both escapes of the pair",
            )


def _integer(text: str) -> int:
    if len(text) > MAX_EXPONENT:
        raise GrammarError(f"a number in the JSON schema has more than {MAX_EXPONENT} digits", "round it")
    return int(text)


def _decimal(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or abs(value.adjusted()) > MAX_EXPONENT or len(text) > MAX_EXPONENT:
        raise GrammarError(
            f"a number in the JSON schema is beyond {MAX_EXPONENT} digits: {text[:40]}",
            "round it, or leave it out",
        )
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
