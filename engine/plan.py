"""The objective: expected accepted tokens per second under measured costs, evaluated at every step.

    rate(S) = (N + sum of a(v) for v in S) / (t_host + t_verify(N + |S|, contexts))

over N texts, one sure token each. t_host is all the time spent outside the model, drafting included. For n
nodes the best tree is the n nodes of largest a(v), and a draft comes ordered that way, so one scan over its
prefixes finds the argmax; the empty prefix is plain decoding and always takes part. Several texts share one
step: either all their trees have one width, or the most promising nodes of all texts fill it.

The maximum is taken under a constraint that bounds what drafts can cost each text (engine/budget.py). Sources
that cost time are asked where that raises the same rate (engine/offers.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Facts
from specx.drafters.base import EMPTY_DRAFT, Draft, Room, StepCosts
from specx.engine.budget import Budget, Decision, Part, Planned, Terms
from specx.engine.cost.company import CompanyCosts, fill_rows, fill_width
from specx.engine.cost.governor import Governor
from specx.engine.cost.staircase import CLIP, Staircase
from specx.engine.cost.switching import Keeping, Switching
from specx.engine.offers import Asking

__all__ = ["Plan"]

TIME_RATE = 0.1  # weight of one step in the running averages of host and branch time
# Per step: the price of a branch fades while none is tried, so that one outlier does not end them.
PRICE_DECAY = 0.01


class Plan:
    """Chooses what to verify. Owns the staircase.

    Args:
        staircase: measured cost of a forward call for one text.
        max_nodes: most drafted tokens of a text per step, if the user limits them.
        widths: the only batch widths allowed (bit-identical ones), or None for all. With such a set a tree
            is a chain: an accepted branch would leave the cache in another order, or ask for other widths.
        clock: seconds.
        asking: decides when sources that cost time are asked.

    Attributes:
        asking: when sources that cost time are asked.
        governor: follows what other processes leave of the machine, if it is to be followed.
        longest_ms: of a forward call with drafts: somebody waits for it.
        narrowest: room that a step needs at least, in tokens.
    """

    def __init__(
        self,
        staircase: Staircase,
        *,
        max_nodes: int | None = None,
        widths: frozenset[int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        asking: type[Asking] = Asking,
    ) -> None:
        self.staircase = staircase
        self.company = CompanyCosts(staircase)
        self.governor: Governor | None = None
        self.asking = asking(self._best, self._expected, clock)
        self.max_nodes = max_nodes
        self.widths = widths
        self.longest_ms = float("inf")
        self.narrowest = min(widths) if widths else 1
        self._host_ms = 0.0  # of each text: all time outside the model, whatever is then chosen
        self._leaf_ms = 0.0
        self._switching = Switching()
        self._keeping: Keeping | None = None  # of the text that is written alone, where widths settle
        self._forbidden: NDArray[np.float64] | None = None
        if widths is not None:
            allowed = [n in widths for n in range(staircase.max_width + 1)]
            self._forbidden = np.where(allowed, 0.0, np.inf)

    @property
    def host_ms(self) -> float:
        """Milliseconds of each text in a step outside the model, on average."""
        return self._host_ms

    def begin(self, settles: int) -> None:
        """A text begins, alone, with a model whose steps settle so (`Facts.settles`)."""
        self._switching.begin(settles)
        self._keeping = Keeping() if settles > 1 and self.widths is None else None

    def after(self, rows: int) -> None:
        """A step of so many rows was computed that is none of a text's."""
        self._switching.after(rows)

    def choose(self, jobs: Sequence[Planned], facts: Facts) -> Decision:
        """The drafts and width of the highest expected rate, given what drafters propose now."""
        if self._keeping is not None and len(jobs) == 1 and not jobs[0].cache.again:
            return self._choose_kept(jobs[0], facts, self._keeping)
        terms = self._terms(jobs, facts)
        asked = _affording(terms)
        drafts = [EMPTY_DRAFT] * len(jobs)
        for i in asked:
            drafts[i] = jobs[i].drafting.propose(terms.rooms[i])
        best = self._best(terms, drafts)
        for i in asked:
            best = self.asking.ask(terms, drafts, i, best)
        return best

    def _choose_kept(self, job: Planned, facts: Facts, keeping: Keeping) -> Decision:
        """The same where steps keep their width, but for those that draft models and heads are asked for."""
        terms, change_ms = self._terms_alone([job], facts), self._switching.change_ms
        in_row = self.staircase.costs(job.cache.length)[: len(terms.costs)]
        plain_ms, one_leaf = float(in_row[1]), terms.rooms[0].leaves == 1
        if self._switching.known:
            job.budget.grant(2 * change_ms / plain_ms)
        most_ms = plain_ms * (1 + job.budget.steps)
        may = job.budget.steps > 0 and terms.rooms[0].limit > 0 and self._switching.known
        draft = job.drafting.propose(terms.rooms[0]) if may else EMPTY_DRAFT
        gains = [1.0, *(1.0 + np.cumsum(draft.probs, dtype=np.float64)).tolist()]
        possible = np.where(np.isfinite(terms.costs), in_row + self._host_ms, np.inf)
        width = keeping.choose(possible, gains, change_ms)
        left_ms = self._switching.left_ms(width)
        if width > 1 and float(in_row[width]) + left_ms > most_ms:
            width = 1
        elif keeping.saved_ms(width) * job.outlook.remaining < left_ms:
            width = keeping.width
        only = np.full(len(terms.costs), np.inf)
        only[width] = terms.costs[width]
        step = StepCosts(only, self._host_ms, self._leaf_ms, np.inf, one_leaf)
        best = self._best(replace(terms, costs=only, plain_ms=plain_ms, step=step), [draft])
        if not may:
            return best
        # What is asked for is charged with the change to its width and back: no row of it is foreseen.
        left = self._switching.all_left_ms(len(in_row) - 1)
        costs = np.where(np.isfinite(terms.costs), in_row + left, np.inf)
        dearer = max(most_ms / float(costs[1:].min()) - 1, 0.0)  # in steps that are no plain ones
        step = StepCosts(costs, self._host_ms, self._leaf_ms, dearer, one_leaf)
        terms = replace(terms, costs=costs, plain_ms=plain_ms, step=step)
        return self.asking.ask(terms, [draft], 0, best) if _affording(terms) else best

    def observe(
        self,
        decision: Decision,
        jobs: Sequence[Planned],
        lengths: Sequence[int],
        accepted: Sequence[int],
        forward_ms: float,
        host_ms: float,
    ) -> None:
        """What a step that verified `decision` gave.

        Args:
            decision: what was chosen.
            jobs: for these texts.
            lengths: their committed tokens before the step.
            accepted: how many drafted tokens of each came true.
            forward_ms: time of the step in the model.
            host_ms: and outside of it, that of sources which cost time excluded.
        """
        for job, count in zip(jobs, accepted, strict=True):
            job.outlook.written += count + 1
        self._host_ms += TIME_RATE * (host_ms / len(jobs) - self._host_ms)
        self.asking.earn(forward_ms + host_ms + decision.spent_ms)
        if self.governor is not None:
            rows = sum(len(part.draft) + 1 for part in decision.parts) + decision.again
            self.governor.observe(forward_ms / self.staircase.quiet_cost(rows, max(lengths)))
        if len(jobs) == 1:
            self._observe_one(decision, jobs[0].budget, lengths[0], accepted[0], forward_ms)
        else:
            self._observe_many(decision, jobs, lengths, accepted, forward_ms)

    def _terms(self, jobs: Sequence[Planned], facts: Facts) -> Terms:
        """What a step can be now."""
        return self._terms_alone(jobs, facts) if len(jobs) == 1 else self._terms_together(jobs, facts)

    def _terms_alone(self, jobs: Sequence[Planned], facts: Facts) -> Terms:
        """The same for one text.

        On a CPU the staircase holds single tokens after single tokens and wider steps after another width.
        Leaving single tokens costs the way back as well, which the step that leaves is charged with, and the
        step that comes back is not.
        """
        job = jobs[0]
        left, again = job.cache.room, len(job.cache.again)
        widest = max(1, min(facts.max_width - again, left))
        by_rows = self._costs(job.cache.length, facts)
        costs = by_rows[again : again + widest + 1]
        if self._forbidden is not None and left >= self.narrowest:
            costs = costs + self._forbidden[: len(costs)]
        if self.longest_ms < np.inf:
            costs = self._limited(costs, float(costs.min()))
        leaves = 1 if self.widths else job.cache.max_leaves
        rooms, budget = [self._room(widest, left, leaves)], job.budget.steps
        if not again:
            step = StepCosts(costs, self._host_ms, self._leaf_ms, budget, leaves == 1)
            return Terms(jobs, rooms, costs, step.plain_ms, False, [0.0], step)
        # In plain steps that read nothing again; so much more may be lost than without a draft.
        plain_ms = float(by_rows[1:].min())
        budget *= plain_ms / float(costs[1:].min())
        step = StepCosts(costs, self._host_ms, self._leaf_ms, budget, leaves == 1)
        return Terms(jobs, rooms, costs, plain_ms, False, [0.0], step, again)

    def _costs(self, length: int, facts: Facts) -> NDArray[np.float64]:
        """(max_width + 1,) milliseconds of the next step of a text alone, by its rows."""
        switching = self._switching
        if facts.settles == 1:
            return self.staircase.costs(length, switching.width, switching.change_ms)
        costs, kept = self.staircase.costs(length), switching.width
        if kept >= len(costs):  # several texts had more rows together
            return costs + switching.excess_ms(1)
        kept_ms = float(costs[kept]) + switching.excess_ms(kept)
        costs = costs + switching.excess_ms(1 if kept > 1 else 2)
        costs[kept] = kept_ms
        return costs

    def _terms_together(self, jobs: Sequence[Planned], facts: Facts) -> Terms:
        """The same for several texts, which take chains."""
        n, left = len(jobs), [job.cache.room for job in jobs]
        if facts.even:
            widest = max(1, min(facts.max_width, facts.max_rows // n, *left))
            costs = self.company.costs_by_width([job.cache.length for job in jobs], widest)
            plain_ms = float(costs[1])
            costs = self._limited(costs, plain_ms)
        else:
            widest = min(facts.max_width, facts.max_rows - n + 1)
            costs = self.company.costs_by_rows([job.cache.length for job in jobs], facts.max_rows)
            plain_ms = float(costs[n])
            costs = self._limited(costs, plain_ms)
        rooms = [self._room(min(facts.max_width, widest), room, 1) for room in left]
        return Terms(jobs, rooms, costs, plain_ms, facts.even, [0.0] * n)

    def _limited(self, costs: NDArray[np.float64], plain_ms: float) -> NDArray[np.float64]:
        """Infinite as well where a step takes too long, but for a plain one."""
        return np.where(costs > max(self.longest_ms, plain_ms), np.inf, costs)

    def _room(self, widest: int, left: int, leaves: int) -> Room:
        """What may be drafted where a step has at most so many rows, and the context room for so many.

        Nothing is committed that leaves less room than a step needs: the context then ends at the same token
        whatever is drafted.
        """
        most = widest - 1 if self.max_nodes is None else min(widest - 1, self.max_nodes)
        return Room(min(most, left - self.narrowest), leaves)

    def _best(self, terms: Terms, drafts: Sequence[Draft]) -> Decision:
        """The prefixes of `drafts` of the highest rate."""
        step = terms.step
        if step is None:
            return self._best_together(terms, drafts)
        draft, width, branches, gain, cost = step.best(drafts[0], terms.spent_ms[0])
        if branches:
            draft = draft.depth_first()  # of the way that comes first nothing has to be read again
        if width > (narrow := len(draft) + 1):
            if self._worth_padding(terms, step, width, narrow):
                draft = draft.padded(width - 1)
            else:
                cost += float(terms.costs[narrow]) - float(terms.costs[width])
        return Decision((Part(draft, branches, gain),), cost, terms.plain_ms, gain, terms.again)

    def _worth_padding(self, terms: Terms, step: StepCosts, wide: int, narrow: int) -> bool:
        """Whether a step is cheaper than a narrower one beyond the noise of their measurement, or the budget
        of the only text does not cover the drafts of the narrower one."""
        length, cost = terms.jobs[0].cache.length, float(terms.costs[narrow])
        if not np.isfinite(cost) or (narrow > 1 and cost > step.affordable_ms(terms.spent_ms[0])):
            return True
        noise = self.staircase.noise(wide, length) + self.staircase.noise(narrow, length)
        return cost - float(terms.costs[wide]) > noise

    def _best_together(self, terms: Terms, drafts: Sequence[Draft]) -> Decision:
        """The same for several texts: chains of one width, or the most promising nodes of all."""
        chains = [draft.likeliest_chain() if len(draft) else draft for draft in drafts]
        probs = [
            chain.probs[: min(cap, room.limit)].tolist() if len(chain) else []
            for chain, cap, room in zip(chains, terms.caps(), terms.rooms, strict=True)
        ]
        spent_ms = self._host_ms * len(drafts) + sum(terms.spent_ms)
        fill = fill_width if terms.even else fill_rows
        counts, width, cost = fill(probs, terms.costs, spent_ms)
        parts = [
            Part(chain.head(count).padded(width - 1), 0, 1.0 + sum(listed[:count]))
            for chain, count, listed in zip(chains, counts, probs, strict=True)
        ]
        expected = sum(part.expected for part in parts)
        return Decision(tuple(parts), cost + spent_ms, terms.plain_ms, expected)

    def _expected(
        self, terms: Terms, drafts: Sequence[Draft], i: int, draft: Draft, spent_ms: float
    ) -> tuple[float, float]:
        """Expected tokens and milliseconds of the step if text `i` had `draft`, for which `spent_ms` went."""
        if terms.step is not None:
            *_, expected, cost_ms = terms.step.best(draft, spent_ms)
            return expected, cost_ms
        changed, before = list(drafts), terms.spent_ms[i]
        changed[i], terms.spent_ms[i] = draft, spent_ms
        decision = self._best_together(terms, changed)
        terms.spent_ms[i] = before
        return decision.expected, decision.cost_ms

    def _observe_one(
        self, decision: Decision, budget: Budget, length: int, accepted: int, forward_ms: float
    ) -> None:
        part, plain_ms = decision.parts[0], decision.plain_ms
        n = len(part.draft) + 1 + decision.again
        switching, cost = self._switching, self.staircase.cost(n, length)
        settled, paid_for, beyond_ms = switching.settled(n), switching.for_drafts(n), switching.beyond_ms(n)
        switching.observe(n, forward_ms, cost)
        if self._keeping is not None:
            self._keeping.observe(n, accepted + 1)
        usual = cost + max(beyond_ms, 0.0)
        took = min(forward_ms, CLIP * usual)
        lost = took / plain_ms - 1 - accepted if paid_for else 0.0
        if part.spent is not None:
            lost += (part.spent.ms - part.spent.invested_ms) / plain_ms
        budget.settle(accepted, lost)
        if part.leaves:
            self._leaf_ms += TIME_RATE * (max((took - usual) / part.leaves, 0.0) - self._leaf_ms)
            return
        self._leaf_ms *= 1 - PRICE_DECAY
        if n > 1 or settled or forward_ms < cost:  # a single token cheaper than thought tells so at once
            told = max(forward_ms - beyond_ms, cost / CLIP) if n > 1 else forward_ms
            self.staircase.observe(n, length, told)

    def _observe_many(
        self,
        decision: Decision,
        jobs: Sequence[Planned],
        lengths: Sequence[int],
        accepted: Sequence[int],
        forward_ms: float,
    ) -> None:
        """Each text pays for its part of what the step took longer than a plain one."""
        widths = [len(part.draft) + 1 for part in decision.parts]
        self._switching.after(sum(widths))
        plain_ms, cost = decision.plain_ms, self.company.cost(widths, lengths)
        extra = max(min(forward_ms, CLIP * cost) - plain_ms, 0.0) / plain_ms
        drafted = [int(np.count_nonzero(part.draft.probs)) for part in decision.parts]
        for part, job, n, count in zip(decision.parts, jobs, drafted, accepted, strict=True):
            lost = extra * n / sum(drafted) - count if n else 0.0
            if part.spent is not None:
                lost += (part.spent.ms - part.spent.invested_ms) / plain_ms
            job.budget.settle(count, lost)
        self.company.observe(widths, lengths, forward_ms)


def _affording(terms: Terms) -> list[int]:
    """The texts that may have drafts: there is room, something to gain, and the budget covers a step wider
    than the narrowest."""
    if terms.step is not None:
        owes = terms.jobs[0].budget.steps < 0  # steps turned out dearer than they are thought to be
        affords = not owes and terms.step.wider_ms <= terms.step.affordable_ms()
        return [0] if affords and terms.rooms[0].limit > 0 else []
    if terms.full:
        return []
    caps = terms.caps()
    return [i for i, room in enumerate(terms.rooms) if room.limit > 0 and caps[i] > 0]
