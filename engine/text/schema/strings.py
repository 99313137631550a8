"""JSON strings as GBNF rules: never a raw control character, nor half of a surrogate pair."""

from __future__ import annotations

import json

from specx.engine.text.schema.automaton import Automaton
from specx.engine.text.schema.chars import ANY, Chars, common, minus, of_text, union
from specx.engine.text.schema.rules import Ref, Rules, Symbol, char_class, literal

__all__ = ["Strings", "quoted"]

CONTROLS = union([(0, 0x1F), (0x7F, 0x7F)])  # DEL may stand in JSON, but does a terminal no good
RAW = minus(ANY, union([*CONTROLS, *of_text('"\\')]))
SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
HEX = "[0-9a-fA-F]"


def quoted(text: str) -> str:
    """`text` as a JSON string, in the form in which alone it is written where a certain text is meant."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class Strings:
    """Makes the rules of strings, each once."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._sets: dict[Chars, Symbol] = {}
        self._lengths: dict[tuple[int, int | None], Ref] = {}
        self._automata: dict[tuple[Automaton, bool], Ref] = {}
        self._char: Ref | None = None

    def of_lengths(self, least: int, most: int | None) -> Ref:
        """Strings of `least` to `most` characters, escaped in any way.

        Raises:
            GrammarError: a length is beyond what a grammar can count to.
        """
        if (least, most) not in self._lengths:
            inside = self._rules.times(self._any_char(), least, most)
            self._lengths[least, most] = self._rules.rule("string", [(literal('"'), inside, literal('"'))])
        return self._lengths[least, most]

    def of_automaton(self, strings: Automaton) -> Ref:
        """The strings of an automaton, with a backslash only where one is needed."""
        return self._automaton(strings, is_string=True)

    def numbers(self, numbers: Automaton) -> Ref:
        """The texts of an automaton as they stand."""
        return self._automaton(numbers, is_string=False)

    def _automaton(self, automaton: Automaton, *, is_string: bool) -> Ref:
        known = self._automata.get((automaton, is_string))
        if known is not None:
            return known
        rules, end = self._rules, (literal('"'),) if is_string else ()
        states = [rules.rule("state") for _ in automaton.edges]
        for state, moves in enumerate(automaton.edges):
            if state in automaton.accepting:
                rules.add(states[state], *end)
            for chars, to in moves:
                rules.add(states[state], self._set(chars) if is_string else char_class(chars), states[to])
        whole = rules.rule("string", [(literal('"'), states[0])]) if is_string else states[0]
        self._automata[automaton, is_string] = whole
        return whole

    def _any_char(self) -> Ref:
        if self._char is None:
            low = literal("\\u") + f" [dD] [c-fC-F] {HEX} {HEX}"
            code = self._rules.rule("code")
            self._rules.add(code, f"[0-9a-cA-CeEfF] {HEX} {HEX} {HEX}")
            self._rules.add(code, f"[dD] [0-7] {HEX} {HEX}")
            self._rules.add(code, f"[dD] [89abAB] {HEX} {HEX} {low}")
            escape = self._rules.rule("escape", [(char_class(of_text('"\\/bfnrt')),), (literal("u"), code)])
            self._char = self._rules.rule("char", [(char_class(RAW),), (literal("\\"), escape)])
        return self._char

    def _set(self, chars: Chars) -> Symbol:
        """One character of a set, as it stands in a string."""
        if chars not in self._sets:
            raw, escapes = common(chars, RAW), self._escapes(chars)
            if not escapes:
                self._sets[chars] = char_class(raw)
            else:
                options: list[tuple[Symbol, ...]] = [(char_class(raw),)] if raw else []
                options.append((literal("\\"), self._rules.rule("escape", escapes)))
                self._sets[chars] = self._rules.rule("set", options)
        return self._sets[chars]

    def _escapes(self, chars: Chars) -> list[tuple[Symbol, ...]]:
        """What may follow a backslash for the characters of a set that need one."""
        short = "".join(letter for char, letter in SHORT.items() if common(chars, of_text(char)))
        options: list[tuple[Symbol, ...]] = [(char_class(of_text(short)),)] if short else []
        for first in ("000", "001", "007"):
            start = int(first, 16) * 16
            codes = common(chars, common(CONTROLS, ((start, start + 15),)))
            digits = "".join(
                f"{code - start:x}{code - start:X}" for a, b in codes for code in range(a, b + 1)
            )
            if digits:
                options.append((literal("u" + first), char_class(of_text(digits))))
        return options
