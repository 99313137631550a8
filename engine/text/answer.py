"""What is asked for one text, and what is given: piece by piece, and as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specx.backends.base import Progress
    from specx.backends.errors import SpecxError
    from specx.engine.decode import Evidence, Step
    from specx.engine.sampling import Constraint
    from specx.engine.settings import SamplingSettings

__all__ = ["Chunk", "Request", "Result", "Timings"]


@dataclass(slots=True)  # some a step: a frozen one takes three times as long to make
class Chunk:
    """What one step added.

    Attributes:
        text: newly released text, possibly empty.
        tokens: emitted tokens.
        drafted: drafted tokens that were verified.
        accepted: those of them that were right.
        seconds: time of the step, with what was measured, looked for and read of other prompts since the one
            before.
        sources: name of the source of each emitted token; "target" for the model's own.
        step: the turn of the loop it comes from; None for text that was held back until the end.
        last: whether nothing follows. Each answer has exactly one such chunk, however it ends.
    """

    text: str
    tokens: list[int]
    drafted: int
    accepted: int
    seconds: float
    sources: list[str]
    step: Step | None = None
    last: bool = False


@dataclass(slots=True)
class Timings:
    """Counts and times of one generation; the names are those of llama.cpp's server where it has them.

    Attributes:
        prompt_n, prompt_ms, prompt_per_second: of reading the prompt, as far as it was not cached.
        cached_n: tokens of the prompt that were not read again.
        predicted_n, predicted_ms, predicted_per_second: of writing, everything included.
        draft_n, draft_n_accepted: drafted tokens that were verified, and that were right.
        steps: turns of the loop.
        host_ms: time of the steps outside the models.
        draft_ms: time of sources of drafts that cost time.
        explored_ms: the part of it that was spent to learn how good they are.
        overhead_ms: the part of `predicted_ms` in which steps were timed, draft models were looked for or
            the prompts of others were read.
    """

    prompt_n: int = 0
    prompt_ms: float = 0.0
    prompt_per_second: float = 0.0
    cached_n: int = 0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    predicted_per_second: float = 0.0
    draft_n: int = 0
    draft_n_accepted: int = 0
    steps: int = 0
    host_ms: float = 0.0
    draft_ms: float = 0.0
    explored_ms: float = 0.0
    overhead_ms: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, times rounded to microseconds."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(slots=True)
class Result:
    """One finished answer.

    Attributes:
        text: all released text.
        tokens: all emitted tokens, the end-of-generation token excluded.
        finish_reason: "stop", "length", "context", "cancelled" or "error".
        seed: the seed in use, chosen by specx if none was given.
        timings: counts and times.
        evidence: why each token was chosen, if that was asked for.
        prompt_evidence: of each token of the prompt but the first, given those before it, if that was asked
            for; nobody chose them, so their margins are 0.
        failure: why it could not be written, if it could not.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = "cancelled"
    seed: int = 0
    timings: Timings = field(default_factory=Timings)
    evidence: list[Evidence] = field(default_factory=list, compare=False)
    prompt_evidence: list[Evidence] = field(default_factory=list, compare=False)
    failure: SpecxError | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        prompt: all tokens of the conversation so far, at least one.
        sampling: how tokens are chosen, with a seed.
        n_predict: most tokens to emit; None means no limit.
        stop: strings that end the answer and are not part of it.
        ignore_eos: go on past the end of generation, as long as the constraint allows anything else.
        constraint: what the text must match.
        keep: tokens of the prompt that stay when the context shifts, at least BOS; negative means all.
        progress: told how much of the prompt has been read.
        evidence: record why each token was chosen.
        score_prompt: record how probable each token of the prompt was; all of it is read, whatever is cached.
        shown: control tokens whose text is part of the answer's; others have none.
    """

    prompt: Sequence[int]
    sampling: SamplingSettings
    n_predict: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    constraint: Constraint | None = None
    keep: int = 0
    progress: Progress | None = None
    evidence: bool = False
    score_prompt: bool = False
    shown: frozenset[int] = frozenset()

    @property
    def endless(self) -> bool:
        """Whether only its limit ends it."""
        return self.ignore_eos and not self.stop and self.constraint is None
