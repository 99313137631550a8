"""What people write is text, also where it looks like a control token: `<|im_end|>` in a message ends none.

A template writes control tokens as text, and only the whole prompt is tokenized. So what of a message might
be taken for one is broken by a mark before it is rendered. In the prompt a control token is then what has no
mark in it, and the text between two of them is tokenized as llama.cpp does it, without its marks. Where no
mark makes a difference, which is nearly always, the prompt is tokenized as a whole.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from specx.backends.base import SpecialToken, Vocab
from specx.backends.errors import ModelError
from specx.backends.gguf.file import GGUFInfo
from specx.backends.gguf.vocab_match import typed_special

__all__ = ["Marked", "SpecialTexts", "Tokenize", "special_texts"]

ASIDE = frozenset({"role", "type", "id", "tool_call_id"})
"""Keys of messages and tools whose values the template itself compares or builds tokens from."""

WORDS = frozenset({"system", "developer", "user", "assistant", "tool", "function", "text"})
"""Roles and types, which are no one's words. Some vocabularies have control tokens of these texts."""

FORM = ASIDE | {"content", "text", "tool_calls", "function", "name", "arguments"}
FORM |= {"description", "parameters", "strict", "reasoning_content"}
"""Keys by which templates find what messages and tools consist of."""

DATA = frozenset({"arguments", "parameters"})
"""Keys of calls and tools below which all keys are people's own."""

SPACE = " \t\n\v\f\r"
"""What `isspace` of C takes for white space."""


