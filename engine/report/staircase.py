"""What the machine can do with a model: the staircases of all kernels, and the bandwidth of its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from specx.backends.gguf.checks import read_runnable
from specx.backends.llama.params import decode_threads
from specx.backends.machine.machine import bytes_to_read, read_memory
from specx.backends.settings import LoadSettings
from specx.backends.store import user_store
from specx.engine.cost.timing import unwatched, watch_others
from specx.engine.setup.kernels import Comparison, choice_of_auto, compare_kernels
from specx.engine.setup.layers import step_bytes
from specx.engine.setup.loading import fit_and_place, kernels_key, loader, threads_key
from specx.engine.setup.threads import warn_of_threads, with_measured_threads
from specx.kernels._native import read_bandwidth

__all__ = ["WIDTHS", "StaircaseProbe", "probe_staircases"]

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
BUDGET_S = 6.0  # for each of the kernels and depths
BANDWIDTH_REPEATS = 5


@dataclass(frozen=True, slots=True)
class StaircaseProbe:
    """What was measured.

    Attributes:
        comparison: milliseconds by kernels, depth and width.
        weight_bytes: bytes of weights that a step of one token reads.
        bandwidth: bytes per second that the memory gives to `threads` threads.
        threads: CPU threads in use.
        auto: name of the kernels that `--kernels auto` takes.
    """

    comparison: Comparison
    weight_bytes: int
    bandwidth: float
    threads: int
    auto: str

    def to_json(self) -> dict[str, Any]:
        """What `specx probe --staircase --json` prints; "specx" are the better of its two combinations."""
        steps = self.comparison.steps
        ours = max((name for name in steps if name != "stock"), key=self.comparison.rate, default="stock")
        depths = [
            {
                "depth": depth,
                "staircases": {"stock": steps["stock"][depth], "specx": steps[ours][depth]},
                "by_kernels": {name: by_depth[depth] for name, by_depth in steps.items()},
            }
            for depth in steps["stock"]
        ]
        return {
            **depths[0],
            "specx_kernels": ours,
            "kernels": self.auto,
            "depths": depths,
            "threads": self.threads,
            "weight_bytes": self.weight_bytes,
            "bandwidth_bytes_per_s": round(self.bandwidth),
            "disturbed": self.comparison.disturbed,
        }


def probe_staircases(
    settings: LoadSettings,
    depths: Sequence[int],
    *,
    widths: Sequence[int] = WIDTHS,
    loading: Callable[[float], None] | None = None,
    progress: Callable[[float], None] | None = None,
    notice: Callable[[str], None] = lambda _text: None,
) -> StaircaseProbe:
    """Load a model on each of the kernels in turn and time its steps.

    Args:
        settings: how to load it; the kernels in it do not count.
        depths: tokens of context.
        widths: tokens of a step.
        loading, progress: called with the loaded and the measured fraction, 0 to 1.
        notice: told what a person should know.

    Raises:
        ModelError: it cannot be loaded.
    """
    info = read_runnable(settings.model)
    store = user_store(settings.store, notice)
    warn_of_threads(settings, notice)
    settings = fit_and_place(info, settings, store, loading, notice).settings
    settings = with_measured_threads(settings, store, threads_key(info, settings))
    threads = decode_threads(settings)
    busy = watch_others()
    bandwidth = read_bandwidth(bytes_to_read(read_memory()), threads, BANDWIDTH_REPEATS)
    load = loader(settings, store, loading, notice)
    comparison, model, _ = compare_kernels(
        load, depths=depths, widths=widths, budget_s=BUDGET_S, progress=progress, watch=unwatched
    )
    model.close()
    comparison.disturbed |= busy()
    if comparison.disturbed:
        notice("something else kept the machine busy: what was measured is shown, but not to be relied on")
    auto = choice_of_auto(comparison, store, kernels_key(info, settings))
    return StaircaseProbe(comparison, step_bytes(info), bandwidth, threads, auto.name)
