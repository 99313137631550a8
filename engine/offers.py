"""When a source of drafts that costs time is asked: the objective, with all time spent and to be spent in it.

After the free proposal such a source *offers* further tokens. It is asked for one after the other, or for
several in one call where it can check what others propose, as long as some number of them is expected to
raise the rate of this step: what is spent stays in the denominator. Two more reasons to ask are the same
objective over more than one step.

- An *investment*: what has to be read or loaded before the first token serves later steps as well. It is made
  where the rest of this process is expected to gain more from it than it costs, and no less than if it were
  made later (engine/learned/lengths.py). It stands outside the budget.
- *Exploration*: a source that is thought to be poor is asked now and then all the same, where it would pay if
  it were as good as it may well be by the few tokens that were scored lately, for at most INTEREST of the
  time, and from what the text has saved or earned. The less is known the more it may be; what was learned
  long ago counts for less (discounted upper confidence bounds: Garivier and Moulines, 2011).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from specx.drafters.base import EMPTY_DRAFT, Draft, Drafting, Offer
from specx.engine.budget import ALLOWANCE, INTEREST, Decision, Spent, Terms

__all__ = ["Asking", "Reason"]

AHEAD = (1, 2, 4, 8, 16)  # numbers of times that a source is asked, weighed at once
FADES = 1 / 32  # weight of a step in what a source is expected to gain: drafts that cost nothing come and go
LEARNED = 0.1  # and in what it has to read again
FORGETS = 1 / 1024  # share of what is known of a source that a step takes away
KNOWN = 50.0  # trials that a source is known by at most: estimates are made of as many
BOUND = 2.0  # standard deviations that it may be better than it is thought to be

Best = Callable[[Terms, Sequence[Draft]], Decision]
"""The best step with these drafts of the texts."""

Expected = Callable[[Terms, Sequence[Draft], int, Draft, float], tuple[float, float]]
"""Expected tokens and milliseconds of the step if text i had a draft, for which so much time was spent."""


class Reason(Enum):
    """Why a source is asked."""

    GAIN = auto()
    INVESTMENT = auto()
    EXPLORATION = auto()


@dataclass(slots=True)
class _Weighed:
    """An offer, what it is expected to gain in milliseconds, and why it is worth its time."""

    offer: Offer
    gain_ms: float
    reason: Reason


@dataclass(slots=True)
class _Promise:
    """What a source was expected to gain in steps for which it had something to load or to read.

    Older ones count for less.

    Attributes:
        ms: milliseconds.
        tokens: expected tokens of the text in the same steps.
        upkeep_ms: what it has to read in a step after one in which it was asked. That comes again and again,
            so it is no investment, but makes later steps gain less.
    """

    ms: float = 0.0
    tokens: float = 0.0
    upkeep_ms: float = 0.0
    _last: tuple[float, float] = (0.0, 0.0)

    def add(self, ms: float, tokens: float) -> None:
        """Another step."""
        self._last = max(ms - self.upkeep_ms, 0.0), tokens
        self.ms += self._last[0] - FADES * self.ms
        self.tokens += tokens - FADES * self.tokens

    def better(self, ms: float, tokens: float) -> None:
        """Another offer in the step that was added last: the better one counts."""
        before, now = self._last, (max(ms - self.upkeep_ms, 0.0), tokens)
        if now[0] > before[0]:
            self.ms, self.tokens, self._last = (
                self.ms + now[0] - before[0],
                self.tokens + tokens - before[1],
                now,
            )

    @property
    def by_token(self) -> float:
        """Milliseconds for each token that is written."""
        return self.ms / self.tokens


class Asking:
    """Asks as often as that pays.

    Args:
        best, expected: the objective.
        clock: seconds.
    """

    def __init__(self, best: Best, expected: Expected, clock: Callable[[], float]) -> None:
        self._best, self._expected, self._clock = best, expected, clock
        self._promises: dict[str, _Promise] = {}  # by source
        self._asked: set[tuple[Drafting, str]] = set()  # which drafting asked which source in this step
        self._asked_before: set[tuple[Drafting, str]] = set()  # and in the one before
        self._weighed: set[str] = set()  # sources of which an offer to the present text was
        self._exploring: dict[str, float] = {}  # ms by source that may be spent without being expected to pay
        self._known: dict[str, float] = {}  # trials by source; older ones count for less

    def earn(self, step_ms: float) -> None:
        """A step took `step_ms` in all: a share of that may be spent on exploration."""
        self._asked_before, self._asked = self._asked, set()
        for source in self._exploring:
            self._exploring[source] += INTEREST / len(self._exploring) * step_ms
        for source in self._known:
            self._known[source] *= 1 - FORGETS

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
            self._asked.add((terms.jobs[i].drafting, offer.source))
            if offer.source in self._known:
                self._known[offer.source] = min(self._known[offer.source] + 1, KNOWN)
            if found.reason is Reason.INVESTMENT or offer.record is None:  # whatever loads it is invested
                invested = max(took_ms - offer.token_ms - offer.first_ms, 0.0)
                invested_ms, took_ms = invested_ms + invested, took_ms - invested
            elif found.reason is Reason.EXPLORATION:
                explored_ms += took_ms
                self._exploring[offer.source] -= took_ms
            terms.spent_ms[i] += took_ms
            tokens += 1
            best = self._best(terms, drafts)
        if not tokens:
            return free
        alone = free.parts[i].expected, free.cost_ms
        spent = Spent(terms.spent_ms[i] + invested_ms, invested_ms, explored_ms, tokens, alone)
        for part, before in zip(best.parts, free.parts, strict=True):
            part.spent = before.spent
        best.parts[i].spent = spent
        return best

    def weigh(
        self, terms: Terms, drafts: Sequence[Draft], i: int, offer: Offer, best: Decision
    ) -> tuple[float, Reason | None]:
        """What an offer is expected to gain, and why it is worth its time, if it is."""
        source, spent_ms = offer.source, terms.spent_ms[i]
        covered_ms, before_ms = terms.covered_ms(i), spent_ms + offer.first_ms
        if self._asked_before and source not in self._weighed:
            self._keep_up((terms.jobs[i].drafting, source), offer)
        first_ms = before_ms + offer.invest_ms + offer.token_ms
        if offer.gain is None or terms.step is None:
            most, tokens = self._gain(terms, drafts, i, offer, best, covered_ms)
        else:
            rate = best.rate
            most, tokens = offer.gain(
                AHEAD, offer.most, before_ms, offer.token_ms, covered_ms, rate, terms.step
            )
        if most > offer.invest_ms and first_ms <= covered_ms:
            return most - offer.invest_ms, Reason.GAIN
        if offer.invest_ms > 0 and self._is_worth(
            terms, i, offer, most, tokens if most > 0 else best.parts[i].expected
        ):
            return most, Reason.INVESTMENT
        if spent_ms == 0 and self._may_explore(terms, i, offer, best):
            return 0.0, Reason.EXPLORATION
        return 0.0, None

    def _promise(self, offer: Offer) -> _Promise:
        return self._promises.setdefault(offer.source, _Promise(upkeep_ms=offer.upkeep_ms))

    def _keep_up(self, who: tuple[Drafting, str], offer: Offer) -> None:
        """Learn what a source that was asked in the step before has to read again."""
        if who in self._asked_before and who not in self._asked:
            promise = self._promise(offer)
            promise.upkeep_ms += LEARNED * (offer.invest_ms - promise.upkeep_ms)

    def _is_worth(self, terms: Terms, i: int, offer: Offer, gain_ms: float, tokens: float) -> bool:
        """Whether what is to be done before the first token on offer is best done now, where that token and
        others would gain so much in this step, which gives so many tokens of the text."""
        promise = self._promise(offer)
        if offer.source in self._weighed:
            promise.better(gain_ms, tokens)
        else:
            promise.add(gain_ms, tokens)
            self._weighed.add(offer.source)
        if gain_ms <= 0:
            return False
        beside = [job.outlook for j, job in enumerate(terms.jobs) if j != i]
        read_ms = offer.invest_ms - offer.open_ms
        return terms.jobs[i].outlook.worth(promise.by_token, offer.open_ms, read_ms, beside)

    def _most_worth(self, terms: Terms, drafts: Sequence[Draft], i: int, best: Decision) -> _Weighed | None:
        """The offer to text `i` that is expected to gain most; None if none is worth its time."""
        found: _Weighed | None = None
        self._weighed.clear()
        for offer in terms.jobs[i].drafting.offers(terms.rooms[i]):
            gain_ms, reason = self.weigh(terms, drafts, i, offer, best)
            if reason is not None and (found is None or gain_ms > found.gain_ms):
                found = _Weighed(offer, gain_ms, reason)
        return found

    def _gain(
        self, terms: Terms, drafts: Sequence[Draft], i: int, offer: Offer, best: Decision, covered_ms: float
    ) -> tuple[float, float]:
        """Milliseconds that asking as often as is best is expected to save, and tokens of text `i` then.

        Saved, at least 0, is the time that what it gives takes at the rate of `best`, less what it takes.
        """
        before_ms, rate = terms.spent_ms[i] + offer.first_ms, best.rate
        gain_ms, tokens, last_ms = 0.0, best.parts[i].expected, 0.0
        others = best.expected - tokens  # of the other texts
        for n in AHEAD:
            spent_ms = before_ms + n * offer.token_ms
            if n > offer.most or spent_ms > covered_ms:
                break
            expected, cost_ms = self._forecast(terms, drafts, i, offer.forecast(n), spent_ms)
            now_ms = max(expected / rate - cost_ms, 0.0)
            if now_ms > gain_ms:
                gain_ms, tokens = now_ms, expected - others
            if now_ms < last_ms:
                break
            last_ms = now_ms
        return gain_ms, tokens

    def _forecast(
        self,
        terms: Terms,
        drafts: Sequence[Draft],
        i: int,
        coming: Sequence[tuple[float, Draft]],
        spent_ms: float,
    ) -> tuple[float, float]:
        """Expected tokens and milliseconds of the step where text `i` has one of the drafts `coming`.

        Each has its probability; so much is spent for it by then.
        """
        tokens = cost_ms = 0.0
        for probability, draft in coming:
            expected, took_ms = self._expected(terms, drafts, i, draft, spent_ms)
            tokens += probability * expected
            cost_ms += probability * took_ms
        return tokens, cost_ms

    def _may_explore(self, terms: Terms, i: int, offer: Offer, best: Decision) -> bool:
        """Whether a token may be asked for that is not expected to pay: rarely, and where it well might."""
        time_ms = offer.invest_ms + offer.first_ms + offer.token_ms
        spare_ms = terms.covered_ms(i) - ALLOWANCE * terms.plain_ms  # that is for drafts that may pay
        may_ms = min(self._exploring.setdefault(offer.source, 0.0), 2 * time_ms)  # not often in a row
        self._exploring[offer.source] = may_ms
        if offer.record is None or may_ms < time_ms or time_ms > spare_ms:
            return False
        others = [EMPTY_DRAFT] * len(terms.jobs)
        hazard = self._at_most(offer.source, *offer.record())
        for n in AHEAD:
            if n > offer.most:
                break
            spent_ms = offer.first_ms + n * offer.token_ms
            draft = Draft.of_chain(range(n), [hazard ** (k + 1) for k in range(n)])
            expected, cost_ms = self._expected(terms, others, i, draft, spent_ms)
            if expected / cost_ms > best.rate:
                return True
        self._exploring[offer.source] = 0.0  # looked at again when as much has been earned
        return False

    def _at_most(self, source: str, likely: float, trials: int) -> float:
        """How often a source may well be right that is thought to be right so often.

        An upper confidence bound (Agresti and Coull, 1998).
        """
        known = self._known.setdefault(source, min(float(trials), KNOWN))
        weight = known + BOUND**2
        middle = (likely * known + BOUND**2 / 2) / weight
        return min(middle + BOUND * math.sqrt(middle * (1 - middle) / weight), 1.0)
