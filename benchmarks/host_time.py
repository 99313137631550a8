"""What a step takes outside of the models, in CPU time, whatever else the machine does.

    python benchmarks/host_time.py TARGET.gguf PROMPTS.jsonl [...] [--draft DRAFT.gguf] [--none]

The prompts are answered once with the models, and what these gave is kept. Steps take what was measured of a
target of a billion parameters, as in cascade.py, so what is decided does not depend on the machine. Then the
same answers are written again with nothing computed: calls give what was kept, after as much memory was read
as empties the caches of the processor, as reading the weights does (`--warm` leaves that away). Counted is
the CPU time of the thread, less that of the calls; of each step the least of all repeats. The clock is one
call of C, as a real one, and garbage is looked for as seldom as in the processes of specx. `host` is what
`specx bench` calls so, `asking` the part within the offers of a draft model, outside of its calls, and
`after` what is done with a step's tokens. `calls` are those of Python's functions, which do not depend on the
machine at all. The last line of the output is JSON, with a digest of what was decided: versions that decide
the same have the same one.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import hashlib
import json
import pstats
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import numpy as np
from cascade import DRAFT_MS, TARGET_MS, WIDEST, costs_of
from numpy.typing import NDArray

from specx.backends.base import Cache, FeatureSink, Model, Output, Progress, RowSink, Tree, Want
from specx.backends.llama.kernels import KERNELS
from specx.backends.llama.model import LlamaModel
from specx.backends.scripted import SimulatedClock
from specx.backends.settings import Load
from specx.backends.store import Store
from specx.cli.generation import OBJECTS_TO_COLLECT
from specx.drafters.free import FreeDrafter
from specx.drafters.guesser import GuessCosts
from specx.drafters.mixture import MixtureDrafter, MixtureDrafting
from specx.drafters.model import DraftModel
from specx.drafters.none import NoDrafter
from specx.engine.bench.suites import load_suite, sample
from specx.engine.generation import Generation
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.text.answer import Chunk

CACHES = 64 << 20  # bytes that are read in place of a model's weights
LONGEST = 512  # tokens of a prompt; longer ones are left out
NAMES = ("host_ms", "asking_ms", "after_ms")

Tape = dict[str, list[Any]]
"""What the calls of one model gave, in their order: of `forward` and of the sinks of `prefill`."""


class Spent:
    """CPU seconds of this thread, by what they went for."""

    def __init__(self) -> None:
        self.seconds = {"models": 0.0, "asking": 0.0, "after": 0.0}

    def on(self, what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, whose time is for `what`, but for that of the models."""
        seconds = self.seconds

        def timed(*given: Any, **options: Any) -> Any:
            start, models = time.thread_time(), seconds["models"]
            try:
                return call(*given, **options)
            finally:
                seconds[what] += time.thread_time() - start - (seconds["models"] - models)

        return timed

    def on_method(self, what: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """The same of a method, as a class has it."""
        timed = self.on(what, method)

        def bound(this: Any, *given: Any) -> Any:
            return timed(this, *given)

        return bound


def recorded(model: LlamaModel, tape: Tape, steps: Mapping[int, float], clock: SimulatedClock) -> None:
    """Keep what a model gives on `tape`, and let its calls take simulated milliseconds."""
    costs, forward, opened = costs_of(steps), model.forward, model.open

    def keeping(trees: Sequence[Tree], want: Want = Want.LOGITS) -> list[Output]:
        clock.sleep(costs[min(sum(map(len, trees)), WIDEST)] * 1e-3)
        outputs = forward(trees, want)
        tape["forward"].append(outputs[0].logits.copy())
        return outputs

    def open_keeping() -> Cache:
        cache = opened()
        read = cache.prefill

        def prefill(
            tokens: Sequence[int], *, progress: Any = None, rows: RowSink | None = None, features: Any = None
        ) -> None:
            clock.sleep(len(tokens) * costs[WIDEST] / WIDEST * 1e-3)
            sunk: list[Any] = []

            def sink(tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
                sunk.append((tokens.copy(), logits.copy()))
                assert rows is not None
                rows(tokens, logits)

            read(tokens, progress=progress, rows=sink if rows is not None else None)
            tape["prefill"].append(sunk)

        cache.prefill = prefill  # type: ignore[method-assign]
        return cache

    model.forward, model.open = keeping, open_keeping  # type: ignore[method-assign,assignment]


class Played(Model):
    """Gives what is on a tape.

    Args:
        like: the model that was recorded.
        tape: what it gave.
        steps, clock: what calls take.
        flush: empties the caches of the processor.
        spent: where their real time goes.
    """

    facts: Any = None  # of the model that was recorded; an attribute, as there

    def __init__(
        self,
        like: LlamaModel,
        tape: Tape,
        steps: Mapping[int, float],
        clock: SimulatedClock,
        flush: Callable[[], None],
        spent: Spent,
    ) -> None:
        self._like, self.facts = like, like.facts
        self.costs, self._clock, self._flush = costs_of(steps), clock, flush
        self._forward, self.prefills = iter(tape["forward"]), iter(tape["prefill"])
        self._spent = spent
        self.forward = spent.on("models", self.forward)  # type: ignore[method-assign]

    @property
    def vocab(self) -> Any:
        """Of the model that was recorded."""
        return self._like.vocab

    def extract(self, layers: Sequence[int]) -> None:
        """There are no heads."""

    def open(self) -> Cache:
        """Room for the one text."""
        cache = PlayedCache(self, self._clock)
        cache.keep = self._spent.on("models", cache.keep)  # type: ignore[method-assign]
        cache.prefill = self._spent.on("models", cache.prefill)  # type: ignore[method-assign]
        return cache

    def forward(self, trees: Sequence[Tree], want: Want = Want.LOGITS) -> list[Output]:
        """What comes next on the tape."""
        (tree,) = trees
        self._clock.sleep(self.costs[min(len(tree), WIDEST)] * 1e-3)
        logits = next(self._forward)
        if len(logits) != len(tree):
            raise SystemExit("error: something else was decided than when it was recorded")
        self._flush()
        logits += 0.0  # it was written just now
        return [Output(logits)]

    def close(self) -> None:
        """Nothing is held."""


class PlayedCache(Cache):
    """Holds as many tokens as were kept."""

    def __init__(self, model: Played, clock: SimulatedClock) -> None:
        self._model, self._clock, self._length = model, clock, 0

    @property
    def model(self) -> Played:
        """Gives what follows."""
        return self._model

    @property
    def length(self) -> int:
        """Of the tokens."""
        return self._length

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        progress: Progress | None = None,
        rows: RowSink | None = None,
        features: FeatureSink | None = None,
    ) -> None:
        """The sink gets what is on the tape."""
        self._clock.sleep(len(tokens) * self._model.costs[WIDEST] / WIDEST * 1e-3)
        self._length += len(tokens)
        for sunk in next(self._model.prefills):
            assert rows is not None
            rows(*sunk)

    def keep(self, rows: Sequence[int]) -> None:
        """So many more."""
        self._length += len(rows)

    def reusable(self, length: int) -> int:
        """Any."""
        return length

    def rewind(self, length: int) -> None:
        """So many are left."""
        self._length = length

    def shift(self, keep: int, discard: int) -> None:
        """Never asked for."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A step.

    Attributes:
        host_ms, asking_ms, after_ms: see the head of this file.
        calls: of functions of Python.
        asked: how often the draft model was asked.
    """

    host_ms: float
    asking_ms: float
    after_ms: float
    calls: int
    asked: int


class Bench:
    """Writes the same answers again and again.

    Args:
        options: of the command line.
        target: the model.
        draft: the draft model, if there is one.
    """

    def __init__(self, options: argparse.Namespace, target: LlamaModel, draft: LlamaModel | None) -> None:
        self.options, self.target, self.draft = options, target, draft
        self.prompts: list[list[int]] = []
        self.tapes: tuple[Tape, Tape] = (defaultdict(list), defaultdict(list))
        self.decided: list[Any] = []
        self._memory = np.zeros(CACHES // 8)

    def record(self) -> None:
        """Answer all prompts with the models."""
        clock = SimulatedClock()
        recorded(self.target, self.tapes[0], TARGET_MS, clock)
        if self.draft is not None:
            recorded(self.draft, self.tapes[1], DRAFT_MS, clock)
        session = self._session(self.target, self.draft, clock)
        self.prompts = list(self._tokenized(session))
        self.decided = [_decided(chunk) for chunk, _ in self._answers(session)]

    def play(self, *, counting: bool = False) -> list[Counted]:
        """Write them again, from the tapes; returns what each step took.

        Raises:
            SystemExit: something else was decided.
        """
        clock, spent = SimulatedClock(), Spent()
        flush = (lambda: None) if self.options.warm or counting else self._flush
        target = Played(self.target, self.tapes[0], TARGET_MS, clock, flush, spent)
        draft = self.draft and Played(self.draft, self.tapes[1], DRAFT_MS, clock, flush, spent)
        session = self._session(target, draft, clock)
        found, decided = list[Counted](), []
        with (
            patch.object(MixtureDrafting, "_take", spent.on_method("asking", MixtureDrafting._take)),
            patch.object(Generation, "take", spent.on_method("after", Generation.take)),
        ):
            for chunk, counted in _watched(self._answers(session), spent.seconds, counting=counting):
                decided.append(_decided(chunk))
                if counted is not None:
                    found.append(counted)
        if decided != self.decided:
            raise SystemExit("error: something else was decided than when it was recorded")
        return found

    def _flush(self) -> None:
        self._memory.sum()

    def _session(self, target: Model, draft: Model | None, clock: SimulatedClock) -> Session:
        asked = Asked(self.options.target, drafter="none", store=False, n_ctx=2048)
        learned = Learned(Store(None), model_key="model", cost_key="cost")
        session = Session(target, asked, learned, name="target", clock=partial(getattr, clock, "_now"))
        known = {str(n): ms for n, ms in TARGET_MS.items()}
        session.staircase.load_json({"0": known, "2048": known})
        session.drafter = self._drafter(target.vocab, draft, clock)
        return session

    def _drafter(self, vocab: Any, draft: Model | None, clock: SimulatedClock) -> Any:
        if self.options.none:
            return NoDrafter()
        free = FreeDrafter(vocab.size)
        if draft is None:
            return free
        drafter = MixtureDrafter(free)
        same = draft.vocab.fingerprint == vocab.fingerprint
        costs = GuessCosts(3.5, 0.5, 0.5, 0.0)
        drafter.guessers.append(
            DraftModel(
                lambda: draft,
                n_ctx=2048,
                shared=vocab.size if same else 0,
                target=None if same else vocab,
                costs=costs,
                clock=partial(getattr, clock, "_now"),
            )
        )
        return drafter

    def _tokenized(self, session: Session) -> Iterator[list[int]]:
        for path in self.options.prompts:
            for prompt in sample(load_suite(path), self.options.limit, 0):
                if prompt.text:
                    tokens = session.tokenize(prompt.text, add_special=True, parse_special=True)
                else:
                    tokens = session.prompt_of(prompt.conversation())
                if len(tokens) <= LONGEST:
                    yield tokens

    def _answers(self, session: Session) -> Iterator[tuple[Chunk, bool]]:
        """All chunks; whether one is more than a step, as the first of an answer is."""
        sampling = SamplingSettings(temperature=self.options.temp, seed=1)
        for tokens in self.prompts:
            session.forget_conversation()
            for n, chunk in enumerate(session.generate(tokens, sampling, n_predict=self.options.n)):
                yield chunk, n == 0 or chunk.step is None


def _watched(
    chunks: Iterator[tuple[Chunk, bool]], seconds: Mapping[str, float], *, counting: bool
) -> Iterator[tuple[Chunk, Counted | None]]:
    """Each chunk, and what it took if it is a step."""
    calls = 0

    def count(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal calls
        calls += event == "call"

    while True:
        before, calls = dict(seconds), 0
        start = time.thread_time()
        if counting:
            sys.setprofile(count)
        found = next(chunks, None)
        if counting:
            sys.setprofile(None)
        took = (time.thread_time() - start) * 1e3
        if found is None:
            return
        models, asking, after = ((seconds[what] - before[what]) * 1e3 for what in seconds)
        chunk, more = found
        counted = Counted(took - models - asking - after, asking, after, calls, _asked(chunk))
        yield chunk, None if more else counted


def _asked(chunk: Chunk) -> int:
    return chunk.step.asked.tokens if chunk.step is not None and chunk.step.asked is not None else 0


def _decided(chunk: Chunk) -> Any:
    step = chunk.step
    drafted = () if step is None else (step.draft.tokens.tolist(), step.draft.parents.tolist())
    return chunk.tokens, drafted, _asked(chunk), round(chunk.seconds * 1e3, 6)


def report(bench: Bench, runs: Sequence[Sequence[Counted]], calls: Sequence[Counted]) -> None:
    """A few lines; the last one is JSON."""
    least = [[min(getattr(run, name) for run in each) for each in zip(*runs, strict=True)] for name in NAMES]
    for what, chosen in (("that ask", True), ("that do not", False)):
        own = [i for i, step in enumerate(calls) if bool(step.asked) == chosen]
        if own:
            host, asking, _ = (fmean(times[i] for i in own) for times in least)
            print(f"{len(own)} steps {what}: host {host:.3f} ms, asking {asking:.3f} ms")
    figures: dict[str, Any] = {name: round(fmean(times), 4) for name, times in zip(NAMES, least, strict=True)}
    figures |= {
        "calls": round(fmean(step.calls for step in calls), 1),
        "steps": len(calls),
        "asked": round(fmean(step.asked for step in calls), 3),
        "tokens": sum(len(each[0]) for each in bench.decided),
        "simulated_ms": round(sum(each[3] for each in bench.decided), 3),
        "decided": hashlib.sha256(repr(bench.decided).encode()).hexdigest()[:16],
    }
    print(json.dumps(figures))


def main() -> None:
    """Record, then write again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    parser.add_argument("prompts", type=Path, nargs="+")
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--none", action="store_true", help="draft nothing")
    parser.add_argument("--limit", type=int, default=1, help="prompts of each category")
    parser.add_argument("-n", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm", action="store_true", help="leave the caches of the processor as they are")
    parser.add_argument("--profile", action="store_true", help="say what takes the time")
    options = parser.parse_args()
    kernels = KERNELS["specx"]
    target = LlamaModel(Load(options.target, 1, 1, n_ctx=2048), kernels=kernels)
    draft = LlamaModel(Load(options.draft, 1, 1, n_ctx=2048), kernels=kernels) if options.draft else None
    bench = Bench(options, target, draft)
    bench.record()
    gc.collect()
    gc.freeze()  # as the processes of specx do
    gc.set_threshold(OBJECTS_TO_COLLECT)
    runs = [bench.play() for _ in range(options.repeats)]
    report(bench, runs, bench.play(counting=True))
    if options.profile:
        profile = cProfile.Profile(time.thread_time)
        profile.runcall(bench.play)
        pstats.Stats(profile).sort_stats("tottime").print_stats(60)


if __name__ == "__main__":
    main()
