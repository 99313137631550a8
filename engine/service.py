"""Answers for many callers at once: one thread writes, whoever asked is told what it adds.

A caller submits generations and goes on with other things. `run` takes them in as there is room, so that all
of them share the one loop. What waits is bounded, and can be taken back at any time.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from specx.backends.errors import SpecxError, unexpected
from specx.engine.generation import Generation
from specx.engine.session import Session
from specx.engine.text.answer import Chunk, Result

__all__ = ["BusyError", "Counts", "Receiver", "Service", "StoppedError"]

LONGEST_RETRY_S = 60
FAULTS = 8  # in a row that a server goes on after: a client may send what caused one some times more
FORGETTING = 0.1  # weight of the latest text in the mean time that one takes
FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends in seconds of the classes that waiting times for a first token are counted in."""


class BusyError(SpecxError):
    """As many requests wait as may.

    Attributes:
        retry_s: whole seconds after which there is probably room.
    """

    def __init__(self, waiting: int, retry_s: int) -> None:
        requests = "1 request waits" if waiting == 1 else f"{waiting} requests wait"
        super().__init__(f"the server is busy: {requests} already", f"try again in {retry_s} s")
        self.retry_s = retry_s


class StoppedError(SpecxError):
    """No text is written any more.

    Attributes:
        failed: because something went wrong.
    """

    failed = False

    @classmethod
    def by(cls, failure: SpecxError) -> StoppedError:
        """Because of a failure."""
        hint = failure.hint or "start the server again"
        stopped = cls(f"nothing can be written any more: {failure.message}", hint)
        stopped.failed = True
        return stopped


class Receiver(Protocol):
    """Who asked. Called from the thread that writes, so it must be quick and never raise."""

    def add(self, generation: Generation, chunk: Chunk) -> None:
        """What a step added to one of the generations; `chunk.last` is its end."""

    def fail(self, problem: SpecxError) -> None:
        """Nothing more comes, of any of the generations."""


