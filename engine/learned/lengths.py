"""How long answers are, and how many a process writes: what an investment may still bring.

Lengths are kept as a life table (Cutler and Ederer, 1958): for each of some ranges of tokens, how many
answers ended in it and how many went on beyond it. An answer that was cut off at its limit says nothing of
the ranges beyond, and old answers fade. Where nothing is known the table says what Laplace's rule of
succession says: what has gone on for k tokens ends with the next one with probability 1 / (k + 2).

`Outlook.worth` is the rule by which everything is decided that costs time once and serves until the end:
loading a draft model, reading what it has not read, searching for one. The time is spent at the token where
that is expected to gain most, over all tokens at which it could be spent (the average-case ski rental of
Fujiwara and Iwama, 2005). With Laplace's rule that is where the gains missed so far have reached the price,
which is the deterministic ski rental of Karlin et al. (1988): it costs at most twice what the best choice in
hindsight does. So what nothing is known of and what is known well is decided by one rule.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from specx.backends.store import Store

__all__ = ["Lengths", "LifeTable", "Outlook"]

KIND = "lengths"  # of the entries in the store
EDGES = (0, 1, 2, 3, *(round(2 ** (i / 2)) for i in range(4, 33)))  # of the ranges; half an octave each
RANGES = len(EDGES) - 1
LONGEST = EDGES[-1]  # tokens of an answer that are foreseen
FADES = 1 / 64  # weight of a new answer among those remembered
PRIOR = 1.0  # answers that Laplace's rule counts for in each range


class LifeTable:
    """How long something goes on, in units that are counted from 0.

    Attributes:
        ended: for each range, how many ended in it; the older, the less they count.
        passed: for each range, how many went on beyond it.
    """

    def __init__(self, ended: Sequence[float] = (), passed: Sequence[float] = ()) -> None:
        self.ended = list(ended) or [0.0] * RANGES
        self.passed = list(passed) or [0.0] * RANGES

    def add(self, length: int, *, ended: bool) -> None:
        """One ended after `length` units, or was cut off there."""
        at = min(bisect_right(EDGES, length), RANGES) - 1
        self.ended = [count * (1 - FADES) for count in self.ended]
        self.passed = [count * (1 - FADES) + (i < at) for i, count in enumerate(self.passed)]
        if ended:
            self.ended[at] += 1

    def goes_on(self) -> list[float]:
        """For each range, the probability that what reaches it goes on beyond it, above 0."""
        return [
            (passed + PRIOR * (low + 1) / (high + 1)) / (passed + ended + PRIOR)
            for ended, passed, low, high in zip(self.ended, self.passed, EDGES, EDGES[1:], strict=False)
        ]

    def another(self, length: int) -> float:
        """The probability that what has reached `length` units goes on for one more."""
        at = min(bisect_right(EDGES, length), RANGES) - 1
        return float(self.goes_on()[at] ** (1 / (EDGES[at + 1] - EDGES[at])))

    def to_json(self) -> dict[str, list[float]]:
        """What `from_json` needs."""
        return {
            "ended": [round(count, 3) for count in self.ended],
            "passed": [round(count, 3) for count in self.passed],
        }

    @classmethod
    def from_json(cls, data: Any) -> LifeTable:
        """The table that `to_json` described.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        ended, passed = ([float(count) for count in data[name]] for name in ("ended", "passed"))
        if not len(ended) == len(passed) == RANGES or not all(0 <= n < 1e6 for n in (*ended, *passed)):
            raise ValueError("a life table holds a number of answers for each range")
        return cls(ended, passed)


@dataclass(frozen=True, slots=True)
class _Point:
    """A length, the probability to reach it, and the expected tokens beyond it."""

    at: float
    reached: float
    beyond: float


NEVER = _Point(LONGEST, 0.0, 0.0)


