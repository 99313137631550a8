"""What a step costs that several texts take together.

It is the staircase of one text at the total number of rows, plus what attention adds for each text at its
depth, times what real steps of so many texts have shown since.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specx.engine.cost.staircase import CLIP, Staircase

__all__ = ["CompanyCosts", "fill_rows", "fill_width"]

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
ALIKE = 0.95  # of the highest rate: more texts take more memory, and each is finished later
FADES = 0.002  # per step: what was seen of other numbers of texts, as the machine may have changed since
LEAST_MS = 1e-6  # of any step
RATE = 0.1  # weight of one step in the running estimate, once there were enough of them


class CompanyCosts:
    """Milliseconds of a forward call by the widths and depths of several texts.

    Args:
        staircase: of one text.
    """

    def __init__(self, staircase: Staircase) -> None:
        self._staircase = staircase
        self._ratios: dict[int, tuple[float, int]] = {}  # by texts: real over computed, and steps seen

    def cost(self, widths: Sequence[int], lengths: Sequence[int]) -> float:
        """Of a step in which each text at its committed length has its width."""
        return self._computed(widths, lengths) * self._ratio(len(widths))

    def costs_by_width(self, lengths: Sequence[int], widest: int) -> NDArray[np.float64]:
        """(widest + 1,) by the width that all texts have; infinite at 0."""
        n = len(lengths)
        costs = self._alone(np.arange(widest + 1) * n) + self._deeper(lengths)[: widest + 1]
        costs[0] = np.inf
        return np.maximum(costs, LEAST_MS) * self._ratio(n)

    def costs_by_rows(self, lengths: Sequence[int], rows: int) -> NDArray[np.float64]:
        """(rows + 1,) by the rows of all texts, divided evenly; infinite where there is not one for each."""
        n, totals = len(lengths), np.arange(rows + 1)
        costs = self._alone(totals) + float(self._deeper(lengths)[1]) * totals / n
        costs[:n] = np.inf
        return np.maximum(costs, LEAST_MS) * self._ratio(n)

    def best_count(self, most: int, length: int, host_ms: float = 0.0) -> int:
        """The number of texts, at most `most`, that are written at the highest rate without drafts.

        Of numbers whose rates are alike it is the smallest; `most`, where nothing was measured undisturbed.

        Args:
            most: at least 1.
            length: tokens of each.
            host_ms: time outside the forward call for each.
        """
        if self._staircase.disturbed:
            return most
        rates = self.rates(most, length, host_ms)
        return next((n for n, rate in rates.items() if rate >= ALIKE * max(rates.values())), most)

    def rates(self, most: int, length: int, host_ms: float = 0.0) -> dict[int, float]:
        """Tokens a millisecond by the number of texts, which have no drafts; none where nothing was measured.

        As for `best_count`, but what was measured beside other work counts as well.
        """
        if not self._staircase.depths:
            return {}
        counts = [n for n in COUNTS if n < most] + [most]
        deeper = max(float(self._deeper([length])[1]), 0.0)
        costs = self._alone(np.array(counts)).tolist()
        return {
            n: n / ((cost + n * deeper) * self._ratio(n) + n * host_ms)
            for n, cost in zip(counts, costs, strict=True)
        }

    def observe(self, widths: Sequence[int], lengths: Sequence[int], ms: float) -> None:
        """A real step took `ms` milliseconds."""
        n = len(widths)
        ratio, seen = self._ratios.get(n, (1.0, 0))
        found = ms / self._computed(widths, lengths)
        if seen:
            found = min(max(found, ratio / CLIP), ratio * CLIP)
        weight = max(RATE, 1 / (seen + 1))
        now = ratio + weight * (found - ratio)
        for other, (before, count) in self._ratios.items():
            self._ratios[other] = before + FADES * (now - before), count
        self._ratios[n] = now, seen + 1

    def _ratio(self, n: int) -> float:
        """Of steps of so many texts; before any, that of the nearest number there were steps of."""
        if n in self._ratios:
            return self._ratios[n][0]
        nearest = min(self._ratios, key=lambda seen: abs(seen - n), default=None)
        return 1.0 if nearest is None else self._ratios[nearest][0]

    def _computed(self, widths: Sequence[int], lengths: Sequence[int]) -> float:
        rows, by_width = sum(widths), dict[int, list[int]]()
        for width, length in zip(widths, lengths, strict=True):
            by_width.setdefault(width, []).append(length)
        most = self._staircase.max_width
        cost = self._staircase.cost(min(rows, most), 0) * max(rows / most, 1.0)
        return max(cost + sum(float(self._deeper(of)[n]) for n, of in by_width.items()), LEAST_MS)

    def _alone(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of so many rows of one text in an empty context, or of as many as it can have and in proportion
        beyond."""
        most = self._staircase.max_width
        return self._staircase.all_costs(0)[np.minimum(rows, most)] * np.maximum(rows / most, 1.0)

    def _deeper(self, lengths: Sequence[int]) -> NDArray[np.float64]:
        """(max_width + 1,) what attention adds for all texts, by the width of each."""
        return self._staircase.total_costs(lengths) - self._staircase.all_costs(0) * len(lengths)


def fill_width(
    probs: Sequence[Sequence[float]], costs: NDArray[np.float64], spent_ms: float
) -> tuple[list[int], int, float]:
    """Nodes of each text, the width that all have, and milliseconds of the forward call, at the highest rate.

    Args:
        probs: of the nodes of each text's chain, never rising.
        costs: (W + 1,) milliseconds by the common width.
        spent_ms: time outside the forward call.
    """
    gains = np.full(len(costs), float(len(probs)))
    for chain in probs:
        reach = min(len(chain), len(costs) - 2)
        if reach > 0:
            sums = np.cumsum(chain[:reach])
            gains[2 : 2 + reach] += sums
            gains[2 + reach :] += sums[-1]
    width = 1 + int(np.argmax(gains[1:] / (costs[1:] + spent_ms)))
    return [min(len(chain), width - 1) for chain in probs], width, float(costs[width])


def fill_rows(
    probs: Sequence[Sequence[float]], costs: NDArray[np.float64], spent_ms: float
) -> tuple[list[int], int, float]:
    """The same where texts may differ in width: `costs` is by the rows of all, and the width given is 0."""
    n = len(probs)
    nodes = sorted(((p, i) for i, chain in enumerate(probs) for p in chain), key=lambda node: -node[0])
    nodes = nodes[: len(costs) - 1 - n]
    gains = n + np.concatenate(([0.0], np.cumsum([p for p, _ in nodes])))
    taken = int(np.argmax(gains / (costs[n : n + len(gains)] + spent_ms)))
    counts = [0] * n
    for _, i in nodes[:taken]:
        counts[i] += 1
    return counts, 0, float(costs[n + taken])
