"""Settings that are given by their names in Python: what each may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from specx.backends.errors import UsageError
from specx.backends.llama.kernels import KERNELS
from specx.backends.settings import CACHE_TYPES, MAX_THREADS
from specx.engine.settings import Asked, AskedModel

__all__ = ["check_values"]

BOUNDS: Mapping[str, tuple[int, int | None]] = {
    "n_ctx": (0, None),
    "texts": (1, None),
    "threads": (1, MAX_THREADS),
    "threads_batch": (1, MAX_THREADS),
    "n_gpu_layers": (-1, None),
    "n_batch": (1, None),
    "n_ubatch": (1, None),
    "draft_max": (0, None),
}
"""The least and the most of numbers."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "kernels": ("auto", *KERNELS),
    "flash_attn": ("on", "off", "auto"),
    "type_k": CACHE_TYPES,
    "type_v": CACHE_TYPES,
}


def check_values(asked: Mapping[str, Any]) -> None:
    """Refuse settings of `Asked` that there are not, and values that they cannot have.

    Raises:
        UsageError: one is wrong.
    """
    known = {field.name for field in fields(Asked)} - {"model"}
    if unknown := sorted(asked.keys() - known):
        raise UsageError(f"there is no setting {unknown[0]!r}", f"settings are {', '.join(sorted(known))}")
    open_ = {field.name for field in fields(Asked) if field.default is None}
    for name, value in asked.items():
        if value is not None or name not in open_:
            _check(name, value)


def _check(name: str, value: Any) -> None:
    if name in BOUNDS:
        least, most = BOUNDS[name]
        number = isinstance(value, int) and not isinstance(value, bool)
        if not number or value < least or (most is not None and value > most):
            allowed = f"{least} or more" if most is None else f"{least} to {most}"
            raise UsageError(f"{name} is {value!r}, and must be {allowed}")
    elif name in CHOICES and value not in CHOICES[name]:
        raise UsageError(f"{name} is {value!r}", f"choose one of {', '.join(CHOICES[name])}")
    elif name == "draft" and not isinstance(value, AskedModel):
        raise UsageError(f"draft is {value!r}", "give specx.engine.settings.AskedModel(Path(FILE))")
