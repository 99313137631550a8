"""The messages of a chat, and the files they are kept in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specx.backends.errors import UsageError
from specx.backends.printable import is_text
from specx.cli.terminal.files import decode, read_bytes, whole_text, write_atomically

__all__ = ["Conversation"]

ROLES = ("system", "user", "assistant", "tool")
MESSAGES_HINT = (
    f'a list of {{"role": ..., "content": TEXT}} is needed, as /save writes it; roles are {", ".join(ROLES)}'
)


class Conversation:
    """Messages, and the system message they begin with.

    Attributes:
        start: the first message that the model is still shown; those before it are kept for `save`.
    """

    def __init__(self, system: str = "") -> None:
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.start = 0

    def since(self, start: int) -> list[dict[str, str]]:
        """The messages from `start` on, after the system message if there is one."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages[start:]]

    def add(self, role: str, content: str) -> None:
        """One more message."""
        self.messages.append({"role": role, "content": content})

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages, self.start = [], 0

    def next_exchange(self, start: int) -> int | None:
        """Where the exchange after the one at `start` begins; None if there is no later one."""
        later = range(start + 1, len(self.messages))
        return next((i for i in later if self.messages[i]["role"] == "user"), None)

    def save(self, path: Path) -> None:
        """Write the messages as JSON."""
        write_atomically(path, json.dumps(self.since(0), ensure_ascii=False, indent=1) + "\n")

    def load(self, path: Path) -> int:
        """Take over the messages of a file that `save` wrote, or that another tool wrote in that form.

        Returns:
            How many of them held characters that are none, which became U+FFFD.

        Raises:
            FileError: it cannot be read.
            UsageError: it holds no such messages; the present ones stay.
        """
        text = decode(read_bytes(path), str(path))
        try:
            messages = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise UsageError(f"{path} is not valid JSON: {problem}", MESSAGES_HINT) from problem
        if not isinstance(messages, list):
            raise UsageError(f"{path} holds no messages", MESSAGES_HINT)
        wrong = next((number for number, each in enumerate(messages, 1) if not _is_message(each)), None)
        if wrong is not None:
            raise UsageError(
                f"{path}: message {wrong} has no such role or no text for content", MESSAGES_HINT
            )
        mended = sum(not is_text(message["content"]) for message in messages)
        found = [{"role": each["role"], "content": whole_text(each["content"])} for each in messages]
        has_system = bool(found) and found[0]["role"] == "system"
        self.system = found.pop(0)["content"] if has_system else ""
        self.start, self.messages = 0, found
        return mended


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES and isinstance(value.get("content"), str)
