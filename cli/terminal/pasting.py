"""What was pasted into the line editor is text as it stands: nothing in it is syntax of the chat.

Terminals say where a paste begins and ends (bracketed paste). Which characters came from one is followed
through every edit, and a character that would mean something is sent on in disguise: as a lone surrogate,
which no text can hold.
"""

from __future__ import annotations

__all__ = ["Pasted", "disguised", "plain"]

QUOTE, BACKSLASH = "\udc22", "\udc5c"
DISGUISED = str.maketrans({'"': QUOTE, "\\": BACKSLASH})
PLAIN = str.maketrans({QUOTE: '"', BACKSLASH: "\\"})


def disguised(text: str) -> str:
    """`text` without quotes and backslashes that mean something."""
    return text.translate(DISGUISED)


def plain(text: str) -> str:
    """Undoes `disguised`."""
    return text.translate(PLAIN)


class Pasted:
    """Which characters of a text that is being edited were pasted.

    An edit replaces one stretch of the text by another, so that all but the stretch keeps its origin. A text
    that was there before, as after undo, has the origins of then, unless one key made it anew.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """A new text begins."""
        self._text, self._origins = "", b""  # 1 for a pasted character, 0 for a typed one
        self._known: dict[str, bytes] = {}

    def edited(self, text: str, cursor: int, *, pasted: bool = False) -> None:
        """The text is now `text`; the new part was `pasted` or typed, and begins at `cursor` or before."""
        if text == self._text:
            return
        one_key = len(text) == len(self._text) + 1
        known = None if pasted or one_key else self._known.get(text)
        if known is None:
            start = min(_common(self._text, text), cursor)
            end = _common(self._text[start:][::-1], text[start:][::-1])
            new = bytes([pasted]) * (len(text) - start - end)
            known = self._origins[:start] + new + self._origins[len(self._text) - end :]
        self._text, self._origins = text, known
        if 1 in known:
            self._known[text] = known

    def disguised(self) -> str:
        """The text, with what was pasted in disguise."""
        hidden = disguised(self._text)
        pairs = zip(self._text, hidden, self._origins, strict=True)
        return "".join(other if origin else char for char, other, origin in pairs)


def _common(one: str, two: str) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(two[:middle]):
            low = middle
        else:
            high = middle - 1
    return low
