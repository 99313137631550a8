"""A loaded model and the generations it makes.

A session owns the target, the drafter, the plan and what is kept of them between runs. A generation is one
answer: it reads the prompt (reusing what the cache already holds), runs the decode loop, turns tokens into
text and stops where it should.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from specx.backends.base import Backend, Progress
from specx.backends.errors import ContextFullError, GrammarError, UsageError
from specx.backends.settings import LoadSettings
from specx.drafters.base import Drafter
from specx.drafters.mixture import CombinedDrafter
from specx.engine.cost.identity import Identity, identity_text, measure_identity
from specx.engine.cost.staircase import Staircase
from specx.engine.decode import Evidence, Step, decode
from specx.engine.drafting import WITH_MODEL, DraftModels
from specx.engine.learned.knowledge import Learned
from specx.engine.plan import Plan
from specx.engine.sampling import Constraint, Sampler
from specx.engine.settings import SamplingSettings
from specx.engine.text.stream import StopMatcher, StreamDecoder

__all__ = ["DRAFTERS", "Chunk", "Generation", "Result", "Session", "Timings"]

DRAFTERS: dict[str, tuple[str, ...]] = {
    "auto": ("suffix", "recycle"),
    "none": (),
    "free": ("suffix", "recycle"),
    "suffix": ("suffix",),
    "recycle": ("recycle",),
    "model": (),
}

FORGOTTEN = -1  # in place of cached tokens that were computed with tokens in view that are no longer there

Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step added.

    Attributes:
        text: newly released text, possibly empty.
        tokens: emitted tokens.
        drafted: drafted tokens that were verified.
        accepted: those of them that were right.
        seconds: time of the step.
        sources: name of the source of each emitted token; "target" for the model's own.
        step: the turn of the loop it comes from; None for text that was held back until the end.
    """

    text: str
    tokens: list[int]
    drafted: int
    accepted: int
    seconds: float
    sources: list[str]
    step: Step | None = None


@dataclass(slots=True)
class Timings:
    """Counts and times of one generation; the names are those of llama.cpp's server where it has them.

    `draft_ms` is the time of a draft model, and `explored_ms` the part of it that was spent to learn how good
    it is.
    """

    prompt_n: int = 0
    prompt_ms: float = 0.0
    prompt_per_second: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    predicted_per_second: float = 0.0
    draft_n: int = 0
    draft_n_accepted: int = 0
    steps: int = 0
    host_ms: float = 0.0
    draft_ms: float = 0.0
    explored_ms: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, times rounded to microseconds."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(slots=True)
