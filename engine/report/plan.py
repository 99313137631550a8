"""The whole reasoning about one model on this machine, with its numbers: what `specx plan` shows.

Everything here is what a session would decide, found the same way and from the same measurements, so this is
also where predictions meet what was measured since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specx.backends.gguf.checks import read_runnable
from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama.devices import Device
from specx.backends.llama.kernels import KERNELS
from specx.backends.llama.memory import MemoryNeed, predict_memory
from specx.backends.llama.params import decode_threads
from specx.backends.machine.machine import available_memory
from specx.backends.settings import LoadSettings
from specx.backends.store import Store, user_store
from specx.engine.cost.staircase import Staircase
from specx.engine.drafting import forecast
from specx.engine.learned.knowledge import Learned
from specx.engine.learned.records import TrackRecord
from specx.engine.report.advice import Advice, draft_advice, kernels_advice
from specx.engine.session import Session
from specx.engine.setup.draft_files import NamedDraft, named_draft
from specx.engine.setup.explain import gibibytes
from specx.engine.setup.finder import Candidate, Finder, Unfit
from specx.engine.setup.fit import Fit, fit_here
from specx.engine.setup.kernels import remembered_choice
from specx.engine.setup.layers import model_layers, step_bytes
from specx.engine.setup.loading import cost_key, fit_and_place, kernels_key, load_library, threads_key
from specx.engine.setup.offloading import FREE_DRAFTS, load_costs, usable_devices
from specx.engine.setup.placement import ACCEPTANCE, Placed, best_chain, place
from specx.engine.setup.threads import with_measured_threads

__all__ = ["DraftOption", "PlanReport", "draft_options", "make_plan"]

MAX_WIDTH = 32  # of the steps that are shown and reckoned with
SURE_TOKENS = 256  # from which on a remembered speedup counts for more than a predicted one
AUTO = "auto"
SMALL_CACHE = "q8_0"
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
        if self.measured is not None and (self.tokens >= SURE_TOKENS or self.predicted is None):
            return self.measured
        return self.predicted or 0.0


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What would be decided.

    Attributes:
        model: the file.
        name: of the model.
        need: memory it takes.
        available: main memory there is; None if that cannot be read.
        changes: what was changed so that it fits.
        devices: the host and the GPUs.
        placed: where the layers go, of the devices that were timed; None where there is a choice and nothing
            was measured.
        threads: for decoding one token.
        threads_measured: whether that was measured.
        kernels: whose kernels; None if they were never compared.
        steps: milliseconds by tokens of a step, in an empty context; empty if nothing was measured.
        options: sources of drafts, best first.
        unfit: models on this machine that cannot draft for this one.
        advice: what would help, most first.
    """

    model: Path
    name: str
    need: MemoryNeed
    available: int | None
    changes: tuple[str, ...]
    devices: tuple[Device, ...]
    placed: Placed | None
    threads: int
    threads_measured: bool
    kernels: str | None
    steps: dict[int, float]
    options: tuple[DraftOption, ...]
    unfit: tuple[Unfit, ...]
    advice: tuple[Advice, ...]

    def to_json(self) -> dict[str, Any]:
        """What `specx plan --json` prints."""
        placed = self.placed.alternatives if self.placed else ()
        return {
            "model": str(self.model),
            "name": self.name,
            "memory": {**self.need.to_json(), "available": self.available, "changes": list(self.changes)},
            "devices": [device.to_json() for device in self.devices],
            "placement": [
                {**option.to_json(), "reason": self.placed.reason(option) if self.placed else ""}
                for option in placed
            ],
            "threads": self.threads,
            "threads_measured": self.threads_measured,
            "kernels": self.kernels,
            "staircase": {str(n): round(ms, 4) for n, ms in self.steps.items()},
            "drafters": [
                {**asdict(option), "path": str(option.path) if option.path else None}
                for option in self.options
            ],
            "unfit": [{"path": str(model.path), "reason": model.reason} for model in self.unfit],
            "advice": [asdict(advice) for advice in self.advice],
        }


def make_plan(
    settings: LoadSettings,
    *,
    measure: bool = True,
    refresh: bool = False,
    progress: Callable[[float], None] | None = None,
    notice: Callable[[str], None] = lambda _text: None,
) -> PlanReport:
    """What a session with `settings` would decide here, and why.

    Args:
        settings: how the model is to be loaded.
        measure: load it and measure what was never measured.
        refresh: time its steps anew.
        progress: called with the loaded fraction.
        notice: told what a person should know.

    Raises:
        DoesNotFitError: there is not enough memory for it.
        ModelError: it cannot be loaded, or the draft model that was named cannot draft for it.
    """
    info = read_runnable(settings.model)
    named = named_draft(info, settings)
    store = user_store(settings.store, notice)
    load_library()
    devices_key = threads_key(info, settings)
    fitted, devices = _fitted(info, settings, store, measure, progress, notice), usable_devices()
    settings = with_measured_threads(fitted.settings, store, threads_key(info, fitted.settings))
    learned, kernels, staircase = _known(info, settings, store)
    if refresh or (measure and not staircase.depths):
        session = _measured_session(settings, refresh, progress, notice)
        learned, staircase = session.learned, session.staircase
        kernels = session.model.kernels.name if hasattr(session.model, "kernels") else kernels
    options, unfit = _options(info, named, store, learned, staircase)
    return PlanReport(
        model=settings.model,
        name=info.name or settings.model.stem,
        need=fitted.need,
        available=available_memory(),
        changes=fitted.changes,
        devices=tuple(devices),
        placed=_placements(info, settings, store, devices_key, devices),
        threads=decode_threads(settings),
        threads_measured=settings.threads is not None,
        kernels=kernels,
        steps=_steps(staircase),
        options=options,
        unfit=unfit,
        advice=_advice(info, settings, store, fitted, kernels, staircase, options),
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
    _, gain, ms = best_chain(ACCEPTANCE, costs, 0.0)
    free = DraftOption("free drafts", gain / ms * float(costs[1]), f"{ACCEPTANCE:.0%} of them right, assumed")
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
        basis=f"promised step by step over {tokens} tokens",
        measured=record.speedup,
        tokens=tokens,
    )


