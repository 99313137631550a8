"""Which functions the C library calls.

ctypes swallows what is raised in such a function, and a signal that came while C was at work is handled in
the first one it calls: before anything that the function could catch. So whoever handles Ctrl-C has to know.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FrameType
from typing import TypeVar

__all__ = ["called_by_c", "within_c"]

Function = TypeVar("Function", bound=Callable[..., object])

_codes: set[CodeType] = set()


def called_by_c(function: Function) -> Function:
    """Decorates a function that becomes a callback of ctypes."""
    _codes.add(function.__code__)
    return function


def within_c(frame: FrameType | None) -> bool:
    """Whether an exception raised in `frame` would end in a callback instead of reaching its caller."""
    while frame is not None:
        if frame.f_code in _codes:
            return True
        frame = frame.f_back
    return False
