"""The model in a running server, in the place of one that is loaded here.

`Remote` has of a `Session` what the commands need that write one text after another. Where the server cannot
be had any more (its queue is full, it is going away or gone), the model is loaded here after all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from specx.backends.errors import SpecxError, UsageError
from specx.cli.resident.client import Connection, LostError, ask
from specx.cli.resident.place import place_of
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.text.answer import Chunk, Result, Timings
from specx.engine.text.prompt import Encoded, Prompt

if TYPE_CHECKING:
    from specx.engine.generation import Generation
    from specx.engine.session import Session
    from specx.engine.text.specials import SpecialTexts

__all__ = ["REFUSED", "Remote", "RemoteGeneration", "UnavailableError", "find", "gone", "sampling_body"]

Said = TypeVar("Said")

Loader = Callable[["UnavailableError"], "Session"]
"""Loads the model, and is told why."""

REFUSED = (429, 503)
"""Statuses of a server that is busy, or on its way."""

HELLO_S = 1.0
"""Seconds in which a server has to answer before it counts as none."""

PATIENCE_S = 60.0
"""Seconds that a question about a text may take while the server is at work."""


class UnavailableError(SpecxError):
    """The server takes no more requests, or is no longer there."""


class _Sized(Protocol):
    """What is known of a vocabulary."""

    @property
    def size(self) -> int:
        """How many tokens it has."""


class _Decided(Protocol):
    """What was decided when a model was loaded."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""


@dataclass(frozen=True, slots=True)
class _Vocab:
    size: int


