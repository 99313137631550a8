"""The whole reasoning about one model on this machine, with its numbers: what `specx plan` shows.

Everything here is what a session would decide, found the same way and from the same measurements, so this is
also where predictions meet what was measured since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specx.backends.llama.devices import Device
from specx.backends.llama.kernels import KERNELS
from specx.backends.llama.memory import predict_memory
from specx.backends.machine.machine import available_memory
from specx.backends.store import Store
from specx.engine.cost.rate import ACCEPTANCE, chain_rate
from specx.engine.cost.staircase import Staircase
from specx.engine.forecast import forecast
from specx.engine.learned.knowledge import Learned
from specx.engine.learned.records import TrackRecord
from specx.engine.report.advice import Advice, draft_advice, kernels_advice
from specx.engine.session import Session
from specx.engine.settings import Asked
from specx.engine.setup.choice import Setup
from specx.engine.setup.decide import decide
from specx.engine.setup.explain import gibibytes, silent
from specx.engine.setup.finder import Candidate, Finder, Unfit
from specx.engine.setup.fit import SMALLER_TYPE, beyond_training, smaller_caches
from specx.engine.setup.here import Here, Told
from specx.engine.setup.layers import model_layers, step_bytes
from specx.engine.setup.offloading import FREE_DRAFTS, load_costs, usable_devices
from specx.engine.setup.placement import Placed, place
from specx.engine.setup.wanted import wanted_load

__all__ = ["DraftOption", "PlanReport", "draft_options", "make_plan"]

MAX_WIDTH = 32  # of the steps that are shown and reckoned with
BELIEVED_TOKENS = 256  # from which on a remembered speedup counts for more than a predicted one
AUTO = "auto"
DISTURBED = "not predicted: the machine was busy while steps were timed"


@dataclass(frozen=True, slots=True)
class DraftOption:
    """One source of drafts, as times the speed of plain decoding.

    Attributes:
        name: what to call it.
        predicted: by the objective; None if there is nothing to predict from.
        basis: what the prediction rests on, one clause.
        measured: what it brought so far; None if it was never used.
        tokens: how many tokens that was measured on.
        path: of a draft model.
    """

    name: str
    predicted: float | None
    basis: str
    measured: float | None = None
    tokens: int = 0
    path: Path | None = None

    @property
    def value(self) -> float:
        """What it is chosen by: the measured speedup once it rests on enough, else the predicted one."""
        if self.measured is not None and (self.tokens >= BELIEVED_TOKENS or self.predicted is None):
            return self.measured
        return self.predicted or 0.0


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What would be decided.

    Attributes:
        setup: what was decided, with the reasons.
        available: main memory there is; None if that cannot be read.
        devices: the host and the GPUs.
        placed: where the layers could go, of the devices that were timed; None where there is no choice or
            nothing was measured.
        steps: milliseconds by tokens of a step, in an empty context; empty if nothing was measured.
        options: sources of drafts, best first.
        unfit: models on this machine that cannot draft for this one.
        advice: what would help, most first.
    """

    setup: Setup
    available: int | None
    devices: tuple[Device, ...]
    placed: Placed | None
    steps: dict[int, float]
    options: tuple[DraftOption, ...]
    unfit: tuple[Unfit, ...]
    advice: tuple[Advice, ...]

    def to_json(self) -> dict[str, Any]:
        """What `specx plan --json` prints."""
        placed = self.placed.alternatives if self.placed else ()
        return {
            "model": str(self.setup.asked.model),
            "name": self.setup.name,
            "setup": self.setup.to_json(),
            "memory": {**self.setup.need.to_json(), "available": self.available},
            "devices": [device.to_json() for device in self.devices],
            "placement": [
                {**option.to_json(), "reason": self.placed.reason(option) if self.placed else ""}
                for option in placed
            ],
            "staircase": {str(n): round(ms, 4) for n, ms in self.steps.items()},
            "drafters": [
                {**asdict(option), "path": str(option.path) if option.path else None}
                for option in self.options
            ],
            "unfit": [{"path": str(model.path), "reason": model.reason} for model in self.unfit],
            "advice": [asdict(advice) for advice in self.advice],
        }


def make_plan(
    asked: Asked,
    *,
    measure: bool = True,
    refresh: bool = False,
    progress: Told | None = None,
    notice: Callable[[str], None] = lambda _text: None,
) -> PlanReport:
    """What a session would decide here, and why.

    Args:
        asked: what a person said.
        measure: load the model and measure what was never measured.
        refresh: time its steps anew.
        progress: called with the loaded fraction.
        notice: told what a person should know.

    Raises:
        DoesNotFitError: there is not enough memory for it.
        ModelError: it cannot be loaded, or the draft model that was named cannot draft for it.
    """
    here = Here.of(asked, progress=progress, notice=notice)
    setup = decide(asked, here, timing=measure)
    learned = _learned(setup, here.store)
    staircase = learned.load_staircase(Staircase(MAX_WIDTH))
    if refresh or (measure and (staircase.disturbed or not staircase.depths)):
        with Session.open(asked, progress=progress, notice=notice, setup=setup) as session:
            session.set_drafter(AUTO)  # without drafts there would be nothing to measure
            if refresh:
                session.staircase.forget()
            session.measure_staircase()
        setup, learned, staircase = session.setup or setup, session.learned, session.staircase
        if asked.texts is None:  # that follows from the steps
            setup = decide(asked, replace(here, notice=silent), timing=False)
    options, unfit = _options(setup, here.store, learned, staircase)
    devices = usable_devices()
    return PlanReport(
        setup=setup,
        available=available_memory(),
        devices=tuple(devices),
        placed=_placements(setup, here.store, devices),
        steps=_steps(staircase),
        options=options,
        unfit=unfit,
        advice=_advice(setup, here.store, staircase, options),
    )


