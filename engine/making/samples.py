"""Samples of what a model writes: answers to prompts of many kinds and languages, greedy and sampled.

The prompts are others than those that `specx bench` measures with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from specx.backends.errors import TemplateError
from specx.engine.session import Session
from specx.engine.settings import SamplingSettings

__all__ = ["AT_ONCE", "Sample", "prompt_tokens", "prompts", "write_samples"]

AT_ONCE = 8  # answers that are written together: four times as fast as one after the other
LEAST = 16  # tokens of an answer
PROMPTS = Path(__file__).with_name("prompts.txt")


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer.

    Attributes:
        prompt: token ids before it, the chat template's included.
        question: the prompt as it was asked.
        answer: token ids that the model chose.
        text: the answer.
    """

    prompt: tuple[int, ...]
    question: str
    answer: tuple[int, ...]
    text: str


def prompts() -> list[str]:
    """The built-in prompts."""
    return PROMPTS.read_text(encoding="utf-8").splitlines()


def write_samples(
    session: Session,
    tokens: int,
    progress: Callable[[float], None] = lambda _fraction: None,
    asked: Sequence[str] | None = None,
) -> list[Sample]:
    """Let a model answer prompts, half of them greedily and half by chance. They are not remembered.

    Args:
        session: the model; as many answers are written together as it has room for.
        tokens: about how many are to be written in all.
        progress: called with the finished fraction.
        asked: the prompts, of which those that do not fit are left out; the built-in ones by default.
    """
    asked = prompts() if asked is None else asked
    each = max(LEAST, -(-tokens // len(asked)))
    settings = (SamplingSettings(temperature=0.0, seed=1), SamplingSettings(seed=1))
    read = [(text, prompt_tokens(session, text)) for text in asked]
    read = [(text, prompt) for text, prompt in read if len(prompt) + each <= session.n_ctx]
    answers = [
        session.generate(prompt, settings[i % 2], n_predict=each) for i, (_, prompt) in enumerate(read)
    ]
    written = 0
    for _answer, chunk in session.together(answers):
        written += len(chunk.tokens)
        progress(min(written / (each * len(answers)), 1.0))
    session.forget_learned()
    return [
        Sample(tuple(prompt), text, tuple(answer.result.tokens), answer.result.text)
        for (text, prompt), answer in zip(read, answers, strict=True)
        if answer.result.tokens
    ]


def prompt_tokens(session: Session, text: str) -> list[int]:
    """A user's message; a text to continue for a model whose chat template cannot be used."""
    if session.chat_template is not None:
        try:
            return session.prompt_of([{"role": "user", "content": text}])
        except TemplateError:
            pass
    return session.tokenize(text + "\n", add_special=True, parse_special=False)
