"""The decode loop: choose, forward, verify, keep, observe, yield; for one text or many.

The token at a position is a function of the context, the sampling settings, the seed and the position, so
a drafted token is simply right or wrong, and the text depends on nothing the plan or a drafter does, nor on
the texts that are written beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache, Model, Output, Tree, Want
from specx.backends.errors import SpecxError
from specx.drafters.base import Draft, Drafting, Text, Verified
from specx.engine.budget import Budget, Decision, Part, Spent
from specx.engine.learned.lengths import Outlook
from specx.engine.plan import Plan
from specx.engine.sampling import Sampler

__all__ = ["Evidence", "Job", "Step", "decode", "evidence_of"]

EVIDENCE_LOGITS = 64  # of each position; what the truncated distribution rests on


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a token was chosen, and how probable it was.

    Attributes:
        margin: score of the token minus the runner-up's, in units of the tempered logits.
        ids, logits: the largest logits of the position, (64,) int32 and float32, before any adjustment.
        logprob: natural logarithm of the token's probability in the model's own distribution: that of the
            logits before any adjustment.
        total: logarithm of the sum of exp of all logits; `logits - total` are the logprobs of `ids`.
    """

    margin: float
    ids: NDArray[np.int32]
    logits: NDArray[np.float32]
    logprob: float
    total: float


@dataclass(slots=True)
class Job:
    """A text that is being written.

    Attributes:
        text: all of it; its last token is not in the cache yet.
        cache: the rest of it.
        drafting: follows the text.
        sampler: has begun with the whole text.
        stops: tokens after which nothing more is verified.
        budget: what drafts may cost it.
        outlook: how much of it, and after it, is to be expected.
    """

    text: Text
    cache: Cache
    drafting: Drafting
    sampler: Sampler
    stops: frozenset[int] = frozenset()
    budget: Budget = field(default_factory=Budget)
    outlook: Outlook = field(default_factory=Outlook)


@dataclass(slots=True)
class Step:
    """What one turn of the loop gave one text.

    Attributes:
        tokens: emitted tokens, at least one unless it failed.
        draft: what was verified.
        accepted: indices of the draft's nodes that were right.
        seconds: time of the whole step, which all texts of it share.
        host_ms: the part of it spent outside the models, in milliseconds.
        evidence: of each emitted token, if the sampler records margins.
        spent: what sources of drafts that cost time took, if any was asked.
        promised: tokens that the plan expected.
        promised_ms: milliseconds that it expected.
        plain_ms: the same of the cheapest step without drafts.
        texts: how many were written at once.
        failure: why this text cannot go on, if it cannot; the others do.
    """

    tokens: list[int]
    draft: Draft
    accepted: list[int]
    seconds: float
    host_ms: float
    evidence: list[Evidence]
    spent: Spent | None = None
    promised: float = 1.0
    promised_ms: float = 0.0
    plain_ms: float = 0.0
    texts: int = 1
    failure: SpecxError | None = None

    @property
    def free_pace(self) -> tuple[float, float]:
        """Expected without sources that cost time: times the speed of plain decoding, and tokens."""
        tokens, ms = self.spent.alone if self.spent is not None else (self.promised, self.promised_ms)
        return max(tokens * self.plain_ms / ms, 1.0) if ms > 0 else 1.0, tokens


