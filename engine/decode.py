"""The decode loop: choose, forward, verify, keep, observe, yield.

The token at a position is a function of the context, the sampling settings, the seed and the position, so
a drafted token is simply right or wrong, and the text depends on nothing the plan or a drafter does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Backend, Output
from specx.drafters.base import Draft, Drafter
from specx.engine.plan import Asked, Plan
from specx.engine.sampling import Sampler

__all__ = ["Evidence", "Step", "decode"]

EVIDENCE_LOGITS = 64  # of each position; what the truncated distribution rests on


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a token was chosen.

    Attributes:
        margin: score of the token minus the runner-up's, in units of the tempered logits.
        ids, logits: the largest logits of the position, (64,) int32 and float32, before any adjustment.
    """

    margin: float
    ids: NDArray[np.int32]
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of the loop.

    Attributes:
        tokens: emitted tokens, at least one.
        draft: what was verified.
        accepted: indices of the draft's nodes that were right.
        seconds: time of the whole step.
        host_ms: the part of it spent outside the models, in milliseconds.
        evidence: of each emitted token, if the sampler records margins.
        asked: what was spent on a source of drafts that costs time, if anything was.
        promised: tokens that the plan expected.
        promised_ms: milliseconds that it expected.
    """

    tokens: list[int]
    draft: Draft
    accepted: list[int]
    seconds: float
    host_ms: float
    evidence: list[Evidence]
    asked: Asked | None = None
    promised: float = 1.0
    promised_ms: float = 0.0


def decode(
    target: Backend,
    drafter: Drafter,
    plan: Plan,
    sampler: Sampler,
    root: int,
    position: int,
    stops: frozenset[int],
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Step]:
    """Emit tokens until the caller stops asking.

    Args:
        target: holds the context but for its last token.
        drafter: has begun with the whole context.
        plan: the objective.
        sampler: has begun with the whole context.
        root: last token of the context, not yet in the target.
        position: absolute position of the next token, counted from the start of the conversation.
        stops: tokens after which nothing more is verified.
        clock: seconds.

    Raises:
        ContextFullError: the target has no room for another token.
    """
    while True:
        start = clock()
        length = target.length
        decision = plan.choose(drafter, target)
        draft = decision.draft
        tokens = np.empty(len(draft) + 1, np.int32)
        tokens[0], tokens[1:] = root, draft.tokens
        parents = np.empty(len(draft) + 1, np.int32)
        parents[0], parents[1:] = -1, draft.parents + 1
        called = clock()
        output = target.forward(tokens, parents)
        answered = clock()
        try:
            emitted, rows, evidence = _verify(draft, output, sampler, position, stops)
        except BaseException:
            target.keep([0])  # the root is right in any case, and the target takes no other call before
            raise
        keeping = clock()
        target.keep(rows)
        kept = clock()
        drafter.observe(emitted, draft, output)
        inside = (answered - called) + (kept - keeping)
        end = clock()
        host_ms = (end - start - inside) * 1e3 - decision.asked_ms
        plan.observe(decision, len(rows) - 1, length, inside * 1e3, host_ms)
        accepted = [row - 1 for row in rows[1:]]
        promised = decision.expected, decision.cost_ms
        yield Step(emitted, draft, accepted, end - start, host_ms, evidence, decision.asked, *promised)
        root = emitted[-1]
        position += len(emitted)


def _verify(
    draft: Draft, output: Output, sampler: Sampler, position: int, stops: frozenset[int]
) -> tuple[list[int], list[int], list[Evidence]]:
    """Descend the tree as long as it holds the token the target chooses.

    Returns the emitted tokens, the rows of the accepted path (root first, so as many rows as tokens), and
    the evidence if the sampler records it.
    """
    children = _children(draft.tokens.tolist(), draft.parents.tolist())
    emitted: list[int] = []
    rows: list[int] = []
    evidence: list[Evidence] = []
    row = 0
    while True:
        token = sampler.sample_row(output, row, position + len(emitted))
        sampler.accept(token)
        emitted.append(token)
        rows.append(row)
        if sampler.margins:
            evidence.append(_evidence(sampler.last_margin, output.logits[row]))
        child = children.get((row, token))
        if child is None or token in stops:
            return emitted, rows, evidence
        row = child


def _children(tokens: Sequence[int], parents: Sequence[int]) -> dict[tuple[int, int], int]:
    """(row of the parent, token) -> row, where row 0 is the root and row i + 1 node i."""
    return {(parent + 1, token): i + 1 for i, (parent, token) in enumerate(zip(parents, tokens, strict=True))}


def _evidence(margin: float, logits: NDArray[np.float32]) -> Evidence:
    count = min(EVIDENCE_LOGITS, len(logits))
    ids = np.argpartition(logits, -count)[-count:].astype(np.int32)
    return Evidence(margin, ids, logits[ids])
