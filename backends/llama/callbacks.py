"""Which functions the C library calls.

ctypes swallows what is raised in such a function, and a signal that came while C was at work is handled in
the first one it calls: before anything that the function could catch. So whoever handles Ctrl-C has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, TypeVar

__all__ = ["called_by_c", "interruptible", "within_c"]

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


@contextmanager
def interruptible(module: Any, context: Any, call: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Make `call` after every operation of a llama_context; raising there ends what libllama computes.

    llama.cpp's own kernels ask after every operation, specx's at every barrier, and GPUs not at all.

    Args:
        module: llama_cpp.
        context: the llama_context.
        call: may raise.

    Yields:
        What it has raised.
    """
    raised: list[BaseException] = []

    @called_by_c
    def on_operation(_data: Any) -> bool:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 -- ctypes would swallow it; the caller raises it again
            raised.append(error)
        return bool(raised)

    callback = module.ggml_abort_callback(on_operation)
    module.llama_set_abort_callback(context, callback, None)
    try:
        yield raised
    finally:
        module.llama_set_abort_callback(context, module.ggml_abort_callback(), None)
