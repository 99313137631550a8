"""Which draft model a session asks: found, tried, kept or dropped, and remembered.

Nothing here delays the first token. Candidates are looked for once a token is out, one file a step, and the
best one is opened by the plan when what it would have gained sums up to what opening it takes. That happens
between two steps and not in the background: loading competes for the cores and the memory that decoding is
bound by. The steps meanwhile would be slower by as much, and the staircase would learn wrong times from them.

A model that was found is on trial at first: after some tokens it stays if the steps that asked it were
faster, by measured times, than the same tokens would have been without it. Otherwise the next one is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Backend
from specx.backends.errors import SpecxError
from specx.drafters.mixture import CombinedDrafter
from specx.drafters.model import DraftCosts, ModelDrafter
from specx.engine.cost.staircase import Staircase
from specx.engine.decode import Step
from specx.engine.learned.knowledge import Learned
from specx.engine.setup.explain import Explain, silent
from specx.engine.setup.finder import Candidate, Forecast, Unfit
from specx.engine.setup.placement import ACCEPTANCE

__all__ = ["WITH_MODEL", "DraftModels", "DraftSource", "forecast"]

WITH_MODEL = ("auto", "model")
"""Drafters that ask a draft model."""

MOST_TRIED = 3  # models in one session
TRIAL_TOKENS = 128  # emitted since the model was first asked, until it is judged
REMEMBERED = 64  # scored tokens from which on an acceptance is believed
LOAD_BYTES_PER_MS = 0.4e6  # of a model file, before one was loaded; rearranging weights takes most of it
SHORT, LONG = 0.1, 0.15  # cost of a further token in a short call, and in a long one, in calls of one token


class DraftSource(Protocol):
    """Where draft models come from."""

    def search(self) -> Iterator[Candidate | Unfit | None]:
        """What there is, as it is found; None stands for a moment's work without a finding."""

    def obstacle(self, candidate: Candidate) -> str | None:
        """Why it cannot be loaded now (one clause): memory."""

    def load(self, candidate: Candidate) -> Backend:
        """The model, ready to be asked.

        Raises:
            SpecxError: it cannot be loaded.
        """


@dataclass(slots=True)
class _Trial:
    """How a model has done since it was loaded."""

    tokens: int = 0  # emitted
    saved_ms: float = 0.0  # by the steps that asked it, against the same tokens without it
    recent_ms: float = 0.0  # the same, with forgetting
    passed: bool = False
    alarmed: bool = False


def forecast(
    candidate: Candidate, learned: Learned, steps: NDArray[np.float64], target_bytes: int
) -> Forecast:
    """What a candidate promises, by what is remembered of it, or else by its size and the prior.

    Args:
        candidate: the model.
        learned: what is kept of it.
        steps: (W + 1,) milliseconds of a step of the target by its tokens.
        target_bytes: bytes of weights that the target reads for a token.
    """
    calibration, costs = learned.load_pair(candidate.fingerprint)
    known = calibration.trials >= REMEMBERED
    token_ms = costs.token_ms if costs else float(steps[1]) * candidate.step_bytes / target_bytes
    acceptance = calibration.acceptance if known and calibration.acceptance is not None else ACCEPTANCE
    return Forecast.of(candidate, steps, acceptance, token_ms, calibration.trials if known else 0)