def draft_options(
    staircase: Staircase, records: dict[str, TrackRecord], forecasts: Sequence[DraftOption] = ()
) -> tuple[DraftOption, ...]:
    """Plain decoding, free drafts and draft models, best first.

    Args:
        staircase: of the target, measured.
        records: what drafters brought so far, by their names in a session.
        forecasts: draft models that were found, with what is predicted of them.
    """
    costs = staircase.costs(0)
    factor = chain_rate(costs).rate * float(costs[1])
    free = DraftOption("free drafts", factor, f"{ACCEPTANCE:.0%} of them right, assumed")
    if staircase.disturbed:  # one slow single token would promise the moon
        free, *forecasts = (replace(o, predicted=None, basis=DISTURBED) for o in (free, *forecasts))
    options = [DraftOption("none", 1.0, "plain decoding")]
    options.append(_recorded(free, records.get(AUTO)))
    for option in forecasts:
        record = records.get(f"{AUTO}, model {option.name}") or records.get(f"model, model {option.name}")
        options.append(option if record is None else _recorded(option, record))
    return tuple(sorted(options, key=lambda option: -option.value))


def _recorded(option: DraftOption, record: TrackRecord | None) -> DraftOption:
    """`option` with what was measured of it, and what the plan promised meanwhile."""
    if record is None:
        return option
    tokens = round(record.tokens)
    return replace(
        option,
        predicted=record.promised_speedup,
        basis=f"promised step by step over {tokens:,} tokens",
        measured=record.speedup,
        tokens=tokens,
    )


def _learned(setup: Setup, store: Store, kernels: str | None = None) -> Learned:
    """What is kept of the model, on the kernels of that name or on the chosen ones."""
    return Learned(store, model_key=setup.info.fingerprint, cost_key=setup.cost_key(kernels))


def _steps(staircase: Staircase) -> dict[int, float]:
    return dict(staircase.steps(0)) if 0 in staircase.depths else {}


def _placements(setup: Setup, store: Store, devices: Sequence[Device]) -> Placed | None:
    """Where the layers could go, by the costs that are kept; None where there is nothing to choose."""
    if len(devices) < 2:
        return None
    measured = load_costs(store, setup.devices_key, devices)
    if measured is None:
        return None
    return place(model_layers(setup.info, setup.load), [FREE_DRAFTS], measured.costs)


def _options(
    setup: Setup, store: Store, learned: Learned, staircase: Staircase
) -> tuple[tuple[DraftOption, ...], tuple[Unfit, ...]]:
    """Sources of drafts with what they promise, and models that cannot draft."""
    info = setup.info
    if not staircase.depths or info.plain_reason:
        return (DraftOption("none", 1.0, info.plain_reason or "plain decoding"),), ()
    found: list[Candidate | Unfit | None] = list(Finder(info, store).search())
    found.append(setup.draft)
    costs, target_bytes = staircase.costs(0), step_bytes(info)
    forecasts = {}
    for candidate in found:
        if isinstance(candidate, Candidate):
            promised = forecast(candidate, learned, costs, target_bytes)
            known = f"counted on {promised.remembered} tokens" if promised.remembered else "assumed"
            basis = f"alone, {promised.acceptance:.0%} right, {known}; {promised.token_ms:.1f} ms a token"
            forecasts[candidate.path.resolve()] = DraftOption(
                candidate.name, promised.rate / promised.plain_rate, basis, path=candidate.path
            )
    unfit = tuple(model for model in found if isinstance(model, Unfit))
    return draft_options(staircase, learned.records.all(), list(forecasts.values())), unfit


def _advice(
    setup: Setup, store: Store, staircase: Staircase, options: Sequence[DraftOption]
) -> tuple[Advice, ...]:
    """What would help, most first."""
    found: list[Advice | None] = []
    if staircase.depths and not staircase.disturbed and not setup.info.plain_reason:
        found.append(draft_advice(setup.info, staircase, max(option.value for option in options)))
    if setup.kernels.value is not None:
        stairs = {name: _learned(setup, store, name).load_staircase(Staircase(MAX_WIDTH)) for name in KERNELS}
        steps = {
            name: _steps(known) for name, known in stairs.items() if _steps(known) and not known.disturbed
        }
        found.append(kernels_advice(setup.kernels.value, steps))
    if set(setup.changes) - set(beyond_training(setup.info, setup.asked)):
        found += _memory_advice(setup)
    return tuple(sorted((advice for advice in found if advice), key=lambda advice: -advice.factor))


def _memory_advice(setup: Setup) -> list[Advice]:
    """What would give a model back what it had to do without."""
    found = []
    for small, flags in smaller_caches(setup.info, setup.load):
        saved = setup.need.kv - predict_memory(setup.info, small).kv
        if saved > 0:
            text = f"a cache in {SMALLER_TYPE} would save {gibibytes(saved)}"
            found.append(Advice(text, 1.0, flags))
            break
    wanted = predict_memory(setup.info, wanted_load(setup.info, setup.asked))
    lacking = wanted.working - (available_memory() or 0)
    if lacking > 0:
        found.append(Advice(f"closing other programs that take {gibibytes(lacking)}", 1.0))
    return found
