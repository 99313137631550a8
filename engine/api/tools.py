"""The tools of a request: functions that the model may call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specx.engine.api.fields import Fields

__all__ = ["Tool", "ToolChoice", "read_tool_choice", "read_tools"]

MOST_TOOLS = 256
LONGEST_NAME = 256
MODES = ("none", "auto", "required", "any")  # the last is another name of required


@dataclass(frozen=True, slots=True)
class Tool:
    """A function.

    Attributes:
        name: what it is called by.
        parameters: JSON schema of its arguments.
        given: the whole entry of the request, for the template.
    """

    name: str
    parameters: Mapping[str, Any]
    given: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools may or must be called.

    Attributes:
        must: whether the answer is a call.
        name: the only one that may be called; None for any.
        parallel: whether there may be several calls.
    """

    must: bool = False
    name: str | None = None
    parallel: bool = True


def read_tools(body: Fields) -> tuple[Tool, ...]:
    """The tools of a request.

    Raises:
        RequestError: one is no function, or there are two of a name.
    """
    for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
        if body.get(old) is not None:
            raise body.refuse(old, f"{old} is the old form of {new}", f"send {new}")
    tools: dict[str, Tool] = {}
    for index, value in enumerate(body.items("tools", MOST_TOOLS) or ()):
        entry = body.entry("tools", index, value)
        tool = _tool(entry)
        if tool.name in tools:
            raise entry.refuse("function", f"there are two tools of the name {tool.name!r}")
        tools[tool.name] = tool
    return tuple(tools.values())


def _tool(entry: Fields) -> Tool:
    kind = entry.text("type") or "function"
    if kind != "function":
        raise entry.refuse(
            "type", f"{entry.param('type')} is {kind[:60]!r}, and only functions can be called"
        )
    function = entry.object("function")
    name = function.text("name") if function is not None else None
    if function is None or not name or len(name) > LONGEST_NAME:
        raise entry.refuse(
            "function", f"{entry.param('function')} has no name of at most {LONGEST_NAME} characters"
        )
    function.text("description")
    parameters = function.object("parameters")
    schema = parameters.values if parameters is not None else {"type": "object", "properties": {}}
    return Tool(name, schema, entry.values)


def read_tool_choice(body: Fields, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    """Which of the tools may be called, and how; none and None if no tool is to be.

    Raises:
        RequestError: it is no choice, or names what is not among the tools.
    """
    parallel = body.flag("parallel_tool_calls") is not False
    if not isinstance(body.get("tool_choice"), dict):
        return _chosen(tools, _mode(body, "tool_choice", tools), parallel)
    choice = body.object("tool_choice")
    assert choice is not None
    some = choice.object("allowed_tools")
    if choice.text("type") != "allowed_tools" or some is None:
        return tools, ToolChoice(True, _named(body, choice, "tool_choice", tools), parallel)
    names = {
        _named(entry, entry, "function", tools)
        for index, value in enumerate(some.items("tools", MOST_TOOLS) or ())
        for entry in [some.entry("tools", index, value)]
    }
    if not names:
        raise some.refuse("tools", f"{some.param('tools')} names no tool", "use tool_choice: none")
    return _chosen(tuple(t for t in tools if t.name in names), _mode(some, "mode", tools), parallel)


def _mode(fields: Fields, name: str, tools: tuple[Tool, ...]) -> str | None:
    mode = fields.choice(name, MODES)
    if mode in ("required", "any") and not tools:
        raise fields.refuse(name, f"{fields.param(name)} is required, and there are no tools")
    return mode


def _chosen(
    tools: tuple[Tool, ...], mode: str | None, parallel: bool
) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    if mode == "none" or not tools:
        return (), None
    return tools, ToolChoice(mode in ("required", "any"), None, parallel)


def _named(owner: Fields, choice: Fields, field: str, tools: tuple[Tool, ...]) -> str:
    """The name in `choice`, an entry of the form that tools have; `field` of `owner` is what is wrong."""
    kind = choice.text("type") or "function"
    function = choice.object("function")
    name = function.text("name") if function is not None else None
    param = owner.param(field)
    if kind != "function" or name is None:
        raise owner.refuse(field, f"{param} names no function", f"or use one of {', '.join(MODES[:3])}")
    if name not in {tool.name for tool in tools}:
        raise owner.refuse(field, f"{param} names {name[:60]!r}, which is not among the tools")
    return name
