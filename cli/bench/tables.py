"""What `specx bench` found, for a person: tables and small pictures on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.text import Text

from specx.cli.bench.text import LogAxis, bar, source_letters, token_line
from specx.cli.terminal.console import stdout
from specx.cli.terminal.tables import show_fields, show_table
from specx.engine.bench.compare import RunComparison
from specx.engine.bench.intervals import Estimate
from specx.engine.bench.records import ArmInfo, Run
from specx.engine.bench.report import Detail, Report, Row, sample_answer

__all__ = [
    "duration",
    "estimate_text",
    "identity_lines",
    "show_comparison",
    "show_report",
    "steadiness_lines",
]

NARROWEST, WIDEST = 60, 100  # columns of a picture
LABEL, CELL = 16, 8  # columns of the names of measures, and of a number
HEADING = 9  # columns of the names of what was measured
SHOWN_PARTINGS = 5
SHOWN_DEPTHS = 12
FEW = 5  # drafted tokens say little


def show_report(run: Run, report: Report) -> None:
    """Everything, on stdout."""
    out = stdout().print
    show_fields(heading(run), HEADING)
    for arms in _side_by_side(run.arms):
        out()
        _show_arms(report, arms)
    for arm in run.arms:
        if report.rows[arm.name][-1].speedup is not None:
            out()
            _show_speedups(run, arm, report.rows[arm.name])
    for arm in run.specx_arms:
        _show_detail(run, arm, report.details[arm.name])
    out()
    for line in [*identity_lines(run, report), *steadiness_lines(report), *_notes(run)]:
        out(line)


def heading(run: Run) -> Iterator[tuple[str, str]]:
    """What was measured, where and how, each with its name."""
    model, settings = run.model, run.settings
    loads = ", ".join(f"{arm.load_s:.1f} s" for arm in run.arms if arm.load_s)
    yield "model", f"{model['name']} ({model['file']}, {model['type']}), loaded in {loads or '0 s'}"
    yield "machine", run.machine["cpu"] or run.machine["system"]
    cases = {answer.case for answer in run.answers}
    categories = {answer.category for answer in run.answers}
    kinds = f" of {len(categories)} categories" if len(categories) > 1 else ""
    sampling = settings["sampling"]
    yield (
        "run",
        f"{_count(len(cases), 'prompt')}{kinds}, {_count(settings['rounds'], 'round')}, "
        f"at most {settings['n_predict']} tokens, {settings['caches']} caches"
        + (", added texts searched" if settings.get("corpus") else ""),
    )
    part = ", interrupted" if run.partial else ""
    yield (
        "",
        f"temperature {sampling['temperature']:g}, seed {sampling['seed']}, "
        f"context {settings['context']}, {duration(run.seconds)}{part}",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def duration(seconds: float) -> str:
    """Of an estimate or of a run: "40 s", "4 min 10 s"."""
    whole = round(seconds)
    return f"{whole} s" if whole < 90 else f"{whole // 60} min {whole % 60:02d} s"


def estimate_text(estimate: Estimate | None, unit: str = "") -> str:
    """A number with its interval: "1.32x [1.20, 1.45]"."""
    if estimate is None:
        return "-"
    text = f"{estimate.value:.2f}{unit}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:.2f}, {estimate.high:.2f}]"


MEASURES: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("tokens/s", lambda row: "-" if row.tokens_per_s is None else f"{row.tokens_per_s.value:.1f}"),
    ("  95% interval", lambda row: _ends(row.tokens_per_s)),
    ("first token ms", lambda row: _number(row.first_token_ms, 1)),
    ("step ms p50", lambda row: _number(row.step_ms and row.step_ms[0], 2)),
    ("step ms p90", lambda row: _number(row.step_ms and row.step_ms[1], 2)),
    ("step ms p99", lambda row: _number(row.step_ms and row.step_ms[2], 2)),
    ("tokens/step", lambda row: _number(row.tokens_per_step, 2)),
    ("drafts accepted", lambda row: "-" if row.accepted is None else f"{row.accepted:.0%}"),
    ("host ms/step", lambda row: _number(row.host_ms, 2)),
    ("weights GB/s", lambda row: _number(row.gb_per_s, 1)),
    ("joules/token", lambda row: _number(row.joules_per_token, 2)),
)
"""Medians and means over all answers of an arm."""


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ends(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.low:.0f} to {estimate.high:.0f}"


def _show_arms(report: Report, arms: Sequence[ArmInfo]) -> None:
    rows = []
    for name, measure in MEASURES:
        cells = [measure(report.rows[arm.name][-1]) for arm in arms]
        if any(cell != "-" for cell in cells):
            rows.append((name, *cells))
    rows.append(("kernels, threads", *(f"{arm.kernels or 'own'}, {arm.threads}" for arm in arms)))
    peaks = [arm.peak_bytes for arm in arms]
    if any(peaks):
        rows.append(("peak memory MB", *("-" if peak is None else f"{peak / 1e6:.0f}" for peak in peaks)))
    _show_columns(("", *(arm.name for arm in arms)), rows)
    if sum(not arm.peer for arm in arms) > 1 and any(peaks):
        stdout().print("arms of specx share a process, and so their peak memory", style="dim")


def _side_by_side(arms: Sequence[ArmInfo]) -> Iterator[list[ArmInfo]]:
    """Arms that have room beside each other."""
    row: list[ArmInfo] = []
    for arm in arms:
        taken = LABEL + sum(max(len(each.name), CELL) + 2 for each in (*row, arm))
        if row and taken > _picture_width():
            yield row
            row = []
        row.append(arm)
    yield row


def _show_columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Like `show_table`, with the numbers to the right."""
    lines = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [line[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    show_table(padded[0], padded[1:])


def _picture_width() -> int:
    return min(max(stdout().width, NARROWEST), WIDEST)


def _show_speedups(run: Run, arm: ArmInfo, rows: Sequence[Row]) -> None:
    found = [(row.category, row.speedup) for row in rows if row.speedup is not None]
    label = max(len(category) for category, _ in found)
    texts = [_marked(speedup.ratio, speedup.basis) for _, speedup in found]
    text_width = max(map(len, texts))
    left = label + 5 + text_width + 2
    axis = LogAxis([s.ratio.value for _, s in found], max(_picture_width() - left - 6, 16))
    stdout().print(
        f"{arm.name}: speed relative to {run.baseline}, geometric mean and 95% interval", style="bold"
    )
    stdout().print(" " * left + axis.ticks(), style="dim")
    for (category, speedup), text in zip(found, texts, strict=True):
        line = f"{category:{label}} {speedup.prompts:3d} {text:{text_width}}   {axis.interval(speedup.ratio)}"
        stdout().print(line, style="bold" if category == found[-1][0] and len(found) > 1 else None)
    last = found[-1][1]
    stdout().print(
        f"of single prompts: median {last.median:.2f}x, fastest {last.most:.2f}x, "
        f"slowest {last.least:.2f}x\n({last.least_case})",
        style="dim",
    )
    if any(speedup.basis == "repeats" for _, speedup in found):
        stdout().print("*: fewer than 3 prompts: the interval of repeating them, not of others", style="dim")


def _marked(ratio: Estimate, basis: str) -> str:
    return estimate_text(ratio, unit="x") + ("*" if basis == "repeats" else "")


def _show_detail(run: Run, arm: ArmInfo, detail: Detail) -> None:
    if not detail.by_source:
        return
    out, width = stdout().print, _picture_width()
    out()
    out(f"{arm.name}: drafted tokens that were right", style="bold")
    named = [(name, *counts) for name, counts in detail.by_source.items()]
    ahead = [(f"{i + 1} ahead", *counts) for i, counts in enumerate(detail.by_depth) if counts[0] >= FEW]
    for name, drafted, accepted in (*named, *ahead[:SHOWN_DEPTHS]):
        share = accepted / max(drafted, 1)
        out(f"{name:14} {share:4.0%} of {drafted:<7d} {bar(share, width - 34)}".rstrip())
    out()
    out(f"{arm.name}: steps by how many tokens they verify", style="bold")
    total = sum(count for count, _ in detail.widths.values())
    for n, (count, ms) in detail.widths.items():
        out(f"{n:3d} {ms:8.2f} ms {count / total:4.0%} {bar(count / total, width - 34)}".rstrip())
    if (answer := sample_answer(run.of(arm.name))) is not None:
        out()
        letters = source_letters(answer.sources)
        legend = ", ".join(f"{letter} {name}" for name, letter in letters.items())
        title = f"{arm.name}: where the tokens of {answer.case} came from"
        out(Text(title, "bold"))
        out(f"{legend}; | begins a step of several", style="dim")
        for line in token_line(answer.sources, answer.step_tokens, width - 1):
            out(line)


def identity_lines(run: Run, report: Report) -> Iterator[str]:
    """Whether drafts changed anything, for each arm that could."""
    for arm in run.arms:
        row = report.rows[arm.name][-1]
        if not row.compared:
            continue
        against = "its first ones" if arm.name == arm.plain else f"{arm.plain}, token by token"
        if row.identical == row.compared:
            what = "repeated answers" if arm.name == arm.plain else "answers"
            yield f"{arm.name}: all {row.compared} {what} identical to {against}"
            continue
        parted = [parting for parting in run.partings if parting.arm == arm.name]
        ties = f", {row.near_ties} of them at near-ties" if row.near_ties else ""
        yield (
            f"{arm.name}: {len(parted)} of {row.compared} answers DIFFER from {against}{ties}"
            if not arm.peer
            else f"{arm.name}: {len(parted)} of {row.compared} answers differ from {against}"
        )
        for parting in parted[:SHOWN_PARTINGS] if not arm.peer else []:
            margin = "unknown margin" if parting.margin is None else f"margin {parting.margin:.3g}"
            noise = "" if parting.noise is None else f", logits differ by {parting.noise:.2g} on rereading"
            where = f"{parting.case}, round {parting.round + 1}: at token {parting.index + 1}"
            yield f"  {where}, {margin}{noise}"


def steadiness_lines(report: Report) -> Iterator[str]:
    """Whether the machine stayed the same."""
    steady = report.steadiness
    if steady.drift is None:
        yield "machine: too few plain answers to tell whether it stayed the same"
    else:
        change = f"{abs(steady.drift.change):.1%} {'slower' if steady.drift.change > 0 else 'faster'}"
        verdict = "DRIFTED" if steady.drifted else "BUSY, numbers are uncertain" if steady.busy else "steady"
        yield f"machine: {verdict}, plain steps became {change} (p = {steady.drift.p:.2g})"
    load = " to ".join(f"{load:.1f}" for load in steady.load_average)
    held_up = f"{steady.disturbed:.1%} of {steady.plain_steps} plain steps held up"
    yield "         " + (f"load {load}, {held_up}" if load else held_up)


def _notes(run: Run) -> Iterator[str]:
    if run.left_out:
        yield f"left out: {len(run.left_out)} (first: {run.left_out[0]})"
    if run.partial:
        yield "PARTIAL: the run was interrupted"


def show_comparison(comparison: RunComparison) -> None:
    """This run against an earlier one, on stdout."""
    out = stdout().print
    out()
    out(f"compared with the run of {comparison.before}: times as fast as then", style="bold")
    rows = []
    for change in comparison.changes:
        ratio = change.speedup.ratio
        known = ratio.low is not None
        verdict = "beyond noise" if change.beyond_noise else "within noise" if known else "unknown"
        text = _marked(ratio, change.speedup.basis)
        rows.append((change.arm, change.category, str(change.speedup.prompts), text, verdict))
    if rows:
        show_table(("arm", "category", "prompts", "speed", ""), rows)
    else:
        out("no arm answered the same prompts in both")
    if comparison.unmatched:
        out(f"asked in one of the two only: {comparison.unmatched}")
    for name, (before, now) in comparison.differences.items():
        out(f"differs: {name} was {before}, is {now}")
    out("the two did not take turns: how busy the machine was counts as a difference", style="dim")
