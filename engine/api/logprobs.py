"""Probabilities of tokens in the two forms of OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specx.backends.base import Vocab
from specx.engine.decode import Evidence
from specx.engine.text.stream import StreamDecoder

__all__ = ["Entry", "TokenLog", "chat_form", "completion_form", "prompt_entries"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One token.

    Attributes:
        token: its id.
        evidence: the distribution it was chosen from; None for the first of a prompt.
        start: characters of the text before it.
    """

    token: int
    evidence: Evidence | None
    start: int


class TokenLog:
    """Follows the tokens of a text, and where in it they stand.

    Args:
        vocab: of the model.
        shown: control tokens whose text is part of the text.
        before: characters that stand before it.
    """

    def __init__(self, vocab: Vocab, shown: frozenset[int] = frozenset(), before: int = 0) -> None:
        self._vocab, self._shown = vocab, shown
        self._decoder = StreamDecoder()
        self._length = before
        self._waiting: list[Entry] = []

    def add(self, tokens: Sequence[int], evidence: Sequence[Evidence | None]) -> None:
        """More tokens, each with what it was chosen from."""
        for token, why in zip(tokens, evidence, strict=True):
            self._waiting.append(Entry(token, why, self._length))
            piece = self._vocab.piece(token, special=token in self._shown)
            self._length += len(self._decoder.feed(piece))

    def take(self, length: int, *, last: bool = False) -> list[Entry]:
        """Those not taken yet that begin within the first `length` characters of the text.

        With `last` the text ends there: what was cut off with a stop string is not part of it, and tokens
        without text at its end are.
        """
        whole = last and length >= self._length
        count = next((i for i, each in enumerate(self._waiting) if each.start >= length and not whole), None)
        taken = self._waiting[:count]
        del self._waiting[: len(taken)]
        return taken


def prompt_entries(
    vocab: Vocab, tokens: Sequence[int], scored: Sequence[Evidence], added: int, length: int
) -> list[Entry]:
    """The tokens of a prompt, whose first one nothing was known of.

    Args:
        vocab: of the model.
        tokens: all of them.
        scored: (n - 1,) where the others came from.
        added: how many at the beginning are not in the text.
        length: characters of the text.
    """
    entries: list[Entry] = []
    decoder, start = StreamDecoder(), 0
    for place, (token, why) in enumerate(zip(tokens, (None, *scored), strict=True)):
        entries.append(Entry(token, why, min(start, length)))
        if place >= added:
            start += len(decoder.feed(vocab.piece(token, special=True)))
    return entries


def chat_form(entries: Sequence[Entry], vocab: Vocab, count: int) -> dict[str, Any]:
    """`logprobs` of a chat's choice, with `count` alternatives for each token."""
    content = []
    for entry in entries:
        assert entry.evidence is not None
        top = [_chat_token(vocab, *each) for each in _likeliest(entry.evidence, count)]
        one = _chat_token(vocab, entry.token, entry.evidence.logprob)
        content.append({**one, "top_logprobs": top})
    return {"content": content, "refusal": None}


def completion_form(entries: Sequence[Entry], vocab: Vocab, count: int) -> dict[str, Any]:
    """`logprobs` of a completion's choice; the emitted token is always among the alternatives."""
    tops: list[dict[str, float] | None] = []
    for entry in entries:
        if entry.evidence is None or not count:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        own = entry.token, entry.evidence.logprob
        for token, logprob in (*_likeliest(entry.evidence, count), own):
            top.setdefault(_text(vocab, token, "bytes:"), _number(logprob))
        tops.append(top)
    return {
        "tokens": [_text(vocab, entry.token, "bytes:") for entry in entries],
        "token_logprobs": [entry.evidence and _number(entry.evidence.logprob) for entry in entries],
        "top_logprobs": tops if count else None,
        "text_offset": [entry.start for entry in entries],
    }


def _likeliest(evidence: Evidence, count: int) -> list[tuple[int, float]]:
    """The `count` likeliest tokens with the logarithms of their probabilities, the likeliest first."""
    pairs = zip(evidence.ids.tolist(), evidence.logits.tolist(), strict=True)
    ranked = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:count]
    return [(token, logit - evidence.total) for token, logit in ranked]


def _chat_token(vocab: Vocab, token: int, logprob: float) -> dict[str, Any]:
    piece = vocab.piece(token, special=True)
    return {"token": _text(vocab, token, ""), "logprob": _number(logprob), "bytes": list(piece)}


def _text(vocab: Vocab, token: int, mark: str) -> str:
    r"""A token as text; if it is no whole characters, its bytes as \x.. after `mark`."""
    piece = vocab.piece(token, special=True)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return mark + "".join(f"\\x{byte:02x}" for byte in piece)


def _number(logprob: float) -> float:
    """What JSON can hold: the probability 0 has no logarithm, and OpenAI's API says -9999.0."""
    return max(logprob, -9999.0)
