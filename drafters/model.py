"""What a draft model says: one token at a time, by the target's own rule and noise.

The model proposes the argmax of log q + G with the G of the position (Daliri, Musco and Suresh 2024; plain
argmax at temperature 0) after the target's truncation. Its KV cache follows the text lazily: emitted tokens
that it has not read are read when it is next asked, after going back to what it has in common with the text.
What was read of a finished text is kept for the next one, which often goes on from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache, Model, chain_parents
from specx.backends.errors import SpecxError
from specx.drafters.base import Text, Verified
from specx.drafters.calibration.collapse import Collapse
from specx.drafters.calibration.model import ModelCalibration
from specx.drafters.guesser import AT_ONCE, Guess, GuessCosts, Guesser, GuesserSource
from specx.kernels._native import rank_tokens

__all__ = ["DraftModel", "ModelGuesser"]


class DraftModel(GuesserSource):
    """A draft model that is loaded when it is first asked. Implements `GuesserSource`.

    Args:
        load: gives the model, None if it cannot be used.
        n_ctx: tokens it will hold of a text.
        shared: how many tokens of the target's vocabulary it has, with the same meaning; the first ones.
        costs: what its work is expected to cost; corrected in place.
        calibration: how often it is right; learned further in place.
        clock: seconds.

    Attributes:
        failure: why it cannot go on, if that turned out while it was asked.
        failed: whether it turned out to be of no use to anybody.
    """

    name = "model"

    def __init__(
        self,
        load: Callable[[], Model | None],
        *,
        n_ctx: int,
        shared: int,
        costs: GuessCosts,
        calibration: ModelCalibration | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.costs = costs
        self.calibration = calibration or ModelCalibration()
        self.collapse = Collapse()
        self.failure = ""
        self.failed = False
        self.n_ctx, self.shared, self.clock = n_ctx, shared, clock
        self._load = load
        self._model: Model | None = None
        self._idle: list[_Read] = []  # of texts that are finished
        self._opened = 0

    @property
    def loaded(self) -> bool:
        """Whether it takes memory."""
        return self._model is not None

    def follow(self, text: Text) -> ModelGuesser:
        """A guesser for one text; it goes on from the finished one that has most in common with it."""
        read = max(self._idle, key=lambda read: _common(read.held, text.tokens), default=None)
        if read is not None:
            self._idle.remove(read)
        return ModelGuesser(self, text, read)

    def open(self) -> _Read | None:
        """Room for one text of the loaded model; None if it is of no use, or has no room left."""
        if self._model is None and not self.failed:
            start = self.clock()
            self._model = self._load()
            self.failed = self._model is None
            self.costs.open_ms = (self.clock() - start) * 1e3
        if self.failed or self._model is None:
            return None
        if self._idle:
            return self._idle.pop()
        if self._opened == self._model.facts.max_texts:
            return None
        self._opened += 1
        return _Read(self._model.open())

    def finish(self, read: _Read) -> None:
        """A text is finished, of which so much was read."""
        if not self.failed:
            self._idle.append(read)

    def fail(self, reason: str = "") -> None:
        """It cannot go on."""
        self.failure = reason
        self.failed = True

    def close(self) -> None:
        """Give the memory back; it is not asked any more."""
        self.failed = True
        self._idle.clear()
        if self._model is not None:
            self._model.close()
            self._model = None


class _Read:
    """What the model has read of a text.

    Attributes:
        cache: of the model.
        held: the tokens in it.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.held: list[int] = []


