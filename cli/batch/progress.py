"""How far a batch is: a bar, lines in a log, or JSON for machines; always on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from specx.cli.terminal.console import Progress, notice
from specx.engine.batch.answered import Answered

__all__ = ["Reporter"]

EVERY_S = {"json": 1.0, "log": 30.0}
"""Seconds between two reports: to machines, and to a log or for a batch of unknown length."""

RECENT = 60  # seconds whose rate the time left follows from
SHOWN_ERRORS = 5


class Reporter:
    """Counts what is answered, and tells.

    Args:
        total: items of the input; None if that is not known.
        before: records that were there before, and how many of them are errors.
        mode: "bar", "log", "json" or "quiet".
        clock: seconds.

    Attributes:
        done, failed, cut: records of this run, those of them that are errors, those with an answer that ended
            at its limit.
    """

    def __init__(
        self,
        total: int | None,
        before: tuple[int, int],
        mode: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = self.failed = self.cut = self._blank = 0
        self._total, self._mode, self._clock = total, mode, clock
        self._before, self._failed_before = before
        self._prompt_tokens = self._tokens = 0
        self._begun = self._told = clock()
        self._recent: deque[tuple[float, int]] = deque([(self._begun, 0)])
        self._bar = Progress("", remaining=False) if mode == "bar" and total is not None else None
        if mode == "bar" and total is None:
            self._mode = "log"

    def written(self, tokens: int) -> None:
        """So many tokens more were written."""
        self._tokens += tokens
        self._tell()

    def add(self, answered: Answered) -> None:
        """An item is answered."""
        if answered.item.blank:
            self._blank += 1
            return
        self.done += 1
        if self._total is not None:  # the input may grow while it is read
            self._total = max(self._total, self._before + self.done + self._blank)
        self.cut += answered.cut
        self._prompt_tokens += answered.prompt_tokens
        if answered.failed:
            self.failed += 1
            if self.failed <= SHOWN_ERRORS and self._mode != "json":
                message = (answered.body or {}).get("error", {}).get("message")
                item = answered.item
                notice(f"{item.label}: {str(message).removeprefix(f'line {item.line}: ')}")
        now = self._clock()
        if now - self._recent[-1][0] >= 1:
            self._recent.append((now, self.done))
            while now - self._recent[0][0] > RECENT:
                self._recent.popleft()
        self._tell()

    def finish(self, seed: int, remaining: int | None) -> None:
        """All is done, or nothing more will be: one last report.

        Args:
            seed: what the seeds of the items follow from.
            remaining: items without an answer; None if that is not known.
        """
        if self._bar is not None:
            self._bar.close()
        if self._mode == "json":
            self._print("done", seed=seed, remaining=remaining)
        elif self._mode != "quiet":
            notice(self._summary(seed, remaining))

    @property
    def remaining(self) -> int | None:
        """Items without an answer; None if that is not known."""
        return None if self._total is None else self._total - self._before - self.done - self._blank

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    @property
    def _all_failed(self) -> int:
        return self.failed + self._failed_before

    @property
    def _seconds_left(self) -> float | None:
        if self._total is None:
            return None
        (then, done), now = self._recent[0], self._clock()
        rate = (self.done - done) / max(now - then, 1e-6)
        return (self.remaining or 0) / rate if rate else None

    def _tell(self) -> None:
        now = self._clock()
        if self._bar is not None and self._total:
            self._bar.update((self._before + self.done) / self._total, self._line())
        elif self._mode in EVERY_S and now - self._told >= EVERY_S[self._mode]:
            self._told = now
            if self._mode == "json":
                self._print("progress")
            else:
                notice(self._line())

    def _line(self) -> str:
        done = self._before + self.done
        of = "" if self._total is None else f" of {self._total:,}"
        seconds = max(self._clock() - self._begun, 1e-6)
        parts = [f"{done:,}{of} done", f"{self._tokens / seconds:.0f} tokens/s"]
        if self._all_failed:
            parts.append(f"{self._all_failed:,} failed")
        if (left := self._seconds_left) is not None:
            parts.append(f"{_duration(left)} left")
        return ", ".join(parts)

    def _summary(self, seed: int, remaining: int | None) -> str:
        seconds = max(self._clock() - self._begun, 1e-6)
        parts = [f"{self.done - self.failed:,} answered"]
        if self._before:
            parts.append(f"{self._before:,} done before")
        if self._all_failed:
            parts.append(f"{self._all_failed:,} failed")
        if remaining:
            parts.append(f"{remaining:,} left")
        if self.cut:
            parts.append(f"{self.cut:,} cut at their limit")
        parts.append(
            f"{self._tokens:,} tokens in {_duration(seconds)}, {self._tokens / seconds:.1f} tokens/s"
        )
        return f"{', '.join(parts)}; seed: {seed}"

    def _print(self, event: str, **more: Any) -> None:
        seconds = self._clock() - self._begun
        left = self._seconds_left
        value = {
            "event": event,
            "total": self._total,
            "done": self.done,
            "done_before": self._before,
            "failed": self._all_failed,
            "cut": self.cut,
            "prompt_tokens": self._prompt_tokens,
            "tokens": self._tokens,
            "seconds": round(seconds, 3),
            "seconds_left": None if left is None else round(left, 1),
            "tokens_per_second": round(self._tokens / max(seconds, 1e-6), 2),
            "items_per_second": round(self.done / max(seconds, 1e-6), 3),
            **more,
        }
        try:
            sys.stderr.write(json.dumps(value) + "\n")
            sys.stderr.flush()
        except OSError:
            self._mode = "quiet"  # nobody listens; the answers go on


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
