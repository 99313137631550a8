"""A text in the tokens of a draft model, kept in step with the target's tokens.

Only the end of a text is tokenized again when it grows: from the last place where a token ends and no
tokenizer looks across, which is before a space between two words.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from specx.drafters.byte_map import ByteMap, whole

__all__ = ["DraftText"]

FAR = 64  # tokens that a place to begin is looked for among; then any end of a token will do
SPACE = 0x20
LOST = 4  # bytes without a token that there may be between two tokens, to find the next one behind them


class DraftText:
    """Follows one text.

    Attributes:
        tokens: of the draft model, in order; without a character that is not complete yet.
    """

    def __init__(self, byte_map: ByteMap) -> None:
        self._map = byte_map
        bos = byte_map.draft.vocab.added_bos
        self.tokens: list[int] = [] if bos is None else [bos]
        self._segment = bytearray()  # bytes since the last special token
        self._begins = True  # whether nothing was written since
        self._base = len(self.tokens)  # of the first token of the segment
        self._ends: list[int] = []  # bytes of the segment up to the end of each of its tokens

    @property
    def rest(self) -> bytes:
        """Bytes of the text that its tokens do not hold."""
        return bytes(self._segment[self._written :])

    @property
    def last(self) -> bytes:
        """Bytes of the last token; none if that is a special one."""
        if not self._ends:
            return b""
        return bytes(self._segment[self._ends[-2] if len(self._ends) > 1 else 0 : self._ends[-1]])

    def drop_last(self) -> None:
        """Take the last token away: its bytes become `rest`, until the text grows."""
        self.tokens.pop()
        self._ends.pop()

    def extend(self, tokens: Sequence[int]) -> int:
        """Target tokens were added to the text; returns the index from which on `tokens` may have changed."""
        changed = len(self.tokens)
        for token in tokens:
            role = self._map.special_for_draft(token)
            if role is None:
                piece = self._map.target.pieces.piece(token)
                # A space that the target's tokenizer puts before what begins is not part of the text.
                led = self._begins and self._map.target.leads and piece.startswith(b" ")
                self._segment += piece[1:] if led else piece
                self._begins = False
                continue
            changed = min(changed, self._write(len(self._segment)))
            if role >= 0 and self.tokens != [role]:  # where it begins both, it is there once
                self.tokens.append(role)
            self._segment, self._ends, self._base = bytearray(), [], len(self.tokens)
            self._begins = True
        return min(changed, self._write(whole(self._segment)))

    @property
    def _written(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _write(self, end: int) -> int:
        """Tokenize the segment up to byte `end`; returns the index of the first token that may be new."""
        if self._written == end:
            return len(self.tokens)
        kept = self._unaffected()
        start = self._ends[kept - 1] if kept else 0
        del self.tokens[self._base + kept :], self._ends[kept:]
        text = bytes(self._segment[start:end])
        draft = self._map.draft
        tokens = draft.of(text, begins=kept == 0)
        at = start
        for i, token in enumerate(tokens):
            piece = draft.pieces.piece(token)
            if i == kept == 0 and draft.leads:
                piece = piece.removeprefix(b" ")
            found = self._segment.find(piece, at, at + len(piece) + LOST)
            at = min(max(found, at) + len(piece), end)
            self._ends.append(at)
        if tokens:
            self._ends[-1] = end
        self.tokens += tokens
        return self._base + kept

    def _unaffected(self) -> int:
        """How many tokens of the segment stay what they are, whatever follows."""
        ends, text = self._ends, self._segment
        for kept in range(len(ends), max(len(ends) - FAR, 0), -1):
            if _between_words(text, ends[kept - 1]):
                return kept
        if len(ends) <= FAR:
            return 0
        kept = len(ends) - FAR
        while kept > 0 and text[ends[kept - 1]] & 0xC0 == 0x80:  # not within a character
            kept -= 1
        return bisect_right(ends, ends[kept - 1]) if kept else 0


def _between_words(text: bytearray, at: int) -> bool:
    """Whether a letter or digit ends before byte `at`, where a space and a letter follow; all of ASCII."""
    if not 0 < at < len(text) - 1 or text[at] != SPACE:
        return False
    before, after = text[at - 1], text[at + 1]
    return before < 0x80 and after < 0x80 and chr(before).isalnum() and chr(after).isalpha()