def _fitted(
    info: GGUFInfo,
    settings: LoadSettings,
    store: Store,
    measure: bool,
    progress: Callable[[float], None] | None,
    notice: Callable[[str], None],
) -> Fit:
    """How it would be loaded; GPUs are not timed unless that is allowed."""
    devices = usable_devices()
    if not measure and len(devices) > 1 and load_costs(store, threads_key(info, settings), devices) is None:
        return fit_here(info, settings, notice)
    return fit_and_place(info, settings, store, progress, notice)


def _known(info: GGUFInfo, settings: LoadSettings, store: Store) -> tuple[Learned, str | None, Staircase]:
    """What is kept of the model: everything learned, the name of its kernels, the times of its steps."""
    kernels = settings.kernels if settings.kernels in KERNELS else None
    kernels = kernels or remembered_choice(store, kernels_key(info, settings))
    learned = _learned(info, settings, store, kernels or "")
    return learned, kernels, learned.load_staircase(Staircase(MAX_WIDTH))


def _learned(info: GGUFInfo, settings: LoadSettings, store: Store, kernels: str) -> Learned:
    key = cost_key(info, settings, kernels)
    return Learned(store, model_key=info.fingerprint, cost_key=key)


def _measured_session(
    settings: LoadSettings,
    refresh: bool,
    progress: Callable[[float], None] | None,
    notice: Callable[[str], None],
) -> Session:
    """A session that has timed the steps of its model and was closed."""
    with Session.open(replace(settings, drafter=AUTO), progress=progress, notice=notice) as session:
        if refresh:
            session.staircase.load_json({})
        session.measure_staircase()
    return session


def _steps(staircase: Staircase) -> dict[int, float]:
    return dict(staircase.steps(0)) if 0 in staircase.depths else {}


def _placements(
    info: GGUFInfo, settings: LoadSettings, store: Store, key: str, devices: Sequence[Device]
) -> Placed | None:
    """Where the layers could go, by the costs that are kept; None where there is nothing to choose."""
    if len(devices) < 2:
        return None
    measured = load_costs(store, key, devices)
    return None if measured is None else place(model_layers(info, settings), [FREE_DRAFTS], measured.costs)


def _options(
    info: GGUFInfo, named: NamedDraft | None, store: Store, learned: Learned, staircase: Staircase
) -> tuple[tuple[DraftOption, ...], tuple[Unfit, ...]]:
    """Sources of drafts with what they promise, and models that cannot draft."""
    if not staircase.depths or info.plain_reason:
        return (DraftOption("none", 1.0, info.plain_reason or "plain decoding"),), ()
    found: list[Candidate | Unfit | None] = list(Finder(info, store).search())
    if named is not None:
        found.append(named.candidate)
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
    info: GGUFInfo,
    settings: LoadSettings,
    store: Store,
    fitted: Fit,
    kernels: str | None,
    staircase: Staircase,
    options: Sequence[DraftOption],
) -> tuple[Advice, ...]:
    """What would help, most first."""
    found: list[Advice | None] = []
    if staircase.depths and not staircase.disturbed and not info.plain_reason:
        found.append(draft_advice(info, staircase, max(option.value for option in options)))
    if kernels is not None:
        stairs = {
            name: _learned(info, settings, store, name).load_staircase(Staircase(MAX_WIDTH))
            for name in KERNELS
        }
        steps = {name: _steps(known) for name, known in stairs.items() if _steps(known)}
        found.append(kernels_advice(kernels, steps))
    if fitted.changes:
        found += _memory_advice(info, fitted)
    return tuple(sorted((advice for advice in found if advice), key=lambda advice: -advice.factor))


def _memory_advice(info: GGUFInfo, fitted: Fit) -> list[Advice]:
    """What would give a model back what it had to do without."""
    need, wanted = fitted.need, replace(fitted.settings, n_ctx=None)
    small = predict_memory(info, replace(fitted.settings, type_k=SMALL_CACHE, type_v=SMALL_CACHE))
    found = []
    if small.kv < need.kv:
        saved = gibibytes(need.kv - small.kv)
        text = f"a cache in {SMALL_CACHE} would save {saved}"
        found.append(Advice(text, 1.0, f"-ctk {SMALL_CACHE} -ctv {SMALL_CACHE}"))
    lacking = predict_memory(info, wanted).working - (available_memory() or 0)
    if lacking > 0:
        found.append(Advice(f"closing other programs that take {gibibytes(lacking)}", 1.0))
    return found
