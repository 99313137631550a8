"""Decode recorded outputs with the real plan and simulated step times: policies compared without a model.

    python benchmarks/simulate.py TRACES_DIR [--staircase NAME ...] [--warm] [--half even|odd]

Traces come from record_traces.py, step times from staircases.json: milliseconds by width at measured depths,
as the store keeps them. The plan knows the staircase; what it must find out is which guesses come true.
Reported per category: speed over plain decoding (geometric mean); the part of the rate of an oracle that
knows the text and verifies the best prefix of the same drafts; and the speed relative to always verifying
drafts of the one width that turns out best for the category, or for all of them. Nothing is random: equal
code, equal figures.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from replay import Free, Setup, Trace, accepted_nodes, learn, load

from specx.backends.base import Facts
from specx.drafters.base import Draft, Drafting, Room
from specx.drafters.calibration.free import Calibration
from specx.drafters.free import SHARED_PROMPT
from specx.engine.budget import Budget, Decision, Part, Planned
from specx.engine.cost.staircase import Staircase
from specx.engine.learned.lengths import Outlook
from specx.engine.plan import Plan
from specx.kernels._native import FreeTrie

STAIRCASES = Path(__file__).with_name("staircases.json")
MAX_WIDTH, MAX_LEAVES = 64, 8
HOST_MS = 0.15  # of a step with drafts; of a plain decoder's step a third of it
SWITCH_MS = 1.2  # what a single token costs more after a wider step
FIXED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # widths; 1 is plain decoding
PROMPT_ROWS = 64  # rows of the prompt that are recycled: those of the last piece


@dataclass
class Outcome:
    """Milliseconds that one trace took."""

    plain: float = 0.0
    plan: float = 0.0
    oracle: float = 0.0
    fixed: dict[int, float] = field(default_factory=dict)
    promised: float = 0.0
    accepted: int = 0

    def speed(self, width: int | None = None) -> float:
        """Times that of plain decoding; of a fixed width, if one is given."""
        return self.plain / (self.plan if width is None else self.fixed[width])


class Settling(NamedTuple):
    """How steps depend on the widths of those before.

    Attributes:
        excess_ms: what a single token costs more after a wider step, on a GPU the first step of a row, the
            second, ...
        settles: as in `Facts`.
    """

    excess_ms: tuple[float, ...] = (SWITCH_MS,)
    settles: int = 1


SETTLING = {"h200-1b": Settling((3.2, 6.2), 3), "h200-8b": Settling((1.8, 6.1), 3)}  # docs/gpu.md


@dataclass
class World:
    """Step times, the same for every policy."""

    staircase: Staircase
    settling: Settling = field(default_factory=Settling)
    cache: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def time(self, n: int, length: int, before: Sequence[int]) -> float:
        """Milliseconds of a step of n tokens at `length` after steps of `before` tokens."""
        if length not in self.cache:
            self.cache[length] = self.staircase.costs(length)
        excess_ms, settles = self.settling
        latest = reversed(before[-len(excess_ms) :])
        alike = sum(1 for _ in takewhile(lambda width: width == n, latest))
        pays = alike < len(excess_ms) and (n == 1 or settles > 1)
        return float(self.cache[length][n]) + (excess_ms[alike] if pays else 0.0)


class FixedWidth:
    """Instead of a plan: everything that is proposed, up to one width."""

    def __init__(self, width: int) -> None:
        self.width = width

    def begin(self, settles: int) -> None:
        """A generation starts."""

    def choose(self, jobs: Sequence[Planned], facts: Facts) -> Decision:
        """As much of the draft as the width takes."""
        [job] = jobs
        draft = job.drafting.propose(Room(self.width - 1, facts.max_leaves))
        return Decision((Part(draft, 0, 1.0),), 1.0, 1.0, 1.0)

    def observe(self, *_step: object) -> None:
        """Nothing is learned."""


class Guessing(Drafting):
    """Proposes what a trie grows."""

    def __init__(self, trie: FreeTrie) -> None:
        self.trie = trie

    def propose(self, room: Room, after: Sequence[int] = ()) -> Draft:
        """The best tree that fits `room`, below the text and the tokens `after` it."""
        return self.trie.grow(room.limit, room.leaves, path=after)


def staircase(data: dict[str, dict[str, float]]) -> Staircase:
    made = Staircase(MAX_WIDTH)
    made.load_json(data)
    return made


def run(
    free: Free, trace: Trace, world: World, chain: bool, plan: Plan | FixedWidth | None, out: Outcome
) -> float:
    """Milliseconds to decode one trace, by `plan` or, without one, by the oracle."""
    trie, prompt, output = free.trie, len(trace.prompt), trace.output.tolist()
    trie.begin(trace.prompt, SHARED_PROMPT)
    learn(free.table, trace, max(0, prompt - PROMPT_ROWS), prompt)
    trie.observe(output[:1])  # the prompt gives the first token
    leaves = 1 if chain else MAX_LEAVES
    facts = Facts(n_ctx=1 << 20, max_width=MAX_WIDTH, max_leaves=leaves, settles=world.settling.settles)
    cache = SimpleNamespace(length=0, room=facts.n_ctx, again=(), max_leaves=facts.max_leaves)
    drafting = Guessing(trie)
    job = SimpleNamespace(cache=cache, drafting=drafting, budget=Budget(), outlook=Outlook())
    jobs = (cast(Planned, job),)
    if plan is not None:
        plan.begin(world.settling.settles)
    at, before, total = 1, [0 if world.settling.settles > 1 else 1], 0.0  # a GPU read the prompt before
    while at < len(output):
        cache.length = length = prompt + at
        if plan is None:
            widest = drafting.propose(Room(MAX_WIDTH - 1, facts.max_leaves))
            draft = best_in_hindsight(widest, output[at:], world, length)
        else:
            decision = plan.choose(jobs, facts)
            draft = decision.parts[0].draft
        accepted = accepted_nodes(draft.tokens.tolist(), draft.parents.tolist(), output[at:])
        emitted = min(accepted + 1, len(output) - at)
        n = len(draft) + 1
        forward = world.time(n, length, before)
        if isinstance(plan, Plan):
            out.promised += float(draft.probs.sum())
            out.accepted += accepted
        if plan is not None:
            plan.observe(decision, jobs, [length], [accepted], forward, HOST_MS)
        total += forward + HOST_MS
        before.append(n)
        trie.observe(output[at : at + emitted])
        learn(free.table, trace, prompt + at - 1, prompt + at - 1 + emitted)
        at += emitted
    return total


def best_in_hindsight(draft: Draft, future: list[int], world: World, length: int) -> Draft:
    """The prefix of the draft with the highest rate, once it is known what comes true."""
    tokens, parents = draft.tokens.tolist(), draft.parents.tolist()
    best, best_rate = 0, 0.0
    costs = world.staircase.costs(length)
    for nodes in range(len(draft) + 1):
        gained = 1 + accepted_nodes(tokens[:nodes], parents[:nodes], future)
        rate = min(gained, len(future)) / (float(costs[nodes + 1]) + HOST_MS)
        if rate > best_rate:
            best, best_rate = nodes, rate
    return draft.head(best)


def simulate(
    traces: list[Trace],
    data: dict[str, Any],
    *,
    settling: Settling | None = None,
    warm: bool,
    chain: bool,
    corpus: bool = False,
) -> dict[str, list[Outcome]]:
    """Outcomes by category."""
    vocab_size = 1 + max(int(max(t.ids.max(), t.prompt.max(), t.output.max())) for t in traces)
    setup = Setup(("suffix", "recycle"), warm, prompt_rows=True, corpus=corpus)
    world = World(staircase(data), settling or Settling())
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    free: list[Free] = []
    plan = Plan(staircase(data))
    calibrations = [Calibration() for _ in (None, None, *FIXED)]
    for i, trace in enumerate(traces):
        if not warm:
            calibrations = [Calibration() for _ in calibrations]
        if not warm or corpus or not free:
            searched = setup.corpus_for(traces, i)
            before = free if warm and free else [None] * len(calibrations)
            free = [
                setup.free(vocab_size, calibration, searched, each)
                for calibration, each in zip(calibrations, before, strict=True)
            ]
        out = Outcome()
        for at in range(1, len(trace.output)):
            steps = [1] * (at if world.settling.settles == 1 else at - 1)
            out.plain += world.time(1, len(trace.prompt) + at, steps) + HOST_MS / 3
        plan = plan if warm else Plan(staircase(data))
        out.plan = run(free[0], trace, world, chain, plan, out)
        out.oracle = run(free[1], trace, world, chain, None, out)
        for width, each in zip(FIXED, free[2:], strict=True):
            out.fixed[width] = run(each, trace, world, chain, FixedWidth(width), out)
        outcomes[trace.category].append(out)
    return outcomes


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def best_width(group: list[Outcome]) -> int:
    """The one width that would have been the fastest for all of `group`."""
    return max(FIXED, key=lambda width: geometric_mean([out.speed(width) for out in group]))


def report(name: str, outcomes: dict[str, list[Outcome]]) -> dict[str, float]:
    """Print one line a category; returns the figures of all of them."""
    print(
        f"{name:<20}{'speed':>7}{'median':>8}{'slowest':>9}{'of oracle':>11}{'best width':>12}{'of it':>7}"
        f"{'promised/accepted':>19}"
    )
    everything = [out for group in outcomes.values() for out in group]
    means, medians, of_fixed = {}, {}, {}
    for category, group in [*sorted(outcomes.items()), ("all", everything)]:
        speeds = [out.speed() for out in group]
        share = geometric_mean([out.oracle / out.plan for out in group])
        width = best_width(group)
        of_fixed[category] = geometric_mean([out.fixed[width] / out.plan for out in group])
        ratio = sum(out.promised for out in group) / max(sum(out.accepted for out in group), 1)
        means[category], medians[category] = geometric_mean(speeds), statistics.median(speeds)
        print(
            f"{category:<20}{means[category]:7.3f}{medians[category]:8.3f}{min(speeds):9.3f}{share:11.3f}"
            f"{width:12}{of_fixed[category]:7.3f}{ratio:19.2f}"
        )
    return {
        "speed": means.pop("all"),
        "of_best_fixed": of_fixed.pop("all"),
        "worst_category": min(means.values()),
        "worst_median": min(value for category, value in medians.items() if category != "all"),
        "worst_of_its_best_fixed": min(of_fixed.values()),
        "slowest": min(out.speed() for out in everything),
        "of_oracle": geometric_mean([out.oracle / out.plan for out in everything]),
    }


def main() -> None:
    known = json.loads(STAIRCASES.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("traces", type=Path)
    parser.add_argument("--staircase", nargs="+", default=list(known), choices=list(known))
    parser.add_argument("--warm", action="store_true", help="keep what is learned from prompt to prompt")
    parser.add_argument("--corpus", action="store_true", help="search the answers to similar prompts, too")
    parser.add_argument("--chain", action="store_true", help="no branches")
    parser.add_argument("--half", choices=["even", "odd"], help="only every other trace")
    args = parser.parse_args()
    traces = load(args.traces)
    if args.half:
        traces = traces[args.half == "odd" :: 2]
    options = {"warm": args.warm, "chain": args.chain, "corpus": args.corpus}
    figures = {
        name: report(
            name,
            simulate(traces, known[name], settling=SETTLING.get(name), **options),
        )
        for name in args.staircase
    }
    print(json.dumps({name: {k: round(v, 4) for k, v in row.items()} for name, row in figures.items()}))


if __name__ == "__main__":
    main()
