"""Simulated time of whole processes that write real texts, with drafts and without.

    python benchmarks/counted_processes.py TARGET.gguf DRAFT.gguf [--predict 16 32 64 128] [--processes 30]

As in economics.py each process writes one answer to a prompt that none has seen before, with what is kept in
between, once without any draft model on disk and once with DRAFT. The models are run, but nothing is timed:
steps and calls take what was measured of a target of 1.07 billion parameters and a draft model of 135
million, as in cascade.py, so that TARGET may be a small model that stands for a widened one. Reading, loading
and looking into a file take their time as well; starting a process and work outside of the models take none.
Everything that is decided is what `specx complete` decides, and equal code gives equal figures on a busy
machine, too.

`ratio` is the median time of an answer with `auto` over that with `none`, `worst` the largest, `sum` that of
all together. Exit code 1 if a median is above 1.03 or a text differs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cascade import DRAFT_MS, TARGET_MS, slowed
from economics import WARM, prompts
from simulated_processes import ALLOWED, Disk, Files

from specx.backends.base import Cache, Model
from specx.backends.llama.kernels import KERNELS
from specx.backends.llama.model import LlamaModel
from specx.backends.scripted import SimulatedClock
from specx.backends.settings import Load
from specx.backends.store import Store
from specx.engine.cost.timing import unwatched
from specx.engine.drafting import DraftModels
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.setup.finder import Candidate

TARGET_BYTES, DRAFT_BYTES = 660_000_000, 98_000_000  # that a token reads
DISK = Disk(open_ms=250.0, token_ms=DRAFT_MS[1], acceptance=0.0, look_ms=30.0)  # what is right is computed


class Resident:
    """A model that stays loaded from one process to the next, on a simulated clock.

    Attributes:
        model: it.
    """

    def __init__(self, path: Path, steps: dict[int, float], clock: SimulatedClock) -> None:
        self.model = LlamaModel(Load(path, 2, 2, n_ctx=2048), kernels=KERNELS["specx"])
        slowed(self.model, steps, clock)
        self._open, self._caches, self.free = self.model.open, list[Cache](), self.model.close
        self.model.open, self.model.close = self._opened, self.empty  # type: ignore[method-assign,assignment]

    def _opened(self) -> Cache:
        self._caches.append(self._open())
        return self._caches[-1]

    def empty(self) -> None:
        """A process ends."""
        for cache in self._caches:
            cache.close()
        self._caches.clear()


class Computed(Files):
    """A disk with one draft model, which is run."""

    def __init__(self, disk: Disk | None, clock: SimulatedClock, draft: Resident) -> None:
        super().__init__(disk, clock)
        self._draft = draft

    def search(self) -> Any:
        """The one model, if there is one."""
        vocabulary = self._draft.model.vocab.size
        for found in super().search():
            size = int(DISK.open_ms * 0.4e6)
            yield found and Candidate(Path("draft.gguf"), "draft", "draft", vocabulary, DRAFT_BYTES, size)

    def load(self, _candidate: Candidate) -> Model:
        """Takes its time."""
        self.clock.sleep(DISK.open_ms / 1e3)
        return self._draft.model


@dataclass(frozen=True, slots=True)
class Ran:
    """One process: its simulated seconds, its tokens, and whether it loaded the draft model."""

    seconds: float
    tokens: tuple[int, ...]
    loaded: bool


class Processes:
    """Processes that follow each other.

    Args:
        target, draft: the models.
        clock: what they take time of.
        drafter: as in `--drafter`.
        disk: whether the draft model is there.
        root: of what is kept.
    """

    def __init__(
        self, target: Resident, draft: Resident, clock: SimulatedClock, drafter: str, disk: bool, root: Path
    ) -> None:
        self._target, self._clock, self._drafter, self._root = target, clock, drafter, root
        self._files = Computed(DISK if disk else None, clock, draft)

    def run(self, prompt: str, n_predict: int, seed: int) -> Ran:
        """One that answers a prompt."""
        start = self._clock()
        asked = Asked(Path("target.gguf"), drafter=self._drafter, answers=1, n_ctx=2048)
        learned = Learned(Store(self._root), model_key="model", cost_key="cost")
        model = self._target.model
        with Session(
            model, asked, learned, name="target", draft_models=self._draft_models, clock=self._clock
        ) as session:
            session.staircase.watch = unwatched
            steps = {str(n): ms for n, ms in TARGET_MS.items()}
            session.staircase.load_json({"0": steps, "2048": steps})
            text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
            tokens = session.tokenize(text, add_special=True, parse_special=True)
            generation = session.generate(tokens, SamplingSettings(seed=seed), n_predict=n_predict)
            for _ in generation:
                pass
            models = session.draft_models
            loaded = models is not None and models.name is not None
        return Ran(self._clock() - start, tuple(generation.result.tokens), loaded)

    def _draft_models(self, session: Session) -> DraftModels:
        return DraftModels(
            self._files,
            session.learned,
            session.staircase,
            step_bytes=TARGET_BYTES,
            n_ctx=session.n_ctx,
            vocab=session.vocab,
            clock=self._clock,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """Processes with drafts against those without: see the head of this file.

    Attributes:
        disk: whether there was a draft model.
        predict: the limit of tokens.
        ratio, worst, sum: of simulated time.
        tokens: median length of the answers.
        loaded: processes that loaded the draft model.
        identical: whether all texts were the same.
    """

    disk: bool
    predict: int
    ratio: float
    worst: float
    sum: float
    tokens: float
    loaded: int
    identical: bool


def compared(disk: bool, predict: int, auto: Sequence[Ran], plain: Sequence[Ran]) -> Row:
    """Two ways to answer the same prompts."""
    pairs = list(zip(auto, plain, strict=True))
    ratios = [float(a.seconds / b.seconds) for a, b in pairs]
    return Row(
        disk,
        predict,
        statistics.median(ratios),
        max(ratios),
        float(sum(a.seconds for a in auto) / sum(b.seconds for b in plain)),
        statistics.median(len(b.tokens) for b in plain),
        sum(a.loaded for a in auto),
        all(a.tokens == b.tokens for a, b in pairs),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--predict", type=int, nargs="+", default=[16, 32, 64, 128, 512])
    parser.add_argument("--processes", type=int, default=30)
    args = parser.parse_args()
    clock = SimulatedClock()
    target, draft = Resident(args.target, TARGET_MS, clock), Resident(args.draft, DRAFT_MS, clock)
    with tempfile.TemporaryDirectory() as name:
        ways = {
            way: Processes(target, draft, clock, *given, Path(name) / way)
            for way, given in {
                "none": ("none", False), "alone": ("auto", False), "beside": ("auto", True)
            }.items()
        }  # fmt: skip
        texts = prompts()
        for i, prompt in enumerate(itertools.islice(texts, WARM)):
            for processes in ways.values():
                processes.run(prompt, 64, i)
        rows = list[Row]()
        for predict in args.predict:
            chosen = list(itertools.islice(texts, args.processes))
            ran = {
                way: [processes.run(prompt, predict, i) for i, prompt in enumerate(chosen)]
                for way, processes in ways.items()
            }
            for way in ("alone", "beside"):
                rows.append(compared(way == "beside", predict, ran[way], ran["none"]))
                print(rows[-1], flush=True)
    print(json.dumps([asdict(row) for row in rows]))
    return 0 if all(row.ratio <= ALLOWED and row.identical for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
