"""What checking the free draft in one call is worth, beside asking a draft model token by token.

    python benchmarks/cascade.py TARGET.gguf DRAFT.gguf PROMPTS.jsonl [...] [--limit 2] [-n 96] [--timed]

The same prompts are answered with the same drafters in three ways: the draft model is asked token by token;
it may check what the free drafters say comes next in one call; and they go on below its chain, too. The texts
must be the same. Without `--timed` nothing is timed: the models are run, and steps and calls take what was
measured of a target of 1.07 billion parameters and a draft model of 135 million (specx's kernels, two cores
of a Zen 4 without AMX) on a simulated clock. The figures are then the same on a busy machine, and TARGET may
be a small model that stands for one widened by widen_gguf.py, which writes the same text. With it, everything
takes what it takes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache, Model, Output, Tree, Want
from specx.backends.llama.kernels import KERNELS
from specx.backends.llama.model import LlamaModel
from specx.backends.scripted import SimulatedClock
from specx.backends.settings import Load
from specx.drafters.base import EMPTY_DRAFT, Text
from specx.drafters.free import FreeDrafter
from specx.drafters.guesser import GuessCosts, Guesser
from specx.drafters.mixture import MixtureDrafter
from specx.drafters.model import DraftModel, ModelGuesser
from specx.engine.bench.suites import Prompt, load_suite, sample
from specx.engine.plan import Plan
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.text.answer import Chunk

WAYS = ("token by token", "checked", "cascade")
TARGET_MS = {1: 23.3, 4: 27.2, 8: 34.8, 16: 46.3, 32: 80.5, 64: 161.0}
DRAFT_MS = {1: 3.5, 4: 4.1, 8: 5.7, 16: 9.0, 32: 16.1, 64: 32.2}
WIDEST = 64


@dataclass
class Told:
    """What one way took, over some answers.

    Attributes:
        ms: all of it, the prompt not counted.
        drafting_ms: the part spent on asking the draft model.
        tokens, steps, calls: emitted tokens, steps of the target, calls of the draft model.
    """

    ms: float = 0.0
    drafting_ms: float = 0.0
    tokens: int = 0
    steps: int = 0
    calls: int = 0

    def add(self, chunk: Chunk) -> None:
        """One step more."""
        self.ms += chunk.seconds * 1e3
        self.tokens += len(chunk.tokens)
        if chunk.step is not None:
            self.steps += 1
            if chunk.step.spent is not None:
                self.drafting_ms += chunk.step.spent.ms
                self.calls += chunk.step.spent.tokens

    def cell(self) -> str:
        """For a table."""
        speed, share = self.tokens / self.ms * 1e3, self.drafting_ms / self.ms
        return f"{speed:.1f} ({self.tokens / self.steps:.2f}, {self.calls / self.steps:.2f}, {share:.0%})"


class Checking(DraftModel):
    """A draft model that may be asked token by token only.

    Attributes:
        checks: whether it may check.
    """

    checks = True

    def follow(self, text: Text) -> Guesser:
        """A guesser for one text."""
        kind = ModelGuesser if self.checks else _TokenByToken
        return kind(self, text, self.take_idle(text.tokens))


class _TokenByToken(ModelGuesser):
    """Checks nothing."""

    @property
    def most_checked(self) -> int:
        """None."""
        return 0


class Ending(FreeDrafter):
    """Says nothing below the chain of a draft model."""

    def start(self, text: Text) -> Any:
        """Follow a text."""
        drafting, propose = super().start(text), None
        propose = drafting.propose
        drafting.propose = lambda room, after=(): EMPTY_DRAFT if after else propose(room)  # type: ignore[method-assign]
        return drafting


def costs_of(steps: Mapping[int, float]) -> NDArray[np.float64]:
    """(WIDEST + 1,) milliseconds by rows."""
    return np.interp(np.arange(WIDEST + 1), list(steps), list(steps.values()))


def slowed(model: Model, steps: Mapping[int, float], clock: SimulatedClock) -> None:
    """Let the calls of a model take simulated milliseconds."""
    costs, forward, opened = costs_of(steps), model.forward, model.open

    def timed(trees: Sequence[Tree], want: Want = Want.LOGITS) -> list[Output]:
        clock.sleep(costs[min(sum(map(len, trees)), WIDEST)] * 1e-3)
        return forward(trees, want)

    def open_timed() -> Cache:
        cache = opened()
        read = cache.prefill

        def prefill(tokens: Sequence[int], **options: Any) -> None:
            clock.sleep(len(tokens) * costs[WIDEST] / WIDEST * 1e-3)
            read(tokens, **options)

        cache.prefill = prefill  # type: ignore[method-assign]
        return cache

    model.forward, model.open = timed, open_timed  # type: ignore[method-assign]


def simulated(session: Session, steps: Mapping[int, float], clock: SimulatedClock) -> None:
    """Let the target's calls take simulated milliseconds, which are known beforehand: nothing is measured."""
    slowed(session.model, steps, clock)
    known = {str(n): ms for n, ms in steps.items()}
    session.staircase.load_json({"0": known, str(session.n_ctx): known})
    session.clock = clock
    session.measure_staircase = lambda *_given: None  # type: ignore[method-assign]
    session.between_steps.go_on = lambda caches: 0  # type: ignore[method-assign]


