"""Every drafter by its name: those that come with specx, and those that other packages register.

A package registers one under the entry-point group `specx.drafters`: its name is what `--drafter` takes, and
the object is called with the target's vocabulary and gives a `Drafter`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from specx.backends.base import Model, Vocab, Want
from specx.backends.errors import SpecxError, UsageError
from specx.drafters.base import Drafter
from specx.drafters.none import NoDrafter

__all__ = ["GROUP", "Entry", "Known", "extract_for", "find", "names"]

GROUP = "specx.drafters"


class Known(Protocol):
    """What drafters of one model start from."""

    @property
    def vocab(self) -> Vocab:
        """The target's vocabulary."""

    def free(self, sources: Sequence[str]) -> Drafter:
        """A drafter of these free sources, with everything that was learned of this model."""


@dataclass(frozen=True, slots=True)
class Entry:
    """How a drafter is made.

    Attributes:
        build: from what is known of the target.
        guessers: whether sources that cost time, such as draft models, are asked as well.
        named: whether it needs one that was named.
    """

    build: Callable[[Known], Drafter]
    guessers: bool = False
    named: bool = False


BUILT_IN: dict[str, Entry] = {
    "auto": Entry(lambda known: known.free(("suffix", "recycle")), guessers=True),
    "none": Entry(lambda _known: NoDrafter()),
    "free": Entry(lambda known: known.free(("suffix", "recycle"))),
    "suffix": Entry(lambda known: known.free(("suffix",))),
    "recycle": Entry(lambda known: known.free(("recycle",))),
    "model": Entry(lambda _known: NoDrafter(), guessers=True, named=True),
}


def names() -> tuple[str, ...]:
    """Every name, those that come with specx first."""
    from importlib.metadata import entry_points

    registered = sorted(point.name for point in entry_points(group=GROUP))
    return (*BUILT_IN, *(name for name in registered if name not in BUILT_IN))


def find(name: str) -> Entry:
    """The drafter of that name.

    Raises:
        UsageError: there is none, or its package cannot be imported.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP, name=name):
        try:
            factory = point.load()
        except Exception as problem:  # a package of somebody else: anything can come out of it
            raise UsageError(
                f"the drafter {name!r} of {point.value} cannot be loaded: {problem}",
                "update or remove the package that registers it",
            ) from problem
        return Entry(partial(_build, name, factory))
    raise UsageError(f"there is no drafter {name!r}", f"choose one of {', '.join(names())}")


def extract_for(drafter: Drafter, model: Model) -> str | None:
    """Have `model` give the hidden states that a drafter needs; why it cannot (one clause), or None."""
    if Want.HIDDEN not in drafter.needs:
        return None
    if Want.HIDDEN not in model.facts.extractable:
        return "this model does not give them"
    if not drafter.layers:
        return "it does not say of which layers"
    try:
        model.extract(drafter.layers)
    except (SpecxError, ValueError) as error:
        return str(error)
    return None


def _build(name: str, factory: Callable[[Vocab], Drafter], known: Known) -> Drafter:
    drafter = factory(known.vocab)
    if not (isinstance(drafter, Drafter) and drafter.source_names):
        raise UsageError(
            f"the drafter {name!r} is no `Drafter`, or has no `source_names`",
            "it is a subclass of specx.drafters.base.Drafter: see docs/extending.md",
        )
    return drafter
