"""Text that a model writes to be learned from: its answers to questions that it asks itself.

A few built-in prompts tell little of what a model writes. An instructed model goes on from the beginning of a
user's message with a question of its own (Magpie, arXiv 2406.08464), and such questions and what it has
answered fill the gaps of forms (`asking.py`). A small model ends in loops; there a text is cut, as what it
repeats teaches nothing more. Which text comes next depends on the seed, its number and texts well before it,
so the texts are the same whenever it is interrupted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from specx.backends.errors import FileError, TemplateError
from specx.drafters.train.states import unwritable
from specx.engine.generation import Generation
from specx.engine.making.asking import Forms
from specx.engine.making.samples import prompt_tokens, prompts
from specx.engine.session import Session
from specx.engine.settings import SamplingSettings

__all__ = ["ANSWER", "Written", "WrittenTexts", "before_loop", "plain_texts", "write_texts"]

BEHIND = 128
"""A text may depend on those that are so many before it: more are not written at once."""
QUESTION, ANSWER = 64, 192  # tokens, at most
LEAST, MOST = 10, 400  # characters of a question that is of use
ASKING = 0.15  # share of texts that are questions
GREEDY = 0.5  # share of answers; the others are sampled at
TEMPERATURES = (0.7, 0.85, 1.0)
PHRASE = 8  # tokens that are written again are a repetition
LOOKED_AT, REPEATED = 32, 24  # tokens, and of them those that end a repetition, where a text goes in circles
EVERY = 16  # tokens after which that is looked for again
MARK = "qzmwjk"


@dataclass(frozen=True, slots=True)
class Written:
    """One text.

    Attributes:
        tokens: of the whole text, the prompt's first.
        start: the first that the model chose.
        question: whether it is a user's message that the model made up.
        text: what it wrote.
    """

    tokens: tuple[int, ...]
    start: int
    question: bool
    text: str


class WrittenTexts:
    """The texts of a file, one line each.

    Args:
        path: the file, which need not be there. From a line on that was not written whole it is cut off.

    Attributes:
        texts: in order.
        tokens: that the model chose, in all of them.
        dropped: bytes that were cut off.

    Raises:
        FileError: it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.texts: list[Written] = []
        self.tokens = whole = 0
        try:
            data = path.read_bytes() if path.exists() else b""
            for line in data.splitlines(keepends=True):
                if (text := _parsed(line)) is None:
                    break
                self._count(text)
                whole += len(line)
            self.dropped = len(data) - whole
            if self.dropped:
                with path.open("r+b") as file:
                    file.truncate(whole)
        except OSError as error:
            raise FileError(f"cannot read {path}: {error.strerror or error}") from error

    def append(self, text: Written) -> None:
        """Add a text.

        Raises:
            FileError: it cannot be written.
        """
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(asdict(text)).encode() + b"\n")
        except OSError as error:
            raise unwritable(self._path, error) from error
        self._count(text)

    def _count(self, text: Written) -> None:
        self.texts.append(text)
        self.tokens += len(text.tokens) - text.start


def write_texts(
    session: Session,
    texts: WrittenTexts,
    seed: int,
    enough: Callable[[int], bool],
    at_once: int | None = None,
) -> None:
    """Let a model write until it is enough. Texts are not remembered.

    Args:
        session: the model.
        texts: where they go, and which there are.
        seed: of everything that is drawn.
        enough: given the tokens that were chosen so far, whether to stop. What is not finished is left out.
        at_once: most texts that are written together; by default as many as there is room for.

    Raises:
        FileError: a text cannot be written to disk.
    """
    source = _Source(session, texts, seed, enough)
    for generation, chunk in session.together(source, at_once):
        if source.ended:
            generation.cancel()
        elif chunk.last:
            source.finished(generation)
        else:
            source.ended = enough(texts.tokens)
            written = generation.result.tokens
            if len(written) % EVERY == 0 and before_loop(written) < len(written):
                generation.cancel()
    session.forget_learned()


class _Label(NamedTuple):
    """Which text it is, and whether a question."""

    number: int
    question: bool


