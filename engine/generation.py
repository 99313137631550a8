"""One answer as it is written, alone or beside others.

A generation reads its prompt (reusing what a cache already holds), takes part in the decode loop, turns
tokens into text and stops where it should. `specx.engine.together` writes several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specx.backends.base import Cache, Model, RowSink, Want
from specx.backends.errors import SpecxError, UsageError
from specx.drafters.base import Drafter, Forcing, Text
from specx.engine.decode import Job, Step, evidence_of
from specx.engine.learned.lengths import Outlook
from specx.engine.plan import Plan
from specx.engine.sampling import Sampler, Unending
from specx.engine.slots import FORGOTTEN, Slot, Slots
from specx.engine.text.answer import Chunk, Request, Result
from specx.engine.text.stream import StopMatcher, StreamDecoder

__all__ = ["Arrivals", "Generation", "Writer"]

STEPS = 128  # that a text is expected to take where its limit is no lower
MARKED = 64  # tokens of a prompt; reading so many again takes longer than a copy of recurrent states
END = "end"  # why an answer stops: a token of its own says so, and not a string
NOTHING = Chunk("", [], 0, 0, 0.0, [])


class _CancelledError(Exception):
    """A prompt is not read to its end."""


class Arrivals(Protocol):
    """Where generations come from that are to be written together."""

    def take(self, wait: bool) -> Generation | None:
        """The next one, or None.

        Args:
            wait: whether nothing else is being written. Then the call may block, in short slices so that
                Ctrl-C is heard, and None means that no more will come. Else it must not block, and None
                means that there is none now.
        """


class Writer(Protocol):
    """What generations share: a loaded model and everything that belongs to it."""

    @property
    def model(self) -> Model:
        """The target."""

    @property
    def plan(self) -> Plan:
        """The objective."""

    @property
    def drafter(self) -> Drafter:
        """Where drafts come from."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds."""

    @property
    def context_shift(self) -> bool:
        """Whether the oldest tokens are forgotten when a context is full."""

    def together(
        self, source: Iterable[Generation], at_once: int | None = None
    ) -> Iterator[tuple[Generation, Chunk]]:
        """Write answers, and say what each step adds to which."""

    @property
    def worthwhile(self) -> int:
        """How many texts are best written at once."""

    @property
    def slots(self) -> Slots:
        """Room for texts."""

    def measure_staircase(self, cache: Cache, stopped: Callable[[], bool]) -> None:
        """Time steps at the present length of a text, if that was never done near it; nobody else waits."""

    def measure_between(self, caches: Sequence[Cache]) -> int:
        """Time one step, if one of the texts that are written is as long as none was before; its width, or 0
        if none was timed."""

    def outlook(self, request: Request) -> Outlook:
        """What is to be expected of an answer that begins now."""

    def take_stock(self, step: Step, length: int, outlook: Outlook | None) -> None:
        """Learn from a step that was taken at `length`, of an answer that goes on if it has an `outlook`."""

    def remember(self, request: Request, result: Result) -> None:
        """An answer is finished."""