class DraftModels:
    """Chooses, opens, judges and closes draft models.

    Args:
        source: where they come from.
        learned: what is kept of them.
        staircase: of the target.
        step_bytes: bytes of weights that the target reads for a token.
        n_ctx: tokens of its context.
        forced: the one to use whatever comes of it; None chooses among those found.
        quantized_cache: whether draft models keep their KV cache quantized.
        notice, explain: told what a person should know, and every decision.
        clock: seconds.
    """

    def __init__(
        self,
        source: DraftSource,
        learned: Learned,
        staircase: Staircase,
        *,
        step_bytes: int,
        n_ctx: int,
        forced: Candidate | None = None,
        quantized_cache: bool = False,
        notice: Callable[[str], None] = silent,
        explain: Explain = silent,
        clock: Callable[[], float],
    ) -> None:
        self.forced = forced
        self.candidate: Candidate | None = None
        self.model: ModelDrafter | None = None
        self._source = source
        self._learned = learned
        self._staircase = staircase
        self._step_bytes, self._n_ctx = step_bytes, n_ctx
        self._quantized_cache = quantized_cache
        self._notice, self._explain, self._clock = notice, explain, clock
        self._search: Iterator[Candidate | Unfit | None] | None = None
        self._found: list[Candidate] | None = None  # none looked for yet
        self._tried = 0
        self._required = False
        self._trial = _Trial()

    @property
    def name(self) -> str | None:
        """The model that is asked, once it is loaded."""
        loaded = self.model is not None and self.model.loaded
        return self.candidate.name if loaded and self.candidate else None

    def attach(self, drafter: CombinedDrafter, *, required: bool = False) -> None:
        """`drafter` takes the place of the one before; it is told to a person if there is no model for one
        that is `required`."""
        self._required = required
        drafter.use(self.model)

    def after(self, drafter: CombinedDrafter, step: Step, length: int) -> None:
        """A step was taken at `length`; `drafter` proposed it."""
        if self.model is None:
            self._look_around(drafter, length)
            return
        if self.model.loaded:
            self._account(step)
        if reason := self._verdict(self.model):
            self._drop(reason)
            drafter.use(None)

    def forget(self) -> None:
        """Go back to what was kept when the session began."""
        if self.model is not None and self.candidate is not None:
            self.model.calibration = self._learned.load_pair(self.candidate.fingerprint)[0]
            self.model.collapse.restart()

    def close(self) -> None:
        """Remember the present model and give its memory back."""
        if self.model is not None:
            self._remember(self.model)
            self.model.close()
            self.model = None

    def _look_around(self, drafter: CombinedDrafter, length: int) -> None:
        """One moment of looking for candidates; when all are known, the best one is taken up."""
        if self._tried >= MOST_TRIED or (self.forced is not None and self._tried):
            return
        if self.forced is not None:
            self._start(self._forecast(self.forced, length))
            drafter.use(self.model)
            return
        if self._found is None:
            self._found, self._search = [], self._source.search()
        while self._search is not None:
            found = next(self._search, "end")
            if found is None:
                return
            if isinstance(found, Candidate):
                self._found.append(found)
            elif isinstance(found, Unfit):
                self._explain(f"{found.name} cannot draft for this model: {found.reason}")
            else:
                self._search = None
        if (best := self._best(length)) is not None:
            self._start(best)
            drafter.use(self.model)

    def _best(self, length: int) -> Forecast | None:
        """The candidate not tried yet that promises most, if any promises more than plain decoding."""
        assert self._found is not None
        forecasts = [self._forecast(candidate, length) for candidate in self._found]
        forecasts.sort(key=lambda forecast: -forecast.rate)
        self._found = []
        for i, forecast in enumerate(forecasts):
            self._explain(f"draft model {forecast.explained()}")
            if forecast.rate <= forecast.plain_rate:
                break
            if reason := self._source.obstacle(forecast.candidate):
                self._explain(f"{forecast.candidate.name} is left out: {reason}")
                continue
            self._found = [rest.candidate for rest in forecasts[i + 1 :]]
            return forecast
        if self._required and not self._tried:
            self._notice("no draft model for this model is on this machine: name one with -md FILE")
        self._tried = MOST_TRIED  # none is left
        return None

    def _forecast(self, candidate: Candidate, length: int) -> Forecast:
        return forecast(candidate, self._learned, self._staircase.costs(length), self._step_bytes)

    def _start(self, forecast: Forecast) -> None:
        """Take a model up. The plan opens it when that pays."""
        candidate = forecast.candidate
        calibration, costs = self._learned.load_pair(candidate.fingerprint)
        if costs is None:
            ms = forecast.token_ms
            costs = DraftCosts(ms, SHORT * ms, LONG * ms, candidate.size / LOAD_BYTES_PER_MS)
        if self.forced is not None:
            costs.open_ms = 0.0  # it was asked for
        self._tried += 1
        self.candidate = candidate
        self._trial = _Trial()
        self.model = ModelDrafter(
            lambda: self._load(candidate),
            n_ctx=self._n_ctx,
            shared=candidate.shared,
            costs=costs,
            calibration=calibration,
            clock=self._clock,
        )

    def _load(self, candidate: Candidate) -> Backend | None:
        start = self._clock()
        try:
            backend = self._source.load(candidate)
        except SpecxError as error:
            self._notice(f"the draft model {candidate.name} cannot be loaded: {error.message}")
            return None
        self._explain(f"draft model {candidate.name} loaded in {self._clock() - start:.1f} s")
        return backend

    def _account(self, step: Step) -> None:
        trial, asked = self._trial, step.asked
        trial.tokens += len(step.tokens)
        if asked is not None:
            tokens, ms = asked.alone
            saved = len(step.tokens) * ms / tokens - (step.seconds * 1e3 - asked.invested_ms)
            trial.saved_ms += saved
            trial.recent_ms += saved - trial.recent_ms / TRIAL_TOKENS

    def _verdict(self, model: ModelDrafter) -> str | None:
        """Why the model is to be dropped now, if it is."""
        trial, acceptance = self._trial, model.calibration.acceptance or 0.0
        if model.failed:
            return model.failure or "it cannot be loaded"
        if model.loaded and model.collapse.alarm:
            self._tell_collapse(model)
            if trial.recent_ms <= 0 and self.forced is None:
                return "it does not pay now"
        if trial.passed or trial.tokens < TRIAL_TOKENS:
            return None
        trial.passed = True
        told = f"{trial.saved_ms:.0f} ms saved in {trial.tokens} tokens, {acceptance:.0%} of its tokens right"
        if trial.saved_ms > 0 or self.forced is not None:
            self._explain(f"the draft model is kept: {told}")
            return None
        return f"it does not pay: {told}"

    def _tell_collapse(self, model: ModelDrafter) -> None:
        expected, seen = model.collapse.rates
        cause = "another kind of text"
        if self._quantized_cache:
            cause = "its quantized KV cache (-ctkd f16 -ctvd f16 avoids that)"
        name = self.candidate.name if self.candidate else ""
        unexpected = self.forced is not None or self._trial.passed
        tell = self._notice if unexpected and not self._trial.alarmed else self._explain
        self._trial.alarmed = True
        tell(
            f"the draft model {name} is right far less often than expected ({seen:.0%} of its last tokens, "
            f"not {expected:.0%}): probably because of {cause}"
        )
        model.collapse.restart()

    def _drop(self, reason: str) -> None:
        assert self.model is not None
        self._remember(self.model)
        tell = self._notice if self.model.failure else self._explain  # that it cannot be loaded was told
        self.model.close()
        self.model = None
        name = self.candidate.name if self.candidate else ""
        tell(f"the draft model {name} is dropped: {reason}")

    def _remember(self, model: ModelDrafter) -> None:
        if self.candidate is not None and model.loaded:
            self._learned.save_pair(self.candidate.fingerprint, model.calibration, model.costs)
