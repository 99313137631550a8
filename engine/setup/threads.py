"""How many CPU threads a model runs on: timed on the loaded model, kept, and used from then on.

Where nothing was measured there is a rule, one thread for each usable core (`decode_threads`). It can be too
many, where memory is saturated before all cores read it, and too few, where threads that share a core help.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from specx.backends.base import Cache, Model
from specx.backends.llama.params import decode_threads
from specx.backends.machine.machine import CPU, this_cpu
from specx.backends.settings import LoadSettings
from specx.backends.store import Store
from specx.engine.cost.patience import PATIENCE
from specx.engine.cost.staircase import AGREE, UNSETTLED
from specx.engine.setup.explain import Explain, silent
from specx.engine.setup.kernels import DEPTH

__all__ = [
    "ThreadTimes",
    "candidates",
    "load_threads",
    "measure_threads",
    "save_threads",
    "warn_of_threads",
    "with_measured_threads",
]

KIND = "threads"  # of the entries in the store
DECODE = (1,)  # tokens of a call
BATCH = (8, 32)  # a step that verifies drafts, and a piece of a prompt
NARROWEST = 16  # counts below this part of all threads are not tried
NEAR = 1.03  # times as slow: less may be noise, and leaves cores to others
HOPELESS = 1.5  # times as slow as the best: not visited again
LONG_MS = 500.0
BUDGET_S = 6.0
LEAST, MOST = 3, 8  # visits to each count; the least may take `PATIENCE` times the budget


class ThreadedModel(Model, Protocol):
    """A model whose number of threads can be changed between two calls."""

    def set_threads(self, decode: int, batch: int) -> None:
        """Use so many for one token, and for more than one, from the next call on."""


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    """What was measured.

    Attributes:
        steps: milliseconds of a call by its tokens and by the number of threads.
        depth: tokens of context they came after.
        disturbed: whether something else kept the machine busy.
    """

    steps: Mapping[int, Mapping[int, float]]
    depth: int = 0
    disturbed: bool = False

    @property
    def decode(self) -> int:
        """Threads for decoding one token."""
        return _narrowest(self.steps, DECODE)

    @property
    def batch(self) -> int:
        """Threads for drafts and prompts."""
        return _narrowest(self.steps, BATCH)

    @property
    def ms_per_token(self) -> float:
        """Milliseconds of decoding one token on `decode` threads."""
        return self.steps[DECODE[0]][self.decode]

    def to_json(self) -> dict[str, Any]:
        """A plain value for the store and for `--json`."""
        return {
            "threads": self.decode,
            "threads_batch": self.batch,
            "ms_per_token": self.ms_per_token,
            "depth": self.depth,
            "steps": {str(n): {str(t): ms for t, ms in by.items()} for n, by in self.steps.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ThreadTimes:
        """What `to_json` gave.

        Raises:
            ValueError, TypeError, AttributeError, KeyError: it is something else.
        """
        steps = {int(n): {int(t): float(ms) for t, ms in by.items()} for n, by in data["steps"].items()}
        if any(t < 1 or not 0 < ms < float("inf") for by in steps.values() for t, ms in by.items()):
            raise ValueError("positive times of positive numbers of threads are needed")
        times = cls(steps, int(data["depth"]))
        if (times.decode, times.batch) != (data["threads"], data["threads_batch"]):
            raise ValueError("the choice is not that of the times")
        return times


def candidates(cpu: CPU) -> list[int]:
    """Numbers of threads worth trying on `cpu`, ascending: what its cores suggest, and powers of two."""
    most = cpu.usable_threads
    powers = {1 << i for i in range(most.bit_length())}
    counts = powers | {most, most * 3 // 4, cpu.usable_cores, cpu.default_threads}
    return sorted(count for count in counts if max(1, most // NARROWEST) <= count <= most)


def measure_threads(
    model: ThreadedModel,
    counts: Sequence[int],
    *,
    budget_s: float = BUDGET_S,
    progress: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> ThreadTimes:
    """Time calls of a model on each number of threads, in turns.

    They come after `DEPTH` tokens of context, or none where the model cannot go back to those.

    Args:
        model: loaded; no text is open.
        counts: numbers of threads.
        budget_s: seconds it may take; a slow model takes longer, to be visited `LEAST` times.
        progress: called with the fraction done, 0 to 1.
        clock: seconds.
    """
    times: dict[int, dict[int, list[float]]] = {}
    cache = model.open()
    if min(cache.max_width, cache.n_ctx - DEPTH) >= max(BATCH):
        cache.prefill([0] * DEPTH)
    depth = cache.length
    start, visit = clock(), 0
    for visit, n, threads in _turns(counts, times):
        spent = (clock() - start) / budget_s
        if visit and spent > (1 if visit >= LEAST else PATIENCE):
            break
        model.set_threads(threads, threads)
        times.setdefault(n, {}).setdefault(threads, []).append(_time(cache, depth, n, clock))
        if progress is not None:
            progress(min(max(visit / MOST, min(spent, (visit + 1) / LEAST)), 1.0))
    cache.close()
    taken = [ms for by in times.values() for ms in by.values() if len(ms) > 1]
    odd = sum(sorted(ms)[len(ms) // 2] > AGREE * min(ms) for ms in taken)
    return ThreadTimes(_least(times), depth, disturbed=odd > UNSETTLED * len(taken))


def with_measured_threads(
    settings: LoadSettings, store: Store, key: str, explain: Explain = silent
) -> LoadSettings:
    """`settings` with the threads that were measured, unless they say how many themselves."""
    if settings.threads is not None:
        return settings
    kept = load_threads(store, key)
    if kept is None:
        explain(f"threads: {decode_threads(settings)}, one for each usable core; `specx probe` measures")
        return settings
    explain(f"threads: {kept.decode} for one token, {kept.batch} for more, the fastest as measured")
    return replace(settings, threads=kept.decode, threads_batch=settings.threads_batch or kept.batch)


def warn_of_threads(settings: LoadSettings, notice: Callable[[str], None], cpu: CPU | None = None) -> None:
    """Tell of more threads than there are processors: at every operation some wait for others to run at all.

    Args:
        settings: what was asked for.
        notice: told what a person should know.
        cpu: the processors; by default those of this machine.
    """
    usable = (cpu or this_cpu()).usable_threads
    asked = (settings.threads, settings.threads_batch, settings.draft_threads, settings.draft_threads_batch)
    most = max(count or 0 for count in asked)
    if most > usable:
        notice(f"{most} threads share {usable} usable CPUs: slower than with {usable}")


def load_threads(store: Store, key: str) -> ThreadTimes | None:
    """What was measured before, if anything."""
    data = store.load_json(KIND, key)
    try:
        return None if data is None else ThreadTimes.from_json(data)
    except (ValueError, TypeError, AttributeError, KeyError):
        store.set_aside(KIND, key)
        return None


def save_threads(store: Store, key: str, times: ThreadTimes) -> None:
    """Keep what was measured, unless the machine was busy."""
    if not times.disturbed:
        store.save_json(KIND, key, times.to_json())


def _turns(
    counts: Sequence[int], times: Mapping[int, Mapping[int, Sequence[float]]]
) -> Iterator[tuple[int, int, int]]:
    """(visit, tokens, threads) of what is timed next; every other visit goes the other way round.

    The first visit goes down from the widest count and ends at a hopeless one: fewer threads are slower
    still, and could take minutes.

    Args:
        times: what has been measured so far, as it grows.
    """
    live = {widths: sorted(counts, reverse=True) for widths in (DECODE, BATCH)}
    for visit in range(MOST):
        for widths in (DECODE, BATCH):
            for threads in live[widths][:: -1 if visit % 2 else 1]:
                yield from ((visit, n, threads) for n in widths)
                if visit == 0 and _score(_least(times), widths, threads) > HOPELESS:
                    break
            least = _least(times)
            live[widths] = [
                threads
                for threads in live[widths]
                if threads in least[widths[0]]
                and (visit + 1 < LEAST or _score(least, widths, threads) <= HOPELESS)
            ]


def _time(cache: Cache, depth: int, n: int, clock: Callable[[], float]) -> float:
    """Milliseconds of a call of `n` tokens: the lesser of two, because the first one builds the graph and
    wakes the threads up, unless it takes so long that this is nothing to it."""
    least = np.inf
    for _ in range(2):
        cache.rewind(depth)
        start = clock()
        if n <= cache.max_width:
            cache.forward(np.zeros(n, np.int32), np.arange(-1, n - 1, dtype=np.int32))
            took = (clock() - start) * 1e3
            cache.keep([0])
        else:  # a model that decodes plainly
            cache.prefill([0] * n)
            took = (clock() - start) * 1e3
        least = min(least, took)
        if took > LONG_MS:
            break
    return max(least, 1e-6)


def _least(times: Mapping[int, Mapping[int, Sequence[float]]]) -> dict[int, dict[int, float]]:
    return {n: {threads: min(taken) for threads, taken in by.items()} for n, by in times.items()}


def _score(steps: Mapping[int, Mapping[int, float]], widths: Sequence[int], threads: int) -> float:
    """Geometric mean over `widths` of how many times slower than the best number of threads this one is."""
    ratios = [steps[n][threads] / min(steps[n].values()) for n in widths]
    return float(np.exp(np.mean(np.log(ratios))))


def _narrowest(steps: Mapping[int, Mapping[int, float]], widths: Sequence[int]) -> int:
    """The smallest number of threads that is next to as fast as the best one."""
    scores = {threads: _score(steps, widths, threads) for threads in sorted(steps[widths[0]])}
    best = min(scores.values())
    return next(threads for threads, score in scores.items() if score <= NEAR * best)
