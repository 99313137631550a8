"""The rules of arrays and objects, with white space as people and models write it, and never without end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specx.engine.text.schema.document import Place
from specx.engine.text.schema.members import Items, Members
from specx.engine.text.schema.rules import Ref, Rules, Symbol, literal
from specx.engine.text.schema.strings import quoted

__all__ = ["Containers"]

ValueRule = Callable[[tuple[Place, ...]], Ref]


class Containers:
    """Makes the rules of arrays and objects.

    Args:
        rules: where they go.
        value: the rule of the values that are valid against some schemas.
    """

    def __init__(self, rules: Rules, value: ValueRule) -> None:
        self._rules = rules
        self._value = value
        self._space = rules.rule("space", [(), (literal(" "),), (literal("\n"), "[ \\x09]{0,32}")])

    def enclosed(self, opening: str, inside: Sequence[Sequence[Symbol]], closing: str) -> list[Symbol]:
        """These and no other members between brackets."""
        symbols: list[Symbol] = [literal(opening), self._space]
        for i, each in enumerate(inside):
            symbols += self.after_comma(*each) if i else each
        return [*symbols, self._space, literal(closing)] if inside else [*symbols, literal(closing)]

    def after_comma(self, *symbols: Symbol) -> list[Symbol]:
        """A further member."""
        return [literal(","), self._space, *symbols]

    def pair(self, key: Symbol, *value: Symbol) -> list[Symbol]:
        """A property."""
        return [key, literal(":"), self._space, *value]

    def array(self, items: Items) -> Ref:
        """Arrays of such items."""
        rules, most = self._rules, items.most
        array = rules.rule("array")
        if most is not None and most < items.least:
            return array
        if items.least == 0:
            rules.add(array, *self.enclosed("[", [], "]"))
        if most == 0:
            return array
        listed = items.prefix if most is None else min(items.prefix, most)
        if listed == 0:
            most = None if most is None else most - 1
            more = rules.times(self._more(items), max(items.least - 1, 0), most)
            rules.add(array, *self.enclosed("[", [[self._value(items.places(0)), more]], "]"))
            return array
        after = rules.rule("items")  # what follows the listed items
        if items.least <= listed:
            rules.add(after)
        if most is None or most > listed:
            limit = None if most is None else most - listed
            rules.add(after, rules.times(self._more(items), max(items.least - listed, 1), limit))
        for index in range(listed - 1, 0, -1):
            rest, after = after, rules.rule("items")
            rules.add(after, *self.after_comma(self._value(items.places(index)), rest))
            if index >= items.least:
                rules.add(after)
        rules.add(array, *self.enclosed("[", [[self._value(items.places(0)), after]], "]"))
        return array

    def _more(self, items: Items) -> Ref:
        """A comma and an item beyond the listed ones."""
        item = self._value(items.places(items.prefix))
        return self._rules.rule("item", [self.after_comma(item)])

    def object(self, members: Members, extra: Ref | None) -> Ref:
        """Objects of such members.

        Args:
            members: what is listed, and how many there may be.
            extra: the rule of one more property, with its name; None if no other names may be.
        """
        rules, most = self._rules, members.most
        whole = rules.rule("object")
        if not members.is_possible or (most is not None and most < members.least):
            return whole
        if not members.required and members.least == 0:
            rules.add(whole, *self.enclosed("{", [], "}"))
        if most != 0:
            first = _MemberRules(rules, self, members, extra, self._space).first()
            rules.add(whole, *self.enclosed("{", [[first]], "}"))
        return whole

    def listed(self, members: Members) -> list[Ref]:
        """The rule of each listed property."""
        pairs = []
        for name in members.listed:
            pair = self.pair(literal(quoted(name)), self._value(members.value_places(name)))
            pairs.append(self._rules.rule("pair", [pair]))
        return pairs


State = tuple[int, int, int]  # the member in turn, how many were written at most, and at least


class _MemberRules:
    """The rules "member i and what follows" and "what follows member i", for each number of members so far.

    That number is counted only as far as limits ask for it. Names that are not listed may repeat, so all of
    them count as one where there must be at least so many, and each of them where there must be at most so
    many. The member after the listed ones is the first other one, and the one after that any further one.
    """

    def __init__(
        self, rules: Rules, containers: Containers, members: Members, extra: Ref | None, space: Ref
    ) -> None:
        self._rules = rules
        self._pairs = containers.listed(members)
        self._required = [name in members.required for name in members.listed]
        self._members = members
        self._extra = extra
        self._space = space
        self._known: dict[tuple[str, State], Ref] = {}
        self._waiting: list[tuple[str, State]] = []

    def first(self) -> Ref:
        """The rule of all members."""
        rule = self._rule("member", (0, 0, 0))
        while self._waiting:
            kind, state = self._waiting.pop()
            (self._member if kind == "member" else self._after)(self._known[kind, state], state)
        return rule

    def _rule(self, kind: str, state: State) -> Ref:
        if (kind, state) not in self._known:
            self._known[kind, state] = self._rules.rule(kind)
            self._waiting.append((kind, state))
        return self._known[kind, state]

    def _member(self, rule: Ref, state: State) -> None:
        member, _, _ = state
        count = len(self._pairs)
        if member < count:
            self._rules.add(rule, self._pairs[member], self._rule("after", self._next(state)))
            if not self._required[member]:
                self._rules.add(rule, self._rule("member", (member + 1, *state[1:])))
        elif self._extra is not None:
            self._rules.add(rule, self._extra, self._rule("after", self._next(state)))

    def _after(self, rule: Ref, state: State) -> None:
        member, at_most, at_least = state
        if at_least >= self._members.least and not any(self._required[member:]):
            self._rules.add(rule)
        if self._members.most is None or at_most < self._members.most:
            self._rules.add(rule, literal(","), self._space, self._rule("member", state))

    def _next(self, state: State) -> State:
        """The state after one more member."""
        member, at_most, at_least = state
        limit = self._members.most or 0
        further = member <= len(self._pairs)
        return (
            min(member, len(self._pairs)) + 1,
            min(at_most + 1, limit),
            min(at_least + further, self._members.least),
        )
