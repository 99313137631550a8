"""What a draft model says: one token at a time, by the target's own rule and noise.

The model proposes the argmax of log q + G with the G of the position (Daliri, Musco and Suresh 2024; plain
argmax at temperature 0) after the target's truncation. Its KV cache follows the text lazily: emitted tokens
that it has not read are read when it is next asked, after going back to what it has in common with the text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Backend
from specx.backends.errors import SpecxError
from specx.drafters.base import NO_TRUNCATION, Truncation
from specx.drafters.calibration.collapse import Collapse
from specx.drafters.calibration.model import ModelCalibration
from specx.kernels._native import rank_tokens

__all__ = ["DraftCosts", "ModelDrafter", "Proposal"]

RATE = 0.1  # weight of a new measurement in a running cost
CLIP = 3.0  # a call this many times as long as expected was disturbed and counts as that long
AT_ONCE = 8  # unread tokens that are read in one call with the token after them


@dataclass(slots=True)
class DraftCosts:
    """Milliseconds of a draft model's work, measured as it goes on.

    Attributes:
        token_ms: a call of one token.
        further_ms: each further token of a short call.
        read_ms: each token of a long stretch of text.
        open_ms: loading the model.
        measured: whether `token_ms` has been measured, or only predicted.
    """

    token_ms: float
    further_ms: float
    read_ms: float
    open_ms: float
    measured: bool = False

    def to_json(self) -> dict[str, float]:
        """What `from_json` needs."""
        return {name: round(getattr(self, name), 4) for name in _KEPT}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DraftCosts:
        """The costs that `to_json` described, of a model that is not loaded.

        Raises:
            ValueError, TypeError, KeyError: they are no such costs.
        """
        values = [float(data[name]) for name in _KEPT]
        if not all(0 <= ms < float("inf") for ms in values) or values[0] == 0:
            raise ValueError("the cost of a draft model is a positive number")
        token_ms, further_ms, read_ms, open_ms = values
        return cls(token_ms, further_ms, read_ms, open_ms, measured=True)

    def reading(self, n: int) -> float:
        """Of the tokens before the last of `n` unread ones."""
        return (n - 1) * (self.further_ms if n <= AT_ONCE else self.read_ms)

    def observe_call(self, n: int, ms: float) -> None:
        """A call that computed the logits of `n` tokens took `ms`."""
        if n == 1:
            self.token_ms = _updated(self.token_ms, ms, sure=self.measured)
            self.measured = True
        else:
            self.further_ms = _updated(self.further_ms, max(ms - self.token_ms, 0.0) / (n - 1), sure=True)

    def observe_reading(self, n: int, ms: float) -> None:
        """Reading `n` tokens without their logits took `ms`."""
        self.read_ms = _updated(self.read_ms, ms / n, sure=n < AT_ONCE * AT_ONCE)


_KEPT = ("token_ms", "further_ms", "read_ms", "open_ms")


def _updated(before: float, now: float, *, sure: bool) -> float:
    return before + RATE * (min(now, CLIP * before) - before) if sure else now


@dataclass(frozen=True, slots=True)
class Proposal:
    """A token that the model proposes.

    Attributes:
        token: its id.
        margin: how far ahead of the runner-up it is, in units of the tempered logits.
    """

    token: int
    margin: float


class ModelDrafter:
    """Follows the text of a generation with a draft model and continues it.

    Args:
        load: gives the model when it is first asked, None if it cannot be used.
        n_ctx: tokens it will hold.
        shared: how many tokens of the target's vocabulary it has, with the same meaning; the first ones.
        costs: what its work is expected to cost; corrected in place.
        calibration: how often it is right; learned further in place.
        clock: seconds.
    """

    def __init__(
        self,
        load: Callable[[], Backend | None],
        *,
        n_ctx: int,
        shared: int,
        costs: DraftCosts,
        calibration: ModelCalibration | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.costs = costs
        self.calibration = calibration or ModelCalibration()
        self.collapse = Collapse()
        self.failure = ""  # why it cannot go on, if that turned out while it was asked
        self._load = load
        self._n_ctx = n_ctx
        self._shared = shared
        self._clock = clock
        self._backend: Backend | None = None
        self._failed = False
        self._foreign = False  # whether the text has a token that it does not know
        self._text: list[int] = []
        self._start = 0  # of what the model reads of the text
        self._held: list[int] = []  # tokens in its cache
        self._agreed = 0  # of these, how many are surely those of the text
        self._position = 0
        self._seed, self._temperature, self._truncation = 0, 0.0, NO_TRUNCATION

    @property
    def usable(self) -> bool:
        """Whether it can be asked about the present text."""
        return not self._failed and not self._foreign

    @property
    def failed(self) -> bool:
        """Whether it turned out to be of no use to anybody."""
        return self._failed

    @property
    def loaded(self) -> bool:
        """Whether it takes memory."""
        return self._backend is not None

    @property
    def noisy(self) -> bool:
        """Whether tokens are chosen with noise."""
        return self._temperature > 0

    def begin(
        self, context: Sequence[int], *, seed: int, temperature: float, position: int, truncation: Truncation
    ) -> None:
        """A generation starts after `context`; as `Drafter.begin`."""
        self._text = list(context)
        self._foreign = max(self._text, default=0) >= self._shared
        self._start = self._agreed = 0
        self._seed, self._temperature, self._truncation = seed & (2**64 - 1), temperature, truncation
        self._position = position

    def append(self, tokens: Sequence[int]) -> None:
        """`tokens` were emitted."""
        self._text += tokens
        self._foreign |= max(tokens, default=0) >= self._shared
        self._position += len(tokens)

    def unread(self, chain: Sequence[int]) -> int:
        """Tokens to read before the one after `chain` can be proposed, at least 1."""
        end = len(self._text) + len(chain)
        if end - self._start >= self._n_ctx:  # older tokens must be forgotten, and the rest read again
            return self._n_ctx // 2
        return max(end - self._start - self._common(chain), 1)

    def propose(self, chain: Sequence[int]) -> Proposal | None:
        """The token after the text and `chain`; None if the model turns out to be of no use."""
        backend = self._open()
        if backend is None:
            return None
        position = self._position + len(chain)
        try:
            row = self._read(backend, chain)[: self._shared]
            ids, scores = rank_tokens(row, self._seed, position, self._temperature, *self._truncation, 2)
        except (SpecxError, ValueError) as error:  # it cannot be computed, or has no logit above -inf
            self.failure = str(error)
            self._failed = True
            return None
        except BaseException:  # interrupted: what its cache holds is not known
            self._failed = True
            raise
        return Proposal(int(ids[0]), float(scores[0] - scores[1]) if len(ids) > 1 else float("inf"))

    def close(self) -> None:
        """Give the memory back; it is not asked any more."""
        self._failed = True
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def _open(self) -> Backend | None:
        if self._backend is None and not self._failed:
            start = self._clock()
            self._backend = self._load()
            self._failed = self._backend is None
            self.costs.open_ms = (self._clock() - start) * 1e3
        return None if self._failed else self._backend

    def _common(self, chain: Sequence[int]) -> int:
        """How many of the held tokens are those of the text and `chain`, as far as they go."""
        text, start, held = self._text, self._start, self._held
        common, end = self._agreed, min(len(held), len(text) - start)
        while common < end and held[common] == text[start + common]:
            common += 1
        self._agreed = common
        if common == len(text) - start:
            for token, mine in zip(chain, held[common:], strict=False):
                if token != mine:
                    break
                common += 1
        return common

    def _read(self, backend: Backend, chain: Sequence[int]) -> NDArray[np.float32]:
        """Logits (V,) after the text and `chain`; borrowed until the next call."""
        if len(self._text) + len(chain) - self._start >= backend.n_ctx:
            self._start = max(len(self._text) + len(chain) - backend.n_ctx // 2, 0)
            self._agreed = 0
        end = len(self._text) - self._start
        kept = backend.reusable(min(self._common(chain), end + len(chain) - 1))
        backend.rewind(kept)
        del self._held[kept:]
        self._agreed = min(self._agreed, kept)
        unread = [*self._text[self._start + kept :], *chain[max(kept - end, 0) :]]
        if len(unread) > min(AT_ONCE, backend.max_width):
            self._prefill(backend, unread[:-1])
            unread = unread[-1:]
        started = self._clock()
        n = len(unread)
        output = backend.forward(np.array(unread, np.int32), np.arange(-1, n - 1, dtype=np.int32))
        backend.keep(range(n))
        self._held += unread
        self.costs.observe_call(n, (self._clock() - started) * 1e3)
        logits: NDArray[np.float32] = output.logits[n - 1]
        return logits

    def _prefill(self, backend: Backend, tokens: list[int]) -> None:
        started = self._clock()
        try:
            backend.prefill(tokens)
        finally:  # some of them, if it was interrupted
            self._held += tokens[: backend.length - len(self._held)]
        self.costs.observe_reading(len(tokens), (self._clock() - started) * 1e3)
