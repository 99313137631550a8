"""Recorded outputs written together with the real loop and simulated step times: policies without a model.

    python benchmarks/company.py TRACES_DIR [--texts 8] [--staircase NAME ...] [--arms none apart shared]

Traces come from record_traces.py, step times of one text from staircases.json, and those of several follow
from them as the plan expects (engine/cost/company.py). What the row of a wrong guess says is not in a trace;
the row of the most similar context stands for it. Drafters:

    none     no drafts
    apart    drafts of texts that share no caches
    shared   drafts as they are

Nothing is random and no time but that of steps passes: equal code, equal figures, but for the processor time
that a step takes outside of the model. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from batch import Apart
from numpy.typing import NDArray
from replay import Trace, load
from simulate import STAIRCASES, staircase

from specx.backends.base import FeatureSink, Output, Progress, RowSink, Tree, Want
from specx.backends.scripted import ScriptedCache, ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.engine.cost.company import CompanyCosts
from specx.engine.cost.staircase import Staircase
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

ARMS = ("none", "apart", "shared")
SIMILAR = 4  # tokens of a context at most, by which the row of another one is found
LOW = -30.0  # logit of what is not among a position's best, and less
MAX_ROWS = 64


class _TimedCache(ScriptedCache):
    """Prompts are read in the time of the model."""

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        progress: Progress | None = None,
        rows: RowSink | None = None,
        features: FeatureSink | None = None,
    ) -> None:
        """Commit `tokens` after the present ones."""
        model, start = self.model, time.process_time()
        super().prefill(tokens, progress=progress, rows=rows, features=features)
        assert isinstance(model, Recorded)
        model.inside_s += time.process_time() - start


class Recorded(ScriptedModel):
    """What was recorded, as a model; a step takes what the staircase says.

    Args:
        traces: of one model.
        costs: milliseconds of a step.
        clock: on which they pass.
        texts: at once, each in a stream of its own.

    Attributes:
        inside_s: processor time in its calls.
    """

    def __init__(self, traces: Sequence[Trace], costs: Staircase, clock: SimulatedClock, texts: int) -> None:
        whole = [np.concatenate((trace.prompt, trace.output)).tolist() for trace in traces]
        most = max(map(len, whole))
        size = 1 + max(*(int(trace.ids.max()) for trace in traces), *map(max, whole))
        super().__init__(
            size,
            most,
            max_leaves=1,
            max_texts=texts,
            max_rows=MAX_ROWS,
            even=True,
            clock=clock,
            cache_class=_TimedCache,
        )
        self.inside_s = 0.0
        self._others = (LOW - np.random.default_rng(0).random(size)).astype(np.float32)
        self._company, self._clock = CompanyCosts(costs), clock
        self._known: dict[tuple[int, ...], tuple[Trace, int]] = {}
        for trace, text in zip(traces, whole, strict=True):
            for i in range(len(text)):
                for n in range(1, SIMILAR + 1):
                    self._known.setdefault(tuple(text[max(i + 1 - n, 0) : i + 1]), (trace, i))
                if i >= len(trace.prompt) - 1:
                    self._known[tuple(text[: i + 1])] = trace, i

    def logits(self, context: Sequence[int]) -> NDArray[np.float32]:
        """Logits (V,) float32 of the token after `context`."""
        row: NDArray[np.float32] = self._others.copy()
        whole = tuple(context)
        for key in (whole, *(whole[-n:] for n in range(SIMILAR, 0, -1))):
            if key in self._known:
                trace, i = self._known[key]
                row[trace.ids[i]] = trace.logits[i]
                break
        return row

    def forward(self, trees: Sequence[Tree], want: Want = Want.LOGITS) -> list[Output]:
        """Compute a tree of tokens beyond each of some texts, committing nothing."""
        start = time.process_time()
        outputs = super().forward(trees, want)
        self.inside_s += time.process_time() - start
        widths, lengths = [len(tree) for tree in trees], [tree.cache.length for tree in trees]
        self._clock.sleep(self._company.cost(widths, lengths) / 1e3)
        return outputs


@dataclass
class Counts:
    """What writing all traces took.

    Attributes:
        steps: of the loop.
        text_steps: the same, once for each text.
        tokens: that were written.
        drafted, accepted: drafted tokens, and those that came true.
        seconds: by the staircase, reading prompts left out.
        host_us: processor time of a text in a step outside of the model, in microseconds; of this machine.
        wrong: texts that are not what was recorded.
    """

    steps: float = 0.0
    text_steps: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0
    host_us: float = 0.0
    wrong: int = 0


def write(traces: Sequence[Trace], data: dict[str, Any], texts: int, arm: str) -> Counts:
    """Have all traces written, `texts` at once."""
    clock = SimulatedClock()
    model = Recorded(traces, staircase(data), clock, texts)
    asked = Asked(
        Path("recorded.gguf"), drafter="none" if arm == "none" else "free", store=False, texts=texts
    )
    learned = Learned(Store(None), model_key="model", cost_key="cost")
    session = Session(model, asked, learned, name="recorded", clock=clock)
    session.staircase.load_json(data)
    session.staircase.needs_measuring = lambda length: False  # type: ignore[method-assign]
    if arm == "apart":
        session.drafter = Apart(model.vocab.size)
    greedy = SamplingSettings(temperature=0)
    answers = [
        session.generate(
            trace.prompt.tolist(), greedy, n_predict=len(trace.output), ignore_eos=True, label=trace
        )
        for trace in traces
    ]
    counts, start, began = Counts(), time.process_time(), clock()
    for _, chunk in session.together(answers):
        if chunk.step is not None:
            counts.steps += 1 / chunk.step.texts
            counts.text_steps += 1
            counts.tokens += len(chunk.tokens)
            counts.drafted += int(np.count_nonzero(chunk.step.draft.probs))
            counts.accepted += chunk.accepted
    counts.seconds = clock() - began
    counts.host_us = (time.process_time() - start - model.inside_s) / counts.text_steps * 1e6
    for answer in answers:
        assert isinstance(answer.label, Trace)
        counts.wrong += answer.result.tokens != answer.label.output.tolist()
    return counts


def main() -> None:
    known = json.loads(STAIRCASES.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("traces", type=Path)
    parser.add_argument("--texts", type=int, default=8, help="at once")
    parser.add_argument("--staircase", nargs="+", default=["xeon-specx-135m"], choices=list(known))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    arguments = parser.parse_args()
    traces = load(arguments.traces)
    rows = []
    for name in arguments.staircase:
        print(f"{name}, {len(traces)} texts, {arguments.texts} at once")
        heads = ("steps", 8), ("tokens/text step", 18), ("drafted", 9), ("accepted", 10), ("tokens/s", 10)
        print(" " * 8 + "".join(f"{head:>{width}}" for head, width in heads) + "  wrong  host, us")
        for arm in arguments.arms:
            found = write(traces, known[name], arguments.texts, arm)
            by_step, rate = found.tokens / found.text_steps, found.tokens / found.seconds
            print(
                f"{arm:<8}{found.steps:8.0f}{by_step:18.3f}{found.drafted:9}{found.accepted:10}{rate:10.1f}"
                f"{found.wrong:7}{found.host_us:10.0f}"
            )
            rows.append({"staircase": name, "arm": arm, **asdict(found)})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
