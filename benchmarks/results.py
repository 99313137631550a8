"""Measurements as JSON lines, and what follows from them: paired ratios, spread, identity of the text."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Measurement", "Results", "Spread", "paired_ratios", "report", "spread"]

SHORT = 16
"""Answers of fewer tokens say little about speed and are left out of the ratios."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One answer by one arm.

    Attributes:
        case: id of the prompt and number of the turn, "id#0".
        category: of the prompt.
        arm: who answered.
        repeat: how often it had answered before.
        prompt_n, prompt_ms: tokens of the prompt, and milliseconds to read them.
        predicted_n, decode_ms: tokens of the answer, and milliseconds to write them.
        steps: calls of the model while writing.
        draft_n, draft_n_accepted: drafted tokens that were verified, and those that were right.
        host_ms: milliseconds of the writing spent outside the model; None if unknown.
        tokens: ids of the answer, without the one that ends it.
        text: of the answer.
    """

    case: str
    category: str
    arm: str
    repeat: int
    prompt_n: int
    prompt_ms: float
    predicted_n: int
    decode_ms: float
    steps: int
    draft_n: int
    draft_n_accepted: int
    host_ms: float | None
    tokens: list[int]
    text: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from all others of a run."""
        return self.case, self.arm, self.repeat

    @property
    def rate(self) -> float:
        """Tokens per second while writing."""
        return self.predicted_n / max(self.decode_ms, 1e-6) * 1e3


class Results:
    """A file of measurements that grows by whole lines; the first line says what was measured.

    Args:
        path: the file.
        header: the settings of the run.
        resume: go on with an existing file, which must have the same header.

    Raises:
        ValueError: the file exists and is not to be resumed, or was made with other settings.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, resume: bool) -> None:
        self._path = path
        self.measurements: dict[tuple[str, str, int], Measurement] = {}
        if path.exists() and path.stat().st_size:
            if not resume:
                raise ValueError(f"{path} exists; give --resume to go on with it")
            self._read(header)
        else:
            self._append({"header": header})

    def add(self, measurement: Measurement) -> None:
        """Keep a measurement, on disk before this returns."""
        self._append(asdict(measurement))
        self.measurements[measurement.key] = measurement

    def _read(self, header: dict[str, Any]) -> None:
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # the run was killed in the middle of a line
            os.truncate(self._path, whole)
        lines = data[:whole].splitlines()
        made_with = json.loads(lines[0]).get("header") if lines else None
        if made_with != json.loads(json.dumps(header)):
            changed = sorted(k for k in header if (made_with or {}).get(k) != header[k])
            raise ValueError(f"{self._path} was made with other settings ({', '.join(changed)})")
        for line in lines[1:]:
            measurement = Measurement(**json.loads(line))
            self.measurements[measurement.key] = measurement

    def _append(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with self._path.open("ab", buffering=0) as file:  # one write, so a line is there whole or not at all
            file.write(line.encode())


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, quartiles and geometric mean of some ratios."""

    n: int
    median: float
    low: float
    high: float
    geometric: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}], gm {self.geometric:.2f}"


def spread(values: Sequence[float]) -> Spread | None:
    """Of positive values; None if there are none."""
    if not values:
        return None
    low, _, high = statistics.quantiles([*values, *values[: len(values) == 1]], n=4, method="inclusive")
    geometric = math.exp(math.fsum(map(math.log, values)) / len(values))
    return Spread(len(values), statistics.median(values), low, high, geometric)


def paired_ratios(
    measurements: Iterable[Measurement], arm: str, baseline: str, value: Callable[[Measurement], float]
) -> dict[str, float]:
    """Per case, the median `value` of `arm` over its repeats, divided by that of `baseline`.

    Cases that one of them has not answered, or answered in fewer than SHORT tokens, are left out.
    """
    values: dict[tuple[str, str], list[float]] = {}
    for m in measurements:
        if m.predicted_n >= SHORT:
            values.setdefault((m.case, m.arm), []).append(value(m))
    return {
        case: statistics.median(values[case, arm]) / statistics.median(theirs)
        for (case, name), theirs in values.items()
        if name == baseline and (case, arm) in values
    }


def report(measurements: Sequence[Measurement], arms: Sequence[str], baseline: str) -> str:
    """Markdown: speed against the baseline per category, one table an arm, and the identity of the texts."""
    categories = [*dict.fromkeys(m.category for m in measurements)]
    groups = [(name, [m for m in measurements if m.category == name]) for name in categories]
    groups.append(("all", list(measurements)))
    parts = [_speed_table(groups, arm, baseline) for arm in arms if arm != baseline]
    return "\n\n".join([*parts, _identity_table(measurements, arms)])


def _speed_table(groups: Sequence[tuple[str, list[Measurement]]], arm: str, baseline: str) -> str:
    lines = [
        f"**{arm}** against {baseline}: tokens per second, paired by prompt",
        "",
        "| category | prompts | median | quartiles | geom. mean | slowest | tokens/step | host ms/step |",
        "|---" * 8 + "|",
    ]
    for category, group in groups:
        ratios = paired_ratios(group, arm, baseline, lambda m: m.rate)
        if (s := spread([*ratios.values()])) is None:
            continue
        own = [m for m in group if m.arm == arm]
        steps = max(sum(m.steps for m in own), 1)
        host = [m.host_ms for m in own if m.host_ms is not None]
        lines.append(
            f"| {category} | {s.n} | {s.median:.2f} | {s.low:.2f} to {s.high:.2f} | {s.geometric:.2f} | "
            f"{min(ratios.values()):.2f} | {sum(m.predicted_n for m in own) / steps:.2f} | "
            f"{f'{sum(host) / steps:.2f}' if host else '-'} |"
        )
    return "\n".join(lines)


def _identity_table(measurements: Sequence[Measurement], arms: Sequence[str]) -> str:
    """How many answers are the same, token by token, for each arm against each."""
    answers = {(m.case, m.arm): tuple(m.tokens) for m in measurements}
    lines = [
        "Identical answers, token by token",
        "",
        "| | " + " | ".join(arms) + " |",
        "|---" * (len(arms) + 1) + "|",
    ]
    for arm in arms:
        cells = [_identical(answers, arm, other) for other in arms]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _identical(answers: dict[tuple[str, str], tuple[int, ...]], arm: str, other: str) -> str:
    both = [case for case, name in answers if name == arm and (case, other) in answers]
    return f"{sum(answers[case, arm] == answers[case, other] for case in both)} of {len(both)}"