class ModelGuesser(Guesser):
    """Follows one text with a draft model and continues it."""

    def __init__(self, source: DraftModel, text: Text, read: _Read | None = None) -> None:
        self._source, self._text = source, text
        self._read = read
        self._roomless = False
        self._foreign = max(text.tokens, default=0) >= source.shared  # the text has a token it does not know
        self._start = 0  # of what the model reads of the text
        self._agreed = 0  # of the tokens it holds, how many are surely those of the text

    @property
    def usable(self) -> bool:
        """Whether it can be asked about the present text."""
        return not (self._source.failed or self._foreign or self._roomless)

    def observe(self, seen: Verified) -> None:
        """The text has grown."""
        self._foreign |= max(seen.tokens, default=0) >= self._source.shared

    def unread(self, chain: Sequence[int]) -> int:
        """Tokens to read before the one after `chain` can be proposed, at least 1."""
        n_ctx = self._source.n_ctx
        end = len(self._text.tokens) + len(chain)
        if end - self._start >= n_ctx:  # older tokens must be forgotten, and the rest read again
            return n_ctx // 2
        return max(end - self._start - self._common(chain), 1)

    def guess(self, chain: Sequence[int]) -> Guess | None:
        """The token after the text and `chain`; None if the model turns out to be of no use."""
        text, source = self._text, self._source
        if source.failed:
            return None
        read = self._read = self._read or source.open()
        if read is None:
            self._roomless = True
            return None
        position = text.position + len(chain)
        seed = text.seed & (2**64 - 1)
        try:
            row = self._logits(read, chain)[: source.shared]
            ids, scores = rank_tokens(row, seed, position, text.temperature, *text.truncation, 2)
        except (SpecxError, ValueError) as error:  # it cannot be computed, or has no logit above -inf
            source.fail(str(error))
            return None
        except BaseException:  # interrupted: what its cache holds is not known
            source.fail()
            raise
        return Guess(int(ids[0]), float(scores[0] - scores[1]) if len(ids) > 1 else float("inf"))

    def close(self) -> None:
        """The text is finished."""
        if self._read is not None:
            self._source.finish(self._read)
            self._read = None

    def _common(self, chain: Sequence[int]) -> int:
        """How many of the held tokens are those of the text and `chain`, as far as they go."""
        held = self._read.held if self._read is not None else []
        text, start = self._text.tokens, self._start
        common, end = self._agreed, min(len(held), len(text) - start)
        while common < end and held[common] == text[start + common]:
            common += 1
        self._agreed = common
        if common == len(text) - start:
            for token, mine in zip(chain, held[common:], strict=False):
                if token != mine:
                    break
                common += 1
        return common

    def _logits(self, read: _Read, chain: Sequence[int]) -> NDArray[np.float32]:
        """Logits (V,) after the text and `chain`; borrowed until the next call."""
        text, costs, clock = self._text.tokens, self._source.costs, self._source.clock
        cache = read.cache
        if len(text) + len(chain) - self._start >= cache.n_ctx:
            self._start = max(len(text) + len(chain) - cache.n_ctx // 2, 0)
            self._agreed = 0
        end = len(text) - self._start
        kept = cache.reusable(min(self._common(chain), end + len(chain) - 1))
        cache.rewind(kept)
        del read.held[kept:]
        self._agreed = min(self._agreed, kept)
        unread = [*text[self._start + kept :], *chain[max(kept - end, 0) :]]
        if len(unread) > min(AT_ONCE, cache.max_width):
            self._prefill(read, unread[:-1])
            unread = unread[-1:]
        started = clock()
        n = len(unread)
        output = cache.forward(np.array(unread, np.int32), chain_parents(n))
        cache.keep(range(n))
        read.held += unread
        costs.observe_call(n, (clock() - started) * 1e3)
        logits: NDArray[np.float32] = output.logits[n - 1]
        return logits

    def _prefill(self, read: _Read, tokens: list[int]) -> None:
        clock = self._source.clock
        started = clock()
        try:
            read.cache.prefill(tokens)
        finally:  # some of them, if it was interrupted
            read.held += tokens[: read.cache.length - len(read.held)]
        self._source.costs.observe_reading(len(tokens), (clock() - started) * 1e3)


def _common(held: Sequence[int], text: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next(
        (i for i, (a, b) in enumerate(zip(held, text, strict=False)) if a != b), min(len(held), len(text))
    )
