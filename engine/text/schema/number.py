"""The numbers between two bounds, as automata over their digits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from math import gcd, lcm
from typing import NamedTuple

from specx.engine.text.schema.automaton import Automaton, automaton
from specx.engine.text.schema.chars import Chars

__all__ = ["FRACTION_DIGITS", "WHOLE_DIGITS", "Bounds", "between"]

# A model that has begun a number may go on for ever: more digits than these have no use.
WHOLE_DIGITS = 40
COUNTED = 10  # multiples up to this one have their digits counted; a state for every rest and digit is much
FRACTION_DIGITS = 20
GREATEST = 10 ** (
    WHOLE_DIGITS + 99
)  # above what is written where there are no bounds: exponents have two digits


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which numbers are meant.

    Attributes:
        low, high: the least and the greatest, or None.
        low_open, high_open: whether these themselves are left out.
        multiple: what all are multiples of, if that is demanded.
        excluded: numbers that are not meant.
        fractional: whether whole numbers are not meant.
    """

    low: Decimal | None = None
    low_open: bool = False
    high: Decimal | None = None
    high_open: bool = False
    multiple: Fraction | None = None
    excluded: frozenset[Decimal] = frozenset()
    fractional: bool = False

    def both(self, other: Bounds) -> Bounds:
        """The numbers that both mean."""
        low, low_open = _tighter((self.low, self.low_open), (other.low, other.low_open), 1)
        high, high_open = _tighter((self.high, self.high_open), (other.high, other.high_open), -1)
        multiple = self.multiple or other.multiple
        if self.multiple and other.multiple:
            a, b = self.multiple, other.multiple
            multiple = Fraction(lcm(a.numerator, b.numerator), gcd(a.denominator, b.denominator))
        excluded, fractional = self.excluded | other.excluded, self.fractional or other.fractional
        return Bounds(low, low_open, high, high_open, multiple, excluded, fractional)

    def needed(self) -> Bounds:
        """Without limits that no number passes which is written without them."""
        low, high = self.low, self.high
        small_low = low is None or low < 10**WHOLE_DIGITS
        small_high = high is None or high > -(10**WHOLE_DIGITS)
        found = self
        if self.multiple is None and high is not None and high >= GREATEST and small_low:
            found = replace(found, high=None, high_open=False)
        if self.multiple is None and low is not None and low <= -GREATEST and small_high:
            found = replace(found, low=None, low_open=False)
        return found

    def hold(self, value: int | Decimal) -> bool:
        """Whether `value` is meant."""
        number = Decimal(value)
        if number in self.excluded or (self.fractional and number == number.to_integral_value()):
            return False
        if self.low is not None and (number < self.low or (self.low_open and number == self.low)):
            return False
        if self.high is not None and (number > self.high or (self.high_open and number == self.high)):
            return False
        return self.multiple is None or (Fraction(number) / self.multiple).denominator == 1


def _tighter(
    a: tuple[Decimal | None, bool], b: tuple[Decimal | None, bool], sign: int
) -> tuple[Decimal | None, bool]:
    if a[0] is None or b[0] is None:
        value, is_open = b if a[0] is None else a
        return value, is_open and value is not None
    if a[0] == b[0]:
        return a[0], a[1] or b[1]
    return a if (a[0] > b[0]) == (sign > 0) else b


class _State(NamedTuple):
    """Where the reading of a number is.

    Attributes:
        phase: "start", "sign", "zero" (a leading one), "whole", "point" or "fraction".
        negative: whether a minus was read.
        digits: how many of the whole part were read, as far as that matters.
        places: how many after the point.
        low, high: how the magnitude so far compares with the lower and the upper limit: -1, 0, 1.
        rest: the magnitude so far, modulo what it is to be a multiple of.
    """

    phase: str = "start"
    negative: bool = False
    digits: int = 0
    places: int = 0
    low: int = 0
    high: int = 0
    rest: int = 0


def between(bounds: Bounds, *, whole: bool) -> Automaton:
    """The numbers within `bounds` in JSON's notation, without exponents.

    Args:
        bounds: which.
        whole: only those without a point.

    Raises:
        GrammarError: that takes too many states.
    """
    readers = [_Reader(bounds, whole=whole)]
    without = [Bounds(each, False, each, False) for each in sorted(bounds.excluded)]
    without += [Bounds(multiple=Fraction(1))] * bounds.fractional
    readers += [_Reader(each, whole=whole) for each in without]
    longest, finest = max(each.longest for each in readers), max(each.finest for each in readers)
    automata = [each.automaton(longest, finest) for each in readers]  # all with as many digits
    return reduce(Automaton.without, automata)


class _Limit:
    """A magnitude that others are compared with, digit by digit."""

    def __init__(self, value: Decimal | None, *, is_open: bool) -> None:
        self.value = value
        self.is_open = is_open
        self.whole, self.fraction = _digits(value) if value is not None and value >= 0 else ("", "")

    def compare(self, so_far: int, digit: int, place: int, *, after_point: bool) -> int:
        """How the magnitude compares once `digit` was read at `place` of its part."""
        if so_far:
            return so_far
        part = self.fraction if after_point else self.whole
        other = int(part[place]) if place < len(part) else 0
        return (digit > other) - (digit < other)

    def whole_read(self, so_far: int, digits: int) -> int:
        """The comparison at the end of a whole part of so many digits."""
        if digits != len(self.whole):
            return 1 if digits > len(self.whole) else -1
        return so_far

    def end(self, so_far: int, places: int) -> int:
        """The comparison at the end of a fraction of so many digits; no fraction ends in zeros here."""
        return -1 if not so_far and places < len(self.fraction) else so_far


