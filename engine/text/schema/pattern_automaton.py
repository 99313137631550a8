"""From the syntax tree of a pattern to the automaton of the strings that match it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from specx.backends.errors import GrammarError
from specx.engine.text.schema import pattern
from specx.engine.text.schema.automaton import Automaton, automaton
from specx.engine.text.schema.chars import ANY, WORD, Chars, union
from specx.engine.text.schema.pattern import Assertion, Choice, Node, Repeat, Sequence, Set

__all__ = ["containing", "matching"]

MAX_PARTS = 20_000  # states of the automaton that may be in several at once
MAX_WORK = 3_000_000  # states visited to make it deterministic: a second or two

States = frozenset[int]


@cache
def matching(text: str) -> Automaton:
    """The strings that `text`, a pattern without look-aheads, matches from end to end.

    Raises:
        GrammarError: the pattern cannot be used.
    """
    return _deterministic(pattern.parse(text).node, text)


@cache
def containing(text: str) -> Automaton:
    """The strings in which `text`, a pattern, matches somewhere, as JSON Schema means it.

    Raises:
        GrammarError: the pattern cannot be used.
    """
    parsed, anything = pattern.parse(text), Repeat(Set(ANY), 0, None)
    found = _deterministic(Sequence((anything, parsed.node, anything)), text)
    for each in parsed.ahead:
        seen = _deterministic(Sequence((Assertion("^"), each.part, anything)), text)
        found = found.without(seen) if each.negative else found.both(seen)
    return found.smaller() if parsed.ahead else found


@dataclass(slots=True)
class _Parts:
    """An automaton that may be in several states at once; `free` moves take no character."""

    text: str
    moves: list[list[tuple[Chars, int]]] = field(default_factory=list)
    free: list[list[tuple[str, int]]] = field(default_factory=list)  # with the assertion that must hold

    def state(self) -> int:
        if len(self.moves) >= MAX_PARTS:
            raise GrammarError(
                f"the pattern {pattern.shown(self.text)} in the JSON schema comes to more than {MAX_PARTS} "
                "parts",
                "make its repetitions smaller",
            )
        self.moves.append([])
        self.free.append([])
        return len(self.moves) - 1

    def add(self, node: Node, start: int) -> int:
        """Append `node` to state `start`; returns the state after it."""
        match node:
            case Set(chars):
                end = self.state()
                self.moves[start].append((chars, end))
                return end
            case Assertion(kind):
                return self.skip(start, self.state(), kind)
            case Sequence(parts):
                for part in parts:
                    start = self.add(part, start)
                return start
            case Choice(options):
                ends = [self.add(option, self.skip(start, self.state())) for option in options]
                return self.join(ends)
            case Repeat(part, least, most):
                return self.repeat(part, start, least, most)

    def repeat(self, part: Node, start: int, least: int, most: int | None) -> int:
        for _ in range(least):
            start = self.add(part, start)
        if most is None:
            loop = self.skip(start, self.state())
            self.skip(self.add(part, loop), loop)
            return self.skip(loop, self.state())
        ends = [start]
        for _ in range(most - least):
            ends.append(self.add(part, ends[-1]))
        return self.join(ends)

    def join(self, ends: Iterable[int]) -> int:
        joined = self.state()
        for end in ends:
            self.skip(end, joined)
        return joined

    def skip(self, start: int, end: int, assertion: str = "") -> int:
        self.free[start].append((assertion, end))
        return end

    def reach(self, states: States, *, first: bool, after_word: bool, ahead: bool | None) -> States:
        """All states that are reached without a character.

        Args:
            states: where to begin.
            first: whether no character was read yet.
            after_word: whether the last one belongs to a word.
            ahead: whether the next one does; None if there is none.
        """
        edge = after_word != bool(ahead)
        holds = {"": True, "^": first, "$": ahead is None, "b": edge, "B": not edge}
        found, waiting = set(states), list(states)
        while waiting:
            for assertion, to in self.free[waiting.pop()]:
                if to not in found and holds[assertion]:
                    found.add(to)
                    waiting.append(to)
        return frozenset(found)


def _deterministic(node: Node, text: str) -> Automaton:
    """The automaton of a tree; its states are (states of the parts, is it the first, was it a word's)."""
    parts = _Parts(text)
    start = parts.state()
    end = parts.add(node, start)
    words = any(kind in "bB" for moves in parts.free for kind, _ in moves if kind)
    classes = _classes([chars for moves in parts.moves for chars, _ in moves] + [WORD] * words)
    inside = {chars: frozenset(_classes_of(chars, classes)) for moves in parts.moves for chars, _ in moves}
    is_word = [words and WORD[0][0] <= chars[0][0] and bool(_within(chars, WORD)) for chars in classes]
    spent = 0

    def step(state: tuple[States, bool, bool]) -> list[tuple[Chars, tuple[States, bool, bool]]]:
        nonlocal spent
        states, first, after_word = state
        moves: dict[int, set[int]] = {}
        for ahead in (False, True) if words else (False,):
            reached = parts.reach(states, first=first, after_word=after_word, ahead=ahead)
            for source in reached:
                for chars, to in parts.moves[source]:
                    for number in inside[chars]:
                        if is_word[number] == ahead or not words:
                            moves.setdefault(number, set()).add(to)
            spent += len(reached) * len(classes)
        if spent > MAX_WORK:
            raise GrammarError(
                f"the pattern {pattern.shown(text)} in the JSON schema is too entangled for a grammar",
                "make its repetitions smaller, or anchor it with ^ and $",
            )
        return [
            (classes[number], (frozenset(to), False, is_word[number] and words))
            for number, to in sorted(moves.items())
        ]

    def ends(state: tuple[States, bool, bool]) -> bool:
        states, first, after_word = state
        return end in parts.reach(states, first=first, after_word=after_word, ahead=None)

    return automaton((frozenset([start]), True, False), step, ends).smaller()


def _classes(sets: Iterable[Chars]) -> list[Chars]:
    """The characters of all `sets`, divided so that each set is made of whole classes."""
    distinct = sorted(set(sets))
    changes: dict[int, list[int]] = {}
    for number, chars in enumerate(distinct):
        for low, high in chars:
            changes.setdefault(low, []).append(number)
            changes.setdefault(high + 1, []).append(number)
    members: dict[frozenset[int], list[tuple[int, int]]] = {}
    current: set[int] = set()
    points = sorted(changes)
    for point, following in pairwise(points):
        current ^= set(changes[point])
        if current:
            members.setdefault(frozenset(current), []).append((point, following - 1))
    return [union(ranges) for ranges in members.values()]


def _classes_of(chars: Chars, classes: list[Chars]) -> list[int]:
    """Which of the classes lie in `chars`."""
    return [number for number, each in enumerate(classes) if _within(each, chars)]


def _within(part: Chars, chars: Chars) -> bool:
    """Whether the first character of `part`, a class, is in `chars`."""
    return any(low <= part[0][0] <= high for low, high in chars)
