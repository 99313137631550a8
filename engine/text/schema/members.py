"""What schemas that hold at once say of the properties of an object and the items of an array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specx.backends.errors import GrammarError
from specx.engine.text.schema.document import Document, Place
from specx.engine.text.schema.facets import counts
from specx.engine.text.schema.validity import holds, item_place, property_places

__all__ = ["Extra", "Items", "Members"]

MAX_PATTERNS = 4  # any set of them may match a name, and each set is a case of its own

Part = tuple[Place, dict[str, Any]]


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
    """

    def __init__(self, document: Document, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.name_places: tuple[Place, ...] = tuple(
            (*place, "propertyNames") for place, part in parts if "propertyNames" in part
        )
        schemas = [part for _, part in parts]
        self.least, self.most = counts(schemas, "minProperties", "maxProperties")
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
        speaks = any("additionalProperties" in part for part in schemas)
        self.others = speaks or not (self.patterns or any("properties" in part for part in schemas))

    @property
    def is_closed(self) -> bool:
        """Whether no name is written but those that are listed."""
        return not (self.others or self.patterns)

    def value_places(self, name: str) -> tuple[Place, ...]:
        """What the value of a property must be."""
        found = [each for place, part in self.parts for each in property_places(place, part, name)]
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
            found.append(Extra(matched, unmatched, tuple(dict.fromkeys(places))))
        return found


class Items:
    """The items of an array.

    More items than prefixItems lists are written only where the schema speaks of them, or demands them.

    Args:
        parts: the places of schemas and the schemas.

    Raises:
        GrammarError: all items must differ, which a grammar cannot see to.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        schemas = [part for _, part in parts]
        self.least, self.most = counts(schemas, "minItems", "maxItems")
        lists = (part.get("prefixItems", part.get("items", ())) for part in schemas)
        self.prefix = max((len(each) for each in lists if isinstance(each, list)), default=0)
        speaks = any(
            "additionalItems" in part or not isinstance(part.get("items", []), list) for part in schemas
        )
        if self.prefix and not speaks:
            last = max(self.prefix, self.least)
            self.most = last if self.most is None else min(self.most, last)
        differ = any(part.get("uniqueItems") for part in schemas)
        if differ and (self.most is None or self.most > 1):
            raise GrammarError(
                "the JSON schema uses uniqueItems, which no grammar can follow",
                "leave it out, and check the text afterwards",
            )

    def places(self, index: int) -> tuple[Place, ...]:
        """What the item at `index` must be."""
        found = (item_place(place, part, index) for place, part in self._parts)
        return tuple(dict.fromkeys(each for each in found if each is not None))