@dataclass(frozen=True, slots=True)
class _Setup:
    """What was decided when the server loaded the model."""

    value: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As the server tells it."""
        return self.value


class Remote:
    """A model in a server of this user.

    Args:
        socket: where it listens.
        about: what it says about itself.
        load: loads the model here, where the server cannot be had any more; None where that is an error.

    Attributes:
        pid: its process.
        at_once: texts that it writes together.
        session: the model, once it was loaded here.
    """

    def __init__(self, socket: Path, about: Mapping[str, Any], load: Loader | None = None) -> None:
        self.socket = socket
        self.session: Session | None = None
        self._load = load
        self.pid: int = about["pid"]
        self.model_name: str = about["model_name"]
        self.n_ctx: int = about["n_ctx"]
        self.at_once: int = about["at_once"]
        self.vocab: _Sized = _Vocab(about["vocab_size"])
        self.chat_template: str | None = about["chat_template"]
        self.bos_text: str = about["bos_text"]
        self.eos_text: str = about["eos_text"]
        self.drafter_name: str = about["drafter_name"]
        self.drafter_label: str = about["drafter_label"]
        self.setup: _Decided | None = _Setup(about["setup"])
        self._summary: str = about["summary"]

    def load(self, problem: UnavailableError) -> Session:
        """The model, loaded here because of a problem with the server.

        Raises:
            UnavailableError: nothing loads it.
            SpecxError: it cannot be loaded.
        """
        if self._load is None:
            raise problem
        session = self.session = self._load(problem)
        self.n_ctx, self.vocab, self.setup = session.n_ctx, session.vocab, session.setup
        self._label(session)
        return session

    def _label(self, session: Session) -> None:
        self.drafter_name, self.drafter_label = session.drafter_name, session.drafter_label

    def _either(self, there: Callable[[], Said], here: Callable[[Session], Said]) -> Said:
        """What the server says; what the model says that is loaded here, once the server cannot be had."""
        if self.session is None:
            try:
                return there()
            except UnavailableError as problem:
                self.load(problem)
        assert self.session is not None
        return here(self.session)

    @cached_property
    def special_texts(self) -> SpecialTexts | None:
        """Control tokens that messages cannot write; None if they may."""
        from specx.backends.base import SpecialToken
        from specx.engine.text.specials import SpecialTexts

        def there() -> SpecialTexts | None:
            tokens = self._ask("/specx/specials", {})["tokens"]
            return None if tokens is None else SpecialTexts([SpecialToken(*each) for each in tokens])

        return self._either(there, lambda session: session.special_texts)

    def summary(self) -> str:
        """One line: what runs, and what was chosen."""
        if self.session is not None:
            return self.session.summary()
        return f"{self._summary}, in a server (pid {self.pid})"

    def set_drafter(self, name: str) -> None:
        """Draft with the drafter of that name from now on.

        Raises:
            UsageError: others use the model as well, or there is no such drafter.
        """
        if self.session is None:
            raise UsageError(
                "the drafter of a model in a server stays as it is", "start again with --server no"
            )
        self.session.set_drafter(name)
        self._label(self.session)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""
        flags = {"add_special": add_special, "parse_special": parse_special}
        return self._either(
            lambda: list(self._ask("/specx/tokenize", {"text": text, **flags})["tokens"]),
            lambda session: session.tokenize(text, **flags),
        )

    def encode(self, prompt: Prompt, notice: Callable[[str], None]) -> Encoded:
        """The tokens of a prompt; `notice` is told what is odd about it.

        Raises:
            SpecxError: the template cannot be used.
        """
        from specx.engine.text.prompt import encode

        def there() -> Encoded:
            answer = self._ask("/specx/encode", asdict(prompt))
            for text in answer["notices"]:
                notice(text)
            return Encoded(answer["tokens"], answer["text"], tuple(answer["stops"]), answer["keep"])

        return self._either(there, lambda session: encode(prompt, session, notice))

    def grammar(self, text: str) -> str:
        """A constraint: whoever writes makes it."""
        return text

    def generate(
        self,
        prompt: Sequence[int],
        sampling: SamplingSettings,
        *,
        n_predict: int = -1,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        constraint: str | None = None,
        keep: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> RemoteGeneration:
        """Prepare an answer to `prompt`, as `Session.generate` does; iterate over it to get it."""
        if sampling.seed is None:  # as many bits as a session chooses
            sampling = replace(sampling, seed=int.from_bytes(os.urandom(4)))
        options = {"n_predict": n_predict, "stop": list(stop), "ignore_eos": ignore_eos, "keep": keep}
        return RemoteGeneration(self, list(prompt), sampling, constraint, options, progress or _nobody)

    def close(self) -> None:
        """What is held here is kept, and its memory given back."""
        if self.session is not None:
            self.session.close()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _ask(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One question.

        Raises:
            UnavailableError: the server is busy, or no longer there.
            SpecxError: it refuses.
        """
        try:
            with Connection(self.socket, PATIENCE_S) as connection:
                connection.send(route, body)
                answer = next(connection.lines(), None)
        except LostError as problem:
            raise gone(problem) from problem
        if answer is None:
            raise gone()
        _raise_error(answer, connection.status)
        return answer


def sampling_body(sampling: SamplingSettings) -> dict[str, Any]:
    """How to sample, as JSON; biases as texts, for it has no infinity."""
    bias = [(token, repr(value)) for token, value in sampling.logit_bias.items()]
    return {**asdict(sampling), "logit_bias": bias}


def _nobody(_done: int, _total: int) -> None:
    pass


