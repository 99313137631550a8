"""GBNF rules in the making: those that cannot be completed, or are never used, are left out in the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from specx.backends.errors import GrammarError
from specx.engine.text.schema.chars import Chars

__all__ = ["MAX_REPEAT", "Ref", "Rules", "Symbol", "Times", "char_class", "literal"]

BLOCK = 1000  # llama.cpp's parser takes up to 2000 repetitions at once
MAX_REPEAT = 100_000
MAX_RULES = 50_000


@dataclass(frozen=True, slots=True)
class Ref:
    """A rule by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Times:
    """`part`, `least` to `most` times; None is no limit."""

    part: Symbol
    least: int
    most: int | None


Symbol = str | Ref | Times  # a str is GBNF that stands for itself: a literal or a class of characters


class Rules:
    """The rules of one grammar."""

    def __init__(self) -> None:
        self._alternatives: dict[str, list[tuple[Symbol, ...]]] = {}

    def rule(self, kind: str, alternatives: Iterable[Sequence[Symbol]] = ()) -> Ref:
        """A new rule, with a name made from `kind`; it says nothing until it has alternatives.

        Raises:
            GrammarError: there are too many rules.
        """
        if len(self._alternatives) >= MAX_RULES:
            raise GrammarError(
                f"the JSON schema comes to more than {MAX_RULES} rules", "divide it, or name fewer cases"
            )
        ref = Ref(f"{kind}-{len(self._alternatives)}")
        self._alternatives[ref.name] = [tuple(each) for each in alternatives]
        return ref

    def add(self, rule: Ref, *symbols: Symbol) -> None:
        """One more alternative of `rule`: these symbols, one after the other."""
        self._alternatives[rule.name].append(symbols)

    def times(self, part: Symbol, least: int, most: int | None) -> Symbol:
        """`part`, which takes at least one character, `least` to `most` times.

        Raises:
            GrammarError: a number is too large for a grammar.
        """
        if max(least, most or 0) > MAX_REPEAT:
            raise GrammarError(
                f"the JSON schema counts to {max(least, most or 0)}; a grammar can count to {MAX_REPEAT}",
                "make lengths and numbers of items smaller, or leave them out",
            )
        if most is not None and most < least:
            return self.rule("nothing")
        if max(least, most or 0) <= BLOCK:
            return Times(part, least, most)
        block = self.rule("block", [(Times(part, BLOCK, BLOCK),)])
        blocks, rest = divmod(least, BLOCK)
        first = (Times(block, blocks, blocks), Times(part, rest, rest))
        if most is None:
            return self.rule("times", [(*first, Times(part, 0, None))])
        blocks, rest = divmod(most - least, BLOCK)
        some: Symbol = Times(part, 0, rest)
        partial = self.rule("partial", [(Times(part, 0, BLOCK - 1),)])
        for _ in range(blocks):
            some = self.rule("more", [(partial,), (block, some)])
        return self.rule("times", [(*first, some)])

    def text(self, root: Ref, prefix: str = "") -> str:
        """The grammar of what `root` says, as GBNF; empty if there is no text that it allows.

        All names of rules begin with `prefix`; that of `root` is "root" after it.
        """
        finite = self._finite()
        if root.name not in finite:
            return ""
        names, waiting = {root.name: f"{prefix}root"}, [root.name]
        lines = []
        while waiting:
            name = waiting.pop(0)
            kept = [a for a in self._alternatives[name] if _is_finite(a, finite)]
            for each in (symbol for alternative in kept for symbol in alternative):
                ref = _ref(each)
                if ref is not None and ref.name in finite and ref.name not in names:
                    names[ref.name] = prefix + ref.name
                    waiting.append(ref.name)
            said = " | ".join(dict.fromkeys(_sequence(a, names, finite) for a in kept))
            lines.append(f"{names[name]} ::= {said}\n")
        return "".join(lines)

    def _finite(self) -> set[str]:
        """The rules that some finite text completes."""
        users: dict[str, set[str]] = {}
        for name, alternatives in self._alternatives.items():
            for symbol in (each for alternative in alternatives for each in alternative):
                if (ref := _ref(symbol)) is not None:
                    users.setdefault(ref.name, set()).add(name)
        finite: set[str] = set()
        waiting = list(self._alternatives)
        while waiting:
            name = waiting.pop()
            if name not in finite and any(_is_finite(a, finite) for a in self._alternatives[name]):
                finite.add(name)
                waiting.extend(users.get(name, ()))
        return finite


def _ref(symbol: Symbol) -> Ref | None:
    while isinstance(symbol, Times):
        symbol = symbol.part
    return symbol if isinstance(symbol, Ref) else None


def _is_finite(alternative: Sequence[Symbol], finite: set[str]) -> bool:
    def ends(symbol: Symbol) -> bool:
        if isinstance(symbol, Times):
            return symbol.least == 0 or ends(symbol.part)
        return isinstance(symbol, str) or symbol.name in finite

    return all(map(ends, alternative))


def _sequence(alternative: Sequence[Symbol], names: dict[str, str], finite: set[str]) -> str:
    said = (_said(symbol, names, finite) for symbol in alternative)
    return " ".join(each for each in said if each) or '""'


def _said(symbol: Symbol, names: dict[str, str], finite: set[str]) -> str:
    if isinstance(symbol, str):
        return symbol
    if isinstance(symbol, Ref):
        return names[symbol.name]
    ref = _ref(symbol.part)
    if symbol.most == 0 or (ref is not None and ref.name not in finite):
        return ""
    part = _said(symbol.part, names, finite)
    if (symbol.least, symbol.most) == (1, 1):
        return part
    most = "" if symbol.most is None else symbol.most
    return f"{part}{{{symbol.least},{most}}}" if symbol.least != symbol.most else f"{part}{{{most}}}"


def literal(text: str) -> str:
    """`text` as a GBNF literal."""
    return '"' + "".join(_escaped(ord(each), '"\\') for each in text) + '"'


def char_class(chars: Chars) -> str:
    """A set of characters as a GBNF class."""
    special = "\\]^-["
    ends = []
    for low, high in chars:
        first = _escaped(low, special)
        ends.append(first if low == high else f"{first}-{_escaped(high, special)}")
    return "[" + "".join(ends) + "]"


def _escaped(code: int, special: str) -> str:
    if 0x20 <= code < 0x7F:
        char = chr(code)
        return f"\\x{code:02X}" if char in special else char
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"
