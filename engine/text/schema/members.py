"""What schemas that hold at once say of the properties of an object and the items of an array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specx.backends.errors import GrammarError
from specx.engine.text.schema.document import Document, Place
from specx.engine.text.schema.facets import counts, excluded
from specx.engine.text.schema.validity import holds, item_place, property_places

__all__ = ["Extra", "Items", "Members", "Seen"]

MAX_PATTERNS = 4  # any set of them may match a name, and each set is a case of its own

Part = tuple[Place, dict[str, Any]]
Seen = Sequence[tuple[Place, tuple[Place, ...]]]


@dataclass(frozen=True, slots=True)
class Extra:
    """Names that are not listed.

    Attributes:
        matched: the patterns that they match.
        unmatched: those that they do not match.
        places: what their values must be.
    """

    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    places: tuple[Place, ...]


class Members:
    """The properties of an object.

    Names that are not listed are written only where the schema speaks of them: with additionalProperties or
    patternProperties, or where it lists none. Leaving them out is always valid.

    Args:
        document: what the parts are of.
        parts: the places of schemas and the schemas.
        seen: which of them evaluate for which other, as alternatives have it.
    """

    def __init__(self, document: Document, parts: Sequence[Part], seen: Seen = ()) -> None:
        self.parts = parts
        self._unevaluated = _unevaluated(document, seen, "unevaluatedProperties")
        self.name_places: tuple[Place, ...] = tuple(
            (*place, "propertyNames") for place, part in parts if "propertyNames" in part
        )
        schemas = [part for _, part in parts]
        self.least, self.most = counts(schemas, "minProperties", "maxProperties")
        self.least = max(self.least, _more_than_none(schemas, dict))
        self.required = frozenset(name for part in schemas for name in part.get("required", ()))
        listed = [name for part in schemas for name in part.get("properties", ())]
        listed += [name for part in schemas for name in part.get("required", ())]
        self.listed = [
            name
            for name in dict.fromkeys(listed)
            if all(holds(document, place, name) for place in self.name_places)
        ]
        self.is_possible = self.required <= set(self.listed)
        self.patterns = tuple(
            dict.fromkeys(pattern for part in schemas for pattern in part.get("patternProperties", ()))
        )
        speaks = any(
            "additionalProperties" in part or part.get("unevaluatedProperties", False) is not False
            for part in schemas
        )
        self.others = speaks or not (self.patterns or any("properties" in part for part in schemas))

    @property
    def is_closed(self) -> bool:
        """Whether no name is written but those that are listed."""
        return not (self.others or self.patterns)

    def value_places(self, name: str) -> tuple[Place, ...]:
        """What the value of a property must be."""
        found = [each for place, part in self.parts for each in property_places(place, part, name)]
        found += [
            place
            for place, others in self._unevaluated
            if not any(property_places((), part, name) for part in others)
        ]
        return tuple(dict.fromkeys(found))

    def extras(self) -> list[Extra]:
        """The kinds of names that are not listed.

        Raises:
            GrammarError: there are too many patterns.
        """
        if len(self.patterns) > MAX_PATTERNS:
            raise GrammarError(
                f"patternProperties of the JSON schema has {len(self.patterns)} patterns for one object; "
                f"a grammar can follow {MAX_PATTERNS}",
                "join patterns of the same schema with |",
            )
        found = []
        for chosen in range(0 if self.others else 1, 2 ** len(self.patterns)):
            matched = tuple(p for i, p in enumerate(self.patterns) if chosen >> i & 1)
            unmatched = tuple(p for p in self.patterns if p not in matched)
            places: list[Place] = []
            for place, part in self.parts:
                own = [p for p in part.get("patternProperties", ()) if p in matched]
                places += [(*place, "patternProperties", pattern) for pattern in own]
                if not own and "additionalProperties" in part:
                    places.append((*place, "additionalProperties"))
            for place, others in self._unevaluated:
                if not any(
                    "additionalProperties" in part or set(matched) & set(part.get("patternProperties", ()))
                    for part in others
                ):
                    places.append(place)
            found.append(Extra(matched, unmatched, tuple(dict.fromkeys(places))))
        return found


class Items:
    """The items of an array: `least` to `most`, the first `prefix` each of its own, and no two the same if
    they must `differ`.

    More items than prefixItems lists are written only where the schema speaks of them, or demands them.

    Args:
        document: what the parts are of.
        parts: the places of schemas and the schemas.
        seen: which of them evaluate for which other, as alternatives have it.

    Raises:
        GrammarError: a single array is ruled out, which a grammar cannot see to.
    """

    def __init__(self, document: Document, parts: Sequence[Part], seen: Seen = ()) -> None:
        self._parts = parts
        self._unevaluated = _unevaluated(document, seen, "unevaluatedItems")
        schemas = [part for _, part in parts]
        self.least, self.most = counts(schemas, "minItems", "maxItems")
        self.least = max(self.least, _more_than_none(schemas, list))
        lists = (part.get("prefixItems", part.get("items", ())) for part in schemas)
        self.prefix = max((len(each) for each in lists if isinstance(each, list)), default=0)
        speaks = any(
            "additionalItems" in part
            or not isinstance(part.get("items", []), list)
            or part.get("unevaluatedItems", False) is not False
            for part in schemas
        )
        if self.prefix and not speaks:
            last = max(self.prefix, self.least)
            self.most = last if self.most is None else min(self.most, last)
        self.differ = any(part.get("uniqueItems") for part in schemas) and self.most not in (0, 1)

    def places(self, index: int) -> tuple[Place, ...]:
        """What the item at `index` must be."""
        found = [item_place(place, part, index) for place, part in self._parts]
        found += [
            place
            for place, others in self._unevaluated
            if not any(item_place((), part, index) for part in others)
        ]
        return tuple(dict.fromkeys(each for each in found if each is not None))


def _more_than_none(schemas: Sequence[dict[str, Any]], kind: type) -> int:
    """1 if an empty value of a kind is ruled out, else 0.

    Raises:
        GrammarError: another one is, which a grammar cannot see to.
    """
    ruled_out = [each for each in excluded(schemas) if isinstance(each, kind)]
    if any(ruled_out):
        raise GrammarError(
            "the JSON schema rules out single arrays or objects (not, oneOf), which no grammar can follow",
            "say what is allowed instead",
        )
    return len(ruled_out[:1])


def _unevaluated(document: Document, seen: Seen, key: str) -> list[tuple[Place, list[dict[str, Any]]]]:
    """Where it is said under `key` what holds for what no other schema evaluates, each with these others."""
    found = []
    for place, evaluating in seen:
        schema = document.schema(place)
        if isinstance(schema, dict) and key in schema:
            others = [other for each in evaluating if isinstance(other := document.schema(each), dict)]
            if not any(key in other for other in others if other is not schema):  # it would evaluate all
                found.append(((*place, key), others))
    return found
