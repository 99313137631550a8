"""Earlier messages, which arrow up brings back as they were sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.history import FileHistory, History

from specx.cli.terminal.files import whole_text
from specx.cli.terminal.typed import QUOTES, is_open, unwrap

__all__ = ["MessageHistory"]


class MessageHistory(History):
    """Messages of this run, and of earlier ones if there is a file.

    Args:
        path: the file, or None. One that can no longer be written is no reason to end a conversation.
        message: what the text that is about to be kept was sent as.
    """

    def __init__(self, path: Path | None, message: Callable[[], str]) -> None:
        super().__init__()
        self._file = None if path is None else FileHistory(str(path))
        self._message = message

    def load_history_strings(self) -> Iterable[str]:
        """Messages of earlier runs, the last one first."""
        if self._file is not None:
            with suppress(OSError):
                yield from self._file.load_history_strings()

    def append_string(self, string: str) -> None:
        """Keep a message as typing it would make it, unless `string` already is that."""
        super().append_string(whole_text(typed(string, self._message())))

    def store_string(self, string: str) -> None:
        """Write it down for later runs."""
        if self._file is not None:
            with suppress(OSError):
                self._file.store_string(string)


def typed(text: str, message: str) -> str:
    """`text` if typing it sends `message`, else what does.

    They differ where something was pasted: it means nothing as syntax, and would if it were typed.
    """
    if not is_open(text) and unwrap(text) == message:
        return text
    return f"{QUOTES}\n{message}\n{QUOTES}"
