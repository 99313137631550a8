"""What a person types in a chat: one message at a time, from a line editor or from plain standard input."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from specx.backends.errors import UsageError
from specx.backends.printable import is_text
from specx.cli.terminal.console import stderr
from specx.cli.terminal.files import decode, read_line
from specx.cli.terminal.pasting import Pasted, plain
from specx.cli.terminal.restore import changed
from specx.cli.terminal.typed import is_open, unwrap

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

__all__ = ["Editor", "PlainLines", "Reader", "history_file"]

PROMPT, CONTINUED = "> ", "... "
LEFT_PROMPT = "\x1b[?2004l\x1b[?1l\x1b[?25h\x1b[0m\r\n"
"""Sent to a terminal, it undoes what the line editor does: bracketed paste, keys, cursor and colours."""

MAX_HISTORY = 256 * 1024
"""Bytes of typed lines that are kept for the next run."""


class Reader(Protocol):
    """Where messages come from."""

    def read(self) -> str | None:
        """The next message, None at the end. Raises KeyboardInterrupt for Ctrl-C on an empty line."""

    def interrupt(self) -> None:
        """Have `read` raise KeyboardInterrupt. From a signal handler, while it reads."""


class PlainLines:
    """Messages from standard input, one a line. A prompt appears on stderr if a person is typing."""

    def __init__(self) -> None:
        self._interactive = sys.stdin.isatty() and sys.stderr.isatty()
        self._offset = 0
        self._ended = False

    def read(self) -> str | None:
        """The next message that is not empty.

        Raises:
            UsageError: the message is not UTF-8; the next call gives the one after it.
            FileError: nothing can be read; the next call gives None.
        """
        if self._ended:
            return None
        data = b""
        while True:
            if self._interactive:
                stderr().print(CONTINUED if data else PROMPT, end="")
            self._ended = True  # unless there is a line
            line = read_line(len(data))
            self._ended = False
            data += line
            # Bytes that are not UTF-8 must not change where the message ends.
            text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
            if line and (is_open(text.rstrip("\r\n")) or not text.strip()):
                continue
            begun, self._offset = self._offset, self._offset + len(data)
            if not text.strip():
                return None
            return unwrap(decode(data, f"standard input (after {begun} bytes)").replace("\r\n", "\n"))

    def interrupt(self) -> None:
        """Have `read` raise KeyboardInterrupt."""
        raise KeyboardInterrupt


class Editor:
    """Messages from prompt_toolkit: editing, history, several lines.

    Enter sends, unless the message is still open; Alt-Enter always begins a new line. What was pasted neither
    opens nor ends anything. Ctrl-Z stops specx until the shell lets it go on.

    Args:
        history: file of earlier messages, None keeps none.
        commands: names to complete after a slash.
    """

    def __init__(self, history: Path | None, commands: Sequence[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter

        from specx.cli.terminal.message_history import MessageHistory

        self._pasted = Pasted()
        self._message = ""
        self._session: PromptSession[str] = PromptSession(
            history=MessageHistory(history, lambda: self._message),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            multiline=True,
            prompt_continuation=CONTINUED,
            key_bindings=self._keys(),
            enable_open_in_editor=True,
        )
        buffer = self._session.default_buffer
        buffer.on_text_changed += self._edited
        buffer.accept_handler = self._sending(buffer.accept_handler)

    def read(self) -> str | None:
        """The next message that is not empty.

        Raises:
            UsageError: what was typed is not UTF-8.
        """
        while True:
            self._pasted.forget()
            try:
                with changed(lambda: "\r\n" if stderr().is_dumb_terminal else LEFT_PROMPT, self._draw):
                    text = self._session.prompt(PROMPT)
            except EOFError:
                return None
            if not is_text(text):
                raise UsageError(
                    "the message is not valid UTF-8 and was not sent",
                    "arrow up brings it back with U+FFFD in place of what is wrong",
                )
            if text.strip():
                return self._message

    def interrupt(self) -> None:
        """Have `read` raise KeyboardInterrupt."""
        app = self._session.app

        def end() -> None:
            with suppress(Exception):  # it has ended meanwhile
                app.exit(exception=KeyboardInterrupt())

        if app.loop is None:
            raise KeyboardInterrupt
        app.loop.call_soon_threadsafe(end)

    def _sending(self, accept: Callable[[Buffer], bool] | None) -> Callable[[Buffer], bool]:
        def send(buffer: Buffer) -> bool:
            self._message = plain(unwrap(self._pasted.disguised()))
            return accept is not None and accept(buffer)

        return send

    def _edited(self, buffer: Buffer) -> None:
        self._pasted.edited(buffer.text, buffer.cursor_position)

    def _draw(self) -> None:
        """Draw the prompt anew: something else has written on the terminal."""
        app = self._session.app
        if app.loop is not None:
            app.loop.call_soon_threadsafe(app.renderer.reset)
            app.loop.call_soon_threadsafe(app.invalidate)

    def _keys(self) -> KeyBindings:
        from prompt_toolkit.enums import DEFAULT_BUFFER
        from prompt_toolkit.filters import has_focus
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.keys import Keys

        keys, writing = KeyBindings(), has_focus(DEFAULT_BUFFER)  # and not searching

        @keys.add("enter", filter=writing)
        def _enter(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if is_open(self._pasted.disguised()):
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=writing)
        def _alt_enter(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add(Keys.BracketedPaste, filter=writing)
        def _paste(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            before, cursor = buffer.text, buffer.cursor_position
            piece = event.data.replace("\r\n", "\n").replace("\r", "\n")
            self._pasted.edited(before[:cursor] + piece + before[cursor:], cursor, pasted=True)
            buffer.insert_text(piece)

        @keys.add("c-c", filter=writing)
        def _interrupt(event: KeyPressEvent) -> None:
            if event.current_buffer.text:
                event.current_buffer.reset()
            else:
                event.app.exit(exception=KeyboardInterrupt())

        if hasattr(signal, "SIGTSTP"):

            @keys.add("c-z")
            def _stop(_event: KeyPressEvent) -> None:
                os.kill(0, signal.SIGTSTP)  # as a terminal does: everybody who is in the pipeline

        return keys


def history_file() -> Path | None:
    """The file of typed messages, readable by the user only and cut to `MAX_HISTORY`; None if there is no
    cache directory or it cannot be written."""
    from specx.backends.store import cache_dir

    root = cache_dir()
    if root is None:
        return None
    path = root / "history" / "chat.txt"
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
