"""What is kept of earlier answers, as text again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specx.backends.errors import SpecxError
from specx.backends.gguf.file import read_gguf
from specx.backends.llama.vocab import load_vocabulary
from specx.backends.store import Store
from specx.engine.learned.knowledge import SEPARATOR

__all__ = ["TYPED", "Answers", "kept_answers", "model_names"]

TYPED = "chat"
"""The key of the entry with what people typed in chats."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Earlier answers of one model.

    Attributes:
        model: its name, or its fingerprint where that is all that is known.
        texts: oldest first; the first may lack its beginning.
        problem: why there are none, if the model's file cannot be read or is another one by now.
    """

    model: str
    texts: tuple[str, ...]
    problem: str = ""


def model_names(store: Store) -> dict[str, str]:
    """Names of models by their fingerprints, as far as they are known; where several have one name, those of
    their files."""
    keys = [entry.key for entry in store.entries() if entry.kind == "model" and not entry.damaged]
    known = {key: store.load_json("model", key) or {} for key in keys}
    names = {key: str(about.get("name", "")) for key, about in known.items()}
    often = Counter(names.values())
    return {
        key: Path(known[key].get("path") or name).name if often[name] > 1 else name
        for key, name in names.items()
    }


def kept_answers(store: Store) -> Iterator[Answers]:
    """Earlier answers of each model."""
    for entry in store.entries():
        if entry.kind == "history" and entry.key != TYPED and not entry.damaged:
            yield _answers(store, entry.key)


def _answers(store: Store, key: str) -> Answers:
    about = store.load_json("model", key) or {}
    name = str(about.get("name") or key)
    if not about.get("path"):
        return Answers(name, (), "nothing says where its file is")
    path = Path(about["path"])
    try:
        if read_gguf(path).fingerprint != key:
            return Answers(name, (), f"{path} is another model by now")
        with load_vocabulary(path) as vocab:
            tokens = (store.load_arrays("history", key) or {}).get("tokens", np.empty(0, np.int32))
            known = tokens[(tokens == SEPARATOR) | ((tokens >= 0) & (tokens < vocab.size))]
            ends = np.flatnonzero(known == SEPARATOR)
            parts = [part[part != SEPARATOR] for part in np.split(known, ends)]
            texts = (b"".join(map(vocab.piece, part.tolist())).decode("utf-8", "replace") for part in parts)
            return Answers(name, tuple(text for text in texts if text.strip()))
    except SpecxError as problem:
        return Answers(name, (), problem.message)
