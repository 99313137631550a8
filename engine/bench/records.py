"""What `specx bench` keeps: every answer of every arm, and what all of them have in common. Plain values."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

__all__ = ["FORMAT", "SHORT", "Answer", "ArmInfo", "Parting", "Run"]

FORMAT = 1
"""Of the JSON; a file of another one is refused."""

SHORT = 16
"""Answers of fewer tokens say little about speed and are left out of the ratios."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer by one arm.

    Attributes:
        case: id of the prompt and number of the turn, "chat-01#0".
        category: of the prompt.
        arm: who answered.
        round: how often it had answered this before.
        started_s: seconds since the run began.
        prompt: digest of the prompt's token ids.
        prompt_n, prompt_ms: tokens of the prompt, and milliseconds to read them.
        first_token_ms: milliseconds from the request to the first token.
        predicted_n, decode_ms: tokens of the answer, and milliseconds to write them.
        steps: calls of the model while writing.
        draft_n, draft_n_accepted: drafted tokens that were verified, and those that were right.
        host_ms: milliseconds of the writing spent outside the model; None if unknown.
        joules: energy of the processor packages; None if it cannot be read.
        reading: what counts is the time to read the prompt, not the time to write.
        tokens: ids of the answer, without the one that ends it.
        step_ms, step_width, step_tokens: of each step its milliseconds, the tokens it verified and those it
            emitted; empty where the arm does not tell.
        sources: where each token of the answer came from; empty where the arm does not tell.
        by_source: source -> [drafted, accepted].
        by_depth: [drafted, accepted] for tokens 1, 2, ... ahead.
    """

    case: str
    category: str
    arm: str
    round: int = 0
    started_s: float = 0.0
    prompt: str = ""
    prompt_n: int
    prompt_ms: float
    first_token_ms: float
    predicted_n: int
    decode_ms: float
    steps: int
    draft_n: int = 0
    draft_n_accepted: int = 0
    host_ms: float | None = None
    joules: float | None = None
    reading: bool = False
    tokens: list[int]
    step_ms: list[float] = field(default_factory=list)
    step_width: list[int] = field(default_factory=list)
    step_tokens: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    by_source: dict[str, list[int]] = field(default_factory=dict)
    by_depth: list[list[int]] = field(default_factory=list)

    @property
    def counts(self) -> bool:
        """Whether it is long enough to tell a speed."""
        return self.prompt_n >= SHORT if self.reading else self.predicted_n >= SHORT

    @property
    def ms_per_token(self) -> float:
        """Milliseconds for each token written, or read if reading is what counts."""
        if self.reading:
            return max(self.prompt_ms, 1e-6) / max(self.prompt_n, 1)
        return max(self.decode_ms, 1e-6) / max(self.predicted_n, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmInfo:
    """Who answers.

    Attributes:
        name: what to call it; unique in a run.
        plain: name of the arm that must say the same, token by token: the one without drafts on the same
            kernels, or of the same program.
        peer: it is another program.
        drafter, kernels, threads: of an arm of specx; threads 0 are unknown.
        command: of a peer, its command line.
        load_s: seconds to load the model, which are part of no other number.
        setup: of an arm of specx, everything that was decided for it, as `Setup.to_json` has it.
        weight_bytes: bytes of weights that decoding one token reads; 0 if unknown.
        peak_bytes: most memory of its process so far; arms of specx share one. None if it cannot be read.
    """

    name: str
    plain: str
    peer: bool = False
    drafter: str = ""
    kernels: str = ""
    threads: int = 0
    command: list[str] = field(default_factory=list)
    load_s: float = 0.0
    setup: dict[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """Where an answer leaves that of its plain arm.

    Attributes:
        case, arm, round: which answer.
        index: the first token that differs, counted from 0.
        margin: how far ahead the plain token was there, in units of the tempered logits; None if unknown.
        noise: largest difference of a logit between reading that context in one way and in another.
        near_tie: whether noise of that size can overturn that margin.
    """

    case: str
    arm: str
    round: int
    index: int
    margin: float | None = None
    noise: float | None = None
    near_tie: bool = False


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of `specx bench`.

    Attributes:
        started: local date and time, ISO 8601.
        model, machine, build, settings: what the numbers depend on, as plain values.
        baseline: name of the arm that speeds are compared with.
        arms: who answered.
        answers: in the order they were measured.
        partings: answers that differ from plain decoding.
        staircases: plain arm -> depth -> width -> milliseconds of a step.
        left_out: prompts that did not fit, and why.
        load_average: of the machine, before and after; empty if it cannot be read.
        seconds: how long the measuring took.
        partial: it was interrupted.
    """

    started: str
    model: dict[str, Any]
    machine: dict[str, Any]
    build: dict[str, Any]
    settings: dict[str, Any]
    baseline: str
    arms: list[ArmInfo]
    answers: list[Answer] = field(default_factory=list)
    partings: list[Parting] = field(default_factory=list)
    staircases: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    load_average: list[float] = field(default_factory=list)
    seconds: float = 0.0
    partial: bool = False

    @property
    def specx_arms(self) -> list[ArmInfo]:
        """The arms that are specx."""
        return [arm for arm in self.arms if not arm.peer]

    def of(self, arm: str) -> list[Answer]:
        """The answers of one arm."""
        return [answer for answer in self.answers if answer.arm == arm]

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> Run:
        """The run that `to_json` wrote; keys it does not know are ignored.

        Raises:
            ValueError: it is something else, or of another format.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError("it is not a result of this version of specx bench")
        parts = {
            "arms": [_built(ArmInfo, row) for row in _rows(data, "arms")],
            "answers": [_built(Answer, row) for row in _rows(data, "answers")],
            "partings": [_built(Parting, row) for row in _rows(data, "partings")],
        }
        run = _built(cls, {**data, **parts})
        names = {arm.name for arm in run.arms}
        if run.baseline not in names or any(answer.arm not in names for answer in run.answers):
            raise ValueError("it names an arm that it does not have")
        return run


def _rows(data: Mapping[str, Any], key: str) -> list[Any]:
    rows = data.get(key)
    if not isinstance(rows, list):
        raise ValueError(f"{key} is no list")
    return rows


def _built(kind: type[T], row: Any) -> T:
    """An object of a dataclass from a mapping whose values have the declared types."""
    if not isinstance(row, dict):
        raise ValueError(f"{kind.__name__} is not an object")
    hints = _hints(kind.__name__)
    values = {}
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name in row:
            if not _fits(row[item.name], hints[item.name]):
                raise ValueError(f"{item.name} of {kind.__name__} is {type(row[item.name]).__name__}")
            values[item.name] = row[item.name]
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{kind.__name__} has no {item.name}")
    return kind(**values)


@cache
def _hints(name: str) -> dict[str, Any]:
    return get_type_hints({kind.__name__: kind for kind in (Answer, ArmInfo, Parting, Run)}[name])


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON has the declared type, its elements included."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is types.UnionType:
        return any(_fits(value, part) for part in parts)
    if origin in (list, dict):
        elements = value.values() if isinstance(value, dict) else value
        return isinstance(value, origin) and all(_fits(each, parts[-1]) for each in elements)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, float | int if hint is float else hint)
