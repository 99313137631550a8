"""Intervals that hold what they promise for few and uneven measurements.

Means are of logarithms, so that a ratio and its inverse weigh the same, and their intervals are Student's t.
In simulations of answers with and without hiccups (3 rounds, 600 runs each) these covered the truth in 93 to
96 of 100 runs from 3 prompts on; percentile and BCa bootstraps did in 68 to 83 for 3 to 5 prompts and below
92 up to 10, and the studentised bootstrap, which comes close from 5 prompts on, was wider. Medians have the
interval of the sign test, which needs no assumption at all.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

__all__ = [
    "LEVEL",
    "Estimate",
    "Noise",
    "mean_interval",
    "median_interval",
    "repeat_interval",
    "repeat_noise",
    "t_quantile",
]

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and the interval that holds its truth in 95 of 100 cases; ends of None are unknown."""

    value: float
    low: float | None = None
    high: float | None = None

    def transformed(self, function: Callable[[float], float]) -> Estimate:
        """The estimate of an increasing function of the number."""
        ends = (None if end is None else function(end) for end in (self.low, self.high))
        return Estimate(function(self.value), *ends)

    def excludes(self, value: float) -> bool:
        """Whether `value` is beyond what noise explains."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of values drawn independently, with Student's t interval if there are at least two.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("a mean needs values")
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


@dataclass(frozen=True, slots=True)
class Noise:
    """How much repeating the same thing differs.

    Attributes:
        variance: of one repetition.
        freedom: degrees of freedom it was estimated with; 0 if nothing was repeated.
    """

    variance: float
    freedom: int


def repeat_noise(groups: Sequence[Sequence[float]]) -> Noise:
    """The spread within groups of repeated values, pooled; that between groups is no noise."""
    freedom = sum(len(group) - 1 for group in groups if group)
    squares = math.fsum((v - statistics.fmean(group)) ** 2 for group in groups if group for v in group)
    return Noise(squares / freedom if freedom else 0.0, freedom)


def repeat_interval(groups: Sequence[Sequence[float]], noise: Noise) -> Estimate:
    """The mean over groups of their means, with the interval that repeating the same groups would give.

    Args:
        groups: repeated values of each group, at least one each.
        noise: of one repetition, from these groups or from more of their kind.

    Raises:
        ValueError: there are no groups.
    """
    if not groups:
        raise ValueError("a mean needs values")
    mean = math.fsum(map(statistics.fmean, groups)) / len(groups)
    if not noise.freedom:
        return Estimate(mean)
    variance = noise.variance * math.fsum(1 / len(group) for group in groups) / len(groups) ** 2
    half = t_quantile(noise.freedom) * math.sqrt(variance)
    return Estimate(mean, mean - half, mean + half)


def median_interval(values: Sequence[float]) -> Estimate:
    """The median, with the order statistics around it that hold the true one at least `LEVEL` of the time.

    Fewer than six values have no such interval.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a median needs values")
    ordered, n = sorted(values), len(values)
    below, tail = 0.0, -1
    for k in range(n // 2):  # P(at most k of n values lie below the median)
        below += math.comb(n, k) / 2**n
        if 2 * below > 1 - LEVEL:
            break
        tail = k
    if tail < 0:
        return Estimate(statistics.median(ordered))
    return Estimate(statistics.median(ordered), ordered[tail], ordered[n - 1 - tail])


@cache
def t_quantile(freedom: int) -> float:
    """What Student's t with `freedom` degrees exceeds in absolute value once in 20 times.

    Raises:
        ValueError: there is no degree of freedom.
    """
    if freedom < 1:
        raise ValueError("Student's t has at least one degree of freedom")
    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < LEVEL else (low, middle)
    return (low + high) / 2


def _t_within(t: float, freedom: int) -> float:
    """P(|T| <= t): the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cos2 * k / (k + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