def way_of(
    way: str, draft: Model, vocab_size: int, clock: Callable[[], float], dearer: float
) -> MixtureDrafter:
    """The drafters of one way, which know nothing yet."""
    free = FreeDrafter(vocab_size) if way == "cascade" else Ending(vocab_size)
    drafter = MixtureDrafter(free)
    costs = GuessCosts(3.5 * dearer, 0.5 * dearer, 0.5 * dearer, 0.0)
    source = Checking(lambda: draft, n_ctx=4096, shared=vocab_size, costs=costs, clock=clock)
    source.checks = way != "token by token"
    drafter.guessers.append(source)
    return drafter


def measure(
    session: Session,
    drafters: Mapping[str, MixtureDrafter],
    prompts: Sequence[Prompt],
    options: argparse.Namespace,
) -> dict[str, dict[str, Told]]:
    """What each way took, by category.

    Raises:
        SystemExit: two ways gave different texts.
    """
    plans = {
        way: Plan(session.staircase, widths=session.plan.widths, clock=session.clock) for way in drafters
    }
    sampling = SamplingSettings(temperature=options.temp, seed=1)
    found: dict[str, dict[str, Told]] = defaultdict(lambda: {way: Told() for way in drafters})
    for prompt in prompts:
        if prompt.text:
            tokens = session.tokenize(prompt.text, add_special=True, parse_special=True)
        else:
            tokens = session.prompt_of(prompt.conversation())
        if len(tokens) + options.n > session.n_ctx:
            continue
        texts = []
        for way, drafter in drafters.items():
            session.drafter, session.plan = drafter, plans[way]
            session.forget_conversation()  # each way sees the rows of the prompt
            generation = session.generate(tokens, sampling, n_predict=options.n)
            for chunk in generation:
                found[prompt.category][way].add(chunk)
            texts.append(generation.result.tokens)
        if any(text != texts[0] for text in texts):
            raise SystemExit(f"error: the texts of {prompt.id} differ")
    return found


def report(found: Mapping[str, Mapping[str, Told]]) -> None:
    """A table; the last line is JSON: the geometric mean over categories."""
    print("Tokens a second (tokens a step, calls of the draft model a step, its share of the time):")
    print(f"| category | {' | '.join(WAYS)} | {' | '.join(WAYS[1:])} |")
    print("|---" * (2 * len(WAYS)) + "|")
    logs: dict[str, list[float]] = {way: [] for way in WAYS[1:]}
    for category, told in found.items():
        speeds = {way: told[way].tokens / told[way].ms for way in WAYS}
        ratios = {way: speeds[way] / speeds[WAYS[0]] for way in WAYS[1:]}
        cells = [told[way].cell() for way in WAYS] + [f"{ratio:.2f}" for ratio in ratios.values()]
        print(f"| {category} | {' | '.join(cells)} |")
        for way, ratio in ratios.items():
            logs[way].append(math.log(ratio))
    print(json.dumps({way: round(math.exp(statistics.fmean(each)), 3) for way, each in logs.items()}))


def main() -> None:
    """Answer all prompts in every way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("prompts", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, default=2, help="prompts of each category")
    parser.add_argument("-n", type=int, default=96, help="tokens of an answer")
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--dearer", type=float, default=1.0, help="simulate calls of the draft model so many times as dear"
    )
    parser.add_argument("--timed", action="store_true", help="take the time; else it is simulated")
    options = parser.parse_args()
    asked = Asked(options.target, kernels="specx", threads=options.threads, store=False, n_ctx=2048)
    with Session.open(asked, notice=print) as session:
        assert session.setup is not None
        load = Load(options.draft, session.setup.load.threads, session.setup.load.threads_batch, n_ctx=2048)
        drafts = [LlamaModel(load, kernels=KERNELS["specx"]) for _ in WAYS]
        clock: Callable[[], float] = time.perf_counter
        if not options.timed:
            clock = SimulatedClock()
            simulated(session, TARGET_MS, clock)
            for draft in drafts:
                slowed(draft, {n: options.dearer * ms for n, ms in DRAFT_MS.items()}, clock)
        prompts = [p for path in options.prompts for p in sample(load_suite(path), options.limit, 0)]
        ways = zip(WAYS, drafts, strict=True)
        drafters = {way: way_of(way, draft, session.vocab.size, clock, options.dearer) for way, draft in ways}
        report(measure(session, drafters, prompts, options))
        for draft in drafts:
            draft.close()


if __name__ == "__main__":
    main()
