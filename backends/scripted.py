"""A tiny language model with known probabilities, for trying out and testing everything above a backend.

Each next token depends on the last few tokens through a hash, and optionally on a stored text that the model
likes to recite, so there is something for drafts to find. It implements `Model` without any model file.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache, Facts, FeatureSink, Output, Progress, RowSink, Tree, Want
from specx.backends.errors import ContextFullError, RollbackError
from specx.backends.scripted_vocab import ScriptedVocab

__all__ = ["ScriptedCache", "ScriptedModel", "ScriptedVocab", "SimulatedClock"]

_PREFILL_PIECE = 64  # tokens between two calls of `progress`
_CACHED_ROWS = 4096
HIDDEN_SIZE = 8
LAYERS = 8


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


class ScriptedModel:
    """A deterministic language model. Implements `Model`.

    The logits after a context are independent normal numbers with standard deviation `sharpness`, seeded by
    a hash of the last `order` tokens. With a script, the token that follows these tokens in it has
    probability `peak`, and the others share the rest. Hidden states depend on the same tokens.

    Args:
        vocab_size: V.
        order: how many tokens back a token depends on.
        seed: another seed is another model.
        sharpness: standard deviation of the logits; 0 makes all tokens equally likely.
        script: token ids the model likes to recite, over and over. Where the last tokens are not in it, it
            starts again from the longest part of them that is.
        peak: probability of going on with the script.
        n_ctx, max_width, max_leaves, max_texts, max_rows, even, copy_tokens: as in `Facts`.
        can_rewind: False makes a model that cannot take tokens back, and so decodes plainly.
        step_costs: rows -> milliseconds a forward call of that many rows lasts at least; a number in between
            costs what the next one given does. None costs nothing.
        clock: what that time passes on; None waits.
        cache_class: of the caches that `open` gives.
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
        max_texts: int = 16,
        max_rows: int = 64,
        even: bool = False,
        copy_tokens: int = 0,
        can_rewind: bool = True,
        step_costs: Mapping[int, float] | None = None,
        clock: SimulatedClock | None = None,
        cache_class: type[ScriptedCache] | None = None,
    ) -> None:
        self.vocab = ScriptedVocab(vocab_size)
        self.facts = Facts(
            n_ctx=n_ctx,
            max_width=max_width if can_rewind else 1,
            max_leaves=max_leaves if can_rewind else 1,
            max_texts=max_texts,
            max_rows=max(max_rows, max_texts),
            even=even,
            shared=not even,
            copy_tokens=copy_tokens,
            plain_reason=None if can_rewind else "this scripted model cannot take tokens back",
            extractable=Want.LOGITS | Want.HIDDEN,
        )
        self._order, self._seed, self._sharpness, self._peak = order, seed, sharpness, peak
        self.check_tokens(script)
        self._script_length = len(script)
        self._continuations = _continuations(script, order)
        self._step_costs = sorted((step_costs or {}).items())
        self._now = clock or time.perf_counter
        self._sleep = clock.sleep if clock else time.sleep
        self._cache_class = cache_class or ScriptedCache
        self._open: list[ScriptedCache] = []
        self._layers: tuple[int, ...] = ()
        self._loaded = True
        self._rows: dict[tuple[int, ...], NDArray[np.float32]] = {}
        self._buffer = np.empty((self.facts.max_rows, vocab_size), np.float32)

    def open(self) -> ScriptedCache:
        """Room for one more text.

        Raises:
            RuntimeError: there are `max_texts` already, or the model was closed.
        """
        if not self._loaded:
            raise RuntimeError("the model was closed")
        if len(self._open) >= self.facts.max_texts:
            raise RuntimeError(f"there is room for {self.facts.max_texts} texts at once")
        cache = self._cache_class(self)
        self._open.append(cache)
        return cache

    def logits(self, context: Sequence[int]) -> NDArray[np.float32]:
        """Logits (V,) float32 of the token after `context`. Read-only."""
        state = tuple(context[max(0, len(context) - self._order) :])
        row = self._rows.get(state)
        if row is None:
            if len(self._rows) >= _CACHED_ROWS:
                self._rows.clear()
            row = self._rows[state] = self._compute(state)
        return row

    def extract(self, layers: Sequence[int]) -> None:
        """Give hidden states of these layers, of which there are `LAYERS`; with none, no more.

        Raises:
            ValueError: there is no such layer, or others are given already.
        """
        if any(not 0 <= layer < LAYERS for layer in layers) or len(set(layers)) < len(layers):
            raise ValueError(f"there are no layers {list(layers)}")
        if layers and self._layers not in ((), tuple(layers)):
            raise ValueError(f"the inputs of layers {self._layers} are given already")
        self._layers = tuple(layers)

    def hidden(self, context: Sequence[int]) -> NDArray[np.float32]:
        """Hidden states (k * HIDDEN_SIZE,) float32 after `context` of the layers that are extracted.

        They are functions of what the logits depend on.
        """
        self.check_layers()
        state = tuple(context[max(0, len(context) - self._order) :])
        rows = [
            self._generator(("hidden", layer, state)).standard_normal(HIDDEN_SIZE) for layer in self._layers
        ]
        return np.concatenate(rows).astype(np.float32)

    def probabilities(self, context: Sequence[int]) -> NDArray[np.float64]:
        """Probabilities (V,) float64 of the token after `context`: the softmax of its logits."""
        logits = self.logits(context).astype(np.float64)
        weights = np.exp(logits - logits.max())
        probabilities: NDArray[np.float64] = weights / weights.sum()
        return probabilities

    def forward(self, trees: Sequence[Tree], want: Want = Want.LOGITS) -> list[Output]:
        """Compute a tree of tokens beyond each of some texts, committing nothing.

        Raises:
            ContextFullError: a text has no room for its tree.
            ValueError: something is not a tree, or wider or bushier than this model takes.
            RuntimeError: a call before was not followed by `keep`.
        """
        started = self._now()
        caches = [self._checked(tree) for tree in trees]
        total = sum(map(len, trees))
        if total > self.facts.max_rows or len(set(map(id, caches))) < len(trees):
            raise ValueError(f"a call takes one tree a text, and {self.facts.max_rows} tokens in all")
        if self.facts.even and len({len(tree) for tree in trees}) > 1:
            raise ValueError("all trees of a call have the same width")
        outputs, start = [], 0
        for tree, cache in zip(trees, caches, strict=True):
            contexts = cache.contexts(tree, self._order)
            logits = self._buffer[start : start + len(tree)]
            for row, context in enumerate(contexts):
                logits[row] = self.logits(context)
            hidden = np.stack([self.hidden(c) for c in contexts]) if Want.HIDDEN in want else None
            outputs.append(Output(logits, hidden))
            start += len(tree)
        for tree, cache in zip(trees, caches, strict=True):
            cache.pending = tree.tokens.tolist(), tree.parents.tolist()
        self._wait(total, started)
        return outputs

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        self._loaded = False
        self._open.clear()
        self._rows.clear()

    def closed(self, cache: ScriptedCache) -> None:
        """`cache` holds a text no longer."""
        if self.holds(cache):
            self._open.remove(cache)

    def holds(self, cache: ScriptedCache) -> bool:
        """Whether `cache` is one of its texts, and open."""
        return cache in self._open

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Raise ValueError unless all of `tokens` are in the vocabulary."""
        for token in tokens:
            if not 0 <= token < self.vocab.size:
                raise ValueError(f"there is no token {token}")

    def check_layers(self) -> None:
        """Raise ValueError unless hidden states of some layers are given."""
        if not self._layers:
            raise ValueError("hidden states are wanted of no layer")

    def _generator(self, key: object) -> np.random.Generator:
        digest = hashlib.blake2b(repr((self._seed, key)).encode(), digest_size=16).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))

    def _compute(self, state: tuple[int, ...]) -> NDArray[np.float32]:
        logits = self._sharpness * self._generator(state).standard_normal(self.vocab.size)
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

    def _checked(self, tree: Tree) -> ScriptedCache:
        cache, n = tree.cache, len(tree)
        if not isinstance(cache, ScriptedCache) or not self.holds(cache):
            raise ValueError("the text is not one of this model's")
        cache.check_idle()
        if not 1 <= n <= self.facts.max_width or len(tree.parents) != n:
            raise ValueError(f"a forward call takes 1 to {self.facts.max_width} tokens and as many parents")
        parents = tree.parents.tolist()
        self.check_tokens(tree.tokens.tolist())
        if parents[0] != -1:
            raise ValueError("row 0 is the root; its parent is -1")
        for row, parent in enumerate(parents):
            if row and not 0 <= parent < row:
                raise ValueError(f"row {row} has parent {parent}; parents come first")
        leaves = n - len(set(parents) - {-1})
        if leaves > self.facts.max_leaves:
            raise ValueError(f"a tree with {leaves} leaves; at most {self.facts.max_leaves} are possible")
        if cache.length + n > self.facts.n_ctx:
            raise ContextFullError(
                f"the context of {self.facts.n_ctx} tokens is full", "give it more room with -c"
            )
        return cache


class ScriptedCache(Cache):
    """The committed tokens of one text of a scripted model.

    Attributes:
        pending: tokens and parents of a forward call that no `keep` has followed yet.
    """

    def __init__(self, model: ScriptedModel) -> None:
        self._model = model
        self._committed: list[int] = []
        self.pending: tuple[list[int], list[int]] | None = None

    @property
    def model(self) -> ScriptedModel:
        """The model."""
        return self._model

    @property
    def length(self) -> int:
        """Number of committed tokens."""
        return len(self._committed)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The committed tokens."""
        return tuple(self._committed)

    def contexts(self, tree: Tree, order: int) -> list[list[int]]:
        """What each token of `tree` depends on, itself included: at least the last `order` tokens."""
        tail = self._committed[max(0, self.length - order) :]
        contexts: list[list[int]] = []
        for row, (token, parent) in enumerate(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)):
            contexts.append([*(contexts[parent] if row else tail), token])
        return contexts

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        progress: Progress | None = None,
        rows: RowSink | None = None,
        features: FeatureSink | None = None,
    ) -> None:
        """Commit `tokens` after the present ones; `rows` gets the logits after each of them, and `features`
        their hidden states.

        Raises:
            ContextFullError: they do not fit.
            ValueError: hidden states are wanted of no layer.
        """
        self.check_idle()
        self._model.check_tokens(tokens)
        if features is not None:
            self._model.check_layers()
        if self.length + len(tokens) > self.n_ctx:
            raise ContextFullError(
                f"the prompt has {self.length + len(tokens)} tokens and the context holds {self.n_ctx}",
                "give it more room with -c",
            )
        for start in range(0, len(tokens), _PREFILL_PIECE):
            piece = [int(token) for token in tokens[start : start + _PREFILL_PIECE]]
            logits, hidden = [], []
            for token in piece:
                self._committed.append(token)
                if rows is not None:
                    logits.append(self._model.logits(self._committed))
                if features is not None:
                    hidden.append(self._model.hidden(self._committed))
            if features is not None:
                features(np.array(piece, np.int32), np.stack(hidden))
            if rows is not None:
                rows(np.array(piece, np.int32), np.stack(logits))
            if progress is not None:
                progress(start + len(piece), len(tokens))

    def keep(self, rows: Sequence[int]) -> None:
        """Commit a path of the last forward call, root first, and forget the rest of the tree.

        Raises:
            ValueError: the rows are not a path from the root.
            RuntimeError: there was no forward call.
        """
        if self.pending is None:
            raise RuntimeError("keep was called without forward")
        tokens, parents = self.pending
        if not rows:
            raise ValueError("at least the root is kept")
        expected = -1
        for row in rows:
            if not 0 <= row < len(tokens) or parents[row] != expected:
                raise ValueError(f"{list(rows)} is not a path from the root")
            expected = row
        self.pending = None
        self._committed += [tokens[row] for row in rows]

    def reusable(self, length: int) -> int:
        """Largest length not above `length` that `rewind` can go back to."""
        if length >= self.length:
            return self.length
        return 0 if self._model.facts.plain_reason else max(0, length)

    def rewind(self, length: int) -> None:
        """Forget committed tokens from `length` on.

        Raises:
            RollbackError: there are fewer, or this model cannot take tokens back.
        """
        self.check_idle()
        if not 0 <= length <= self.length or self.reusable(length) != length:
            raise RollbackError(f"the scripted model cannot go back from {self.length} to {length} tokens")
        del self._committed[length:]

    def copyable(self, length: int) -> int:
        """Largest length not above `length` of which another text can take over a copy."""
        return 0 if self._model.facts.plain_reason else min(max(0, length), self.length)

    def copy(self, other: Cache, length: int) -> None:
        """Hold the first `length` tokens of `other` and nothing else.

        Raises:
            RuntimeError: a forward call of one of them was not followed by `keep`.
            ValueError: `other` cannot be copied so far.
        """
        self.check_idle()
        if not isinstance(other, ScriptedCache) or other is self or other.copyable(length) != length:
            raise ValueError(f"{length} tokens cannot be copied")
        other.check_idle()
        self._committed = list(other.tokens[:length])

    def shift(self, keep: int, discard: int) -> None:
        """Forget `discard` tokens after the first `keep`."""
        self.check_idle()
        del self._committed[keep : keep + discard]

    def close(self) -> None:
        """Make room for another text. Safe to call twice."""
        self._model.closed(self)

    def check_idle(self) -> None:
        """Raise RuntimeError if a forward call was not followed by `keep`, or the text was closed."""
        if not self._model.holds(self):
            raise RuntimeError("the text was closed")
        if self.pending is not None:
            raise RuntimeError("the last forward call was not followed by keep")


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
