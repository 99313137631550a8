"""What a person types in a chat: one message at a time, from a line editor or from plain standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from specx.cli.terminal.console import stderr
from specx.cli.terminal.files import decode

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

__all__ = ["Editor", "PlainLines", "Reader", "history_file", "is_open", "unwrap"]

QUOTES = '"""'
PROMPT, CONTINUED = "> ", "... "
MAX_HISTORY = 256 * 1024
"""Bytes of typed lines that are kept for the next run."""


class Reader(Protocol):
    """Where messages come from."""

    def read(self) -> str | None:
        """The next message, None at the end. Raises KeyboardInterrupt for Ctrl-C on an empty line."""


def is_open(text: str) -> bool:
    """Whether a message goes on: it ends in a backslash, or its three quotes have not been closed."""
    if text.lstrip().startswith(QUOTES):
        return text.count(QUOTES) < 2
    return text.endswith("\\")


def unwrap(text: str) -> str:
    """The message without its three quotes and without the backslashes of continued lines."""
    text = text.strip("\n")
    inner = text.strip()
    if inner.startswith(QUOTES):
        return inner.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return text.replace("\\\n", "\n").removesuffix("\\")


class PlainLines:
    """Messages from standard input, one a line. A prompt appears on stderr if a person is typing."""

    def __init__(self) -> None:
        self._interactive = sys.stdin.isatty() and sys.stderr.isatty()
        self._offset = 0

    def read(self) -> str | None:
        """The next message that is not empty.

        Raises:
            UsageError: the input is not UTF-8.
        """
        text = ""
        while True:
            if self._interactive:
                stderr().print(CONTINUED if text else PROMPT, end="")
            line = sys.stdin.buffer.readline()
            if not line:
                return unwrap(text) if text.strip() else None
            text += decode(line, f"standard input (after {self._offset} bytes)")
            self._offset += len(line)
            if not is_open(text.rstrip("\r\n")) and text.strip():
                return unwrap(text.replace("\r\n", "\n"))


class Editor:
    """Messages from prompt_toolkit: editing, history, several lines.

    Enter sends, unless the message is still open; Alt-Enter always begins a new line.

    Args:
        history: file of earlier messages, None keeps none.
        commands: names to complete after a slash.
    """

    def __init__(self, history: Path | None, commands: Sequence[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)) if history else InMemoryHistory(),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            multiline=True,
            prompt_continuation=CONTINUED,
            key_bindings=_keys(),
            enable_open_in_editor=True,
        )

    def read(self) -> str | None:
        """The next message that is not empty."""
        while True:
            try:
                text = self._session.prompt(PROMPT)
            except EOFError:
                return None
            if text.strip():
                return unwrap(text)


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _alt_enter(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _interrupt(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    return keys


def history_file() -> Path | None:
    """The file of typed messages, readable by the user only and cut to `MAX_HISTORY`; None if the cache
    directory cannot be written."""
    from specx.backends.store import cache_dir

    path = cache_dir() / "history" / "chat.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            data = file.read()
            if len(data) > MAX_HISTORY:
                tail = data[-MAX_HISTORY:]
                file.seek(0)
                file.write(tail[max(tail.find(b"\n# "), 0) :])
                file.truncate()
    except OSError:
        return None
    return path
