"""What a batch writes: a record for each item, in the form of the input or as the person wants it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from specx.engine.batch.answered import Answered
from specx.engine.batch.items import OPENAI, Item
from specx.engine.batch.table import Dialect

__all__ = ["Form", "JsonLines", "TableLines", "TextLines", "digest_of", "dumped", "error_record", "texts_of"]

ENVELOPE_ID, ERROR_ID = "batch_req_", "error-"
IDS = re.compile(rf"(?:{ENVELOPE_ID}|{ERROR_ID}|chatcmpl-|cmpl-)([0-9a-f]{{16}})")
FAILED = 500  # from this status on it is not the request's fault


class Form(Protocol):
    """How records are written."""

    named: bool
    """Whether a record itself says which item it answers."""

    def header(self) -> bytes:
        """What the output begins with."""

    def digest(self, item: Item) -> str:
        """16 hex digits of all of an item that its record depends on."""

    def record(self, answered: Answered) -> bytes:
        """What is written for one item: whole lines."""


class JsonLines:
    """A JSON object a line. An item of OpenAI's batches gets one of theirs; others get the response, behind
    the line of the input and, if they have one, their `custom_id`. An error stands in place of an answer."""

    named = True

    def header(self) -> bytes:
        """Nothing."""
        return b""

    def digest(self, item: Item) -> str:
        """That of the item, which the record has in its id."""
        return item.digest

    def record(self, answered: Answered) -> bytes:
        """One line."""
        item, body = answered.item, answered.body or {}
        if item.form == OPENAI:
            return dumped(_envelope(answered)) + b"\n"
        named = {} if item.custom_id is None else {"custom_id": item.custom_id}
        own = {"id": f"{ERROR_ID}{item.digest}"} if answered.failed else {}
        return dumped({"line": item.line, **named, **own, **body}) + b"\n"


class TextLines:
    """A line for each answer: the text, with `\\n`, `\\r` and `\\\\` for ends of lines and backslashes in it.
    An item that failed has empty ones.

    Args:
        samples: answers to an item that does not say how many.
    """

    named = False

    def __init__(self, samples: int = 1) -> None:
        self._samples = samples

    def header(self) -> bytes:
        """Nothing."""
        return b""

    def digest(self, item: Item) -> str:
        """That of the item."""
        return item.digest

    def record(self, answered: Answered) -> bytes:
        """As many lines as there are answers."""
        if answered.item.blank:
            return b"\n"
        texts = [""] * self._samples if answered.failed else texts_of(answered.body or {})
        return b"".join(_encoded(_escaped(text)) + b"\n" for text in texts)


class TableLines:
    """The rows of a table with the answers behind them, in columns of their own; empty where an item failed.

    Args:
        columns: of the input.
        dialect: of the input, and of the output.
        added: names of the columns that are added, one for each sample.
    """

    named = False

    def __init__(self, columns: tuple[str, ...], dialect: Dialect, added: tuple[str, ...]) -> None:
        self._columns, self._dialect, self._added = columns, dialect, added

    def header(self) -> bytes:
        """The names of the columns."""
        return self._dialect.row((*self._columns, *self._added))

    def digest(self, item: Item) -> str:
        """That of the item and of its cells."""
        return item.row_digest

    def record(self, answered: Answered) -> bytes:
        """One row."""
        n = len(self._added)
        texts = [] if answered.failed else texts_of(answered.body or {})
        return self._dialect.row((*answered.item.cells, *[*texts, *[""] * n][:n]))


def error_record(answered: Answered, digest: str) -> bytes:
    """The line of an item that failed, where the output itself has no room for errors.

    Args:
        answered: the item.
        digest: what its record in the output is known by.
    """
    item = answered.item
    named = {} if item.custom_id is None else {"custom_id": item.custom_id}
    own = {"line": item.line, **named, "id": f"{ERROR_ID}{digest}"}
    return dumped({**own, **(answered.body or {})}) + b"\n"


def texts_of(body: Mapping[str, Any]) -> list[str]:
    """The texts of a response; of a choice that calls tools, the calls in JSON."""
    texts = []
    for choice in body.get("choices", ()):
        message = choice.get("message")
        text = choice.get("text") if message is None else message.get("content")
        if not text and message is not None and message.get("tool_calls"):
            text = json.dumps(message["tool_calls"], ensure_ascii=False)
        texts.append(text or "")
    return texts


def digest_of(record: bytes) -> tuple[str, bool] | None:
    """The digest of the item that a line of `JsonLines` answers, and whether that failed; None if none."""
    try:
        value = json.loads(record)
    except (ValueError, RecursionError):
        return None
    found = IDS.fullmatch(str(value.get("id"))) if isinstance(value, dict) else None
    if found is None:
        return None
    response = value.get("response")
    status = response.get("status_code") if isinstance(response, dict) else None
    return found[1], bool(value.get("error")) or (status is not None and status != 200)


def dumped(value: Any) -> bytes:
    """A JSON value in UTF-8; what is no text in it (half a surrogate pair) as escapes."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def _envelope(answered: Answered) -> dict[str, Any]:
    item, body = answered.item, answered.body or {}
    line: dict[str, Any] = {"id": f"{ENVELOPE_ID}{item.digest}", "custom_id": item.custom_id}
    if answered.status >= FAILED:
        error = body.get("error", {})
        code = error.get("code") or error.get("type")
        return {**line, "response": None, "error": {"code": code, "message": error.get("message")}}
    request = {"status_code": answered.status, "request_id": f"req_{item.digest}", "body": body}
    return {**line, "response": request, "error": None}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")
