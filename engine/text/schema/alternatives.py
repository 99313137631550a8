"""Schemas that hold at once, as a list of alternatives without `$ref`, allOf, anyOf and oneOf."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from specx.backends.errors import GrammarError
from specx.engine.text.schema.document import Document, Place, entered, named
from specx.engine.text.schema.keywords import ASSERTIONS

__all__ = ["Alternative", "Alternatives"]

MAX_ALTERNATIVES = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Alternative:
    """What one alternative demands.

    Attributes:
        places: schemas of which all assertions hold, in the order in which their properties are written.
        chosen: of each oneOf, its schema's place and which one of its schemas is meant.
    """

    places: tuple[Place, ...] = ()
    chosen: tuple[tuple[Place, int], ...] = ()

    def and_also(self, other: Alternative) -> Alternative:
        """What demands both."""
        return Alternative(_distinct(self.places, other.places), _distinct(self.chosen, other.chosen))


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
        own = [Alternative((place,))] if any(key in ASSERTIONS for key in schema) else [Alternative()]
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
                        [Alternative(each.places, (*each.chosen, (place, i))) for each in branch]
                        for i, branch in enumerate(branches)
                    ]
                if key != "allOf":
                    branches = [list(chain(*branches))]
                for branch in branches:
                    found = self._both(found, branch, place)
        return found if own_stands else self._both(found, own, place)

    def _both(self, some: list[Alternative], others: list[Alternative], place: Place) -> list[Alternative]:
        if len(some) * len(others) > MAX_ALTERNATIVES:
            raise GrammarError(
                f"the JSON schema at {named(place)} comes to more than {MAX_ALTERNATIVES} alternatives",
                "combine fewer anyOf and oneOf",
            )
        return list(dict.fromkeys(a.and_also(b) for a in some for b in others))
