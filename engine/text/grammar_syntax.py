"""The syntax of GBNF, as llama.cpp's parser reads it.

That parser says what is wrong on the standard error of the process, where it cannot be told from what others
say meanwhile. So it is given only what it accepts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

from specx.backends.errors import GrammarError

__all__ = ["check_syntax"]

MOST_TIMES = 2000  # llama.cpp's MAX_REPETITION_THRESHOLD
MOST_ID = 2**32 - 1

ESCAPE = r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[trn\\\"\[\]-])"
IN_CLASS = rf"(?:{ESCAPE}|[^\\\]])"

SPACE = re.compile(r"(?:[ \t]|\#[^\r\n]*+)*+")
LINES = re.compile(r"(?:[ \t\r\n]|\#[^\r\n]*+)*+")
NAME = re.compile(r"[A-Za-z0-9-]++")
LITERAL = re.compile(rf'"(?:{ESCAPE}|[^\\"])*+"')
CLASS = re.compile(rf"\[\^?(?:{IN_CLASS}(?:-(?!\]){IN_CLASS})?)*+\]")
TOKEN_ID = re.compile(r"<\[([0-9]++)\]>")
TOKEN = re.compile(r"<(?!\[)[^>]*+>")
NUMBER = re.compile(r"[0-9]++")


def check_syntax(text: str, is_token: Callable[[str], bool]) -> None:
    """Check that llama.cpp can parse a grammar.

    Args:
        text: without NUL characters.
        is_token: whether a text such as `<|im_end|>` is one token of the vocabulary.

    Raises:
        GrammarError: it cannot; says what it expects, and where.
    """
    _Syntax(text, is_token).check()


class _Syntax:
    """Reads from the beginning to the end."""

    def __init__(self, text: str, is_token: Callable[[str], bool]) -> None:
        self._text, self._is_token = text, is_token
        self._at = 0
        self._names: set[str] = set()
        self._made = 0  # rules that llama.cpp makes of groups and repetitions
        self._repeatable = False  # whether there is anything that a repetition could repeat
        self._size = 1  # how many rules it would repeat

    def check(self) -> None:
        self._pass(LINES)
        while self._at < len(self._text):
            self._rule()

    def _rule(self) -> None:
        self._name("a name")
        self._pass(SPACE)
        if not self._text.startswith("::=", self._at):
            self._fail("expecting ::=")
        self._at += 3
        self._pass(LINES)
        self._alternatives()
        if self._next() not in ("", "\r", "\n"):
            self._fail("expecting newline or end")
        self._pass(LINES)

    def _alternatives(self) -> None:
        """What a rule is, up to the end of its line outside of parentheses."""
        opened: list[int] = []  # for each group, how many rules there were before
        self._repeatable = False
        while True:
            sign, space = self._next(), LINES if opened else SPACE
            if sign == "|":
                self._at += 1
                self._pass(LINES)
                self._repeatable = False
            elif sign == "(":
                self._at += 1
                self._pass(LINES)
                opened.append(self._rules)
                self._made += 1
                self._repeatable = False
            elif sign == ")" and opened:
                self._at += 1
                self._size, self._repeatable = max(1, self._rules - opened.pop()), True
                self._pass(LINES if opened else SPACE)
            elif sign and sign in "*+?{":
                self._repetition(sign, space)
            elif not self._terminal(sign):
                break
            else:
                self._pass(space)
        if opened:
            self._fail("expecting ')'")

    @property
    def _rules(self) -> int:
        return len(self._names) + self._made

    def _terminal(self, sign: str) -> bool:
        """A literal, a class, a token, a name or a dot; returns whether there is one."""
        start, self._size = self._at, 1
        if sign == '"':
            self._pass(LITERAL, "a literal")
            self._repeatable = self._at > start + 2
        elif sign == "[":
            self._pass(CLASS, "a class of characters")
            self._repeatable = self._text[start : self._at] not in ("[]", "[^]")
        elif sign in ("<", "!") and sign:
            self._token(sign)
            self._repeatable = True
        elif sign == ".":
            self._at += 1
            self._repeatable = True
        elif NAME.match(sign):
            self._name("a name")
            self._repeatable = True
        else:
            return False
        return True

    def _token(self, sign: str) -> None:
        self._at += sign == "!"
        if found := TOKEN_ID.match(self._text, self._at):
            if int(found[1][:20]) > MOST_ID:
                self._fail("a token id that is too big")
        elif found := TOKEN.match(self._text, self._at):
            if not self._is_token(found[0]):
                self._fail("expecting the text of one token")
        else:
            self._fail("expecting <[ID]> or the text of a token in < and >")
        self._at = found.end()

    def _repetition(self, sign: str, space: re.Pattern[str]) -> None:
        start = self._at
        self._at += 1
        self._pass(space)
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign) or self._times(space)
        if not self._repeatable:
            self._at = start
            self._fail("expecting something before a repetition")
        if least > MOST_TIMES:
            self._fail("too many repetitions")
        if most is not None and most > MOST_TIMES:
            most = None
        times = most or least or 1
        if self._size * times > MOST_TIMES:
            self._fail("too many repetitions of what consists of many rules")
        self._size *= times
        made = 1 if most is None else most - least
        self._made += made
        self._repeatable = least > 0 or made > 0

    def _times(self, space: re.Pattern[str]) -> tuple[int, int | None]:
        """The numbers behind an opening brace."""
        least = self._number("expecting an int")
        most: int | None = least
        self._pass(space)
        if self._next() == ",":
            self._at += 1
            self._pass(space)
            most = None
            if NUMBER.match(self._next()):
                most = self._number("expecting an int")
                self._pass(space)
        elif self._next() != "}":
            self._fail("expecting ','")
        if self._next() != "}":
            self._fail("expecting '}'")
        self._at += 1
        self._pass(space)
        return least, most

    def _number(self, expecting: str) -> int:
        found = NUMBER.match(self._text, self._at)
        if found is None:
            self._fail(expecting)
        self._at = found.end()
        return int(found[0][:20])

    def _name(self, what: str) -> None:
        start = self._at
        self._pass(NAME, what)
        self._names.add(self._text[start : self._at])

    def _pass(self, pattern: re.Pattern[str], what: str = "") -> None:
        found = pattern.match(self._text, self._at)
        if found is None:
            self._fail(f"expecting {what}")
        self._at = found.end()

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _fail(self, what: str) -> NoReturn:
        rest = next((line.strip() for line in self._text[self._at :].splitlines() if line.strip()), "")
        raise GrammarError(
            f"the grammar cannot be used: {what} at {rest[:200] or 'its end'}",
            "it needs a rule `root ::= ...`; the syntax is GBNF, as for llama.cpp",
        )
