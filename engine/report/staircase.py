"""What the machine can do with a model: the staircases of all kernels, and what they are bounded by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from specx.backends.errors import UsageError
from specx.backends.gguf.file import read_gguf
from specx.backends.llama import kernels as ggml_device
from specx.backends.llama.kernels import STOCK
from specx.backends.llama.memory import wanted_context
from specx.backends.machine.machine import bytes_to_read, read_memory
from specx.engine.cost.timing import unwatched, watch_others
from specx.engine.report.roofline import Roofline, roofline_of
from specx.engine.settings import Asked
from specx.engine.setup.choice import Choice, Setup
from specx.engine.setup.decide import decide
from specx.engine.setup.here import Here, Told
from specx.engine.setup.kernel_times import KernelTimes, compare_kernels
from specx.engine.setup.kernels import choice_of_auto
from specx.engine.setup.layers import step_bytes
from specx.engine.setup.load import loader
from specx.kernels._native import integer_peak, read_bandwidth

__all__ = ["WIDTHS", "StaircaseProbe", "probe_staircases"]

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
BUDGET_S = 6.0  # for each of the kernels and depths
BANDWIDTH_REPEATS = 5
PEAK_REPEATS = 5


@dataclass(frozen=True, slots=True)
class StaircaseProbe:
    """What was measured.

    Attributes:
        comparison: milliseconds by kernels, depth and width.
        weight_bytes: bytes of weights that decoding one token reads.
        bandwidth: bytes per second that the memory gives to `threads` threads.
        threads: CPU threads in use, and why so many.
        auto: name of the kernels that `--kernels auto` takes.
        roofline: what each step takes at least.
    """

    comparison: KernelTimes
    weight_bytes: int
    bandwidth: float
    threads: Choice[int]
    auto: str
    roofline: Roofline

    def over(self, name: str, depth: int, n: int) -> float:
        """How many times its bound a step of `n` tokens takes on the kernels `name`."""
        return self.comparison.steps[name][depth][n] / self.roofline.bounds[depth][n].ms

    def to_json(self) -> dict[str, Any]:
        """What `specx probe --staircase --json` prints; "specx" are the better of its two combinations."""
        steps = self.comparison.steps
        ours = max((name for name in steps if name != "stock"), key=self.comparison.rate, default="stock")
        depths = [
            {
                "depth": depth,
                "staircases": {"stock": steps["stock"][depth], "specx": steps[ours][depth]},
                "by_kernels": {name: by_depth[depth] for name, by_depth in steps.items()},
                "bounds": {n: bound.to_json() for n, bound in self.roofline.bounds[depth].items()},
                "times_the_bound": {
                    name: {n: self.over(name, depth, n) for n in by_depth[depth]}
                    for name, by_depth in steps.items()
                },
            }
            for depth in steps["stock"]
        ]
        return {
            **depths[0],
            "specx_kernels": ours,
            "kernels": self.auto,
            "depths": depths,
            "threads": self.threads.value,
            "weight_bytes": self.weight_bytes,
            "bandwidth_bytes_per_s": round(self.bandwidth),
            **self.roofline.to_json(),
            "disturbed": self.comparison.disturbed,
        }


def probe_staircases(
    asked: Asked,
    depths: Sequence[int],
    *,
    widths: Sequence[int] = WIDTHS,
    loading: Told | None = None,
    progress: Callable[[float], None] | None = None,
    notice: Callable[[str], None] = lambda _text: None,
) -> StaircaseProbe:
    """Load a model on each of the kernels in turn and time its steps.

    Args:
        asked: how to load it; the kernels in it do not count.
        depths: tokens of context.
        widths: tokens of a step.
        loading, progress: called with the loaded and the measured fraction, 0 to 1.
        notice: told what a person should know.

    Raises:
        UsageError: the context that was asked for, or all that fits, is too small for a depth.
        ModelError: it cannot be loaded.
    """
    here = Here.of(asked, progress=loading, notice=notice)
    setup = _with_room(asked, max(depths), max(widths), here)
    busy = watch_others()
    bandwidth = read_bandwidth(bytes_to_read(read_memory()), setup.threads.value, BANDWIDTH_REPEATS)
    load = loader(setup.load, here)
    instructions = "" if ggml_device.unavailable() else ggml_device.instruction_set()
    peak = integer_peak(instructions, setup.threads_batch.value, PEAK_REPEATS)
    comparison, model, _ = compare_kernels(
        load, depths=depths, widths=widths, budget_s=BUDGET_S, progress=progress, watch=unwatched
    )
    model.close()
    comparison.disturbed |= busy()
    if comparison.disturbed:
        notice("something else kept the machine busy: what was measured is shown, but not to be relied on")
    auto = choice_of_auto(comparison, here.store, setup.kernels_key)
    timed = comparison.steps[STOCK.name]
    roofline = roofline_of(
        setup.info,
        setup.load,
        depths=timed,
        widths=sorted({n for steps in timed.values() for n in steps}),
        bandwidth=bandwidth,
        peak=peak,
        instructions=instructions,
    )
    return StaircaseProbe(comparison, step_bytes(setup.info), bandwidth, setup.threads, auto.name, roofline)


def _with_room(asked: Asked, depth: int, width: int, here: Here) -> Setup:
    """What is decided with a context that has room for a step of `width` tokens after `depth` others.

    Raises:
        UsageError: there is none.
    """
    needed = depth + width
    if asked.n_ctx is None and needed > wanted_context(None, read_gguf(asked.model).context_length):
        asked = replace(asked, n_ctx=needed)
    setup = decide(asked, here)
    if needed > setup.load.n_ctx:
        raise UsageError(
            f"steps of up to {width} tokens after {depth} need a context of {needed}, and it has "
            f"{setup.load.n_ctx}",
            f"-c {needed}, or a --depth of at most {max(0, setup.load.n_ctx - width)}",
        )
    return setup
