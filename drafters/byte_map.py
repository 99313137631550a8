"""Two vocabularies on one text: tokens of one are found in the other by their bytes.

Ordinary tokens meet in bytes, never in strings: a token may hold a part of a character. Special tokens meet
by their role (what begins a sequence, begins or ends a turn, ends a text), never by how they are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Vocab

__all__ = ["ByteMap", "Tokens", "whole"]

# The same role in models of different families; none of them has more than one of each.
TURN_STARTS = (b"<|im_start|>", b"<start_of_turn>", b"<|start_header_id|>", b"<|turn>", b"<|start_of_role|>")
TURN_ENDS = (b"<|im_end|>", b"<end_of_turn>", b"<|eot_id|>", b"<turn|>", b"<|end|>", b"<|end_of_text|>")
ROLES = ("turn start", "turn end", "bos", "eos", "eot")  # the first that both have is taken
MARK = b"\x01"  # a text that no other merges with
SHORT = 32  # bytes of a text whose tokens are remembered
WORD = 8  # tokens of a word that are looked back on
MOST_KEPT = 4096  # tokenized texts that are remembered, of some ten bytes each


class Tokens:
    """How a vocabulary writes a text, from its beginning on or as the continuation of another."""

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = vocab
        self.pieces = vocab.pieces
        lead = self._tokenize(MARK)
        self._lead = lead if self.text(lead) != MARK else []  # it puts a space before what begins a text
        self._kept: dict[tuple[bytes, bool], list[int]] = {}

    @property
    def leads(self) -> bool:
        """Whether it puts a space before what begins a text."""
        return bool(self._lead)

    def text(self, tokens: list[int]) -> bytes:
        """The bytes of `tokens`."""
        piece = self.pieces.piece
        return b"".join([piece(token) for token in tokens])

    def of(self, text: bytes, *, begins: bool = False) -> list[int]:
        """Tokens of `text`.

        What is no UTF-8 is written byte by byte as far as there are tokens for it.

        Args:
            text: bytes; a character that is not complete at the end counts as none.
            begins: whether nothing comes before it, where some vocabularies put a space.
        """
        if len(text) > SHORT:
            return self._split(text, begins)
        # Looking for some thousand special tokens takes llama.cpp 0.1 ms, and words come again.
        tokens = self._kept.get((text, begins))
        if tokens is None:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            tokens = self._kept[text, begins] = self._split(text, begins)
        return list(tokens)

    def _split(self, text: bytes, begins: bool) -> list[int]:
        if text.isascii():
            return self._whole(text, begins)
        tokens: list[int] = []
        for part, valid in _parts(text):
            if valid:
                tokens += self._whole(part, begins and not tokens)
            else:
                tokens += self._bytes(part)
        return tokens

    def spelled(self, part: bytes) -> list[int]:
        """Tokens of a part of a character, byte for byte; none if there are none."""
        tokens = self._bytes(part) if part else []
        return tokens if self.text(tokens) == part else []

    def _whole(self, text: bytes, begins: bool) -> list[int]:
        if begins or not self._lead:
            return self._tokenize(text)
        tokens = self._tokenize(MARK + text)
        n = len(self._lead)
        return tokens[n:] if tokens[:n] == self._lead else self._bytes(text)

    def _bytes(self, text: bytes) -> list[int]:
        """One token if there is one with these bytes, else one for each byte as far as there are."""
        if (token := self.pieces.find(text)) >= 0:
            return [token]
        found = (self.pieces.find(text[i : i + 1]) for i in range(len(text)))
        return [token for token in found if token >= 0]

    def _tokenize(self, text: bytes) -> list[int]:
        return self.vocab.tokenize(text, add_special=False, parse_special=False) if text else []


def whole(text: bytes | bytearray) -> int:
    """Length of `text` without a character that is cut at its end."""
    end = len(text)
    for back in range(1, min(4, end + 1)):
        byte = text[end - back]
        if byte < 0x80:
            return end
        if byte >= 0xC0:  # begins a character of 2, 3 or 4 bytes
            return end if back >= (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else end - back
    return end


def _parts(text: bytes) -> Iterator[tuple[bytes, bool]]:
    """The runs of `text` that are UTF-8 and those that are not, in order."""
    while text:
        try:
            text.decode()
        except UnicodeDecodeError as error:
            if error.start:
                yield text[: error.start], True
            yield text[error.start : error.end], False
            text = text[error.end :]
        else:
            yield text, True
            return


class ByteMap:
    """What tokens of a draft model's vocabulary are in the target's, and the other way round.

    Attributes:
        as_target: (V_draft,) int32 for each draft token the target token with the same bytes; where there is
            none a number of its own beyond the target's vocabulary.
    """

    def __init__(self, target: Vocab, draft: Vocab) -> None:
        self.target, self.draft = Tokens(target), Tokens(draft)
        ours, theirs = self.target.pieces, self.draft.pieces
        found = theirs.match(ours)
        own = len(ours) + np.arange(len(theirs), dtype=np.int32)
        self.as_target: NDArray[np.int32] = np.where(found >= 0, found, own).astype(np.int32)
        self._unmapped: NDArray[np.bool_] = ours.match(theirs) < 0
        self._longer: dict[bytes, int] = {}
        self._to_draft, self._to_target = self._match_roles(target, draft)
        self._extensions: dict[bytes, NDArray[np.int32]] = {}

    def special_for_draft(self, token: int) -> int | None:
        """The draft token with the role of a target token; -1 if it has none; None for an ordinary token."""
        role = self._to_draft.get(token)
        if role is not None:
            return role
        return None if self.target.pieces.piece(token) else -1

    def special_for_target(self, token: int) -> int | None:
        """The target token with the role of a draft token; -1 if it has none; None for an ordinary token."""
        role = self._to_target.get(token)
        if role is not None:
            return role
        return None if self.draft.pieces.piece(token) else -1

    def longer(self, text: bytes) -> int:
        """How many target tokens begin with the bytes `text`, go on, and are no draft tokens."""
        found = self._longer.get(text)
        if found is None:
            if len(self._longer) >= MOST_KEPT:
                self._longer.clear()
            tokens = self.target.pieces.longer(text)
            found = self._longer[text] = int(np.count_nonzero(self._unmapped[tokens]))
        return found

    def extensions(self, text: bytes) -> NDArray[np.int32]:
        """(n,) draft tokens that begin with the bytes `text` and go on."""
        found = self._extensions.get(text)
        if found is None:
            if len(self._extensions) >= MOST_KEPT:
                self._extensions.clear()
            found = self._extensions[text] = self.draft.pieces.longer(text)
        return found

    def continued(self, text: bytes) -> list[int]:
        """What the target makes of `text` after what it has written, as far as its characters are complete.

        A character that it left incomplete may go on in front. It ends where no tokens have the bytes.
        """
        text = text[: whole(text)]
        tokens = self.target.of(text)
        at, piece = 0, self.target.pieces.piece
        for i, token in enumerate(tokens):
            part = piece(token)
            if text[at : at + len(part)] != part:
                return tokens[:i]
            at += len(part)
        return tokens

    def may_follow(self, tokens: Sequence[int], token: int) -> bool:
        """Whether the target may write `token` after `tokens`.

        Where its tokenizer makes other tokens of the same bytes it would have written these: after " action"
        comes no "s" if " actions" is one token.
        """
        piece = self.target.pieces.piece
        word, begun = list[int](), b""
        for before in reversed(tokens[-WORD:]):
            if not (part := piece(before)):
                break
            word.insert(0, before)
            begun = part + begun
            if part[:1].isspace():
                break
        text = begun + piece(token)
        if not word or whole(begun) < len(begun) or whole(text) < len(text) or self.target.of(begun) != word:
            return True
        return self.target.of(text)[: len(word)] == word

    @staticmethod
    def _match_roles(target: Vocab, draft: Vocab) -> tuple[dict[int, int], dict[int, int]]:
        ours, theirs = _roles(target), _roles(draft)
        to_draft: dict[int, int] = {}
        to_target: dict[int, int] = {}
        for role in ROLES:
            if role in ours and role in theirs:
                to_draft.setdefault(ours[role], theirs[role])
                to_target.setdefault(theirs[role], ours[role])
        ends = [ours[role] for role in ("turn end", "eos", "eot") if role in ours]
        for role in ("turn end", "eos", "eot"):  # any end is the target's end
            if role in theirs and ends:
                to_target.setdefault(theirs[role], ends[0])
        return to_draft, to_target


def _roles(vocab: Vocab) -> dict[str, int]:
    """Which token has which role."""
    found = {"bos": vocab.bos, "eos": vocab.eos, "eot": vocab.eot}
    for role, names in (("turn start", TURN_STARTS), ("turn end", TURN_ENDS)):
        for name in names:
            tokens = vocab.tokenize(name, add_special=False, parse_special=True)
            if len(tokens) == 1 and vocab.piece(tokens[0], special=True) == name:
                found.setdefault(role, tokens[0])
    return {role: token for role, token in found.items() if token is not None}
