"""A draft, and where drafts come from.

A `Drafter` is what is known of a model, shared by all texts; a `Drafting` follows one text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Output, Want
from specx.kernels._native import Draft, StepCosts

__all__ = [
    "EMPTY_DRAFT",
    "NO_TRUNCATION",
    "Draft",
    "Drafter",
    "Drafting",
    "Forcing",
    "Offer",
    "Room",
    "StepCosts",
    "Text",
    "Truncation",
    "Verified",
]

Truncation = tuple[int, float, float, float]
"""Top-k, top-p, min-p and typical-p, as `rank_tokens` takes them."""

NO_TRUNCATION: Truncation = (0, 1.0, 0.0, 1.0)


@runtime_checkable
class Forcing(Protocol):
    """What a text must match, and that tells where it leaves one way on only."""

    def forced(self) -> bytes:
        """Bytes that everything which may come next begins with; nothing if there is a choice, or an end."""


@dataclass(slots=True)
class Text:
    """One text as it is written: one copy, read by all.

    The noise of a position is known, so a drafter may guess with it.

    Attributes:
        tokens: all of it, the prompt included; the loop appends what is emitted.
        seed, temperature, truncation: how the target samples; of the seed 64 bits count.
        forcing: what the text must match, as far as it tells what that forces.
        position: absolute position of the next token.
    """

    tokens: list[int]
    seed: int = 0
    temperature: float = 0.0
    truncation: Truncation = NO_TRUNCATION
    forcing: Forcing | None = None
    position: int = field(init=False)

    def __post_init__(self) -> None:
        self.position = len(self.tokens)
        self.seed &= 2**64 - 1

    def append(self, tokens: Sequence[int]) -> None:
        """`tokens` were emitted."""
        self.tokens += tokens
        self.position += len(tokens)


EMPTY_DRAFT = Draft.of_chain((), ())


@dataclass(slots=True)
class Room:
    """How much may be drafted in a step: at most `limit` nodes with at most `leaves` leaves."""

    limit: int
    leaves: int


@dataclass(slots=True)
class Verified:
    """What a step showed.

    Attributes:
        tokens: that were emitted, at least one; the text has them already.
        draft: what was verified.
        output: row 0 is the root, row i + 1 node i of the draft. Borrowed.
    """

    tokens: Sequence[int]
    draft: Draft
    output: Output

    def rows(self) -> list[int]:
        """Rows of the output that the text has kept, the root first: as many as tokens were emitted."""
        return self.draft.rows_along(self.tokens[:-1])


Gain = Callable[[Sequence[int], int, float, float, float, float, StepCosts], tuple[float, float]]
"""What a source is expected to gain if it is asked as often as is best, and the tokens of the step then.

Arguments: numbers of times, in increasing order, which are looked at until less is gained; the most of them;
milliseconds that are spent before the first time; that each time takes; that may be spent in all; expected
tokens per millisecond without; what a step costs. Returns milliseconds at that rate, and tokens; 0 and 0 if
nothing is gained.
"""


@dataclass(slots=True)  # several a step: a frozen one takes three times as long to make
class Offer:
    """What a source that costs time would give, if it were asked for more.

    Attributes:
        source: its name.
        forecast: what may come of asking so many times: drafts as they would be, each with the probability of
            that. Their own probabilities are those that are expected before it is asked; tokens that are not
            known are -1. Where only chains are possible, it is the source's chain.
        take: ask once; returns the draft with what it gave. Like a forecast it may have a leaf more than
            `propose` was allowed: where only chains are possible, it is two that share their beginning, of
            which one is taken.
        most: how often it can be asked, at most.
        token_ms: expected milliseconds of each time.
        invest_ms: expected milliseconds before that, of work that serves later steps as well:
            reading tokens that the source has not read, loading it.
        open_ms: the part of it that serves every text of this process.
        upkeep_ms: expected milliseconds of what is to be read again in each later step.
        record: how likely the next token is thought to be right, and how many tokens of the source have been
            scored so far; None where it may not be asked only to learn how good it is.
        first_ms: expected milliseconds that the first time takes longer, as where several tokens are checked.
        gain: the best of these forecasts, all at once, for a step of one text; None where nothing tells it
            faster than looking at each.
    """

    source: str
    forecast: Callable[[int], Sequence[tuple[float, Draft]]]
    take: Callable[[], Draft]
    most: int
    token_ms: float
    invest_ms: float = 0.0
    record: Callable[[], tuple[float, int]] | None = None
    open_ms: float = 0.0
    upkeep_ms: float = 0.0
    first_ms: float = 0.0
    gain: Gain | None = None


class Drafting:
    """Guesses what comes next in one text, and learns from what came. This one does neither."""

    def propose(self, room: Room, after: Sequence[int] = ()) -> Draft:
        """The best tree that fits `room`, below the text and the tokens `after` it, at next to no cost.

        Probabilities are given that `after` is right. What cannot look beyond the text has nothing to say.
        """
        return EMPTY_DRAFT

    def offers(self, room: Room) -> Sequence[Offer]:
        """What sources that cost time would add to the draft of this step."""
        return ()

    def observe_prompt(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Logits (n, V) that followed each of `tokens` (n,), consecutive tokens of the prompt. Borrowed."""

    def observe_features(self, at: int, features: NDArray[np.float32]) -> None:
        """Hidden states (n, k * d) of tokens of the prompt from the index `at` on. Borrowed."""

    def observe(self, seen: Verified) -> None:
        """A step was verified, and the text has grown."""

    def close(self) -> None:
        """The text is finished."""


class Drafter:
    """Where drafts come from: what is known of one model, shared by all its texts.

    One that keeps nothing of a text defines `propose`; one that does defines `start`.

    Attributes:
        source_names: names of the sources that `Draft.sources` indexes.
        needs: what it wants of the target's forward calls.
        layers: of the target, whose inputs are the hidden states that it wants, if it wants some.
    """

    source_names: tuple[str, ...] = ()
    needs: Want = Want.LOGITS
    layers: tuple[int, ...] = ()

    def propose(self, text: Text, room: Room) -> Draft:
        """The best tree after `text` that fits `room`: what costs next to nothing."""
        return EMPTY_DRAFT

    def observe(self, text: Text, seen: Verified) -> None:
        """A step was verified, and `text` has grown."""

    def start(self, text: Text) -> Drafting:
        """Follow a text, which holds its prompt."""
        return _Stateless(self, text)


class _Stateless(Drafting):
    """Asks the drafter itself about one text."""

    def __init__(self, drafter: Drafter, text: Text) -> None:
        self._drafter, self._text = drafter, text

    def propose(self, room: Room, after: Sequence[int] = ()) -> Draft:
        return EMPTY_DRAFT if after else self._drafter.propose(self._text, room)

    def observe(self, seen: Verified) -> None:
        self._drafter.observe(self._text, seen)