class Outlook:
    """What is to be expected of one answer and of those after it in the same process.

    Args:
        goes_on: as `LifeTable.goes_on` gives it; by default nothing is known.
        most: tokens after which the answer is cut off.
        another: probability that another answer follows one, in this process.

    Attributes:
        written: tokens of the answer so far.
    """

    def __init__(
        self, goes_on: Sequence[float] | None = None, *, most: float = LONGEST, another: float = 0.0
    ) -> None:
        self.written = 0
        self._another = another
        self._points = _points(LifeTable().goes_on() if goes_on is None else goes_on, most)

    @property
    def remaining(self) -> float:
        """Expected further tokens of this answer."""
        now = self._now()
        return now.beyond / now.reached

    def value(self, gain: float, open_ms: float) -> float:
        """Milliseconds that this process is expected to save if `open_ms` are spent now.

        Args:
            gain: milliseconds saved for each further token.
            open_ms: the price, which serves all answers.
        """
        another = self._another
        return gain * (self.remaining + self._points[0].beyond * another / (1 - another)) - open_ms

    def worth(
        self, gain: float, open_ms: float = 0.0, read_ms: float = 0.0, beside: Iterable[Outlook] = ()
    ) -> bool:
        """Whether time is best spent now that serves until the end of this process, or of this answer.

        Args:
            gain: milliseconds that it is expected to save for each further token.
            open_ms: the part of its price that serves all answers.
            read_ms: the part that serves one answer, and is to be paid for each.
            beside: answers that are written at the same time.
        """
        price, later, another = open_ms + read_ms, 0.0, 0.0
        if open_ms > 0:
            another = self._another
            usual = max(gain * self._points[0].beyond - read_ms, 0.0)  # what it brings a later answer
            later = usual * another / (1 - another)
            later += sum(max(gain * text.remaining - read_ms, 0.0) for text in beside)
        spare = price - later
        now = self._now()
        value = gain * now.beyond - spare * now.reached
        if value <= 0:
            return False
        fresh = self._at_best(gain, spare, another) if another else 0.0
        ahead = [point for point in self._points if point.at > now.at]
        waiting = max(
            gain * point.beyond - spare * point.reached + (now.reached - point.reached) * another * fresh
            for point in (*ahead, NEVER)
        )
        return value >= waiting

    def _at_best(self, gain: float, spare: float, another: float) -> float:
        """What is expected to be saved if a new answer begins, and the time is spent at the best length, in
        whichever answer is the first to reach it."""
        return max(
            (gain * point.beyond - spare * point.reached) / (1 - (1 - point.reached) * another)
            for point in (*self._points, NEVER)
        )

    def _now(self) -> _Point:
        """Between two points the probability to reach a length falls evenly."""
        points, at = self._points, float(self.written)
        i = bisect_right(points, at, key=lambda point: point.at)
        if i == len(points):
            return _Point(at, 1.0, 0.0)  # it is about to end
        before, after = points[i - 1], points[i]
        share = (at - before.at) / (after.at - before.at)
        reached = before.reached + share * (after.reached - before.reached)
        return _Point(at, reached, after.beyond + (after.at - at) * (reached + after.reached) / 2)


def _points(goes_on: Sequence[float], most: float) -> list[_Point]:
    """The edges up to `most`, and `most` itself."""
    lengths, reached = [0.0], [1.0]
    for low, high, stays in zip(EDGES, EDGES[1:], goes_on, strict=False):
        if low >= most:
            break
        share = (min(high, most) - low) / (high - low)
        lengths.append(float(min(high, most)))
        reached.append(reached[-1] * (1 - share * (1 - stays)))
    points = [_Point(lengths[-1], reached[-1], 0.0)]
    for i in range(len(lengths) - 2, -1, -1):
        area = (lengths[i + 1] - lengths[i]) * (reached[i] + reached[i + 1]) / 2
        points.append(_Point(lengths[i], reached[i], points[-1].beyond + area))
    return points[::-1]


class Lengths:
    """Answers of one model, and of the processes that write them, as they are remembered.

    Args:
        store: where they are kept.
        key: of the model.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._new: list[tuple[int, bool]] = []
        self._answers, self._processes = self._load()
        self._begun = 0  # answers of this process

    def begin(self, most: float, *, endless: bool = False, answers: int | None = None) -> Outlook:
        """An answer begins.

        Args:
            most: tokens after which it is cut off.
            endless: whether it ends there only.
            answers: how many this process writes in all, if that is known.
        """
        self._begun += 1
        goes_on = [1.0] * RANGES if endless else self._answers.goes_on()
        another = self._processes.another(self._begun - 1) if answers is None else 1 - self._begun / answers
        another = max(another, 0.0)
        return Outlook(goes_on, most=min(most, LONGEST), another=another)

    def usual(self) -> Outlook:
        """What is to be expected before an answer begins of which nothing is known."""
        another = self._processes.another(self._begun)
        return Outlook(self._answers.goes_on(), another=another)

    def add(self, length: int, *, ended: bool) -> None:
        """An answer ended after `length` tokens, or was cut off there."""
        self._answers.add(length, ended=ended)
        self._new.append((length, ended))

    def save(self, *, whole: bool = True) -> None:
        """Add what is new to what is kept.

        Args:
            whole: whether the number of answers of this process says how many others will write.
        """
        if not self._new:
            return
        with self._store.locked():  # another process may have added its own meanwhile
            self._answers, self._processes = self._load()
            for length, ended in self._new:
                self._answers.add(length, ended=ended)
            if whole:
                self._processes.add(max(self._begun - 1, 0), ended=True)
            kept = {"answers": self._answers.to_json(), "processes": self._processes.to_json()}
            self._store.save_json(KIND, self._key, kept)
        self._new.clear()

    def _load(self) -> tuple[LifeTable, LifeTable]:
        kept = self._store.load_parsed(
            KIND,
            self._key,
            lambda data: (LifeTable.from_json(data["answers"]), LifeTable.from_json(data["processes"])),
        )
        return kept or (LifeTable(), LifeTable())
