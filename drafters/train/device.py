"""What a head is trained on."""

from __future__ import annotations

import torch

from specx.backends.errors import UsageError
from specx.backends.llama.libllama import lib

__all__ = ["training_device"]


def training_device(asked: str) -> str:
    """The name that torch has for what is trained on.

    Args:
        asked: `cpu`, `cuda`, `mps`, or `auto`: a GPU that torch can use, if there is one.

    Raises:
        UsageError: torch cannot use it here.
    """
    lib()  # before torch, which takes the OpenMP that is loaded, and this one does not spin
    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if usable[name])
    if not usable.get(asked):
        there = ", ".join(name for name, works in usable.items() if works)
        raise UsageError(
            f"torch {torch.__version__} cannot use {asked} here",
            f"--device {there}, or install a torch for this GPU" if asked in usable else f"--device {there}",
        )
    return asked
