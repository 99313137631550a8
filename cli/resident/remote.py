"""The model in a running server, in the place of one that is loaded here.

`Remote` has of a `Session` what the commands need that write one text after another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specx.backends.errors import SpecxError, UsageError
from specx.cli.resident.client import Connection, LostError, ask
from specx.cli.resident.place import place_of
from specx.engine.settings import Asked, SamplingSettings
from specx.engine.text.answer import Chunk, Result, Timings
from specx.engine.text.prompt import Encoded, Prompt

if TYPE_CHECKING:
    from specx.engine.text.specials import SpecialTexts

__all__ = ["Remote", "RemoteGeneration", "find", "gone", "sampling_body"]

HELLO_S = 1.0
"""Seconds in which a server has to answer before it counts as none."""

PATIENCE_S = 60.0
"""Seconds that a question about a text may take while the server is at work."""


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

    Attributes:
        pid: its process.
        at_once: texts that it writes together.
    """

    def __init__(self, socket: Path, about: Mapping[str, Any]) -> None:
        self.socket = socket
        self.pid: int = about["pid"]
        self.model_name: str = about["model_name"]
        self.n_ctx: int = about["n_ctx"]
        self.at_once: int = about["at_once"]
        self.vocab = _Vocab(about["vocab_size"])
        self.chat_template: str | None = about["chat_template"]
        self.bos_text: str = about["bos_text"]
        self.eos_text: str = about["eos_text"]
        self.drafter_name: str = about["drafter_name"]
        self.drafter_label: str = about["drafter_label"]
        self.setup = _Setup(about["setup"])
        self._summary: str = about["summary"]

    @cached_property
    def special_texts(self) -> SpecialTexts | None:
        """Control tokens that messages cannot write; None if they may."""
        from specx.backends.base import SpecialToken
        from specx.engine.text.specials import SpecialTexts

        tokens = self._ask("/specx/specials", {})["tokens"]
        return None if tokens is None else SpecialTexts([SpecialToken(*each) for each in tokens])

    def summary(self) -> str:
        """One line: what runs, and what was chosen."""
        return f"{self._summary}, in a server (pid {self.pid})"

    def set_drafter(self, _name: str) -> None:
        """Others use the model as well.

        Raises:
            UsageError: always.
        """
        raise UsageError("the drafter of a model in a server stays as it is", "start again with --server no")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""
        body = {"text": text, "add_special": add_special, "parse_special": parse_special}
        return list(self._ask("/specx/tokenize", body)["tokens"])

    def encode(self, prompt: Prompt, notice: Callable[[str], None]) -> Encoded:
        """The tokens of a prompt; `notice` is told what is odd about it.

        Raises:
            SpecxError: the template cannot be used.
        """
        answer = self._ask("/specx/encode", asdict(prompt))
        for text in answer["notices"]:
            notice(text)
        return Encoded(answer["tokens"], answer["text"], tuple(answer["stops"]), answer["keep"])

    def grammar(self, text: str) -> str:
        """A constraint: the server makes it."""
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
        body = {
            "prompt": list(prompt),
            "sampling": sampling_body(sampling),
            "n_predict": n_predict,
            "stop": list(stop),
            "ignore_eos": ignore_eos,
            "grammar": constraint,
            "keep": keep,
        }
        return RemoteGeneration(self, body, progress or _nobody)

    def close(self) -> None:
        """Nothing is held here."""

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _ask(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One question.

        Raises:
            SpecxError: the server refuses, or is no longer there.
        """
        try:
            with Connection(self.socket, PATIENCE_S) as connection:
                connection.send(route, body)
                answer = next(connection.lines(), None)
        except LostError as problem:
            raise gone(problem) from problem
        if answer is None:
            raise gone()
        _raise_error(answer)
        return answer


def sampling_body(sampling: SamplingSettings) -> dict[str, Any]:
    """How to sample, as JSON; biases as texts, for it has no infinity."""
    bias = [(token, repr(value)) for token, value in sampling.logit_bias.items()]
    return {**asdict(sampling), "logit_bias": bias}


def _nobody(_done: int, _total: int) -> None:
    pass


class RemoteGeneration:
    """One answer of a server. Iterate to get it; then `result` is complete.

    Args:
        remote: the model.
        body: what is asked.
        progress: told how much of the prompt has been read.
    """

    def __init__(self, remote: Remote, body: dict[str, Any], progress: Callable[[int, int], None]) -> None:
        self._remote, self._progress = remote, progress
        self._body = {**body, "id": os.urandom(8).hex()}
        self.result = Result(seed=body["sampling"]["seed"])
        self.result.timings.prompt_n = len(body["prompt"])

    def cancel(self) -> None:
        """Finish after the present step. Safe to call from a signal handler."""
        try:
            ask(self._remote.socket, "/specx/cancel", {"id": self._body["id"]}, HELLO_S)
        except LostError:
            return

    def __iter__(self) -> Iterator[Chunk]:
        try:
            with Connection(self._remote.socket, None) as connection:
                connection.send("/specx/generate", self._body)
                for event in connection.lines():
                    if "read" in event:
                        self._progress(*event["read"])
                    elif "chunk" in event:
                        yield Chunk(**event["chunk"])
                    elif "result" in event:
                        self._finish(event)
                        return
                    else:
                        _raise_error(event)
        except LostError as problem:
            raise gone(problem) from problem
        raise gone()

    def _finish(self, event: dict[str, Any]) -> None:
        self.result = Result(**{**event["result"], "timings": Timings(**event["result"]["timings"])})
        self._remote.drafter_label = event["drafter_label"]
        self._remote.drafter_name = event["drafter_name"]


def gone(problem: Exception | None = None) -> SpecxError:
    """The server ended before it had answered."""
    why = f" ({problem})" if problem is not None and str(problem) else ""
    return SpecxError(
        f"the server that holds the model ended before it had answered{why}",
        "run it again; --server no loads the model here",
    )


def _raise_error(answer: Mapping[str, Any]) -> None:
    """Raises the SpecxError that the server answers with, if it does."""
    found = answer.get("error")
    if found is None:
        return
    problem = SpecxError(str(found.get("message")), str(found.get("hint") or ""))
    problem.exit_code = int(found.get("exit_code", 1))
    raise problem


def find(asked: Asked, explain: Callable[[str], None]) -> Remote | None:
    """The model in a running server that does what is asked, if there is one that answers.

    Args:
        asked: the model and its settings.
        explain: told why one that is there is not used.
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
        remote = Remote(place.socket, about)
    except (LostError, KeyError, TypeError) as problem:
        explain(f"the server at {place.socket} does not answer ({problem}): the model is loaded here")
        return None
    explain(f"the model is in a server (pid {remote.pid}) at {place.socket}")
    return remote
