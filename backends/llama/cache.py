"""The committed tokens of one text in libllama's KV cache.

Each leaf of a tree has a sequence. Committed tokens live in the *main* one. Another is brought up to date
only when a tree needs it, and only by the range it misses, because every sequence operation walks all cells.

Last bits depend on the order of cells. Where all widths give the same bits, cells are therefore kept in the
order of the text: of an accepted branch they are given up, and its tokens are read again with the next tree.
Sums over a branch itself are in that order, too (kernels/ggml/attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache, FeatureSink, Model, Progress, RowSink, Tree
from specx.backends.errors import ContextFullError, RollbackError
from specx.backends.llama.batch import TreeShape
from specx.backends.llama.states import States

__all__ = ["LlamaCache", "Reader"]

ALL = 1 << 62  # tokens, more than there are
WATCHED = 64  # tokens per call; below, asking after every operation costs more than it is worth


class Reader(Model, Protocol):
    """What a text needs of the model.

    Attributes:
        memory: libllama's caches of all texts.
        piece: most tokens that are read at once.
        n_swa: tokens that a sliding window sees; 0 if there is none.
        ring: cells of the windowed layers, which are used round and round, where last bits depend on their
            order; 0 where they do not, or all tokens have a cell.
        in_order: whether cells are kept in the order of the text.
    """

    memory: Any
    piece: int
    n_swa: int
    ring: int
    in_order: bool

    @property
    def can_shift(self) -> bool:
        """Whether old tokens can be dropped from the front of a cache."""

    def copyable(self, cache: LlamaCache) -> bool:
        """Whether another text can take over what `cache` holds."""

    @property
    def alone(self) -> bool:
        """Whether there is room for one text only: then every sequence is one of its own."""

    def states(self) -> States | None:
        """The recurrent states of one more text; None where layers keep none."""

    def closed(self, cache: LlamaCache) -> None:
        """`cache` holds a text no longer."""

    def read(
        self, cache: LlamaCache, tokens: NDArray[np.int32], wanted: int, *, features: bool = False
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """Compute consecutive tokens of a text; logits after the last `wanted`, as far as they are cheap, and
        hidden states of all, if they are wanted."""

    def watched(self, progress: Progress | None, done: int, total: int) -> AbstractContextManager[None]:
        """Call `progress` meanwhile, which may end the call by raising."""


class LlamaCache(Cache):
    """Room for one text. Implements `Cache`.

    Args:
        model: computes beyond it.
        module: llama_cpp.
        slot: which of the model's texts it is.
        own: ids of its sequences.

    Attributes:
        main: the sequence of the committed tokens.
    """

    def __init__(self, model: Reader, module: Any, slot: int, own: Sequence[int]) -> None:
        self.slot = slot
        self.main = own[0]
        self._model = model
        self._lib = module
        self._own = tuple(own)
        self._open = True
        self._length = 0
        self._again: list[int] = []  # the last committed tokens, as far as they have no cells
        self._held = dict.fromkeys(own, 0)  # committed tokens of each sequence
        self._pending: TreeShape | None = None
        self._drafted: NDArray[np.int32] = np.empty(0, np.int32)  # tokens of that
        self._orderly = ALL  # so many tokens have cells in the order of the text
        self._states = model.states()

    @property
    def model(self) -> Reader:
        """The model."""
        return self._model

    @property
    def length(self) -> int:
        """Number of committed tokens."""
        return self._length

    @property
    def again(self) -> Sequence[int]:
        """The last committed tokens, which the next forward call reads again."""
        return self._again

    @property
    def end(self) -> int:
        """Position after the committed tokens and the tree that waits for `keep`."""
        return self._length + (self._pending.height if self._pending is not None else 0)

    @property
    def max_leaves(self) -> int:
        """Most leaves of a tree.

        A shift leaves free cells in the middle, where the next tokens go. What lies after the hole of a
        branch is then more than can be moved up, and its rows would have other bits: it takes chains.
        """
        orderly = self._length <= self._orderly or not self._model.in_order
        return self._model.facts.max_leaves if orderly else 1

    @property
    def room(self) -> int:
        """Most tokens of a tree that can be computed now and leaves everything after it as it would be.

        A tree that goes over the end of the ring and is taken back leaves the next tokens in other cells.
        """
        ring, room = self._model.ring, self.n_ctx - self.end
        return min(room, ring - self.end % ring) if ring else room

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        progress: Progress | None = None,
        rows: RowSink | None = None,
        features: FeatureSink | None = None,
    ) -> None:
        """Commit `tokens` after the present ones; `rows` gets the logits after the last few of them, and
        `features` the hidden states of all.

        Raises:
            ContextFullError: they do not fit.
            Exception: what `progress` raises; the tokens that were finished before stay committed.
        """
        self.check_idle()
        self._settle()
        everything = np.asarray(tokens, np.int32)
        total, facts = len(everything), self._model.facts
        if self._length + total > facts.n_ctx:
            raise ContextFullError.of_prompt(self._length + total, facts.n_ctx, facts.n_ctx_train)
        done = 0
        while done < total:
            piece = everything[done : done + self._model.piece]
            with self._model.watched(progress if len(piece) >= WATCHED else None, done, total):
                self._read(piece, rows if done + len(piece) == total else None, features)
            done += len(piece)
            if progress is not None:
                progress(done, total)

    def expect(self, tree: Tree, room: int) -> TreeShape:
        """The sequences of a tree that is to be computed now; `keep` or `abandon` follows.

        Args:
            tree: what is to be computed.
            room: for so many tokens, with those that are read again; where they are more, these are read now.

        Raises:
            ValueError: it is not a tree, or has too many leaves.
        """
        if len(self._again) + len(tree) > room:
            self._settle()
        # A GPU is as long over building a graph anew as over a step, where trees and chains take turns.
        shape = TreeShape(tree.parents, self.main, self._own, every=self._model.facts.settles > 1)
        for seq in shape.sequences:
            if self._held[seq] < self._cells:
                self._lib.llama_memory_seq_cp(
                    self._model.memory, self.main, seq, self._held[seq], self._cells
                )
                self._held[seq] = self._cells
        self._pending, self._drafted = shape, tree.tokens
        return shape

    def abandon(self, *, begun: bool) -> None:
        """The tree could not be computed; `begun` says whether libllama was asked to."""
        self._pending = None
        if begun:
            self.drop_uncommitted()

    def keep(self, rows: Sequence[int]) -> None:
        """Commit a path of the last forward call, root first, and forget the rest of the tree.

        Raises:
            ValueError: the rows are not a path from the root.
            RuntimeError: there was no forward call.
            RollbackError: the cache cannot forget the rest.
        """
        shape = self._pending
        if shape is None:
            raise RuntimeError("keep was called without forward")
        shape.check_path(rows)
        self._pending = None
        length, again = self._length + len(rows), list[int]()
        self._again = []  # has cells now
        if self._model.in_order and shape.sequences:
            first = next((i for i, row in enumerate(rows) if row != i), len(rows))
            again = self._drafted[list(rows[first:])].tolist()
            rows = rows[:first]
        if self._states is not None:
            self._states.computed(shape.height, len(rows))
        if shape.height > len(rows):
            self._remove_all(self._length + len(rows))
        if shape.sequences:
            holders = shape.sequences_of(rows[-1])
            for seq in (*shape.sequences, self.main):
                shared = shape.shared_with(rows, seq)
                self._held[seq] = self._length + shared
                if shared < len(rows):
                    self._remove(seq, self._length + shared)
            if self.main not in holders:
                self.main = holders[0]
        self._length, self._again = length, again
        self._held[self.main] = self._cells

    def reusable(self, length: int) -> int:
        """Largest length not above `length` that `rewind` can go back to."""
        length = min(length, self._length)
        if length == self._length:
            return length
        if self._states is not None:
            length = self._states.reusable(length, self._length)
        ring = self._model.ring
        if ring and length // ring != (self._length - 1) // ring:
            return 0  # tokens after it would lie in other cells than if it were read anew
        if self._model.n_swa:
            # The token at `length` sees n_swa tokens, itself included.
            oldest = self._lib.llama_memory_seq_pos_min(self._model.memory, self.main)
            if oldest > max(0, length - self._model.n_swa + 1):
                return 0
        return length

    def rewind(self, length: int) -> None:
        """Forget committed tokens from `length` on.

        Raises:
            RollbackError: the cache no longer holds what that needs.
        """
        self.check_idle()
        if not 0 <= length <= self._length or self.reusable(length) != length:
            raise RollbackError(
                f"the KV cache cannot go back from {self._length} to {length} tokens",
                "this is a fault in specx; --drafter none avoids it",
            )
        if length == 0:
            self._clear()
        elif length < self._length:
            if self._states is not None and not self._states.go_back(self.main, length, self._length):
                self._clear()
                raise RollbackError("llama.cpp refused the copy of a state", "--drafter none avoids it")
            kept = max(length - self._cells, 0)
            if not kept:
                self._remove_all(length)
            self._length, self._again = length, self._again[:kept]
            if length <= self._orderly:
                self._orderly = ALL
            self._held = {seq: min(held, self._cells) for seq, held in self._held.items()}

    def mark(self) -> bool:
        """Make sure that `rewind` can come back to the present length; whether it can."""
        self.check_idle()
        self._settle()
        return self._states is None or self._states.take_copy(self.main, self._length)

    def copyable(self, length: int) -> int:
        """Largest length not above `length` of which another text can take over a copy."""
        return self.reusable(length) if self._model.copyable(self) else 0

    def copy(self, other: Cache, length: int) -> None:
        """Hold the first `length` tokens of `other` and nothing else.

        Streams are copied by libllama when it computes the next batch, whole, and what is too much is removed
        at once. In a cache of one stream both texts hold the same cells.

        Raises:
            RuntimeError: a forward call of one of them was not followed by `keep`.
            ValueError: `other` cannot be copied so far.
        """
        self.check_idle()
        if not isinstance(other, LlamaCache) or other is self or other.copyable(length) != length:
            raise ValueError(f"{length} tokens cannot be copied")
        other.check_idle()
        other._settle()
        self._clear()
        if not length:
            return
        end = -1 if self._model.facts.even else length  # streams are copied whole
        self._lib.llama_memory_seq_cp(self._model.memory, other.main, self.main, -1, end)
        if self._cut(self.main, length):
            self._length = self._held[self.main] = length
        else:
            self._clear()

    def shift(self, keep: int, discard: int) -> None:
        """Forget `discard` tokens after the first `keep` and move the rest forward.

        Raises:
            ContextFullError: this model's cache cannot be shifted.
            ValueError: there are not so many tokens.
        """
        self.check_idle()
        if keep < 0 or discard < 0 or keep + discard > self._length:
            raise ValueError(f"{discard} tokens after {keep} cannot be forgotten: there are {self._length}")
        if not self._model.can_shift:
            raise ContextFullError(
                f"the context of {self.n_ctx} tokens is full and this model cannot shift it",
                "give it more room with -c",
            )
        self._settle()
        for seq in self._own:
            if seq != self.main:
                self._remove(seq, 0)
                self._held[seq] = 0
        self._remove(self.main, keep, keep + discard)
        self._lib.llama_memory_seq_add(self._model.memory, self.main, keep + discard, -1, -discard)
        self._length -= discard
        self._held[self.main] = self._length
        if discard:
            self._orderly = min(self._orderly, keep)

    def close(self) -> None:
        """Make room for another text. Safe to call twice."""
        self._pending = None
        if self._open:  # else its place may be another's by now
            self._open = False
            self._clear()
            self._model.closed(self)

    def check_idle(self) -> None:
        """Raise RuntimeError if a forward call was not followed by `keep`, or the text was closed."""
        if not self._open:
            raise RuntimeError("the text was closed")
        if self._pending is not None:
            raise RuntimeError("the last forward call was not followed by keep")

    def drop_uncommitted(self) -> None:
        """Remove what lies beyond the committed tokens; all tokens, if that cannot be done."""
        # libllama would go back to a recurrent state that the call has not kept, or not reached.
        if self._states is not None or not all(self._cut(seq, self._cells) for seq in self._sequences):
            self._clear()

    def drop_filler(self) -> None:
        """Remove the rows that filled up a call in which this text took no part."""
        self._remove(self.main, self.end)

    @property
    def _cells(self) -> int:
        """Committed tokens that have cells."""
        return self._length - len(self._again)

    def _settle(self) -> None:
        """Read at once what the next forward call would read again."""
        if not self._again:
            return
        again, cells = self._again, self._cells
        self._length, self._again = cells, []
        try:
            self._read(np.array(again, np.int32), None, None)
        except BaseException:
            if self._length == cells:  # else nothing is left at all
                self._length, self._again = cells + len(again), again
            raise

    def _read(self, piece: NDArray[np.int32], rows: RowSink | None, features: FeatureSink | None) -> None:
        wanted = len(piece) if rows is not None else 0
        try:
            logits, hidden = self._model.read(self, piece, wanted, features=features is not None)
        except BaseException:
            self.drop_uncommitted()
            raise
        self._length += len(piece)
        self._held[self.main] = self._length
        if self._states is not None:
            self._states.computed(len(piece), len(piece))
        if features is not None and hidden is not None:
            features(piece, hidden)
        if rows is not None and logits is not None:
            rows(piece[-len(logits) :], logits)

    @property
    def _sequences(self) -> tuple[int, ...]:
        """What names all sequences of the text; -1 is all there are, which recurrent states do not know."""
        return (-1,) if self._model.alone and self._states is None else self._own

    def _clear(self) -> None:
        if self._model.alone:
            self._lib.llama_memory_clear(self._model.memory, False)
        else:
            for seq in self._own:
                self._cut(seq, -1)
        self._length, self._again, self.main = 0, [], self._own[0]
        self._orderly = ALL
        self._held = dict.fromkeys(self._own, 0)
        if self._states is not None:
            self._states.forget()

    def _remove_all(self, start: int) -> None:
        for seq in self._sequences:
            self._remove(seq, start)

    def _remove(self, seq: int, start: int, end: int = -1) -> None:
        if not self._cut(seq, start, end):
            raise RollbackError(
                f"the KV cache could not be cut back to {start} tokens",
                "this model's cache cannot take tokens back; use --drafter none",
            )

    def _cut(self, seq: int, start: int, end: int = -1) -> bool:
        return bool(self._lib.llama_memory_seq_rm(self._model.memory, seq, start, end))
