"""What a decision needs besides what was asked: where things are kept, who is told, and the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from specx.backends.store import Store, user_store
from specx.engine.settings import Asked
from specx.engine.setup.explain import Explain, silent

__all__ = ["Here"]


@dataclass(frozen=True, slots=True)
class Here:
    """The surroundings of one run.

    Attributes:
        store: where measurements are kept.
        notice: told what a person should know, one sentence at a time.
        explain: told every decision.
        progress: called with the loaded fraction, 0 to 1.
        clock: seconds, of everything that is timed.
    """

    store: Store
    notice: Callable[[str], None] = silent
    explain: Explain = silent
    progress: Callable[[float], None] | None = None
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def of(
        cls,
        asked: Asked,
        *,
        progress: Callable[[float], None] | None = None,
        notice: Callable[[str], None] = silent,
    ) -> Here:
        """The surroundings that `asked` wants: its store, and every decision told where it is verbose."""
        store = user_store(asked.store, notice)
        return cls(store, notice, notice if asked.verbose else silent, progress)
