"""How far a text can go back whose layers keep a recurrent state.

Such a layer keeps no token apart, so nothing can be cut off its end. libllama keeps the states after each of
the last tokens of a call (`n_rs_seq`), and going back takes one of those: once, as it is gone with the next
call, and never to before that call, whatever libllama says. Beyond that there is a copy of the state at one
length, taken when somebody asked for it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["States"]


class States:
    """The recurrent states of one text.

    Args:
        module: llama_cpp.
        context: the llama_context.
        kept: states of earlier tokens that libllama keeps of a call.
        marking: whether a copy of the state says everything of the text that is not cut off its end.

    Attributes:
        kept: see there.
    """

    def __init__(self, module: Any, context: Any, kept: int, *, marking: bool) -> None:
        self.kept = kept
        self._lib, self._context, self._marking = module, context, marking
        self._behind = 0
        self._marked: int | None = None
        self._copy: NDArray[np.uint8] | None = None

    def computed(self, tokens: int, committed: int) -> None:
        """A call of `tokens` was made, of which the first `committed` stay."""
        self._behind = min(self.kept, tokens - 1) if committed == tokens else 0

    def reusable(self, length: int, present: int) -> int:
        """Largest length not above `length` that can be gone back to from `present`."""
        if length >= present - self._behind and length > 0:
            return min(length, present)
        return self._marked if self._marked is not None and self._marked <= length else 0

    def take_copy(self, sequence: int, length: int) -> bool:
        """Keep a copy of the state of `sequence` after `length` tokens; whether that can be done."""
        if not self._marking or not length:
            return not length
        if self._marked == length:
            return True
        flags, self._marked = self._lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY, None
        size = int(self._lib.llama_state_seq_get_size_ext(self._context, sequence, flags))
        if self._copy is None or len(self._copy) != size:
            self._copy = np.empty(size, np.uint8)
        buffer = self._copy.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if self._lib.llama_state_seq_get_data_ext(self._context, buffer, size, sequence, flags) == size > 0:
            self._marked = length
        return self._marked == length

    def go_back(self, sequence: int, length: int, present: int) -> bool:
        """Bring the state of `sequence` back to `length` tokens, or to where libllama can cut the rest off;
        whether that was done."""
        cut, self._behind = length >= present - self._behind, 0
        if self._marked is not None and self._marked > length:
            self._marked = None
        if cut or self._copy is None:
            return cut
        buffer = self._copy.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        flags, size = self._lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY, len(self._copy)
        taken = self._lib.llama_state_seq_set_data_ext(self._context, buffer, size, sequence, flags)
        return bool(taken == size)

    def forget(self) -> None:
        """The text is empty."""
        self._behind, self._marked = 0, None
