"""Schemas that hold at once, as a list of alternatives without `$ref`, allOf, anyOf and oneOf."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

from specx.backends.errors import GrammarError
from specx.engine.text.schema.derived import CASES, COMPLEMENT, is_excluding
from specx.engine.text.schema.document import Document, Place, Schema, canonical, entered, named
from specx.engine.text.schema.facets import excluded, values_of
from specx.engine.text.schema.keywords import ASSERTIONS, CONDITIONS

__all__ = ["Alternative", "Alternatives"]

MAX_ALTERNATIVES = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Alternative:
    """What one alternative demands.

    Attributes:
        places: schemas of which all assertions hold, in the order in which their properties are written.
        chosen: of each oneOf, its schema's place and which one of its schemas is meant.
        seen: the place of each schema that speaks of what is unevaluated, and those of the schemas that
            evaluate for it.
    """

    places: tuple[Place, ...] = ()
    chosen: tuple[tuple[Place, int], ...] = ()
    seen: tuple[tuple[Place, tuple[Place, ...]], ...] = ()

    def and_also(self, other: Alternative) -> Alternative:
        """What demands both."""
        return Alternative(
            _distinct(self.places, other.places),
            _distinct(self.chosen, other.chosen),
            _distinct(self.seen, other.seen),
        )

    def looking(self, place: Place) -> Alternative:
        """This one, for the schema at `place`, which speaks of what none of the schemas here evaluate."""
        evaluating = tuple(each for each in self.places if COMPLEMENT not in each)
        return replace(self, seen=(*self.seen, (place, evaluating)))


def _distinct(*groups: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(chain(*groups)))


class Alternatives:
    """Finds the alternatives of the schemas of one document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._known: dict[Place, list[Alternative]] = {}

    def of_all(self, places: Sequence[Place]) -> list[Alternative]:
        """The alternatives of schemas that hold at once.

        Raises:
            GrammarError: a schema uses what is not known, refers to itself and nothing else, or there are too
                many alternatives.
        """
        found = [Alternative()]
        for place in places:
            found = self._both(found, self._of(place, ()), place)
        return found

    def but_not(self, alternative: Alternative, rivals: Sequence[Place]) -> list[Alternative]:
        """The alternatives of what is in no other case of a oneOf, of those at `rivals`.

        Raises:
            GrammarError: what is not valid in one of these cases cannot be said.
        """
        found = [replace(alternative, chosen=())]
        for place in rivals:
            found = self._both(found, self._of(self._document.complement(place), ()), place[:-2])
        return found

    def parts(self, alternative: Alternative) -> list[tuple[Place, dict[str, Any]]]:
        """The schemas of an alternative, as they stand in the document, with their places."""
        schemas = ((place, self._document.schema(place)) for place in alternative.places)
        return [(place, schema) for place, schema in schemas if isinstance(schema, dict)]

    def _of(self, place: Place, active: tuple[Place, ...]) -> list[Alternative]:
        active = entered(active, place)
        if place not in self._known:
            self._known[place] = self._found(place, active)
        return self._known[place]

    def _found(self, place: Place, active: tuple[Place, ...]) -> list[Alternative]:
        schema = self._document.schema(place)
        if isinstance(schema, bool):
            return [Alternative()] if schema else []
        asserts = is_excluding(schema) or any(key in ASSERTIONS for key in schema)
        own = [Alternative((place,))] if asserts else [Alternative()]
        found, own_stands = [Alternative()], False
        for key, value in schema.items():
            if key == "properties":  # they are written in the order of the text
                found, own_stands = self._both(found, own, place), True
            elif key == "$ref":
                found = self._both(found, self._of(self._document.target(place), active), place)
            elif key in ("allOf", "anyOf", "oneOf"):
                branches = [self._of((*place, key, i), active) for i in range(len(value))]
                if key == "oneOf":
                    branches = [
                        [replace(each, chosen=(*each.chosen, (place, i))) for each in branch]
                        for i, branch in enumerate(branches)
                    ]
                if key != "allOf":
                    branches = [list(chain(*branches))]
                for branch in branches:
                    found = self._both(found, branch, place)
        found = found if own_stands else self._both(found, own, place)
        for target in self._derived(place, schema):
            found = self._both(found, self._of(target, active), place)
        if "unevaluatedProperties" in schema or "unevaluatedItems" in schema:
            found = [each.looking(place) for each in found]
        return found

    def _derived(self, place: Place, schema: dict[str, Any]) -> Iterator[Place]:
        """Where what a schema says with not and conditions is said in other words."""
        if "not" in schema and not is_excluding(schema):
            yield self._document.complement((*place, "not"))
        if any(key in schema for key in CONDITIONS):
            yield (*place, CASES)

    def _both(self, some: list[Alternative], others: list[Alternative], place: Place) -> list[Alternative]:
        if len(some) * len(others) > MAX_ALTERNATIVES:
            raise GrammarError(
                f"the JSON schema at {named(place)} comes to more than {MAX_ALTERNATIVES} alternatives",
                "combine fewer anyOf and oneOf",
            )
        found = list(dict.fromkeys(a.and_also(b) for a in some for b in others))
        if len(found) == 1:
            return found
        own = self._document.schema(place)
        return [each for each in found if not _contradicts([own, *(part for _, part in self.parts(each))])]


def _contradicts(schemas: Sequence[Schema]) -> bool:
    """Whether no value is left for some property of an object: what cases that hang on a tag mostly come to.

    Most combinations of such cases do, and there would be too many if they were kept.
    """
    parts = [each for each in schemas if isinstance(each, dict)]
    if not any(part.get("type") == "object" for part in parts):
        return False
    for name in {name for part in parts for name in part.get("required", ())}:
        said = [part["properties"][name] for part in parts if name in part.get("properties", {})]
        if False in said:
            return True
        about = [each for each in said if isinstance(each, dict)]
        lists = [set(map(canonical, values)) for each in about if (values := values_of([each])) is not None]
        if lists and not set.intersection(*lists).difference(map(canonical, excluded(about))):
            return True
    return False