@dataclass(slots=True)
class Counts:
    """What was done since the start. Written by one thread, read by any.

    Attributes:
        prompt_tokens, cached_tokens: tokens of prompts that were read, and that were in the cache.
        prompt_s, predicted_s: seconds of reading and of writing, summed over texts.
        predicted_tokens: tokens that were written.
        steps: turns of the loop; those of several texts count once.
        text_steps: the same, once for each text.
        longest: most tokens of a prompt and its answer together.
        drafted, accepted: drafted tokens that were verified, and that were right.
        drafts: steps of a text that verified any.
        accepted_at: by position in the draft, from 0: how often so many tokens before it and it were right.
        endings: finish reason -> texts.
        refused: requests that found no room to wait.
        first_token: waiting times for the first token, in the classes of `FIRST_TOKEN_S` and one beyond.
        first_token_s: their sum in seconds.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_s: float = 0.0
    predicted_tokens: int = 0
    predicted_s: float = 0.0
    steps: float = 0.0
    text_steps: int = 0
    longest: int = 0
    drafted: int = 0
    accepted: int = 0
    drafts: int = 0
    accepted_at: list[int] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    first_token: list[int] = field(default_factory=lambda: [0] * (len(FIRST_TOKEN_S) + 1))
    first_token_s: float = 0.0

    def step(self, chunk: Chunk) -> None:
        """One step of one text."""
        if chunk.step is None:
            return
        self.predicted_tokens += len(chunk.tokens)
        self.predicted_s += chunk.seconds
        self.steps += 1 / max(chunk.step.texts, 1)
        self.text_steps += 1
        if chunk.drafted:
            self.drafts += 1
            self.drafted += chunk.drafted
            self.accepted += chunk.accepted
            self.accepted_at += [0] * (chunk.accepted - len(self.accepted_at))
            for position in range(chunk.accepted):
                self.accepted_at[position] += 1

    def began(self, waited_s: float) -> None:
        """The first token of a text came after so many seconds."""
        self.first_token[sum(waited_s > end for end in FIRST_TOKEN_S)] += 1
        self.first_token_s += waited_s

    def ended(self, prompt: int, result: Result) -> None:
        """A text of a `prompt` of so many tokens is finished."""
        timings = result.timings
        self.prompt_tokens += timings.prompt_n
        self.cached_tokens += timings.cached_n
        self.prompt_s += timings.prompt_ms / 1e3
        self.longest = max(self.longest, prompt + len(result.tokens))
        self.endings[result.finish_reason] += 1


@dataclass(slots=True)
class _Open:
    """A generation that was submitted and is not finished."""

    receiver: Receiver
    since: float
    taken: float | None = None
    begun: bool = False


class Service:
    """Takes requests from any thread and writes them in the one that calls `run`. Implements `Arrivals`.

    Args:
        session: the model.
        most_waiting: generations that may wait for room; more are refused.
        report: told of a failure after which it goes on.
        clock: seconds.

    Attributes:
        counts: what was done so far.
        failure: why nothing is written any more, if that came unexpectedly.
    """

    def __init__(
        self,
        session: Session,
        *,
        most_waiting: int = 128,
        report: Callable[[SpecxError], None] = lambda _problem: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session = session
        self.counts = Counts()
        self.failure: SpecxError | None = None
        self.most_waiting = most_waiting
        self._report, self._clock = report, clock
        self._changed = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._open: dict[Generation, _Open] = {}
        self._ending: StoppedError | None = None
        self._each_s = 1.0  # that one text takes, about
        self._busy_until = clock()

    @property
    def waiting(self) -> int:
        """Generations that nobody has begun to write."""
        return len(self._waiting)

    @property
    def writing(self) -> int:
        """Generations that are read or written at the moment."""
        return len(self._open) - len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether a request would be refused now."""
        return self._ending is not None or self._room <= 0

    @property
    def _free(self) -> int:
        """Texts more that could be begun now."""
        return max(self.session.at_once - self.writing, 0)

    @property
    def _room(self) -> int:
        """Generations more that could be begun now, or wait."""
        return self._free + self.most_waiting - len(self._waiting)

    @property
    def idle_s(self) -> float:
        """Seconds since there was last anything to do."""
        return 0.0 if self._open else self._clock() - self._busy_until

    def in_work(self) -> list[Generation]:
        """The generations that are read or written at the moment."""
        with self._changed:
            return [generation for generation, each in self._open.items() if each.taken is not None]

    def submit(self, generations: Sequence[Generation], receiver: Receiver) -> None:
        """Have generations of the session written; `receiver` is told of each from then on.

        Raises:
            BusyError: there is no room for them to wait.
            StoppedError: nothing more is taken, or writing has failed.
        """
        with self._changed:
            if self._ending is not None:
                raise self._ending.with_traceback(None)  # or it would grow with every request
            if len(generations) > self._room and (self._waiting or not self._free):
                self.counts.refused += 1
                raise BusyError(min(len(self._waiting), self.most_waiting), self._retry_s())
            now = self._clock()
            self._open |= {generation: _Open(receiver, now) for generation in generations}
            self._waiting += generations
            self._changed.notify()

    def cancel(self, generations: Sequence[Generation]) -> None:
        """End what nobody wants any more; those that wait are never begun. Finished ones are left alone."""
        with self._changed:
            for generation in generations:
                if (found := self._open.get(generation)) is None:
                    continue
                generation.cancel()
                if found.taken is None:
                    self._waiting.remove(generation)
                    self._forget(generation)

    def finish(self, why: StoppedError) -> None:
        """Take no more requests, for that reason; `run` returns when those that are open are finished."""
        with self._changed:
            self._ending = self._ending or why
            self._changed.notify()

    def drop(self, why: StoppedError) -> None:
        """The same, but nothing is finished: whoever asked is told why."""
        self.finish(why)
        with self._changed:
            found = list(self._open.items())
        self._fail(found, why)

    def _fail(self, found: Sequence[tuple[Generation, _Open]], why: SpecxError) -> None:
        """These are not finished, for that reason."""
        receivers = {id(each.receiver): each.receiver for _, each in found}
        for receiver in receivers.values():  # before what is cancelled ends, so that this is what they hear
            receiver.fail(why)
        self.cancel([generation for generation, _ in found])

    def run(self) -> None:
        """Write what is submitted, until `finish` or `drop`.

        What fails unexpectedly is told to whoever is being written for, and the others are answered. If that
        happens `FAULTS` times without a step between, or to nobody, it is kept in `failure` and told to all.
        """
        faults, steps = 0, 0
        while (failure := self._write()) is not None:
            faults = faults + 1 if self.counts.text_steps == steps else 1
            steps = self.counts.text_steps
            if faults == FAULTS or self._ending is not None or not self._forget_taken(failure):
                self.failure = failure
                break
            self._report(failure)
        self.drop(
            StoppedError("the server is stopping") if self.failure is None else StoppedError.by(self.failure)
        )
        with self._changed:
            self._open.clear()

    def _write(self) -> SpecxError | None:
        """Write until nothing more will come; why that ended before, if it did."""
        try:
            for generation, chunk in self.session.together(self, patient=False):
                self._tell(generation, chunk)
        except SpecxError as problem:
            return problem
        except Exception as problem:  # noqa: BLE001 -- whoever waits must not wait for ever
            failure = unexpected(problem, "")
            failure.__cause__ = problem
            return failure
        return None

    def _forget_taken(self, why: SpecxError) -> bool:
        """What is being written ends, and what was asked for with it; returns whether there was anything."""
        with self._changed:
            taken = {id(each.receiver) for each in self._open.values() if each.taken is not None}
            found = [(key, each) for key, each in self._open.items() if id(each.receiver) in taken]
        self._fail(found, why)
        self.counts.endings["error"] += len(found)
        with self._changed:
            for generation, _ in found:
                if generation in self._open:
                    self._forget(generation)
        return bool(found)

    def take(self, wait: bool) -> Generation | None:
        """The next generation; None if there is none now or, if `wait`, if there will be none any more."""
        with self._changed:
            while not self._waiting:
                if not wait or self._ending is not None:
                    return None
                self._changed.wait()
            generation = self._waiting.popleft()
            self._open[generation].taken = self._clock()
            return generation

    def _tell(self, generation: Generation, chunk: Chunk) -> None:
        """Count a chunk and pass it on."""
        self.counts.step(chunk)
        found = self._open[generation]
        if chunk.tokens and not found.begun:
            found.begun = True
            self.counts.began(self._clock() - found.since)
        if chunk.last:
            self.counts.ended(len(generation.request.prompt), generation.result)
            with self._changed:
                took = self._clock() - (found.taken or found.since)
                self._each_s += FORGETTING * (took - self._each_s)
                self._forget(generation)
        found.receiver.add(generation, chunk)

    def _forget(self, generation: Generation) -> None:
        del self._open[generation]
        if not self._open:
            self._busy_until = self._clock()

    def _retry_s(self) -> int:
        """Seconds until about one of those that wait is begun."""
        seconds = self._each_s / self.session.at_once
        return max(1, min(math.ceil(seconds), LONGEST_RETRY_S))
