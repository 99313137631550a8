"""The comparison behind `specx bench`: every arm answers every prompt, taking turns.

For each prompt the arms answer one after the other in an order drawn anew, and in the opposite order in the
next round, so whatever slows the machine down for a while slows all of them. All prompts come before the
first is repeated. Nothing is kept from one answer to the next (each arm starts with empty caches, or with its
own warm ones), and loading the model is part of no number.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Protocol

from specx.backends.llama.server import LlamaServer
from specx.backends.machine.energy import EnergyMeter
from specx.backends.machine.peak_memory import peak_memory
from specx.backends.store import Store
from specx.engine.bench.cases import Case, CaseMaker, LeftOut
from specx.engine.bench.records import Answer, ArmInfo
from specx.engine.bench.suites import Prompt, Workload
from specx.engine.decode import Step
from specx.engine.learned.corpora import Corpora
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Chunk, Session
from specx.engine.settings import SamplingSettings

__all__ = ["Arm", "Bench", "PeerArm", "SpecxArm", "nothing_learned", "schedule", "server_sampling"]

WARM_UP_TOKENS = 24
DIGITS = 4  # of milliseconds that are kept: tenths of a microsecond

Clock = Callable[[], float]


class Arm(Protocol):
    """Answers requests."""

    @property
    def info(self) -> ArmInfo:
        """Who it is, and the most memory it has had so far."""

    def warm_up(self, case: Case) -> Answer:
        """An answer that is not learned from."""

    def answer(self, case: Case) -> Answer:
        """One answer, timed."""


class SpecxArm:
    """specx with one drafter. Arms on the same kernels and threads share a session.

    What drafts are made of is the arm's own, never taken from the store and never kept in it. What steps cost
    is the session's.

    Args:
        info: who it is.
        session: a loaded model.
        sampling: how tokens are chosen, with a seed.
        warm: learn from one answer for the next.
        energy: read before and after each answer.
    """

    def __init__(
        self,
        info: ArmInfo,
        session: Session,
        sampling: SamplingSettings,
        *,
        warm: bool = False,
        energy: EnergyMeter | None = None,
    ) -> None:
        self._info = info
        self._session = session
        self._sampling = sampling
        self._warm = warm
        self._energy = energy or EnergyMeter()
        self._corpora = session.learned.corpora
        self._learned = nothing_learned(self._corpora)
        self._ready: set[str] = set()

    @property
    def info(self) -> ArmInfo:
        """Who it is, and the most memory this process has had so far."""
        return replace(self._info, peak_bytes=peak_memory())

    def warm_up(self, case: Case) -> Answer:
        """An answer that is not learned from, once everything it needs has been measured."""
        self._generate(case, nothing_learned(self._corpora))
        return self._generate(case, nothing_learned(self._corpora))

    def answer(self, case: Case) -> Answer:
        """Continue the prompt. Times are taken from outside, so making text of tokens counts too.

        The staircase is measured when a context first becomes so long, which must not happen in a timed
        answer: such a case is first answered once to no account.
        """
        if case.id not in self._ready:
            self._ready.add(case.id)
            if self._would_measure(case):
                between = self._session.between_steps
                share, between.share = between.share, math.inf
                self._generate(case, nothing_learned(self._corpora))
                between.share = share
        if not self._warm:
            self._learned.forget()
        return self._generate(case, self._learned)

    def _would_measure(self, case: Case) -> bool:
        staircase, start = self._session.staircase, len(case.tokens) - 1
        return any(map(staircase.needs_measuring, (0, *range(start, start + case.n_predict))))

    def _generate(self, case: Case, learned: Learned) -> Answer:
        session = self._session
        own, session.learned = session.learned, learned
        try:
            session.forget_conversation()
            session.set_drafter(self._info.drafter)
            return self._timed(case)
        finally:
            session.learned = own

    def _timed(self, case: Case) -> Answer:
        session, clock = self._session, self._session.clock
        chunks: list[Chunk] = []
        marks: list[float] = []
        before = self._energy.read()
        start = clock()
        generation = session.generate(
            case.tokens, self._sampling, n_predict=case.n_predict, ignore_eos=case.ignore_eos
        )
        for chunk in generation:
            marks.append(clock())
            chunks.append(chunk)
        end = clock()
        joules = self._energy.joules(before, self._energy.read())
        timings = generation.result.timings
        began = start + timings.prompt_ms / 1e3
        steps = [chunk for chunk in chunks if chunk.step is not None]
        acceptance = _acceptance([s.step for s in steps if s.step], session.drafter.source_names)
        guesses = acceptance["by_source"].values()
        ends = [began, *marks[: len(steps)]]
        return Answer(
            case=case.id,
            category=case.category,
            arm=self._info.name,
            prompt=case.digest,
            prompt_n=timings.prompt_n,
            prompt_ms=round(timings.prompt_ms, DIGITS),
            first_token_ms=round(((marks or [end])[0] - start) * 1e3, DIGITS),
            predicted_n=timings.predicted_n,
            decode_ms=round((end - began) * 1e3, DIGITS),
            steps=timings.steps,
            draft_n=sum(drafted for drafted, _ in guesses),
            draft_n_accepted=sum(accepted for _, accepted in guesses),
            host_ms=round(timings.host_ms, DIGITS),
            joules=joules,
            reading=case.reading,
            tokens=generation.result.tokens,
            step_ms=[round((b - a) * 1e3, DIGITS) for a, b in pairwise(ends)],
            step_width=[chunk.drafted + 1 for chunk in steps],
            step_tokens=[len(chunk.tokens) for chunk in steps],
            sources=[source for chunk in steps for source in chunk.sources],
            **acceptance,
        )


class PeerArm:
    """A llama-server of its own, which waits while others answer.

    Args:
        info: who it is.
        server: running.
        sampling: fields of its requests.
        energy: read before and after each answer.
    """

    def __init__(
        self,
        info: ArmInfo,
        server: LlamaServer,
        sampling: Mapping[str, Any],
        *,
        energy: EnergyMeter | None = None,
    ) -> None:
        self._info = info
        self._server = server
        self._sampling = sampling
        self._energy = energy or EnergyMeter()
        self._peak = 0

    @property
    def info(self) -> ArmInfo:
        """Who it is, and the most memory any of its processes has had so far."""
        return replace(self._info, peak_bytes=self._peak or None, load_s=self._server.load_s)

    def warm_up(self, case: Case) -> Answer:
        """An answer; a server that remembers is started anew before the next."""
        return self.answer(case)

    def answer(self, case: Case) -> Answer:
        """Continue the prompt, with the times that the server itself reports.

        Its clock for writing starts after the first token, which therefore does not count.

        Raises:
            PeerError: it cannot.
        """
        before = self._energy.read()
        done = self._server.complete(case.tokens, case.n_predict, self._sampling, ignore_eos=case.ignore_eos)
        joules = self._energy.joules(before, self._energy.read())
        self._peak = max(self._peak, self._server.peak_bytes or 0)
        written = max(done.predicted_n - 1, 0)
        return Answer(
            case=case.id,
            category=case.category,
            arm=self._info.name,
            prompt=case.digest,
            prompt_n=done.prompt_n,
            prompt_ms=done.prompt_ms,
            first_token_ms=done.prompt_ms,
            predicted_n=written,
            decode_ms=done.predicted_ms,
            steps=written - done.draft_n_accepted,  # each step adds one token beyond the accepted ones
            draft_n=done.draft_n,
            draft_n_accepted=done.draft_n_accepted,
            joules=joules,
            reading=case.reading,
            tokens=done.tokens,
        )


class Bench:
    """One run.

    Args:
        arms: who answers; a conversation goes on with the first one's answers.
        work: prompts and synthetic workloads.
        maker: makes requests of them.
        rounds: how often everything is answered.
        turns: most answers to one conversation.
        seed: of the order of prompts and arms.
        clock: seconds.

    Attributes:
        left_out: of each prompt that cannot be asked, which one and why.
        asked: every request so far, by its id.
        total: how many answers there will be, as far as is known.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        work: Sequence[Prompt | Workload],
        maker: CaseMaker,
        *,
        rounds: int = 1,
        turns: int = 1,
        seed: int = 0,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.left_out: list[str] = []
        self.asked: dict[str, Case] = {}
        self.total = 0
        self._arms = arms
        self._work = list(work)
        random.Random(f"{seed}").shuffle(self._work)
        self._maker = maker
        self._rounds = rounds
        self._turns = turns
        self._seed = seed
        self._clock = clock

    def warm_up(self) -> float | None:
        """One short answer by each arm, so that the first measured one pays for nothing but itself.

        Prompts that do not fit are left out from now on. Returns the seconds that all answers together will
        take, as far as that tells; None if nothing is left to ask.
        """
        asked = [(item, case) for item in self._work if (case := self._case(item, [])) is not None]
        self._work = [item for item, _ in asked]
        turns = [self._n_turns(item) for item in self._work]
        self.total = sum(turns) * len(self._arms) * self._rounds
        if not asked:
            return None
        shortest = min((case for _, case in asked), key=lambda case: len(case.tokens))
        trial = replace(shortest, id="warm-up", n_predict=WARM_UP_TOKENS, ignore_eos=True)
        read = sum(n * len(case.tokens) for n, (_, case) in zip(turns, asked, strict=True))
        written = sum(n * case.n_predict for n, (_, case) in zip(turns, asked, strict=True))
        seconds = 0.0
        for arm in self._arms:
            took = arm.warm_up(trial)
            seconds += read * took.prompt_ms / max(took.prompt_n, 1) / 1e3
            seconds += written * took.decode_ms / max(took.predicted_n, 1) / 1e3
        return seconds * self._rounds

    def answers(self) -> Iterator[Answer]:
        """Measure everything; each answer as it comes.

        Raises:
            SpecxError: an arm cannot answer.
        """
        begun = self._clock()
        for item in self._work:
            replies: list[str] = []
            for _ in range(self._n_turns(item)):
                if (case := self._case(item, replies)) is None:
                    break
                self.asked[case.id] = case
                for answer in self._ask(case, 0, begun):
                    if answer.arm == self._arms[0].info.name:
                        replies.append(self._maker.text(answer.tokens))
                    yield answer
        self.total = len(self.asked) * len(self._arms) * self._rounds
        for number in range(1, self._rounds):
            for case in self.asked.values():
                yield from self._ask(case, number, begun)

    def _ask(self, case: Case, number: int, begun: float) -> Iterator[Answer]:
        for arm in schedule(self._arms, number, f"{self._seed}:{case.id}"):
            started = round(self._clock() - begun, DIGITS)
            yield replace(arm.answer(case), round=number, started_s=started)

    def _n_turns(self, item: Prompt | Workload) -> int:
        return min(item.n_turns, self._turns) if isinstance(item, Prompt) else 1

    def _case(self, item: Prompt | Workload, replies: Sequence[str]) -> Case | None:
        try:
            if isinstance(item, Workload):
                return self._maker.workload(item)
            return self._maker.turn(item, replies)
        except LeftOut as reason:
            self.left_out.append(str(reason))
            return None


