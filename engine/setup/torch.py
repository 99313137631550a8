"""Whether there is what heads learn with, which is asked before anything that takes long."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from specx.backends.errors import SpecxError, UsageError
from specx.backends.llama.libllama import lib

if TYPE_CHECKING:
    import torch

__all__ = ["DEVICES", "check_torch", "training_device"]

DEVICES = ("auto", "cpu", "cuda", "mps")


def check_torch(what: str) -> None:
    """Raises SpecxError if torch, which `what` needs, is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise SpecxError(f"{what} needs torch, which is not installed", 'pip install "specx[train]"')


def training_device(asked: str) -> torch.device:
    """What is trained on.

    Args:
        asked: one of `DEVICES`; with `auto` it is a GPU that torch can use, if there is one.

    Raises:
        UsageError: torch cannot use it here.
    """
    lib()  # before torch, which takes the OpenMP that is loaded, and this one does not spin
    import torch

    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if usable[name]))
    if not usable.get(asked):
        there = ", ".join(name for name, works in usable.items() if works)
        raise UsageError(
            f"torch {torch.__version__} cannot use {asked} here",
            f"--device {there}, or install a torch for this GPU" if asked in usable else f"--device {there}",
        )
    return torch.device(asked)
