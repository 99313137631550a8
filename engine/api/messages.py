"""The messages of a chat request, as chat templates take them."""

from __future__ import annotations

import json
from typing import Any

from specx.engine.api.errors import RequestError
from specx.engine.api.fields import Fields, kind_of

__all__ = ["read_messages"]

MOST_MESSAGES = 10_000
MOST_PARTS = 10_000
ROLES = {"developer": "system", "function": "tool"}  # names that templates do not know
SPEAKERS = ("system", "developer", "user", "assistant", "tool", "function")


def read_messages(body: Fields) -> tuple[dict[str, Any], ...]:
    """The messages: `role` and `content` as strings, with the calls of tools and what else was said of them.

    Arguments of calls are the values that they hold where they are a JSON object, since most templates write
    them down themselves.

    Raises:
        RequestError: there are none, or one is not a message of text.
    """
    values = body.items("messages", MOST_MESSAGES)
    if not values:
        raise body.refuse("messages", "messages is missing or empty", "send at least one")
    return tuple(_message(body.entry("messages", index, value)) for index, value in enumerate(values))


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.choice("role", SPEAKERS)
    if role is None:
        raise fields.refuse("role", f"{fields.param('role')} is missing")
    message: dict[str, Any] = {"role": ROLES.get(role, role), "content": _content(fields)}
    calls = _calls(fields)
    if calls:
        name = "tool_calls" if fields.get("tool_calls") else "function_call"
        if role != "assistant":
            raise fields.refuse(name, f"{fields.param(name)} is in a message of the role {role}")
        message["tool_calls"] = calls
    elif message["content"] is None and role == "assistant":
        message["content"] = fields.text("refusal")  # an answer may be that alone
    if message["content"] is None and not calls:
        raise fields.refuse("content", f"{fields.param('content')} is missing")
    message["content"] = message["content"] or ""
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (text := fields.text(name)) is not None:
            message[name] = text
    return message


def _content(fields: Fields) -> str | None:
    """The text of a message; parts of text are joined."""
    value = fields.get("content")
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.wrong("content", "a string or a list of parts")
    parts = fields.items("content", MOST_PARTS) or []
    return "".join(_part(fields.entry("content", index, part)) for index, part in enumerate(parts))


def _part(fields: Fields) -> str:
    kind = fields.text("type") or "text"
    if kind not in ("text", "input_text", "output_text", "refusal"):
        raise fields.refuse(
            "type", f"{fields.param('type')} is {kind[:60]!r}, and this model reads text only"
        )
    name = "refusal" if kind == "refusal" else "text"
    text = fields.text(name)
    if text is None:
        raise fields.refuse(name, f"{fields.param(name)} is missing")
    return text


def _calls(fields: Fields) -> list[dict[str, Any]]:
    """The calls of a message, in their old form as well, which goes with the role "function"."""
    calls = fields.items("tool_calls", MOST_PARTS)
    if not calls:
        return [] if fields.object("function_call") is None else [_call(fields, "function_call")]
    return [_call(fields.entry("tool_calls", i, value), "function") for i, value in enumerate(calls)]


def _call(fields: Fields, where: str) -> dict[str, Any]:
    function = fields.object(where)
    name = function.text("name") if function is not None else None
    if function is None or not name:
        raise fields.refuse(where, f"{fields.param(where)} has no name of a function")
    call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": _arguments(function)}}
    if (label := fields.text("id")) is not None:
        call["id"] = label
    return call


def _arguments(function: Fields) -> Any:
    value = function.get("arguments")
    if value is None or value == "":
        return {}
    if isinstance(value, dict):
        return value
    if not isinstance(value, str):
        param = function.param("arguments")
        raise RequestError(f"{param} is {kind_of(value)}, where a JSON text belongs", param)
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return read if isinstance(read, dict) else value