class _Source:
    """Generations by number. Implements `Arrivals`.

    Attributes:
        ended: whether no more is wanted.
    """

    def __init__(
        self, session: Session, texts: WrittenTexts, seed: int, enough: Callable[[int], bool]
    ) -> None:
        self._session, self._texts, self._seed, self._enough = session, texts, seed, enough
        self._next = len(texts.texts)
        self._ready: dict[int, Written] = {}  # finished before one with a lower number
        self._begun = list(prompts())
        self._forms = Forms()
        self._opening = _opening(session)
        self.ended = enough(texts.tokens)

    def take(self, wait: bool) -> Generation | None:
        """The next one, once the texts that it may depend on are there."""
        del wait
        if self.ended or self._next >= len(self._texts.texts) + BEHIND:
            return None
        generation = self._make(self._next)
        self._next += 1
        return generation

    def finished(self, generation: Generation) -> None:
        """Keep what it wrote, when its turn comes."""
        assert isinstance(generation.label, _Label)
        number, question = generation.label
        result, prompt = generation.result, generation.request.prompt
        written = result.tokens[: before_loop(result.tokens)]
        said = result.text if len(written) == len(result.tokens) else self._text_of(written)
        self._ready[number] = Written((*prompt, *written), len(prompt), question, said)
        while not self.ended and (text := self._ready.pop(len(self._texts.texts), None)) is not None:
            self._texts.append(text)
            self.ended = self._enough(self._texts.tokens)

    def _text_of(self, tokens: Sequence[int]) -> str:
        vocab = self._session.model.vocab
        return b"".join(vocab.piece(token) for token in tokens).decode("utf-8", "ignore")

    def _make(self, number: int) -> Generation:
        """The text of that number."""
        chance = random.Random(f"{self._seed} {number}")
        known = self._texts.texts[: max(number - BEHIND, 0)]
        if number < len(self._begun):
            return self._answer(number, self._begun[number], 0.0, chance)
        if self._opening and chance.random() < ASKING:
            sampling = SamplingSettings(chance.getrandbits(31), 1.0, top_k=0, min_p=0.02)
            return self._generation(number, self._opening, sampling, QUESTION, question=True)
        temperature = 0.0 if chance.random() < GREEDY else chance.choice(TEMPERATURES)
        return self._answer(number, self._asked(known, chance), temperature, chance)

    def _asked(self, known: list[Written], chance: random.Random) -> str:
        """A form, filled with what was written before."""
        answers = [text.text for text in known if not text.question and text.text.strip()]
        made_up = [text.text.strip() for text in known if text.question]
        return self._forms.ask(answers, [text for text in made_up if LEAST <= len(text) <= MOST], chance)

    def _answer(self, number: int, asked: str, temperature: float, chance: random.Random) -> Generation:
        sampling = SamplingSettings(chance.getrandbits(31), temperature, top_k=0, top_p=1.0, min_p=0.0)
        prompt = prompt_tokens(self._session, asked)
        return self._generation(number, prompt, sampling, ANSWER, question=False)

    def _generation(
        self, number: int, prompt: list[int], sampling: SamplingSettings, most: int, *, question: bool
    ) -> Generation:
        prompt = prompt[: max(self._session.n_ctx - most, 1)]
        label = _Label(number, question)
        return self._session.generate(prompt, sampling, n_predict=most, label=label)


def before_loop(tokens: Sequence[int]) -> int:
    """How many of the tokens come before, and begin to, go in circles; all where they do not."""
    seen: set[tuple[int, ...]] = set()
    again: list[bool] = []
    for end in range(1, len(tokens) + 1):
        phrase = tuple(tokens[max(end - PHRASE, 0) : end])
        again.append(phrase in seen)
        if sum(again[-LOOKED_AT:]) >= REPEATED:
            return end
        if len(phrase) == PHRASE:
            seen.add(phrase)
    return len(tokens)


def _opening(session: Session) -> list[int]:
    """The tokens before a user's message; none where the chat template cannot tell."""
    from specx.engine.text.template import template_of

    if session.chat_template is None:
        return []
    try:
        rendered = template_of(session).render([{"role": "user", "content": MARK}])
    except TemplateError:
        return []
    before, found, _after = rendered.partition(MARK)
    return session.tokenize(before, add_special=True, parse_special=True) if found and before else []


def _parsed(line: bytes) -> Written | None:
    """A text; None if the line is not what `append` writes."""
    try:
        values = json.loads(line)
        text = Written(tuple(values["tokens"]), values["start"], values["question"], values["text"])
    except (ValueError, KeyError, TypeError):
        return None
    sound = (
        line.endswith(b"\n")
        and all(type(token) is int and token >= 0 for token in text.tokens)
        and type(text.start) is int
        and 0 < text.start <= len(text.tokens)
        and isinstance(text.text, str)
    )
    return text if sound else None


def plain_texts(texts: Iterator[str], session: Session, length: int) -> Iterator[list[int]]:
    """Token ids of texts that somebody else wrote, in pieces that are read at once."""
    for text in texts:
        tokens = session.tokenize(text, add_special=True, parse_special=False)
        for at in range(0, len(tokens), length):
            if len(piece := tokens[at : at + length]) > 1:
                yield piece
