"""Several answers at once.

Texts join and leave the decode loop between two steps, and a prompt is read in pieces while others are being
written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from specx.backends.errors import SpecxError
from specx.engine.decode import Job, Step, decode
from specx.engine.generation import Arrivals, Generation, Writer
from specx.engine.text.answer import Chunk

__all__ = ["write"]

PIECE = 64  # tokens of a prompt that are read between two steps of others: about as long as a wide step

Written = Iterator[tuple[Generation, Chunk]]


class _Listed:
    """Generations that are listed, one after the other. Implements `Arrivals`."""

    def __init__(self, generations: Iterable[Generation]) -> None:
        self._generations = iter(generations)

    def take(self, wait: bool) -> Generation | None:
        """The next one."""
        del wait
        return next(self._generations, None)


def write(
    writer: Writer, source: Iterable[Generation] | Arrivals, at_once: int, *, patient: bool = True
) -> Written:
    """Write answers, at most `at_once` together, and say what each step adds to which.

    Each ends with a chunk that is its `last`. One that fails has `result.failure`, and the others go on.

    Args:
        writer: the model; has room for `at_once` texts.
        source: taken from as there is room.
        at_once: at least 1.
        patient: read prompts whole; else in pieces between the steps of others, so that nobody waits long.
    """
    arrivals = _Listed(source) if isinstance(source, Iterable) else source
    together = _Together(writer, arrivals, at_once, patient=patient)
    try:
        while True:
            yield from together.take_in()
            if together.empty:
                break
            yield from together.read_some()
            yield from together.leave_if_ended()
            yield from together.step()
    finally:
        together.end()  # also if the caller stops, or something else ends it


class _Together:
    """Generations that are written at the same time."""

    def __init__(self, writer: Writer, arrivals: Arrivals, at_once: int, *, patient: bool) -> None:
        self._writer, self._arrivals, self._at_once = writer, arrivals, at_once
        self._patient = patient
        self._reading: list[Generation] = []
        self._writing: list[Generation] = []
        self._jobs: list[Job] = []  # of those that are writing, in the same order
        self._steps: Iterator[list[Step]] | None = None

    @property
    def empty(self) -> bool:
        """Whether nobody reads or writes."""
        return not (self._reading or self._writing)

    def take_in(self) -> Written:
        """Begin as many as there is room for; none is left if there will be no more."""
        while len(self._reading) + len(self._writing) < self._at_once:
            coming = self._arrivals.take(self.empty)
            if coming is None:
                break
            if not coming.cancelled and _guarded(coming, coming.begin):
                self._reading.append(coming)
            else:
                yield coming, coming.leave()

    def read_some(self) -> Written:
        """Read what is to be read before the next step."""
        while self._reading:
            yield from self._read_piece(self._reading[0])
            if not self._patient:
                break

    def _read_piece(self, first: Generation) -> Written:
        if first.cancelled or first.result.failure is not None:
            yield from self._leave(first)
            return
        whole = self._patient or not self._writing
        if not _guarded(first, partial(first.read, None if whole else PIECE)):
            return
        if first.request.n_predict == 0:
            yield from self._leave(first)
            return
        self._reading.remove(first)
        self._writing.append(first)
        self._jobs.append(first.job)
        if len(self._jobs) == 1:
            self._writer.plan.begin()

    def leave_if_ended(self) -> Written:
        """Let those go that were cancelled or have no room for another step."""
        for generation in list(self._writing):
            room = partial(generation.make_room, alone=len(self._writing) == 1)
            if generation.cancelled or not _guarded(generation, room):
                yield from self._leave(generation)

    def step(self) -> Written:
        """One turn of the loop for all that are writing."""
        if not self._jobs:
            self._steps = None
            return
        if self._steps is None:
            writer = self._writer
            self._steps = decode(writer.model, self._jobs, writer.plan, writer.drafter.needs, writer.clock)
        steps = next(self._steps)
        taken = [(each, *each.take(step)) for each, step in zip(list(self._writing), steps, strict=True)]
        for generation, chunk, finished in taken:
            if generation.result.failure is None:
                yield generation, chunk
            if finished:
                yield from self._leave(generation)

    def end(self) -> None:
        """Nobody goes on."""
        for generation in (*self._reading, *self._writing):
            generation.leave()

    def _leave(self, generation: Generation) -> Written:
        if generation in self._writing:
            del self._jobs[self._writing.index(generation)]
            self._writing.remove(generation)
        else:
            self._reading.remove(generation)
        yield generation, generation.leave()


def _guarded(generation: Generation, call: Callable[[], bool]) -> bool:
    """`call`, or False if it fails: then the generation does."""
    try:
        return call()
    except SpecxError as failure:
        generation.fail(failure)
        return False
