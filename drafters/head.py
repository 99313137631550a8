"""Draft heads: small networks that read the target's hidden states and say what comes next.

A head costs a twentieth of a target's step, and is right more often than a model of its size. Its tokens are
proposed, calibrated and paid for like those of a draft model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Want
from specx.backends.errors import SpecxError
from specx.backends.settings import HEAD_HELD
from specx.drafters.base import Text, Verified
from specx.drafters.calibration.model import ModelCalibration
from specx.drafters.guesser import AT_ONCE, Guess, GuessCosts, Guesser, LoadedSource
from specx.drafters.ranking import ranked
from specx.drafters.runners import RUNNERS

if TYPE_CHECKING:
    from specx.drafters.recording import Recorder

__all__ = [
    "DraftHead",
    "HeadGuesser",
    "HeadRunner",
    "LoadedHead",
    "SlottedHead",
    "SlottedModel",
    "SlottedRunner",
]


class HeadRunner(Protocol):
    """Follows one text with a head: what a guesser asks, whatever kind of head it is.

    Tokens have indices in the text, the first one 0. The hidden states of a token are known once the target
    has computed it: those of the text's last token are not, so it is always among what is drafted from.

    Attributes:
        first, length: it holds the tokens with the indices `first <= i < length`, and their hidden states.
        columns: (R,) int32 tokens that the columns of its logits stand for, rising; None where there is one
            for each token.
        most: tokens that it drafts one after the other; None if there is no end.
    """

    first: int
    length: int
    columns: NDArray[np.int32] | None
    most: int | None = None

    def common(self, text: Sequence[int]) -> int:
        """Up to which index `text` has the tokens that it holds; at least `first`."""

    def accept(self, at: int, tokens: Sequence[int], features: NDArray[np.float32]) -> None:
        """The target has committed `tokens` (n,), the first one with the index `at`.

        Where that is not `length`, what it held before is forgotten and it begins there.

        Args:
            at: index of the first one.
            tokens: (n,).
            features: (n, k * d) what entered the layers that the head reads.
        """

    def unread(self, drafted: Sequence[int], more: int = 0) -> int:
        """How many tokens `logits` would compute once `more` have been accepted, at least 1."""

    def logits(self, drafted: Sequence[int]) -> NDArray[np.float32]:
        """Logits (R,) float32 after what it holds and `drafted`, at least one token; borrowed.

        What is the same as in the call before is not computed again.

        Args:
            drafted: the text's last token, of which there are no hidden states yet, and what is drafted.

        Raises:
            SpecxError: they cannot be computed.
        """

    def rewind(self, length: int) -> None:
        """Forget the tokens from the index `length` on; everything if it is not above `first`."""


class LoadedHead(Protocol):
    """A head in memory, shared by the texts it follows."""

    def open(self) -> HeadRunner | None:
        """Follow one more text; None if there is no room for it."""

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""


class SlottedModel(Protocol):
    """A loaded head with room for some texts.

    Attributes:
        columns: as in `HeadRunner`.
        n_ctx: most tokens of one text.
        max_texts: most texts at once.
    """

    columns: NDArray[np.int32] | None
    n_ctx: int
    max_texts: int

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""


class SlottedRunner(HeadRunner):
    """Follows one text in a slot of a model. What it holds of the text is one stretch of tokens.

    Args:
        model: the head.
        slot: which of its texts this is.
    """

    def __init__(self, model: SlottedModel, slot: int) -> None:
        self.slot = slot
        self.columns = model.columns
        self.first = self.length = 0
        self._tokens: list[int] = []  # those held

    def common(self, text: Sequence[int]) -> int:
        """Up to which index `text` has the tokens that it holds; at least `first`."""
        same, end = 0, min(len(self._tokens), len(text) - self.first)
        while same < end and self._tokens[same] == text[self.first + same]:
            same += 1
        return self.first + same


class SlottedHead:
    """A head with room for some texts. Implements `LoadedHead`.

    Args:
        model: the head.
        follow: gives what follows a text in a slot.
    """

    def __init__(self, model: SlottedModel, follow: Callable[[int], HeadRunner]) -> None:
        self._model, self._follow, self._opened = model, follow, 0

    def open(self) -> HeadRunner | None:
        """Follow one more text; None if there is no room for it."""
        if self._opened == self._model.max_texts:
            return None
        self._opened += 1
        return self._follow(self._opened - 1)

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        self._model.close()


class DraftHead(LoadedSource["HeadRunner"]):
    """A head that is loaded when it is first asked.

    Args:
        load: gives the head, None if it cannot be used.
        costs: what a proposal is expected to cost; corrected in place.
        calibration: how often it is right; learned further in place.
        clock: seconds.
        held: tokens that it begins with.
        shared: tokens of the target's vocabulary; a head may score more, which are never proposed. None if it
            scores no others.

    Attributes:
        held, shared: as given.
        recorder: keeps what the texts show that are followed from now on, if that is wanted.
    """

    name = "head"
    needs = Want.LOGITS | Want.HIDDEN

    def __init__(
        self,
        load: Callable[[], LoadedHead | None],
        *,
        costs: GuessCosts,
        calibration: ModelCalibration | None = None,
        clock: Callable[[], float] = time.perf_counter,
        held: int = HEAD_HELD,
        shared: int | None = None,
    ) -> None:
        super().__init__(costs, calibration, clock)
        self.recorder: Recorder | None = None
        self.held, self.shared = held, shared
        self._load = load
        self._head: LoadedHead | None = None

    @property
    def loaded(self) -> bool:
        """Whether it takes memory."""
        return self._head is not None

    def follow(self, text: Text) -> HeadGuesser:
        """A guesser for one text; it goes on from the finished one that has most in common with it."""
        runner = max(self._idle, key=lambda runner: runner.common(text.tokens) - runner.first, default=None)
        if runner is not None:
            self._idle.remove(runner)
        return HeadGuesser(self, text, runner)

    def open(self) -> HeadRunner | None:
        """Room for one text; None if it is of no use, or has no room left."""
        if self._head is None and not self.failed:
            start = self.clock()
            self._head = self._load()
            self.failed = self._head is None
            self.costs.open_ms = (self.clock() - start) * 1e3
        if self.failed or self._head is None:
            return None
        return self._idle.pop() if self._idle else self._head.open()

    def close(self) -> None:
        """Give the memory back; it is not asked any more."""
        self.failed = True
        self._idle.clear()
        if self._head is not None:
            self._head.close()
            self._head = None


class HeadGuesser(Guesser):
    """Follows one text with a head and continues it.

    What the target gives is kept until the head is asked, of the last tokens.
    """

    def __init__(self, source: DraftHead, text: Text, runner: HeadRunner | None = None) -> None:
        self._source, self._text, self._runner = source, text, runner
        self._waiting: list[NDArray[np.float32]] = []  # states that the head has not read yet
        self._at = self._known = 0  # indices of the first of their tokens, and after the last
        self._roomless = False
        self.ended = False
        self._record = source.recorder.follow(text) if source.recorder is not None else None
        if runner is not None:
            runner.rewind(min(runner.common(text.tokens), len(text.tokens) - 1))
            self._at = self._known = runner.length

    @property
    def usable(self) -> bool:
        """Whether it can be asked about the present text: the state of all tokens but the last is known."""
        if self._source.failed or self._roomless or self._known != len(self._text.tokens) - 1:
            return False
        return bool(self._waiting) or (self._runner is not None and self._runner.length > self._runner.first)

    def read(self, at: int, features: NDArray[np.float32]) -> None:
        """The target has computed the tokens from the index `at` on, which have these states (n, k * d)."""
        if self._record is not None:
            self._record.read(at, features)
        self._hold(at, features.copy())

    def _hold(self, at: int, features: NDArray[np.float32]) -> None:
        """Keep states, which nobody else has, until the head is asked."""
        most = self._source.held
        if at != self._known:
            self._waiting, self._at = [], at
        self._waiting.append(features)
        self._known = at + len(features)
        while self._known - self._at - len(self._waiting[0]) >= most:
            self._at += len(self._waiting.pop(0))
        if (older := self._known - self._at - most) > 0:
            self._waiting[0] = self._waiting[0][older:]
            self._at += older

    def observe(self, seen: Verified) -> None:
        """The text has grown by what a step gave."""
        self.ended = False
        if seen.output.hidden is not None:
            at, rows = len(self._text.tokens) - 1 - len(seen.tokens), seen.rows()
            if self._record is not None:
                self._record.observe(at, seen, rows)
            self._hold(at, seen.output.hidden[rows])

    def unread(self, chain: Sequence[int]) -> int:
        """Tokens to read before the one after `chain` can be proposed, at least 1."""
        drafted, waiting = [self._text.tokens[-1], *chain], self._known - self._at
        if self._runner is None or self._at != self._runner.length:
            return waiting + len(chain)
        return self._runner.unread(drafted, waiting)

    def guess(self, chain: Sequence[int]) -> Guess | None:
        """The token after the text and `chain`; None if the head turns out to be of no use."""
        source = self._source
        if source.failed:
            return None
        self._runner = self._runner or source.open()
        if self._runner is None:
            self._roomless = True
            return None
        try:
            self.ended = len(chain) + 1 == self._runner.most
            return self._choice(self._logits(self._runner, chain), chain)
        except (SpecxError, ValueError) as error:  # it cannot be computed, or has no logit above -inf
            source.fail(str(error))
            return None
        except BaseException:  # interrupted: what it holds is not known
            source.fail()
            raise

    def close(self) -> None:
        """The text is finished."""
        if self._record is not None:
            self._record.finish()
        if self._runner is not None:
            self._source.finish(self._runner)
            self._runner = None

    def _logits(self, runner: HeadRunner, chain: Sequence[int]) -> NDArray[np.float32]:
        """Let it read what waits, and then what is drafted; borrowed."""
        source, tokens, n = self._source, self._text.tokens, self.unread(chain)
        start = source.clock()
        if self._waiting:
            features = np.concatenate(self._waiting)
            runner.accept(self._at, tokens[self._at : self._known], features)
            self._waiting, self._at = [], self._known
        logits = runner.logits([tokens[-1], *chain])
        ms = (source.clock() - start) * 1e3
        if n <= AT_ONCE:
            source.costs.observe_call(n, ms)
        else:
            source.costs.observe_reading(n, ms)
        return logits

    def _choice(self, row: NDArray[np.float32], chain: Sequence[int]) -> Guess:
        """The best token that the target has, by its rule and noise, and how far ahead of the next it is."""
        assert self._runner is not None
        columns = self._runner.columns
        if (known := self._source.shared) is not None:
            row = row[: known if columns is None else int(np.searchsorted(columns, known))]
        rows, scores = ranked(row, self._text, self._text.position + len(chain), 1 + RUNNERS, columns)
        return Guess.of(rows if columns is None else columns[rows], scores)
