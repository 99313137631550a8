"""From a JSON schema to GBNF rules: every text that they allow is JSON, and valid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specx.backends.errors import GrammarError
from specx.engine.text.schema.alternatives import Alternative, Alternatives
from specx.engine.text.schema.automaton import Automaton, of_lengths, of_words
from specx.engine.text.schema.containers import Containers
from specx.engine.text.schema.distinct import distinct
from specx.engine.text.schema.document import Document, Place, canonical
from specx.engine.text.schema.exclusive import Exclusion
from specx.engine.text.schema.facets import (
    allowed_types,
    counts,
    excluded,
    explicit_types,
    number_bounds,
    string_automaton,
    values_of,
)
from specx.engine.text.schema.members import Extra, Items, Members, Seen
from specx.engine.text.schema.number import FRACTION_DIGITS, WHOLE_DIGITS, Bounds, between
from specx.engine.text.schema.pattern_automaton import containing
from specx.engine.text.schema.rules import Ref, Rules, Symbol, literal
from specx.engine.text.schema.strings import Strings, quoted
from specx.engine.text.schema.validity import holds

__all__ = ["gbnf"]

Parts = Sequence[tuple[Place, dict[str, Any]]]


def gbnf(document: Document, prefix: str = "") -> str:
    """The GBNF grammar of the JSON texts that a schema allows. The schema `{}` stands for any object.

    All names of rules begin with `prefix`.

    Raises:
        GrammarError: the schema uses what a grammar cannot follow, or allows nothing.
    """
    converter = _Converter(document)
    root = converter.anything("object") if document.root == {} else converter.schema(((),))
    text = converter.finished(root, prefix)
    if not text:
        raise GrammarError(
            "the JSON schema allows no value at all",
            "look for types, bounds or lists that contradict, and additionalProperties: false within allOf: "
            "it forbids what the other schemas name, where unevaluatedProperties beside allOf does not",
        )
    return text


class _Converter:
    """Makes the rules of one document; schemas wait in line, so that none is too deep."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._alternatives = Alternatives(document)
        self._exclusion = Exclusion(document, self._alternatives)
        self._rules = Rules()
        self._strings = Strings(self._rules)
        self._known: dict[tuple[Place, ...], Ref] = {}
        self._waiting: list[tuple[Ref, tuple[Place, ...]]] = []
        self._containers = Containers(self._rules, self.schema)
        self._number = self._rules.rule("number")
        self._integer = self._rules.rule("integer")
        self._digits()

    def finished(self, root: Ref, prefix: str) -> str:
        """The grammar, once all schemas in line have their rules; empty if it allows nothing."""
        while self._waiting:
            rule, places = self._waiting.pop()
            for alternative in self._alternatives.of_all(places):
                self._alternative(rule, alternative, places)
        return self._rules.text(root, prefix)

    def schema(self, places: tuple[Place, ...]) -> Ref:
        """The rule of the values that are valid against all schemas at `places`."""
        if places not in self._known:
            rule = self._rules.rule("value")
            self._known[places] = rule
            self._waiting.append((rule, places))
        return self._known[places]

    def anything(self, kind: str) -> Ref:
        """The rule of all values of a type."""
        return self._of_type(kind, [])

    def _alternative(self, rule: Ref, alternative: Alternative, places: tuple[Place, ...]) -> None:
        parts = self._alternatives.parts(alternative)
        schemas = [schema for _, schema in parts]
        values = values_of(schemas)
        if values is not None:
            for value in values:
                if all(holds(self._document, place, value) for place in places):
                    self._rules.add(rule, *self._value(value))
            return
        rivals = self._exclusion.rivals(alternative)
        if rivals:
            for each in self._alternatives.but_not(alternative, rivals):
                self._alternative(rule, each, places)
            return
        for kind in allowed_types(schemas):
            self._rules.add(rule, self._of_type(kind, parts, alternative.seen))

    def _of_type(self, kind: str, parts: Parts, seen: Seen = ()) -> Ref:
        schemas = [schema for _, schema in parts]
        if kind == "string":
            return self._string(schemas)
        if kind == "array":
            return self._array(Items(self._document, parts, seen))
        if kind == "object":
            return self._object(Members(self._document, parts, seen))
        if kind in ("integer", "number"):
            return self._numbers(number_bounds(schemas).needed(), whole=kind == "integer")
        values = [None] if kind == "null" else [True, False]
        left = [each for each in values if not any(each is other for other in excluded(schemas))]
        return self._rules.rule(kind, [self._value(each) for each in left])

    def _numbers(self, bounds: Bounds, *, whole: bool) -> Ref:
        if bounds == Bounds():
            return self._integer if whole else self._number
        return self._strings.numbers(between(bounds, whole=whole))

    def _digits(self) -> None:
        """The rules of numbers without bounds."""
        rules, minus = self._rules, '"-"?'
        positive = f"[1-9] [0-9]{{0,{WHOLE_DIGITS - 1}}}"
        rules.add(self._integer, literal("0"))
        rules.add(self._integer, minus, positive)
        whole = rules.rule("whole", [(literal("0"),), (positive,)])
        fraction = rules.rule("fraction", [(), (literal("."), f"[0-9]{{1,{FRACTION_DIGITS}}}")])
        exponent = rules.rule("exponent", [(), ("[eE]", "[-+]?", "[0-9]{1,2}")])
        rules.add(self._number, minus, whole, fraction, exponent)

    def _string(self, schemas: Sequence[dict[str, Any]]) -> Ref:
        allowed = string_automaton(schemas)
        if allowed is not None:
            return self._strings.of_automaton(allowed)
        return self._strings.of_lengths(*counts(schemas, "minLength", "maxLength"))

    def _value(self, value: Any) -> list[Symbol]:
        """Just this value, with white space where it may stand."""
        if isinstance(value, str):
            return [literal(quoted(value))]
        if isinstance(value, list):
            return self._containers.enclosed("[", [self._value(each) for each in value], "]")
        if isinstance(value, dict):
            pairs = [
                self._containers.pair(literal(quoted(name)), *self._value(each))
                for name, each in value.items()
            ]
            return self._containers.enclosed("{", pairs, "}")
        if isinstance(value, bool) or value is None:
            return [literal({True: "true", False: "false", None: "null"}[value])]
        return [literal(str(value))]

    def _array(self, items: Items) -> Ref:
        if not items.differ:
            return self._containers.array(items)
        values = None if items.prefix else self._listed(items.places(0))
        if values is None:
            raise GrammarError(
                "the JSON schema uses uniqueItems for items that are not listed, which no grammar can follow",
                "list them with enum, or leave it out and check the text afterwards",
            )
        said = [self._value(each) for each in values]
        return distinct(self._rules, self._containers, said, items.least, items.most)

    def _listed(self, places: tuple[Place, ...]) -> list[Any] | None:
        """The values that are valid against all schemas at `places`; None if they are not listed."""
        found: list[Any] = []
        for alternative in self._alternatives.of_all(places):
            schemas = [schema for _, schema in self._alternatives.parts(alternative)]
            values = values_of(schemas)
            if values is None:
                types = allowed_types(schemas)
                if not {"boolean", "null"}.issuperset(types):
                    return None
                values = [True, False] * ("boolean" in types) + [None] * ("null" in types)
            found += [each for each in values if all(holds(self._document, place, each) for place in places)]
        return list({canonical(each): each for each in reversed(found)}.values())[::-1]

    def _object(self, members: Members) -> Ref:
        if members.is_closed or not members.is_possible:
            return self._containers.object(members, None)
        if members.least > len(members.listed) + 1:
            raise GrammarError(
                f"minProperties in the JSON schema asks for {members.least} properties, of which "
                f"{len(members.listed)} are listed; a grammar cannot see to it that others differ",
                "list the properties, or leave minProperties out",
            )
        extra = self._rules.rule("other")
        for each in members.extras():
            names = self._names(members, each)
            key = self._strings.of_lengths(0, None) if names is None else self._strings.of_automaton(names)
            self._rules.add(extra, *self._containers.pair(key, self.schema(each.places)))
        return self._containers.object(members, extra)

    def _names(self, members: Members, extra: Extra) -> Automaton | None:
        """The names that are meant by `extra`; None if all are."""
        if not (members.listed or members.name_places or extra.matched or extra.unmatched):
            return None
        names = self._names_allowed(members.name_places)
        for pattern in extra.matched:
            names = names.both(containing(pattern))
        for pattern in extra.unmatched:
            names = names.without(containing(pattern))
        return names.without(of_words(members.listed)) if members.listed else names

    def _names_allowed(self, places: tuple[Place, ...]) -> Automaton:
        """The names that all the propertyNames at `places` allow."""
        alternatives = self._alternatives.of_all(places)
        schemas = [[schema for _, schema in self._alternatives.parts(each)] for each in alternatives]
        if not schemas or "string" not in explicit_types(schemas[0]):
            return of_words(())
        if len(schemas) != 1:
            raise GrammarError(
                "propertyNames in the JSON schema has several cases, which no grammar here can follow",
                "use one pattern, with | between its cases",
            )
        values = values_of(schemas[0])
        if values is not None:
            fitting = [v for v in values if all(holds(self._document, place, v) for place in places)]
            return of_words(each for each in fitting if isinstance(each, str))
        allowed = string_automaton(schemas[0])
        least, most = counts(schemas[0], "minLength", "maxLength")
        return of_lengths(least, most) if allowed is None else allowed
