"""What real steps, or a later measurement, say of what is kept. What they contradict is measured again.

One rule for all that is kept of times: a table of steps, and the times that a choice of kernels or of threads
rests on. Far off is far beyond the noise of anything that counted as measured undisturbed. And a small
correction is kept only where nothing else kept the machine busy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from specx.engine.cost.timing import Busy, Watch, median

__all__ = ["ENOUGH", "FAR", "WINDOW", "Calm", "Contradiction", "contradicts"]

FAR = 1.5  # times as long, or as short; repetitions that differ by 1.3 do not count as settled
WINDOW = 64  # steps; some seconds of decoding, so that a burst of other work does not fill it
MOST = 0.9  # of them must be far off, all to the same side
ENOUGH = 8  # of them have one width: then a running estimate has followed these steps, whatever came before


class Contradiction:
    """Watches real steps for times that are far from what was measured, with nothing else to blame.

    Args:
        watch: how other work is watched for; begins with the first step that is far off.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._busy: Busy | None = None
        self._seen = self._slower = self._faster = 0

    def observe(self, ratio: float) -> bool:
        """A step took `ratio` times as long as was measured; whether the measurement is contradicted."""
        if ratio > FAR:
            self._slower += 1
        elif ratio < 1 / FAR:
            self._faster += 1
        elif self._busy is None:
            return False
        if self._busy is None:
            self._busy = self.watch()
        self._seen += 1
        if self._seen < WINDOW:
            return False
        wrong = max(self._slower, self._faster) >= MOST * self._seen and not self._busy()
        self.restart()
        return wrong

    def restart(self) -> None:
        """Forget the steps seen so far."""
        self._busy = None
        self._seen = self._slower = self._faster = 0


class Calm:
    """Tells for which widths real steps speak: those of stretches that others left alone.

    Args:
        watch: how other work is watched for.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._busy: Busy | None = None
        self._seen: dict[int, int] = {}
        self._steps = 0

    def observe(self, n: int) -> bool:
        """A step of `n` tokens was taken; whether a stretch of them is complete."""
        if self._busy is None:
            self._busy = self._watch()
        self._seen[n] = self._seen.get(n, 0) + 1
        self._steps += 1
        return self._steps >= WINDOW

    def widths(self) -> list[int]:
        """Widths seen often enough since this was asked last; none if others were busy meanwhile."""
        found = [n for n, times in self._seen.items() if times >= ENOUGH]
        calm = self._busy is not None and not self._busy()
        self._busy = None
        self._seen.clear()
        self._steps = 0
        return found if calm else []


def contradicts(kept: Mapping[int, float], later: Mapping[int, float]) -> bool:
    """Whether times that something rests on are far from those measured later, or of real steps.

    Args:
        kept, later: milliseconds by width; those that both know count.
    """
    common = kept.keys() & later.keys()
    if not common:
        return False
    off = math.exp(median(math.log(later[n] / kept[n]) for n in common))
    return not 1 / FAR <= off <= FAR
