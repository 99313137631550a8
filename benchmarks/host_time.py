"""What a step takes outside of the models, in CPU time, whatever else the machine does.

    python benchmarks/host_time.py TARGET.gguf PROMPTS.jsonl [...] [--draft DRAFT] [--head HEAD] [--none]

The prompts are answered once with the models, and what these gave is kept. Steps take what was measured of a
target of a billion parameters, as in cascade.py, so what is decided does not depend on the machine. Then the
same answers are written again with nothing computed: calls give what was kept, after as much memory was read
as empties the caches of the processor, as reading the weights does (`--warm` leaves that away). Counted is
the CPU time of the thread, less that of the calls; of each step the least of all repeats. The clock is one
call of C, as a real one, and garbage is looked for as seldom as in the processes of specx. `host` is what
`specx bench` calls so, `asking` the part within the offers of a draft model or head, outside of its calls,
and `after` what is done with a step's tokens. `calls` are those of Python's functions, which do not depend on
the machine at all. The last line of the output is JSON, with a digest of what was decided: versions that
decide the same have the same one.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import numpy as np
from cascade import DRAFT_MS, TARGET_MS
from tapes import HEAD_FURTHER_MS, HEAD_MS, Played, PlayedHead, RecordedHead, Spent, Tape, recorded

from specx.backends.base import Model
from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.head_target import widened_by
from specx.backends.gguf.heads import check_head, read_head
from specx.backends.llama.head import LlamaHead
from specx.backends.llama.kernels import KERNELS
from specx.backends.llama.model import LlamaModel
from specx.backends.scripted import SimulatedClock
from specx.backends.settings import HEAD_ROWS, Load
from specx.backends.store import Store
from specx.cli.generation import OBJECTS_TO_COLLECT
from specx.drafters.free import FreeDrafter
from specx.drafters.guesser import GuessCosts
from specx.drafters.head import DraftHead
from specx.drafters.mixture import MixtureDrafter, MixtureDrafting
from specx.drafters.model import DraftModel
from specx.drafters.none import NoDrafter
from specx.drafters.pairs import PairModel, pair_head
from specx.engine.bench.suites import load_suite, sample
from specx.engine.generation import Generation
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.text.answer import Chunk

CACHES = 64 << 20  # bytes that are read in place of a model's weights
LONGEST = 512  # tokens of a prompt; longer ones are left out
NAMES = ("host_ms", "asking_ms", "after_ms")


@dataclass(frozen=True, slots=True)
class Counted:
    """A step.

    Attributes:
        host_ms, asking_ms, after_ms: see the head of this file.
        calls: of functions of Python.
        asked: how often the draft model or head was asked.
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
        draft, head: the draft model and the draft head, if there are any.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        target: LlamaModel,
        draft: LlamaModel | None,
        head: LlamaHead | None,
    ) -> None:
        self.options, self.target, self.draft, self.head = options, target, draft, head
        self.prompts: list[list[int]] = []
        self.tapes: tuple[Tape, Tape, Tape] = (defaultdict(list), defaultdict(list), defaultdict(list))
        self.decided: list[Any] = []
        self._memory = np.zeros(CACHES // 8)

    def record(self) -> None:
        """Answer all prompts with the models."""
        clock = SimulatedClock()
        recorded(self.target, self.tapes[0], TARGET_MS, clock)
        if self.draft is not None:
            recorded(self.draft, self.tapes[1], DRAFT_MS, clock)
        head = self.head and RecordedHead(self.head, self.tapes[2], clock)
        session = self._session(self.target, self.draft, head, clock)
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
        head = self.head and PlayedHead(self.head, self.tapes[2], clock, flush, spent)
        session = self._session(target, draft, head, clock)
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

    def _session(
        self, target: Model, draft: Model | None, head: PairModel | None, clock: SimulatedClock
    ) -> Session:
        asked = Asked(self.options.target, drafter="none", store=False, n_ctx=2048)
        learned = Learned(Store(None), model_key="model", cost_key="cost")
        session = Session(target, asked, learned, name="target", clock=partial(getattr, clock, "_now"))
        known = {str(n): ms for n, ms in TARGET_MS.items()}
        session.staircase.load_json({"0": known, "2048": known})
        session.drafter = self._drafter(target.vocab, draft, head, clock)
        return session

    def _drafter(self, vocab: Any, draft: Model | None, head: PairModel | None, clock: SimulatedClock) -> Any:
        if self.options.none:
            return NoDrafter()
        free, now = FreeDrafter(vocab.size), partial(getattr, clock, "_now")
        if draft is None and head is None:
            return free
        drafter = MixtureDrafter(free)
        if draft is not None:
            same = draft.vocab.fingerprint == vocab.fingerprint
            costs = GuessCosts(3.5, 0.5, 0.5, 0.0)
            known: Any = {"shared": vocab.size if same else 0, "target": None if same else vocab}
            drafter.guessers.append(DraftModel(lambda: draft, n_ctx=2048, **known, costs=costs, clock=now))
        if head is not None:
            costs = GuessCosts(HEAD_MS, HEAD_FURTHER_MS, HEAD_FURTHER_MS, 0.0)
            drafter.guessers.append(DraftHead(lambda: pair_head(head), costs=costs, clock=now))
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
    return chunk.step.spent.tokens if chunk.step is not None and chunk.step.spent is not None else 0


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


def load_head(options: argparse.Namespace, target: LlamaModel) -> LlamaHead:
    """The draft head, whose states the target gives from now on."""
    info, file = read_runnable(options.target), read_head(options.head)
    if reason := check_head(file, info):
        raise SystemExit(f"error: {options.head} cannot draft: {reason}")
    target.extract(file.layers)
    load = Load(options.head, 1, 1, n_ctx=2048, n_batch=HEAD_ROWS, n_ubatch=HEAD_ROWS)
    scale = widened_by(info)
    return LlamaHead(file, load, target_context=target.context, scale=scale, kernels=KERNELS["specx"])


def main() -> None:
    """Record, then write again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    parser.add_argument("prompts", type=Path, nargs="+")
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--head", type=Path)
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
    bench = Bench(options, target, draft, load_head(options, target) if options.head else None)
    bench.record()
    gc.collect()
    gc.freeze()  # as the processes of specx do
    gc.set_threshold(OBJECTS_TO_COLLECT)
    runs = [bench.play() for _ in range(options.repeats)]
    report(bench, runs, bench.play(counting=True))
    if options.profile:
        profile = cProfile.Profile(time.thread_time)
        profile.runcall(bench.play)
        pstats.Stats(profile).sort_stats("tottime").print_stats(400)


if __name__ == "__main__":
    main()
