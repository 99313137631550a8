"""Texts that a person gave to draft from: indexed once for a model, mapped into memory by every later run.

All texts of one model are one suffix array, because one search is cheaper than several: adding or removing a
text builds it anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import StoreError, UsageError
from specx.backends.store import Store
from specx.kernels._native import Corpus, suffix_array

__all__ = ["BYTES_PER_TOKEN", "MAX_TOKENS", "Corpora", "CorpusText", "all_texts"]

KIND = "corpus"
MAX_TOKENS = 1 << 24  # of all texts of a model: 128 MiB
BYTES_PER_TOKEN = 8  # the token, and its place in the suffix array
NO_TOKEN = 1 << 24  # nor what is larger: see `suffix_array`
CHECKED = 64  # rows of an index that are looked at when it is opened
NOTHING: NDArray[np.int32] = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class CorpusText:
    """One text that was added.

    Attributes:
        name: what it is removed by.
        tokens: of it, those between its parts included.
        added: seconds since 1970.
        model: name of the model that it was added for.
    """

    name: str
    tokens: int
    added: float
    model: str

    @property
    def size(self) -> int:
        """Bytes of its part of the index."""
        return BYTES_PER_TOKEN * self.tokens


class Corpora:
    """The texts of one model.

    Args:
        store: where they are kept.
        key: what token ids depend on.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key

    def texts(self) -> list[CorpusText]:
        """What was added, oldest first."""
        return self._load()[0]

    def open(self, vocab_size: int) -> Corpus | None:
        """The index of all texts, if there are any; an index that cannot be one is set aside."""
        texts, array = self._load()
        if not texts:
            return None
        if not _plausible(array, vocab_size):
            self._store.set_aside(KIND, self._key)
            return None
        return Corpus(array[0], array[1])

    def add(
        self,
        new: Sequence[tuple[str, NDArray[np.int32]]],
        model: str,
        clock: Callable[[], float] = time.time,
    ) -> list[CorpusText]:
        """Index texts: names and tokens (n,) int32, -1 between parts. Those of the same name are replaced.

        Raises:
            UsageError: a text is empty, or they are too long together.
            StoreError: the index cannot be written.
        """
        added = [CorpusText(name, len(tokens), clock(), model) for name, tokens in new]
        for text in added:
            if not text.tokens:
                raise UsageError(f"there is no text in {text.name}", "leave it out")
        with self._store.locked():
            kept = self._parts(without={text.name for text in added})
            self._save([*kept, *added], [*kept.values(), *(tokens for _, tokens in new)])
        return added

    def remove(self, name: str) -> bool:
        """Forget a text; says whether it was there.

        Raises:
            StoreError: the index of the others cannot be written.
        """
        with self._store.locked():
            if all(text.name != name for text in self.texts()):
                return False
            left = self._parts(without={name})
            if left:
                self._save(list(left), list(left.values()))
            else:
                self._store.remove(KIND, self._key)
        return True

    def _load(self) -> tuple[list[CorpusText], NDArray[np.int32]]:
        found = self._store.load_mapped(KIND, self._key)
        if found is None:
            return [], NOTHING
        value, array = found
        try:
            texts = [_text(each) for each in value["texts"]]
            if not texts or array.shape != (2, sum(text.tokens for text in texts)):
                raise ValueError("the texts are not those of the index")
        except (ValueError, TypeError, KeyError, OverflowError):
            self._store.set_aside(KIND, self._key)
            return [], NOTHING
        return texts, array

    def _parts(self, without: set[str]) -> dict[CorpusText, NDArray[np.int32]]:
        """The texts that have other names, with their tokens; an index of what are no tokens is set aside."""
        texts, array = self._load()
        if texts and not -1 <= array[0].min() <= array[0].max() < NO_TOKEN:
            self._store.set_aside(KIND, self._key)
            return {}
        ends = np.cumsum([text.tokens for text in texts]).tolist()
        found = {text: array[0, end - text.tokens : end] for text, end in zip(texts, ends, strict=True)}
        return {text: np.array(part) for text, part in found.items() if text.name not in without}

    def _save(self, texts: Sequence[CorpusText], parts: Sequence[NDArray[np.int32]]) -> None:
        tokens = np.concatenate(parts)
        if len(tokens) > MAX_TOKENS:
            raise UsageError(
                f"the texts have {len(tokens):,} tokens together, {MAX_TOKENS:,} is the most for a model",
                "add less, or remove a text: specx cache remove NAME",
            )
        index = np.stack((tokens, suffix_array(tokens)))
        if not self._store.save_mapped(KIND, self._key, {"texts": [asdict(text) for text in texts]}, index):
            raise StoreError("the index cannot be kept", "`specx cache show` tells where it would be")


def all_texts(store: Store) -> list[tuple[str, CorpusText]]:
    """Every text of every model with the key of the model, oldest index first."""
    keys = [entry.key for entry in store.entries() if entry.kind == KIND and not entry.damaged]
    return [(key, text) for key in keys for text in Corpora(store, key).texts()]


def _text(data: Any) -> CorpusText:
    """Raises ValueError, TypeError, KeyError or OverflowError if `data` is not what `asdict` gave."""
    text = CorpusText(str(data["name"]), int(data["tokens"]), float(data["added"]), str(data["model"]))
    if text.tokens < 1:
        raise ValueError("a text is empty")
    return text


def _plausible(array: NDArray[np.int32], vocab_size: int) -> bool:
    """Whether some rows of an index, evenly spread, could be those of this vocabulary in order."""
    n = array.shape[1]
    rows = np.linspace(0, n - 1, CHECKED).astype(np.int64)
    starts = array[1, rows]
    if starts.min() < 0 or starts.max() >= n:
        return False
    tokens = array[0, starts]
    return bool(tokens.min() >= -1 and tokens.max() < vocab_size and (np.diff(tokens) >= 0).all())
