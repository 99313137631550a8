"""The picture of a benchmark: speed by category, what steps cost, what drafts were worth, tokens over time.

Needs matplotlib. Colours are those of Okabe and Ito, which people who see few colours can tell apart; arms
also differ by their markers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from specx.backends.printable import one_line
from specx.cli.terminal.pictures import picture
from specx.engine.bench.records import Answer, Run
from specx.engine.bench.report import Report, sample_answer

__all__ = ["draw_bench"]

GREY = "#777777"
COLOURS = ("#0072B2", "#D55E00", "#CC79A7", "#000000")  # of arms
MARKERS = "osD^vP*"
SOURCE_COLOURS = {"target": GREY, "suffix": "#009E73", "recycle": "#E69F00", "model": "#56B4E9"}
OTHER_SOURCE = "#F0E442"
FEW = 5  # drafted tokens, or steps, say little
NOTHING = "nothing was drafted"


def draw_bench(run: Run, report: Report, path: Path) -> None:
    """Four panels in one PNG, SVG or PDF file."""
    looks = {
        arm.name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, arm in enumerate(_compared(run))
    }
    categories = len(report.rows[run.baseline])
    style = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}
    height = max(7.6, 3.9 + categories * (0.16 + 0.12 * len(looks)))
    with picture(path, style, figsize=(12.5, height)) as figure:
        top, bottom = figure.subfigures(2, 1, height_ratios=(height - 3.6, 3.6), squeeze=False)[:, 0]
        upper = top.subplots(1, 2, width_ratios=(1.25, 1))
        depth, source, tokens = bottom.subplots(1, 3, width_ratios=(1, 0.8, 1.35))
        _draw_speedups(upper[0], run, report, looks)
        _draw_steps(upper[1], run, report, looks)
        _draw_depths(depth, report, looks)
        _draw_sources(source, report)
        _draw_tokens(tokens, run)
        figure.suptitle(_title(run), fontsize=11)


def _compared(run: Run) -> list[Any]:
    """The arms that are not what the others are compared with."""
    return [arm for arm in run.arms if arm.name != run.baseline]


def _title(run: Run) -> str:
    machine = run.machine["cpu"] or run.machine["system"]
    threads = next((arm.threads for arm in run.arms if arm.threads), 0)
    part = ", interrupted" if run.partial else ""
    return one_line(f"{run.model['name']} {run.model['type']}, {machine}, {threads} threads{part}")


def _draw_speedups(axes: Any, run: Run, report: Report, looks: Mapping[str, tuple[str, str]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    categories = [one_line(row.category) for row in report.rows[run.baseline]]
    names = list(looks)
    shown: list[float] = [1.0]
    for number, name in enumerate(names):
        offset = (number - (len(names) - 1) / 2) * 0.7 / max(len(names), 1)
        colour, marker = looks[name]
        for place, row in enumerate(report.rows[name]):
            if row.speedup is None:
                continue
            ratio = row.speedup.ratio
            if ratio.low is not None and ratio.high is not None:
                axes.plot([ratio.low, ratio.high], [place + offset] * 2, color=colour, linewidth=1.6)
            axes.plot(ratio.value, place + offset, marker, color=colour, markersize=5, label=name)
            shown.append(ratio.value)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(min(shown) / 1.6, max(shown) * 1.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(categories)), categories)
    axes.set_ylim(len(categories) - 0.4, -0.6)
    axes.set_xlabel("speed (geometric mean over prompts, 95% interval)")
    axes.set_title(f"Speed relative to {_told(run.baseline)}")
    axes.grid(axis="x", alpha=0.3)
    _legend(axes, ncols=2)


def _legend(axes: Any, **look: Any) -> None:
    """Each label once, below the axis: what is drawn may be anywhere. The distance is in font sizes."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(map(_told, labels), handles, strict=True))
    if once:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 4.0, "fontsize": 8}
        axes.legend(once.values(), once.keys(), edgecolor="none", **below, **look)


def _told(name: str) -> str:
    """The name of an arm, with those of kernels in words."""
    return name.replace("@stock", " on llama.cpp's kernels").replace("@specx", " on specx's kernels")


