"""Small pictures made of characters, for terminals: intervals on an axis, bars, and a line of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

from specx.engine.bench.intervals import Estimate

__all__ = ["SOURCE_STYLES", "LogAxis", "bar", "source_letters", "token_line"]

SOURCE_STYLES = ("white", "cyan", "yellow", "magenta", "green", "blue")
"""The model itself, then where drafts come from; letters say the same without colour."""

BLOCKS = " ▏▎▍▌▋▊▉█"
NICE = (0.1, 0.2, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)
MARGIN = 1.15  # times beyond the outermost ratio; an interval may end there in an arrow


class LogAxis:
    """A logarithmic axis of `width` characters that shows all of `ratios`, and 1."""

    def __init__(self, ratios: Sequence[float], width: int) -> None:
        self.low = min(0.9, min(ratios) / MARGIN)
        self.high = max(1.25, max(ratios) * MARGIN)
        self.width = width

    def place(self, ratio: float) -> int:
        """The column of a ratio; beyond the ends it is outside of 0 to width - 1."""
        share = math.log(ratio / self.low) / math.log(self.high / self.low)
        return round(share * (self.width - 1))

    def ticks(self) -> str:
        """The axis with its numbers, as many as have room."""
        line = [" "] * (self.width + 6)
        free = 0
        for tick in sorted((t for t in NICE if self.low <= t <= self.high), key=lambda t: t):
            label = f"{tick:g}x"
            at = max(self.place(tick) - len(label) // 2, 0)
            if at >= free:
                line[at : at + len(label)] = label
                free = at + len(label) + 1
        return "".join(line).rstrip()

    def interval(self, estimate: Estimate) -> str:
        """A dot with its whiskers, over a line at 1."""
        line = [" "] * self.width
        one = self.place(1.0)
        line[one] = "│"
        if estimate.low is not None and estimate.high is not None:
            low, high = self.place(max(estimate.low, 1e-9)), self.place(estimate.high)
            for at in range(max(low, 0), min(high, self.width - 1) + 1):
                line[at] = "┼" if at == one else "─"
            if low >= 0:
                line[low] = "├"
            else:
                line[0] = "←"
            if high < self.width:
                line[high] = "┤"
            else:
                line[-1] = "→"
        line[min(max(self.place(estimate.value), 0), self.width - 1)] = "●"
        return "".join(line).rstrip()


def bar(share: float, width: int) -> str:
    """A bar for 0 to 1, filled up to `width` characters, in eighths of one."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    return (BLOCKS[8] * whole + (BLOCKS[rest] if rest else "")).ljust(width)


def source_letters(names: Sequence[str]) -> dict[str, str]:
    """A letter for each source, none twice: "·" is the model itself."""
    letters = {"target": "·"}
    for name in names:
        if name not in letters:
            free = (c for c in name + "abcdefghijklmnopqrstuvwxyz" if c not in letters.values())
            letters[name] = next(free)
    return letters


def token_line(sources: Sequence[str], step_tokens: Sequence[int], width: int) -> list[Text]:
    """One character a token, lines of `width`: where it came from; a bar begins every step of several."""
    letters = source_letters(sources)
    styles = dict(zip(letters, SOURCE_STYLES * len(letters), strict=False))
    line = Text()
    left = list(sources)
    for count in step_tokens:
        step, left = left[:count], left[count:]
        if len(step) > 1:
            line.append("|", style="dim")
        for source in step:
            line.append(letters[source], style=styles[source])
    return [line[start : start + width] for start in range(0, len(line), width)]
