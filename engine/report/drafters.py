"""What can draft for a model here, how good it is, and why the rest cannot: `specx drafter list`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specx.backends.errors import ModelError
from specx.backends.gguf.file import GGUFInfo, read_gguf
from specx.backends.llama.memory import predict_memory
from specx.engine.cost.staircase import Staircase
from specx.engine.forecast import forecast
from specx.engine.learned.knowledge import Learned
from specx.engine.settings import Asked
from specx.engine.setup.choice import Setup
from specx.engine.setup.decide import decide
from specx.engine.setup.finder import Candidate, Finder, Forecast, Unfit, check_candidate
from specx.engine.setup.here import Here
from specx.engine.setup.layers import step_bytes
from specx.engine.setup.wanted import draft_load

__all__ = ["DrafterReport", "Target", "Usable", "list_drafters", "made_of"]

MAX_WIDTH = 32  # of the steps that are reckoned with
MADE = "specx.made."  # of the metadata of what specx has made


@dataclass(frozen=True, slots=True)
class Usable:
    """A model that can draft.

    Attributes:
        forecast: what it promises.
        measured: whether the time of its tokens was measured, and not told from its bytes.
        memory: bytes that it takes beside the target.
        made: how specx made it and from what, if it did.
    """

    forecast: Forecast
    measured: bool
    memory: int
    made: str

    @property
    def speedup(self) -> float:
        """Expected, in times of plain decoding."""
        return self.forecast.rate / self.forecast.plain_rate

    def to_json(self, *, known: bool) -> dict[str, Any]:
        """A plain value; what follows from the times of the target's steps only if these are `known`."""
        candidate = self.forecast.candidate
        return {
            "name": candidate.name,
            "path": str(candidate.path),
            "size": candidate.size,
            "memory": self.memory,
            "translated": candidate.translated,
            "head": candidate.is_head,
            "made": self.made or None,
            "acceptance": self.forecast.acceptance,
            "counted_on": self.forecast.remembered,
            "token_ms": self.forecast.token_ms if known or self.measured else None,
            "token_ms_measured": self.measured,
            "predicted": self.speedup if known else None,
        }


@dataclass(frozen=True, slots=True)
class DrafterReport:
    """What can draft for a model.

    Attributes:
        model: its file.
        name: what to call it.
        plain_reason: why nothing can, if it decodes plainly.
        known: whether the times of its steps were measured, on which every prediction rests.
        usable: what can, best first.
        unfit: what cannot.
    """

    model: Path
    name: str
    plain_reason: str | None
    known: bool
    usable: tuple[Usable, ...]
    unfit: tuple[Unfit, ...]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "model": str(self.model),
            "name": self.name,
            "plain_reason": self.plain_reason,
            "measured": self.known,
            "drafters": [usable.to_json(known=self.known) for usable in self.usable],
            "unfit": [
                {"name": unfit.name, "path": str(unfit.path), "reason": unfit.reason} for unfit in self.unfit
            ],
        }


class Target:
    """A model as far as drafting for it is concerned: nothing of it is loaded.

    Args:
        asked: the model, and how it is run.
        notice: told what a person should know.

    Attributes:
        setup: what was decided for it.
        known: whether the times of its steps are known: nothing follows from those of a busy machine.

    Raises:
        DoesNotFitError: there is not enough memory for it.
        ModelError: it cannot be read or run.
    """

    def __init__(self, asked: Asked, notice: Callable[[str], None]) -> None:
        self._here = Here.of(asked, notice=notice)
        self.setup: Setup = decide(asked, self._here, timing=False)
        self._learned = Learned(
            self._here.store, model_key=self.info.fingerprint, cost_key=self.setup.cost_key()
        )
        self._staircase = self._learned.load_staircase(Staircase(MAX_WIDTH))
        self.known = bool(self._staircase.depths) and not self._staircase.disturbed

    @property
    def info(self) -> GGUFInfo:
        """Its header."""
        return self.setup.info

    def search(self) -> list[Candidate | Unfit]:
        """Every model of this machine that is smaller: what can draft, and what cannot."""
        return [found for found in Finder(self.info, self._here.store).search() if found is not None]

    def check(self, path: Path) -> Candidate | Unfit:
        """Whether one file can draft."""
        return check_candidate(self.info, path)

    def usable(self, candidate: Candidate) -> Usable:
        """What is known of a candidate.

        Raises:
            ModelError: its file cannot be read any more.
        """
        info = read_gguf(candidate.path)
        load = draft_load(self.setup.asked, candidate.path, self.setup.load, head=candidate.is_head)
        memory = predict_memory(self.info, self.setup.load, draft=(info, load)).draft
        promised = forecast(candidate, self._learned, self._staircase.costs(0), step_bytes(self.info))
        measured = self._learned.load_pair(candidate.fingerprint)[1] is not None
        return Usable(promised, measured, memory, made_of(info))


def list_drafters(asked: Asked, notice: Callable[[str], None] = lambda _text: None) -> DrafterReport:
    """What on this machine can draft for a model.

    Args:
        asked: the model, and how it is run.
        notice: told what a person should know.

    Raises:
        DoesNotFitError: there is not enough memory for it.
        ModelError: it cannot be read or run.
    """
    target = Target(asked, notice)
    usable: list[Usable] = []
    unfit: list[Unfit] = []
    for found in () if target.info.plain_reason else target.search():
        if isinstance(found, Unfit):
            unfit.append(found)
            continue
        try:
            usable.append(target.usable(found))
        except ModelError as error:  # it changed since it was examined
            unfit.append(Unfit(found.path, found.name, error.message))
    usable.sort(key=lambda each: -each.speedup)
    return DrafterReport(
        model=target.info.path,
        name=target.setup.name,
        plain_reason=target.info.plain_reason,
        known=target.known,
        usable=tuple(usable),
        unfit=tuple(unfit),
    )


def made_of(info: GGUFInfo) -> str:
    """How specx made a file and from what ("shrink of model.gguf, layers=12"); empty if it did not."""
    how, source, parameters, before = (
        str(info.metadata.get(MADE + key, "")) for key in ("how", "from", "parameters", "before")
    )
    return f"{how} of {source}, {parameters}" + (f", before: {before}" if before else "") if how else ""
