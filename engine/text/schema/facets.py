"""What several schemas that hold at once say of one type, put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from specx.engine.text.schema.automaton import Automaton, everything, of_lengths, of_words
from specx.engine.text.schema.derived import is_excluding
from specx.engine.text.schema.formats import of_format
from specx.engine.text.schema.keywords import ASSERTIONS, TYPES
from specx.engine.text.schema.number import Bounds
from specx.engine.text.schema.pattern_automaton import containing

__all__ = [
    "allowed_types",
    "counts",
    "excluded",
    "explicit_types",
    "number_bounds",
    "string_automaton",
    "values_of",
]

FORMAT_STATES = 5000  # of a format with a greatest length

Parts = Sequence[dict[str, Any]]


def explicit_types(parts: Parts) -> set[str]:
    """The types that `parts` allow by name; "integer" is there wherever "number" is."""
    types = set(TYPES)
    for part in parts:
        if "type" in part:
            named = part["type"] if isinstance(part["type"], list) else [part["type"]]
            types &= {*named, "integer"} if "number" in named else set(named)
    return types


def allowed_types(parts: Parts) -> list[str]:
    """The types to write: those named or, where none is, those that the keywords are about; else all.

    So `{"properties": ...}` means objects, as people mean it; of the values that such a schema allows, only
    those are written.
    """
    types = explicit_types(parts)
    if not any("type" in part for part in parts):
        about = {ASSERTIONS.get(key) for part in parts for key in part} - {None, ""}
        types = types & about if about else types
    if "number" in types:
        types.discard("integer")
    return [each for each in TYPES if each in types]


def values_of(parts: Parts) -> list[Any] | None:
    """The values that come into question, if one of `parts` lists them."""
    for part in parts:
        if "const" in part:
            return [part["const"]]
    return next((part["enum"] for part in parts if "enum" in part), None)


def excluded(parts: Parts) -> list[Any]:
    """The values that `parts` rule out one by one."""
    found: list[Any] = []
    for part in parts:
        if is_excluding(part):
            found += part["not"].get("enum", ())
            found += [part["not"]["const"]] if "const" in part["not"] else []
    return found


def counts(parts: Parts, least_key: str, most_key: str) -> tuple[int, int | None]:
    """The greatest of the lower and the smallest of the upper limits."""
    least = max((int(part[least_key]) for part in parts if least_key in part), default=0)
    most = min((int(part[most_key]) for part in parts if most_key in part), default=None)
    return least, most


def string_automaton(parts: Parts, *, formats: bool = True) -> Automaton | None:
    """The strings that `parts` allow, if there is more to say of them than their lengths.

    Args:
        parts: schemas.
        formats: whether formats count; to a validator they may be mere remarks.

    Raises:
        GrammarError: a pattern cannot be used.
    """
    allowed = None
    for each in _automata(parts, formats=formats):
        allowed = each if allowed is None else allowed.both(each)
    least, most = counts(parts, "minLength", "maxLength")
    if allowed is None or (least == 0 and most is None):
        return allowed
    if most is not None and most < least:
        return everything().without(everything())
    if most is not None and formats and any("format" in part for part in parts):
        most = max(least, min(most, FORMAT_STATES // len(allowed.edges)))  # shorter ones will do
    return allowed.both(of_lengths(least, most))


def _automata(parts: Parts, *, formats: bool) -> Iterator[Automaton]:
    for part in parts:
        if "pattern" in part:
            yield containing(part["pattern"])
        known = of_format(part["format"]) if formats and "format" in part else None
        if known is not None:
            yield known
        if is_excluding(part) and "pattern" in part["not"]:
            yield everything().without(containing(part["not"]["pattern"]))
    words = [each for each in excluded(parts) if isinstance(each, str)]
    if words:
        yield everything().without(of_words(words))


def number_bounds(parts: Parts) -> Bounds:
    """The numbers that `parts` allow."""
    numbers = (each for each in excluded(parts) if isinstance(each, int | Decimal))
    bounds = Bounds(
        excluded=frozenset(Decimal(each) for each in numbers if not isinstance(each, bool)),
        fractional=any(is_excluding(part) and "type" in part["not"] for part in parts),
    )
    for part in parts:
        bounds = bounds.both(_bounds(part))
    return bounds


def _bounds(part: dict[str, Any]) -> Bounds:
    low, high = part.get("exclusiveMinimum"), part.get("exclusiveMaximum")
    multiple = part.get("multipleOf")
    bounds = Bounds(
        _decimal(part.get("minimum")),
        low is True,  # draft 4: the minimum itself is excluded
        _decimal(part.get("maximum")),
        high is True,
        None if multiple is None else Fraction(multiple),
    )
    exclusive = Bounds(
        None if isinstance(low, bool) else _decimal(low),
        True,
        None if isinstance(high, bool) else _decimal(high),
        True,
    )
    return bounds.both(exclusive)


def _decimal(value: int | Decimal | None) -> Decimal | None:
    return None if value is None else Decimal(value)