def schedule(arms: Sequence[Arm], number: int, key: str) -> list[Arm]:
    """The order of the arms in round `number`: shuffled for every other round, and reversed in between."""
    order = list(arms)
    random.Random(f"{key}:{number // 2}").shuffle(order)
    return order[::-1] if number % 2 else order


def server_sampling(sampling: SamplingSettings) -> dict[str, Any]:
    """The same settings under the names of llama.cpp's server."""
    return {
        "seed": sampling.seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k if sampling.temperature else 1,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": sampling.typical_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_last_n,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": [
            [token, False if bias == -math.inf else bias] for token, bias in sampling.logit_bias.items()
        ],
    }


def nothing_learned(corpora: Corpora | None = None) -> Learned:
    """What drafts are made of, at first: nothing but `corpora`, and nothing of it is kept."""
    return Learned(Store(None), model_key="", cost_key="", corpora=corpora)


def _acceptance(steps: Sequence[Step], names: Sequence[str]) -> dict[str, Any]:
    """`by_source` and `by_depth` of an answer; what only fills up a batch is no guess."""
    by_source: dict[str, list[int]] = {}
    by_depth: list[list[int]] = []
    for step in steps:
        accepted = set(step.accepted)
        depths: list[int] = []
        for node, parent in enumerate(step.draft.parents.tolist()):
            depths.append(0 if parent < 0 else depths[parent] + 1)
            if step.draft.probs[node] <= 0:
                continue
            while len(by_depth) <= depths[node]:
                by_depth.append([0, 0])
            source = by_source.setdefault(names[step.draft.sources[node]], [0, 0])
            for count in (source, by_depth[depths[node]]):
                count[0] += 1
                count[1] += node in accepted
    return {"by_source": by_source, "by_depth": by_depth}
