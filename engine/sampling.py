"""How the next token is chosen: the one acceptance rule.

The token at an absolute position is the argmax of log p + G over the kept tokens, where the Gumbel noise G
is a function of (seed, position, token id). It does not depend on what was drafted, so a drafted token is
simply right or wrong (drafter-invariant coupling, Daliri, Musco and Suresh 2024). At temperature 0 it is
the plain argmax.

A constraint (a grammar) restricts the truncated distribution: the kept tokens are ranked by log p + G, and
the first one allowed wins, which is a sample of the kept and allowed tokens with their probabilities
renormalised. Only if no kept token is allowed is the constraint applied to the whole vocabulary, before the
truncation.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence, Set
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Output
from specx.backends.errors import GrammarError, ModelError, UsageError
from specx.drafters.base import Draft, Forcing
from specx.engine.settings import SamplingSettings

__all__ = ["Constraint", "Sampler", "Unending"]

_FEW = 64  # tokens asked about before all kept ones are; a grammar call costs time for each
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)


class Constraint(Protocol):
    """What the text must match; follows the emitted tokens."""

    def allowed(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of the tokens `ids` (m,) int32 may come next, as (m,) bool."""

    def accept(self, token: int) -> None:
        """`token` was emitted."""


class Unending:
    """A constraint that lets the text end only where nothing else may follow.

    Args:
        constraint: allows the tokens that end the text where the text may end.
        ends: those tokens.
        vocab_size: V.
    """

    def __init__(self, constraint: Constraint, ends: Iterable[int], vocab_size: int) -> None:
        self._constraint = constraint
        self._ends = np.array(sorted(ends), np.int32)
        self._others = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), self._ends)

    def allowed(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of the tokens `ids` (m,) int32 may come next, as (m,) bool."""
        allowed = self._constraint.allowed(ids)
        going_on = allowed & ~np.isin(ids, self._ends)
        if going_on.any() or not allowed.any() or self._constraint.allowed(self._others).any():
            return going_on
        return allowed

    def forced(self) -> bytes:
        """Bytes that everything which may come next begins with, where the text may not end."""
        return self._constraint.forced() if isinstance(self._constraint, Forcing) else b""

    def accept(self, token: int) -> None:
        """`token` was emitted."""
        self._constraint.accept(token)


class Sampler:
    """Chooses the token of each position, and follows what was emitted.

    Args:
        settings: `seed` must be set; only its lower 64 bits count.
        vocab_size: V.
        constraint: what the tokens emitted from `begin` on must match.
        margins: record `last_margin`, which makes greedy sampling a little slower.
        ends: tokens that end the text; where the constraint allows nothing else no bias keeps them off.

    Attributes:
        independent: whether the logits of a position alone decide, not what was emitted before it.

    Raises:
        UsageError: a token of the logit bias is not in the vocabulary.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        vocab_size: int,
        constraint: Constraint | None = None,
        *,
        margins: bool = False,
        ends: Iterable[int] = (),
    ) -> None:
        if settings.seed is None:
            raise ValueError("a sampler needs a seed")
        self.margins = margins
        self.last_margin = float("nan")
        self._seed = settings.seed & (2**64 - 1)
        self._temperature = settings.temperature
        self._truncation = (settings.top_k, settings.top_p, settings.min_p, settings.typical_p)
        self._constraint = constraint
        self._ends = np.array(sorted(ends), np.int32)
        self._argmax = settings.temperature <= 0 and constraint is None and not margins
        for token in settings.logit_bias:
            if not 0 <= token < vocab_size:
                raise UsageError(
                    f"the logit bias names token {token}, which the model does not have",
                    f"token ids go from 0 to {vocab_size - 1}",
                )
        self._bias_ids = np.array(list(settings.logit_bias), np.int32)
        self._bias = np.array([_single(bias) for bias in settings.logit_bias.values()], np.float32)
        self._penalties = _Penalties(settings)
        self._adjusts = bool(settings.logit_bias) or self._penalties.active
        self.independent = constraint is None and not margins and not self._adjusts
        self._scratch = np.empty(vocab_size, np.float32)

    def begin(self, context: Sequence[int]) -> None:
        """A generation starts after `context`, the tokens that the penalties look back at."""
        self._penalties.begin(context)

    def descend(
        self, output: Output, draft: Draft, position: int, stops: Set[int]
    ) -> tuple[list[int], list[int]]:
        """The tokens that are chosen along a draft, the first that it does not have included.

        For an `independent` sampler only; nothing needs to be accepted then.

        Args:
            output: row 0 is the root, row i + 1 node i of the draft.
            draft: what was verified.
            position: absolute position of the first token.
            stops: tokens that nothing follows.

        Returns:
            Tokens, and the row that each was chosen from; as many.

        Raises:
            ModelError: no token has a logit above -inf.
        """
        try:
            return output.rows.descend(
                draft, stops, self._seed, position, self._temperature, *self._truncation
            )
        except ValueError as problem:
            raise _nothing_to_choose() from problem

    def sample(self, logits: NDArray[np.float32], position: int) -> int:
        """The token at an absolute position.

        Args:
            logits: (V,) float32 that follow the emitted tokens. Borrowed, not changed.
            position: absolute position of the token being chosen.

        Raises:
            ModelError: no token has a logit above -inf.
            GrammarError: the constraint allows no token at all.
        """
        return self.sample_row(Output(logits[None]), 0, position)

    def sample_row(self, output: Output, row: int, position: int) -> int:
        """The same from row `row` of what a forward call gave."""
        if self._adjusts:
            output, row = Output(self._adjusted(output.logits[row])[None]), 0
        if self._argmax and (token := output.rows.argmax(row)) >= 0:
            return token
        if self._constraint is not None:
            return self._sample_allowed(output, row, position, self._constraint)
        ids, scores = self._rank(output, row, position, 2 if self.margins else 1)
        return self._winner(ids, scores)

    def accept(self, token: int) -> None:
        """`token` was emitted. Called for every emitted token, in order."""
        self._penalties.accept(token)
        if self._constraint is not None:
            self._constraint.accept(token)

    def _adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """`logits` with bias and penalties, in the scratch row."""
        row = self._scratch
        np.copyto(row, logits)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # a logit of -inf and a bias of +inf: NaN, never chosen
            row[self._bias_ids] += self._bias
            self._penalties.apply(row)
        return row

    def _rank(
        self, output: Output, row: int, position: int, count: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        try:
            return output.rows.rank(row, self._seed, position, self._temperature, *self._truncation, count)
        except ValueError as problem:
            raise _nothing_to_choose() from problem

    def _winner(self, ids: NDArray[np.int32], scores: NDArray[np.float64]) -> int:
        if self.margins:
            best, second = [*scores[:2].tolist(), -float("inf")][:2]
            self.last_margin = best - second if best > second else 0.0  # two infinite ones have no difference
        return int(ids[0])

    def _sample_allowed(self, output: Output, row: int, position: int, constraint: Constraint) -> int:
        """The best allowed token, asking the constraint about as few tokens as will do."""
        wanted = 2 if self.margins else 1
        logits = output.logits[row]
        for count in (wanted, _FEW, len(logits)):
            ids, scores = self._rank(output, row, position, count)
            allowed = constraint.allowed(ids)
            # The tokens not asked about yet can only follow, so `wanted` allowed ones settle it.
            if np.count_nonzero(allowed) >= wanted or len(ids) < count:
                break
        if not allowed.any():
            everything = np.arange(len(logits), dtype=np.int32)
            allowed = constraint.allowed(everything)
            masked = np.where(allowed, logits, np.float32(-np.inf))
            if not (masked > -np.inf).any():
                if allowed.any() and np.isin(everything[allowed], self._ends).all():
                    self.last_margin = float("inf")
                    return int(everything[allowed][0])
                raise GrammarError(
                    "the grammar allows none of the model's tokens here",
                    "check that the grammar can be completed with the text so far",
                )
            ids, scores = self._rank(Output(masked[None]), 0, position, wanted)
            return self._winner(ids, scores)
        return self._winner(ids[allowed], scores[allowed])


def _nothing_to_choose() -> ModelError:
    return ModelError(
        "there is no token to choose: every logit is -inf or NaN",
        "check the logit bias; without one, the model file may be damaged (specx verify MODEL)",
    )


class _Penalties:
    """llama.cpp's repetition, frequency and presence penalties over the last `repeat_last_n` tokens."""

    def __init__(self, settings: SamplingSettings) -> None:
        self._repeat = max(_single(settings.repeat_penalty), np.float32(_SMALLEST))
        self._frequency = _single(settings.frequency_penalty)
        self._presence = _single(settings.presence_penalty)
        self._length = settings.repeat_last_n
        neutral = self._repeat == 1 and self._frequency == 0 and self._presence == 0
        self.active = self._length != 0 and not neutral
        self._recent: deque[int] = deque()
        self._counts: Counter[int] = Counter()

    def begin(self, context: Sequence[int]) -> None:
        if self.active:
            self._recent = deque(context if self._length < 0 else context[-self._length :])
            self._counts = Counter(self._recent)

    def accept(self, token: int) -> None:
        if not self.active:
            return
        self._recent.append(token)
        self._counts[token] += 1
        if 0 <= self._length < len(self._recent):
            oldest = self._recent.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]

    def apply(self, row: NDArray[np.float32]) -> None:
        """Change (V,) logits in place."""
        if not self._counts:
            return
        ids = np.fromiter(self._counts.keys(), np.int32, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
        logits = row[ids]
        # Dividing would make a negative logit more likely.
        repeated = _finite(np.where(logits > 0, logits / self._repeat, logits * self._repeat))
        change = _finite(counts * self._frequency + self._presence)
        # What was infinite stays so: a forbidden token, or one that a bias forces.
        row[ids] = np.where(np.isfinite(logits), _finite(repeated - change), logits)


def _single(value: float) -> np.float32:
    """`value` in single precision; a finite one stays finite."""
    return np.float32(value if np.isinf(value) else np.clip(value, -_LARGEST, _LARGEST))


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(m,) values, what overflowed at the limit: the difference of two infinities would be no number."""
    return np.clip(values, np.float32(-_LARGEST), np.float32(_LARGEST))
