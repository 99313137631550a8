"""Deterministic finite automata over Unicode: sets of strings, as patterns, lengths and numbers are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from specx.backends.errors import GrammarError
from specx.engine.text.schema.chars import ANY, Chars, common, minus, union

__all__ = ["MAX_STATES", "Automaton", "automaton", "everything", "of_lengths", "of_words"]

MAX_STATES = 20_000  # of one automaton: each becomes a rule of the grammar

MAX_ROUNDS = 70  # of joining states: enough for the formats, not for long chains

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Automaton:
    """A set of strings. State 0 is the first.

    Attributes:
        edges: of each state, disjoint sets of characters and the state that each leads to; other characters
            lead nowhere.
        accepting: states in which a string may end.
    """

    edges: tuple[tuple[tuple[Chars, int], ...], ...]
    accepting: frozenset[int]

    def accepts(self, text: str) -> bool:
        """Whether `text` is in the set."""
        state: int | None = 0
        for each in text:
            code = ord(each)
            state = next((to for chars, to in self.edges[state or 0] if common(chars, ((code, code),))), None)
            if state is None:
                return False
        return state in self.accepting

    @property
    def is_empty(self) -> bool:
        """Whether there is no string in the set; every state can be reached."""
        return not self.accepting

    def both(self, other: Automaton) -> Automaton:
        """The strings that are in both sets.

        Raises:
            GrammarError: that takes more than `MAX_STATES` states.
        """
        return self._product(other, lambda a, b: a and b, rest=False)

    def without(self, other: Automaton) -> Automaton:
        """The strings of this set that are not in `other`.

        Raises:
            GrammarError: that takes more than `MAX_STATES` states.
        """
        return self._product(other, lambda a, b: a and not b, rest=True)

    def smaller(self) -> Automaton:
        """The same set with states joined that nothing tells apart, unless that takes long (Moore 1956)."""
        blocks = [int(state in self.accepting) for state in range(len(self.edges))]
        for _ in range(MAX_ROUNDS):
            numbers: dict[object, int] = {}
            following = []
            for block, moves in zip(blocks, self.edges, strict=True):
                targets: dict[int, list[tuple[int, int]]] = {}
                for chars, to in moves:
                    targets.setdefault(blocks[to], []).extend(chars)
                seen = (block, frozenset((to, union(ranges)) for to, ranges in targets.items()))
                following.append(numbers.setdefault(seen, len(numbers)))
            if len(numbers) == len(set(blocks)):
                return self._joined(following)
            blocks = following
        return self

    def _joined(self, blocks: Sequence[int]) -> Automaton:
        """With one state for each block, the first state's block being 0."""

        def step(block: int) -> list[tuple[Chars, int]]:
            return [(chars, blocks[to]) for chars, to in self.edges[first[block]]]

        first = {block: state for state, block in reversed(list(enumerate(blocks)))}
        return automaton(blocks[0], step, lambda block: first[block] in self.accepting)

    def _product(self, other: Automaton, accepts: Callable[[bool, bool], bool], *, rest: bool) -> Automaton:
        """Both at once; where `other` leads nowhere its state is -1 if `rest` is wanted."""

        def step(state: tuple[int, int]) -> list[tuple[Chars, tuple[int, int]]]:
            mine, others = state
            moves = []
            for chars, to in self.edges[mine]:
                left = chars
                for theirs, other_to in other.edges[others] if others >= 0 else ():
                    if shared := common(chars, theirs):
                        moves.append((shared, (to, other_to)))
                        left = minus(left, theirs)
                if rest and left:
                    moves.append((left, (to, -1)))
            return moves

        def ends(state: tuple[int, int]) -> bool:
            return accepts(state[0] in self.accepting, state[1] in other.accepting)

        return automaton((0, 0), step, ends)


def automaton(
    first: State,
    step: Callable[[State], Iterable[tuple[Chars, State]]],
    ends: Callable[[State], bool],
) -> Automaton:
    """The automaton of states that are found from `first` on.

    Args:
        first: any hashable state.
        step: the moves out of a state; their characters are disjoint.
        ends: whether a string may end in a state.

    Raises:
        GrammarError: there are more than `MAX_STATES`.
    """
    numbers: dict[State, int] = {first: 0}
    order, edges = [first], []
    for state in order:
        targets: dict[int, list[tuple[int, int]]] = {}
        for chars, target in step(state):
            if target not in numbers:
                if len(order) >= MAX_STATES:
                    raise GrammarError(
                        f"the pattern, lengths or bounds in the JSON schema come to more than {MAX_STATES} "
                        "states",
                        "make the repetitions or lengths smaller",
                    )
                numbers[target] = len(order)
                order.append(target)
            targets.setdefault(numbers[target], []).extend(chars)
        edges.append([(union(ranges), to) for to, ranges in targets.items()])
    return _trimmed(edges, {i for i, state in enumerate(order) if ends(state)})


def everything() -> Automaton:
    """All strings."""
    return Automaton((((ANY, 0),),), frozenset([0]))


def of_lengths(least: int, most: int | None) -> Automaton:
    """All strings of `least` to `most` characters.

    Raises:
        GrammarError: that takes more than `MAX_STATES` states.
    """
    last = least if most is None else most

    def step(count: int) -> list[tuple[Chars, int]]:
        if count < last:
            return [(ANY, count + 1)]
        return [(ANY, count)] if most is None else []

    return automaton(0, step, lambda count: count >= least)


def of_words(words: Iterable[str]) -> Automaton:
    """Just these strings.

    Raises:
        GrammarError: that takes more than `MAX_STATES` states.
    """
    known = set(words)
    following: dict[str, set[str]] = {"": set()}
    for word in known:
        for i in range(len(word)):
            following.setdefault(word[:i], set()).add(word[i])

    def step(prefix: str) -> list[tuple[Chars, str]]:
        return [(((ord(c), ord(c)),), prefix + c) for c in sorted(following.get(prefix, ()))]

    return automaton("", step, lambda prefix: prefix in known)


def _trimmed(edges: Sequence[Sequence[tuple[Chars, int]]], accepting: set[int]) -> Automaton:
    """Without the states from which no string ends, but for the first."""
    sources: dict[int, list[int]] = {}
    for state, moves in enumerate(edges):
        for _, to in moves:
            sources.setdefault(to, []).append(state)
    alive, waiting = set(accepting), list(accepting)
    while waiting:
        for source in sources.get(waiting.pop(), ()):
            if source not in alive:
                alive.add(source)
                waiting.append(source)
    kept = sorted(alive | {0})
    numbers: Mapping[int, int] = {old: new for new, old in enumerate(kept)}
    return Automaton(
        tuple(tuple((chars, numbers[to]) for chars, to in edges[old] if to in alive) for old in kept),
        frozenset(numbers[old] for old in accepting),
    )
