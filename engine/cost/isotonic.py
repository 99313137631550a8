"""Times that do not fall with the width of a step where only noise says that they do.

A wider step does all that a narrower one does, so a wider one that was timed cheaper was mostly lucky.
Isotonic regression finds the non-decreasing times that are nearest to what was measured, each weighted by how
sure it is: neighbours that contradict each other by noise get their common mean. A fall far beyond the noise
is kept: kernels work in groups of rows, and a full group can be cheaper than a part of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["isotonic", "monotone_steps"]

SIGNIFICANT = 5.0  # times the noise of a difference: chance hardly does that (5 standard deviations)


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing values of the least weighted squared distance to `values`.

    Args:
        values, weights: as many of each; weights are positive.
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight and number of neighbours that were pooled
    for value, sureness in zip(values, weights, strict=True):
        mean, weight, count = value, sureness, 1
        while blocks and blocks[-1][0] > mean:
            before, more, members = blocks.pop()
            mean = (mean * weight + before * more) / (weight + more)
            weight, count = weight + more, count + members
        blocks.append((mean, weight, count))
    return [mean for mean, _, count in blocks for _ in range(count)]


def monotone_steps(steps: Mapping[int, float], noise: Mapping[int, float], widest: int) -> dict[int, float]:
    """`steps` without falls that noise explains, and never cheaper than the narrowest width.

    Args:
        steps: milliseconds by width.
        noise: standard deviation of each in milliseconds, positive.
        widest: what is wider stays as it is.
    """
    known = sorted(n for n in steps if n <= widest)
    fitted = dict(steps)
    first = 0
    for i in range(1, len(known) + 1):
        if i < len(known) and not _falls(steps, noise, known[i - 1], known[i]):
            continue
        part = known[first:i]  # between two falls that are real
        values = isotonic([steps[n] for n in part], [noise[n] ** -2 for n in part])
        fitted.update(zip(part, values, strict=True))
        first = i
    for n in known:
        fitted[n] = max(fitted[n], fitted[known[0]])
    return fitted


def _falls(steps: Mapping[int, float], noise: Mapping[int, float], n: int, wider: int) -> bool:
    return steps[n] - steps[wider] > SIGNIFICANT * math.hypot(noise[n], noise[wider])