class RemoteGeneration:
    """One answer of a server. Iterate to get it; then `result` is complete.

    If the server cannot be had before anything of it has come, it is written here.

    Args:
        remote: the model.
        prompt: its tokens.
        sampling: how tokens are chosen; has a seed.
        grammar: what the answer must match, as GBNF; None for anything.
        options: what else `Session.generate` takes.
        progress: told how much of the prompt has been read.
    """

    def __init__(
        self,
        remote: Remote,
        prompt: list[int],
        sampling: SamplingSettings,
        grammar: str | None,
        options: dict[str, Any],
        progress: Callable[[int, int], None],
    ) -> None:
        assert sampling.seed is not None
        self._remote, self._prompt, self._sampling, self._grammar = remote, prompt, sampling, grammar
        self._options, self._progress = options, progress
        self._id = os.urandom(8).hex()
        self._cancelled = False
        self._here: Generation | None = None
        self.result = Result(seed=sampling.seed)
        self.result.timings.prompt_n = len(prompt)

    def cancel(self) -> None:
        """Finish after the present step. Safe to call from a signal handler."""
        self._cancelled = True
        if self._here is not None:
            self._here.cancel()
        elif self._remote.session is None:
            with suppress(LostError):
                ask(self._remote.socket, "/specx/cancel", {"id": self._id}, HELLO_S)

    def __iter__(self) -> Iterator[Chunk]:
        if self._remote.session is None:
            begun = False
            try:
                for chunk in self._written_there():
                    begun = True
                    yield chunk
                return
            except UnavailableError as problem:
                if begun:
                    raise
                if self._cancelled:
                    self.result.finish_reason = "cancelled"
                    return
                self._remote.load(problem)
        yield from self._written_here()

    def _written_there(self) -> Iterator[Chunk]:
        body = {
            "id": self._id,
            "prompt": self._prompt,
            "sampling": sampling_body(self._sampling),
            "grammar": self._grammar,
            **self._options,
        }
        try:
            with Connection(self._remote.socket, None) as connection:
                connection.send("/specx/generate", body)
                for event in connection.lines():
                    if "read" in event:
                        self._progress(*event["read"])
                    elif "chunk" in event:
                        yield Chunk(**event["chunk"])
                    elif "result" in event:
                        self._finish(event)
                        return
                    else:
                        _raise_error(event, connection.status)
        except LostError as problem:
            raise gone(problem) from problem
        raise gone()

    def _finish(self, event: dict[str, Any]) -> None:
        self.result = Result(**{**event["result"], "timings": Timings(**event["result"]["timings"])})
        self._remote.drafter_label = event["drafter_label"]
        self._remote.drafter_name = event["drafter_name"]

    def _written_here(self) -> Iterator[Chunk]:
        session = self._remote.session
        assert session is not None
        constraint = None if self._grammar is None else session.grammar(self._grammar)
        self._here = session.generate(
            self._prompt, self._sampling, constraint=constraint, progress=self._progress, **self._options
        )
        if self._cancelled:  # while it was loaded
            self._here.cancel()
        yield from self._here
        self.result = self._here.result


def gone(problem: Exception | None = None) -> UnavailableError:
    """The server ended before it had answered."""
    why = f" ({problem})" if problem is not None and str(problem) else ""
    return UnavailableError(
        f"the server that holds the model ended before it had answered{why}",
        "run it again; --server no loads the model here",
    )


def _raise_error(answer: Mapping[str, Any], status: int) -> None:
    """Raises the SpecxError that the server answers with, if it does."""
    found = answer.get("error")
    if found is None:
        return
    kind = UnavailableError if found.get("unavailable") or status in REFUSED else SpecxError
    problem = kind(str(found.get("message")), str(found.get("hint") or ""))
    problem.exit_code = int(found.get("exit_code", 1))
    raise problem


def find(asked: Asked, explain: Callable[[str], None], load: Loader | None = None) -> Remote | None:
    """The model in a running server that does what is asked, if there is one that answers.

    Args:
        asked: the model and its settings.
        explain: told why one that is there is not used.
        load: as of `Remote`.
    """
    from specx import __version__

    place = place_of(asked)
    if place is None or not os.path.lexists(place.socket):
        return None
    try:
        about = ask(place.socket, "/specx/hello", {}, HELLO_S)
        if about.get("version") != __version__:
            explain(f"the server at {place.socket} is of another version: the model is loaded here")
            return None
        if about["busy"]:
            explain(f"the server at {place.socket} takes no more requests at the moment")
            return None
        remote = Remote(place.socket, about, load)
    except (LostError, KeyError, TypeError) as problem:
        explain(f"the server at {place.socket} does not answer ({problem}): the model is loaded here")
        return None
    explain(f"the model is in a server (pid {remote.pid}) at {place.socket}")
    return remote