class Result:
    """One finished answer.

    Attributes:
        text: all released text.
        tokens: all emitted tokens, the end-of-generation token excluded.
        finish_reason: "stop", "length", "context" or "cancelled".
        seed: the seed in use, chosen by specx if none was given.
        timings: counts and times.
        evidence: why each token was chosen, if that was asked for.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = "cancelled"
    seed: int = 0
    timings: Timings = field(default_factory=Timings)
    evidence: list[Evidence] = field(default_factory=list)


class Session:
    """One loaded model, ready to answer. A context manager.

    Args:
        backend: the target.
        settings: how it was loaded.
        learned: what is kept of the model between runs.
        name: what to call the model.
        chat_template: its own template, if it has one.
        notice: told what a person should know, one sentence at a time.
        clock: seconds, of everything that is timed.
        draft_models: where a draft model would come from; None for never.
    """

    def __init__(
        self,
        backend: Backend,
        settings: LoadSettings,
        learned: Learned,
        *,
        name: str,
        chat_template: str | None = None,
        notice: Notice = lambda _text: None,
        clock: Callable[[], float] = time.perf_counter,
        draft_models: Callable[[Session], DraftModels] | None = None,
    ) -> None:
        self.backend = backend
        self.settings = settings
        self.clock = clock
        self.model_name = name
        self.chat_template = chat_template
        self.vocab = backend.vocab
        self.n_ctx = backend.n_ctx
        self.plain_reason = backend.plain_reason
        self.notice = notice
        self.learned = learned
        self.staircase = learned.load_staircase(Staircase(backend.max_width))
        self.cached: list[int] = []
        self.current: Generation | None = None
        self.plan = Plan(
            self.staircase, max_nodes=settings.draft_max, widths=self._exact_widths(), clock=clock
        )
        self.draft_models = draft_models(self) if draft_models and not self.plain_reason else None
        self.drafter_name = ""
        self.drafter: Drafter
        self.set_drafter(settings.drafter)
        if self.plain_reason and settings.drafter != "none":
            notice(f"{name} decodes plainly: {self.plain_reason}")

    @classmethod
    def open(
        cls,
        settings: LoadSettings,
        *,
        progress: Callable[[float], None] | None = None,
        notice: Notice | None = None,
    ) -> Session:
        """Load a GGUF file.

        Raises:
            ModelError: it cannot be loaded.
        """
        from specx.engine.setup.loading import open_session

        return open_session(cls, settings, progress, notice or (lambda _text: None))

    @property
    def bos_text(self) -> str:
        """Text of the token that begins a sequence, for chat templates."""
        return self._special_text(getattr(self.vocab, "bos", None))

    @property
    def eos_text(self) -> str:
        """Text of the token that ends a sequence, for chat templates."""
        return self._special_text(getattr(self.vocab, "eos", None))

    def set_drafter(self, name: str) -> None:
        """Draft with one of `DRAFTERS` from now on; the text does not change.

        Raises:
            UsageError: there is no such drafter.
        """
        if name not in DRAFTERS:
            raise UsageError(f"unknown drafter {name!r}", f"choose one of {', '.join(self.drafters)}")
        if name == "model" and self.draft_models is None and not self.plain_reason:
            raise UsageError("there is no draft model", "name one when specx starts: -md FILE")
        self.drafter_name = "none" if self.plain_reason else name
        self.drafter = self.learned.make_drafter(self.vocab.size, DRAFTERS[self.drafter_name])
        if self.draft_models is not None and self.drafter_name in WITH_MODEL:
            combined = CombinedDrafter(self.drafter)
            self.draft_models.attach(combined, required=name == "model")
            self.drafter = combined

    @property
    def drafters(self) -> tuple[str, ...]:
        """Names that `set_drafter` takes; "model" if a draft model was named."""
        named = self.draft_models is not None and self.draft_models.forced is not None
        return tuple(name for name in DRAFTERS if named or name != "model")

    @property
    def drafter_label(self) -> str:
        """The drafter's name, and the draft model's if one is in use."""
        model = self.draft_models.name if self.draft_models is not None else None
        asked = model and isinstance(self.drafter, CombinedDrafter)
        return f"{self.drafter_name}, model {model}" if asked else self.drafter_name

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""
        return self.vocab.tokenize(text.encode(), add_special=add_special, parse_special=parse_special)

    def grammar(self, text: str) -> Constraint:
        """A constraint from a GBNF grammar.

        Raises:
            GrammarError: it does not parse, or the backend has no grammars.
        """
        pointer = getattr(self.vocab, "pointer", None)
        if pointer is None:
            raise GrammarError("this backend has no grammars", "leave the grammar out")
        from specx.engine.text.grammar import GrammarConstraint

        return GrammarConstraint(pointer, text)

    def generate(
        self,
        prompt: Sequence[int],
        sampling: SamplingSettings,
        *,
        n_predict: int = -1,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        constraint: Constraint | None = None,
        keep: int = 0,
        progress: Progress | None = None,
        evidence: bool = False,
    ) -> Generation:
        """Prepare an answer to `prompt`; iterate over it to get it.

        Args:
            prompt: all tokens of the conversation so far, at least one.
            sampling: how tokens are chosen.
            n_predict: most tokens to emit; negative means no limit.
            stop: strings that end the answer and are not part of it.
            ignore_eos: go on past the end of generation.
            constraint: what the text must match.
            keep: tokens of the prompt that stay when the context shifts, at least BOS; negative means all.
            progress: told how much of the prompt has been read.
            evidence: record why each token was chosen.

        Raises:
            UsageError: the prompt is empty.
            ContextFullError: it does not fit the context.
        """
        if not prompt:
            raise UsageError("the prompt is empty", "give some text with -p, -f or on standard input")
        if len(prompt) >= self.n_ctx:
            trained = getattr(self.backend, "n_ctx_train", 0)
            raise ContextFullError.of_prompt(len(prompt), self.n_ctx, trained)
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(32))
        return Generation(
            self,
            list(prompt),
            sampling,
            n_predict=n_predict,
            stop=stop,
            ignore_eos=ignore_eos,
            constraint=constraint,
            keep=keep,
            progress=progress,
            evidence=evidence,
        )

    def summary(self) -> str:
        """One line: what runs, and what was chosen."""
        parts = [self.model_name, f"context {self.n_ctx}"]
        drafter = self.drafter_label
        if self.plain_reason:
            drafter = f"none ({self.plain_reason})"
        elif self.drafter_name == "auto":
            drafter = drafter.replace("auto", f"auto ({' + '.join(DRAFTERS['auto'])})", 1)
        if kernels := getattr(self.backend, "kernels", None):
            parts.append(f"kernels {kernels.name}")
        parts.append(f"drafter {drafter}")
        if self.staircase.depths:
            parts.append(describe(self.staircase))
        return ", ".join(parts)

    def reset(self) -> None:
        """Forget the conversation and everything drafters learned in this session."""
        self.forget_conversation()
        self.forget_learned()
        self.set_drafter(self.drafter_name)

    def forget_learned(self) -> None:
        """Go back to what was known when the session began; takes effect with the next `set_drafter`."""
        self.learned.forget()
        if self.draft_models is not None:
            self.draft_models.forget()

    def forget_conversation(self) -> None:
        """Empty the target; the next prompt is read from its beginning."""
        self.backend.rewind(0)
        self.cached = []
        self.current = None

    def measure_staircase(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Time the steps at the present depth, if there is a choice and it was never done near it.

        Nothing is known of them if `stopped` says so meanwhile.
        """
        staircase = self.staircase
        choosing = self.drafter_name != "none" or self.plan.widths is not None
        if self.plain_reason or not choosing or not staircase.needs_measuring(self.backend.length):
            return
        first, disturbed = not staircase.depths, staircase.disturbed
        measure = staircase.measure if self.backend.length or not first else staircase.measure_first
        seconds = measure(self.backend, clock=self.clock, stopped=stopped)
        if first and staircase.depths:
            text = describe(staircase)
            self.notice(f"measured this model on this machine in {seconds:.1f} s: {text}")
        if staircase.disturbed and not disturbed:
            self.notice(
                "something else kept the machine busy meanwhile: this will be measured again next time"
            )

    def take_stock(self, step: Step) -> None:
        """Let the choice of a draft model follow from what `step` gave, and put it on record."""
        if self.staircase.depths:
            plain_ms = self.staircase.cost(1, self.backend.length)
            self.learned.records.add(self.drafter_label, step, plain_ms)
        if self.draft_models is not None and isinstance(self.drafter, CombinedDrafter):
            self.draft_models.after(self.drafter, step, self.backend.length)

    def close(self) -> None:
        """Keep what was learned, and give the memory back."""
        try:
            if self.draft_models is not None:
                self.draft_models.close()
            self.learned.save_staircase(self.staircase)
            self.learned.save()
        finally:
            self.backend.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _special_text(self, token: int | None) -> str:
        return "" if token is None else self.vocab.piece(token, special=True).decode("utf-8", "replace")

    def measure_identity(self) -> Identity:
        """Which batch shapes give bit-identical logits here, from the store or measured now."""
        identity = self.learned.load_identity()
        if identity is None or not identity.covers(self.n_ctx):
            self.forget_conversation()
            identity = measure_identity(self.backend, identity_text(self.vocab))
            self.learned.save_identity(identity)
        return identity

    def _exact_widths(self) -> frozenset[int] | None:
        if not (self.settings.exact and self.settings.measure) or self.plain_reason:
            return None
        identity = self.measure_identity()
        if identity.exact_trees:
            return None
        widths = ", ".join(map(str, sorted(identity.widths)))
        self.notice(f"exact: held to chains of the batch widths that are bit-identical here ({widths})")
        return identity.widths


