"""Whether two GGUF models share a vocabulary: told from their headers, byte by byte."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from specx.backends.gguf.file import GGUFInfo
from specx.backends.gguf.reading import read_span

__all__ = ["VocabularyMatch", "match_vocabularies", "typed_special"]

UNUSED = 5  # token type of GGUF
SPECIAL = (2, 3, 4)  # unknown, control, user-defined
FEW = 0.005  # of the ids may mean another token: the draft model then drafts badly where it meets one


@dataclass(frozen=True, slots=True)
class VocabularyMatch:
    """What two vocabularies have in common.

    Attributes:
        shared: how many ids, from 0 on, mean the same in both; 0 if drafts of one are of no use to the other.
        difference: what differs (one clause), None if nothing does or only unused tokens at the end of one.
    """

    shared: int
    difference: str | None = None


def match_vocabularies(target: GGUFInfo, draft: GGUFInfo) -> VocabularyMatch:
    """Compare the token lists of two models.

    One may be longer than the other, as models pad their embeddings, if the additional tokens are unused. A
    few may differ, as those do that are added for another kind of conversation.
    """
    ours, theirs = target.vocabulary_size, draft.vocabulary_size
    if not ours or not theirs or not target.token_span[1] or not draft.token_span[1]:
        return VocabularyMatch(0, "one of them lists no tokens")
    a, b = _section(target, target.token_span), _section(draft, draft.token_span)
    short = min(len(a), len(b))
    if a[:short] != b[:short]:
        few = int(FEW * min(ours, theirs))
        if abs(ours - theirs) > few or _differing(a, b, min(ours, theirs), few) > few:
            return VocabularyMatch(0, _first_difference(a, b, ours, theirs))
        return VocabularyMatch(min(ours, theirs))
    if ours != theirs:
        longer, more, fewer = (target, ours, theirs) if ours > theirs else (draft, theirs, ours)
        types = _section(longer, longer.token_type_span)
        tail = (
            struct.unpack(f"<{more - fewer}i", types[4 * fewer : 4 * more]) if len(types) == 4 * more else ()
        )
        if set(tail) != {UNUSED}:
            return VocabularyMatch(
                0, f"they have {ours} and {theirs} tokens, and the additional ones are in use"
            )
    return VocabularyMatch(min(ours, theirs))


def typed_special(info: GGUFInfo) -> list[int] | None:
    """Tokens that the file says are not made from words; None if it does not say.

    Raises:
        OSError, ModelError: it cannot be read any more.
    """
    types = np.frombuffer(_section(info, info.token_type_span), "<i4")
    if len(types) != info.vocabulary_size:
        return None
    return [int(token) for token in np.flatnonzero(np.isin(types, SPECIAL))]


def _section(info: GGUFInfo, span: tuple[int, int]) -> bytes:
    """Bytes of the model's first part."""
    return read_span(info.path, span)


def _differing(a: bytes, b: bytes, count: int, most: int) -> int:
    """How many of the first `count` ids mean another token; no more are counted than one beyond `most`."""
    at, there, found = 0, 0, 0
    for _ in range(count):
        first, second = _text(a, at), _text(b, there)
        found += first != second
        if found > most:
            break
        at, there = at + 8 + len(first), there + 8 + len(second)
    return found


def _first_difference(a: bytes, b: bytes, ours: int, theirs: int) -> str:
    at = 0
    for token in range(min(ours, theirs)):
        first, second = _text(a, at), _text(b, at)
        if first != second:
            shown = [text.decode("utf-8", "replace") for text in (first, second)]
            return f"token {token} is {shown[0]!r} in one and {shown[1]!r} in the other"
        at += 8 + len(first)
    return f"they have {ours} and {theirs} tokens"


def _text(data: bytes, at: int) -> bytes:
    (length,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + length]
