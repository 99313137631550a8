"""Whether there is what heads learn with, which is asked before anything that takes long."""

from __future__ import annotations

import importlib.util

from specx.backends.errors import SpecxError

__all__ = ["check_torch"]


def check_torch(what: str) -> None:
    """Raises SpecxError if torch, which `what` needs, is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise SpecxError(f"{what} needs torch, which is not installed", "pip install 'torch>=2.7'")
