"""What a person gives as a prompt, and the tokens it comes to: as it stands, or in a chat template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specx.engine.session import Session

__all__ = ["Encoded", "Prompt", "encode"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt.

    Attributes:
        text: what is continued, or the user message.
        chat: put it into the model's chat template; a system message does so, too.
        system: the system message; None for none.
    """

    text: str
    chat: bool = False
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as the model reads it.

    Attributes:
        tokens: all of it.
        text: the same as text.
        stops: stop strings that come with the template.
        keep: tokens that stay when the context shifts.
    """

    tokens: list[int]
    text: str
    stops: tuple[str, ...] = ()
    keep: int = 0


def encode(
    prompt: Prompt,
    session: Session,
    notice: Callable[[str], None],
    tokenize: Callable[..., list[int]] | None = None,
) -> Encoded:
    """The tokens of a prompt.

    Args:
        prompt: what is given.
        session: the model.
        notice: told what is odd about its template.
        tokenize: used instead of the session's own.

    Raises:
        TemplateError: the template cannot be used.
    """
    tokenize = tokenize or session.tokenize
    if not prompt.chat and prompt.system is None:
        return Encoded(tokenize(prompt.text, add_special=True, parse_special=True), prompt.text)
    from specx.engine.text.template import template_of

    template = template_of(session)
    if template.notice:
        notice(template.notice)
    messages = [{"role": "user", "content": prompt.text}]
    if prompt.system:
        messages.insert(0, {"role": "system", "content": prompt.system})
    text = template.render(messages)
    keep = template.opening_length(messages, tokenize)
    return Encoded(template.tokenize(text, tokenize), text, template.stops, keep)
