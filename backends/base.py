"""What runs a model, as the decode loop sees it.

A `Model` holds the weights, which all texts share. A `Cache` holds the committed tokens of one text, and one
`forward` call computes a tree of guesses beyond each of several texts. `LlamaModel` runs GGUF files;
`ScriptedModel` is a tiny language model with known probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specx.kernels._native import LogitRows, Pieces

__all__ = [
    "Cache",
    "Facts",
    "FeatureSink",
    "Model",
    "Output",
    "Progress",
    "RowSink",
    "SpecialToken",
    "Tree",
    "Vocab",
    "Want",
    "chain_parents",
]

Progress = Callable[[int, int], None]
"""Called with (tokens done, tokens in all) while a prompt is read."""

RowSink = Callable[[NDArray[np.int32], NDArray[np.float32]], None]
"""Called with tokens (n,) and the logits (n, V) that follow each of them; the logits are borrowed."""


FeatureSink = Callable[[NDArray[np.int32], NDArray[np.float32]], None]
"""Called with tokens (n,) and what entered k layers (n, k * d) for each; the hidden states are borrowed."""


class Want(Flag):
    """What a forward call is asked for."""

    LOGITS = auto()
    HIDDEN = auto()


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a loaded model before anything is computed.

    Attributes:
        n_ctx: most tokens of one text, drafted ones included.
        max_width: most tokens of one tree; 1 if the model cannot take guesses back.
        max_leaves: most leaves of one tree; 1 means chains only.
        max_texts: most texts at once.
        max_rows: most tokens of one call, over all its trees.
        even: whether all trees of a call must have the same width.
        shared: whether texts lie in one cache, so that a step of one goes through the cells of all.
        prompt_rows: most rows of a `prefill` that its `rows` receives the logits of: the last ones.
        copy_tokens: reading so many tokens takes about as long as copying what another text has read.
        plain_reason: why this model decodes plainly (one clause), or None if it can speculate.
        n_ctx_train: tokens of context that the model was trained for; 0 if that is unknown.
        extractable: what `forward` can be asked for.
        settles: calls of one width in a row until they take as long as all that follow: for a GPU one of them
            is recorded, which is then repeated.
        head: (n,) int32 tokens that the logits of the last call stand for, increasing; None where there is
            one for each token.
    """

    n_ctx: int
    max_width: int
    max_leaves: int
    max_texts: int = 1
    max_rows: int = 64
    even: bool = False
    shared: bool = False
    prompt_rows: int = 64
    copy_tokens: int = 0
    plain_reason: str | None = None
    n_ctx_train: int = 0
    extractable: Want = Want.LOGITS
    settles: int = 1
    head: NDArray[np.int32] | None = field(default=None, compare=False)


@dataclass(slots=True)  # some a step: a frozen one takes three times as long to make
class Output:
    """What one forward call computed for one text.

    Attributes:
        logits: (n, V) float32, row i follows token i of the tree. Borrowed: valid until the next call.
        hidden: (n, k * d) float32 hidden states of the layers that are extracted, if the call was asked for
            them. Borrowed, too.
        rows: `logits` with what is known of them: each is read through once, whoever asks first.
    """

    logits: NDArray[np.float32]
    hidden: NDArray[np.float32] | None = None
    rows: LogitRows = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.rows = LogitRows(self.logits)


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token that is looked for in a text before it is split into words.

    Attributes:
        id: the token.
        text: what stands for it.
        control: whether that is done only where special tokens are parsed.
        lstrip, rstrip: whether it swallows white space before and behind it.
    """

    id: int
    text: str
    control: bool
    lstrip: bool = False
    rstrip: bool = False


class Vocab(Protocol):
    """The tokens of a model, as bytes."""

    @property
    def size(self) -> int:
        """Number of tokens, V."""

    @property
    def eog(self) -> frozenset[int]:
        """Every token that ends a generation."""

    @property
    def bos(self) -> int | None:
        """Token that begins a sequence, if the model has one."""

    @property
    def eos(self) -> int | None:
        """Token that ends a sequence, if the model has one."""

    @property
    def eot(self) -> int | None:
        """Token that ends a turn or a text, beside `eos`, if the model has one."""

    @property
    def added_bos(self) -> int | None:
        """Token that `tokenize` begins with where it is asked to add special ones, if there is one."""

    @property
    def pieces(self) -> Pieces:
        """All tokens as bytes; control tokens are empty."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the token list: equal for two models exactly when their ids mean the same."""

    def special_tokens(self, typed: Iterable[int] | None = None) -> tuple[SpecialToken, ...]:
        """The tokens that are taken out of a text before it is split into words.

        Args:
            typed: tokens that the model file says are not ordinary; None if that is not known.
        """

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token. Control tokens are empty unless `special`."""

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of UTF-8 `text`; `add_special` adds what the model wants before a text."""


