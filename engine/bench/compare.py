"""Two runs of `specx bench` side by side: which differences are beyond noise, and what else differs."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from specx.engine.bench.records import Run
from specx.engine.bench.report import ALL, Pairs, Speedup

__all__ = ["Change", "RunComparison", "compare_runs"]

IGNORED = ("machine.temperature_c", "machine.load")  # never the same, and shown with each run


@dataclass(frozen=True, slots=True)
class Change:
    """How fast an arm is now, relative to before, in one category or in all of them."""

    arm: str
    category: str
    speedup: Speedup

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval excludes that nothing changed."""
        return self.speedup.ratio.excludes(1.0)


@dataclass(frozen=True, slots=True)
class RunComparison:
    """This run against an earlier one.

    Attributes:
        before: when the earlier one began.
        changes: of the arms that both have, by category and then over all.
        differences: what the numbers depend on and is not the same: name -> (before, now).
        unmatched: prompts that only one of them has, or has with other tokens.
    """

    before: str
    changes: list[Change]
    differences: dict[str, tuple[Any, Any]]
    unmatched: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "before": self.before,
            "changes": [{**asdict(change), "beyond_noise": change.beyond_noise} for change in self.changes],
            "differences": {name: list(values) for name, values in self.differences.items()},
            "unmatched": self.unmatched,
        }


def compare_runs(now: Run, before: Run) -> RunComparison:
    """`now` against `before`, paired by prompt where the prompts have the same tokens."""
    changes = []
    for arm in now.arms:
        pairs = Pairs(now.of(arm.name), before.of(arm.name))
        categories = [*dict.fromkeys(answer.category for answer in now.of(arm.name))]
        for category in [*(categories if len(categories) > 1 else ()), ALL]:
            found = pairs.speedup(category)
            if found is not None:
                changes.append(Change(arm.name, category, found))
    asked, asked_before = ({(a.case, a.prompt) for a in run.answers} for run in (now, before))
    return RunComparison(before.started, changes, _differences(now, before), len(asked ^ asked_before))


def _differences(now: Run, before: Run) -> dict[str, tuple[Any, Any]]:
    common = {arm.name for arm in now.arms} & {arm.name for arm in before.arms}
    theirs, ours = dict(_facts(before, common)), dict(_facts(now, common))
    return {
        name: (theirs.get(name), ours.get(name))
        for name in {**theirs, **ours}
        if theirs.get(name) != ours.get(name) and name not in IGNORED
    }


def _facts(run: Run, arms: Container[str]) -> Iterator[tuple[str, Any]]:
    """What the numbers depend on, as ("machine.cpu", value)."""
    for part in ("machine", "model", "build", "settings"):
        yield from _leaves(part, getattr(run, part))
    for arm in run.arms:
        if arm.name in arms:
            yield f"arm {arm.name}", [arm.drafter, arm.kernels, arm.threads]


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    else:
        yield name, value
