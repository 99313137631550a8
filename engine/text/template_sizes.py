"""How large a result of Jinja's filters and of the methods of built-in types can be, before it is made.

Sizes are upper bounds in bytes of work, as `template_bounds` counts it. FORBIDDEN is what nobody may do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = [
    "CALL_SIZES",
    "EACH_FILTERS",
    "FILTER_SIZES",
    "METHODS",
    "SHALLOW_FILTERS",
    "SHALLOW_TESTS",
    "SLOW_FILTERS",
    "printf_size",
    "replaced_size",
]

FORBIDDEN = 1 << 62
PIECE = 64  # a short string in a list
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
MAX_PRECISION = 300
SMALL = 1 << 16


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NUMBER = frozenset({"real", "imag", "numerator", "denominator", "is_integer", "bit_length"})
METHODS: Mapping[type, frozenset[str]] = {
    str: _names(
        "capitalize casefold center count endswith expandtabs find format format_map index isalnum isalpha "
        "isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join "
        "ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit "
        "rstrip split splitlines startswith strip swapcase title upper zfill"
    ),
    dict: frozenset({"items", "keys", "values", "get", "copy"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    range: frozenset({"count", "index", "start", "stop", "step"}),
    bytes: frozenset(),
    int: _NUMBER,
    float: _NUMBER,
    complex: _NUMBER,
    type: frozenset(),
}
"""What a template may use of values of the built-in types: that whose cost is known."""

SHALLOW_FILTERS = _names(
    "attr batch count d default first items last length list map reject rejectattr reverse select selectattr "
    "slice"
)
"""Filters that do not look into the elements."""

EACH_FILTERS = frozenset({"map", "reject", "rejectattr", "select", "selectattr"})
"""Those of them that take about a microsecond for each element."""

SHALLOW_TESTS = _names(
    "boolean callable defined divisibleby escaped even false filter float integer iterable lower mapping "
    "none number odd sameas sequence string test true undefined upper"
)

SLOW_FILTERS = _names(
    "dictsort groupby max min pprint sort striptags sum title unique urlencode urlize wordcount wordwrap "
    "xmlattr tojson"
)
"""Filters that take tens of nanoseconds for each byte."""

Arguments = tuple[Any, ...]
Named = Mapping[str, Any]


def _argument(args: Arguments, named: Named, index: int, name: str, default: Any) -> Any:
    return args[index] if index < len(args) else named.get(name, default)


def _width(args: Arguments, named: Named, index: int, name: str, default: int) -> int:
    value = _argument(args, named, index, name, default)
    return len(value) if isinstance(value, str) else max(value, 0) if isinstance(value, int) else 0


def replaced_size(text: str, old: Any, new: Any) -> int:
    """Bytes of `text` with every `old` replaced by `new`."""
    if not isinstance(old, str) or not isinstance(new, str):
        return SMALL
    return 4 * (len(text) + text.count(old) * len(new))


def printf_size(pattern: str, values: int) -> int:
    """Bytes of `pattern % values`, of which all together take at most `values`."""
    widths = [int(digits[:18]) for digits in re.findall(r"\d+", pattern)]
    places = pattern.count("%")
    # A width can be among the values.
    return FORBIDDEN if "*" in pattern and places else 4 * len(pattern) + places * (sum(widths) + 10 * values)


def _padded(text: str, args: Arguments, named: Named) -> int:
    return 4 * max(len(text), _width(args, named, 0, "width", 80))


def _split(text: str, args: Arguments, named: Named) -> int:
    separator = _argument(args, named, 0, "sep", None)
    pieces = text.count(separator) if isinstance(separator, str) and separator else len(text) // 2
    return 5 * len(text) + PIECE * (pieces + 1)


def _joined(text: str, args: Arguments, named: Named) -> int:
    parts = args[0] if args else ()
    if not isinstance(parts, Sequence | Mapping):
        return 0
    return 4 * (len(text) * len(parts) + sum(len(part) for part in parts if isinstance(part, str)))


CALL_SIZES: Mapping[str, Callable[[str, Arguments, Named], int]] = {
    "center": _padded,
    "ljust": _padded,
    "rjust": _padded,
    "zfill": _padded,
    "replace": lambda text, args, _named: replaced_size(text, *args[:2]) if len(args) > 1 else 0,
    "join": _joined,
    "expandtabs": lambda text, args, named: (
        4 * (len(text) + text.count("\t") * _width(args, named, 0, "tabsize", 8))
    ),
    "split": _split,
    "rsplit": _split,
    "splitlines": lambda text, _args, _named: 5 * len(text) + PIECE * (1 + sum(map(text.count, LINE_ENDS))),
}
"""Methods of strings whose result can be much larger than the string."""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1


def _indented(value: Any, args: Arguments, named: Named, weight: int) -> int:
    lines = 1 + sum(map(_text(value).count, LINE_ENDS))
    return 4 * (weight + lines * _width(args, named, 0, "width", 4))


def _wrapped(value: Any, args: Arguments, named: Named, weight: int) -> int:
    return 4 * (weight + 1) * (1 + _width(args, named, 2, "wrapstring", 1))


def _dumped(_value: Any, args: Arguments, named: Named, weight: int) -> int:
    indent = _width(args, named, 1, "indent", 0)
    separators = _argument(args, named, 2, "separators", None) or ()
    between = sum(len(part) for part in separators if isinstance(part, str))
    values = weight // PIECE + 1
    return 12 * weight + values * (between + indent * min(values, 1000))


def _summed(value: Any, _args: Arguments, named: Named, weight: int) -> int:
    start = _argument(_args, named, 1, "start", 0)
    return weight if isinstance(start, int | float) else weight * (1 + _length(value))


def _rounded(_value: Any, args: Arguments, named: Named, _weight: int) -> int:
    precision = _argument(args, named, 0, "precision", 0)
    return FORBIDDEN if isinstance(precision, int) and abs(precision) > MAX_PRECISION else 0


def _formatted(value: Any, args: Arguments, _named: Named, weight: int) -> int:
    return printf_size(_text(value), weight)


FILTER_SIZES: Mapping[str, Callable[[Any, Arguments, Named, int], int]] = {
    "batch": lambda value, args, named, _w: 8 * (_length(value) + _width(args, named, 0, "linecount", 0)),
    "center": lambda value, args, named, _w: _padded(_text(value), args, named),
    "format": _formatted,
    "indent": _indented,
    "join": lambda value, args, named, weight: (
        10 * weight + 4 * _length(value) * len(_text(_argument(args, named, 0, "d", "")))
    ),
    "pprint": lambda _v, _a, _n, weight: weight if weight < SMALL else FORBIDDEN,
    "replace": lambda value, args, _n, _w: replaced_size(_text(value), *args[:2]) if len(args) > 1 else SMALL,
    "round": _rounded,
    "slice": lambda value, args, named, _w: 256 * (_length(value) + _width(args, named, 0, "slices", 0)),
    "sum": _summed,
    "tojson": _dumped,
    "truncate": lambda _v, args, named, weight: 4 * (weight + _width(args, named, 2, "end", 3)),
    "urlize": lambda _v, _a, _n, weight: weight if weight < SMALL // 16 else FORBIDDEN,
    "wordwrap": _wrapped,
}
"""Filters whose result can be more than twelve times as large as their input."""
