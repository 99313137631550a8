"""Files that end the process when they are opened: a damaged one that passes every check of its header.

Draft models are found, not asked for: such a file must not end a healthy model's answers again and again.
What is being opened is noted in the store before, and the note is taken back after.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from specx.backends.llama.last_words import ending_with
from specx.backends.store import Store

__all__ = ["ended_specx", "opening"]

KIND = "opening"
FATAL = 3
"""Processes that ended meanwhile, of whatever: one or two of them may have been killed, or run still. Where
llama.cpp gave up, that is known, and counts as many."""


@contextmanager
def opening(store: Store, fingerprint: str) -> Iterator[None]:
    """Inside, the file of this `fingerprint` is opened and asked for the first time."""
    store.save_json(KIND, fingerprint, {"ended": _ended(store, fingerprint) + 1})
    try:
        with ending_with(lambda: store.save_json(KIND, fingerprint, {"ended": FATAL})):
            yield
    finally:
        store.remove(KIND, fingerprint)


def ended_specx(store: Store, fingerprint: str) -> bool:
    """Whether the file of this `fingerprint` ended specx when it was opened."""
    return _ended(store, fingerprint) >= FATAL


def _ended(store: Store, fingerprint: str) -> int:
    ended = (store.load_json(KIND, fingerprint) or {}).get("ended")
    return ended if isinstance(ended, int) else 0
