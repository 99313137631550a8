"""How soon a text begins that comes while others are written.

Whoever comes beside others is promised its first token within a few times what that would take alone. What
stands in the way of it gives way: drafts of others first, then a step of theirs. A promise that is broken by
far holds up nobody any more, and a prompt that takes long by itself is promised nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from specx.engine.generation import Generation
from specx.engine.plan import Plan

__all__ = ["PROMISE", "FirstTokens"]

PROMISE = 2.5  # times as long as alone
NEWCOMER = 24  # tokens of a prompt that somebody may come with while something is computed
LONGEST_MS = 250.0  # alone: a prompt that takes longer is promised nothing, as others would wait so long


class FirstTokens:
    """Those that wait for their first token, and until when it is promised to them.

    Args:
        plan: knows what steps cost.
        clock: seconds.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float]) -> None:
        self._plan, self._clock = plan, clock
        self._alone_ms: dict[Generation, float] = {}
        self._due: dict[Generation, float] = {}

    def promise(self, generation: Generation, since: float) -> None:
        """One that has begun, and came at `since` or later, waits from now on."""
        alone_ms = self.alone_ms(generation.left, generation.has_read)
        if self._plan.staircase.depths and alone_ms <= LONGEST_MS:
            self._alone_ms[generation] = alone_ms
            self._due[generation] = since + PROMISE * alone_ms / 1e3

    def forget(self, generation: Generation) -> None:
        """It has its first token, or wants none any more."""
        self._due.pop(generation, None)
        self._alone_ms.pop(generation, None)

    def waits(self, generation: Generation) -> bool:
        """Whether it was promised a token that it does not have yet."""
        return generation in self._due

    def slack_ms(self) -> float:
        """Milliseconds that others may take before the first promise is broken; negative where one is, and
        infinite where there is none. One that is broken by as much as the text takes alone is given up."""
        now, least = self._clock(), float("inf")
        for each, due in list(self._due.items()):
            slack_ms = (due - now) * 1e3 - self.alone_ms(each.left, each.has_read)
            if slack_ms < -self._alone_ms[each]:
                self.forget(each)
            else:
                least = min(least, slack_ms)
        return least

    @property
    def longest_ms(self) -> float:
        """Milliseconds that whoever comes next could wait for what is computed then."""
        return (PROMISE - 1) * self.alone_ms(NEWCOMER, 0) if self._plan.staircase.depths else float("inf")

    def alone_ms(self, tokens: int, length: int) -> float:
        """Milliseconds of reading so many tokens at that length, and of the step after them."""
        staircase = self._plan.staircase
        if not staircase.depths:
            return 0.0
        costs = staircase.all_costs(length)
        whole, rest = divmod(tokens, len(costs) - 1)
        return whole * float(costs[-1]) + (float(costs[rest]) if rest else 0.0) + float(costs[1])
