"""Batches for libllama: token trees as rows with sequence ids.

Each leaf of a tree has a sequence id, and a node carries the ids of the leaves below it, so attention sees
exactly the path to the root.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.llama.trimmed import EmbeddingTable

__all__ = ["Batch", "TreeShape"]


class TreeShape:
    """Which sequences the rows of one text's tree belong to.

    Args:
        parents: (n,) int32, as in `Tree`.
        main: the sequence that holds the committed tokens.
        own: all sequences of the text; each leaf takes one.
        every: a chain has all of them, too.

    Raises:
        ValueError: it is not a tree, or has more leaves than there are sequences.
    """

    def __init__(
        self, parents: NDArray[np.int32], main: int, own: Sequence[int], *, every: bool = False
    ) -> None:
        self.parents: list[int] = parents.tolist()
        n = len(self.parents)
        if self.parents[0] != -1:
            raise ValueError("row 0 is the root; its parent is -1")
        depths = [0] * n
        inner = [False] * n
        for row in range(1, n):
            parent = self.parents[row]
            if not 0 <= parent < row:
                raise ValueError(f"row {row} has parent {parent}; parents come first")
            depths[row] = depths[parent] + 1
            inner[parent] = True
        self.depths = depths
        self.height = max(depths) + 1
        leaves = [row for row in range(n) if not inner[row]]
        if len(leaves) > len(own):
            raise ValueError(f"a tree with {len(leaves)} leaves; at most {len(own)} are possible")
        self.main = main
        self.sequences: tuple[int, ...] = ()
        self.members: list[list[int]] = []
        if len(leaves) > 1 or every:
            self.sequences = tuple(seq for seq in own if seq != main)
            self.members = self._assign(leaves)

    def _assign(self, leaves: list[int]) -> list[list[int]]:
        """Each leaf its sequence, and the first one those that are left: llama.cpp builds its graph anew
        when a batch has another number of sequences than the one before."""
        members: list[list[int]] = [[] for _ in self.parents]
        places = [*leaves, *leaves[:1] * (1 + len(self.sequences) - len(leaves))]
        for leaf, seq in zip(places, (self.main, *self.sequences), strict=True):
            row = leaf
            while row >= 0:
                members[row].append(seq)
                row = self.parents[row]
        return members

    def check_path(self, rows: Sequence[int]) -> None:
        """Raise ValueError unless `rows` is a path from the root."""
        expected = -1
        for row in rows:
            if not 0 <= row < len(self.parents) or self.parents[row] != expected:
                raise ValueError(f"{list(rows)} is not a path from the root")
            expected = row
        if not rows:
            raise ValueError("at least the root is kept")

    def sequences_of(self, row: int) -> list[int]:
        """The sequences that hold `row`."""
        return self.members[row] if self.members else [self.main]

    def shared_with(self, rows: Sequence[int], seq: int) -> int:
        """How many of the path's rows sequence `seq` holds."""
        return sum(seq in self.members[row] for row in rows)


class Batch:
    """A llama_batch over NumPy buffers that live as long as it does.

    Args:
        module: llama_cpp.
        capacity: most rows.
        max_leaves: most sequences of a row.
        table: where the embeddings of tokens are looked up; None leaves that to libllama.

    Attributes:
        capacity: most rows.
    """

    def __init__(
        self, module: Any, capacity: int, max_leaves: int, table: EmbeddingTable | None = None
    ) -> None:
        self.capacity = capacity
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self.counts = np.ones(capacity, np.int32)
        self.members = np.zeros((capacity, max_leaves), np.int32)
        self.wanted = np.zeros(capacity, np.int8)
        rows = self.members.ctypes.data + np.arange(capacity, dtype=np.uintp) * self.members.strides[0]
        self._rows = rows
        self._struct = module.llama_batch()
        self._table = table
        if table is None:
            self._point("token", self.tokens, ctypes.c_int32)
        else:
            self.embeddings = np.zeros((capacity, table.width), np.float32)
            self._point("embd", self.embeddings, ctypes.c_float)
        self._point("pos", self.positions, ctypes.c_int32)
        self._point("n_seq_id", self.counts, ctypes.c_int32)
        self._point("logits", self.wanted, ctypes.c_int8)
        pointer = ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
        self._struct.seq_id = ctypes.cast(rows.ctypes.data, pointer)

    def _point(self, name: str, array: NDArray[Any], kind: Any) -> None:
        setattr(self._struct, name, ctypes.cast(array.ctypes.data, ctypes.POINTER(kind)))

    def sized(self, n: int) -> Any:
        """The C struct, for its first `n` rows, which are filled."""
        if self._table is not None:
            self._table.fill(self.tokens[:n], self.embeddings)
        self._struct.n_tokens = n
        return self._struct

    def fill_chain(self, tokens: NDArray[np.int32], start: int, seq: int, rows: int, at: int = 0) -> None:
        """Consecutive tokens of one sequence from position `start` on, in the rows from `at` on; the last
        `rows` have their logits computed."""
        end = at + len(tokens)
        self.tokens[at:end] = tokens
        self.positions[at:end] = np.arange(start, start + len(tokens))
        self.counts[at:end] = 1
        self.members[at:end, 0] = seq
        self.wanted[at : end - rows] = 0
        self.wanted[end - rows : end] = 1

    def fill_again(self, tokens: Sequence[int], end: int, shape: TreeShape, at: int) -> None:
        """Tokens up to position `end`, where the root of a tree is, for all of its sequences; nobody wants
        their logits."""
        if not tokens:
            return
        self.fill_chain(np.array(tokens, np.int32), end - len(tokens), shape.main, 0, at)
        for row in range(at, at + len(tokens)):
            self.counts[row] = 1 + len(shape.sequences)
            self.members[row, : self.counts[row]] = (shape.main, *shape.sequences)

    def fill_tree(self, tokens: NDArray[np.int32], start: int, shape: TreeShape, at: int = 0) -> None:
        """A tree whose root is at position `start`; every row has its logits computed."""
        n = len(tokens)
        if not shape.sequences:
            self.fill_chain(tokens, start, shape.main, n, at)
            return
        self.tokens[at : at + n] = tokens
        self.positions[at : at + n] = shape.depths
        self.positions[at : at + n] += start
        for row, members in enumerate(shape.members):
            self.counts[at + row] = len(members)
            self.members[at + row, : len(members)] = members
        self.wanted[at : at + n] = 1
