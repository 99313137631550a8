"""What follows from the answers of a benchmark: speeds with their intervals, and how steady the machine was.

Speeds are compared prompt by prompt: the ratio of the medians over the rounds. Their geometric mean over the
prompts of a category has the interval that other prompts of the kind would fall into; with fewer than three
prompts it has the one that repeating these would, by how much the rounds of all prompts differ.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from specx.engine.bench.drift import Trend, trend
from specx.engine.bench.identity import compared
from specx.engine.bench.intervals import (
    Estimate,
    mean_interval,
    median_interval,
    repeat_interval,
    repeat_noise,
)
from specx.engine.bench.records import Answer, ArmInfo, Run

__all__ = [
    "ALL",
    "Detail",
    "Pairs",
    "Report",
    "Row",
    "Speedup",
    "Steadiness",
    "make_report",
    "sample_answer",
]

ALL = "all"
ENOUGH = 3  # prompts whose spread tells that of others
DISTURBED = 2.0  # times the median of its answer: a single token that takes longer was held up
CROWDED = 1.5  # processes for each core want to run before it begins: more than an earlier one's threads
BUSY = 0.05  # of the plain steps disturbed; on an idle machine it is one in a hundred
NOTABLE_DRIFT = 0.02  # of a step's time; less is not worth a word


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times as fast an arm is as the baseline.

    Attributes:
        ratio: geometric mean over the prompts, with its interval.
        basis: what the interval is about: other "prompts", or "repeats" of these.
        prompts: how many were compared.
        least, least_case: the smallest ratio of one prompt, and which prompt that is.
        median, most: of the ratios of single prompts.
    """

    ratio: Estimate
    basis: Literal["prompts", "repeats"]
    prompts: int
    least: float
    least_case: str
    median: float
    most: float


@dataclass(frozen=True, slots=True)
class Row:
    """One arm in one category, or in all of them. None is unknown.

    Attributes:
        arm, category: which.
        answers: how many; in all categories, those that write, if any does.
        speedup: against the baseline; None for the baseline itself or without common prompts.
        tokens_per_s: median over prompts, of tokens written (or read, where that is what counts).
        first_token_ms: median.
        step_ms: milliseconds of a step that 50, 90 and 99 of 100 do not exceed.
        tokens_per_step: written by a call of the model, on average.
        accepted: share of drafted tokens that were right; None if nothing was drafted.
        host_ms: milliseconds outside the model for each step.
        gb_per_s: weights read once per step, a lower bound of what the memory gave.
        joules_per_token: energy of the packages for each token written, reading the prompt included.
        identical, compared: answers that are those of the plain arm, of how many; later answers of the plain
            arm are compared with its first ones.
        near_ties: answers that part from it where noise can overturn the margin.
    """

    arm: str
    category: str
    answers: int
    speedup: Speedup | None
    tokens_per_s: Estimate | None
    first_token_ms: float | None
    step_ms: tuple[float, float, float] | None
    tokens_per_step: float | None
    accepted: float | None
    host_ms: float | None
    gb_per_s: float | None
    joules_per_token: float | None
    identical: int
    compared: int
    near_ties: int


