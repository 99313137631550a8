"""The regular expressions of JSON Schema, those of ECMA-262 in its Unicode mode, as syntax trees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from specx.backends.errors import GrammarError
from specx.engine.text.schema.chars import ANY, DIGITS, LAST, SPACES, WORD, Chars, minus, of_text, union

__all__ = ["Ahead", "Assertion", "Choice", "Node", "Pattern", "Repeat", "Sequence", "Set", "parse", "shown"]

MAX_DEPTH = 50  # of groups within groups
MAX_COUNT = 10_000

CLASSES = {"d": DIGITS, "w": WORD, "s": SPACES}
CONTROLS = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D, "0": 0}
LINE_ENDS = of_text("\n\r\u2028\u2029")
LOOKING = {
    "?=": "look-ahead that is not right behind the ^ at its beginning",
    "?!": "look-ahead that is not right behind the ^ at its beginning",
    "?<=": "look-behind",
    "?<!": "look-behind",
}


@dataclass(frozen=True, slots=True)
class Set:
    """One character of a set."""

    chars: Chars


@dataclass(frozen=True, slots=True)
class Assertion:
    """Where something may stand: one of `^`, `$`, `b` (a word's edge) and `B` (no such edge)."""

    kind: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of them."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`least` to `most` times; None is no limit."""

    part: Node
    least: int
    most: int | None


Node = Set | Assertion | Sequence | Choice | Repeat


@dataclass(frozen=True, slots=True)
class Ahead:
    """What must stand at the beginning of the text, or must not."""

    part: Node
    negative: bool


@dataclass(frozen=True, slots=True)
class Pattern:
    """A whole pattern: its tree, and the look-aheads at its beginning, which are about the same text."""

    node: Node
    ahead: tuple[Ahead, ...] = ()


def parse(pattern: str) -> Pattern:
    """The syntax tree of `pattern`.

    Raises:
        GrammarError: it is none, or has what an automaton cannot do (other look-aheads, back-references).
    """
    return _Parser(pattern).whole()


def shown(text: str) -> str:
    """`text` for a message, not too long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


class _Parser:
    """Reads a pattern from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def whole(self) -> Pattern:
        ahead = tuple(self.ahead())
        node = self.choice()
        if self.at < len(self.text):
            self.fail("a ) without its (")
        if not ahead:
            return Pattern(node)
        if isinstance(node, Choice):
            self.fail("the look-aheads at its beginning are about one of its cases only")
        return Pattern(Sequence((Assertion("^"), node)), ahead)

    def ahead(self) -> Iterator[Ahead]:
        """The look-aheads behind a first ^, which is read with them."""
        while self.text.startswith(("(?=", "(?!"), self.at or 1) and self.text.startswith("^"):
            self.at = self.at or 1
            negative = self.text[self.at + 2] == "!"
            self.at += 3
            part = self.choice()
            if not self.take(")"):
                self.fail("a ( without its )")
            if self.quantifier() != (1, 1):
                self.fail("an anchor is repeated")
            yield Ahead(part, negative)

    def fail(self, what: str) -> NoReturn:
        raise GrammarError(
            f"the pattern {shown(self.text)} in the JSON schema cannot be used: {what}",
            r"use characters, classes, \d \w \s, groups, |, and the repetitions * + ? {m,n}",
        )

    def take(self, expected: str) -> bool:
        """Step over `expected` if it is next."""
        found = self.text.startswith(expected, self.at)
        if found:
            self.at += len(expected)
        return found

    def next(self, what: str) -> str:
        if self.at >= len(self.text):
            self.fail(f"it ends within {what}")
        self.at += 1
        return self.text[self.at - 1]

    def choice(self) -> Node:
        options = [self.sequence()]
        while self.take("|"):
            options.append(self.sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def sequence(self) -> Node:
        parts = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.repeated())
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def repeated(self) -> Node:
        start = self.at
        part = self.atom()
        least, most = self.quantifier()
        if (least, most) == (1, 1):
            return part
        if isinstance(part, Assertion) and self.text[start] != "(":
            self.fail("an anchor is repeated")
        self.take("?")  # lazy or not, the same strings match
        if self.quantifier() != (1, 1) or (self.at < len(self.text) and self.text[self.at] in "*+?"):
            self.fail("two repetitions follow each other")
        return Repeat(part, least, most)

    def quantifier(self) -> tuple[int, int | None]:
        """How often, (1, 1) if nothing is said."""
        for sign, times in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return times
        if not self.take("{"):
            return (1, 1)
        inside, closed, _ = self.text[self.at :].partition("}")
        low, comma, high = inside.partition(",")
        if not closed or not _is_count(low) or (comma and high and not _is_count(high)):
            self.fail("a { that begins no repetition; a literal one is \\{")
        self.at += len(inside) + 1
        least, most = int(low[:9]), int(high[:9]) if high else None if comma else int(low[:9])
        if max(least, most or 0) > MAX_COUNT:
            self.fail(f"a repetition goes beyond {MAX_COUNT}")
        if most is not None and most < least:
            self.fail(f"the repetition {{{inside}}} ends before it begins")
        return (least, most)

    def atom(self) -> Node:
        char = self.next("the pattern")
        if char == "(":
            return self.group()
        if char in "^$":
            return Assertion(char)
        if char in "*+?{":
            self.fail(f"nothing that {char} could repeat")
        if char == "\\" and (edge := next((each for each in "bB" if self.take(each)), "")):
            return Assertion(edge)
        return Set(self.one_character(char))

    def one_character(self, char: str) -> Chars:
        """A class, a dot, an escape or a literal that begins with `char`, already read."""
        if char == "[":
            return self.char_class()
        if char == ".":
            return minus(ANY, LINE_ENDS)
        return self.escape() if char == "\\" else self.literal(ord(char))

    def group(self) -> Node:
        for sign, name in LOOKING.items():
            if self.text.startswith(sign, self.at):
                self.fail(f"it has a {name} ({sign}")
        if self.take("?<"):
            _, closed, _ = self.text[self.at :].partition(">")
            if not closed:
                self.fail("the name of a group does not end")
            self.at = self.text.index(">", self.at) + 1
        elif not self.take("?:") and self.text.startswith("?", self.at):
            self.fail(f"it has a group (?{self.text[self.at + 1 : self.at + 2]}")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"its groups are nested more than {MAX_DEPTH} deep")
        node = self.choice()
        self.depth -= 1
        if not self.take(")"):
            self.fail("a ( without its )")
        return node

    def char_class(self) -> Chars:
        negated = self.take("^")
        ranges: list[tuple[int, int]] = []
        while not self.take("]"):
            low = self.class_atom()
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                high = self.class_atom()
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] != high[0][1]:
                    self.fail("a range of a class does not go from one character to another")
                if high[0][0] < low[0][0]:
                    self.fail("a range of a class ends before it begins")
                low = union(((low[0][0], high[0][0]),))
            ranges += low
        chars = union(ranges)
        return minus(ANY, chars) if negated else minus(chars, minus(((0, LAST),), ANY))

    def class_atom(self) -> Chars:
        char = self.next("a class")
        if char != "\\":
            return self.literal(ord(char))
        return of_text("\b") if self.take("b") else self.escape()

    def escape(self) -> Chars:
        """The characters that a backslash, already read, and what follows stand for."""
        char = self.next("an escape")
        if char in "dws":
            return CLASSES[char]
        if char in "DWS":
            return minus(ANY, CLASSES[char.lower()])
        return self.literal(self.escaped(char))

    def escaped(self, char: str) -> int:
        """The code point that an escape beginning with `char`, already read, stands for."""
        if char == "u":
            return self.code_point()
        if char == "x":
            return self.hexadecimal(2)
        if char == "c":
            char = self.next("an escape")
            if not (char.isascii() and char.isalpha()):
                self.fail(f"the escape \\c{char}")
            return ord(char) % 32
        if char in "123456789" or (char == "k" and self.text.startswith("<", self.at)):
            self.fail(f"it has a back-reference \\{char}")
        if char in "pP":
            self.fail(f"it has a property of Unicode \\{char}")
        if char.isalnum() and char not in CONTROLS:
            self.fail(f"the escape \\{char}")
        return CONTROLS.get(char, ord(char))

    def code_point(self) -> int:
        if self.take("{"):
            digits, closed, _ = self.text[self.at :].partition("}")
            self.at += len(digits) + 1
            if not closed or not digits or len(digits) > 8 or not _is_hexadecimal(digits):
                self.fail("an escape \\u{ that is no code point")
            return int(digits, 16)
        high = self.hexadecimal(4)
        if 0xD800 <= high < 0xDC00 and self.take("\\u"):
            low = self.hexadecimal(4)
            if not 0xDC00 <= low < 0xE000:
                self.fail("it has half a surrogate pair")
            return 0x10000 + (high - 0xD800 << 10) + low - 0xDC00
        return high

    def hexadecimal(self, count: int) -> int:
        digits = self.text[self.at : self.at + count]
        if len(digits) != count or not _is_hexadecimal(digits):
            self.fail(f"an escape that lacks its {count} hexadecimal digits")
        self.at += count
        return int(digits, 16)

    def literal(self, code: int) -> Chars:
        if code > LAST or 0xD800 <= code < 0xE000:
            self.fail(f"U+{code:04X} is not a character")
        return ((code, code),)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_hexadecimal(text: str) -> bool:
    return all(each in "0123456789abcdefABCDEF" for each in text)
