"""Bytes of tokens to text as it streams: whole UTF-8 sequences only, and stop strings."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence

__all__ = ["StopMatcher", "StreamDecoder"]


class StreamDecoder:
    """UTF-8 in arbitrary pieces to text.

    A sequence that is not complete yet (at most three bytes) waits for its rest. Bytes that can never
    become text are replaced by U+FFFD, one for each maximal ill-formed part, as Unicode recommends.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """The text that `data` completes."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD if a sequence was cut short, otherwise nothing."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class StopMatcher:
    """Cuts a stream of text before the first stop string.

    The text stops where the first match ends, so the result does not depend on how the stream was cut into
    pieces; if several stop strings end there, the longest one is removed. Text that may turn out to be the
    beginning of a stop string is held back. Each character costs one step of an Aho-Corasick automaton
    (Aho and Corasick 1975).

    Args:
        stops: the stop strings; none of them empty.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string is empty")
        self._next, self._depth, self._match = [dict[str, int]()], [0], [0]
        for stop in stops:
            self._insert(stop)
        self._fail = [0] * len(self._next)
        self._link()
        self._state = 0
        self._held = ""
        self._stopped = False

    def _insert(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._match.append(0)
            state = self._next[state][char]
        self._match[state] = len(stop)

    def _link(self) -> None:
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for char, child in self._next[state].items():
                self._fail[child] = self._step(self._fail[state], char)
                self._match[child] = self._match[child] or self._match[self._fail[child]]
                queue.append(child)

    def _step(self, state: int, char: str) -> int:
        while state and char not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(char, 0)

    def feed(self, text: str) -> tuple[str, bool]:
        """Take more text.

        Returns:
            The text that can be released, and whether a stop string was found; what follows one is dropped.
        """
        if self._stopped:
            return "", True
        if len(self._next) == 1:
            return text, False
        held = self._held + text
        for position, char in enumerate(text, len(self._held) + 1):
            self._state = self._step(self._state, char)
            if self._match[self._state]:
                self._stopped, self._held = True, ""
                return held[: position - self._match[self._state]], True
        keep = len(held) - self._depth[self._state]
        self._held = held[keep:]
        return held[:keep], False

    def flush(self) -> str:
        """The text that was held back, when the stream ends without a stop string."""
        held, self._held, self._state = self._held, "", 0
        return held