class Model(Protocol):
    """The weights, shared by all texts."""

    @property
    def vocab(self) -> Vocab:
        """The model's vocabulary."""

    @property
    def facts(self) -> Facts:
        """What is known of it."""

    def open(self) -> Cache:
        """Room for one more text; empty.

        Raises:
            RuntimeError: there are `max_texts` already, or the model was closed.
        """

    def extract(self, layers: Sequence[int]) -> None:
        """Give what enters these layers wherever hidden states are wanted, side by side; with none, no more.

        Args:
            layers: their numbers, from 0; what enters layer i is what layer i - 1 hands on.

        Raises:
            ValueError: there is no such layer, or others are given already.
            SpecxError: this model gives no hidden states.
        """

    def forward(self, trees: Sequence[Tree], want: Want = Want.LOGITS) -> list[Output]:
        """Compute a tree of tokens beyond each of some texts, committing nothing.

        Exactly one `keep` of each cache follows.

        Args:
            trees: at most one a text, together at most `max_rows` tokens.
            want: what is needed of them; logits always are.

        Raises:
            ContextFullError: a text has no room for its tree.
            ValueError: something is not a tree, or wider or bushier than this model takes.
            RuntimeError: a call before was not followed by `keep`.
        """

    def close(self) -> None:
        """Give the memory back, that of the caches included. Safe to call twice."""


class Cache(Protocol):
    """The committed tokens of one text."""

    @property
    def model(self) -> Model:
        """The model that computes beyond them."""

    @property
    def length(self) -> int:
        """Number of committed tokens."""

    @property
    def again(self) -> Sequence[int]:
        """The last committed tokens, as far as the next forward call reads them again, as rows of its own."""
        return ()

    @property
    def n_ctx(self) -> int:
        """Most tokens it may hold, drafted ones included."""
        return self.model.facts.n_ctx

    @property
    def room(self) -> int:
        """Most tokens of a tree that can be computed now and leaves everything after it as it would be."""
        return self.n_ctx - self.length

    @property
    def max_width(self) -> int:
        """Most tokens of a tree."""
        return self.model.facts.max_width

    @property
    def max_leaves(self) -> int:
        """Most leaves of a tree."""
        return self.model.facts.max_leaves

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        progress: Progress | None = None,
        rows: RowSink | None = None,
        features: FeatureSink | None = None,
    ) -> None:
        """Commit `tokens` after the present ones.

        Args:
            tokens: what follows.
            progress: told how far it is.
            rows: receives the logits of the last `Facts.prompt_rows`.
            features: receives the hidden states of all, in order, of the layers that are extracted.

        Raises:
            ValueError: `features` are wanted of no layer.
            ContextFullError: they do not fit.
            Exception: what `progress` raises; the tokens that were finished before stay committed.
        """

    def forward(self, tokens: NDArray[np.int32], parents: NDArray[np.int32]) -> Output:
        """`Model.forward` of one tree beyond this text alone.

        Args:
            tokens: (n,) int32, row 0 is the root: the next token of the text.
            parents: (n,) int32, parents[0] == -1 and 0 <= parents[i] < i for the others.
        """
        return self.model.forward((Tree(self, tokens, parents),))[0]

    def keep(self, rows: Sequence[int]) -> None:
        """Commit a path of the last forward call (root first, each row the child of the one before)
        and forget the rest of the tree.

        Raises:
            ValueError: the rows are not a path from the root.
            RuntimeError: there was no forward call.
            RollbackError: the rest cannot be forgotten.
        """

    def reusable(self, length: int) -> int:
        """Largest length not above `length` that `rewind` can go back to (0 always can)."""

    def rewind(self, length: int) -> None:
        """Forget committed tokens from `length` on.

        Raises:
            RollbackError: the cache cannot go back that far.
        """

    def mark(self) -> bool:
        """Make sure that `rewind` can come back to the present length, until it goes back further.

        Only the last mark counts. Of layers that keep a recurrent state it takes a copy, which costs time.

        Returns:
            Whether it can.
        """
        return True

    def copyable(self, length: int) -> int:
        """Largest length not above `length` of which another text of the model can take over a copy.

        0 always can, and is all where nothing can be copied. What was copied cannot be shifted everywhere.
        """
        return 0

    def copy(self, other: Cache, length: int) -> None:
        """Hold the first `length` tokens of `other` and nothing else, as if they had been read here.

        `length` is one that is `copyable`. If the copy fails, this is empty.

        Raises:
            RuntimeError: a forward call of one of them was not followed by `keep`.
            ValueError: `other` cannot be copied so far.
        """
        raise ValueError("this model's texts cannot be copied")

    def shift(self, keep: int, discard: int) -> None:
        """Forget `discard` tokens after the first `keep` and move the rest forward.

        Raises:
            ContextFullError: this model's cache cannot be shifted.
        """

    def close(self) -> None:
        """Make room for another text: nothing else can be done with this one then. Safe to call twice."""


@dataclass(slots=True)
class Tree:
    """Tokens to compute beyond one text.

    Attributes:
        cache: the committed tokens of the text.
        tokens: (n,) int32, row 0 is the root: the next token of the text.
        parents: (n,) int32, parents[0] == -1 and 0 <= parents[i] < i for the others.
    """

    cache: Cache
    tokens: NDArray[np.int32]
    parents: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.tokens)


def chain_parents(n: int) -> NDArray[np.int32]:
    """(n,) int32 parents of a chain of n tokens."""
    return np.arange(-1, n - 1, dtype=np.int32)
