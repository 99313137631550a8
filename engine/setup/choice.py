"""What was decided for a run: every value with its reason. Every screen prints this and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from specx.backends.gguf.file import GGUFInfo
from specx.backends.llama.memory import MemoryNeed
from specx.backends.settings import Load
from specx.engine.settings import Asked
from specx.engine.setup import keys
from specx.engine.setup.finder import Candidate

__all__ = ["ASKED", "MEASURED", "Choice", "Setup"]

ASKED, MEASURED = "as asked", "as measured"

ValueT_co = TypeVar("ValueT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Choice(Generic[ValueT_co]):
    """A value, and why it was chosen.

    Attributes:
        value: None where there is nothing, or where it is not known yet.
        why: one clause.
    """

    value: ValueT_co
    why: str

    def __str__(self) -> str:
        value = "none" if self.value is None else self.value
        return f"{value}, {self.why}"

    def to_json(self) -> dict[str, Any]:
        """A plain value."""
        return {"value": self.value, "why": self.why}


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that was decided for a run.

    Attributes:
        asked: what it follows from.
        info: the header of the model.
        load: how it is loaded, as follows.
        context: tokens of each text.
        texts: how many there is room for at once.
        threads, threads_batch: CPU threads for one token, and for more than one.
        kernels: name of the kernels; None while they are still to be compared on the loaded model.
        placement: where the layers are, in words.
        flash_attn, cache_type_k, cache_type_v: see `Load`.
        drafter: where drafts come from.
        draft_model: name of the draft model, if there is one from the start.
        draft: that model.
        need: memory that all this takes.
        changes: one sentence for each thing that is not as it was wanted, or that is to be expected.
        snapshots: earlier states of recurrent layers that are kept of a text; None without such layers.
    """

    asked: Asked
    info: GGUFInfo
    load: Load
    context: Choice[int]
    texts: Choice[int]
    threads: Choice[int]
    threads_batch: Choice[int]
    kernels: Choice[str | None]
    placement: Choice[str]
    flash_attn: Choice[str]
    cache_type_k: Choice[str]
    cache_type_v: Choice[str]
    drafter: Choice[str]
    draft_model: Choice[str | None]
    draft: Candidate | None
    need: MemoryNeed
    changes: tuple[str, ...]
    snapshots: Choice[int] | None = None

    @property
    def name(self) -> str:
        """What to call the model."""
        return self.info.name or self.info.path.stem

    @property
    def choices(self) -> dict[str, Choice[Any]]:
        """Every choice by its name, in the order in which they are told."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, Choice)}

    @property
    def devices_key(self) -> str:
        """What kept times of the model's layers depend on, but for the devices."""
        return keys.devices_key(self.info, self.load, self.asked.kernels)

    @property
    def threads_key(self) -> str:
        """What the kept number of threads depends on."""
        return keys.threads_key(self.info, self.load, self.asked.kernels)

    @property
    def kernels_key(self) -> str:
        """What the kept choice of kernels depends on."""
        return keys.kernels_key(self.info, self.load)

    def cost_key(self, kernels: str | None = None) -> str:
        """What kept times of steps depend on, on the kernels of that name or on the chosen ones.

        Until a choice is made a model runs on specx's.
        """
        return keys.cost_key(self.info, self.load, kernels or self.kernels.value or "specx")

    def told(self) -> dict[str, str]:
        """Every choice as a sentence tells it, by its name in words."""
        return {name.replace("_", " "): str(choice) for name, choice in self.choices.items()}

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints of it: each choice as `{"value": ..., "why": ...}`, and the changes."""
        return {
            **{name: choice.to_json() for name, choice in self.choices.items()},
            "changes": list(self.changes),
        }
