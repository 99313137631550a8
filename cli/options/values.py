"""What is typed becomes a value.

Typer asks Pydantic for that, which takes longer to import than all else that a start needs. Defaults, texts
and plain numbers need no such help. The rest is left to it, complaints included. Lengths of time and
sizes are texts until a command reads them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specx.backends.errors import UsageError

__all__ = ["byte_count", "duration", "one_at_most", "quickened"]

INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}  # seconds
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


def quickened(parameters: list[Any]) -> list[Any]:
    """The same parameters of a command; each takes what needs no conversion, or an easy one, by itself."""
    for parameter in parameters:
        if "process_value" not in vars(parameter):
            _quicken(parameter)
    return parameters


def _quicken(parameter: Any) -> None:
    thorough = _telling(parameter.process_value)
    bounded = getattr(parameter, "min", None) is not None or getattr(parameter, "max", None) is not None
    convert = None if bounded else CONVERSIONS.get(parameter.type_descriptor.annotation)

    def process(context: Any, value: Any) -> Any:
        if value is None and (parameter.multiple or parameter.nargs == -1):
            value = ()
        elif value is not None and value is not parameter.default:
            if convert is None:
                return thorough(context, value)
            try:
                value = convert(value)
            except ValueError:
                return thorough(context, value)
        if parameter.required and parameter.value_is_missing(value):
            return thorough(context, value)
        return value if parameter.callback is None else parameter.callback(context, parameter, value)

    parameter.process_value = process


def _telling(process: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The same, whose complaints know what was `given`."""

    def told(context: Any, value: Any) -> Any:
        try:
            return process(context, value)
        except Exception as problem:
            problem.given = value  # type: ignore[attr-defined]
            raise

    return told


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError


def _integer(value: Any) -> int:
    if INTEGER.fullmatch(_text(value)):
        return int(value)
    raise ValueError


def _number(value: Any) -> float:
    if NUMBER.fullmatch(_text(value)):
        return float(value)
    raise ValueError


def _path(value: Any) -> Path:
    """A file that can be read, or a name that is free."""
    if os.access(_text(value), os.R_OK) or not os.path.lexists(value):
        return Path(value)
    raise ValueError


def _list_of(convert: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def convert_all(values: Any) -> list[Any]:
        if not isinstance(values, list | tuple):
            raise ValueError
        return [convert(value) for value in values]

    return convert_all


CONVERSIONS: dict[Any, Callable[[Any], Any]] = {
    bool: _flag,
    str: _text,
    int: _integer,
    float: _number,
    Path: _path,
    list[str]: _list_of(_text),
    list[Path]: _list_of(_path),
}


def one_at_most(given: Mapping[str, object]) -> None:
    """Refuse options of which one would be ignored.

    Args:
        given: their values by their names; what is true was given.

    Raises:
        UsageError: more than one was given.
    """
    names = [name for name, value in given.items() if value]
    if len(names) > 1:
        raise UsageError(f"{names[0]} and {names[1]} are both given", "give one of them")


def duration(name: str, text: str, *, least: float = 0.0) -> float:
    """Seconds of a length of time as people write it: 90s, 10m, 1h.

    Raises:
        UsageError: it is none, or shorter than `least`.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip().lower())
    seconds = math.inf if match is None else float(match[1]) * UNITS[match[2]]
    if not math.isfinite(seconds):
        raise UsageError(f"{name} is {text!r}", "give a time such as 90s, 10m or 1h")
    if seconds < least:
        raise UsageError(f"{name} is {text!r}", f"give at least {least:g}s")
    return seconds


def byte_count(name: str, text: str) -> int:
    """Bytes of a size as people write it: 500M, 4G, 4GiB.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?", text.strip().lower())
    size = math.inf if match is None else float(match[1]) * 1024 ** (" kmgt".index(match[2] or " "))
    if not math.isfinite(size):
        raise UsageError(f"{name} is {text!r}", "give a size such as 500M or 4G")
    return int(size)
