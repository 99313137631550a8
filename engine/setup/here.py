"""What a decision needs besides what was asked: where things are kept, who is told, and the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from specx.backends.store import Store, user_store
from specx.engine.settings import Asked
from specx.engine.setup.explain import Explain, silent

__all__ = ["Here", "Stages", "Told"]


class Told(Protocol):
    """Is told how far a piece of work is."""

    def __call__(self, fraction: float, label: str | None = None, /) -> None:
        """`fraction` of the work, 0 to 1, is done, and `label` says what is done now if that has changed."""


class Stages:
    """One account of several pieces of work, which never goes back.

    Args:
        progress: is told.
    """

    def __init__(self, progress: Told | None) -> None:
        self._progress = progress
        self._begin, self._end = 0.0, 1.0
        self._label: str | None = None

    def next(self, end: float, label: str) -> None:
        """What comes now is `label`, and when it is done the fraction `end` of everything is."""
        self._begin, self._end, self._label = (0.0 if self._label is None else self._end), end, label
        self.update(0.0)

    def update(self, fraction: float, _label: str | None = None, /) -> None:
        """This `fraction` of the present piece is done."""
        if self._progress is not None:
            self._progress(self._begin + min(fraction, 1.0) * (self._end - self._begin), self._label)


@dataclass(frozen=True, slots=True)
class Here:
    """The surroundings of one run.

    Attributes:
        store: where measurements are kept.
        notice: told what a person should know, one sentence at a time.
        explain: told every decision.
        progress: told the fraction that is loaded, and measured at a first use.
        clock: seconds, of everything that is timed.
    """

    store: Store
    notice: Callable[[str], None] = silent
    explain: Explain = silent
    progress: Told | None = None
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def of(
        cls,
        asked: Asked,
        *,
        progress: Told | None = None,
        notice: Callable[[str], None] = silent,
    ) -> Here:
        """The surroundings that `asked` wants: its store, and every decision told where it is verbose."""
        store = user_store(asked.store, notice)
        return cls(store, notice, notice if asked.verbose else silent, progress)

    def put_off(self, kind: str, key: str, text: str) -> None:
        """Tell once that what is kept under (kind, key) is not measured now: it may be so at every start."""
        kept = self.store.load_json(kind, key) or {}
        if "put_off" not in kept:
            self.store.save_json(kind, key, {**kept, "put_off": True})
            self.notice(text)
