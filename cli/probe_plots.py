"""Pictures of what was measured. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from specx.backends.printable import one_line
from specx.cli.terminal.pictures import picture

if TYPE_CHECKING:
    from specx.engine.report.staircase import StaircaseProbe

__all__ = ["draw_staircases"]

COLOURS = {"stock": "#888888", "attention": "#e07a1f", "specx": "#1f6fb4"}
NAMES = {"stock": "llama.cpp's kernels", "attention": "specx's attention alone", "specx": "specx's kernels"}


def draw_staircases(found: StaircaseProbe, path: Path, *, title: str) -> None:
    """Milliseconds of a step over its tokens, one line for each of the kernels, one panel a depth.

    The goal line is the larger of what reading and what computing take at least.
    """
    depths = list(found.comparison.steps["stock"])
    threads = f"{found.threads.value} thread{'' if found.threads.value == 1 else 's'}"
    busy = ", while something else ran" if found.comparison.disturbed else ""
    size = (5.5 * len(depths), 4.2)
    with picture(path, figsize=size) as figure:
        panels = figure.subplots(1, len(depths), squeeze=False, sharey=True)[0]
        for panel, depth in zip(panels, depths, strict=True):
            for name, by_depth in found.comparison.steps.items():
                steps = by_depth[depth]
                look = {"color": COLOURS[name], "label": NAMES[name], "markersize": 4}
                panel.plot(list(steps), list(steps.values()), "o-", **look)
            bounds = found.roofline.bounds[depth]
            least = [bound.ms for bound in bounds.values()]
            look = {
                "color": "#444444",
                "linewidth": 0.9,
                "linestyle": ":",
                "label": "reading or computing alone",
            }
            panel.plot(list(bounds), least, **look)
            panel.set_xscale("log", base=2)
            panel.set_xticks(list(steps), [str(n) for n in steps])
            panel.minorticks_off()
            panel.set_xlabel("tokens verified in one step")
            panel.set_title(f"{one_line(title)}, after {depth} tokens\n{threads}{busy}", fontsize=10)
            panel.grid(alpha=0.3)
        panels[0].set_ylim(bottom=0)  # of all panels, once everything is drawn
        panels[0].set_ylabel("milliseconds")
        panels[0].legend(frameon=False)