class Tokenize(Protocol):
    """How a session turns text into token ids."""

    def __call__(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text of a prompt from `start` to `end`, or the control token that stands there."""

    start: int
    end: int
    token: int | None = None


class Marked(str):
    """A rendered prompt.

    Attributes:
        marked: the same with marks in what messages have of control tokens.
        mark: a mark.
    """

    marked: str
    mark: str

    def __new__(cls, marked: str, mark: str) -> Marked:
        """The text of `marked` without its marks, however the template spelled them."""
        text = super().__new__(cls, re.sub(mark, "", marked, flags=re.IGNORECASE))
        text.marked, text.mark = marked, mark
        return text


class _Texts:
    """Texts that are looked for all at once: by their first characters, then by their lengths."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._by_first: dict[str, set[str]] = {}
        self._by_last: dict[str, set[str]] = {}
        self._longest = 0
        for text in texts:
            self._by_first.setdefault(text[0], set()).add(text)
            self._by_last.setdefault(text[-1], set()).add(text)
            self._longest = max(self._longest, len(text))
        self._lengths = {first: sorted({*map(len, each)}) for first, each in self._by_first.items()}
        self._first, self._last = _any_of(self._by_first), _any_of(self._by_last)

    def within(self, text: str) -> Iterator[tuple[int, str]]:
        """Where in `text` one of them begins, and which."""
        for match in self._first.finditer(text):
            at, texts = match.start(), self._by_first[match[0]]
            for length in self._lengths[match[0]]:
                if (found := text[at : at + length]) in texts:
                    yield at, found

    def ends(self, text: str) -> set[int]:
        """Where to break what would be one of them with what comes before or behind `text`."""
        places = set()
        for match in self._first.finditer(text, max(0, len(text) - self._longest + 1)):
            tail = text[match.start() :]
            if any(each.startswith(tail) for each in self._by_first[match[0]]):
                places.add(match.start() + 1)
        for match in self._last.finditer(text, 0, max(0, self._longest - 1)):
            head = text[: match.end()]
            if any(each.endswith(head) for each in self._by_last[match[0]]):
                places.add(match.start())
        return places


class SpecialTexts:
    """The control tokens of a vocabulary, by their texts.

    Args:
        tokens: those that a tokenizer takes out of a text before it is split into words.
    """

    def __init__(self, tokens: Sequence[SpecialToken]) -> None:
        tokens = [token for token in tokens if token.text]
        self._tokens = sorted(tokens, key=lambda token: -len(token.text.encode()))
        self._all = _Texts(token.text for token in tokens)
        self._controls = _Texts(token.text for token in tokens if token.control)

    @property
    def known(self) -> Sequence[SpecialToken]:
        """The tokens, the longest first."""
        return self._tokens

    def marked(self, value: Any, mark: str, *, data: bool = False) -> Any:
        """`value` with a mark in every text that a control token may be made from; itself without any.

        Args:
            value: messages, or what belongs to them.
            mark: letters that are in none of the texts.
            data: whether it is below one of `DATA`.
        """
        if isinstance(value, str):
            return self._broken(value, mark)
        if isinstance(value, Mapping):
            pairs = {
                key if key in FORM and not data else self.marked(key, mark): each
                if key in ASIDE and not data and (self._is_plain(each) or _is_word(key, each))
                else self.marked(each, mark, data=data or key in DATA)
                for key, each in value.items()
            }
            same = all(pairs.get(key, pairs) is each for key, each in value.items())
            return value if same else pairs
        if isinstance(value, list | tuple):
            items = [self.marked(each, mark, data=data) for each in value]
            return value if all(a is b for a, b in zip(items, value, strict=True)) else items
        return value

    def _is_plain(self, value: Any) -> bool:
        """Whether it is a word without a control token in it."""
        return isinstance(value, str) and next(iter(self._controls.within(value)), None) is None

    def _broken(self, text: str, mark: str) -> str:
        places = {at + 1 for at, _ in self._controls.within(text)} | self._controls.ends(text)
        if not places:
            return text
        cuts = [0, *sorted(places), len(text)]
        return mark.join(text[a:b] for a, b in itertools.pairwise(cuts))

    def tokens(self, text: Marked, tokenize: Tokenize, *, add_special: bool) -> list[int]:
        """Tokens of a prompt in which nothing of a message is a control token."""
        pieces, whole = self._pieces(text.marked), self._pieces(text)
        if [each.token for each in pieces if each.token is not None] == [
            each.token for each in whole if each.token is not None
        ]:
            return tokenize(text, add_special=add_special, parse_special=True)
        found = tokenize("", add_special=add_special, parse_special=False) if add_special else []
        for piece in pieces:
            if piece.token is not None:
                found.append(piece.token)
            else:
                words = re.sub(text.mark, "", text.marked[piece.start : piece.end], flags=re.IGNORECASE)
                found += tokenize(words, add_special=False, parse_special=False)
        return found

    def _pieces(self, text: str) -> list[_Piece]:
        """A text between and in its control tokens, as llama.cpp divides it: the longest come out first."""
        pieces = [_Piece(0, len(text))] if text else []
        present = {found for _, found in self._all.within(text)}
        for token in self._tokens if present else ():
            if token.text not in present:
                continue
            pieces = [
                each
                for piece in pieces
                for each in ([piece] if piece.token is not None else _divided(text, piece, token))
            ]
        return pieces


class _Opened(Protocol):
    """What was decided for a model that is loaded."""

    @property
    def info(self) -> GGUFInfo:
        """Its file."""


def special_texts(vocab: Vocab, opened: _Opened | None) -> SpecialTexts:
    """The control tokens of a model.

    Args:
        vocab: its vocabulary.
        opened: its file; without one every token is looked at.
    """
    typed: list[int] | None = None
    if opened is not None:
        with suppress(OSError, ModelError):  # the file is no longer there
            typed = typed_special(opened.info)
    return SpecialTexts(vocab.special_tokens(typed))


def _divided(text: str, piece: _Piece, token: SpecialToken) -> list[_Piece]:
    """A piece of text with a control token taken out wherever it stands."""
    found: list[_Piece] = []
    start = piece.start
    while (at := text.find(token.text, start, piece.end)) >= 0:
        left = len(text[start:at].rstrip(SPACE)) if token.lstrip else at - start
        if left:
            found.append(_Piece(start, start + left))
        found.append(_Piece(at, at + len(token.text), token.id))
        start = at + len(token.text)
        if token.rstrip:
            start = piece.end - len(text[start : piece.end].lstrip(SPACE))
    if start < piece.end:
        found.append(_Piece(start, piece.end))
    return found


def _is_word(key: str, value: Any) -> bool:
    return key in ("role", "type") and isinstance(value, str) and value in WORDS


def _any_of(chars: Mapping[str, object]) -> re.Pattern[str]:
    return re.compile("[" + re.escape("".join(chars)) + "]" if chars else "(?!)")