def _draw_steps(axes: Any, run: Run, report: Report, looks: Mapping[str, tuple[str, str]]) -> None:
    """The staircases as lines, and what arms really took as dots as large as their share of the steps."""
    widest = 1
    styles = ("-", "--", ":", "-.")
    for number, (plain, depths) in enumerate(run.staircases.items()):
        for style, (depth, steps) in zip(styles, depths.items(), strict=False):
            xs = sorted(map(int, steps))
            where = f"{plain}, " if len(run.staircases) > 1 else "measured "
            colour = GREY if not number else COLOURS[-1 - number % len(COLOURS)]
            label = f"{where}after {depth} tokens"
            axes.plot(xs, [steps[str(n)] for n in xs], style, color=colour, linewidth=1.2, label=label)
            widest = max(widest, *xs)
    for name, detail in report.details.items():
        taken = {n: steps for n, steps in detail.widths.items() if steps[0] >= FEW}
        total = sum(count for count, _ in taken.values())
        if name not in looks or not total or not detail.by_source:
            continue
        colour, marker = looks[name]
        sizes = [14 + 260 * count / total for count, _ in taken.values()]
        times = [ms for _, ms in taken.values()]
        axes.scatter(
            list(taken),
            times,
            sizes,
            color=colour,
            marker=marker,
            alpha=0.6,
            label=f"steps of {name}",
        )
        widest = max(widest, *taken)
    axes.set_xscale("log", base=2)
    ticks = [1 << i for i in range(8) if 1 << i <= widest]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens verified in one step")
    axes.set_ylabel("milliseconds")
    axes.set_title("What a step costs (dots: as large as their share)")
    axes.grid(alpha=0.3)
    _legend(axes, ncols=2, markerscale=0.5)


def _draw_depths(axes: Any, report: Report, looks: Mapping[str, tuple[str, str]]) -> None:
    deepest = 0
    for name, detail in report.details.items():
        seen = [(i + 1, b / a) for i, (a, b) in enumerate(detail.by_depth) if a >= FEW]
        if name in looks and seen:
            colour, marker = looks[name]
            xs, ys = zip(*seen, strict=True)
            look = {"color": colour, "markersize": 3, "linewidth": 1.2, "label": name}
            axes.plot(xs, ys, marker + "-", clip_on=False, **look)  # none right is on the axis
            deepest = max(deepest, *xs)
    axes.set_title("Drafted tokens that were right")
    axes.set_xlabel("tokens ahead")
    _shares(axes.yaxis, axes.set_ylim)
    axes.grid(alpha=0.3)
    if deepest:
        axes.xaxis.get_major_locator().set_params(integer=True)
        _legend(axes)
    else:
        _say(axes, NOTHING)


def _shares(axis: Any, set_limits: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0))
    set_limits(0, 1.05)


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)


def _draw_sources(axes: Any, report: Report) -> None:
    """A bar for each source of each arm."""
    bars = [
        (f"{source}\n({_told(name)})" if len(report.details) > 2 else source, source, drafted, accepted)
        for name, detail in report.details.items()
        for source, (drafted, accepted) in sorted(detail.by_source.items())
    ]
    for place, (_, source, drafted, accepted) in enumerate(bars):
        share = accepted / max(drafted, 1)
        axes.barh(place, share, color=SOURCE_COLOURS.get(source, OTHER_SOURCE), height=0.6)
        inside = share > 0.6
        text = f"{share:.0%} of {drafted}"
        at = share + (-0.02 if inside else 0.02)
        axes.text(at, place, text, va="center", ha="right" if inside else "left")
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
    axes.set_ylim(max(len(bars), 3) - 0.4, -0.6)
    axes.set_title("The same by source")
    _shares(axes.xaxis, axes.set_xlim)
    if not bars:
        _say(axes, NOTHING)


def _draw_tokens(axes: Any, run: Run) -> None:
    """One answer as it was written, each token where and when it came, beside the baseline's.

    It is of the arm of which most drafted tokens were right: one without any has nothing to show.
    """
    drafting = [arm for arm in run.specx_arms if any(answer.by_source for answer in run.of(arm.name))]
    drafting.sort(key=lambda arm: -sum(answer.draft_n_accepted for answer in run.of(arm.name)))
    answer = sample_answer(run.of(drafting[0].name)) if drafting else None
    if answer is None:
        axes.set_title("Tokens over time")
        _say(axes, NOTHING)
        return
    plain = next(
        (a for a in run.of(drafting[0].plain) if (a.case, a.round) == (answer.case, answer.round)), None
    )
    if plain is not None and plain.step_ms:
        times, counts = _progress(plain)
        axes.plot([0, *times], [0, *counts], color="black", linewidth=1, label=plain.arm)
    times, _ = _progress(answer)
    moments = [t for t, n in zip(times, answer.step_tokens, strict=True) for _ in range(n)]
    for source in sorted(set(answer.sources), key=lambda name: (name != "target", name)):
        own = [i for i, name in enumerate(answer.sources) if name == source]
        label = "the model itself" if source == "target" else source
        axes.scatter(
            [moments[i] for i in own],
            [i + 1 for i in own],
            9,
            color=SOURCE_COLOURS.get(source, OTHER_SOURCE),
            label=label,
        )
    axes.set_xlabel("seconds since the prompt was read")
    axes.set_ylabel("tokens written")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_title(f"Tokens of {one_line(answer.case)} over time, {_told(answer.arm)}")
    axes.grid(alpha=0.3)
    _legend(axes, ncols=2, markerscale=1.5)


def _progress(answer: Answer) -> tuple[Sequence[float], Sequence[int]]:
    """Seconds at the end of each step, and the tokens written by then."""
    return [ms / 1e3 for ms in accumulate(answer.step_ms)], [*accumulate(answer.step_tokens)]
