"""Tables of steps, and what follows for widths that were not timed.

These lie between those that were, along another depth, or along the same with another number of threads.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.engine.cost.isotonic import monotone_steps
from specx.engine.cost.timing import TILES
from specx.kernels._native import CLIP

__all__ = ["Steps", "corrected", "filled", "following", "interpolated", "read_table", "widest"]

NOISE = 0.02  # of a time of which nothing is known but the time; the median of what is measured undisturbed
LEAST, MOST = 1e-6, 1e9  # a kept number beyond was not measured, and cannot be reckoned with
Steps = dict[int, float]


def read_table(data: Mapping[str, Any]) -> tuple[dict[int, Steps], dict[int, Steps]]:
    """Milliseconds, and noise where it is known, by depth and width, of a table as it is kept.

    Raises:
        ValueError, TypeError, AttributeError: it is something else.
    """
    depths: dict[int, Steps] = {}
    noise: dict[int, Steps] = {}
    for key, kept in data.items():
        depth = int(key)
        depths[depth], noise[depth] = {}, {}
        for n, value in kept.items():
            if isinstance(value, list):
                ms, noise[depth][int(n)] = map(float, value)
                depths[depth][int(n)] = ms
            elif value is not None:
                depths[depth][int(n)] = float(value)
    both = (*depths.values(), *noise.values())
    if any(not 1 <= n <= MOST or not LEAST < value < MOST for s in both for n, value in s.items()):
        raise ValueError("a staircase holds positive times of positive widths")
    if any(not 0 <= d <= MOST or 1 not in s for d, s in depths.items()):
        raise ValueError("a staircase begins with the time of one token")
    return depths, noise


def corrected(steps: Steps, noise: Steps, made: Steps) -> dict[str, Any]:
    """Times of a depth as they are kept, moved half of the way to what real steps take.

    Widths that no step had between two that had follow these where both were off to the same side: else they
    would look dear, or cheap, beside them for ever.

    Args:
        steps, noise: milliseconds by width, and their relative noise where it is known.
        made: what real steps made of a time, a factor, of the widths that they had.
    """
    seen = sorted(made)

    def change(n: int) -> float:
        i = bisect_left(seen, n)
        if n in made or not 0 < i < len(seen):
            return made.get(n, 1.0)
        below, above = math.log(made[seen[i - 1]]), math.log(made[seen[i]])
        share = (n - seen[i - 1]) / (seen[i] - seen[i - 1])
        return math.exp(below + share * (above - below)) if below * above > 0 else 1.0

    times = {n: ms * min(change(n), CLIP) ** 0.5 for n, ms in steps.items()}
    return {str(n): [ms, noise[n]] if n in noise else ms for n, ms in times.items()}


def widest(steps: Mapping[str, Any]) -> int:
    """The widest step there could have been when a depth was measured, in the form of the store."""
    return max(int(n) for n in steps)


def filled(
    depths: Mapping[int, Steps], noise: Mapping[int, Steps], max_width: int
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Times of all widths, and their relative noise: (max_width + 1,) each, by depth.

    At the depth with most widths they are interpolated; elsewhere the difference to that depth is, which
    keeps the shape of the steps.

    Args:
        depths: measured milliseconds by depth and width; at least one depth.
        noise: standard deviations relative to the times, where they are known.
        max_width: the widest.
    """
    base = max(sorted(depths), key=lambda d: (len(depths[d]), -d))
    fitted = {depth: _fitted(steps, noise[depth]) for depth, steps in depths.items()}
    shape = interpolated(fitted[base], max_width)
    tables = {}
    for depth, steps in fitted.items():
        known = {n: ms - float(shape[n]) for n, ms in steps.items() if n <= max_width}
        table = np.maximum(shape + interpolated(known, max_width), 0.5 * shape)
        table[1 : TILES + 1] = np.maximum(table[1 : TILES + 1], table[1])
        noises = noise[depth] or {1: NOISE}
        known_at = sorted(noises)
        values = [noises[n] for n in known_at]
        tables[depth] = table, np.interp(np.arange(max_width + 1), known_at, values)
    return tables


def interpolated(steps: Mapping[int, float], max_width: int) -> NDArray[np.float64]:
    """Values at 0..max_width, from those at some widths; beyond the widest along the last step."""
    widths = np.arange(max_width + 1, dtype=np.float64)
    known = sorted(steps)
    values = [steps[n] for n in known]
    if len(known) == 1:
        return values[0] * np.maximum(widths / known[0], 1.0)
    slope = (values[-1] - values[-2]) / (known[-1] - known[-2])
    beyond = values[-1] + (widths - known[-1]) * max(slope, 0.0)
    return np.where(widths > known[-1], beyond, np.interp(widths, known, values))


def following(timed: Mapping[int, float], like: Callable[[int], float], widths: Mapping[int, float]) -> Steps:
    """Times of `widths` that follow from a few that were timed.

    Args:
        timed: milliseconds by width.
        like: milliseconds of a width where all are known, with another number of threads.
        widths: times there, at the depth that is asked for.
    """
    known = sorted(timed)
    ratios = [timed[n] / like(n) for n in known]
    return {n: ms * float(np.interp(n, known, ratios)) for n, ms in widths.items()}


def _fitted(steps: Steps, noise: Mapping[int, float]) -> Steps:
    """Measured times without falls that noise explains."""
    return monotone_steps(steps, {n: ms * noise.get(n, NOISE) for n, ms in steps.items()}, TILES)
