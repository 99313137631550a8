"""How models write down the tools that they call: one table.

A format is recognised from the chat template: its tags are there, and what the template makes of a call is
read back as that call.
"""

# ruff: noqa: RUF001 -- the bars of DeepSeek's tags are wide ones

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from specx.engine.api.call_readers import (
    GEMMA_QUOTE,
    NAME_KEYS,
    Schemas,
    WrongError,
    headed,
    in_gemma,
    in_string,
    in_text,
    read_gemma,
    read_json,
    read_keyed,
    read_python,
    tagged,
)
from specx.engine.api.call_stream import CallStream
from specx.engine.api.parsing import Call
from specx.engine.api.tools import Tool

__all__ = ["BARE", "FORMATS", "HERMES", "Format", "Reader", "Shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """How a block of calls is written, for a grammar: `begin`, calls with `between` them, `end`.

    A call is `head`, with the name of the tool in place of NAME, its arguments as JSON, and `tail`.
    """

    begin: str
    head: str
    tail: str
    between: str
    end: str

    def named(self, name: str) -> str:
        """What a call of the tool `name` begins with."""
        return self.head.replace("NAME", json.dumps(name, ensure_ascii=False)[1:-1])


@dataclass(frozen=True, slots=True)
class Format:
    """One way of writing calls.

    Attributes:
        marks: what a template that knows it contains.
        opens: what a block of calls begins with.
        closes: what it ends with; empty if it goes on to the end of the answer.
        read: the calls of a block; see `call_readers`.
        unfinished: whether a block that is not right may go on behind the closing text.
        shape: how a grammar makes it; None if that is not known.
        bare: whether calls may stand without an opening, as JSON, at the beginning of an answer.
        within: tags in the middle of a block.
    """

    marks: tuple[str, ...]
    opens: tuple[str, ...]
    closes: str
    read: Callable[[str, Schemas], list[Call]]
    unfinished: Callable[[str], bool]
    shape: Shape | None = None
    bare: bool = False
    within: tuple[str, ...] = ()

    @property
    def inner(self) -> Shape | None:
        """The shape of what follows the opening of a block; None if that is not known."""
        if self.shape is None or self.bare:
            return None
        (opening,), shape = self.opens, self.shape
        if shape.begin:
            return replace(shape, begin=shape.begin.removeprefix(opening))
        return replace(shape, head=shape.head.removeprefix(opening))

    @property
    def tags(self) -> tuple[str, ...]:
        """All texts that may be control tokens."""
        return (*self.opens, *filter(None, [self.closes]), *self.within)


class Reader:
    """Reads calls of some tools in one format. Implements `CallReader`.

    Args:
        format: how they are written.
        tools: which there are.
        held: whether a grammar holds calls to the shape of the format, so that they can be told as they come.
    """

    def __init__(self, format: Format, tools: Sequence[Tool], *, held: bool = False) -> None:
        self._format = format
        self._inner = format.inner if held else None
        self._schemas = {tool.name: tool.parameters for tool in tools}
        heads = [f'{{"{key}":' for key in NAME_KEYS] + [f'{{"type":"function","{NAME_KEYS[0]}":']
        names = [json.dumps(name, ensure_ascii=False).replace(" ", "") for name in self._schemas]
        self._heads = [bracket + head + name for bracket in ("", "[") for head in heads for name in names]
        self.opens, self.closes = format.opens, format.closes

    def read(self, block: str) -> list[Call] | None:
        """The calls of a block; None if it is not right."""
        try:
            return self._format.read(block, self._schemas) or None
        except (ValueError, TypeError, RecursionError, WrongError):
            return None

    def stream(self) -> CallStream | None:
        """What tells a block as it is written; None if it has to be read as a whole."""
        shape = self._inner
        if shape is None:
            return None
        heads = {shape.named(name): name for name in self._schemas}
        return CallStream(shape.begin, heads, shape.tail, shape.between if shape.begin else None, shape.end)

    def goes_on(self, block: str) -> bool:
        """Whether `block` may be right with what follows its closing text."""
        return self._format.unfinished(block)

    def begins(self, text: str) -> bool:
        """Whether an answer that begins with `text` may be calls without an opening."""
        if not self._format.bare or not text:
            return False
        longest = max(map(len, self._heads), default=0)
        packed = "".join(text[: 4 * longest].split())
        return any(head.startswith(packed) or packed.startswith(head) for head in self._heads)


def _json_between(
    opening: str, closing: str, *, listed: bool = False, name: str = "name", arguments: str = "arguments",
    line: str = "",
) -> Format:  # fmt: skip
    """Calls as JSON between two tags, with `line` ends within them; in a list, or each between its own."""
    head, tail = f'{{"{name}": "NAME", "{arguments}": ', "}"
    if listed:
        shape = Shape(opening + "[", head, tail, ", ", "]" + closing)
    else:
        shape = Shape("", opening + line + head, tail + line + closing, "\n", "")
    return Format((opening,), (opening,), closing, read_json, in_string, shape)


HERMES = _json_between("<tool_call>", "</tool_call>", line="\n")
"""What is asked of models whose template knows no tools."""

BARE = Format((), ("<|python_tag|>",), "", read_json, in_string,
              Shape("", '{"name": "NAME", "arguments": ', "}", "; ", ""), bare=True)  # fmt: skip
"""JSON and nothing else: what a grammar makes where a format is not known well enough."""

_PARAMETER = r"<parameter=(?P<key>[^>\n]+)>(?P<value>.*?)</parameter>"
_INVOKE = r'<invoke name="(?P<name>[^"]+)">'
_NAMED = r'<parameter name="(?P<key>[^"]+)">(?P<value>.*?)</parameter>'
_GLM = r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>"
_DEEPSEEK = ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")
_DSML = (
    r'<｜DSML｜parameter name="(?P<key>[^"]+)"(?: string="(?P<string>\w+)")?>'
    r"(?P<value>.*?)</｜DSML｜parameter>"
)


def _ends_with(*closing: str) -> Callable[[str], bool]:
    """Whether a block lacks what stands before its closing tag."""
    return lambda block: not block.rstrip().endswith(closing)


FORMATS = (
    # Qwen3-Coder, Qwen3.5, Nemotron 3, StepFun
    Format(("<tool_call>", "<function=", "<parameter="), ("<tool_call>",), "</tool_call>",
           tagged(r"<function=(?P<name>[^>\n]+)>", _PARAMETER, r"</function>\s*"),
           _ends_with("</function>")),
    # Seed-OSS
    Format(("<seed:tool_call>",), ("<seed:tool_call>",), "</seed:tool_call>",
           tagged(r"<function=(?P<name>[^>\n]+)>", _PARAMETER, r"</function>\s*"),
           _ends_with("</function>")),
    # GLM 4.5 and later
    Format(("<tool_call>", "<arg_key>"), ("<tool_call>",), "</tool_call>",
           tagged(r"(?P<name>[^\s<{]+)", _GLM, r"\Z", known=True),
           lambda block: block.count("<arg_value>") > block.count("</arg_value>")),
    # Hermes, Qwen2.5, Qwen3, Granite 4
    HERMES,
    # MiniMax
    Format(("<minimax:tool_call>",), ("<minimax:tool_call>",), "</minimax:tool_call>",
           tagged(_INVOKE, _NAMED, r"</invoke>\s*"), _ends_with("</invoke>")),
    _json_between("<tool_calls>", "</tool_calls>", listed=True),
    _json_between("<TOOLCALL>", "</TOOLCALL>", listed=True),
    # MiniCPM 5
    Format(('<function name="',), ('<function name="',), "</function>",
           tagged(r'(?P<name>[^"]+)">', r'<param name="(?P<key>[^"]+)">(?P<value>.*?)</param>', r"\Z"),
           lambda block: block.count("<param ") > block.count("</param>")),
    # functionary, Llama 3 with functions of its own
    Format(("<function=",), ("<function=",), "</function>", headed(r"(?P<name>[^>{}\s]+)>"), in_string,
           Shape("", "<function=NAME>", "</function>", "", "")),
    # Mistral, from 2025 on
    Format(("[TOOL_CALLS]", "[ARGS]"), ("[TOOL_CALLS]",), "",
           headed(r"(?:\[TOOL_CALLS\])?\s*(?P<name>[^\[\]{}\s]+)(?:\[CALL_ID\](?P<id>[^\[\]]+))?\[ARGS\]"),
           in_string, Shape("", "[TOOL_CALLS]NAME[ARGS]", "", "", ""), within=("[CALL_ID]", "[ARGS]")),
    # Mistral before
    Format(("[TOOL_CALLS]",), ("[TOOL_CALLS]",), "", read_json, in_string,
           Shape("[TOOL_CALLS][", '{"name": "NAME", "arguments": ', "}", ", ", "]")),
    # Command R7B, Command A
    _json_between("<|START_ACTION|>", "<|END_ACTION|>", listed=True, name="tool_name",
                  arguments="parameters"),
    # Apertus
    Format(("<|tools_prefix|>",), ("<|tools_prefix|>",), "<|tools_suffix|>", read_keyed, in_string,
           Shape("<|tools_prefix|>[", '{"NAME": ', "}", ", ", "]<|tools_suffix|>")),
    # DeepSeek R1 and V3, then V3.1
    Format(("<｜tool▁calls▁begin｜>", "```json"), ("<｜tool▁calls▁begin｜>",), "<｜tool▁calls▁end｜>",
           headed(r"<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name>[^\n<]+)\n```json\n",
                   r"\n```<｜tool▁call▁end｜>"), in_string, within=_DEEPSEEK),
    Format(("<｜tool▁calls▁begin｜>",), ("<｜tool▁calls▁begin｜>",), "<｜tool▁calls▁end｜>",
           headed(r"<｜tool▁call▁begin｜>(?P<name>[^\n<]+)<｜tool▁sep｜>", r"<｜tool▁call▁end｜>"),
           in_string, within=_DEEPSEEK),
    # DeepSeek V3.2 and V4
    Format(("DSML", "function_calls"), ("<｜DSML｜function_calls>",), "</｜DSML｜function_calls>",
           tagged(r'<｜DSML｜invoke name="(?P<name>[^"]+)">', _DSML, r"</｜DSML｜invoke>\s*"),
           _ends_with("</｜DSML｜invoke>")),
    Format(("DSML", "tool_calls"), ("<｜DSML｜tool_calls>",), "</｜DSML｜tool_calls>",
           tagged(r'<｜DSML｜invoke name="(?P<name>[^"]+)">', _DSML, r"</｜DSML｜invoke>\s*"),
           _ends_with("</｜DSML｜invoke>")),
    # Kimi K2
    Format(("<|tool_calls_section_begin|>",), ("<|tool_calls_section_begin|>",), "<|tool_calls_section_end|>",
           headed(r"<\|tool_call_begin\|>(?P<id>(?:functions\.)?(?P<name>[^\s<]+?)(?::\d+)?)"
                   r"<\|tool_call_argument_begin\|>", r"<\|tool_call_end\|>"), in_string,
           within=("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")),
    # LFM2
    *(Format((mark,), ("<|tool_call_start|>",), "<|tool_call_end|>", read_python, in_text)
      for mark in ("<|tool_call_start|>", "<|tool_list_start|>")),
    # Gemma 4
    Format(("<|tool_call>",), ("<|tool_call>",), "<tool_call|>", read_gemma, in_gemma, within=(GEMMA_QUOTE,)),
    # Gemma 3
    Format(("```tool_code",), ("```tool_code",), "```", read_python, in_text),
    # Granite 3, Phi 4 mini
    Format(("<|tool_call|>",), ("<|tool_call|>",), "", read_json, in_string,
           Shape("<|tool_call|>[", '{"name": "NAME", "arguments": ', "}", ", ", "]")),
    # Llama 3.1 and later
    Format(('"parameters":',), ("<|python_tag|>",), "", read_json, in_string,
           Shape("", '{"name": "NAME", "parameters": ', "}", "; ", ""), bare=True),
)  # fmt: skip
"""The more particular ones first."""
