"""Sessions in which nothing follows from what anything takes on the machine that runs the tests."""

from __future__ import annotations

import itertools

from specx.engine.cost.measuring import BetweenSteps
from specx.engine.cost.timing import unwatched
from specx.engine.offers import Asking, Reason
from specx.engine.plan import Plan


class Steady(Plan):
    """Steps take what they are expected to take, whatever they do."""

    def observe(self, decision, jobs, lengths, accepted, forward_ms, host_ms):
        expected_ms = decision.cost_ms - decision.spent_ms
        super().observe(decision, jobs, lengths, accepted, expected_ms, 0.0)


class Willing(Asking):
    """Asks whatever that costs."""

    def weigh(self, *_args):
        return 1.0, Reason.GAIN


def steadied(session, staircase, *, plan=Steady, asking=Asking, guess_ms=0.01):
    """`session` with a clock that ticks when it is read, and steps that take what they are expected to.

    Args:
        session: one just opened.
        staircase: milliseconds of steps by depth and width, as they are kept.
        plan, asking: classes of its plan.
        guess_ms: milliseconds that pass for draft models from one look at the clock to the next.
    """
    session.staircase.watch = unwatched
    session.staircase.load_json(staircase)
    ticks, guesses = itertools.count(), itertools.count()
    session.clock = lambda: next(ticks) * 1e-3
    session.between_steps = BetweenSteps(session.staircase, session.clock)
    if session.draft_models is not None:
        session.draft_models._clock = lambda: next(guesses) * guess_ms * 1e-3
        if session.draft_models.model is not None:  # a head that was named is taken up at once
            session.draft_models.model.clock = session.draft_models._clock
    limits = {"max_nodes": session.plan.max_nodes, "widths": session.plan.widths}
    session.plan = plan(session.staircase, **limits, clock=session.clock, asking=asking)
    return session
