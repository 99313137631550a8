"""Sets of Unicode characters as ranges of code points."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ANY", "DIGITS", "LAST", "SPACES", "WORD", "Chars", "common", "minus", "of_text", "union"]

Chars = tuple[tuple[int, int], ...]  # inclusive, ascending, neither overlapping nor adjacent

LAST = 0x10FFFF


def union(ranges: Iterable[tuple[int, int]]) -> Chars:
    """The characters of all `ranges`."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def common(a: Chars, b: Chars) -> Chars:
    """The characters that are in both."""
    found: list[tuple[int, int]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            found.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def minus(a: Chars, b: Chars) -> Chars:
    """The characters of `a` that are not in `b`."""
    gaps, start = [], 0
    for low, high in b:
        if start < low:
            gaps.append((start, low - 1))
        start = high + 1
    if start <= LAST:
        gaps.append((start, LAST))
    return common(a, tuple(gaps))


def of_text(text: str) -> Chars:
    """The characters of `text`."""
    return union((ord(each), ord(each)) for each in text)


ANY: Chars = ((0, 0xD7FF), (0xE000, LAST))  # surrogates are no characters
DIGITS = union([(0x30, 0x39)])
WORD = union([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
# White space and line ends as ECMA-262 has them.
SPACES = union(
    [
        *((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)),
        *((0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
    ]
)
