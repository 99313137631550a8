"""How many CPU threads a model runs on: timed on the loaded model, kept, and used from then on.

Where nothing was measured there is a rule, one thread for each usable core (`CPU.default_threads`). It can be
too many, where memory is saturated before all cores read it, and too few, where threads that share a core
help.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from specx.backends.base import Model
from specx.backends.llama.kernels import SPECX
from specx.backends.machine.machine import CPU, this_cpu
from specx.backends.store import Store
from specx.engine.cost.governor import Governor
from specx.engine.cost.rate import chain_rate
from specx.engine.cost.timing import Clock, Measurement, Watch, time_step, watch_others
from specx.engine.settings import Asked, AskedModel
from specx.engine.setup.basis import is_contradicted
from specx.engine.setup.choice import ASKED, MEASURED, Choice, Setup
from specx.engine.setup.kernel_times import DEPTH
from specx.engine.setup.kernels import remembered_choice

__all__ = [
    "ThreadTimes",
    "candidates",
    "choose_threads",
    "governor_of",
    "load_threads",
    "measure_threads",
    "save_threads",
    "warn_of_threads",
]

BY_RULE = "by rule, one for each usable core (`specx probe MODEL` measures)"
KIND = "threads"  # of the entries in the store
DECODE = (1,)  # tokens of a call
BATCH = (8, 32)  # a step that verifies drafts, and a piece of a prompt
NARROWEST = 16  # counts below this part of all threads are not tried
NEAR = 1.03  # times as slow: less may be noise, and leaves cores to others
HOPELESS = 1.5  # times as slow as the best: not visited again
BUDGET_S = 6.0
LEAST, MOST = 3, 8  # visits to each count: of three one is undisturbed, and after eight the least stays


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
        return _fewest({threads: 1 / ms for threads, ms in self.steps[DECODE[0]].items()})

    @property
    def batch(self) -> int:
        """Threads for drafts and prompts: those that write the most tokens per second with drafts, if one is
        read for each that is written."""
        verified, read = BATCH

        def rate(threads: int) -> float:
            written = chain_rate({1: self.ms_per_token, verified: self.steps[verified][threads]}).rate
            return 1 / (1 / written + self.steps[read][threads] / read)

        return _fewest({threads: rate(threads) for threads in self.steps[verified]})

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
    clock: Clock = time.perf_counter,
    watch: Watch = watch_others,
) -> ThreadTimes:
    """Time calls of a model on each number of threads, in turns.

    They come after `DEPTH` tokens of context, or none where the model cannot go back to those.

    Args:
        model: loaded; no text is open.
        counts: numbers of threads.
        budget_s: seconds it may take; a slow model takes longer, to be visited `LEAST` times.
        progress: called with the fraction done, 0 to 1.
        clock: seconds.
        watch: how other work is watched for.
    """
    cache = model.open()
    roomy = min(cache.max_width, cache.n_ctx - DEPTH) >= max(BATCH)
    if roomy:
        cache.prefill([0] * DEPTH)
    depth = cache.length
    measurement: Measurement[int] = Measurement(
        budget_s,
        clock=clock,
        watch=watch,
        progress=progress,
        turns=len(counts) * len((*DECODE, *BATCH)),
        needed=len((*DECODE, *BATCH)),
        least=LEAST,
        most=MOST,
    )

    def step(threads: int, n: int) -> float:
        model.set_threads(threads, threads)
        return time_step(cache, n, clock, calls=2)

    measurement.take(_turns(counts, measurement.times), step)
    cache.close()
    return ThreadTimes(_least(measurement.times), depth, disturbed=measurement.disturbed)


def choose_threads(asked: AskedModel, store: Store, key: str) -> tuple[Choice[int], Choice[int]]:
    """How many threads decode one token, and more than one: as asked, as measured, or by the rule.

    Args:
        asked: what was said.
        store: where measurements are kept.
        key: what they depend on.
    """
    batch = None if asked.threads_batch is None else Choice(asked.threads_batch, ASKED)
    if asked.threads is not None:
        return Choice(asked.threads, ASKED), batch or Choice(asked.threads, "as many as for one token")
    kept = load_threads(store, key)
    if kept is not None:
        return Choice(kept.decode, MEASURED), batch or Choice(kept.batch, MEASURED)
    rule = Choice(this_cpu().default_threads, BY_RULE)
    return rule, batch or rule


def governor_of(model: Model, setup: Setup | None) -> Governor | None:
    """What follows the work of others with the number of threads, where that leaves the text as it is.

    The numbers of `setup` are the most that are used. With llama.cpp's kernels other numbers give other bits.
    """
    kernels = getattr(model, "kernels", None)
    if setup is None or kernels != SPECX:
        return None
    threads, batch = setup.threads.value, setup.threads_batch.value
    if max(threads, batch) < 2:
        return None

    def apply(n: int) -> None:
        cast(ThreadedModel, model).set_threads(min(n, threads), min(n, batch))

    return Governor(max(threads, batch), apply)


def warn_of_threads(asked: Asked, notice: Callable[[str], None], cpu: CPU | None = None) -> None:
    """Tell of more threads than there are processors: at every operation some wait for others to run at all.

    Args:
        asked: what was asked for.
        notice: told what a person should know.
        cpu: the processors; by default those of this machine.
    """
    usable = (cpu or this_cpu()).usable_threads
    counts = (asked.threads, asked.threads_batch, asked.draft.threads, asked.draft.threads_batch)
    most = max(count or 0 for count in counts)
    if most > usable:
        notice(f"{most} threads share {usable} usable CPUs: slower than with {usable}")


def load_threads(store: Store, key: str) -> ThreadTimes | None:
    """What was measured before, if anything, and was not found to be wrong since."""

    def parse(data: Mapping[str, Any]) -> ThreadTimes | None:
        times = ThreadTimes.from_json(data)
        return None if _is_contradicted(store, key, times) else times

    return store.load_parsed(KIND, key, parse)


def save_threads(store: Store, key: str, times: ThreadTimes) -> None:
    """Keep what was measured, unless the machine was busy."""
    if not times.disturbed:
        store.save_json(KIND, key, times.to_json())


def _is_contradicted(store: Store, key: str, times: ThreadTimes) -> bool:
    """Whether the steps that are kept on these numbers of threads are far from what they were chosen by."""
    setup, _, kernels = key.rpartition("-")
    setup = f"{setup}-t{times.decode}-b{times.batch}"
    name = remembered_choice(store, setup) if kernels == "auto" else kernels
    if name is None:
        return False
    steps = {n: by[times.decode if n in DECODE else times.batch] for n, by in times.steps.items()}
    return is_contradicted(store, f"{setup}-{name}", times.depth, steps)


def _turns(
    counts: Sequence[int], times: Mapping[int, Mapping[int, Sequence[float]]]
) -> Iterator[tuple[int, int, int]]:
    """(visit, threads, tokens) of what is timed next; every other visit goes the other way round.

    The first visit goes down from the widest count and ends at a hopeless one: fewer threads are slower
    still, and could take minutes.

    Args:
        times: what has been measured so far by threads and tokens, as it grows.
    """
    live = {widths: sorted(counts, reverse=True) for widths in (DECODE, BATCH)}
    for visit in range(MOST):
        for widths in (DECODE, BATCH):
            for threads in live[widths][:: -1 if visit % 2 else 1]:
                yield from ((visit, threads, n) for n in widths)
                if visit == 0 and _score(_least(times), widths, threads) > HOPELESS:
                    break
            least = _least(times)
            live[widths] = [
                threads
                for threads in live[widths]
                if threads in least[widths[0]]
                and (visit + 1 < LEAST or _score(least, widths, threads) <= HOPELESS)
            ]


def _least(times: Mapping[int, Mapping[int, Sequence[float]]]) -> dict[int, dict[int, float]]:
    """Least milliseconds by tokens and threads, of times by threads and tokens."""
    least: dict[int, dict[int, float]] = {}
    for threads, by_tokens in times.items():
        for n, taken in by_tokens.items():
            least.setdefault(n, {})[threads] = min(taken)
    return least


def _score(steps: Mapping[int, Mapping[int, float]], widths: Sequence[int], threads: int) -> float:
    """Geometric mean over `widths` of how many times slower than the best number of threads this one is."""
    ratios = [steps[n][threads] / min(steps[n].values()) for n in widths]
    return float(np.exp(np.mean(np.log(ratios))))


def _fewest(rates: Mapping[int, float]) -> int:
    """The smallest number of threads whose rate is next to the best one."""
    best = max(rates.values())
    return next(threads for threads in sorted(rates) if NEAR * rates[threads] >= best)
