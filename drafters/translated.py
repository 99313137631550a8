"""A draft model of another vocabulary: it writes bytes, and the target's tokens of these bytes are proposed.

The draft model goes on from its own tokens of the text. What it adds is tokenized as the target would, given
the tokens that the target has written: a proposal is what the target itself would make of that text. Where
the text ends within one of the draft model's tokens, that token is weighed against all that begin with the
same bytes and go on (token healing), so a word that the target has half written is not taken for a whole one.
Where the target may write as one token what the draft model writes as two, the draft model is asked once more
before the token is proposed, if experience says that it often is (OmniDraft, Kumar et al. 2025).

Nothing of this can change the text: proposals are right or wrong. At a temperature above 0 a draft token
takes the noise of the target token that it becomes, where that is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Model
from specx.backends.errors import SpecxError
from specx.drafters.base import Text, Verified
from specx.drafters.byte_map import ByteMap
from specx.drafters.calibration.merging import Merging
from specx.drafters.draft_text import DraftText
from specx.drafters.guesser import AT_ONCE, Guess, GuessCosts, Guesser
from specx.drafters.healing import Heal, healed
from specx.drafters.ranking import ranked
from specx.drafters.reading import Read, Reader, Rooms
from specx.drafters.runners import RUNNERS, Runner

__all__ = ["TranslatedGuesser"]

MOST_CALLS = 6  # of the draft model for one target token: a bound, as 4 were the most of 304 (docs/log.md)
LOOK_AHEAD = 0.1  # risk that a token is the beginning of a longer one from which on one more call is made
NO_LIMIT = float("inf")


class UnspeakableError(Exception):
    """The draft model has no token that goes on where the text is."""


class Translating(Rooms, Protocol):
    """A draft model with another vocabulary than the target's."""

    costs: GuessCosts
    model: Model | None
    byte_map: ByteMap | None
    failed: bool

    @property
    def merging(self) -> Merging:
        """What was learned of tokens that the target writes as one."""

    def take_idle(self, tokens: Sequence[int]) -> Read | None:
        """What was read of the finished text that has most in common with `tokens`, the model's own."""

    def fail(self, reason: str = "") -> None:
        """It cannot go on."""


