"""What one rendering of a chat template may do, in bytes of work."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

__all__ = ["MAX_BITS", "TURN", "Budget", "ExhaustedError"]

MAX_BITS = 1024
"""Bits of a whole number; arithmetic on longer ones takes more than linear time."""

TURN, NODE = 256, 64
"""What a turn of a loop or a call, and looking at one value inside another, cost in bytes of work."""

_EMPTY = dict[str, str]()
_VIEWS = (type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items()))
_SEQUENCES: tuple[type[Any], ...] = (list, tuple, set, frozenset, range, *_VIEWS)
_SIZED: tuple[type[Any], ...] = (*_SEQUENCES, dict)
_CONTAINERS = (*_SIZED, Namespace)


class ExhaustedError(SecurityError):
    """A template has done more than it may."""

    def __init__(self) -> None:
        super().__init__("it takes too much time or memory")


class Budget:
    """What one rendering may still do, in bytes of work: about a nanosecond, or a byte of memory, each.

    Args:
        work: how much that is.
    """

    def __init__(self, work: int) -> None:
        self.left = work

    def spend(self, work: int) -> None:
        """Take `work` away.

        Raises:
            ExhaustedError: so much is not left.
        """
        self.left -= work
        if self.left < 0:
            raise ExhaustedError

    def check(self, work: int) -> None:
        """Raises ExhaustedError if `work`, which is not taken away, is more than what is left."""
        if work > self.left:
            raise ExhaustedError

    def weigh(self, value: Any) -> int:
        """Pay for reading through a value and all it holds, as often as it holds it; returns what that cost.

        A list that holds another twice, which holds another twice, and so on, is small and yet without end
        for whoever prints or compares it.
        """
        before = self.left
        if type(value) is str or isinstance(value, str | bytes):
            self.spend(len(value))
        elif isinstance(value, _CONTAINERS):
            self._weigh_elements([value])
        return before - self.left

    def _weigh_elements(self, pending: list[Any]) -> None:
        while pending:
            each = pending.pop()
            if isinstance(each, str | bytes):
                self.spend(NODE + len(each))
                continue
            if isinstance(each, Namespace):
                each = getattr(each, "_Namespace__attrs")  # noqa: B009 (a private name of that class)
            if isinstance(each, dict):
                self.spend(NODE * (1 + 2 * len(each)))
                pending += each
                pending += each.values()
            elif isinstance(each, range):
                self.spend(NODE * (1 + len(each)))
            elif isinstance(each, _SEQUENCES):
                self.spend(NODE * (1 + len(each)))
                pending += each
            else:
                self.spend(NODE)

    def look(self, value: Any) -> int:
        """Pay for going through a value, but not through what it holds; returns what that cost."""
        work = 0
        if isinstance(value, str | bytes):
            work = len(value)
        elif isinstance(value, _SIZED):
            work = NODE * len(value)
        self.spend(work)
        return work

    def made(self, value: Any) -> Any:
        """Pay for a new value; returns it."""
        if isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise SecurityError("a number is too large")
        elif isinstance(value, str | list | tuple | dict):
            self.spend(sys.getsizeof(value))
        return value

    def listed(self, values: Iterable[Any]) -> list[Any]:
        """All of an iterator, paid for one by one."""
        taken: list[Any] = []
        for value in values:
            self.spend(TURN)
            taken.append(value)
        return taken
