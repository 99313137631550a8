"""Whether a value is valid against a schema: of those that a schema lists, other keywords rule some out."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from specx.engine.text.schema.derived import CASES, is_excluding, says
from specx.engine.text.schema.document import Document, Place, canonical, entered
from specx.engine.text.schema.facets import counts, explicit_types, number_bounds, string_automaton
from specx.engine.text.schema.keywords import CONDITIONS
from specx.engine.text.schema.pattern_automaton import containing

__all__ = ["conjunction", "holds", "item_place", "property_places"]


def holds(document: Document, place: Place, value: Any, active: tuple[Place, ...] = ()) -> bool:
    """Whether `value`, with its numbers as int or Decimal, is valid against the schema at `place`.

    Raises:
        GrammarError: the schema uses what is not known, or refers to itself and nothing else.
    """
    schema = document.schema(place)
    if isinstance(schema, bool):
        return schema
    active = entered(active, place)
    if not all(holds(document, target, value, active) for target in conjunction(document, place, schema)):
        return False
    if "not" in schema and not is_excluding(schema) and holds(document, (*place, "not"), value, active):
        return False
    for key in ("anyOf", "oneOf"):
        if key in schema:
            right = sum(holds(document, (*place, key, i), value, active) for i in range(len(schema[key])))
            if right == 0 or (key == "oneOf" and right > 1):
                return False
    return _asserted(document, place, schema, value) and _rest_holds(document, place, schema, value)


def asserted(document: Document, place: Place, value: Any) -> bool:
    """Whether `value` is valid against what the schema at `place` asserts itself: not by a reference, or in
    the schemas of an allOf, anyOf or oneOf."""
    schema = document.schema(place)
    return schema if isinstance(schema, bool) else _asserted(document, place, schema, value)


def conjunction(document: Document, place: Place, schema: dict[str, Any]) -> list[Place]:
    """The schemas that hold beside the one at `place`: `$ref`, those of `allOf`, and its conditions."""
    found: list[Place] = [document.target(place)] if "$ref" in schema else []
    found += [(*place, "allOf", i) for i in range(len(schema.get("allOf", ())))]
    return [*found, (*place, CASES)] if any(key in schema for key in CONDITIONS) else found


def _rest_holds(document: Document, place: Place, schema: dict[str, Any], value: Any) -> bool:
    """Whether what no schema evaluates of a value is valid against what is said of that."""
    kind = "unevaluatedProperties" if isinstance(value, dict) else "unevaluatedItems"
    if kind not in schema or not isinstance(value, dict | list):
        return True
    keys: set[Any] = set(value) if isinstance(value, dict) else set(range(len(value)))
    left = keys - _evaluated(document, place, value, own=False)
    return all(holds(document, (*place, kind), value[key]) for key in left)


def _evaluated(document: Document, place: Place, value: Any, *, own: bool = True) -> set[Any]:
    """The names or indices of an object or array that the schema at `place` evaluates, which it is valid
    against; with what it says of unevaluated ones only if `own`."""
    schema = document.schema(place)
    if isinstance(schema, bool):
        return set()
    if isinstance(value, dict):
        found = {name for name in value if property_places(place, schema, name)}
        if own and "unevaluatedProperties" in schema:
            return set(value)
    else:
        found = {i for i in range(len(value)) if item_place(place, schema, i) is not None}
        if own and "unevaluatedItems" in schema:
            return set(range(len(value)))
    targets = conjunction(document, place, schema)
    for key in ("anyOf", "oneOf"):
        targets += [(*place, key, i) for i in range(len(schema.get(key, ())))]
    return found.union(
        *(_evaluated(document, each, value) for each in targets if holds(document, each, value))
    )


def _asserted(document: Document, place: Place, schema: dict[str, Any], value: Any) -> bool:
    if _type(value) not in explicit_types([schema]) or _is_excluded(document, place, schema, value):
        return False
    if any(canonical(value) not in document.listed(place, key) for key in ("const", "enum") if key in schema):
        return False
    if isinstance(value, str):
        return _string(schema, value)
    if isinstance(value, list):
        return _array(document, place, schema, value)
    if isinstance(value, dict):
        return _object(document, place, schema, value)
    is_number = isinstance(value, int | Decimal) and not isinstance(value, bool)
    return not is_number or number_bounds([schema]).hold(value)


def _is_excluded(document: Document, place: Place, schema: dict[str, Any], value: Any) -> bool:
    if not is_excluding(schema):
        return False
    inner = (*place, "not")
    (key,) = says(schema["not"])
    if key == "type":
        return _type(value) == "integer"
    if key == "pattern":
        return isinstance(value, str) and containing(schema["not"][key]).accepts(value)
    return canonical(value) in document.listed(inner, key)


def _string(schema: dict[str, Any], value: str) -> bool:
    least, most = counts([schema], "minLength", "maxLength")
    if len(value) < least or (most is not None and len(value) > most):
        return False
    allowed = string_automaton([schema], formats=False)  # they are remarks, and the automata are narrower
    return allowed is None or allowed.accepts(value)


def _type(value: Any) -> str:
    if isinstance(value, Decimal):
        return "integer" if value == value.to_integral_value() else "number"
    for kind, name in ((bool, "boolean"), (int, "integer"), (str, "string"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "object"


def _array(document: Document, place: Place, schema: dict[str, Any], value: list[Any]) -> bool:
    least, most = counts([schema], "minItems", "maxItems")
    if len(value) < least or (most is not None and len(value) > most):
        return False
    if schema.get("uniqueItems") and len(set(map(canonical, value))) < len(value):
        return False
    places = (item_place(place, schema, i) for i in range(len(value)))
    return all(each is None or holds(document, each, value[i]) for i, each in enumerate(places))


def item_place(place: Place, schema: dict[str, Any], index: int) -> Place | None:
    """Where it is said what the item at `index` of an array must be."""
    first = "items" if isinstance(schema.get("items"), list) else "prefixItems"  # drafts up to 7
    rest = "additionalItems" if first == "items" else "items"
    if index < len(schema.get(first, ())):
        return (*place, first, index)
    return (*place, rest) if rest in schema else None


def _object(document: Document, place: Place, schema: dict[str, Any], value: dict[str, Any]) -> bool:
    least, most = counts([schema], "minProperties", "maxProperties")
    if len(value) < least or (most is not None and len(value) > most):
        return False
    if not value.keys() >= set(schema.get("required", ())):
        return False
    names = "propertyNames" not in schema or all(
        holds(document, (*place, "propertyNames"), name) for name in value
    )
    return names and all(
        holds(document, each, value[name]) for name in value for each in property_places(place, schema, name)
    )


def property_places(place: Place, schema: dict[str, Any], name: str) -> list[Place]:
    """Where it is said what the value of the property `name` must be."""
    places: list[Place] = [(*place, "properties", name)] if name in schema.get("properties", ()) else []
    for pattern in schema.get("patternProperties", ()):
        if containing(pattern).accepts(name):
            places.append((*place, "patternProperties", pattern))
    if not places and "additionalProperties" in schema:
        places.append((*place, "additionalProperties"))
    return places
