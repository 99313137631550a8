"""Text out of files, as tokens of a model: plain text, and JSON Lines with text in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Vocab
from specx.backends.errors import FileError, StoreError, UsageError
from specx.backends.gguf.file import read_gguf
from specx.backends.llama.vocab import load_vocabulary
from specx.backends.store import Store
from specx.engine.learned.corpora import MAX_TOKENS, Corpora, CorpusText

__all__ = ["FIELDS", "MAX_BYTES", "index_files", "read_texts", "tokens_of"]

SEPARATOR = -1  # between texts: no match spans it
PIECE = 1 << 14  # characters that are tokenized at a time, up to the end of a line
MAX_BYTES = 16 * MAX_TOKENS  # of a file: no tokenizer needs so many for a token of text
FIELDS = (
    *("text", "content", "prompt", "question", "instruction", "input", "query"),
    *("response", "output", "completion", "answer", "code"),
    *("messages", "conversations", "turns", "value"),
)
"""Of an object in a JSON Lines file: texts, or lists of such objects or of texts."""


def index_files(
    paths: Sequence[Path],
    model: Path,
    store: Store,
    name: str | None = None,
    progress: Callable[[float], None] = lambda _fraction: None,
) -> list[CorpusText]:
    """Add the texts of files to what the drafts for a model are searched in; says what was added.

    Args:
        paths: the files; each is a text of its name, unless all of them are to have one `name`.
        model: the GGUF file whose tokens they become.
        store: where the index is kept.
        name: of all of them together.
        progress: told what fraction of the files is done.

    Raises:
        FileError: a file cannot be read.
        UsageError: it is too large, no text, or has none.
        ModelError: the vocabulary of the model cannot be loaded.
        StoreError: nothing is kept on this machine, or the index cannot be written.
    """
    if name == "":
        raise UsageError("--name is empty", "leave it out, or give some text")
    if store.root is None:
        raise StoreError("nothing is kept on this machine, so no text either", "set SPECX_CACHE to a folder")
    read = [read_texts(path) for path in paths]
    info = read_gguf(model)
    parts: dict[str, list[NDArray[np.int32]]] = {}
    with load_vocabulary(model) as vocab:
        for i, (path, texts) in enumerate(zip(paths, read, strict=True)):

            def done(fraction: float, before: int = i) -> None:
                progress((before + fraction) / len(paths))

            parts.setdefault(name or path.name, []).append(tokens_of(texts, vocab, done))
    texts_of_names = [(each, np.concatenate(tokens)) for each, tokens in parts.items()]
    return Corpora(store, info.fingerprint).add(texts_of_names, info.name or model.stem)


def read_texts(path: Path) -> list[str]:
    """The texts of a file, at least one: each text of a JSON Lines file, or the whole of any other.

    Raises:
        FileError: it cannot be read.
        UsageError: it is too large, no text, or has none.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # what has no end says that it has no size
    except (OSError, ValueError) as problem:  # ValueError: a name with a NUL character
        reason = getattr(problem, "strerror", None) or problem
        raise FileError(f"cannot read {path}: {reason}", "check its name") from problem
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is too large", f"give at most {MAX_BYTES:,} bytes of text")
    if b"\0" in data:
        raise UsageError(f"{path} is no text in UTF-8: it has NUL bytes", "leave it out, or convert it first")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as problem:
        raise UsageError(
            f"{path} is no text in UTF-8: byte 0x{data[problem.start]:02x} at offset {problem.start}",
            "convert it first, for example with `iconv -t UTF-8`",
        ) from problem
    rows = path.suffix.lower() in (".jsonl", ".ndjson")
    texts = [each for each in (_in_rows(text, path) if rows else [text]) if each.strip()]
    if not texts:
        hint = f"give a field of each line one of the names {', '.join(FIELDS)}" if rows else "leave it out"
        raise UsageError(f"there is no text in {path}", hint)
    return texts


def _in_rows(text: str, path: Path) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield from _in_value(json.loads(line))
        except (ValueError, RecursionError) as problem:
            raise UsageError(
                f"line {number} of {path} is not JSON: {problem}", "write one JSON object a line"
            ) from problem


def _in_value(value: Any) -> Iterator[str]:
    """Texts in a row, in the order of its fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _in_value(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if name in FIELDS:
                yield from _in_value(each)


def tokens_of(
    texts: Sequence[str], vocab: Vocab, progress: Callable[[float], None] = lambda _fraction: None
) -> NDArray[np.int32]:
    """Token ids of texts, (n,) int32 with -1 after each; special tokens are taken as plain text.

    Raises:
        UsageError: they are more than an index holds.
    """
    total, done, count = sum(map(len, texts)), 0, 0
    parts: list[NDArray[np.int32]] = []
    for text in texts:
        # What stands for bytes that are no text, as JSON can have it, becomes U+FFFD.
        for piece in _pieces(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")):
            ids = vocab.tokenize(piece.encode(), add_special=False, parse_special=False)
            parts.append(np.array(ids, np.int32))
            done, count = done + len(piece), count + len(ids)
            if count > MAX_TOKENS:
                raise UsageError(
                    f"the text has more than {MAX_TOKENS:,} tokens", "add less: that is the most for a model"
                )
            progress(min(done / max(total, 1), 1.0))
        parts.append(np.array([SEPARATOR], np.int32))
        count += 1
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def _pieces(text: str) -> Iterator[str]:
    """The text in parts of about `PIECE` characters that end with a line, where there are lines."""
    begin = 0
    while begin < len(text):
        end = begin + PIECE
        if end < len(text):
            line = text.rfind("\n", begin, end)
            end = line + 1 if line > begin else end
        yield text[begin:end]
        begin = end
