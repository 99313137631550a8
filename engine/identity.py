"""Which batch widths give bit-identical logits on this backend, measured.

A kernel may add up in another order when it computes more rows at once. Two widths are *identical* if
every row of a sequence computed in batches of the one equals, bit for bit, the row computed in batches of
the other, at every depth tried. Tokens chosen over identical logits are equal by construction; elsewhere a
near-tie may fall the other way, and the largest difference seen says how near is near.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Backend

__all__ = ["Identity", "measure_identity"]

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
ROWS = 16  # rows compared at each depth
DEPTHS = (64, 640)  # on both sides of 512 padded cells, where llama.cpp's attention path changes


@dataclass(frozen=True, slots=True)
class Identity:
    """The classes of identical widths.

    Attributes:
        classes: disjoint classes of widths whose logits are bit-identical at every depth, largest first.
        difference: largest absolute difference of a logit between any two widths.
        depths: context depths at which it was measured, in tokens.
    """

    classes: tuple[tuple[int, ...], ...]
    difference: float
    depths: tuple[int, ...]

    @property
    def widths(self) -> frozenset[int]:
        """The class to hold the plan to: the largest, for it speculates best."""
        return frozenset(self.classes[0])

    @property
    def exact(self) -> bool:
        """Whether all widths are identical."""
        return len(self.classes) == 1


def measure_identity(
    backend: Backend, tokens: Sequence[int], *, depths: Sequence[int] = DEPTHS, widths: Sequence[int] = WIDTHS
) -> Identity:
    """Compare widths on an empty backend; leaves it empty.

    Args:
        backend: holds no committed tokens.
        tokens: text to compute, at least max(depths) + 16 tokens; shallower depths are used if it is short.
        depths: context depths in tokens.
        widths: widths to compare.
    """
    widths = [n for n in widths if n <= backend.max_width]
    limit = min(len(tokens), backend.n_ctx) - 2 * ROWS
    tried = tuple(depth for depth in depths if depth <= limit) or (max(0, limit),)
    ids: dict[int, list[int]] = {n: [] for n in widths}
    worst = 0.0
    for depth in tried:
        rows = _rows_by_width(backend, tokens, depth, widths)
        groups: list[int] = []
        for n in widths:
            same = (g for g, first in enumerate(groups) if np.array_equal(rows[first], rows[n]))
            group = next(same, None)
            if group is None:
                worst = max([worst, *(float(np.abs(rows[first] - rows[n]).max()) for first in groups)])
                group = len(groups)
                groups.append(n)
            ids[n].append(group)
    classes: dict[tuple[int, ...], list[int]] = {}
    for n in widths:
        classes.setdefault(tuple(ids[n]), []).append(n)
    ordered = sorted((tuple(members) for members in classes.values()), key=lambda c: (-len(c), c))
    return Identity(tuple(ordered), worst, tried)


def _rows_by_width(
    backend: Backend, tokens: Sequence[int], depth: int, widths: Sequence[int]
) -> dict[int, NDArray[np.float32]]:
    """(ROWS, V) logits after the tokens from `depth` on, computed in batches of each width."""
    backend.rewind(0)
    backend.prefill(tokens[:depth])
    text = np.asarray(tokens[depth : depth + 2 * ROWS], np.int32)
    result: dict[int, NDArray[np.float32]] = {}
    for n in widths:
        rows: list[NDArray[np.float32]] = []
        for start in range(0, ROWS, n):
            wanted = min(n, ROWS - start)
            output = backend.forward(text[start : start + n], np.arange(-1, n - 1, dtype=np.int32))
            rows.append(output.logits[:wanted].copy())
            backend.keep(list(range(wanted)))
        result[n] = np.concatenate(rows)
        _back_to(backend, tokens, depth)
    backend.rewind(0)
    return result


def _back_to(backend: Backend, tokens: Sequence[int], depth: int) -> None:
    """Rewind to `depth`, or start over where the cache no longer reaches back that far."""
    reachable = backend.reusable(depth)
    backend.rewind(reachable)
    if reachable < depth:
        backend.prefill(tokens[reachable:depth])