@dataclass(frozen=True, slots=True)
class Detail:
    """What one arm did with its drafts, over all answers.

    Attributes:
        by_depth: (drafted, accepted) of tokens 1, 2, ... ahead.
        by_source: source -> (drafted, accepted).
        widths: tokens of a step -> (how many steps, their median milliseconds).
    """

    by_depth: list[tuple[int, int]]
    by_source: dict[str, tuple[int, int]]
    widths: dict[int, tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Steadiness:
    """Whether the machine stayed the same.

    Attributes:
        drift: of the logarithm of a plain step's time, with time in seconds; None if nothing can be compared.
        disturbed: share of plain steps that something held up.
        plain_steps: how many there were.
        load_average: of the machine, before and after.
        cores: that it has; None if that is not known.
    """

    drift: Trend | None
    disturbed: float
    plain_steps: int
    load_average: list[float]
    cores: int | None = None

    @property
    def busy(self) -> bool:
        """Whether something else took so much of it that the numbers are to be doubted."""
        crowded = self.cores and self.load_average and self.load_average[0] > CROWDED * self.cores
        return self.disturbed > BUSY or bool(crowded)

    @property
    def drifted(self) -> bool:
        """Whether it became notably faster or slower."""
        return self.drift is not None and self.drift.significant and abs(self.drift.change) >= NOTABLE_DRIFT


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is shown of a run.

    Attributes:
        rows: by arm, its categories and then all of them.
        details: arm -> its drafts.
        steadiness: of the machine.
    """

    rows: dict[str, list[Row]]
    details: dict[str, Detail]
    steadiness: Steadiness

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def make_report(run: Run) -> Report:
    """The report of a run with at least one answer."""
    categories = [*dict.fromkeys(answer.category for answer in run.answers)]
    rows = {}
    for arm in run.arms:
        pairs = None if arm.name == run.baseline else Pairs(run.of(arm.name), run.of(run.baseline))
        shown = [*categories, ALL] if len(categories) > 1 else [ALL]
        rows[arm.name] = [_row(run, arm, name, pairs.speedup(name) if pairs else None) for name in shown]
    details = {arm.name: _detail(run.of(arm.name)) for arm in run.specx_arms}
    return Report(rows, details, _steadiness(run))


class Pairs:
    """What two arms took for each token, prompt by prompt.

    Args:
        ours, theirs: their answers; those too short to tell a speed, and prompts that only one of them has,
            do not count.
    """

    def __init__(self, ours: Sequence[Answer], theirs: Sequence[Answer]) -> None:
        fast, slow = _times(ours), _times(theirs)
        self._category = {(a.case, a.prompt): a.category for a in ours}
        self._overall = _overall(ours)
        common = [case for case in fast if case in slow]
        self._logs = {case: _log_ratio(fast[case].values(), slow[case].values()) for case in common}
        self._rounds = {case: _by_round(fast[case], slow[case]) for case in common}
        self._noise = repeat_noise([*self._rounds.values()])

    def speedup(self, category: str = ALL) -> Speedup | None:
        """How many times as fast `ours` are as `theirs`; None without a common prompt."""
        within = self._overall if category == ALL else {c for c, n in self._category.items() if n == category}
        logs = {case: log for case, log in self._logs.items() if case in within}
        if not logs:
            return None
        if len(logs) >= ENOUGH:
            basis: Literal["prompts", "repeats"] = "prompts"
            mean = mean_interval([*logs.values()])
        else:
            basis = "repeats"
            mean = repeat_interval([self._rounds[c] or [log] for c, log in logs.items()], self._noise)
        least = min(logs, key=lambda case: logs[case])
        ratios = [math.exp(log) for log in logs.values()]
        return Speedup(
            ratio=mean.transformed(math.exp),
            basis=basis,
            prompts=len(logs),
            least=math.exp(logs[least]),
            least_case=least[0],
            median=statistics.median(ratios),
            most=max(ratios),
        )


def sample_answer(answers: Sequence[Answer]) -> Answer | None:
    """The answer whose tokens are shown: the one in the middle by tokens per step; None if none is known."""
    known = [answer for answer in answers if answer.sources and answer.counts and answer.round == 0]
    ranked = sorted(known, key=lambda answer: (answer.predicted_n / answer.steps, answer.case))
    return ranked[len(ranked) // 2] if ranked else None


def _overall(answers: Sequence[Answer]) -> set[tuple[str, str]]:
    """(case, digest of its prompt) of what counts for all categories together.

    Tokens read and tokens written have no common speed: where there are both, those written count.
    """
    written = {(answer.case, answer.prompt) for answer in answers if not answer.reading}
    return written or {(answer.case, answer.prompt) for answer in answers}


def _log_ratio(fast: Iterable[float], slow: Iterable[float]) -> float:
    """Logarithm of how many times as long the median of `slow` is as that of `fast`."""
    return math.log(statistics.median(slow) / statistics.median(fast))


def _times(answers: Iterable[Answer]) -> dict[tuple[str, str], dict[int, float]]:
    """(case, digest of its prompt) -> round -> milliseconds per token, of the answers that count."""
    times: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for answer in answers:
        if answer.counts:
            times[answer.case, answer.prompt][answer.round] = answer.ms_per_token
    return times


def _by_round(fast: Mapping[int, float], slow: Mapping[int, float]) -> list[float]:
    """The logarithm of the ratio in each round that both have."""
    return [math.log(slow[number] / fast[number]) for number in fast if number in slow]


def _row(run: Run, arm: ArmInfo, category: str, speedup: Speedup | None) -> Row:
    answers = [answer for answer in run.answers if category in (ALL, answer.category)]
    cases = {answer.case for answer in answers}
    own = [answer for answer in answers if answer.arm == arm.name]
    if category == ALL:
        within = _overall(own)
        own = [answer for answer in own if (answer.case, answer.prompt) in within]
    steps = sum(answer.steps for answer in own)
    drafted = sum(answer.draft_n for answer in own)
    predicted = sum(answer.predicted_n for answer in own)
    host = [answer.host_ms for answer in own if answer.host_ms is not None]
    joules = [answer.joules for answer in own if answer.joules is not None]
    seconds = sum(answer.decode_ms for answer in own) / 1e3
    parted = [p for p in run.partings if p.arm == arm.name and p.case in cases]
    rates = [1e3 / statistics.median(by_round.values()) for by_round in _times(own).values()]
    pairs = compared(answers, run.arms)[arm.name]
    read = arm.weight_bytes * steps / 1e9
    return Row(
        arm=arm.name,
        category=category,
        answers=len(own),
        speedup=speedup,
        tokens_per_s=median_interval(rates) if rates else None,
        first_token_ms=statistics.median(a.first_token_ms for a in own) if own else None,
        step_ms=_percentiles([ms for answer in own for ms in answer.step_ms]),
        tokens_per_step=predicted / steps if steps else None,
        accepted=sum(answer.draft_n_accepted for answer in own) / drafted if drafted else None,
        host_ms=sum(host) / steps if steps and host else None,
        gb_per_s=read / seconds if read and seconds else None,
        joules_per_token=sum(joules) / predicted if predicted and joules else None,
        identical=pairs - len(parted),
        compared=pairs,
        near_ties=sum(p.near_tie for p in parted),
    )


def _percentiles(values: list[float]) -> tuple[float, float, float] | None:
    if len(values) < 2:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[89], cuts[98]


def _detail(answers: Sequence[Answer]) -> Detail:
    depths: list[list[int]] = []
    sources: dict[str, list[int]] = {}
    times: dict[int, list[float]] = defaultdict(list)
    for answer in answers:
        for depth, counts in enumerate(answer.by_depth):
            if depth == len(depths):
                depths.append([0, 0])
            depths[depth] = [a + b for a, b in zip(depths[depth], counts, strict=True)]
        for source, counts in answer.by_source.items():
            sources[source] = [a + b for a, b in zip(sources.get(source, [0, 0]), counts, strict=True)]
        for width, ms in zip(answer.step_width, answer.step_ms, strict=True):
            times[width].append(ms)
    return Detail(
        by_depth=[(drafted, accepted) for drafted, accepted in depths],
        by_source={name: (drafted, accepted) for name, (drafted, accepted) in sources.items()},
        widths={n: (len(ms), statistics.median(ms)) for n, ms in sorted(times.items())},
    )


def _steadiness(run: Run) -> Steadiness:
    """From the first plain arm, which takes nothing but single tokens."""
    plain = next((arm.name for arm in run.specx_arms if arm.name == arm.plain), "")
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    held_up = total = 0
    rounds = Counter(answer.case for answer in run.of(plain))
    for answer in run.of(plain):
        if answer.reading or len(answer.step_ms) < 2:
            continue
        usual = statistics.median(answer.step_ms)
        held_up += sum(ms > DISTURBED * usual for ms in answer.step_ms)
        total += len(answer.step_ms)
        # Without a second round different prompts have to be compared with each other.
        group = answer.case if max(rounds.values()) > 1 else ""
        groups[group].append((answer.started_s, math.log(usual)))
    return Steadiness(
        drift=trend([*groups.values()]),
        disturbed=held_up / total if total else 0.0,
        plain_steps=total,
        load_average=run.load_average,
        cores=run.machine.get("cores"),
    )
