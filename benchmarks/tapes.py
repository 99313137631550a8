"""What models gave, kept, so that the same answers can be written again with nothing computed.

`recorded` and `RecordedHead` keep what calls give on a tape. `Played` and `PlayedHead` give it again, in the
same order, and count the CPU time of their own calls apart from everybody else's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from cascade import WIDEST, costs_of
from numpy.typing import NDArray

from specx.backends.base import Cache, FeatureSink, Model, Output, Progress, RowSink, Tree, Want
from specx.backends.llama.head import LlamaHead
from specx.backends.llama.model import LlamaModel
from specx.backends.scripted import SimulatedClock

__all__ = ["HEAD_FURTHER_MS", "HEAD_MS", "Played", "PlayedHead", "RecordedHead", "Spent", "Tape", "recorded"]

HEAD_MS = 1.2  # a call of a head with one pair: a twentieth of the target's step
HEAD_FURTHER_MS = 0.6  # and with each further one

Tape = dict[str, list[Any]]
"""What the calls of one model or head gave, by the kind of call, in their order."""


class Spent:
    """CPU seconds of this thread, by what they went for."""

    def __init__(self) -> None:
        self.seconds = {"models": 0.0, "asking": 0.0, "after": 0.0}

    def on(self, what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, whose time is for `what`, but for that of the models."""
        seconds = self.seconds

        def timed(*given: Any, **options: Any) -> Any:
            start, models = time.thread_time(), seconds["models"]
            try:
                return call(*given, **options)
            finally:
                seconds[what] += time.thread_time() - start - (seconds["models"] - models)

        return timed

    def on_method(self, what: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """The same of a method, as a class has it."""
        timed = self.on(what, method)

        def bound(this: Any, *given: Any) -> Any:
            return timed(this, *given)

        return bound


def recorded(model: LlamaModel, tape: Tape, steps: Mapping[int, float], clock: SimulatedClock) -> None:
    """Keep what a model gives on `tape`, and let its calls take simulated milliseconds."""
    costs, forward, opened = costs_of(steps), model.forward, model.open

    def keeping(trees: Sequence[Tree], want: Want = Want.LOGITS) -> list[Output]:
        clock.sleep(costs[min(sum(map(len, trees)), WIDEST)] * 1e-3)
        outputs = forward(trees, want)
        output = outputs[0]
        hidden = None if output.hidden is None else output.hidden.copy()
        tape["forward"].append((output.logits.copy(), hidden))
        return outputs

    def open_keeping() -> Cache:
        cache = opened()
        read = cache.prefill

        def prefill(
            tokens: Sequence[int],
            *,
            progress: Progress | None = None,
            rows: RowSink | None = None,
            features: FeatureSink | None = None,
        ) -> None:
            clock.sleep(len(tokens) * costs[WIDEST] / WIDEST * 1e-3)
            sunk: list[Any] = []

            def keep(sink: Any, of_rows: bool) -> Any:
                def kept(tokens: NDArray[np.int32], values: NDArray[np.float32]) -> None:
                    sunk.append((of_rows, tokens.copy(), values.copy()))
                    sink(tokens, values)

                return kept if sink is not None else None

            read(tokens, progress=progress, rows=keep(rows, True), features=keep(features, False))
            tape["prefill"].append(sunk)

        keep = cache.keep

        def keeping_rows(rows: Sequence[int]) -> None:
            keep(rows)
            tape["again"].append(list(cache.again))

        cache.prefill, cache.keep = prefill, keeping_rows  # type: ignore[method-assign]
        return cache

    model.forward, model.open = keeping, open_keeping  # type: ignore[method-assign,assignment]


class Played(Model):
    """Gives what is on a tape.

    Args:
        like: the model that was recorded.
        tape: what it gave.
        steps, clock: what calls take.
        flush: empties the caches of the processor.
        spent: where their real time goes.
    """

    facts: Any = None  # of the model that was recorded; an attribute, as there

    def __init__(
        self,
        like: LlamaModel,
        tape: Tape,
        steps: Mapping[int, float],
        clock: SimulatedClock,
        flush: Callable[[], None],
        spent: Spent,
    ) -> None:
        self._like, self.facts = like, like.facts
        self.costs, self._clock, self._flush = costs_of(steps), clock, flush
        self._forward, self.prefills = iter(tape["forward"]), iter(tape["prefill"])
        self.again = iter(tape["again"])
        self._spent = spent
        self.forward = spent.on("models", self.forward)  # type: ignore[method-assign]

    @property
    def vocab(self) -> Any:
        """Of the model that was recorded."""
        return self._like.vocab

    def extract(self, layers: Sequence[int]) -> None:
        """What is on the tape is given."""

    def open(self) -> Cache:
        """Room for the one text."""
        cache = PlayedCache(self, self._clock)
        cache.keep = self._spent.on("models", cache.keep)  # type: ignore[method-assign]
        cache.prefill = self._spent.on("models", cache.prefill)  # type: ignore[method-assign]
        return cache

    def forward(self, trees: Sequence[Tree], want: Want = Want.LOGITS) -> list[Output]:
        """What comes next on the tape."""
        (tree,) = trees
        self._clock.sleep(self.costs[min(len(tree), WIDEST)] * 1e-3)
        logits, hidden = next(self._forward)
        if len(logits) != len(tree):
            raise SystemExit("error: something else was decided than when it was recorded")
        self._flush()
        logits += 0.0  # it was written just now
        return [Output(logits, hidden)]

    def close(self) -> None:
        """Nothing is held."""


class PlayedCache(Cache):
    """Holds as many tokens as were kept."""

    def __init__(self, model: Played, clock: SimulatedClock) -> None:
        self._model, self._clock, self._length = model, clock, 0
        self._again: list[int] = []

    @property
    def again(self) -> Sequence[int]:
        """As it was recorded."""
        return self._again

    @property
    def model(self) -> Played:
        """Gives what follows."""
        return self._model

    @property
    def length(self) -> int:
        """Of the tokens."""
        return self._length

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        progress: Progress | None = None,
        rows: RowSink | None = None,
        features: FeatureSink | None = None,
    ) -> None:
        """The sinks get what is on the tape."""
        self._clock.sleep(len(tokens) * self._model.costs[WIDEST] / WIDEST * 1e-3)
        for of_rows, read, values in next(self._model.prefills):
            sink = rows if of_rows else features
            assert sink is not None
            if not of_rows:
                self._length += len(read)
            sink(read, values)
        if features is None:
            self._length += len(tokens)

    def keep(self, rows: Sequence[int]) -> None:
        """So many more."""
        self._length += len(rows)
        self._again = next(self._model.again)

    def reusable(self, length: int) -> int:
        """Any."""
        return length

    def rewind(self, length: int) -> None:
        """So many are left."""
        self._again = self._again[: max(len(self._again) - (self._length - length), 0)]
        self._length = length

    def shift(self, keep: int, discard: int) -> None:
        """Never asked for."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""


class _Head:
    """What a recorded head and a played one have in common. Implements `PairModel`."""

    def __init__(self, like: LlamaHead, clock: SimulatedClock) -> None:
        self.columns, self.n_ctx, self.max_texts = like.columns, like.n_ctx, like.max_texts
        self.layers = like.layers
        self._like, self._clock = like, clock

    def _take(self, n: int) -> None:
        self._clock.sleep((HEAD_MS + (n - 1) * HEAD_FURTHER_MS) * 1e-3)

    def close(self) -> None:
        """It is used again."""


class RecordedHead(_Head):
    """A head whose calls are kept on `tape`, and take simulated milliseconds."""

    def __init__(self, like: LlamaHead, tape: Tape, clock: SimulatedClock) -> None:
        super().__init__(like, clock)
        self._tape = tape

    def encode(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """As the head."""
        states = self._like.encode(features)
        self._tape["encode"].append(states.copy())
        return states

    def step(
        self, slot: int, tokens: NDArray[np.int32], hidden: NDArray[np.float32], position: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As the head."""
        self._take(len(tokens))
        logits, state = self._like.step(slot, tokens, hidden, position)
        self._tape["step"].append((logits.copy(), state.copy()))
        return logits, state

    def forget(self, slot: int, position: int) -> None:
        """As the head."""
        self._like.forget(slot, position)


class PlayedHead(_Head):
    """Gives what is on a tape.

    Args:
        like: the head that was recorded.
        tape: what it gave.
        clock: what calls take.
        flush: empties the caches of the processor.
        spent: where their real time goes.
    """

    def __init__(
        self, like: LlamaHead, tape: Tape, clock: SimulatedClock, flush: Callable[[], None], spent: Spent
    ) -> None:
        super().__init__(like, clock)
        self._encoded, self._steps, self._flush = iter(tape["encode"]), iter(tape["step"]), flush
        for name in ("encode", "step", "forget"):
            setattr(self, name, spent.on("models", getattr(self, name)))

    def encode(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """What comes next on the tape."""
        states: NDArray[np.float32] = next(self._encoded)
        if len(states) != len(features):
            raise SystemExit("error: something else was decided than when it was recorded")
        self._flush()
        return states + np.float32(0)

    def step(
        self, slot: int, tokens: NDArray[np.int32], hidden: NDArray[np.float32], position: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What comes next on the tape."""
        self._take(len(tokens))
        logits, state = next(self._steps)
        self._flush()
        logits += 0.0  # it was written just now
        return logits, state

    def forget(self, slot: int, position: int) -> None:
        """Nothing is held."""
