"""Trimming: a draft model whose head has rows for the tokens that are proposed, and for no others.

Which those are is counted on text that the target writes, as in VocabTrim. A row is worth keeping as often as
the draft model would propose its token and be right, so its score is how often the token comes next in that
text, and the probability that the draft model gives it, summed over the text: that ranks tokens that a few
thousand never contain. Beyond those the tokenizer's order decides. FR-Spec counts a corpus of a billion.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Model, chain_parents
from specx.backends.errors import ModelError, UsageError
from specx.backends.gguf.file import GGUFInfo
from specx.backends.gguf.trim import IDS, ROWS, TABLE, TABLE_TYPE
from specx.backends.llama.trimmed import ARCHITECTURES
from specx.drafters.make.gguf_writing import Appendix, Source, int32s, made_entries, text, uint32, write_gguf

__all__ = ["check_rows", "check_trimmable", "kept_rows", "least_bytes", "row_scores", "write_trimmed"]

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
NORMAL, UNUSED = 1, 5  # token types of GGUF; others are control tokens, bytes and what a user defined
RESERVED = re.compile(rb"unused|reserved", re.IGNORECASE)
BASIC = frozenset(map(chr, range(128))) | {"\u2581"}  # characters; the last one stands for a space
PIECE = 32  # tokens of text that are scored in one call
LEAST = 0.1
"""Scores below are chance. Found on 6,000 tokens by Gemma 3 270M, in five parts of which each in turn was not
counted: of what the whole head has right, 16,384 rows and those of the context had 0.977, with 0.01 0.972."""
GROUP = 32  # kernels multiply rows in groups of so many, or of fewer


def check_trimmable(info: GGUFInfo, keep: int) -> None:
    """Raise what speaks against trimming a model to `keep` rows.

    Raises:
        ModelError: it cannot be trimmed.
        UsageError: it has no more rows than that, or cannot do with so few.
    """
    if info.trim is not None:
        raise ModelError(f"{info.path.name} is trimmed already", f"trim {_origin(info)} instead")
    names = {tensor.name for tensor in info.tensors}
    if info.architecture not in ARCHITECTURES or EMBEDDING not in names or "output.bias" in names:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelError(
            f"{info.path.name} cannot be trimmed: its architecture is {info.architecture}",
            f"trim a draft model of one of these architectures: {known}",
        )
    if keep >= info.vocabulary_size:
        raise UsageError(
            f"{info.path.name} has {info.vocabulary_size:,} tokens, and {keep:,} are to be kept",
            "keep fewer with --keep, or use the model as it is",
        )
    check_rows(info, keep)


def least_bytes(info: GGUFInfo) -> int:
    """Bytes that a trimmed model of `info` has at least: its rows come to those of the whole table."""
    return sum(tensor.nbytes for tensor in info.tensors if tensor.name != HEAD)


def row_scores(
    model: Model,
    texts: Sequence[Sequence[int]],
    vocabulary: int,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """How much each token is worth as a draft in `texts`.

    Args:
        model: the draft model, with room for one more text.
        texts: token ids, as it reads them.
        vocabulary: V, tokens that it scores.
        progress: called with (tokens done, tokens in all).

    Returns:
        (V,) the occurrences of each token, and the sum of its probabilities.
    """
    scores = np.zeros(vocabulary)
    done, total = 0, sum(map(len, texts))
    cache = model.open()
    try:
        width = min(PIECE, cache.max_width)
        for tokens in texts:
            cache.rewind(0)
            whole = np.asarray(tokens, np.int32)[: cache.n_ctx]
            scores += np.bincount(whole, minlength=vocabulary)
            for start in range(0, len(whole), width):
                piece = whole[start : start + width]
                logits = cache.forward(piece, chain_parents(len(piece))).logits
                cache.keep(range(len(piece)))
                for row in logits:
                    likely = np.exp(row - row.max())
                    scores += likely / likely.sum(dtype=np.float64)
            done += len(tokens)
            if progress is not None:
                progress(done, total)
    finally:
        cache.close()
    return scores


def check_rows(info: GGUFInfo, keep: int, option: str = "--keep") -> None:
    """Raise UsageError if the tokens that are always kept are more than `keep`, which `option` said."""
    least = int(_Tokens(info).always_kept().sum())
    if least > keep:
        raise UsageError(
            f"{keep:,} rows are too few: {least:,} tokens are control tokens, bytes and characters",
            f"keep more: {option} {-(-least // 1024) * 1024}",
        )


def kept_rows(info: GGUFInfo, scores: NDArray[np.float64], keep: int) -> NDArray[np.int32]:
    """The tokens of `keep` rows, rising.

    Always kept are control tokens (but for those reserved for nothing), bytes, single characters of ASCII and
    what somebody defined; then the tokens with the highest scores, and where these tell nothing, those of the
    lowest ids, which tokenizers gave to the most frequent ones.

    Args:
        info: the draft model.
        scores: (V,) as `row_scores` gives them.
        keep: how many; rounded up to whole groups of rows as kernels multiply them.

    Raises:
        UsageError: those that are always kept are more.
    """
    check_rows(info, keep)
    tokens = _Tokens(info)
    always, useless = tokens.always_kept(), tokens.useless()
    keep = min(-(-keep // GROUP) * GROUP, len(scores))
    told = np.where(scores > LEAST, scores, 0.0)
    worth = np.where(always, np.inf, np.where(useless, -1.0, told))
    return np.sort(np.argsort(-worth, kind="stable")[:keep]).astype(np.int32)


def write_trimmed(
    path: Path,
    info: GGUFInfo,
    ids: NDArray[np.int32],
    target: GGUFInfo,
    parameters: Mapping[str, object],
) -> None:
    """Write the model of `info` with the rows of `ids` only.

    Args:
        path: the file to write; one that is there is replaced.
        info: the model.
        ids: (R,) int32, the tokens that it shall score, rising.
        target: the model it is to draft for.
        parameters: what was asked for.

    Raises:
        FileError: it cannot be written.
    """
    import gguf

    source = Source(info)
    table = source.tensors[EMBEDDING]
    for name in (EMBEDDING, HEAD):
        if name in source.tensors:
            source.tensors[name] = source.tensors[name].rows(ids)
    entries = {ROWS: uint32(len(ids)), **source.entries}  # the first key is what such a file is known by
    entries |= {IDS: int32s(ids), TABLE_TYPE: text(gguf.GGMLQuantizationType(table.kind).name)}
    entries |= made_entries("trim", info, target, parameters)
    write_gguf(path, entries, list(source.tensors.values()), Appendix(TABLE, table.data))


def _origin(info: GGUFInfo) -> str:
    name = info.metadata.get("specx.made.from")
    return name if isinstance(name, str) else "the whole model"


class _Tokens:
    """The tokens of a model, as its file lists them."""

    def __init__(self, info: GGUFInfo) -> None:
        with info.path.open("rb") as file:
            data = file.read(max(info.token_span[1], info.token_type_span[1]))
        at = info.token_span[0]
        self.texts: list[bytes] = []
        for _ in range(info.vocabulary_size):
            (length,) = struct.unpack_from("<Q", data, at)
            self.texts.append(data[at + 8 : at + 8 + length])
            at += 8 + length
        start, end = info.token_type_span
        typed = end - start == 4 * len(self.texts)
        count = len(self.texts) if typed else 0
        self.types = np.frombuffer(data, "<i4", count, start) if typed else np.full(len(self.texts), NORMAL)
        self.bytewise = info.tokenizer == "gpt2"  # whose single characters stand for bytes

    def always_kept(self) -> NDArray[np.bool_]:
        """(V,) tokens of a kind that any text may need."""
        kept = [
            self._is_basic(kind, text) for kind, text in zip(self.types.tolist(), self.texts, strict=True)
        ]
        return np.array(kept) & ~self.useless()

    def useless(self) -> NDArray[np.bool_]:
        """(V,) tokens that are never written."""
        named = np.array([bool(RESERVED.search(text)) for text in self.texts])
        found: NDArray[np.bool_] = (self.types == UNUSED) | (named & (self.types != NORMAL))
        return found

    def _is_basic(self, kind: int, text: bytes) -> bool:
        if kind != NORMAL:
            return True
        characters = text.decode("utf-8", "replace")
        return len(characters) == 1 and (self.bytewise or characters in BASIC)
