"""In which form a chat template takes messages: found by trying it with words that nothing else contains.

Some templates want the content of a message as a list of parts, some drop or refuse a system message, and
some leave out what came before the last question. No template says so, and what it leaves out of a prompt
leaves no trace there. So a conversation of the same roles is rendered, with a needle in place of each text,
and the needles are looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specx.backends.errors import TemplateError
from specx.engine.text.template_budget import ExhaustedError

__all__ = ["TURNS", "Form", "Message", "find_form", "passes_on"]

Message = Mapping[str, Any]
"""A message: at least `role` ("system", "user", "assistant", ...) and `content`."""

Render = Callable[[Sequence[Message]], str]

TURNS: tuple[tuple[str, ...], ...] = (
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user"),
    ("system", "user"),
    ("user",),
)
"""Roles of conversations to try a template with. The first of them that it takes says the most."""


@dataclass(frozen=True, slots=True)
class Form:
    """How messages are written down for a template.

    Attributes:
        parts: roles whose content is a list of parts, `{"type": "text", "text": ...}`, instead of a string.
        folded: system messages go to the head of the user's next message.
    """

    parts: frozenset[str] = frozenset()
    folded: bool = False

    def apply(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Copies of `messages` in this form."""
        copies = [dict(message) for message in (_folded(messages) if self.folded else messages)]
        for message in copies:
            content = message.get("content")
            if message["role"] in self.parts and isinstance(content, str):
                message["content"] = [{"type": "text", "text": content}]
            elif message["role"] not in self.parts and _is_text_parts(content):
                message["content"] = _text(message)
        return copies


def _is_text_parts(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    )


def _text(message: Message) -> str:
    """The text of a message; empty if it has none."""
    content = message.get("content")
    if _is_text_parts(content):
        return "\n".join(part["text"] for part in content)  # type: ignore[union-attr]
    return content if isinstance(content, str) else ""


def _folded(messages: Sequence[Message]) -> Sequence[Message]:
    """`messages` with system texts at the head of the next user message; as they are if one has none."""
    rest: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(_text(message).strip())
        elif message["role"] == "user" and waiting:
            rest.append({**message, "content": "\n\n".join([*filter(None, waiting), _text(message)])})
            waiting = []
        else:
            rest.append(message)
    return messages if waiting else rest


def _words(message: Message) -> list[str]:
    """What of a message must be in the prompt: its text, and the names of functions it calls."""
    names = [function["name"] for _call, function in _calls(message)]
    return [text for text in (_text(message).strip(), *names) if text]


def _calls(message: Message) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The calls of a message, each with the mapping that holds its name."""
    calls = message.get("tool_calls") or ()
    pairs = [(call, call.get("function", call)) for call in calls if isinstance(call, Mapping)]
    return [(call, function) for call, function in pairs if isinstance(function.get("name"), str)]


def _marked(index: int, message: Message) -> dict[str, Any]:
    """The message with a needle for each of its words."""
    marked = dict(message)
    if _text(message).strip():
        marked["content"] = _needle(index, 0)
    if calls := _calls(message):
        marked["tool_calls"] = [
            {**call, "function": {**function, "name": _needle(index, number)}}
            if "function" in call
            else {**call, "name": _needle(index, number)}
            for number, (call, function) in enumerate(calls, 1)
        ]
    return marked


def _needle(index: int, number: int) -> str:
    return f"qzv{index}x{number}wjk"  # one word in lower case: left alone by trimming and the like


def _lost(messages: Sequence[Message], text: str) -> set[int]:
    """Indices of the messages whose words `text` lacks, in their order; a system message may be anywhere."""
    lost: set[int] = set()
    position = 0
    for index, message in enumerate(messages):
        for words in _words(message):
            found = text.find(words, 0 if message["role"] == "system" else position)
            if found < 0:
                lost.add(index)
            elif message["role"] != "system":
                position = found + len(words)
    return lost


def passes_on(messages: Sequence[Message], text: str) -> bool:
    """Whether the words of all `messages` are in `text` as they are, one after the other."""
    return not _lost(messages, text)


def _losses(form: Form, marked: Sequence[Message], render: Render) -> set[int] | None:
    """Which messages do not reach the prompt in this form; None if the template fails."""
    try:
        text = render(form.apply(marked)).casefold()
    except TemplateError as error:
        if isinstance(error.__cause__, ExhaustedError):
            raise
        return None
    lost = _lost(marked, text)
    if form.parts:  # a list of parts that is simply printed is no form that a model was trained on
        lost |= {i for i, each in enumerate(marked) if f"'text': '{each.get('content')}'" in text}
    return lost


def _candidates(roles: Sequence[str], first: Form) -> Iterator[Form]:
    """Forms to try, the plainest first."""
    present = list(dict.fromkeys(roles))
    everything = frozenset(present)
    subsets = [
        frozenset[str](),
        everything,
        *({role} for role in present),
        *(everything - {r} for r in present),
    ]
    yield first
    for folded in (False, True) if "system" in present else (False,):
        for parts in dict.fromkeys(map(frozenset, subsets)):
            if Form(parts, folded) != first:
                yield Form(parts, folded)


def find_form(
    messages: Sequence[Message],
    render: Render,
    first: Form = Form(),
) -> tuple[Form, set[int]] | None:
    """The form in which most of a conversation of these roles reaches the prompt.

    Args:
        messages: the conversation; its words do not count.
        render: renders messages as they are.
        first: the form to try first.

    Returns:
        The form, and the indices of the messages that do not reach the prompt; None if every form fails.

    Raises:
        TemplateError: the template does not end.
    """
    marked = [_marked(index, message) for index, message in enumerate(messages)]
    best: tuple[Form, set[int]] | None = None
    for form in _candidates([message["role"] for message in messages], first):
        lost = _losses(form, marked, render)
        if lost is not None and (best is None or len(lost) < len(best[1])):
            best = form, lost
        if lost == set():
            break
    return best