class TranslatedGuesser(Guesser):
    """Follows one text."""

    def __init__(self, source: Translating, text: Text) -> None:
        self._source, self._text = source, text
        self._roomless = False
        self._view: DraftText | None = None
        self._reader = Reader(source)
        self._begin()
        if source.byte_map is not None:
            self._view_of(source.byte_map)

    @property
    def usable(self) -> bool:
        """Whether it can be asked about the present text."""
        return not (self._source.failed or self._roomless)

    def observe(self, seen: Verified) -> None:
        """The text has grown."""
        if self._view is not None:
            self._learn_from(seen.tokens)
            self._reader.changed(self._view.extend(seen.tokens))
        self._begin()

    def unread(self, chain: Sequence[int]) -> int:
        """Tokens to read before the one after `chain` can be proposed, at least 1."""
        if self._view is None:
            return len(self._text.tokens)  # about
        return self._reader.unread(self._view.tokens, self._drafted if chain else ())

    def guess(self, chain: Sequence[int]) -> Guess | None:
        """The token after the text and `chain`; None if there is none, or the model is of no use."""
        source = self._source
        if source.failed or self.ended:
            return None
        if not self._reader.open():
            self._roomless = True
            return None
        assert source.byte_map is not None
        view = self._view or self._view_of(source.byte_map)
        start, calls = source.clock(), self._calls
        long = not chain and self._reader.unread(view.tokens, ()) > AT_ONCE
        try:
            guess = self._next(view, source.byte_map, chain)
        except UnspeakableError:
            self.ended = True
            return None
        except (SpecxError, ValueError) as error:  # it cannot be computed, or has no logit above -inf
            source.fail(str(error))
            return None
        except BaseException:  # interrupted: what its cache holds is not known
            source.fail()
            raise
        if self._calls > calls and not long:
            source.costs.observe_call(1, (source.clock() - start) * 1e3)
        source.costs.further_ms, source.costs.read_ms = source.calls.further_ms, source.calls.read_ms
        return guess

    def close(self) -> None:
        """The text is finished."""
        self._reader.close()

    def _view_of(self, byte_map: ByteMap) -> DraftText:
        """The text in the draft model's tokens; it may go on from a finished one."""
        view = self._view = DraftText(byte_map)
        view.extend(self._text.tokens)
        if (read := self._source.take_idle(view.tokens)) is not None:
            self._reader = Reader(self._source, read)
        return view

    def _begin(self) -> None:
        """A step begins: nothing is drafted."""
        self.ended = False
        self._drafted: list[int] = []  # draft tokens after those of the view
        self._ahead = b""  # bytes of them, beyond the text
        self._margins: list[tuple[int, float]] = []  # where each ends in these bytes, and its margin
        self._others: dict[int, list[tuple[bytes, float]]] = {}  # where it begins: its runners-up
        self._proposed: list[int] = []
        self._known: list[bytes] = []  # what was drafted beyond those before, when each was proposed
        self._given = 0  # bytes of what was proposed
        self._final: int | None = None  # special token that comes after these bytes
        self._calls = 0

    def _next(self, view: DraftText, byte_map: ByteMap, chain: Sequence[int]) -> Guess | None:
        if list(chain) != self._proposed:  # somebody else's
            self._adopt(view, byte_map, chain)
        calls = 0
        while (token := self._settled(byte_map)) is None:
            if self._final is not None or calls == MOST_CALLS:
                return self._last_words(byte_map)
            self._ask(view, byte_map, len(chain))
            calls += 1
        return self._give(byte_map, token)

    def _adopt(self, view: DraftText, byte_map: ByteMap, chain: Sequence[int]) -> None:
        """Go on after a chain of target tokens that was not proposed here."""
        if any(byte_map.special_for_draft(token) is not None for token in chain):
            raise UnspeakableError
        self._begin()
        self._ahead = byte_map.target.text(list(chain))
        self._drafted = byte_map.draft.of(view.rest + self._ahead)
        self._proposed, self._given = list(chain), len(self._ahead)
        self._known = [b""] * len(chain)

    def _settled(self, byte_map: ByteMap) -> int | None:
        """The next target token, if what was drafted tells it."""
        rest = self._ahead[self._given :]
        tokens = byte_map.continued(rest)
        if not tokens:
            return None
        longer = 0 if self._final is not None else byte_map.longer(rest)
        return None if self._source.merging.risk(rest, longer) > LOOK_AHEAD else tokens[0]

    def _last_words(self, byte_map: ByteMap) -> Guess | None:
        """What is proposed where the draft model says no more, or not in time."""
        if tokens := byte_map.continued(self._ahead[self._given :]):
            return self._give(byte_map, tokens[0])
        self.ended = True
        if self._final is None or self._final < 0:
            return None
        self._proposed.append(self._final)
        return Guess(self._final, self._margins[-1][1])

    def _give(self, byte_map: ByteMap, token: int) -> Guess:
        """Propose `token`; it is as sure as the least sure of the draft tokens that it is made of."""
        end = self._given + len(byte_map.target.pieces.piece(token))
        margin = NO_LIMIT
        for at, each in self._margins:
            if at > self._given:
                margin = min(margin, each)
            if at >= end:
                break
        others = self._runners_up(byte_map, token)
        self._proposed.append(token)
        self._known.append(self._ahead[self._given :])
        self._given = end
        return Guess(token, margin, others)

    def _runners_up(self, byte_map: ByteMap, token: int) -> tuple[Runner, ...]:
        """The target tokens that runners-up would become where `token` is proposed, if a draft token begins
        there."""
        found: dict[int, float] = {}
        for text, behind in self._others.get(self._given, ()):
            if (said := byte_map.continued(text)) and said[0] != token:
                found.setdefault(said[0], behind)
        return tuple(found.items())

    def _ask(self, view: DraftText, byte_map: ByteMap, before: int) -> None:
        """One more token of the draft model."""
        self._calls += 1
        position = self._text.position + before + len(byte_map.continued(self._ahead[self._given :]))
        if not self._drafted and (view.last or view.rest) and self._healed(view, byte_map, position):
            return
        if not view.tokens and not self._drafted:  # the model has read nothing it could go on from
            raise UnspeakableError
        row = self._reader.logits(view.tokens, self._drafted)[0]
        head = self._head
        noise = byte_map.as_target if head is None else byte_map.as_target[head]
        rows, scores = ranked(row, self._text, position, 1 + RUNNERS, noise)
        guess, pieces = Guess.of(rows if head is None else head[rows], scores), byte_map.draft.pieces
        self._others[len(self._ahead)] = [(pieces.piece(other), behind) for other, behind in guess.others]
        self._add(byte_map, guess.token, pieces.piece(guess.token), guess.margin)

    @property
    def _head(self) -> NDArray[np.int32] | None:
        """The draft tokens that the columns of the last logits stand for; None for all."""
        return self._source.model.facts.head if self._source.model else None

    def _healed(self, view: DraftText, byte_map: ByteMap, position: int) -> bool:
        """One more token where the text may end within one; returns whether that can be."""
        head, rest, draft = self._head, view.rest, byte_map.draft
        spelled = draft.spelled(rest)
        if rest and len(spelled) != 1 and len(byte_map.extensions(rest)):
            last, begun, spelled = None, rest, []  # a token that begins with the rest must follow
        elif rest and not spelled:
            raise UnspeakableError
        else:
            last = (spelled or view.tokens)[-1]
            begun = draft.pieces.piece(last) if rest else view.last
        rows = 1 if last is None else 2
        heal = Heal.of(byte_map, head, last, begun) if len(view.tokens) + len(spelled) >= rows else None
        if heal is None:
            self._drafted = spelled
            return False
        logits = self._reader.logits(view.tokens, spelled, rows)
        if self._head is not head:  # what was read has rows now
            heal = Heal.of(byte_map, self._head, last, begun) or heal
        found = healed(heal, logits, self._text, position)
        if spelled:
            self._drafted = spelled[:-1] if found.replaced else spelled
        elif found.replaced and last is not None:
            view.drop_last()
            self._reader.changed(len(view.tokens))
        self._add(byte_map, found.token, found.text, found.margin)
        return True

    def _add(self, byte_map: ByteMap, token: int, text: bytes, margin: float) -> None:
        """The draft model goes on with `token`, which adds `text`."""
        self._learn(byte_map, text)
        self._drafted.append(token)
        special = byte_map.special_for_target(token)
        if special is not None:
            self._final = special
        self._ahead += text
        self._margins.append((len(self._ahead), margin))

    def _learn_from(self, tokens: Sequence[int]) -> None:
        """The target may have written a longer token where one was proposed."""
        byte_map = self._source.byte_map
        assert byte_map is not None
        for mine, right, known in zip(self._proposed, tokens, self._known, strict=False):
            if mine != right:
                text, written = (byte_map.target.pieces.piece(token) for token in (mine, right))
                if text and written.startswith(text) and (longer := byte_map.longer(known)):
                    self._source.merging.observe(known, longer, True)
                return

    def _learn(self, byte_map: ByteMap, text: bytes) -> None:
        """Whether the target would merge what was drafted last with `text`."""
        rest = self._ahead[self._given :] or (self._known[-1] if self._known else b"")
        if rest and text and (longer := byte_map.longer(rest)):
            before, after = byte_map.continued(rest), byte_map.continued(rest + text)
            self._source.merging.observe(rest, longer, before[:1] != after[:1])
