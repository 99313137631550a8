"""Sources of drafts that cost time: asked token by token, behind an `Offer`.

A `GuesserSource` is what is known of one, shared by all texts: what its work costs, how often it is right,
the weights it has loaded. A `Guesser` follows one text with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Want
from specx.drafters.base import Text, Verified
from specx.drafters.calibration.collapse import Collapse
from specx.drafters.calibration.model import ModelCalibration
from specx.drafters.runners import Runner, Runners

__all__ = ["AT_ONCE", "Guess", "GuessCosts", "Guesser", "GuesserSource", "LoadedSource"]

RoomT = TypeVar("RoomT")

RATE = 0.1  # weight of a new measurement in a running cost
CLIP = 3.0  # a call this many times as long as expected is an outlier and counts as that long
LEAST, MOST = 1e-6, 1e9  # milliseconds; a kept cost beyond was not measured, and cannot be reckoned with
AT_ONCE = 8  # unread tokens that are read in one call with the token after them


@dataclass(slots=True)
class GuessCosts:
    """Milliseconds of a guesser's work, measured as it goes on.

    Attributes:
        token_ms: a call of one token.
        further_ms: each further token of a short call.
        read_ms: each token of a long stretch of text.
        open_ms: loading the model.
        measured: whether `token_ms` has been measured, or only predicted.
    """

    token_ms: float
    further_ms: float
    read_ms: float
    open_ms: float
    measured: bool = False

    def to_json(self) -> dict[str, float]:
        """What `from_json` needs."""
        return {name: round(getattr(self, name), 4) for name in _KEPT}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GuessCosts:
        """The costs that `to_json` described, of a model that is not loaded.

        Raises:
            ValueError, TypeError, KeyError: they are no such costs.
        """
        values = [float(data[name]) for name in _KEPT]
        if not all(0 <= ms < MOST for ms in values) or values[0] < LEAST:
            raise ValueError("the cost of a draft model is a positive number")
        token_ms, further_ms, read_ms, open_ms = values
        return cls(token_ms, further_ms, read_ms, open_ms, measured=True)

    def reading(self, n: int) -> float:
        """Of the tokens before the last of `n` unread ones."""
        return (n - 1) * (self.further_ms if n <= AT_ONCE else self.read_ms)

    def observe_call(self, n: int, ms: float) -> None:
        """A call that computed the logits of `n` tokens took `ms`."""
        if n == 1:
            self.token_ms = _updated(self.token_ms, ms, known=self.measured)
            self.measured = True
        else:
            self.further_ms = _updated(self.further_ms, max(ms - self.token_ms, 0.0) / (n - 1), known=True)

    def observe_reading(self, n: int, ms: float) -> None:
        """Reading `n` tokens without their logits took `ms`."""
        self.read_ms = _updated(self.read_ms, ms / n, known=n < AT_ONCE * AT_ONCE)


_KEPT = ("token_ms", "further_ms", "read_ms", "open_ms")


def _updated(before: float, now: float, *, known: bool) -> float:
    return before + RATE * (min(now, CLIP * before) - before) if known else now


@dataclass(slots=True)  # some a step: a frozen one takes three times as long to make
class Guess:
    """A token that is proposed.

    Attributes:
        token: its id.
        margin: how far ahead of the runner-up it is, in units of the tempered logits.
        others: runners-up, best first, and how far behind it they are; at most `RUNNERS`.
    """

    token: int
    margin: float
    others: tuple[Runner, ...] = ()

    @classmethod
    def of(cls, tokens: NDArray[np.int32], scores: NDArray[np.float64]) -> Guess:
        """The first of `tokens` (n,), with the scores (n,) of all, which fall."""
        best, *others = tokens.tolist()
        behind = (scores[0] - scores[1:]).tolist()
        return cls(best, behind[0] if behind else float("inf"), tuple(zip(others, behind, strict=True)))


class Guesser(Protocol):
    """Continues one text.

    Attributes:
        ended: whether it has nothing more to say in this step.
    """

    ended: bool = False

    @property
    def usable(self) -> bool:
        """Whether it can be asked about the present text."""

    def unread(self, chain: Sequence[int]) -> int:
        """Tokens to read before the one after `chain` can be proposed, at least 1."""

    def guess(self, chain: Sequence[int]) -> Guess | None:
        """The token after the text and `chain`; None if it turns out to be of no use."""

    @property
    def most_checked(self) -> int:
        """Most tokens that one `check` looks at; 0 if it can only be asked token by token."""
        return 0

    def check(self, chain: Sequence[int], claimed: Sequence[int]) -> Sequence[Guess]:
        """What it says after the text, `chain` and ever more of `claimed`, all in one call.

        Args:
            chain: its own tokens so far.
            claimed: what others say comes next, at most `most_checked` tokens.

        Returns:
            Its tokens as long as they are those of `claimed`, then the first that is not, or the one after
            all of them; nothing if it turns out to be of no use.
        """
        guess = self.guess(chain)
        return () if guess is None else (guess,)

    def read(self, at: int, features: NDArray[np.float32]) -> None:
        """The target has computed tokens of the prompt from the index `at` on.

        Args:
            at: index of the first one in the text.
            features: (n, k * d) their hidden states; borrowed. What needs none is told of none.
        """
        return

    def observe(self, seen: Verified) -> None:
        """A step was verified, and the text has grown."""

    def close(self) -> None:
        """The text is finished."""


class GuesserSource(Protocol):
    """What is known of a guesser, shared by all texts.

    Attributes:
        name: of the source.
        costs: of its work; corrected in place.
        calibration: how often it is right; learned further in place.
        collapse: the alarm for one that is right far too rarely.
        runners: how often its runners-up are right.
        needs: what it wants of the target's forward calls.
    """

    needs: Want = Want.LOGITS
    name: str
    costs: GuessCosts
    calibration: ModelCalibration
    collapse: Collapse
    runners: Runners

    @property
    def loaded(self) -> bool:
        """Whether it takes memory."""

    def follow(self, text: Text) -> Guesser:
        """A guesser for one text, which holds its prompt."""


class LoadedSource(GuesserSource, Generic[RoomT]):
    """A source that is loaded when it is first asked, and keeps what finished texts have read.

    Attributes:
        failure: why it cannot go on, if that turned out while it was asked.
        failed: whether it turned out to be of no use to anybody.
    """

    def __init__(
        self, costs: GuessCosts, calibration: ModelCalibration | None, clock: Callable[[], float]
    ) -> None:
        self.costs, self.clock = costs, clock
        self.calibration = calibration or ModelCalibration()
        self.collapse, self.runners = Collapse(), Runners()
        self.failure = ""
        self.failed = False
        self._idle: list[RoomT] = []  # of texts that are finished

    def finish(self, room: RoomT) -> None:
        """A text is finished, which had this room."""
        if not self.failed:
            self._idle.append(room)

    def fail(self, reason: str = "") -> None:
        """It cannot go on."""
        self.failure = reason
        self.failed = True
