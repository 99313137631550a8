"""Opening a model: the one way from what was asked for to a model that is loaded, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace

from specx.engine.settings import Asked
from specx.engine.setup.choice import Setup
from specx.engine.setup.decide import decide
from specx.engine.setup.here import Here
from specx.engine.setup.kernel_times import SwitchableModel
from specx.engine.setup.load import load_chosen
from specx.engine.setup.torch import check_torch

__all__ = ["Opened", "open_model"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded model.

    Attributes:
        model: the model.
        setup: everything that was decided for it, its kernels included.
    """

    model: SwitchableModel
    setup: Setup


def open_model(asked: Asked, here: Here, setup: Setup | None = None) -> Opened:
    """Decide how to load a model unless that was done, load it, and tell every decision.

    Args:
        asked: what a person said.
        here: where measurements are kept, and who is told.
        setup: what `decide` gave.

    Raises:
        DoesNotFitError: there is not enough memory for it.
        SpecxError: heads are to learn, and torch is not installed.
        ModelError: it cannot be loaded; what can be said from the file itself is said first.
    """
    if asked.adapt:
        check_torch("--adapt")
    setup = setup or decide(asked, here)
    for name, choice in setup.told().items():
        if name != "kernels":
            here.explain(f"{name}: {choice}")
    chosen = load_chosen(setup.info, setup.load, setup.kernels, here)
    here.explain(f"kernels: {chosen.kernels}")
    return Opened(chosen.model, replace(setup, kernels=chosen.kernels))
