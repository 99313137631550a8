"""What a draft model promises: the objective, by what is remembered of it, by its trial, or by its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specx.drafters.calibration.model import ModelCalibration
from specx.drafters.guesser import GuessCosts
from specx.engine.cost.rate import ACCEPTANCE, Chain, Pace, chain_rate
from specx.engine.learned.knowledge import Learned
from specx.engine.learned.lengths import Outlook
from specx.engine.setup.finder import Candidate, Forecast

__all__ = ["REMEMBERED", "Prospect", "expected_costs", "forecast", "known_pair"]

REMEMBERED = 64  # scored tokens from which on an acceptance is believed
TRANSLATED = 0.8  # of the acceptance, for a model of another family; measured pairs had 0.55 to 0.65
LOAD_BYTES_PER_MS = 0.4e6  # of a model file, before one was loaded; rearranging weights takes most of it
USUAL = 1 / 8  # weights of a draft model in those of its target, where none is known
SHORT, LONG = 0.1, 0.15  # cost of a further token in a short call, and in a long one, in calls of one token


def known_pair(candidate: Candidate, learned: Learned) -> tuple[ModelCalibration, GuessCosts | None]:
    """How often a candidate is right about the target, and what its work costs here.

    Until enough of its tokens were scored here, its trial counts: what its file says of text that was held
    back when it was trained.
    """
    calibration, costs = learned.load_pair(candidate.fingerprint)
    if _counts_trial(candidate, calibration):
        right, reached = (sum(counts) for counts in zip(*candidate.trial, strict=True))
        calibration = ModelCalibration.of_trial(right, reached)
    return calibration, costs


def _counts_trial(candidate: Candidate, kept: ModelCalibration) -> bool:
    """Whether the trial of a candidate tells more than what is kept of it."""
    return bool(candidate.trial) and kept.trials < REMEMBERED


def forecast(
    candidate: Candidate,
    learned: Learned,
    steps: NDArray[np.float64],
    target_bytes: int,
    disappointing: Sequence[float] = (),
) -> Forecast:
    """What a candidate promises, by what is known of it, or else by its size and the prior.

    Args:
        candidate: the model.
        learned: what is kept of it.
        steps: (W + 1,) milliseconds of a step of the target by its tokens.
        target_bytes: bytes of weights that the target reads for a token.
        disappointing: acceptance of others on the same texts. Where these were hard to foresee for one model
            they probably are for the next: each weighs as much as the prior.
    """
    calibration, costs = known_pair(candidate, learned)
    token_ms = costs.token_ms if costs else float(steps[1]) * candidate.step_bytes / target_bytes
    known = calibration.trials if calibration.trials >= REMEMBERED else 0
    if known and calibration.acceptance is not None:
        tried = _counts_trial(candidate, learned.load_pair(candidate.fingerprint)[0])
        by_step = [right / max(reached, 1) for right, reached in candidate.trial] if tried else ()
        return Forecast.of(candidate, steps, calibration.acceptance, token_ms, known, by_step)
    assumed = ACCEPTANCE * (TRANSLATED if candidate.translated else 1.0)
    acceptance = (assumed + sum(disappointing)) / (1 + len(disappointing))
    return Forecast.of(candidate, steps, acceptance, token_ms)


def expected_costs(forecast: Forecast, learned: Learned) -> GuessCosts:
    """What the work of a candidate costs here, measured or expected."""
    candidate, ms = forecast.candidate, forecast.token_ms
    expected = GuessCosts(ms, SHORT * ms, LONG * ms, candidate.size / LOAD_BYTES_PER_MS)
    return learned.load_pair(candidate.fingerprint)[1] or expected


@dataclass(frozen=True, slots=True)
class Prospect:
    """What loading a model would bring: its best step, beside a plain one, and the price.

    Attributes:
        chain: the step.
        plain_ms: milliseconds of a plain one.
        open_ms: milliseconds of loading.
    """

    chain: Chain
    plain_ms: float
    open_ms: float

    @classmethod
    def usual(cls, steps: NDArray[np.float64], target_bytes: int) -> Prospect:
        """Of a model of which nothing is known; the arguments as in `forecast`."""
        plain_ms = float(steps[1])
        chain = chain_rate(steps, draft_ms=USUAL * plain_ms)
        return cls(chain, plain_ms, USUAL * target_bytes / LOAD_BYTES_PER_MS)

    @classmethod
    def of(cls, promised: Forecast, learned: Learned) -> Prospect:
        """Of a candidate."""
        return cls(promised.chain, 1 / promised.plain_rate, expected_costs(promised, learned).open_ms)

    def value(self, pace: Pace, outlook: Outlook) -> float:
        """Milliseconds that this process is expected to save if the model is loaded now."""
        return outlook.value(pace.saved(self.chain, self.plain_ms), self.open_ms)

    def pays(self, pace: Pace, outlook: Outlook, search_ms: float) -> bool:
        """Whether it is best to look for it and load it now, rather than later or never."""
        return outlook.worth(pace.saved(self.chain, self.plain_ms), self.open_ms + search_ms)