def decode(
    model: Model,
    jobs: Sequence[Job],
    plan: Plan,
    want: Callable[[], Want] = lambda: Want.LOGITS,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[list[Step]]:
    """Emit tokens until no text is left or the caller stops asking.

    Args:
        model: computes all texts.
        jobs: the texts; the caller adds and removes some between two steps.
        plan: the objective.
        want: what drafters need of the next forward call.
        clock: seconds.

    Yields:
        What a step gave each of `jobs`, in their order.

    Raises:
        ContextFullError: a text has no room for another token.
    """
    while jobs:
        start = clock()
        decision = plan.choose(jobs, model.facts)
        lengths, trees = list[int](), list[Tree]()
        for job, part in zip(jobs, decision.parts, strict=True):
            lengths.append(job.cache.length)
            trees.append(Tree(job.cache, *part.draft.tree(job.text.tokens[-1])))
        called = clock()
        outputs = model.forward(trees, want())
        inside = clock() - called
        verified: list[_Verdict] = []
        try:
            for job, part, output in zip(jobs, decision.parts, outputs, strict=True):
                verified.append(_advance(job, part, output, clock))
        except BaseException:
            for job in jobs:
                with suppress(Exception):  # that it has kept, if it has; what went wrong is raised below
                    job.cache.keep([0])  # the root is right in any case, and no other call is taken before
            raise
        accepted = []
        for verdict in verified:
            inside += verdict.keeping
            accepted.append(len(verdict.rows) - 1)
        seconds = clock() - start
        host_ms = (seconds - inside) * 1e3 - decision.spent_ms
        plan.observe(decision, jobs, lengths, accepted, inside * 1e3, host_ms)
        yield [
            verdict.step(part, seconds, host_ms, decision, len(trees))
            for verdict, part in zip(verified, decision.parts, strict=True)
        ]


@dataclass(slots=True)
class _Verdict:
    """What verification found for one text.

    Attributes:
        emitted: the tokens.
        rows: of the accepted path, root first, so as many as tokens.
        evidence: of each token, if that is wanted.
        keeping: seconds that keeping the rows took.
        failure: why there are no tokens.
    """

    emitted: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    keeping: float = 0.0
    failure: SpecxError | None = None

    def step(self, part: Part, seconds: float, host_ms: float, decision: Decision, texts: int) -> Step:
        """The same as the caller sees it."""
        return Step(
            self.emitted,
            part.draft,
            [row - 1 for row in self.rows[1:]],
            seconds,
            host_ms,
            self.evidence,
            part.spent,
            part.expected,
            decision.cost_ms,
            decision.plain_ms,
            texts,
            self.failure,
        )


def _advance(job: Job, part: Part, output: Output, clock: Callable[[], float]) -> _Verdict:
    """Verify, keep, observe."""
    verdict = _Verdict()
    try:
        _verify(part.draft, output, job, verdict)
    except SpecxError as failure:
        verdict = _Verdict(rows=[0], failure=failure)
    keeping = clock()
    job.cache.keep(verdict.rows)
    verdict.keeping = clock() - keeping
    if verdict.failure is None:
        job.text.append(verdict.emitted)
        job.drafting.observe(Verified(verdict.emitted, part.draft, output))
    return verdict


def _verify(draft: Draft, output: Output, job: Job, verdict: _Verdict) -> None:
    """Descend the tree as long as it holds the token the target chooses."""
    sampler, position = job.sampler, job.text.position
    if sampler.independent:
        verdict.emitted, verdict.rows = sampler.descend(output, draft, position, job.stops)
        return
    children = _children(draft.tokens.tolist(), draft.parents.tolist())
    row = 0
    while True:
        try:
            token = sampler.sample_row(output, row, position + len(verdict.emitted))
        except SpecxError:
            if verdict.emitted:  # the text may end before that: it is told when a step begins there
                return
            raise
        sampler.accept(token)
        verdict.emitted.append(token)
        verdict.rows.append(row)
        if sampler.margins:
            verdict.evidence.append(evidence_of(token, output.logits[row], sampler.last_margin))
        child = children.get((row, token))
        if child is None or token in job.stops:
            return
        row = child


def _children(tokens: Sequence[int], parents: Sequence[int]) -> dict[tuple[int, int], int]:
    """(row of the parent, token) -> row, where row 0 is the root and row i + 1 node i."""
    return {(parent + 1, token): i + 1 for i, (parent, token) in enumerate(zip(parents, tokens, strict=True))}


def evidence_of(token: int, logits: NDArray[np.float32], margin: float = 0.0) -> Evidence:
    """What the logits (V,) float32 of its position say of `token`."""
    top = logits.max()
    if not np.isfinite(top):
        logits = _comparable(logits)
        top = logits.max()
    count = min(EVIDENCE_LOGITS, len(logits))
    ids = np.argpartition(logits, -count)[-count:].astype(np.int32)
    largest = logits[ids]
    with np.errstate(over="ignore"):
        total = float(top) + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
    return Evidence(margin, ids, largest, float(logits[token]) - total, total)


def _comparable(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (V,) that leave the same choices as those of damaged weights, the largest NaN or infinite.

    NaN is never chosen, and beside +inf nothing else is. Where nothing can be chosen, all tokens are alike.
    """
    numbers = np.where(np.isnan(logits), np.float32(-np.inf), logits)
    top = numbers.max()
    return numbers if np.isfinite(top) else np.where(numbers == top, np.float32(0), np.float32(-np.inf))
