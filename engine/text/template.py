"""Chat templates: the Jinja programs in GGUF files that turn messages into a prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from specx.backends.errors import TemplateError

__all__ = ["CHATML", "ChatTemplate", "Message"]

Message = Mapping[str, Any]
"""A message: at least `role` ("system", "user", "assistant", ...) and `content`."""


class Tokenize(Protocol):
    """How a session turns text into token ids."""

    def __call__(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template used when a model brings none."""

MAX_LOOP = 100_000
MAX_TEXT = 64 << 20
"""What one rendering may count through with `range`, and how many characters it may produce: far more than
any conversation needs, and little enough that a broken template cannot hang specx or fill the memory."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's tokens for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 (the attribute jinja2 looks for)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox that chat templates are written for, with products kept in bounds."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse a repetition or a power that would not fit in memory."""
        if operator == "**" and not (abs(left) < 1 << 32 and abs(right) < 64):
            raise jinja2.exceptions.SecurityError("a power is too large")
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and len(sequence) * times > MAX_TEXT:
                    raise jinja2.exceptions.SecurityError("a repetition is too long")
        return super().call_binop(context, operator, left, right)


class _Refused(jinja2.TemplateError):
    """The template itself called `raise_exception`."""


class ChatTemplate:
    """One model's chat template, rendered as transformers renders it.

    Args:
        source: the Jinja source (`tokenizer.chat_template` of the GGUF); None or empty takes ChatML.
        bos, eos: text of the BOS and EOS tokens, which templates write themselves.

    Attributes:
        notice: what a person should know about this template, or None.
        stops: strings that end an answer besides the model's own end tokens.

    Raises:
        TemplateError: the source is not a valid template.
    """

    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        self.notice: str | None = None
        self.stops: tuple[str, ...] = ()
        if not source:
            source = CHATML
            self.notice = "the model file has no chat template; using ChatML"
            self.stops = ("<|im_end|>",)
        self._bos, self._eos = bos, eos
        environment = _environment()
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise _failure("is not a valid template", error) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt for a conversation.

        A template that refuses or drops the system message gets its text at the head of the first user
        message instead.

        Args:
            messages: the conversation, oldest first.
            add_generation_prompt: end with the opening of the assistant's answer.
            tools: JSON schemas of functions the model may call.
            extra: further variables, such as `enable_thinking`.

        Raises:
            TemplateError: the template fails, refuses the messages, or does not end.
        """
        variables = {"add_generation_prompt": add_generation_prompt, "tools": tools, **extra}
        system, folded = _fold_system(messages)
        if not system:
            return self._render(messages, variables)
        try:
            text = self._render(messages, variables)
        except TemplateError as error:
            if folded is None or not isinstance(error.__cause__, _Refused):
                raise
            return self._render(folded, variables)
        return text if folded is None or system in text else self._render(folded, variables)

    def tokenize(self, text: str, tokenize: Tokenize) -> list[int]:
        """Tokens of a rendered prompt. `tokenize` adds BOS only if the template has not written it."""
        written = bool(self._bos) and text.startswith(self._bos)
        return tokenize(text, add_special=not written, parse_special=True)

    def opening_length(self, messages: Sequence[Message], tokenize: Tokenize) -> int:
        """How many tokens of a prompt come before the words of the conversation: the system message, for one.

        Raises:
            TemplateError: the template fails or refuses such messages.
        """
        system = [message for message in messages[:1] if message["role"] == "system"]
        a, b = (
            self.tokenize(self.render([*system, {"role": "user", "content": words}]), tokenize)
            for words in ("?", "!")
        )
        return next(i for i, (one, other) in enumerate(zip([*a, -1], [*b, -2], strict=False)) if one != other)

    def _render(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        names = {
            "messages": [dict(message) for message in messages],
            "bos_token": self._bos,
            "eos_token": self._eos,
            "range": _counted_range(),
            **variables,
        }
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(names):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_TEXT:
                    raise jinja2.exceptions.SecurityError("the text it writes is too long")
        except _Refused as error:
            raise TemplateError(
                f"the model's chat template refuses this conversation: {error.message}",
                "begin with a user message, and take turns with the assistant",
            ) from error
        except Exception as error:  # a template is foreign code: anything can come out of it
            raise _failure("fails", error) from error
        return "".join(pieces)


def _environment() -> jinja2.Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which models were not trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise _Refused(message)


def _counted_range() -> Callable[..., range]:
    left = MAX_LOOP

    def counted(*bounds: int) -> range:
        nonlocal left
        numbers = range(*bounds)
        left -= len(numbers)
        if left < 0:
            raise jinja2.exceptions.SecurityError("it loops for too long")
        return numbers

    return counted


def _fold_system(messages: Sequence[Message]) -> tuple[str, list[Message] | None]:
    """The stripped system text, and the messages with that text moved into the first user message (None if
    there is no user message to take it)."""
    if not messages or messages[0]["role"] != "system":
        return "", None
    system = str(messages[0]["content"] or "").strip()
    rest = list(messages[1:])
    for index, message in enumerate(rest):
        if message["role"] == "user":
            rest[index] = {**message, "content": f"{system}\n\n{message['content']}"}
            return system, rest
    return system, None


def _failure(what: str, error: Exception) -> TemplateError:
    line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return TemplateError(
        f"the model's chat template {what}: {str(error) or type(error).__name__}{line}",
        "use `specx complete` with a prompt written in the model's own format",
    )
