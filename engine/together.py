"""Several answers at once.

Texts join and leave the decode loop between two steps. Prompts are read there as well: whole, which takes the
least time in all, or in pieces, so that nobody waits long. What several prompts begin with is read once: the
others begin when it has been read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from specx.backends.errors import SpecxError
from specx.engine.decode import Job, Step, decode
from specx.engine.first_token import FirstTokens
from specx.engine.generation import Arrivals, Generation, Writer
from specx.engine.slots import common
from specx.engine.text.answer import Chunk

__all__ = ["write"]

PIECE = 64  # tokens of a prompt that are read at once while nothing is known of what that takes
LEAST = 8  # and at least: fewer take nearly as long
STALL = 2.0  # times as long as the step of others, that a piece may take
UNNOTICED_MS = 20.0  # that a piece may take in any case: a stream that waits so long still looks smooth
ALONE_MS = 250.0  # and where nobody is written: who comes meanwhile waits for it, but fewer may be slower
SLOWER = 1.03  # times as long as in the widest step, that a token of a shorter piece may take
OVERTAKEN = 3  # pieces of others that are read in a row although another prompt has been waiting longer

Written = Generator[tuple[Generation, Chunk], None, None]


class _Listed:
    """Generations that are listed, one after the other. Implements `Arrivals`."""

    def __init__(self, generations: Iterable[Generation]) -> None:
        self._generations = iter(generations)

    def take(self, wait: bool) -> Generation | None:
        """The next one."""
        del wait
        return next(self._generations, None)


def write(
    writer: Writer,
    source: Iterable[Generation] | Arrivals,
    at_once: int,
    *,
    patient: bool = True,
    weighed: bool = False,
) -> Written:
    """Write answers, at most `at_once` together, and say what each step adds to which.

    Each ends with a chunk that is its `last`. One that fails has `result.failure`, and the others go on.

    Args:
        writer: the model; has room for `at_once` texts.
        source: taken from as there is room.
        at_once: at least 1.
        patient: read prompts whole; else in pieces between the steps of others, so that nobody waits long.
        weighed: no more at once than are worthwhile.
    """
    arrivals = _Listed(source) if isinstance(source, Iterable) else source
    together = _Together(writer, arrivals, at_once, patient=patient, weighed=weighed)
    try:
        while True:
            yield from together.take_in()
            if not together.count:
                break
            if together.reads:
                yield from together.read_some()
            yield from together.leave_if_ended()
            together.measure_some()
            yield from together.step()
    finally:
        together.end()  # also if the caller stops, or something else ends it


@dataclass(slots=True)
class _Held:
    """One that begins when another has read what both prompts begin with.

    Attributes:
        generation: it.
        other: the other.
        shared: tokens that both begin with.
    """

    generation: Generation
    other: Generation
    shared: int


class _Together:
    """Generations that are written at the same time."""

    def __init__(
        self, writer: Writer, arrivals: Arrivals, at_once: int, *, patient: bool, weighed: bool
    ) -> None:
        self._writer, self._arrivals, self._at_once = writer, arrivals, at_once
        self._patient, self._weighed = patient, weighed
        self._held: list[_Held] = []
        self._reading: list[Generation] = []
        self._writing: list[Generation] = []
        self._jobs: list[Job] = []  # of those that are writing, in the same order
        self._steps: Iterator[list[Step]] | None = None
        self._overtaken = 0  # pieces of others since one of the oldest prompt was read
        self._first_tokens = FirstTokens(writer.plan, writer.clock)
        self._looked = writer.clock()  # at who comes

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._held) + len(self._reading) + len(self._writing)

    @property
    def reads(self) -> bool:
        """Whether a prompt is to be read, or waits for one."""
        return bool(self._reading or self._held)

    def take_in(self) -> Written:
        """Begin as many as there is room for; none is left if there will be no more."""
        since, self._looked = self._looked, self._writer.clock()
        while self.count < self._at_once:
            if self._weighed and self.count >= self._writer.worthwhile:
                break
            waits = not self.count
            coming = self._arrivals.take(waits)
            if coming is None:
                break
            coming.take_up()
            since = self._writer.clock() if waits else since
            yield from self._admit(coming, [*self._reading, *(held.generation for held in self._held)], since)

    def _admit(self, coming: Generation, others: Sequence[Generation], since: float) -> Written:
        """Begin now, or once one of the `others` has read what both need; it has been there `since` then at
        most."""
        if coming.cancelled:
            yield coming, coming.leave()
            return
        tokens, slots = coming.to_read, self._writer.slots
        alike = [(common(other.to_read, tokens), other) for other in others]
        shared, other = max(alike, key=lambda pair: pair[0], default=(0, None))
        if other is not None and shared - slots.copy_tokens > slots.known(tokens):
            self._held.append(_Held(coming, other, shared))
        else:
            self._reading.append(coming)  # first, so that it leaves whatever ends it
            if not self._beside(coming, coming.begin):
                yield from self._leave(coming)
            elif not self._patient:
                self._first_tokens.promise(coming, since)

    def read_some(self) -> Written:
        """Read what is to be read before the next step."""
        while True:
            yield from self._release()
            if not self._reading:
                break
            if self._patient:
                yield from self._read(self._reading[0], None)
                continue
            following = self._next()
            yield from self._read(following, self._piece(following))
            for generation in [each for each in self._reading if not each.left]:
                yield from self._read(generation, None)
            yield from self.take_in()  # who came meanwhile need not wait for a step as well
            if not self._hurries:
                break

    def _release(self) -> Written:
        """Let those begin that need not wait for what another reads."""
        for held in list(self._held):
            coming, other = held.generation, held.other
            reads = other in self._reading and other.has_read < held.shared
            if not reads and all(each.generation is not other for each in self._held):
                self._held.remove(held)
                # Who is held may be so because of this one.
                yield from self._admit(coming, self._reading, self._looked)
            elif coming.cancelled:
                yield from self._leave(coming)

    def _next(self) -> Generation:
        """Of which prompt the next piece is read: of those that were promised a first token, or else of all,
        the one with the least left of it, or of one that waits for it; the oldest if it was overtaken some
        times, or it could wait for ever."""

        def left(generation: Generation) -> int:
            waiting = (held.generation for held in self._held if held.other is generation)
            return min((len(each.to_read) - generation.has_read for each in waiting), default=generation.left)

        promised = [each for each in self._reading if self._first_tokens.waits(each)]
        oldest = self._reading[0]
        shortest = min(promised or self._reading, key=lambda each: min(each.left, left(each)))
        overtaken = shortest is not oldest and (self._overtaken < OVERTAKEN or self._hurries)
        self._overtaken = self._overtaken + 1 if overtaken else 0
        return shortest if overtaken else oldest

    @property
    def _hurries(self) -> bool:
        """Whether a prompt that is read must not wait for a step of those that are written, if its first
        token is to come as soon as was promised."""
        waits = self._first_tokens.waits
        if not self._jobs or any(map(waits, self._writing)) or not any(map(waits, self._reading)):
            return False
        return self._first_tokens.slack_ms() < self._plain_ms

    @property
    def _plain_ms(self) -> float:
        """Milliseconds of a step without drafts of all that are written."""
        lengths = [job.cache.length for job in self._jobs]
        return self._writer.plan.company.cost([1] * len(lengths), lengths) if lengths else 0.0

    @property
    def _most_ms(self) -> float:
        """Milliseconds that a piece of a prompt may take, and a step beside it if it can be so short."""
        if not self._jobs:
            return self._alone_ms
        most_ms = max(STALL * self._plain_ms, UNNOTICED_MS)
        return min(most_ms, self._first_tokens.longest_ms) if self.count < self._at_once else most_ms

    @property
    def _alone_ms(self) -> float:
        """The same where nobody is written.

        Pieces of several times the widest step are read faster than that, by how much is not known. Where
        they would take too long anyhow, a piece takes no longer than whoever comes meanwhile could wait,
        unless its tokens take longer each.
        """
        costs, wait_ms = self._writer.plan.staircase.costs(0), self._first_tokens.longest_ms
        width, widest_ms = len(costs) - 1, float(costs[-1])
        if 2 * widest_ms <= ALONE_MS or wait_ms >= ALONE_MS:
            return ALONE_MS
        few = np.flatnonzero(costs <= wait_ms).max(initial=1)
        return ALONE_MS if costs[few] / few > SLOWER * widest_ms / width else wait_ms

    def _piece(self, generation: Generation) -> int:
        """Tokens of a prompt that are read before the next step: about as many as take no longer than that,
        a little more, as reading few is slow."""
        plan = self._writer.plan
        if not plan.staircase.depths:
            return PIECE
        costs = plan.staircase.costs(generation.has_read)
        width, widest_ms = len(costs) - 1, float(costs[-1])
        most_ms = self._most_ms
        least = LEAST if self._jobs or most_ms < ALONE_MS else PIECE
        if not self._first_tokens.waits(generation) and (slack_ms := self._first_tokens.slack_ms()) < most_ms:
            least, most_ms = LEAST, max(slack_ms, 0.0)
        if widest_ms <= most_ms:
            return max(int(most_ms / widest_ms * width), least)  # more at once take no longer each
        fitting = np.flatnonzero(costs <= most_ms)
        return max(int(fitting[-1]) if len(fitting) else 0, least)

    def _read(self, first: Generation, most: int | None) -> Written:
        """Read a piece of a prompt; who has read all of it is written from now on."""
        done = not first.cancelled and self._beside(first, partial(first.read, most))
        if first.cancelled or first.result.failure is not None or (done and first.request.n_predict == 0):
            yield from self._leave(first)
        elif done:
            self._reading.remove(first)
            self._writing.append(first)
            self._jobs.append(first.job)
            if len(self._jobs) == 1:
                self._writer.plan.begin(self._writer.model.facts.settles)

    def _beside(self, generation: Generation, call: Callable[[], bool]) -> bool:
        """The same as `_guarded`, while those that are written wait."""
        clock = self._writer.clock
        start = clock()
        done = _guarded(generation, call)
        for each in self._writing:
            each.wait(clock() - start)
        return done

    def leave_if_ended(self) -> Written:
        """Let those go that were cancelled or have no room for another step."""
        for generation in list(self._writing):
            if generation.cancelled or not _guarded(generation, generation.make_room):
                yield from self._leave(generation)

    def measure_some(self) -> None:
        """Time a step where that is due, and nobody is waiting for a first token."""
        if self._first_tokens.slack_ms() < np.inf:
            return
        clock = self._writer.clock
        start = clock()
        if width := self._writer.measure_between([job.cache for job in self._jobs]):
            self._writer.plan.after(width)
            for each in self._writing:
                each.wait(clock() - start)

    def step(self) -> Written:
        """One turn of the loop for all that are writing, or for those that were promised a first token."""
        if not self._jobs:
            self._steps = None
            return
        if self._steps is None:
            self._steps = self._decoding(self._jobs)
        now, steps = self._first(), self._steps
        others = [each for each in self._writing if each not in now] if len(now) < len(self._jobs) else ()
        if others:
            steps = self._decoding([each.job for each in now])
        start = self._writer.clock()
        taken = []
        for generation, step in zip(now, next(steps), strict=True):
            taken.append((generation, *generation.take(step)))
        for generation in others:
            generation.wait(self._writer.clock() - start)
        for generation, chunk, finished in taken:
            self._first_tokens.forget(generation)
            if generation.result.failure is None:
                yield generation, chunk
            if finished:
                yield from self._leave(generation)

    def _first(self) -> list[Generation]:
        """Who takes part in the next step, in the order of their jobs: all, within the time that promises
        leave if drafts are all that has to give way for it; else those that were promised a first token, if
        that keeps the promises."""
        plan, everybody = self._writer.plan, list(self._writing)
        plan.longest_ms = np.inf
        if self._patient:
            return everybody
        left_ms = self._first_tokens.slack_ms()
        newcomers = [each for each in everybody if self._first_tokens.waits(each)]
        if newcomers:
            left_ms += self._first_tokens.alone_ms(0, 0)
            if left_ms < self._plain_ms:
                return newcomers
        if any(map(self._first_tokens.waits, self._reading)):
            left_ms = min(left_ms, self._most_ms)
        elif self.count < self._at_once:
            left_ms = min(left_ms, self._first_tokens.longest_ms)
        plan.longest_ms = left_ms
        return everybody

    def _decoding(self, jobs: Sequence[Job]) -> Iterator[list[Step]]:
        writer = self._writer
        return decode(writer.model, jobs, writer.plan, lambda: writer.drafter.needs, writer.clock)

    def end(self) -> None:
        """Nobody goes on."""
        for generation in (*self._reading, *self._writing, *(held.generation for held in self._held)):
            generation.leave()

    def _leave(self, generation: Generation) -> Written:
        self._first_tokens.forget(generation)
        if generation in self._writing:
            del self._jobs[self._writing.index(generation)]
            self._writing.remove(generation)
        elif generation in self._reading:
            self._reading.remove(generation)
        else:
            self._held = [held for held in self._held if held.generation is not generation]
        yield generation, generation.leave()


def _guarded(generation: Generation, call: Callable[[], bool]) -> bool:
    """`call`, or False if it fails: then the generation does."""
    try:
        return call()
    except SpecxError as failure:
        generation.fail(failure)
        return False
