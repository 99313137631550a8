"""The fields of a JSON body, each of the type and within the bounds that it must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specx.engine.api.errors import RequestError

__all__ = ["Fields", "body_of"]

MAX_DEPTH = 100  # brackets within brackets
LARGEST = 10**300  # of a whole number: what a float can hold
SHOWN = 60  # characters of a value in a message


def body_of(value: object) -> Fields:
    """The fields of a body that is harmless: an object, not nested too deep, all of its text Unicode.

    Raises:
        RequestError: it is something else.
    """
    if not isinstance(value, dict):
        raise RequestError(f"the request body is {kind_of(value)}, not a JSON object")
    for name, field in value.items():
        _check_text(name, None)
        _check(field, name)
    return Fields(value)


class Fields:
    """An object of a request. A field that is null is one that is missing.

    Args:
        values: the object.
        where: its own name in the request, with a dot at its end; empty for the body.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values, self.where = values, where

    def get(self, name: str) -> Any:
        """The value of a field as it is."""
        return self.values.get(name)

    def param(self, name: str) -> str:
        """The whole name of a field."""
        return self.where + name

    def refuse(self, name: str, message: str, hint: str = "") -> RequestError:
        """The error of a field."""
        return RequestError(message, self.param(name), hint=hint)

    def wrong(self, name: str, wanted: str) -> RequestError:
        """The error of a field that is not `wanted`."""
        value = self.values.get(name)
        shown = "" if isinstance(value, dict | list | bool | None) else f" {_shown(value)}"
        return self.refuse(name, f"{self.param(name)} is {kind_of(value)}{shown}, where {wanted} belongs")

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`; None if it is missing."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number from `low` to `high`; None if it is missing."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(name, f"a number from {low:g} to {high:g}")  # NaN is nowhere
        return float(value)

    def flag(self, name: str) -> bool | None:
        """True or false; None if it is missing."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """A string; None if it is missing."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def items(self, name: str, most: int) -> list[Any] | None:
        """A list of at most `most`; None if it is missing."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        if len(value) > most:
            raise self.refuse(
                name, f"{self.param(name)} has {len(value)} entries, and at most {most} are taken"
            )
        return value

    def object(self, name: str) -> Fields | None:
        """An object; None if it is missing."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self.param(name)}.")

    def entry(self, name: str, index: int, value: Any) -> Fields:
        """The object `value` that stands at `index` in the list `name`."""
        where = f"{self.param(name)}[{index}]"
        if not isinstance(value, dict):
            raise RequestError(f"{where} is {kind_of(value)}, where an object belongs", where)
        return Fields(value, f"{where}.")

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """One of some strings; None if it is missing."""
        value = self.text(name)
        if value is not None and value not in allowed:
            raise self.wrong(name, f"one of {', '.join(allowed)}")
        return value


def kind_of(value: object) -> str:
    """What a value is in JSON."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    kinds = {str: "the string", list: "a list", dict: "an object", int: "the number", float: "the number"}
    return kinds.get(type(value), "no JSON")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _check(root: Any, param: str) -> None:
    """Raises RequestError if a value is nested too deep, no Unicode, or a number beyond all bounds."""
    level = [root]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value, param)
            elif isinstance(value, int) and abs(value) > LARGEST:
                raise RequestError(f"{param} has a number beyond all bounds", param)
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
        if not below:
            return
        level = below
    raise RequestError(f"{param} is nested more than {MAX_DEPTH} deep", param)


def _check_text(text: str, param: str | None) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        name = param or "a name of a field"
        raise RequestError(f"{name} has half a surrogate pair, which is no character", param) from None
