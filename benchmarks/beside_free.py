"""What a draft model of any vocabulary, or a draft head, is worth beside free drafts, counted and not timed.

    python benchmarks/beside_free.py TARGET.gguf DRAFT.gguf PROMPTS.jsonl [...] [--draft-ms 2.3 0.01]

The same prompts are answered without drafts, with free drafts alone, and with the draft model beside them, at
each of the prices of one of its tokens (`--draft-ms`). With `--chains` all of these draft chains only as
well, where they otherwise may draft trees. The texts must be the same. The models are run, but
steps and calls take what was measured of a target of 1.07 billion parameters (specx's kernels, two quiet
cores of a Zen 4 without AMX) on a simulated clock, so that the figures are the same on a busy machine, and
TARGET may be a small model that stands for one widened by widen_gguf.py, which writes the same text.

Every answer begins with free drafters that know nothing. What is known of the draft model is kept from answer
to answer, as it is from process to process. It is loaded already, and work outside of the models takes no
time. With `--staircase zen4-specx-135m` steps take what those of SmolLM2 itself take there. A price of next
to nothing tells what its agreement with the target bounds.

The last line is JSON: geometric means over the prompts of each category, times the speed of free drafts.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from cascade import Told, simulated, slowed
from numpy.typing import NDArray

from specx.backends.gguf.heads import read_head
from specx.backends.llama.head import LlamaHead
from specx.backends.llama.kernels import KERNELS
from specx.backends.llama.model import LlamaModel
from specx.backends.scripted import SimulatedClock
from specx.backends.settings import HEAD_READ, HEAD_ROWS, Load
from specx.drafters.free import FreeDrafter
from specx.drafters.guesser import GuessCosts
from specx.drafters.head import DraftHead, HeadRunner, LoadedHead
from specx.drafters.mixture import MixtureDrafter
from specx.drafters.model import DraftModel
from specx.drafters.none import NoDrafter
from specx.drafters.pairs import pair_head
from specx.engine.bench.suites import Prompt, load_suite, sample
from specx.engine.plan import Plan
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

TARGET_MS = {1: 21.2, 4: 21.4, 8: 30.2, 16: 56.0, 32: 112.0, 64: 224.0}
DRAFT_SHAPE = {1: 1.0, 2: 1.05, 4: 1.2, 8: 1.8, 16: 3.3, 64: 12.0}  # a call's time, times that of one token
HEAD_SHAPE = {1: 1.0, 4: 2.85, 32: 22.7, 64: 45.4}  # of a head, which scores all its rows for each token
N_CTX = 2048


class Way:
    """One way to draft.

    Args:
        name: of it.
        session: of the target.
        source: the draft model or head, if there is one.
        leaves: most leaves of a draft.
    """

    def __init__(
        self, name: str, session: Session, source: DraftModel | DraftHead | None = None, leaves: int = 1
    ) -> None:
        self.name, self._session, self._source, self._leaves = name, session, source, leaves
        self._plan = Plan(session.staircase, widths=session.plan.widths, clock=session.clock)

    def answer(self, tokens: Sequence[int], sampling: SamplingSettings, n: int) -> tuple[list[int], Told]:
        """The target's answer to a prompt, and what it took."""
        session, told = self._session, Told()
        model = session.model
        assert isinstance(model, LlamaModel)
        model.facts = replace(model.facts, max_leaves=self._leaves)
        free = FreeDrafter(session.vocab.size)
        session.drafter, session.plan = NoDrafter() if self.name.startswith("none") else free, self._plan
        if self._source is not None:
            session.drafter = MixtureDrafter(free)
            session.drafter.guessers.append(self._source)
        session.forget_conversation()  # each way sees the rows of the prompt
        generation = session.generate(list(tokens), sampling, n_predict=n)
        for chunk in generation:
            told.add(chunk)
        return generation.result.tokens, told


def draft_model(
    model: LlamaModel, token_ms: float, session: Session, clock: SimulatedClock, same: bool
) -> DraftModel:
    """The draft model as it is asked."""
    steps = {n: token_ms * times for n, times in DRAFT_SHAPE.items()}
    slowed(model, steps, clock)
    costs = GuessCosts(token_ms, steps[64] / 64, steps[64] / 64, 0.0)
    target = None if same else session.vocab
    return DraftModel(
        lambda: model, n_ctx=N_CTX, shared=session.vocab.size, costs=costs, target=target, clock=clock
    )


class Timed(LoadedHead):
    """A head whose calls take simulated time."""

    def __init__(self, head: LoadedHead, token_ms: float, clock: SimulatedClock) -> None:
        self._head, self._token_ms, self._clock = head, token_ms, clock

    def open(self) -> HeadRunner | None:
        """Follow one more text."""
        if (runner := self._head.open()) is None:
            return None
        logits = runner.logits

        def timed(drafted: Sequence[int]) -> NDArray[np.float32]:
            unread = runner.unread(drafted)
            times = float(np.interp(unread, list(HEAD_SHAPE), list(HEAD_SHAPE.values())))
            self._clock.sleep(self._token_ms * times * 1e-3)
            return logits(drafted)

        runner.logits = timed  # type: ignore[method-assign]
        return runner

    def close(self) -> None:
        """Give the memory back."""
        self._head.close()


