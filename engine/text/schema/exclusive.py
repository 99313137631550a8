"""Whether schemas contradict each other: of the cases of a oneOf, those that do not have to be kept apart."""

from __future__ import annotations

from collections.abc import Iterable

from specx.engine.text.schema.alternatives import Alternative, Alternatives
from specx.engine.text.schema.document import Document, Place
from specx.engine.text.schema.facets import (
    allowed_types,
    counts,
    explicit_types,
    number_bounds,
    string_automaton,
    values_of,
)
from specx.engine.text.schema.members import Items, Members
from specx.engine.text.schema.number import between
from specx.engine.text.schema.validity import asserted

__all__ = ["Exclusion"]

MAX_DEPTH = 3  # how far into objects and arrays a contradiction is looked for


class Exclusion:
    """Looks for contradictions between schemas of one document."""

    def __init__(self, document: Document, alternatives: Alternatives) -> None:
        self._document = document
        self._alternatives = alternatives

    def rivals(self, mine: Alternative) -> list[Place]:
        """The other cases of a oneOf in which what is written for `mine` may be valid, too."""
        found: list[Place] = []
        for place, number in mine.chosen:
            schema = self._document.schema(place)
            count = len(schema["oneOf"]) if isinstance(schema, dict) else 0
            for other in ((*place, "oneOf", i) for i in range(count) if i != number):
                cases = self._alternatives.of_all([other])
                if not all(self._excludes(mine, theirs) for theirs in cases):
                    found.append(other)
        return found

    def _excludes(self, mine: Alternative, theirs: Alternative) -> bool:
        """Whether nothing that is written for `mine` is valid against `theirs`."""
        own, other = self._alternatives.parts(mine), self._alternatives.parts(theirs)
        types = allowed_types([schema for _, schema in own])
        if types == ["object"]:
            members = Members(self._document, own)
            needed = {name for _, schema in other for name in schema.get("required", ())}
            if members.is_closed and not needed <= set(members.listed):
                return True
        return self._is_impossible(mine.and_also(theirs), types, 0)

    def _is_impossible(self, alternative: Alternative, types: Iterable[str], depth: int) -> bool:
        """Whether no value of one of `types` is valid; False also if that is not clear."""
        parts = self._alternatives.parts(alternative)
        schemas = [schema for _, schema in parts]
        values = values_of(schemas)
        if values is not None:
            places = alternative.places
            return not any(all(asserted(self._document, p, value) for p in places) for value in values)
        named_types = explicit_types(schemas)
        both = {each for each in types if each in named_types}
        if "number" in types and "integer" in named_types:
            both.add("integer")
        return all(self._has_none(parts, kind, depth) for kind in both)

    def _has_none(self, parts: list[tuple[Place, dict[str, object]]], kind: str, depth: int) -> bool:
        schemas = [schema for _, schema in parts]
        if kind == "string":
            least, most = counts(schemas, "minLength", "maxLength")
            allowed = string_automaton(schemas, formats=False)
            return (most is not None and most < least) or (allowed is not None and allowed.is_empty)
        if kind in ("number", "integer"):
            return between(number_bounds(schemas), whole=kind == "integer").is_empty
        if kind == "array":
            items = Items(self._document, parts)
            return (items.most is not None and items.most < items.least) or any(
                self._contradict(items.places(i), depth) for i in range(min(items.least, 8))
            )
        if kind == "object":
            members = Members(self._document, parts)
            return not members.is_possible or any(
                self._contradict(members.value_places(name), depth) for name in sorted(members.required)
            )
        return False

    def _contradict(self, places: tuple[Place, ...], depth: int) -> bool:
        if depth >= MAX_DEPTH:
            return False
        return all(
            self._is_impossible(each, explicit_types([]), depth + 1)
            for each in self._alternatives.of_all(places)
        )
