"""Chat templates: the Jinja programs in GGUF files that turn messages into a prompt."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from specx.backends.errors import TemplateError
from specx.engine.text.specials import Marked, SpecialTexts, Tokenize
from specx.engine.text.template_bounds import BoundedEnvironment
from specx.engine.text.template_budget import Budget, ExhaustedError
from specx.engine.text.template_forms import TURNS, Form, Message, find_form, passes_on

__all__ = ["CHATML", "ChatTemplate", "Message", "Owner", "template_of"]


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template used when a model brings none."""

WORK = 64 << 20
"""What one rendering may do (see `Budget`) besides what the conversation asks for: hundreds of times what the
templates of models do, and little enough that a broken one ends within seconds."""


SURROGATES = re.compile("[\ud800-\udfff]")
MOST_FORMS = 64  # sets of variables that are remembered
LONGEST_REASON = 500  # a template can say anything
_HINT = "use `specx complete` with a prompt written in the model's own format"


class _Generation(Extension):
    """`{% generation %}` marks the assistant's tokens for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 (the attribute jinja2 looks for)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refused(jinja2.TemplateError):
    """The template itself called `raise_exception`."""


class ChatTemplate:
    """One model's chat template, rendered as transformers renders it.

    Args:
        source: the Jinja source (`tokenizer.chat_template` of the GGUF); None or empty takes ChatML.
        bos, eos: text of the BOS and EOS tokens, which templates write themselves.
        specials: control tokens that are only meant where the template itself writes them; None lets messages
            write them, too.

    Attributes:
        notice: what a person should know about this template, or None. A conversation can bring it up.
        stops: strings that end an answer besides the model's own end tokens.

    Raises:
        TemplateError: the source is not a valid template, or does not end.
    """

    def __init__(
        self, source: str | None, *, bos: str, eos: str, specials: SpecialTexts | None = None
    ) -> None:
        self.notice: str | None = None
        self.stops: tuple[str, ...] = ()
        if not source or not source.strip():
            source = CHATML
            self.notice = "the model file has no chat template; using ChatML"
            self.stops = ("<|im_end|>",)
        self._bos, self._eos = bos, eos
        self._source, self._specials = source, specials
        self._environment = _environment()
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # besides jinja2's own: what Python says of the program it makes of it
            raise _failure("is not a valid template", error) from error
        self._forms: dict[tuple[str, ...], Form] = {}
        self._form({"add_generation_prompt": True, "tools": None})

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt for a conversation, for `tokenize`.

        The messages are given to the template in the form in which it passes them on (`Form`). A system
        message that it refuses or drops goes to the head of the next user message. If it leaves out what was
        said before the last message, `notice` says so.

        Args:
            messages: the conversation, oldest first.
            add_generation_prompt: end with the opening of the assistant's answer.
            tools: JSON schemas of functions the model may call.
            extra: further variables, such as `enable_thinking`.

        Raises:
            TemplateError: the template fails, does not end, refuses the messages, or leaves one out.
        """
        variables = {"add_generation_prompt": add_generation_prompt, "tools": tools, **extra}
        try:
            return self._prompt(messages, variables)
        except TemplateError as problem:
            if tools is not None or isinstance(problem.__cause__, ExhaustedError):
                raise
            try:  # some go through the tools without a look whether there are any
                return self._prompt(messages, {**variables, "tools": []})
            except TemplateError:
                raise problem from problem.__cause__

    def _prompt(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        """The prompt, in which what messages say is told apart from what the template writes."""
        mark = self._mark(messages, variables)
        if self._specials is not None:
            marked = self._specials.marked(messages, mark)
            also = {name: self._specials.marked(value, mark) for name, value in variables.items()}
            if marked is not messages or any(also[name] is not variables[name] for name in also):
                return Marked(self._written(marked, also), mark)
        return self._written(messages, variables)

    def _mark(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        """Letters that are nowhere in what is given, in one case: left alone by trimming and the like."""
        given = f"{self._source}{messages}{variables}".casefold()
        return next(mark for number in itertools.count() if (mark := f"qzm{number}wjk") not in given)

    def _written(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        form = self._form(variables)
        text: str | None = None
        try:
            text = self._render(form.apply(messages), variables)
            if passes_on(messages, text):
                return text
        except TemplateError as error:
            if isinstance(error.__cause__, ExhaustedError):
                raise
            refusal = error
        # It refuses these messages, drops some, or writes their words in another way.
        budget = Budget(_work(messages, variables))
        found = find_form(messages, lambda marked: self._render(marked, variables, budget), form)
        if found is None:
            if text is None:
                raise refusal
            return text
        self._check_lost(messages, found[1])
        if text is not None and found[0] == form:
            return text
        return self._render(found[0].apply(messages), variables)

    def _form(self, variables: Mapping[str, Any]) -> Form:
        """The form that suits the template, found once for each set of variables."""
        key = tuple(name for name, value in sorted(variables.items()) if value or value == [])
        if key not in self._forms:
            if len(self._forms) >= MOST_FORMS:
                self._forms.clear()
            self._forms[key] = Form()
            budget = Budget(_work((), variables))
            for roles in TURNS:
                messages = [{"role": role, "content": role} for role in roles]
                found = find_form(messages, lambda marked: self._render(marked, variables, budget))
                if found is not None:
                    self._forms[key] = found[0]
                    self._tell_lost(roles, found[1])
                    break
        return self._forms[key]

    def _check_lost(self, messages: Sequence[Message], lost: set[int]) -> None:
        """Raises TemplateError if the model would not see a message that matters, among those `lost`."""
        roles = [str(message["role"]) for message in messages]
        for index in sorted(lost):
            if index == len(messages) - 1 or roles[index] not in ("user", "assistant"):
                raise TemplateError(
                    f"the model's chat template does not pass on messages of the role {roles[index]}", _HINT
                )
        self._tell_lost(roles, lost)

    def _tell_lost(self, roles: Sequence[str], lost: set[int]) -> None:
        if lost and self.notice is None and all(index < len(roles) - 1 for index in lost):
            which = " and ".join(sorted({roles[index] for index in lost} - {"system"}))
            self.notice = f"the model's chat template leaves out earlier messages ({which})"

    def tokenize(self, text: str, tokenize: Tokenize) -> list[int]:
        """Tokens of a prompt from `render`: what messages say is text, whatever it looks like (`specials`).
        `tokenize` adds BOS only if the template has not written it."""
        written = bool(self._bos) and text.startswith(self._bos)
        if isinstance(text, Marked) and self._specials is not None:
            return self._specials.tokens(text, tokenize, add_special=not written)
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

    def _render(
        self, messages: Sequence[Message], variables: Mapping[str, Any], budget: Budget | None = None
    ) -> str:
        names = {
            "messages": messages,
            "documents": None,
            "bos_token": self._bos,
            "eos_token": self._eos,
            **variables,
        }
        budget = self._environment.budget = budget or Budget(_work(messages, variables))
        pieces: list[str] = []
        try:
            for piece in self._template.generate(names):
                pieces.append(piece)
                budget.left -= len(piece)
                if budget.left < 0:
                    budget.spend(0)
        except _Refused as error:
            raise TemplateError(
                f"the model's chat template refuses this conversation: {str(error)[:LONGEST_REASON]}",
                "begin with a user message, and take turns with the assistant",
            ) from error
        except Exception as error:  # a template is foreign code: anything can come out of it
            raise _failure("fails", error) from error
        text = "".join(pieces)
        if SURROGATES.search(text):
            raise TemplateError(
                "the prompt for this conversation has half of a surrogate pair in it, which is no text",
                "look for \\ud800 to \\udfff in the messages, or use `specx complete` without the template",
            )
        return text


class Owner(Protocol):
    """What has a chat template: a session, or one in a server."""

    chat_template: str | None

    @property
    def bos_text(self) -> str:
        """Text of the token that begins a sequence."""

    @property
    def eos_text(self) -> str:
        """Text of the token that ends a sequence."""

    @property
    def special_texts(self) -> SpecialTexts | None:
        """Control tokens that messages cannot write; None if they may."""


def template_of(owner: Owner) -> ChatTemplate:
    """The chat template of a model, or ChatML.

    Raises:
        TemplateError: it cannot be used.
    """
    return ChatTemplate(
        owner.chat_template, bos=owner.bos_text, eos=owner.eos_text, specials=owner.special_texts
    )


def _environment() -> BoundedEnvironment:
    return BoundedEnvironment(
        filters={"tojson": _to_json},
        variables={"raise_exception": _raise_exception, "strftime_now": _strftime_now},
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )


def _work(messages: Sequence[Message], variables: Mapping[str, Any]) -> int:
    """What rendering a conversation may do: some templates look at every message for every message."""
    contents = [message.get("content") for message in messages]
    size = sum(len(text) for text in contents if isinstance(text, str))
    size += Budget(1 << 62).weigh(
        [[each for each in contents if not isinstance(each, str)], *variables.values()]
    )
    return WORK + 8 * size * (1 + len(messages)) + 4096 * len(messages) ** 2


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


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern[:1000])


def _failure(what: str, error: Exception) -> TemplateError:
    line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    reason = str(error)[:LONGEST_REASON] or type(error).__name__
    return TemplateError(f"the model's chat template {what}: {reason}{line}", _HINT)