def draft_head(path: Path, load: Load, token_ms: float, session: Session, clock: SimulatedClock) -> DraftHead:
    """The draft head as it is asked."""
    head, model = read_head(path), session.model
    assert isinstance(model, LlamaModel)
    load = replace(load, n_batch=HEAD_ROWS, n_ubatch=HEAD_ROWS)
    loaded = pair_head(LlamaHead(head, load, target_context=model.context, kernels=KERNELS["specx"]))
    model.extract(head.layers)
    costs = GuessCosts(token_ms, token_ms * 0.62, token_ms * 0.71, 0.0)
    return DraftHead(lambda: Timed(loaded, token_ms, clock), costs=costs, clock=clock, held=HEAD_READ)


def step_times(name: str | None) -> Mapping[int, float]:
    """Milliseconds of a step by its tokens, 256 deep."""
    if name is None:
        return TARGET_MS
    kept = json.loads((Path(__file__).parent / "staircases.json").read_text())
    return {int(n): float(ms) for n, ms in kept[name]["256"].items()}


def measure(
    session: Session, ways: Sequence[Way], prompts: Sequence[Prompt], options: argparse.Namespace
) -> Mapping[str, list[dict[str, Told]]]:
    """What each way took, by category and prompt.

    Raises:
        SystemExit: two ways gave different texts.
    """
    sampling = SamplingSettings(temperature=options.temp, seed=1)
    found: dict[str, list[dict[str, Told]]] = defaultdict(list)
    for prompt in prompts:
        if prompt.text:
            tokens = session.tokenize(prompt.text, add_special=True, parse_special=True)
        else:
            tokens = session.prompt_of(prompt.conversation())
        if len(tokens) + options.n > session.n_ctx // 2:  # the draft model may need more tokens
            continue
        answers = {way.name: way.answer(tokens, sampling, options.n) for way in ways}
        texts = [text for text, _ in answers.values()]
        if any(text != texts[0] for text in texts):
            raise SystemExit(f"error: the texts of {prompt.id} differ")
        found[prompt.category].append({name: told for name, (_, told) in answers.items()})
        row = " ".join(f"{name} {told.cell()}" for name, (_, told) in answers.items())
        print(f"{prompt.category} {prompt.id}: {row}", flush=True)
    return found


def report(found: Mapping[str, Sequence[Mapping[str, Told]]]) -> None:
    """A table of speeds, times that of free drafts alone; the last line is JSON."""
    names = list(next(iter(found.values()))[0])
    everything = [told for each in found.values() for told in each]
    print(f"| category | prompts | {' | '.join(names)} |")
    print("|---" * (2 + len(names)) + "|")
    means: dict[str, dict[str, float]] = {}
    for category, answers in [*found.items(), ("all", everything)]:
        logs = {
            name: [
                math.log(told[name].tokens / told[name].ms * told["free"].ms / told["free"].tokens)
                for told in answers
                if told[name].tokens > 1
            ]
            for name in names
        }
        means[category] = {name: round(math.exp(statistics.fmean(each)), 3) for name, each in logs.items()}
        cells = " | ".join(f"{mean:.2f}" for mean in means[category].values())
        print(f"| {category} | {len(answers)} | {cells} |")
    print(json.dumps(means))


def main() -> None:
    """Answer all prompts in every way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("prompts", nargs="+", help="files, or default for the built-in ones")
    parser.add_argument("--limit", type=int, default=4, help="prompts of each category (4)")
    parser.add_argument("--categories", nargs="+", help="only these")
    parser.add_argument("-n", type=int, default=128, help="tokens of an answer (128)")
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--draft-ms", type=float, nargs="+", default=[2.3], help="a token of DRAFT (2.3)")
    parser.add_argument("--same", action="store_true", help="DRAFT has the vocabulary of TARGET")
    parser.add_argument("--staircase", help="step times of TARGET: a name in staircases.json")
    parser.add_argument("--head", action="store_true", help="DRAFT is a draft head")
    parser.add_argument("--chains", action="store_true", help="with drafts that are chains as well")
    options = parser.parse_args()
    asked = Asked(options.target, kernels="specx", threads=options.threads, store=False, n_ctx=N_CTX)
    with Session.open(asked, notice=print) as session:
        assert session.setup is not None
        load = Load(options.draft, session.setup.load.threads, session.setup.load.threads_batch, n_ctx=N_CTX)
        clock = SimulatedClock()
        simulated(session, step_times(options.staircase), clock)
        leaves = {"": session.model.facts.max_leaves} | ({" chains": 1} if options.chains else {})
        ways = [Way("none", session), *(Way(f"free{kind}", session, None, n) for kind, n in leaves.items())]
        drafts: list[LlamaModel] = []
        for token_ms in options.draft_ms:
            for kind, n in leaves.items():
                source: DraftModel | DraftHead
                if options.head:
                    source = draft_head(options.draft, load, token_ms, session, clock)
                else:
                    drafts.append(LlamaModel(load, kernels=KERNELS["specx"]))
                    source = draft_model(drafts[-1], token_ms, session, clock, options.same)
                ways.append(Way(f"{token_ms:g} ms{kind}", session, source, n))
        prompts = [p for path in options.prompts for p in sample(load_suite(path), options.limit, 0)]
        chosen = [p for p in prompts if not options.categories or p.category in options.categories]
        report(measure(session, ways, chosen, options))
        for draft in drafts:
            draft.close()


if __name__ == "__main__":
    main()
