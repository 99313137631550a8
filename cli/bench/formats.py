"""What `specx bench` found, for other programs and for documents: Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from specx.cli.bench.tables import estimate_text, heading, identity_lines, steadiness_lines
from specx.engine.bench.compare import RunComparison
from specx.engine.bench.records import Run
from specx.engine.bench.report import Report, Row

__all__ = ["COLUMNS", "as_csv", "as_json", "as_markdown", "extras"]

COLUMNS = (
    "arm",
    "baseline",
    "category",
    "answers",
    "prompts",
    "speedup",
    "speedup_low",
    "speedup_high",
    "interval_of",
    "speedup_median",
    "speedup_least",
    "tokens_per_s",
    "tokens_per_s_low",
    "tokens_per_s_high",
    "first_token_ms",
    "step_ms_p50",
    "step_ms_p90",
    "step_ms_p99",
    "tokens_per_step",
    "accepted",
    "host_ms",
    "gb_per_s",
    "joules_per_token",
    "identical",
    "compared",
    "near_ties",
)
"""Of the CSV, in this order; what is unknown is empty."""


def as_csv(run: Run, report: Report) -> str:
    """One line for each arm and category, after one with the names of the columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for rows in report.rows.values():
        writer.writerows([_value(cell) for cell in _cells(run, row)] for row in rows)
    return text.getvalue()


def _cells(run: Run, row: Row) -> Iterator[Any]:
    speed, rate = row.speedup, row.tokens_per_s
    ratio = speed and speed.ratio
    yield from (row.arm, run.baseline, row.category, row.answers, speed and speed.prompts)
    yield from (ratio and ratio.value, ratio and ratio.low, ratio and ratio.high)
    yield from (speed and speed.basis, speed and speed.median, speed and speed.least)
    yield from (rate and rate.value, rate and rate.low, rate and rate.high)
    yield from (row.first_token_ms, *(row.step_ms or (None, None, None)), row.tokens_per_step)
    yield from (row.accepted, row.host_ms, row.gb_per_s, row.joules_per_token)
    yield from (row.identical, row.compared, row.near_ties)


def _value(cell: Any) -> Any:
    return "" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else cell


def as_markdown(run: Run, report: Report) -> str:
    """Tables for a document."""
    lines = [f"- {' '.join(filter(None, each))}" for each in heading(run)]
    for arm in run.arms:
        lines += [
            "",
            f"**{arm.name}**" + (f" against {run.baseline}" if arm.name != run.baseline else ""),
            "",
        ]
        lines += [
            "| category | prompts | speed, 95% interval | slowest | tokens/s | tokens/step | accepted "
            "| first token ms | step ms p50 / p90 / p99 | host ms/step |",
            "|---" * 10 + "|",
        ]
        lines += ["| " + " | ".join(_markdown_cells(row)) + " |" for row in report.rows[arm.name]]
    lines += [
        "",
        *(f"- {line.strip()}" for line in (*identity_lines(run, report), *steadiness_lines(report))),
    ]
    if run.partial:
        lines.append("- PARTIAL: the run was interrupted")
    return "\n".join(lines) + "\n"


def _markdown_cells(row: Row) -> Iterator[str]:
    speed = row.speedup
    yield row.category
    yield "-" if speed is None else str(speed.prompts)
    yield "-" if speed is None else estimate_text(speed.ratio) + ("*" if speed.basis == "repeats" else "")
    yield "-" if speed is None else f"{speed.least:.2f}"
    yield "-" if row.tokens_per_s is None else f"{row.tokens_per_s.value:.1f}"
    yield _number(row.tokens_per_step)
    yield "-" if row.accepted is None else f"{row.accepted:.0%}"
    yield _number(row.first_token_ms, 1)
    yield "-" if row.step_ms is None else " / ".join(f"{ms:.2f}" for ms in row.step_ms)
    yield _number(row.host_ms)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def extras(report: Report, comparison: RunComparison | None) -> dict[str, Any]:
    """What JSON holds beside the run itself."""
    found: dict[str, Any] = {"report": report.to_json()}
    if comparison is not None:
        found["comparison"] = comparison.to_json()
    return found


def as_json(run: Run, report: Report, comparison: RunComparison | None) -> str:
    """Everything: the run as `--from` reads it, and the report."""
    return json.dumps({**run.to_json(), **extras(report, comparison)}) + "\n"