class _Reader:
    """The moves of the automaton: both limits at once, for either sign."""

    def __init__(self, bounds: Bounds, *, whole: bool) -> None:
        low, high = bounds.low, bounds.high
        self.limits = {
            False: (_Limit(low, is_open=bounds.low_open), _Limit(high, is_open=bounds.high_open)),
            True: (
                _Limit(None if high is None else high.copy_negate(), is_open=bounds.high_open),
                _Limit(None if low is None else low.copy_negate(), is_open=bounds.low_open),
            ),
        }
        everyone = [limit for pair in self.limits.values() for limit in pair]
        self.longest = max(len(limit.whole) for limit in everyone)
        self.finest = max(len(limit.fraction) for limit in everyone)
        self.whole = whole
        self.divides = bounds.multiple is not None
        multiple = bounds.multiple or Fraction(0)
        self.scale = next(k for k in range(multiple.denominator + 1) if 10**k % multiple.denominator == 0)
        self.modulus = int(multiple * 10**self.scale) or 1
        self.counts = self.modulus <= COUNTED

    def automaton(self, longest: int, finest: int) -> Automaton:
        """The automaton, for numbers that may have more digits than these before and after the point."""
        self.longest, self.finest = longest, finest
        return automaton(_State(), lambda state: list(self.moves(state)), self.ends)

    def moves(self, state: _State) -> Iterator[tuple[Chars, _State]]:
        """What may follow a state."""
        phase = state.phase
        if phase == "start":
            yield ((0x2D, 0x2D),), _State("sign", True)
        if phase in ("start", "sign"):
            for digit in range(1 if phase == "sign" and self.whole else 0, 10):
                after = self.digit(state._replace(phase="whole"), digit)
                yield _one(digit), after if digit else after._replace(phase="zero")
        if phase == "whole" and (state.digits < max(WHOLE_DIGITS, self.longest + 1) or not self.counts):
            yield from ((_one(digit), self.digit(state, digit)) for digit in range(10))
        if phase in ("zero", "whole") and not self.whole:
            low, high = self.limits[state.negative]
            yield (
                ((0x2E, 0x2E),),
                state._replace(
                    phase="point",
                    digits=0,
                    low=low.whole_read(state.low, state.digits),
                    high=high.whole_read(state.high, state.digits),
                ),
            )
        if phase in ("point", "fraction") and state.places < max(FRACTION_DIGITS, self.finest + 1):
            yield from ((_one(digit), self.place(state, digit)) for digit in self.fraction_digits(state))

    def fraction_digits(self, state: _State) -> range:
        """Only zeros where a multiple has no digits."""
        return range(1 if self.divides and state.places >= self.scale else 10)

    def digit(self, state: _State, digit: int) -> _State:
        """One more digit of the whole part."""
        low, high = self.limits[state.negative]
        counted = WHOLE_DIGITS + 1 if self.counts else 0
        return state._replace(
            digits=min(state.digits + 1, max(self.longest + 1, counted)),
            low=low.compare(state.low, digit, state.digits, after_point=False),
            high=high.compare(state.high, digit, state.digits, after_point=False),
            rest=(state.rest * 10 + digit) % self.modulus,
        )

    def place(self, state: _State, digit: int) -> _State:
        """One more digit after the point."""
        low, high = self.limits[state.negative]
        rest = (state.rest * 10 + digit) % self.modulus if state.places < self.scale else state.rest
        return state._replace(
            phase="fraction",
            places=state.places + 1,
            low=low.compare(state.low, digit, state.places, after_point=True),
            high=high.compare(state.high, digit, state.places, after_point=True),
            rest=rest,
        )

    def ends(self, state: _State) -> bool:
        """Whether a number of the set may end in a state."""
        if state.phase not in ("zero", "whole", "fraction"):
            return False
        low, high = self.limits[state.negative]
        below, above = state.low, state.high
        if state.phase != "fraction":
            below, above = low.whole_read(below, state.digits), high.whole_read(above, state.digits)
        places = state.places
        fits = state.rest * 10 ** max(self.scale - places, 0) % self.modulus == 0
        at_least = _holds(low, low.end(below, places), 1)
        return fits and at_least and _holds(high, high.end(above, places), -1)


def _holds(limit: _Limit, comparison: int, sign: int) -> bool:
    """Whether a magnitude that compares so with a limit is on the right side of it; sign 1 is above."""
    if limit.value is None:
        return True
    if limit.value < 0:  # all magnitudes are above it
        return sign > 0
    return comparison == sign or (comparison == 0 and not limit.is_open)


def _one(digit: int) -> Chars:
    return ((0x30 + digit, 0x30 + digit),)


def _digits(value: Decimal) -> tuple[str, str]:
    """The digits before and after the point, no zeros at the outer ends; "0" before it at least."""
    whole, _, fraction = f"{value.copy_abs():f}".partition(".")
    return whole.lstrip("0") or "0", fraction.rstrip("0")
