"""Where a text ends within a token of a draft model: that token against all that begin with it and go on.

The model gives two rows: after the text without its last token, and after all of it. In the first stands how
likely the longer tokens are beside the last one, in the second what follows the last one. Both ways say what
the target's next token is; where they say the same, their probabilities add up (token healing, as in
Guidance). What the target would have written as one token with its last one is left out: it did not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specx.drafters.base import NO_TRUNCATION, Text
from specx.drafters.byte_map import ByteMap
from specx.drafters.ranking import ranked
from specx.kernels._native import gumbel, rank_tokens

__all__ = ["Found", "Heal", "healed"]

WAYS = 4  # of each kind that are weighed
NEGLIGIBLE = 5.0  # in nats: what is less likely by so much does not count
MASS = 64  # tokens that hold nearly all of a distribution


@dataclass(frozen=True, slots=True)
class Heal:
    """What could stand in the place of the last token of a text.

    Attributes:
        byte_map: between the vocabularies.
        head: the draft tokens that the rows of logits stand for, None for all.
        last: row of the last token; None if its bytes are not a token of the text.
        rows: (n,) of tokens that begin with its bytes and go on.
        begun: how many bytes of them the text has.
    """

    byte_map: ByteMap
    head: NDArray[np.int32] | None
    last: int | None
    rows: NDArray[np.int32]
    begun: int

    @classmethod
    def of(
        cls, byte_map: ByteMap, head: NDArray[np.int32] | None, last: int | None, text: bytes
    ) -> Heal | None:
        """What begins with the bytes `text` of the token `last`; None if nothing does."""
        tokens = byte_map.extensions(text)
        if not len(tokens):
            return None
        if head is None:
            return cls(byte_map, head, last, tokens, len(text))
        wanted = tokens if last is None else np.concatenate((np.array([last], np.int32), tokens))
        rows = np.searchsorted(head, wanted).astype(np.int32)
        kept = head[np.minimum(rows, len(head) - 1)] == wanted
        longer = slice(0 if last is None else 1, None)
        found = rows[longer][kept[longer]]
        if not len(found) or (last is not None and not kept[0]):
            return None
        return cls(byte_map, head, None if last is None else int(rows[0]), found, len(text))

    def token(self, row: int) -> int:
        """The draft token of a row."""
        return row if self.head is None else int(self.head[row])


@dataclass(frozen=True, slots=True)
class Found:
    """A draft token that goes on from a text.

    Attributes:
        replaced: whether it takes the place of the last token of the text.
        token: its id.
        text: bytes that it adds.
        margin: how far ahead of the next one it is, in units of the tempered logits.
    """

    replaced: bool
    token: int
    text: bytes
    margin: float


def healed(heal: Heal, logits: NDArray[np.float32], text: Text, position: int) -> Found:
    """The likeliest way to go on.

    Args:
        heal: what could stand in the place of the last token.
        logits: (2, V) float32 after the text without its last token, and after all of it; (1, V) where the
            bytes that begin are not a token of the text, and one that begins with them must follow.
        text: how the target samples.
        position: of the target's next token.

    Raises:
        ValueError: no logit is above -inf.
    """
    before = logits[0]
    if heal.last is None:
        ways = _longer(heal, before[heal.rows], 0.0)
    else:
        after = logits[1]
        longer = before[heal.rows] - before[heal.last]
        total = _log_total(after)
        noise = heal.byte_map.as_target if heal.head is None else heal.byte_map.as_target[heal.head]
        rows, scores = ranked(after, text, position, WAYS, noise)
        shares = [float(after[row]) - total for row in rows]
        if float(longer.max()) < max(shares) - NEGLIGIBLE:
            token = heal.token(int(rows[0]))
            margin = float(scores[0] - scores[1]) if len(rows) > 1 else math.inf
            return Found(False, token, heal.byte_map.draft.pieces.piece(token), margin)
        ways = _longer(heal, longer, 0.0)
        for row, share in zip(rows.tolist(), shares, strict=True):
            token = heal.token(row)
            ways.append(_Way(False, token, heal.byte_map.draft.pieces.piece(token), share))
    return _best(heal.byte_map, ways, text, position)


@dataclass(frozen=True, slots=True)
class _Way:
    """A way to go on, and the logarithm of its probability up to what all have in common."""

    replaced: bool
    token: int
    text: bytes
    log_share: float


def _longer(heal: Heal, scores: NDArray[np.float32], base: float) -> list[_Way]:
    """The likeliest of the tokens that go on."""
    piece = heal.byte_map.draft.pieces.piece
    best = np.argsort(-scores, kind="stable")[:WAYS] if len(scores) > WAYS else np.arange(len(scores))
    ways = []
    for i in best.tolist():
        token = heal.token(int(heal.rows[i]))
        ways.append(_Way(True, token, piece(token)[heal.begun :], float(scores[i]) - base))
    return ways


def _best(byte_map: ByteMap, ways: Sequence[_Way], text: Text, position: int) -> Found:
    """The way to the likeliest target token; ways to the same one count together."""
    together: dict[int, list[_Way]] = {}
    for way in ways:
        tokens = byte_map.continued(way.text)
        together.setdefault(tokens[0] if tokens else -1 - way.token, []).append(way)
    scores: list[tuple[float, int, _Way]] = []
    for token, same in together.items():
        score = float(np.logaddexp.reduce([way.log_share for way in same]))
        if text.temperature > 0:
            noise = gumbel(text.seed, position, np.array([max(token, 0)], np.int32))
            score = score / text.temperature + float(noise[0])
        scores.append((score, token, max(same, key=lambda way: way.log_share)))
    scores.sort(key=lambda scored: -scored[0])
    possible = (each for each in scores if each[1] < 0 or byte_map.may_follow(text.tokens, each[1]))
    first = next(possible, scores[0])
    second = next(possible, None)
    best = first[2]
    return Found(best.replaced, best.token, best.text, first[0] - second[0] if second else math.inf)


def _log_total(row: NDArray[np.float32]) -> float:
    """Logarithm of the sum of exp over a row, nearly: over its largest entries."""
    _, largest = rank_tokens(row, 0, 0, 0.0, *NO_TRUNCATION, MASS)
    return float(largest[0] + np.log(np.exp(largest - largest[0]).sum()))
