"""Tools in words, for templates that know of none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from specx.engine.api.tools import Tool

__all__ = ["Message", "all_as_text", "calls_as_text", "instructed", "with_descriptions", "with_texts"]

Message = Mapping[str, Any]

INSTRUCTIONS = """You can call functions. These are their signatures, one a line, as JSON:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments as a JSON object between these tags, once for each call:
<tool_call>
{{"name": "the name", "arguments": {{"an argument": "its value"}}}}
</tool_call>"""


def instructed(messages: Sequence[Message], tools: Sequence[Tool]) -> Sequence[Message]:
    """The messages, with what the tools are and how they are called in the system message."""
    if not tools:
        return messages
    listed = "\n".join(json.dumps(tool.given, ensure_ascii=False) for tool in tools)
    text = INSTRUCTIONS.format(tools=listed)
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}".strip()}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def all_as_text(messages: Sequence[Message]) -> list[Message]:
    """The messages with calls, and the results of calls, as text that any template passes on.

    Results become messages of the user, who says what follows them in the same message: some templates want
    users and assistants to take turns.
    """
    texts: list[Message] = []
    joined = False
    for message in map(calls_as_text, messages):
        result = message["role"] == "tool"
        content = f"<tool_response>\n{message['content']}\n</tool_response>" if result else message["content"]
        said = {"role": "user", "content": content} if result else message
        if joined and said["role"] == "user":
            texts[-1] = {**said, "content": f"{texts[-1]['content']}\n{content}"}
        else:
            texts.append(said)
        joined = result
    return texts


def calls_as_text(message: Message) -> Message:
    """A message with its calls as text."""
    if "tool_calls" not in message:
        return message
    calls = []
    for function in (call["function"] for call in message["tool_calls"]):
        said = json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)
        calls.append(f"<tool_call>\n{said}\n</tool_call>")
    content = "\n".join([*filter(None, [message["content"]]), *calls])
    return {**{name: value for name, value in message.items() if name != "tool_calls"}, "content": content}


def with_descriptions(tool: Message) -> Message:
    """A tool with everything that its schema may leave out and some templates want."""
    function = {"description": "", "parameters": {"type": "object", "properties": {}}, **tool["function"]}
    return {"type": "function", **tool, "function": function}


def with_texts(message: Message) -> Message:
    """A message with the arguments of its calls as JSON texts, which some templates want."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function, arguments = call["function"], call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**function, "arguments": text}})
    return {**message, "tool_calls": calls}
