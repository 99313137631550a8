"""What a draft model says, by the target's own rule and noise: one token at a time, or what it checks.

The model proposes the argmax of log q + G with the G of the position (Daliri, Musco and Suresh 2024; plain
argmax at temperature 0) after the target's truncation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Model, Vocab
from specx.backends.errors import SpecxError
from specx.drafters.base import Text, Verified
from specx.drafters.byte_map import ByteMap
from specx.drafters.calibration.merging import Merging
from specx.drafters.calibration.model import ModelCalibration
from specx.drafters.guesser import AT_ONCE, Guess, GuessCosts, Guesser, LoadedSource
from specx.drafters.ranking import ranked
from specx.drafters.reading import Read, Reader, in_common
from specx.drafters.runners import RUNNERS
from specx.drafters.translated import TranslatedGuesser

__all__ = ["DraftModel", "ModelGuesser"]


class DraftModel(LoadedSource["Read"]):
    """A draft model that is loaded when it is first asked.

    Args:
        load: gives the model, None if it cannot be used.
        n_ctx: tokens it will hold of a text.
        shared: how many tokens of the target's vocabulary it has, with the same meaning; the first ones.
        target: the target's vocabulary, where the model has another one.
        costs: what a proposal is expected to cost; corrected in place.
        calibration: how often it is right; learned further in place.
        clock: seconds.

    Attributes:
        calls: what a call of the model costs; where the vocabularies are the same, a proposal is a call.
        byte_map: between the vocabularies, where they differ and the model is loaded.
    """

    name = "model"

    def __init__(
        self,
        load: Callable[[], Model | None],
        *,
        n_ctx: int,
        shared: int,
        costs: GuessCosts,
        target: Vocab | None = None,
        calibration: ModelCalibration | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(costs, calibration, clock)
        self.calls = costs if target is None else replace(costs)
        self.n_ctx, self.shared = n_ctx, shared
        self.byte_map: ByteMap | None = None
        self._target = target
        self.model: Model | None = None
        self._load = load
        self._opened = 0

    @property
    def loaded(self) -> bool:
        """Whether it takes memory."""
        return self.model is not None

    @property
    def merging(self) -> Merging:
        """What was learned of tokens that the target writes as one."""
        return self.calibration.merging

    def follow(self, text: Text) -> Guesser:
        """A guesser for one text; it goes on from the finished one that has most in common with it."""
        if self._target is not None:
            return TranslatedGuesser(self, text)
        return ModelGuesser(self, text, self.take_idle(text.tokens))

    def take_idle(self, tokens: Sequence[int]) -> Read | None:
        """What was read of the finished text that has most in common with `tokens`, the model's own."""
        read = max(self._idle, key=lambda read: in_common(read.held, tokens), default=None)
        if read is not None:
            self._idle.remove(read)
        return read

    def open(self) -> Read | None:
        """Room for one text of the loaded model; None if it is of no use, or has no room left."""
        if self.model is None and not self.failed:
            start = self.clock()
            self.model = self._load()
            self.failed = self.model is None
            if self.model is not None and self._target is not None:
                try:
                    self.byte_map = ByteMap(self._target, self.model.vocab)
                except (SpecxError, ValueError) as error:  # a vocabulary that lacks plain letters
                    self.fail(f"its vocabulary cannot be translated: {error}")
            self.costs.open_ms = (self.clock() - start) * 1e3
        if self.failed or self.model is None:
            return None
        if self._idle:
            return self._idle.pop()
        if self._opened == self.model.facts.max_texts:
            return None
        self._opened += 1
        return Read(self.model.open())

    def close(self) -> None:
        """Give the memory back; it is not asked any more."""
        self.failed = True
        self._idle.clear()
        if self.model is not None:
            self.model.close()
            self.model = None


class ModelGuesser(Guesser):
    """Follows one text with a draft model and continues it."""

    def __init__(self, source: DraftModel, text: Text, read: Read | None = None) -> None:
        self._source, self._text = source, text
        self._reader = Reader(source, read)
        self._roomless = False
        self._foreign = max(text.tokens, default=0) >= source.shared  # the text has a token it does not know

    @property
    def usable(self) -> bool:
        """Whether it can be asked about the present text."""
        return not (self._source.failed or self._foreign or self._roomless)

    def observe(self, seen: Verified) -> None:
        """The text has grown."""
        self._foreign |= max(seen.tokens, default=0) >= self._source.shared

    def unread(self, chain: Sequence[int]) -> int:
        """Tokens to read before the one after `chain` can be proposed, at least 1."""
        return self._reader.unread(self._text.tokens, chain)

    def guess(self, chain: Sequence[int]) -> Guess | None:
        """The token after the text and `chain`; None if the model turns out to be of no use."""
        return next(iter(self.check(chain, ())), None)

    @property
    def most_checked(self) -> int:
        """Most tokens that one `check` looks at: what fits a call beside a few unread ones."""
        model = self._source.model
        return max(model.facts.max_width - AT_ONCE, 0) if model is not None else 0

    def check(self, chain: Sequence[int], claimed: Sequence[int]) -> list[Guess]:
        """Its tokens after the text, `chain` and ever more of `claimed`, up to the first that is not claimed.

        One call of the model computes them all.
        """
        source, guesses = self._source, list[Guess]()
        if source.failed:
            return []
        if not self._reader.open():
            self._roomless = True
            return []
        try:
            rows = self._reader.logits(self._text.tokens, [*chain, *claimed], 1 + len(claimed))
            for row, following in zip(rows, (*claimed, None), strict=True):
                guesses.append(self._choice(row, self._text.position + len(chain) + len(guesses)))
                if guesses[-1].token != following:
                    break
        except (SpecxError, ValueError) as error:  # it cannot be computed, or has no logit above -inf
            source.fail(str(error))
            return []
        except BaseException:  # interrupted: what its cache holds is not known
            source.fail()
            raise
        return guesses

    def close(self) -> None:
        """The text is finished."""
        self._reader.close()

    def _choice(self, row: NDArray[np.float32], position: int) -> Guess:
        """The best token that the target has as well, and how far ahead of the next ones it is."""
        source = self._source
        assert source.model is not None
        head = source.model.facts.head
        known = source.shared if head is None else int(np.searchsorted(head, source.shared))
        rows, scores = ranked(row[:known], self._text, position, 1 + RUNNERS, head)
        return Guess.of(rows if head is None else head[rows], scores)
