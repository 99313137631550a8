"""One request and its answers: prompts on their way in, bodies and streaming events on their way out."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from specx.backends.errors import SpecxError
from specx.engine.api.asks import Ask, Prompt
from specx.engine.api.choices import ChatChoice, Choice, CompletionChoice
from specx.engine.api.dialect import Talk, dialect_of
from specx.engine.api.errors import RequestError
from specx.engine.api.usage import timings_of, usage_of
from specx.engine.session import Chunk, Generation, Session

__all__ = ["Exchange"]


class Exchange:
    """What a request is answered with, in the forms of OpenAI's API.

    Its generations are written by whoever made it, who gives every chunk of them to `feed`, in order.

    Args:
        session: the model.
        ask: the request.
        id: of the response; a random one unless it is given.

    Attributes:
        generations: what is to be written, for each prompt its `n` answers. Sample i has the seed of the
            request plus i.
        id: of the response.

    Raises:
        RequestError: the request cannot be put to this model.
    """

    def __init__(self, session: Session, ask: Ask, *, id: str | None = None) -> None:
        self.ask = ask
        self.id = id or f"{'chatcmpl' if ask.chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._failure: SpecxError | None = None
        seed = ask.sampling.seed
        self._seed = secrets.randbits(32) if seed is None else seed
        _check_biases(ask, session.vocab.size)
        with _about("messages" if ask.chat else "prompt"):
            self._choices = list(self._prepare(session))
        self.generations = tuple(choice.generation for choice in self._choices)
        self._by_generation = {_key(choice.generation): choice for choice in self._choices}
        self._left = len(self._choices)

    def feed(self, generation: Generation, *chunks: Chunk) -> list[dict[str, Any]]:
        """The streaming events that chunks of one of the generations add, at least one of them: what is told
        of several at once is one event.

        The last one of all is the usage, if the request asks for it. If an answer cannot be written, an event
        with an `error` is the last one, and the other answers end as well.
        """
        choice = self._by_generation[_key(generation)]
        events = [self._event([each], choice) for each in choice.feed(chunks)]
        if chunks[-1].last:
            self._left -= 1
            failure = choice.failure
            if failure is not None and self._failure is None:
                self._failure = failure
                self.cancel()
                events.append(self._error().body())
            if self._left == 0 and self._failure is None and self.ask.include_usage:
                events.append({**self._head(chunked=True), "choices": [], **self._totals()})
        return events if self._failure is None else [event for event in events if "error" in event]

    @property
    def done(self) -> bool:
        """Whether every answer has ended."""
        return self._left == 0

    def body(self) -> dict[str, Any]:
        """The whole response, once all answers have ended.

        Raises:
            RequestError: an answer could not be written.
        """
        if self._failure is not None:
            raise self._error()
        choices = [choice.body() for choice in self._choices]
        return {**self._head(chunked=False), "choices": choices, **self._totals()}

    def cancel(self) -> None:
        """End all answers after the present step."""
        for generation in self.generations:
            generation.cancel()

    def _error(self) -> RequestError:
        assert self._failure is not None
        return RequestError.of(self._failure, status=500)

    def _prepare(self, session: Session) -> Iterator[Choice]:
        """The answers to be written, each with its generation."""
        ask = self.ask
        if ask.chat:
            dialect = dialect_of(session, tools=bool(ask.tools))
            talk = dialect.talk(ask, session)
            for sample in range(ask.n):
                generation = self._generation(session, talk.tokens, sample, talk)
                yield ChatChoice(sample, generation, ask, session.vocab, talk.parser(), self.id)
            return
        for place, prompt in enumerate(ask.prompts):
            tokens, text, added = _encoded(session, prompt)
            for sample in range(ask.n):
                index, generation = place * ask.n + sample, self._generation(session, tokens, sample)
                yield CompletionChoice(index, generation, ask, session.vocab, text, added)

    def _generation(
        self, session: Session, tokens: Sequence[int], sample: int, talk: Talk | None = None
    ) -> Generation:
        ask = self.ask
        with _about("grammar"):
            if talk is not None:
                constraint = talk.constraint(session, ask)
            else:
                constraint = None if ask.grammar is None else session.grammar(ask.grammar)
        return session.generate(
            tokens,
            replace(ask.sampling, seed=self._seed + sample),
            n_predict=-1 if ask.n_predict is None else ask.n_predict,
            stop=ask.stop if talk is None else (*ask.stop, *talk.stops),
            ignore_eos=ask.ignore_eos,
            constraint=constraint,
            keep=ask.keep if talk is None else ask.keep or talk.keep,
            evidence=ask.logprobs is not None,
            score_prompt=ask.echo and ask.logprobs is not None,
            shown=frozenset() if talk is None else talk.shown,
        )

    def _head(self, *, chunked: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.ask.chat:
            kind = "chat.completion.chunk" if chunked else "chat.completion"
        return {"id": self.id, "object": kind, "created": self._created, "model": self.ask.model}

    def _event(self, choices: list[dict[str, Any]], choice: Choice) -> dict[str, Any]:
        event = {**self._head(chunked=True), "choices": choices}
        if self.ask.include_usage:
            event["usage"] = None
        if self.ask.timings_per_token or choices[0]["finish_reason"]:
            event["timings"] = timings_of([choice.generation])
        return event

    def _totals(self) -> dict[str, Any]:
        return {
            "usage": usage_of(self.generations, self.ask.n),
            "timings": timings_of(self.generations),
        }


@contextmanager
def _about(param: str) -> Iterator[None]:
    """What goes wrong within is the fault of a field of the request."""
    try:
        yield
    except SpecxError as problem:
        raise RequestError.of(problem, param) from problem


def _check_biases(ask: Ask, size: int) -> None:
    for token in ask.sampling.logit_bias:
        if token >= size:
            raise RequestError(
                f"logit_bias names token {token}, which the model does not have",
                "logit_bias",
                hint=f"token ids go from 0 to {size - 1}",
            )


def _key(generation: Generation) -> int:
    return id(generation)


def _encoded(session: Session, prompt: Prompt) -> tuple[list[int], str, int]:
    """The tokens of a prompt, its text, and how many tokens at its beginning are not in the text.

    Raises:
        RequestError: a token id is not in the vocabulary.
    """
    vocab = session.vocab
    if isinstance(prompt, str):
        tokens = session.tokenize(prompt, add_special=True, parse_special=True)
        bos = vocab.added_bos
        return tokens, prompt, int(bos is not None and tokens[:1] == [bos])
    for token in prompt:
        if not 0 <= token < vocab.size:
            raise RequestError(
                "the prompt has a token id that the model does not have",
                "prompt",
                hint=f"token ids go from 0 to {vocab.size - 1}",
            )
    data = b"".join(vocab.piece(token, special=True) for token in prompt)
    return list(prompt), data.decode("utf-8", "replace"), 0
