"""An alarm for drafts that are right far less often than they should be.

A cumulative-sum test (Page 1954): every scored token adds the log likelihood ratio of "half as often right as
expected" against "as expected", and the sum never falls below 0. While the expectation holds, the mean number
of tokens before a false alarm is at least exp(threshold) (Lorden 1971).
"""

from __future__ import annotations

import math

__all__ = ["FALSE_ALARM_TOKENS", "Collapse"]

FALSE_ALARM_TOKENS = 100_000
"""Scored tokens per false alarm, at least, as long as tokens are right as often as expected."""

THRESHOLD = math.log(FALSE_ALARM_TOKENS)
SHARE = 0.5  # of the expected rate: the collapse that is found the fastest
MOST_EXPECTED = 0.95  # no expectation is held to be surer: a few misses in a row are no collapse


class Collapse:
    """Watches one source of drafts."""

    def __init__(self) -> None:
        self._sum = self._expected = 0.0
        self._tokens = self._right = 0

    @property
    def alarm(self) -> bool:
        """Whether the tokens since some time ago are right far too rarely."""
        return self._sum > THRESHOLD

    @property
    def rates(self) -> tuple[float, float]:
        """Expected and observed share of right tokens since it began to look that way."""
        n = max(self._tokens, 1)
        return self._expected / n, self._right / n

    def observe(self, expected: float, right: bool) -> None:
        """A token that was `expected` to be right with this probability was right or not."""
        expected = min(expected, MOST_EXPECTED)
        ratio = SHARE if right else (1 - SHARE * expected) / (1 - expected)
        total = self._sum + math.log(ratio)
        if total <= 0:
            self.restart()
            return
        self._sum = total
        self._tokens += 1
        self._expected += expected
        self._right += right

    def restart(self) -> None:
        """Begin anew."""
        self._sum = self._expected = 0.0
        self._tokens = self._right = 0
