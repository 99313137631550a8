"""How much later than alone the first token of a prompt comes beside long ones, in simulated time.

    python benchmarks/first_token.py [--staircase NAME ...] [--tokens 8 24 64 128 256] [--moments 12]

Seven texts with long prompts are written by the loop of a server, which has room for eight, and another one
comes at some moment. Step times come from staircases.json, those of several texts follow as the plan expects,
and a scripted model draws the text. Time passes in forward calls only: equal code, equal figures. Moments at
which nobody is being written do not count: whoever comes then waits for a piece of a prompt (docs/serve.md).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from simulate import STAIRCASES, staircase

from specx.backends.base import FeatureSink, Output, Progress, RowSink, Tree, Want
from specx.backends.scripted import ScriptedCache, ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.engine.cost.company import CompanyCosts
from specx.engine.cost.staircase import Staircase
from specx.engine.generation import Generation
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

TEXTS = 8
VOCAB = 400
GREEDY = SamplingSettings(temperature=0)


class _TimedCache(ScriptedCache):
    """Prompts are read in the time of the widest steps."""

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        progress: Progress | None = None,
        rows: RowSink | None = None,
        features: FeatureSink | None = None,
    ) -> None:
        """Commit `tokens` after the present ones."""
        before = self.length
        super().prefill(tokens, progress=progress, rows=rows, features=features)
        assert isinstance(self.model, _TimedModel)
        self.model.read(len(tokens), before)


class _TimedModel(ScriptedModel):
    """Recites a text; what it computes takes what the staircase says.

    Args:
        costs: milliseconds of a step.
        clock: on which they pass.
        peak: probability of going on with the text.

    Attributes:
        calls: when each began, and its milliseconds.
    """

    def __init__(self, costs: Staircase, clock: SimulatedClock, peak: float) -> None:
        text = np.random.default_rng(5).integers(1, VOCAB, 300).tolist()
        options: dict[str, Any] = {"even": True, "max_leaves": 1, "n_ctx": 2048, "max_texts": TEXTS}
        super().__init__(VOCAB, 3, script=text, peak=peak, clock=clock, cache_class=_TimedCache, **options)
        self._costs, self._company, self._clock = costs, CompanyCosts(costs), clock
        self.calls: list[tuple[float, float]] = []

    def forward(self, trees: Sequence[Tree], want: Want = Want.LOGITS) -> list[Output]:
        """Compute a tree of tokens beyond each of some texts, committing nothing."""
        outputs = super().forward(trees, want)
        widths, lengths = [len(tree) for tree in trees], [tree.cache.length for tree in trees]
        self._pass(self._company.cost(widths, lengths))
        return outputs

    def read(self, tokens: int, length: int) -> None:
        """So many tokens of a prompt were read at that length."""
        costs = self._costs.all_costs(length)
        whole, rest = divmod(tokens, len(costs) - 1)
        self._pass(whole * costs.item(-1) + (costs.item(rest) if rest else 0.0))

    def _pass(self, ms: float) -> None:
        self.calls.append((self._clock(), ms))
        self._clock.sleep(ms / 1e3)


class _Coming:
    """Texts that come at some time. Implements `Arrivals`.

    Args:
        clock: seconds.
        others: come at once, each with so many tokens of `answer`.
        last: comes `at` some second.

    Attributes:
        written: how many of the others were being written when the last one was taken.
    """

    def __init__(
        self, clock: SimulatedClock, others: Sequence[Generation], last: Generation, at: float, answer: int
    ) -> None:
        self._clock, self._others, self._last, self._answer = clock, others, last, answer
        self._left = [*((0.0, other) for other in others), (at, last)]
        self.written = 0

    def take(self, wait: bool) -> Generation | None:
        """The next one, if it is there."""
        if not self._left or (self._left[0][0] > self._clock() and not wait):
            return None
        at, generation = self._left.pop(0)
        self._clock.sleep(at - self._clock())
        if generation is self._last:
            self.written = sum(0 < len(each.result.tokens) < self._answer for each in self._others)
        return generation


@dataclass(frozen=True, slots=True)
class Seen:
    """What one run gave.

    Attributes:
        first_ms: until the first token of the text that came last, from when it came.
        beside: texts that were being written then.
        seconds: until all were written.
        tokens: of all.
        calls: when each call of the model began, and its milliseconds.
    """

    first_ms: float
    beside: int
    seconds: float
    tokens: int
    calls: list[tuple[float, float]]


def run(
    data: dict[str, Any],
    tokens: int,
    at: float,
    *,
    long: int = TEXTS - 1,
    prompt: int = 700,
    answer: int = 200,
    peak: float = 0.8,
) -> Seen:
    """A prompt of so many `tokens` comes `at` some second after `long` others of `prompt` tokens each.

    Args:
        data: step times, as in staircases.json.
        tokens, at, long, prompt: see above.
        answer: tokens of each of the long ones.
        peak: probability of what the drafts mostly say.
    """
    clock = SimulatedClock()
    model = _TimedModel(staircase(data), clock, peak)
    asked = Asked(Path("scripted.gguf"), drafter="free", store=False, texts=TEXTS)
    session = Session(
        model, asked, Learned(Store(None), model_key="m", cost_key="c"), name="scripted", clock=clock
    )
    session.staircase.load_json(data)
    session.staircase.needs_measuring = lambda length: False  # type: ignore[method-assign]
    text = np.random.default_rng(3).integers(1, VOCAB, (TEXTS, max(prompt, tokens))).tolist()
    others = [
        session.generate(text[i][:prompt], GREEDY, n_predict=answer, ignore_eos=True) for i in range(long)
    ]
    last = session.generate(text[-1][:tokens], GREEDY, n_predict=16, ignore_eos=True)
    coming, first_s, count = _Coming(clock, others, last, at, answer), 0.0, 0
    for generation, chunk in session.together(coming, patient=False):
        count += len(chunk.tokens)
        if generation is last and chunk.tokens and not first_s:
            first_s = clock() - at
    return Seen(first_s * 1e3, coming.written, clock(), count, model.calls)


def ratios(data: dict[str, Any], tokens: int, moments: int, **options: Any) -> list[float]:
    """How many times as late as alone the first token comes, at moments when others are written."""
    whole = run(data, tokens, 0.0, **options).seconds
    times = np.random.default_rng(1).uniform(0.1, 0.8, moments) * whole
    return list(_at(data, tokens, map(float, times), **options))


def worst(data: dict[str, Any], tokens: int, moments: int, **options: Any) -> list[float]:
    """The same just after the beginnings of so many of the longest calls."""
    late = 1e4  # when the others are long finished
    calls = sorted(run(data, tokens, late, **options).calls, key=lambda call: -call[1])
    times = (began + 1e-6 for began, _ in calls if began < late)
    return list(islice(_at(data, tokens, times, **options), moments))


def _at(data: dict[str, Any], tokens: int, times: Iterable[float], **options: Any) -> Iterator[float]:
    alone = run(data, tokens, 0.0, **{**options, "long": 0}).first_ms
    for at in times:
        seen = run(data, tokens, at, **options)
        if seen.beside:
            yield seen.first_ms / alone


def main() -> None:
    known = json.loads(STAIRCASES.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [name for name in known if "specx" in name]
    parser.add_argument("--staircase", nargs="+", default=names, choices=list(known))
    parser.add_argument("--tokens", nargs="+", type=int, default=[8, 24, 64, 128, 256], help="of the prompt")
    parser.add_argument("--moments", type=int, default=12, help="at which it comes")
    parser.add_argument("--peak", type=float, default=0.8, help="probability of what the model mostly says")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.staircase:
        whole = run(known[name], 24, 0.0, peak=arguments.peak)
        rate = whole.tokens / whole.seconds
        print(f"{name}: {rate:.1f} tokens/s in all\n  tokens  alone, ms  median  largest")
        for tokens in arguments.tokens:
            alone = run(known[name], tokens, 0.0, long=0, peak=arguments.peak).first_ms
            found = ratios(known[name], tokens, arguments.moments, peak=arguments.peak)
            median, largest = statistics.median(found), max(found)
            print(f"  {tokens:6}{alone:11.1f}{median:8.2f}{largest:9.2f}", flush=True)
            rows.append(
                {"staircase": name, "tokens_per_second": rate, "tokens": tokens, "alone_ms": alone}
                | {"median": median, "largest": largest, "moments": len(found)}
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
