"""A tiny language model with known probabilities, for trying out and testing everything above a backend.

Each next token depends on the last few tokens through a hash, and optionally on a stored text that the model
likes to recite, so there is something for drafts to find. It implements `Backend` without any model file.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Output, Progress, RowSink
from specx.backends.errors import ContextFullError, RollbackError

__all__ = ["ScriptedBackend", "ScriptedVocab", "SimulatedClock"]

_PREFILL_PIECE = 64  # tokens between two calls of `progress`
_CACHED_ROWS = 4096

_SPLIT_CHARACTERS = (b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98\x80")  # of an accented letter and an emoji
_WORDS = (b" the", b" and", b" of", b" a", b"ing", b"er", b" in", b"tion", b" cat", b" sat", b" on", b" mat")


class ScriptedVocab:
    """Token ids as bytes: 0 ends the generation, then letters, parts of split characters, words, the
    remaining single bytes, and numbered words.

    Args:
        size: number of tokens, at least 2. From 300 on every text can be tokenized.
    """

    def __init__(self, size: int) -> None:
        if size < 2:
            raise ValueError("a vocabulary has at least 2 tokens")
        letters = [bytes([byte]) for byte in b" etaoinshrdlcumwfgypbvkjxqz.\n"]
        first = [*letters, *_SPLIT_CHARACTERS, *_WORDS]
        rest = [bytes([byte]) for byte in range(256) if bytes([byte]) not in first]
        pieces = [b"", *first, *rest][:size]
        pieces += [b" w%d" % number for number in range(size - len(pieces))]
        self._pieces = pieces
        self._ids = {piece: token for token, piece in enumerate(pieces) if token}
        self._longest = max(map(len, pieces))

    @property
    def size(self) -> int:
        """Number of tokens, V."""
        return len(self._pieces)

    @property
    def eog(self) -> frozenset[int]:
        """Token 0."""
        return frozenset({0})

    @property
    def fingerprint(self) -> str:
        """Hex digest of the token list."""
        return hashlib.sha256(b"\0".join(self._pieces)).hexdigest()

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token; token 0 is empty, or `<eog>` if `special`."""
        if not 0 <= token < self.size:
            raise ValueError(f"there is no token {token}")
        return b"<eog>" if special and token == 0 else self._pieces[token]

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`, the longest match first. Nothing is added for `add_special`.

        Raises:
            ValueError: a byte of the text is not in the vocabulary.
        """
        del add_special  # this model has no token that begins a sequence
        tokens: list[int] = []
        start = 0
        while start < len(text):
            if parse_special and text.startswith(b"<eog>", start):
                tokens.append(0)
                start += len(b"<eog>")
                continue
            lengths = range(min(self._longest, len(text) - start), 0, -1)
            length = next((n for n in lengths if text[start : start + n] in self._ids), None)
            if length is None:
                raise ValueError(f"byte {text[start]:#04x} is not among the {self.size} tokens")
            tokens.append(self._ids[text[start : start + length]])
            start += length
        return tokens


class SimulatedClock:
    """Seconds that pass only when somebody waits."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        """The present time."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._now += max(seconds, 0.0)


class ScriptedBackend:
    """A deterministic language model. Implements `Backend`.

    The logits after a context are independent normal numbers with standard deviation `sharpness`, seeded by
    a hash of the last `order` tokens. With a script, the token that follows these tokens in it has
    probability `peak`, and the others share the rest.

    Args:
        vocab_size: V.
        order: how many tokens back a token depends on.
        seed: another seed is another model.
        sharpness: standard deviation of the logits; 0 makes all tokens equally likely.
        script: token ids the model likes to recite, over and over. Where the last tokens are not in it, it
            starts again from the longest part of them that is.
        peak: probability of going on with the script.
        n_ctx, max_width, max_leaves: as in `Backend`.
        can_rewind: False makes a model that cannot take tokens back, and so decodes plainly.
        step_costs: width -> milliseconds a forward call of that width lasts at least; a width in between
            costs what the next one given does. None costs nothing.
        clock: what that time passes on; None waits.
    """

    def __init__(
        self,
        vocab_size: int = 64,
        order: int = 2,
        seed: int = 0,
        sharpness: float = 2.0,
        *,
        script: Sequence[int] = (),
        peak: float = 0.9,
        n_ctx: int = 4096,
        max_width: int = 64,
        max_leaves: int = 16,
        can_rewind: bool = True,
        step_costs: Mapping[int, float] | None = None,
        clock: SimulatedClock | None = None,
    ) -> None:
        self.vocab = ScriptedVocab(vocab_size)
        self.n_ctx = n_ctx
        self.max_width = max_width if can_rewind else 1
        self.max_leaves = max_leaves if can_rewind else 1
        self.plain_reason = None if can_rewind else "this scripted model cannot take tokens back"
        self._order, self._seed, self._sharpness, self._peak = order, seed, sharpness, peak
        self._check_tokens(script)
        self._script_length = len(script)
        self._continuations = _continuations(script, order)
        self._step_costs = sorted((step_costs or {}).items())
        self._now = clock or time.perf_counter
        self._sleep = clock.sleep if clock else time.sleep
        self._committed: list[int] = []
        self._pending: tuple[list[int], list[int]] | None = None  # tokens and parents of the last forward
        self._rows: dict[tuple[int, ...], NDArray[np.float32]] = {}
        self._buffer = np.empty((self.max_width, vocab_size), np.float32)

    @classmethod
    def from_script(
        cls,
        script: Sequence[int],
        peak: float = 0.9,
        *,
        vocab_size: int = 64,
        order: int = 2,
        n_ctx: int = 4096,
        max_width: int = 64,
        max_leaves: int = 16,
    ) -> ScriptedBackend:
        """A model that recites `script` (token ids), and at every token departs from it with probability
        1 - `peak`."""
        return cls(
            vocab_size,
            order,
            script=script,
            peak=peak,
            n_ctx=n_ctx,
            max_width=max_width,
            max_leaves=max_leaves,
        )

    @property
    def length(self) -> int:
        """Number of committed tokens."""
        return len(self._committed)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The committed tokens."""
        return tuple(self._committed)

    def logits(self, context: Sequence[int]) -> NDArray[np.float32]:
        """Logits (V,) float32 of the token after `context`. Read-only."""
        state = tuple(context[max(0, len(context) - self._order) :])
        row = self._rows.get(state)
        if row is None:
            if len(self._rows) >= _CACHED_ROWS:
                self._rows.clear()
            row = self._rows[state] = self._compute(state)
        return row

    def probabilities(self, context: Sequence[int]) -> NDArray[np.float64]:
        """Probabilities (V,) float64 of the token after `context`: the softmax of its logits."""
        logits = self.logits(context).astype(np.float64)
        weights = np.exp(logits - logits.max())
        probabilities: NDArray[np.float64] = weights / weights.sum()
        return probabilities

    def prefill(
        self, tokens: Sequence[int], *, progress: Progress | None = None, rows: RowSink | None = None
    ) -> None:
        """Commit `tokens` after the present sequence; `rows` gets the logits after each of them.

        Raises:
            ContextFullError: they do not fit.
        """
        self._check_idle()
        self._check_tokens(tokens)
        if self.length + len(tokens) > self.n_ctx:
            raise ContextFullError(
                f"the prompt has {self.length + len(tokens)} tokens and the context holds {self.n_ctx}",
                "give it more room with -c",
            )
        for start in range(0, len(tokens), _PREFILL_PIECE):
            piece = [int(token) for token in tokens[start : start + _PREFILL_PIECE]]
            logits = []
            for token in piece:
                self._committed.append(token)
                if rows is not None:
                    logits.append(self.logits(self._committed))
            if rows is not None:
                rows(np.array(piece, np.int32), np.stack(logits))
            if progress is not None:
                progress(start + len(piece), len(tokens))

    def forward(self, tokens: NDArray[np.int32], parents: NDArray[np.int32]) -> Output:
        """Compute a tree of tokens beyond the committed sequence, committing nothing.

        Raises:
            ContextFullError: there is no room for it.
            ValueError: it is not a tree, or wider or bushier than this backend takes.
            RuntimeError: the forward call before was not followed by `keep`.
        """
        started = self._now()
        self._check_idle()
        self._check_tree(tokens, parents)
        n = len(tokens)
        if self.length + n > self.n_ctx:
            raise ContextFullError(f"the context of {self.n_ctx} tokens is full", "give it more room with -c")
        tail = self._committed[max(0, self.length - self._order) :]
        contexts: list[list[int]] = []
        for row, (token, parent) in enumerate(zip(tokens.tolist(), parents.tolist(), strict=True)):
            contexts.append([*(contexts[parent] if row else tail), token])
            self._buffer[row] = self.logits(contexts[row])
        self._pending = (tokens.tolist(), parents.tolist())
        self._wait(n, started)
        return Output(self._buffer[:n])

    def keep(self, rows: Sequence[int]) -> None:
        """Commit a path of the last forward call, root first, and forget the rest of the tree.

        Raises:
            ValueError: the rows are not a path from the root.
            RuntimeError: there was no forward call.
        """
        if self._pending is None:
            raise RuntimeError("keep was called without forward")
        tokens, parents = self._pending
        if not rows:
            raise ValueError("at least the root is kept")
        expected = -1
        for row in rows:
            if not 0 <= row < len(tokens) or parents[row] != expected:
                raise ValueError(f"{list(rows)} is not a path from the root")
            expected = row
        self._pending = None
        self._committed += [tokens[row] for row in rows]

    def reusable(self, length: int) -> int:
        """Largest length not above `length` that `rewind` can go back to."""
        if length >= self.length:
            return self.length
        return 0 if self.plain_reason else max(0, length)

    def rewind(self, length: int) -> None:
        """Forget committed tokens from `length` on.

        Raises:
            RollbackError: there are fewer, or this model cannot take tokens back.
        """
        self._check_idle()
        if not 0 <= length <= self.length or self.reusable(length) != length:
            raise RollbackError(f"the scripted model cannot go back from {self.length} to {length} tokens")
        del self._committed[length:]

    def shift(self, keep: int, discard: int) -> None:
        """Forget `discard` tokens after the first `keep`."""
        self._check_idle()
        del self._committed[keep : keep + discard]

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        self._rows.clear()

    def _compute(self, state: tuple[int, ...]) -> NDArray[np.float32]:
        key = repr((self._seed, state)).encode()
        digest = hashlib.blake2b(key, digest_size=16).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
        logits = self._sharpness * generator.standard_normal(self.vocab.size)
        if self._script_length:
            starts = range(len(state) + 1)
            following = next(
                self._continuations[state[i:]] for i in starts if state[i:] in self._continuations
            )
            logits[following] = -np.inf
            others = np.exp(logits - logits.max())
            with np.errstate(divide="ignore"):
                logits = np.log(others / others.sum() * (1 - self._peak))
            logits[following] = np.log(self._peak)
        row = logits.astype(np.float32)
        row.flags.writeable = False
        return row

    def _wait(self, n: int, started: float) -> None:
        costs = [cost for width, cost in self._step_costs if width >= n] or [
            cost for _, cost in self._step_costs[-1:]
        ]
        if costs:
            self._sleep(max(0.0, costs[0] * 1e-3 - (self._now() - started)))

    def _check_idle(self) -> None:
        if self._pending is not None:
            raise RuntimeError("the last forward call was not followed by keep")

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not 0 <= token < self.vocab.size:
                raise ValueError(f"there is no token {token}")

    def _check_tree(self, tokens: NDArray[np.int32], parents: NDArray[np.int32]) -> None:
        n = len(tokens)
        if not 1 <= n <= self.max_width or len(parents) != n:
            raise ValueError(f"a forward call takes 1 to {self.max_width} tokens and as many parents")
        self._check_tokens(tokens.tolist())
        if parents[0] != -1:
            raise ValueError("row 0 is the root; its parent is -1")
        for row, parent in enumerate(parents.tolist()):
            if row and not 0 <= parent < row:
                raise ValueError(f"row {row} has parent {parent}; parents come first")
        leaves = n - len(set(parents.tolist()) - {-1})
        if leaves > self.max_leaves:
            raise ValueError(f"a tree with {leaves} leaves; at most {self.max_leaves} are possible")


def _continuations(script: Sequence[int], order: int) -> dict[tuple[int, ...], int]:
    """Tokens of at most `order` length -> the one that follows them where the script has them first. The
    script is read as a circle."""
    following: dict[tuple[int, ...], int] = {}
    n = len(script)
    for length in range(order + 1):
        for start in range(n):
            state = tuple(script[(start + i) % n] for i in range(length))
            following.setdefault(state, script[(start + length) % n])
    return following
