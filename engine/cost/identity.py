"""Which batch widths give bit-identical logits on this model, measured.

A kernel may add up in another order when it computes more rows at once. Two widths are *identical* if
every row of a sequence computed in batches of the one equals, bit for bit, the row computed in batches of
the other, at every depth tried. Tokens chosen over identical logits are equal by construction; elsewhere a
near-tie may fall the other way, and the largest difference seen says how near is near.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache, Vocab

__all__ = ["Identity", "identity_text", "measure_identity"]

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64)
ROWS = 16  # rows compared at each depth
SPAN = ROWS + max(WIDTHS)  # tokens computed beyond a depth, at most
DEPTHS = (64, 640)  # on both sides of 512 padded cells, where llama.cpp's attention path changes


@dataclass(frozen=True, slots=True)
class Identity:
    """The classes of identical widths.

    Attributes:
        classes: disjoint classes of widths whose logits are bit-identical at every depth, largest first.
        branches: whether the logits of a branch, and those after it was accepted, equal those of the same
            chain, bit for bit (a branch has its cells in another order); true where there are no branches.
        difference: largest absolute difference of a logit between any two shapes.
        depths: context depths at which it was measured, in tokens.
    """

    classes: tuple[tuple[int, ...], ...]
    branches: bool
    difference: float
    depths: tuple[int, ...]

    @property
    def widths(self) -> frozenset[int]:
        """The class to hold the plan to: the largest, for it speculates best."""
        return frozenset(self.classes[0])

    @property
    def exact_trees(self) -> bool:
        """Whether every width is identical and branches are too: whatever is drafted, the text is exact."""
        return len(self.classes) == 1 and self.branches

    def covers(self, n_ctx: int) -> bool:
        """Whether it was measured as deep as a context of `n_ctx` tokens asks for."""
        return max(self.depths) >= min(max(DEPTHS), n_ctx - SPAN)

    def to_json(self) -> dict[str, Any]:
        """A plain value for the store."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Identity:
        """What `to_json` gave.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        classes = tuple(tuple(int(n) for n in members) for members in data["classes"])
        if not classes or not classes[0]:
            raise ValueError("an identity has at least one class of widths")
        depths = tuple(int(depth) for depth in data["depths"])
        if not depths:
            raise ValueError("an identity has at least one depth")
        return cls(classes, bool(data["branches"]), float(data["difference"]), depths)


def identity_text(vocab: Vocab) -> list[int]:
    """Tokens to measure on: ordinary text, long enough for every depth."""
    words = " ".join(f"{n} bottles stood on the wall, and one of them fell." for n in range(999, 900, -1))
    return vocab.tokenize(words.encode(), add_special=True, parse_special=False)[: max(DEPTHS) + SPAN]


def measure_identity(
    cache: Cache,
    tokens: Sequence[int],
    *,
    depths: Sequence[int] = DEPTHS,
    widths: Sequence[int] = WIDTHS,
    progress: Callable[[float], None] = lambda _fraction: None,
) -> Identity:
    """Compare widths on an empty cache; leaves it empty.

    Args:
        cache: holds no committed tokens.
        tokens: text to compute, at least max(depths) + 80 tokens.
        depths: context depths in tokens; where the text or the context ends before one, the deepest
            possible stands for it.
        widths: widths to compare.
        progress: called with the finished fraction.
    """
    widths = [n for n in widths if n <= cache.max_width]
    limit = min(len(tokens), cache.n_ctx) - SPAN  # a batch may reach beyond the last row compared
    tried = tuple(sorted({max(0, min(depth, limit)) for depth in depths}))
    groups: dict[int, list[int]] = {n: [] for n in widths}
    worst, branches = 0.0, True
    for number, depth in enumerate(tried):
        cache.rewind(0)
        cache.prefill(tokens[:depth])
        cache.mark()
        firsts: list[NDArray[np.float32]] = []
        for n in widths:
            rows = _rows(cache, tokens, depth, n)
            differences = [float(np.abs(first - rows).max()) for first in firsts]
            if 0.0 not in differences:
                differences.append(0.0)
                firsts.append(rows)
            groups[n].append(differences.index(0.0))
            worst = max(worst, *differences)
            progress((number + (widths.index(n) + 1) / len(widths)) / len(tried))
        if cache.max_leaves > 1:
            after = _branch_difference(cache, tokens, depth)
            worst, branches = max(worst, after), branches and after == 0.0
    cache.rewind(0)
    classes: dict[tuple[int, ...], list[int]] = {}
    for n in widths:
        classes.setdefault(tuple(groups[n]), []).append(n)
    ordered = sorted((tuple(members) for members in classes.values()), key=lambda c: (-len(c), c))
    return Identity(tuple(ordered), branches, worst, tried)


def _rows(cache: Cache, tokens: Sequence[int], depth: int, n: int) -> NDArray[np.float32]:
    """(ROWS, V) logits after the tokens from `depth` on, computed in batches of width n."""
    text = np.asarray(tokens[depth : depth + SPAN], np.int32)
    rows: list[NDArray[np.float32]] = []
    for start in range(0, ROWS, n):
        wanted = min(n, ROWS - start)
        batch = text[start : start + n]
        output = cache.forward(batch, np.arange(-1, len(batch) - 1, dtype=np.int32))
        rows.append(output.logits[:wanted].copy())
        cache.keep(list(range(wanted)))
    _back_to(cache, tokens, depth)
    return np.concatenate(rows)


def _branch_difference(cache: Cache, tokens: Sequence[int], depth: int) -> float:
    """How far logits of a second branch, and after it was accepted, are from those of the same chain."""
    root, first, second, third, *rest = tokens[depth : depth + 8]
    probe = np.asarray(rest[:2], np.int32)
    chain = np.arange(-1, 2, dtype=np.int32)
    after: list[NDArray[np.float32]] = []
    shapes = (
        ((root, second, third), chain, [0, 1, 2]),
        ((root, first, third, second, third), np.array([-1, 0, 1, 0, 3], np.int32), [0, 3, 4]),
    )
    for ids, parents, kept in shapes:
        own = cache.forward(np.asarray(ids, np.int32), parents).logits[kept].copy()
        cache.keep(kept)
        later = cache.forward(probe, np.array([-1, 0], np.int32)).logits
        after.append(np.concatenate([own, later]))
        cache.keep([0])
        _back_to(cache, tokens, depth)
    return float(np.abs(after[0] - after[1]).max())


def _back_to(cache: Cache, tokens: Sequence[int], depth: int) -> None:
    """Rewind to `depth`, or start over where the cache no longer reaches back that far."""
    reachable = cache.reusable(depth)
    cache.rewind(reachable)
    if reachable < depth:
        cache.prefill(tokens[reachable:depth])