class Generation:
    """One answer. Iterate to write it alone; `Session.together` writes several.

    `result` is complete once that has ended. It ends as cancelled if another generation needed its room.

    Args:
        writer: the model.
        request: what is asked for.
        label: for the caller's own bookkeeping.
    """

    def __init__(self, writer: Writer, request: Request, label: object = None) -> None:
        assert request.sampling.seed is not None
        vocab = writer.model.vocab
        self.request = request
        self.label = label
        self.result = Result(seed=request.sampling.seed)
        self._writer = writer
        constraint = request.constraint
        self._stops = frozenset[int]() if request.ignore_eos and constraint is None else vocab.eog
        if request.ignore_eos and constraint is not None:
            constraint = Unending(constraint, vocab.eog, vocab.size)
        prompt = list(request.prompt)
        keep = len(prompt) if request.keep < 0 else min(request.keep, len(prompt))
        self._keep = max(keep, int(prompt[:1] == [vocab.bos]))
        chosen = request.sampling
        truncation = chosen.top_k, chosen.top_p, chosen.min_p, chosen.typical_p
        forcing = None
        if constraint is not None and isinstance(constraint, Forcing):  # to ask it of None takes long
            forcing = constraint
        self._text = Text(prompt, self.result.seed, chosen.temperature, truncation, forcing)
        self._sampler = Sampler(chosen, vocab.size, constraint, margins=request.evidence, ends=vocab.eog)
        self._decoder = StreamDecoder()
        self._matcher = StopMatcher(request.stop)
        self._cancelled = self._taken = False
        self._slot: Slot | None = None
        self._job: Job | None = None
        self._unread: list[int] = []
        self._names: tuple[str, ...] = ()
        self._overhead_s = 0.0  # since the last step

    def cancel(self) -> None:
        """Finish after the present step. Safe to call from a signal handler."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether it is to go on no more."""
        return self._cancelled or (self._slot is not None and self._slot.user is not self)

    @property
    def job(self) -> Job:
        """The text as the decode loop sees it, from `begin` on."""
        assert self._job is not None
        return self._job

    def take_up(self) -> None:
        """It is begun, or waits for that.

        Raises:
            UsageError: it was taken up before.
        """
        if self._taken:
            raise UsageError("this answer has been written, or is being written", "ask for another: generate")
        self._taken = True

    def __iter__(self) -> Iterator[Chunk]:
        for _, chunk in self._writer.together((self,), 1):
            yield chunk
        if self.result.failure is not None:
            raise self.result.failure

    @property
    def to_read(self) -> list[int]:
        """What its prompt must be in a cache for it to be written; none where nothing of it may be cached."""
        return [] if self.request.score_prompt else self._text.tokens[:-1]

    @property
    def has_read(self) -> int:
        """How many tokens of the prompt have been read, or were cached."""
        return self._slot.cache.length if self._slot is not None else 0

    @property
    def left(self) -> int:
        """How many tokens of the prompt are still to be read."""
        return len(self._unread)

    def begin(self) -> bool:
        """Take a slot and look what it holds of the prompt; False if there is nothing to do."""
        request = self.request
        if request.n_predict == 0 and not request.score_prompt:
            self.result.finish_reason = "length"
            return False
        writer, prompt = self._writer, self._text.tokens
        steps = STEPS if request.n_predict is None else min(request.n_predict, STEPS)
        slot = self._slot = writer.slots.choose(self.to_read, steps)
        slot.user = self
        kept = slot.cache.reusable(slot.common(self.to_read))
        slot.cache.rewind(kept)
        slot.cached = prompt[:kept]
        if request.n_predict != 0:
            writer.measure_staircase(slot.cache, lambda: self.cancelled)
        if self.cancelled:
            return True
        start = writer.clock()
        drafter = writer.drafter
        self._names = drafter.source_names
        drafting = drafter.start(self._text)
        outlook = writer.outlook(request)
        self._job = Job(self._text, slot.cache, drafting, self._sampler, self._stops, outlook=outlook)
        self._unread = prompt[kept:-1]
        timings = self.result.timings
        timings.prompt_n = len(self._unread) + 1
        timings.cached_n = kept
        timings.prompt_ms = (writer.clock() - start) * 1e3
        return True

    def read(self, most: int | None = None) -> bool:
        """Read `most` more tokens of the prompt, by default all; returns whether all are read."""
        writer, slot = self._writer, self._slot
        assert slot is not None
        start = writer.clock()
        piece = self._unread if most is None else self._unread[:most]
        committed = slot.cache.length + len(piece)
        try:
            self._prefill(slot.cache, piece)
        finally:
            slot.cached = self._text.tokens[: slot.cache.length]
            self._unread = self._text.tokens[slot.cache.length : -1]
        timings = self.result.timings
        timings.prompt_ms += (writer.clock() - start) * 1e3
        timings.prompt_per_second = timings.prompt_n / max(timings.prompt_ms, 1e-3) * 1e3
        if slot.cache.length < committed or self._unread:
            return False
        if self.request.n_predict == 0:
            self.result.finish_reason = "length"
            return True
        if slot.cache.length >= MARKED:
            slot.cache.mark()  # another answer may be asked for, or the conversation go on without this one
        writer.measure_staircase(slot.cache, lambda: self.cancelled)
        self._sampler.begin(self._text.tokens)
        return True

    def _prefill(self, cache: Cache, tokens: list[int]) -> None:
        """Commit `tokens` of the prompt, as far as nobody cancels meanwhile."""
        scored = self.request.score_prompt
        wide = self._writer.model.facts.prompt_rows if scored else max(len(tokens), 1)
        total = len(self._text.tokens) - 1 - self.result.timings.cached_n
        rows: RowSink | None = self._score if scored else self.job.drafting.observe_prompt
        if not scored and len(self._unread) - len(tokens) >= self._writer.model.facts.prompt_rows:
            rows = None  # the logits of the last few are enough, and those of each piece take long

        def computed(which: NDArray[np.int32], features: NDArray[np.float32]) -> None:
            self.job.drafting.observe_features(cache.length - len(which), features)

        read = computed if Want.HIDDEN in self._writer.drafter.needs else None
        for start in range(0, len(tokens), wide):
            before = cache.length - self.result.timings.cached_n

            def told(done: int, _total: int, before: int = before) -> None:
                if self.cancelled:
                    raise _CancelledError
                if self.request.progress is not None:
                    self.request.progress(before + done, total)

            try:
                cache.prefill(tokens[start : start + wide], progress=told, rows=rows, features=read)
            except _CancelledError:
                return

    def _score(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """How probable the tokens of the prompt were that follow each of `tokens`."""
        prompt, found = self._text.tokens, self.result.prompt_evidence
        for row in logits:
            found.append(evidence_of(prompt[len(found) + 1], row))
        self.job.drafting.observe_prompt(tokens, logits)

    def make_room(self) -> bool:
        """Whether there is room for another step, after shifting the context if that is wanted."""
        writer, slot = self._writer, self._slot
        assert slot is not None
        cache = slot.cache
        if cache.length + writer.plan.narrowest <= cache.n_ctx:
            return True
        discard = max(cache.length - self._keep, 0) // 2
        if not writer.context_shift or discard < writer.plan.narrowest:
            self.result.finish_reason = "context"
            return False
        cache.shift(self._keep, discard)
        slot.cached = slot.cached[: self._keep] + [FORGOTTEN] * (cache.length - self._keep)
        return True

    def take(self, step: Step) -> tuple[Chunk, bool]:
        """Account for one step; returns what it added and whether the answer is finished."""
        slot, result = self._slot, self.result
        assert slot is not None
        if step.failure is not None:
            slot.cached = slot.cached[: slot.cache.length - 1] + self._text.tokens[-1:]
            self.fail(step.failure)
            return NOTHING, True
        slot.cached += self._text.tokens[-1 - len(step.tokens) : -1]
        tokens, text, reason = self._decode(step.tokens)
        outlook = None if reason else self.job.outlook
        clock = self._writer.clock
        start = clock()
        self._writer.take_stock(step, slot.cache.length, outlook)
        self._overhead_s += clock() - start  # no part of a step, but of the time the answer takes
        result.tokens += tokens
        result.text += text
        result.evidence += step.evidence[: len(tokens) + (reason == END)]
        seconds = step.seconds + self._overhead_s
        self._count(step, len(tokens), seconds)
        if reason:
            result.finish_reason = "stop" if reason == END else reason
        sources = ["target"]
        if step.accepted:
            of = step.draft.sources.tolist()
            sources = [self._names[of[i]] for i in step.accepted] + sources
        drafted, accepted = len(step.draft), len(step.accepted)
        chunk = Chunk(text, tokens, drafted, accepted, seconds, sources[: len(tokens)], step)
        return chunk, bool(reason)

    def wait(self, seconds: float) -> None:
        """It could not go on meanwhile, for the sake of another."""
        self._overhead_s += seconds

    def fail(self, failure: SpecxError) -> None:
        """It cannot be written."""
        self.result.failure, self.result.finish_reason = failure, "error"

    def leave(self) -> Chunk:
        """It is finished, whatever the reason; returns its end, with text that was held back."""
        if self._job is not None:
            self._job.drafting.close()
        if self._slot is not None:
            if self.request.n_predict != 0:
                self._writer.remember(self.request, self.result)
            if self._slot.user is self:
                self._slot.user = None
            self._slot = None
        rest = self._matcher.feed(self._decoder.flush())[0] + self._matcher.flush()
        self.result.text += rest
        return replace(NOTHING, text=rest, last=True)

    def _decode(self, tokens: list[int]) -> tuple[list[int], str, str]:
        """The tokens that belong to the answer, the text they release, and why it ends if it does.

        One at a time, so that the answer ends at the same token however many came in one step.
        """
        request, stops, reason = self.request, self._stops, ""
        left = None if request.n_predict is None else max(request.n_predict - len(self.result.tokens), 1)
        if left is not None and left <= len(tokens):
            tokens, reason = tokens[:left], "length"
        piece, shown, pieces = self._writer.model.vocab.piece, request.shown, list[bytes]()
        for count, token in enumerate(tokens):
            if token in stops:
                tokens, reason = tokens[:count], END
                break
            pieces.append(piece(token, special=token in shown))
        if not request.stop:
            return tokens, self._decoder.feed(b"".join(pieces)), reason
        text = ""
        for count, one in enumerate(pieces, 1):
            released, stopped = self._matcher.feed(self._decoder.feed(one))
            text += released
            if stopped:
                return tokens[:count], text, "stop"
        return tokens, text, reason

    def _count(self, step: Step, emitted: int, seconds: float) -> None:
        timings = self.result.timings
        timings.predicted_n += emitted
        timings.predicted_ms += seconds * 1e3
        timings.overhead_ms += self._overhead_s * 1e3
        timings.predicted_per_second = timings.predicted_n / max(timings.predicted_ms, 1e-6) * 1e3
        timings.draft_n += len(step.draft)
        timings.draft_n_accepted += len(step.accepted)
        timings.steps += 1
        timings.host_ms += step.host_ms
        self._overhead_s = 0.0
        if step.spent is not None:
            timings.draft_ms += step.spent.ms
            timings.explored_ms += step.spent.explored_ms
