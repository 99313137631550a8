"""The rules of arrays of which no two items are the same, where the items are listed values."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from specx.engine.text.schema.containers import Containers
from specx.engine.text.schema.rules import Ref, Rules, Symbol

__all__ = ["distinct"]

MAX_SETS = 1024  # sets of values written so far, each with a rule of its own; beyond that order is kept

Values = Sequence[Sequence[Symbol]]


def distinct(rules: Rules, containers: Containers, values: Values, least: int, most: int | None) -> Ref:
    """Arrays of `least` to `most` of `values`, each at most once.

    They may come in any order as long as few enough rules tell apart what was written; else they come in the
    order in which they are listed.
    """
    count = len(values)
    most = count if most is None else min(most, count)
    array = rules.rule("array")
    if least > most:
        return array
    if least == 0:
        rules.add(array, *containers.enclosed("[", [], "]"))
    if most > 0:
        in_any_order = sum(comb(count, k) for k in range(most + 1)) <= MAX_SETS
        make = _any_order if in_any_order else _listed_order
        rules.add(array, *containers.enclosed("[", [[make(rules, containers, values, least, most)]], "]"))
    return array


def _any_order(rules: Rules, containers: Containers, values: Values, least: int, most: int) -> Ref:
    """The items that may stand where none do; one rule for each set of values written so far."""
    first = rules.rule("items")
    known: dict[frozenset[int], Ref] = {frozenset(): first}
    for written, rule in (waiting := list(known.items())):  # grows meanwhile
        if written and len(written) >= least:
            rules.add(rule)
        for i in range(len(values)) if len(written) < most else ():
            if i not in written:
                after = written | {i}
                if after not in known:
                    known[after] = rules.rule("items")
                    waiting.append((after, known[after]))
                item = containers.after_comma(*values[i]) if written else values[i]
                rules.add(rule, *item, known[after])
    return first


def _listed_order(rules: Rules, containers: Containers, values: Values, least: int, most: int) -> Ref:
    """The same, with a rule for each value and number of those before it, as far as limits ask for that."""
    limit = least if most == len(values) else most
    after: list[Ref] = []  # what may follow, by the number of values written
    some: list[Ref] = []  # the value in turn or a later one, and what may follow
    for i in range(len(values), -1, -1):
        later, then = some, after
        after = [rules.rule("items") for _ in range(limit + 1)]
        some = [rules.rule("item") for _ in range(limit + 1)]
        for written in range(limit + 1):
            if written >= least:
                rules.add(after[written])
            if i < len(values):
                if most == len(values) or written < most:
                    rules.add(some[written], *values[i], then[min(written + 1, limit)])
                    rules.add(after[written], *containers.after_comma(some[written]))
                rules.add(some[written], later[written])
    return some[0]
