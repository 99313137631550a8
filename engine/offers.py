"""When a source of drafts that costs time is asked: the objective, with all time spent and to be spent in it.

After the free proposal such a source *offers* further tokens. It is asked for one after the other as long as
some number of them is expected to raise the rate of this step: what is spent stays in the denominator. Two
more reasons to ask are the same objective over more than one step.

- An *investment*: what has to be read or loaded before the first token serves later steps as well. What it
  would have gained in this step is noted, and once such gains sum up to its price it is made (ski rental:
  Karlin et al., 1988), so it costs at most twice what could have been saved. It stands outside the budget.
- *Exploration*: a source that is thought to be poor is asked now and then all the same, where a right token
  would pay, for at most INTEREST of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from specx.drafters.base import EMPTY_DRAFT, Draft, Offer
from specx.engine.budget import INTEREST, Asked, Decision, Terms

__all__ = ["Asking", "Reason"]

AHEAD = (1, 2, 4, 8, 16)  # further tokens of a source that are weighed at once

Best = Callable[[Terms, Sequence[Draft]], Decision]
"""The best step with these drafts of the texts."""

Expected = Callable[[Terms, Sequence[Draft], int, Draft, float], tuple[float, float]]
"""Expected tokens and milliseconds of the step if text i had a draft, for which so much time was spent."""


class Reason(Enum):
    """Why a source is asked."""

    GAIN = auto()
    INVESTMENT = auto()
    EXPLORATION = auto()


@dataclass(frozen=True, slots=True)
class _Weighed:
    """An offer, what it is expected to gain in milliseconds, and why it is worth its time."""

    offer: Offer
    gain_ms: float
    reason: Reason


class Asking:
    """Asks as often as that pays.

    Args:
        best, expected: the objective.
        clock: seconds.
    """

    def __init__(self, best: Best, expected: Expected, clock: Callable[[], float]) -> None:
        self._best, self._expected, self._clock = best, expected, clock
        self._credit_ms: dict[str, float] = {}  # what the next investment would have gained so far, by source
        self._exploring_ms = 0.0  # that may be spent without being expected to pay

    def earn(self, decision: Decision, step_ms: float) -> None:
        """A step took `step_ms` in all: a share of that may be spent on exploration."""
        for part in decision.parts:
            if part.asked is not None:
                self._exploring_ms -= part.asked.explored_ms
        self._exploring_ms += INTEREST * step_ms

    def ask(self, terms: Terms, drafts: list[Draft], i: int, free: Decision) -> Decision:
        """`free`, or what is better once the sources of text `i` were asked as often as that pays.

        Args:
            terms: what the step can be; what is spent is noted there.
            drafts: of all texts; that of text `i` grows.
            i: index of the text.
            free: what is best without.
        """
        best, tokens, invested_ms, explored_ms = free, 0, 0.0, 0.0
        while (found := self._most_worth(terms, drafts, i, best)) is not None:
            offer = found.offer
            start = self._clock()
            drafts[i] = offer.take()
            took_ms = (self._clock() - start) * 1e3
            if found.reason is Reason.INVESTMENT:
                self._credit_ms[offer.source] = 0.0
                invested = max(took_ms - offer.token_ms, 0.0)
                invested_ms, took_ms = invested_ms + invested, took_ms - invested
            elif found.reason is Reason.EXPLORATION:
                explored_ms += took_ms
            terms.spent_ms[i] += took_ms
            tokens += 1
            best = self._best(terms, drafts)
        if not tokens:
            return free
        alone = free.parts[i].expected, free.cost_ms
        asked = Asked(terms.spent_ms[i] + invested_ms, invested_ms, explored_ms, tokens, alone)
        parts = [
            replace(part, asked=before.asked) for part, before in zip(best.parts, free.parts, strict=True)
        ]
        parts[i] = replace(parts[i], asked=asked)
        return replace(best, parts=tuple(parts))

    def weigh(
        self, terms: Terms, drafts: Sequence[Draft], i: int, offer: Offer, best: Decision
    ) -> tuple[float, Reason | None]:
        """What the next token on offer is expected to gain, and why it is worth its time, if it is."""
        most, spent_ms = 0.0, terms.spent_ms[i]
        first_ms = spent_ms + offer.invest_ms + offer.token_ms
        for gain in self._gains(terms, drafts, i, offer, best):
            if gain > offer.invest_ms and terms.covers(i, first_ms):
                return gain - offer.invest_ms, Reason.GAIN
            most = max(most, gain)
        credit_ms = self._credit_ms[offer.source] = self._credit_ms.get(offer.source, 0.0) + most
        if most > 0 and credit_ms >= offer.invest_ms:
            return most, Reason.INVESTMENT
        if spent_ms == 0 and offer.explorable and self._may_explore(terms, i, offer, best):
            return 0.0, Reason.EXPLORATION
        return 0.0, None

    def _most_worth(self, terms: Terms, drafts: Sequence[Draft], i: int, best: Decision) -> _Weighed | None:
        """The offer to text `i` that is expected to gain most; None if none is worth its time."""
        found: _Weighed | None = None
        for offer in terms.jobs[i].drafting.offers(terms.rooms[i]):
            gain_ms, reason = self.weigh(terms, drafts, i, offer, best)
            if reason is not None and (found is None or gain_ms > found.gain_ms):
                found = _Weighed(offer, gain_ms, reason)
        return found

    def _gains(
        self, terms: Terms, drafts: Sequence[Draft], i: int, offer: Offer, best: Decision
    ) -> Iterator[float]:
        """Milliseconds that numbers of further tokens are expected to save, at least 0: the time that what
        they give takes at the rate of `best`, less the time it takes then."""
        for further in AHEAD:
            time_ms = terms.spent_ms[i] + further * offer.token_ms
            if further > offer.most or not terms.covers(i, time_ms):
                return
            expected, cost_ms = self._expected(terms, drafts, i, offer.forecast(further), time_ms)
            yield max(expected / best.rate - cost_ms, 0.0)

    def _may_explore(self, terms: Terms, i: int, offer: Offer, best: Decision) -> bool:
        """Whether a token may be asked for that is not expected to pay: rarely, and where it might."""
        time_ms = offer.invest_ms + offer.token_ms
        if self._exploring_ms < time_ms or not terms.covers(i, time_ms):
            return False
        self._exploring_ms = min(self._exploring_ms, 2 * time_ms)  # and not often in a row
        others = [EMPTY_DRAFT] * len(terms.jobs)
        for n in AHEAD:
            if n > offer.most:
                break
            certain = Draft.of_chain(range(n), [1.0] * n)
            expected, cost_ms = self._expected(terms, others, i, certain, n * offer.token_ms)
            if expected / cost_ms > best.rate:
                return True
        return False
