"""What every arm of a benchmark is asked: prompts as token ids."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specx.backends.base import Vocab
from specx.backends.errors import TemplateError
from specx.engine.bench.suites import Prompt, Workload
from specx.engine.session import Session
from specx.engine.text.template import template_of

__all__ = ["Case", "CaseMaker", "LeftOut"]


@dataclass(frozen=True, slots=True)
class Case:
    """One request.

    Attributes:
        id: of the prompt and the number of the turn.
        category: of the prompt.
        tokens: the whole prompt.
        n_predict: most tokens to answer with.
        ignore_eos: go on after the model's end of text.
        reading: what counts is the time to read the prompt.
    """

    id: str
    category: str
    tokens: list[int]
    n_predict: int
    ignore_eos: bool = False
    reading: bool = False

    @property
    def digest(self) -> str:
        """Tells prompts of different tokens apart."""
        return hashlib.sha256(np.array(self.tokens, np.int32).tobytes()).hexdigest()[:16]


class LeftOut(Exception):  # noqa: N818 (no error: the others are measured)
    """A prompt cannot be asked; the message says which one and why."""


class CaseMaker:
    """Turns prompts into token ids for one model.

    Args:
        session: its vocabulary, chat template and context.
        n_predict: most tokens of an answer.
        seed: of synthetic prompts.
        ignore_eos: go on after the model's end of text.
    """

    def __init__(self, session: Session, n_predict: int, seed: int, *, ignore_eos: bool = False) -> None:
        self._session = session
        self._n_predict = n_predict
        self._seed = seed
        self._ignore_eos = ignore_eos
        self._template = template_of(session)

    def turn(self, prompt: Prompt, answers: Sequence[str] = ()) -> Case:
        """The request for answer number `len(answers)`, after the answers so far.

        Raises:
            LeftOut: the template refuses the conversation, or it does not fit the context.
        """
        tokenize = self._session.tokenize
        if prompt.messages:
            try:
                tools = list(prompt.tools) or None
                text = self._template.render(prompt.conversation(answers), tools=tools)
            except TemplateError as problem:
                raise LeftOut(f"{prompt.id}: {problem.message}") from problem
            tokens = self._template.tokenize(text, tokenize)
        else:
            tokens = tokenize(prompt.text, add_special=True, parse_special=True)
        case = Case(f"{prompt.id}#{len(answers)}", prompt.category, tokens, self._n_predict, self._ignore_eos)
        return self._fitting(case)

    def workload(self, workload: Workload) -> Case:
        """Tokens drawn at random to read, and as many as asked for to write.

        Raises:
            LeftOut: it does not fit the context.
        """
        vocab = self._session.vocab
        count = max(workload.n_prompt, 1)
        tokens = _random_text(vocab, count, random.Random(f"{self._seed}:{workload.name}"))
        reading = not workload.n_predict
        n_predict = max(workload.n_predict, 1)
        return self._fitting(Case(workload.name, workload.name, tokens, n_predict, True, reading))

    def text(self, tokens: Sequence[int]) -> str:
        """What an answer says."""
        return b"".join(map(self._session.vocab.piece, tokens)).decode("utf-8", "replace")

    def _fitting(self, case: Case) -> Case:
        room = self._session.n_ctx - case.n_predict
        if not case.tokens:
            raise LeftOut(f"{case.id}: it is empty")
        if len(case.tokens) > room:
            raise LeftOut(
                f"{case.id}: {len(case.tokens)} tokens and an answer of {case.n_predict} do not fit "
                f"the context of {self._session.n_ctx}"
            )
        return case


def _random_text(vocab: Vocab, count: int, chance: random.Random) -> list[int]:
    """Tokens that stand for text: no control tokens."""
    tokens: list[int] = []
    while len(tokens) < count:
        token = chance.randrange(vocab.size)
        if token not in vocab.eog and vocab.piece(token):
            tokens.append(token)
    return tokens
