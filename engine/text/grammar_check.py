"""What llama.cpp's grammar parser does not survive, or takes for something else: found beforehand.

It ends the process where parentheses or rules are nested too deep, eats memory on a repetition that ends
before it begins, and takes a repetition of more than 2000 for one without end. What is merely no grammar is
found by `grammar_syntax.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from specx.backends.errors import GrammarError
from specx.engine.text.grammar_syntax import MOST_TIMES, check_syntax

__all__ = ["check_grammar"]

MAX_TEXT = 1 << 22  # characters; llama.cpp takes up to 250 bytes for each
MAX_NESTING = 1000  # parentheses; llama.cpp takes ten times as many on a stack of 8 MB
MAX_CHAIN = 10_000  # rules that begin with each other; a twentieth of what ends the process
MAX_RULES = 100_000
MAX_OPEN = 20_000  # alternatives open at once: about a second of work for each token
MAX_LEFT_OUT = 100  # items in a row: after each all others are open, at 400 five seconds for each token
MAX_REOPENED = 400  # the same where each of them opens all again: work grows with the cube, to seconds

HINT = "the syntax is GBNF, as for llama.cpp"

ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|.)", re.DOTALL)
TOKENS = re.compile(
    r"""(?P<blank>(?:\s|\#[^\r\n]*)+)
      | (?P<name>[A-Za-z0-9_-]+)
      | (?P<is>::=)
      | (?P<terminal>"(?:[^"\\]|\\.)*" | \[(?:[^\]\\]|\\.)*\] | \. | !?<[^>]*>)
      | (?P<open>\() | (?P<close>\)) | (?P<or>\|)
      | (?P<times>[*+?] | \{\s*\d+\s*(?:,\s*\d*\s*)?\})""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(slots=True)
class _Item:
    """A rule, or None for a terminal, `least` to `most` times; None is no limit.

    Of these, what may be empty by an inner repetition (`"a"?{3}`) is repeated `again` times.
    """

    rule: str | None
    empty: bool = False  # a terminal that takes no character
    least: int = 1
    most: int | None = 1
    again: int = 1


@dataclass(slots=True)
class _Rule:
    alternatives: list[list[_Item]] = field(default_factory=lambda: [[]])


def _any(_text: str) -> bool:
    return True


def check_grammar(text: str, root: str = "root", is_token: Callable[[str], bool] = _any) -> None:
    """Raises GrammarError if a text is no grammar, would do harm, or no text completes it.

    Args:
        text: of the grammar.
        root: the rule that the whole text must match. That there is one is not checked.
        is_token: as of `check_syntax`; without it, every text may be one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise GrammarError(
            f"the grammar is not valid UTF-8: {text[problem.start]!a} at character {problem.start}",
            "convert it first, for example with `iconv -t UTF-8`",
        ) from problem
    if len(text) > MAX_TEXT:
        raise GrammarError(f"the grammar has more than {MAX_TEXT:,} characters", "use a shorter one")
    if "\0" in text:
        raise GrammarError("the grammar has a NUL character", r"write it as \x00 within a literal or a class")
    rules = _read(text)
    check_syntax(text, is_token)
    if rules is None or root not in rules:
        return
    for name, rule in rules.items():
        for item in (each for alternative in rule.alternatives for each in alternative):
            if item.rule is not None and item.rule not in rules:
                raise GrammarError(f"the grammar has no rule `{item.rule}`, which `{name}` names", HINT)
    _Analysis(rules).check(root)


class _Broken(Exception):  # noqa: N818
    """This is no grammar; `check_syntax` says why."""


def _read(text: str) -> dict[str, _Rule] | None:
    """The rules of a grammar, a group being a rule of its own; None if it is no grammar."""
    reader = _Reader()
    tokens = _tokens(text)
    try:
        kind, word = next(tokens, ("end", ""))
        while kind != "end":
            following, its_word = next(tokens, ("end", ""))
            reader.take(kind, word, begins_rule=following == "is")
            kind, word = following, its_word
    except _Broken:
        return None
    return reader.rules if len(reader.open_rules) == 1 else None


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """Kinds and texts of what a grammar is made of."""
    at = 0
    while at < len(text):
        match = TOKENS.match(text, at)
        if match is None or match.lastgroup is None:
            yield "unknown", ""
            return
        if match.lastgroup != "blank":
            yield match.lastgroup, match.group()
        at = match.end()


class _Reader:
    """Puts rules together, token by token."""

    def __init__(self) -> None:
        self.rules: dict[str, _Rule] = {}
        self.open_rules: list[_Rule] = []  # the rule that is read, and its groups that are not closed yet

    def take(self, kind: str, word: str, *, begins_rule: bool) -> None:
        """The next token; raises _Broken if it cannot stand here."""
        if kind == "name" and begins_rule:
            if len(self.open_rules) > 1:
                raise _Broken
            if len(self.rules) >= MAX_RULES:
                raise GrammarError(f"the grammar has more than {MAX_RULES} rules", "use fewer")
            self.rules[word] = _Rule()
            self.open_rules = [self.rules[word]]
            return
        if not self.open_rules or kind == "unknown":
            raise _Broken
        alternatives = self.open_rules[-1].alternatives
        if kind == "open":
            self._open(alternatives[-1])
        elif kind == "close":
            self.open_rules.pop()
        elif kind == "or":
            alternatives.append([])
        elif kind == "times":
            if not alternatives[-1]:
                raise _Broken
            _repeat(alternatives[-1][-1], word)
        elif kind != "is":
            if word.startswith('"'):
                _check_characters(word)
            alternatives[-1].append(_Item(word) if kind == "name" else _Item(None, empty=word == '""'))

    def _open(self, sequence: list[_Item]) -> None:
        if len(self.open_rules) > MAX_NESTING:
            raise GrammarError(
                f"the grammar nests parentheses more than {MAX_NESTING} deep", "give inner groups names"
            )
        name = f"({len(self.rules)}"
        sequence.append(_Item(name))
        self.rules[name] = _Rule()
        self.open_rules.append(self.rules[name])


def _check_characters(literal: str) -> None:
    """Raises GrammarError if a literal names what is no character: its bytes would be no text."""
    for match in ESCAPE.finditer(literal):
        code = int(match[1] or match[2] or "0", 16)
        if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            raise GrammarError(
                f"the grammar has {match[0]} in a literal, which is no character",
                r"write the character itself, or \U and eight digits: \U0001F600 instead of \uD83D\uDE00",
            )


def _repeat(item: _Item, sign: str) -> None:
    """Let an item be repeated once more, as `sign` says."""
    if sign in "*+?":
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
    else:
        low, comma, high = sign.strip("{}").replace(" ", "").partition(",")
        low, high = low.strip()[:10], high.strip()[:10]
        least, most = int(low), int(high) if high else None if comma else int(low)
        if most is not None and most < least:
            raise GrammarError(
                f"the repetition {sign} in the grammar ends before it begins", "give the smaller number first"
            )
        if max(least, most or 0) > MOST_TIMES:
            raise GrammarError(
                f"the repetition {sign[:30]} in the grammar goes beyond {MOST_TIMES}",
                "nest two repetitions in a rule each, or leave the upper limit out",
            )
    if item.least == 0:
        item.again *= most or 1
    item.least *= least
    item.most = None if item.most is None or most is None else item.most * most


class _Cost(NamedTuple):
    """What a rule costs at its beginning.

    Attributes:
        opened: alternatives that are open at once.
        chain: rules that begin with each other.
        left_out: places of it, one after the other, each of which may be left out; at least 1.
    """

    opened: int
    chain: int
    left_out: int


class _Analysis:
    """Which rules may be empty, which can be completed, and what each of them opens at its beginning."""

    def __init__(self, rules: dict[str, _Rule]) -> None:
        self._rules = rules
        self._users: dict[str, set[str]] = {}
        for name, rule in rules.items():
            for item in (each for alternative in rule.alternatives for each in alternative):
                if item.rule is not None:
                    self._users.setdefault(item.rule, set()).add(name)
        self._empty = self._closure(terminals=False)
        self._finite = self._closure(terminals=True)

    def check(self, root: str) -> None:
        """Raises GrammarError if the grammar cannot be used."""
        self._check_fronts()
        if root not in self._finite:
            raise GrammarError(
                f"no text completes the grammar: rule `{root}` goes on without end",
                "give a rule that names itself an alternative that does not",
            )

    def _closure(self, *, terminals: bool) -> set[str]:
        """The rules of which an alternative can be written in full, with terminals or without any."""
        found: set[str] = set()

        def ends(item: _Item) -> bool:
            return item.least == 0 or (
                item.rule in found if item.rule is not None else terminals or item.empty
            )

        waiting = list(self._rules)
        while waiting:
            name = waiting.pop()
            alternatives = self._rules[name].alternatives
            if name not in found and any(all(map(ends, each)) for each in alternatives):
                found.add(name)
                waiting.extend(self._users.get(name, ()))
        return found

    def _is_empty(self, item: _Item) -> bool:
        return item.rule in self._empty if item.rule is not None else item.empty

    def _front(self, rule: _Rule) -> list[_Item]:
        """The items that may come first."""
        found = []
        for alternative in rule.alternatives:
            for item in alternative:
                found.append(item)
                if item.least and not self._is_empty(item):
                    break
        return found

    def _check_fronts(self) -> None:
        """Follow what rules begin with, depth first and without recursion."""
        costs: dict[str, _Cost] = {}
        for start in self._rules:
            waiting = [(start, False)]
            active: set[str] = set()
            while waiting:
                name, done = waiting.pop()
                if done:
                    active.discard(name)
                    costs[name] = self._cost(name, costs)
                elif name in active:
                    raise GrammarError(
                        f"the grammar has a left recursion: {_shown(name)} begins with itself",
                        "let the rule begin with something else, or use * or +",
                    )
                elif name not in costs:
                    active.add(name)
                    _check_chain(len(active))
                    waiting.append((name, True))
                    front = self._front(self._rules[name])
                    waiting.extend((item.rule, False) for item in front if item.rule is not None)
        self._check_middles(costs)

    def _cost(self, name: str, costs: dict[str, _Cost]) -> _Cost:
        """What a rule opens at its beginning, from the costs of the rules that it begins with."""
        rule = self._rules[name]
        opened = len(rule.alternatives) + sum(self._opened(item, costs) for item in self._front(rule))
        chain = max(
            (costs[each.rule].chain for each in self._front(rule) if each.rule is not None), default=0
        )
        _check_chain(chain + 1)
        _check_opened(opened, name)
        empty = [each for each in rule.alternatives if all(map(self._is_skipped, each))]
        left_out = max((sum(self._left_out(item, costs) for item in each) for each in empty), default=0)
        return _Cost(opened, chain + 1, max(left_out, 1))

    def _check_middles(self, costs: dict[str, _Cost]) -> None:
        """The same for what is opened after the beginning of a rule."""
        for name, rule in self._rules.items():
            for alternative in rule.alternatives:
                opened = left_out = 0
                for item in reversed(alternative):
                    if item.most is None and self._is_empty(item):
                        raise GrammarError(
                            f"the grammar has a left recursion: {_shown(name)} repeats for ever what may be "
                            "empty",
                            "leave out the inner *, ? or empty alternative",
                        )
                    skipped = self._is_skipped(item)
                    opened = self._opened(item, costs) + (opened if skipped else 0)
                    _check_opened(opened, name)
                    left_out = left_out + self._left_out(item, costs) if skipped else 0
                    _check_left_out(left_out, name)

    def _is_skipped(self, item: _Item) -> bool:
        return not item.least or self._is_empty(item)

    def _left_out(self, item: _Item, costs: dict[str, _Cost]) -> int:
        """How many places one after the other may be left out in what may be left out itself."""
        return costs[item.rule].left_out if item.rule is not None and self._is_empty(item) else 1

    def _opened(self, item: _Item, costs: dict[str, _Cost]) -> int:
        own = costs[item.rule].opened if item.rule is not None else 1
        times = max(item.most or 1, 1) if self._is_empty(item) else item.again
        if times > 1 and own * times > MAX_REOPENED:
            raise GrammarError(
                f"the grammar repeats {_shown(item.rule or '')}, which may be empty, up to {times} times",
                f"let it not be empty, and repeat it {{0,{times}}}",
            )
        return own * times


def _check_opened(count: int, name: str) -> None:
    if count > MAX_OPEN:
        raise GrammarError(
            f"the grammar leaves more than {MAX_OPEN} alternatives open at once, in {_shown(name)}",
            "let fewer of them begin at the same place",
        )


def _check_left_out(count: int, name: str) -> None:
    if count > MAX_LEFT_OUT:
        raise GrammarError(
            f"the grammar has more than {MAX_LEFT_OUT} items in a row that may each be left out, in "
            f"{_shown(name)}",
            "let one begin only behind another, as in (a (b (c)?)?)?",
        )


def _check_chain(length: int) -> None:
    if length > MAX_CHAIN:
        raise GrammarError(
            f"the grammar has more than {MAX_CHAIN} rules that begin with each other", "join some of them"
        )


def _shown(name: str) -> str:
    return f"rule `{name}`" if name and not name.startswith("(") else "a group"