class Generation:
    """One answer. Iterate to run it; `result` is complete once the iteration has ended.

    It ends as cancelled if another generation of the session has begun in the meantime.
    """

    def __init__(
        self,
        session: Session,
        prompt: list[int],
        sampling: SamplingSettings,
        *,
        n_predict: int,
        stop: Sequence[str],
        ignore_eos: bool,
        constraint: Constraint | None,
        keep: int,
        progress: Progress | None,
        evidence: bool,
    ) -> None:
        assert sampling.seed is not None
        self.session = session
        self.prompt = prompt
        self.sampling = sampling
        self.result = Result(seed=sampling.seed)
        self._limit = n_predict if n_predict >= 0 else None
        self._stops = frozenset[int]() if ignore_eos else session.vocab.eog
        begins = prompt[:1] == [getattr(session.vocab, "bos", None)]
        self._keep = max(len(prompt) if keep < 0 else min(keep, len(prompt)), int(begins))
        self._progress = progress
        self._sampler = Sampler(sampling, session.vocab.size, constraint, margins=evidence)
        self._decoder = StreamDecoder()
        self._matcher = StopMatcher(stop)
        self._cancelled = False
        self._root = prompt[-1]

    def cancel(self) -> None:
        """Finish after the present step. Safe to call from a signal handler."""
        self._cancelled = True

    def _is_cancelled(self) -> bool:
        return self._cancelled

    def __iter__(self) -> Iterator[Chunk]:
        if self._limit == 0:
            self.result.finish_reason = "length"
            return
        session = self.session
        session.current = self
        try:
            self._read_prompt()
            finished = False
            steps = self._steps()
            while not finished and not self._cancelled and session.current is self:
                if not self._make_room():
                    self.result.finish_reason = "context"
                    break
                chunk, finished = self._take(next(steps))
                yield chunk
        finally:
            session.learned.remember(self.result.tokens)
            if session.current is self:
                session.current = None
        rest = self._matcher.feed(self._decoder.flush())[0] + self._matcher.flush()
        if rest:
            self.result.text += rest
            yield Chunk(rest, [], 0, 0, 0.0, [])

    def _read_prompt(self) -> None:
        """Bring the target to all of the prompt but its last token, reusing what it holds."""
        session, prompt = self.session, self.prompt
        backend = session.backend
        common = _common_prefix(session.cached, prompt[:-1])
        kept = backend.reusable(common)
        backend.rewind(kept)
        session.cached = prompt[:kept]
        session.measure_staircase(self._is_cancelled)
        if self._cancelled:
            return
        start = session.clock()
        chosen = self.sampling
        session.drafter.begin(
            prompt,
            seed=self.result.seed,
            temperature=chosen.temperature,
            truncation=(chosen.top_k, chosen.top_p, chosen.min_p, chosen.typical_p),
        )
        new = prompt[kept:-1]
        try:
            backend.prefill(new, progress=self._progress, rows=session.drafter.observe_rows)
        finally:
            session.cached = prompt[: backend.length]
        timings = self.result.timings
        timings.prompt_n = len(new) + 1
        timings.prompt_ms = (session.clock() - start) * 1e3
        timings.prompt_per_second = timings.prompt_n / max(timings.prompt_ms, 1e-3) * 1e3
        session.measure_staircase(self._is_cancelled)
        session.plan.begin()
        self._sampler.begin(prompt)

    def _steps(self) -> Iterator[Step]:
        session = self.session
        return decode(
            session.backend,
            session.drafter,
            session.plan,
            self._sampler,
            root=self._root,
            position=len(self.prompt),
            stops=self._stops,
            clock=session.clock,
        )

    def _make_room(self) -> bool:
        """Whether there is room for another step, after shifting the context if that is wanted."""
        session = self.session
        backend = session.backend
        session.measure_staircase(self._is_cancelled)
        if backend.length + session.plan.narrowest <= backend.n_ctx:
            return True
        discard = max(backend.length - self._keep, 0) // 2
        if not session.settings.context_shift or discard < session.plan.narrowest:
            return False
        backend.shift(self._keep, discard)
        session.cached = session.cached[: self._keep] + [FORGOTTEN] * (backend.length - self._keep)
        return True

    def _take(self, step: Step) -> tuple[Chunk, bool]:
        """Account for one step; returns what it added and whether the answer is finished."""
        result = self.result
        session = self.session
        session.cached += [self._root, *step.tokens[:-1]]
        session.take_stock(step)
        self._root = step.tokens[-1]
        tokens, text, reason = self._read(step.tokens)
        result.tokens += tokens
        result.text += text
        following = step.tokens[len(tokens) : len(tokens) + 1]
        ended = reason == "stop" and not self._stops.isdisjoint(following)  # by a token of its own
        result.evidence += step.evidence[: len(tokens) + ended]
        self._count(step, len(tokens))
        if reason:
            result.finish_reason = reason
        names = session.drafter.source_names
        sources = [names[step.draft.sources[i]] for i in step.accepted] + ["target"]
        drafted, accepted = len(step.draft), len(step.accepted)
        chunk = Chunk(text, tokens, drafted, accepted, step.seconds, sources[: len(tokens)], step)
        return chunk, bool(reason)

    def _read(self, tokens: list[int]) -> tuple[list[int], str, str]:
        """The tokens that belong to the answer, the text they release, and why it ends if it does.

        One at a time, so that the answer ends at the same token however many came in one step.
        """
        text = ""
        for count, token in enumerate(tokens):
            if token in self._stops:
                return tokens[:count], text, "stop"
            released, stopped = self._matcher.feed(self._decoder.feed(self.session.vocab.piece(token)))
            text += released
            if stopped:
                return tokens[: count + 1], text, "stop"
            if self._limit is not None and len(self.result.tokens) + count + 1 >= self._limit:
                return tokens[: count + 1], text, "length"
        return tokens, text, ""

    def _count(self, step: Step, emitted: int) -> None:
        timings = self.result.timings
        timings.predicted_n += emitted
        timings.predicted_ms += step.seconds * 1e3
        timings.predicted_per_second = timings.predicted_n / timings.predicted_ms * 1e3
        timings.draft_n += len(step.draft)
        timings.draft_n_accepted += len(step.accepted)
        timings.steps += 1
        timings.host_ms += step.host_ms
        if step.asked is not None:
            timings.draft_ms += step.asked.ms
            timings.explored_ms += step.asked.explored_ms


def describe(staircase: Staircase) -> str:
    """What a staircase says, in words: the price of one token, and of more at once, in a short context.

    Widths that were not timed, as there was no time, are not told.
    """
    costs, timed = staircase.costs(0), staircase.steps(staircase.depths[0])
    wide = [f"{n} cost {costs[n] / costs[1]:.1f}x" for n in (4, 8, 16) if n < len(costs) and n in timed]
    return f"one token {costs[1]:.1f} ms" + "".join(f", {text}" for text in wide)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    for i in range(n):
        if a[i] != b[i]:
            return i
    return n
