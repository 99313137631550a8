"""A draft head that learns from what a person has the model write, while nothing else is to be done.

What the target computed of a text is recorded as it is written and kept in the store, with the text's tokens.
Between answers a process of its own (`engine.making.adapt`) learns from it, with at most half of the cores
and `MEMORY` bytes, at the lowest priority, and stops within a batch when an answer is asked for. A head that
it writes is better on texts held back, takes the place of the one that it was, and is one file: without it
everything is as before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from specx.backends.errors import FileError, ModelError
from specx.backends.gguf.file import GGUFInfo
from specx.backends.gguf.head_target import own_width, widened_by
from specx.backends.gguf.heads import read_head
from specx.backends.machine.machine import available_memory, this_cpu
from specx.backends.store import Store
from specx.drafters.recording import RECORDED, Recorder
from specx.drafters.train.states import Layout, StatesFile, StatesWriter
from specx.engine.generation import Arrivals, Generation
from specx.engine.making.adapt import ENOUGH, HELD_BACK, Outcome, Task, layout_of
from specx.engine.setup.finder import ADAPTED, Candidate, adapted_path, check_adapted

__all__ = ["MEMORY", "Adapting", "Learner", "Process"]

MEMORY = 1 << 30  # bytes that the process may take
DISK = 128 << 20  # that recorded texts may take: beyond, the older half goes
HELD = 1 << 13  # tokens that are in memory between two answers; half of `DISK` at most
MORE = 0.25  # as much new text, in shares of what there was, is learned from anew
Found = TypeVar("Found")
Source = Iterable[Generation] | Arrivals


class Learner(Protocol):
    """A process that learns."""

    def go_on(self, *, working: bool) -> None:
        """Work, or wait."""

    def ended(self) -> Outcome | str | None:
        """What came of it, or why nothing did; None while it is not over."""

    def stop(self) -> None:
        """End it, whatever it does. Safe to call twice."""


class Process:
    """Implements `Learner` with a process, which ends when this one does."""

    def __init__(self, task: Task) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "specx.engine.making.adapt"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is not meant for it
            env={**os.environ, "OMP_NUM_THREADS": str(task.threads)},
        )
        self._said = ""
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        self._tell(json.dumps(asdict(task)))

    def go_on(self, *, working: bool) -> None:
        """Work, or wait."""
        self._tell("go" if working else "stop")

    def ended(self) -> Outcome | str | None:
        """What came of it, or why nothing did."""
        if self._reader.is_alive():
            return None
        self.stop()
        try:
            told = json.loads(self._said)
            return str(told["failed"]) if "failed" in told else Outcome(**told)
        except (ValueError, TypeError):
            return "the process that learns has ended"

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            self._said = self._process.stdout.readline()

    def _tell(self, line: str) -> None:
        with suppress(OSError, ValueError):  # it has ended
            assert self._process.stdin is not None
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


class Adapting:
    """Records texts, has a head learn from them, and says when there is a better one.

    Args:
        target: the model.
        store: where texts and heads are kept.
        costs: milliseconds of the target's steps, (W + 1,); None as long as they are not known.
        notice, explain: told what a person should know, and every decision.
        start: begins to learn; None for a `Process`.

    Attributes:
        renew: called with a better head, between two answers.
    """

    def __init__(
        self,
        target: GGUFInfo,
        store: Store,
        costs: Callable[[], NDArray[np.float64] | None],
        *,
        notice: Callable[[str], None],
        explain: Callable[[str], None],
        start: Callable[[Task], Learner] | None = None,
    ) -> None:
        self._target, self._store, self._costs = target, store, costs
        self._notice, self._explain, self._start = notice, explain, start or Process
        self.renew: Callable[[Candidate], None] = lambda _head: None
        self._head: Candidate | None = None
        self._recorder: Recorder | None = None
        self._learner: Learner | None = None
        self._lock: int | None = None
        self._new: int | None = None  # tokens that the target chose and nobody learned from, once counted
        self._learned = 0  # that the target chose, of what is being learned from
        self._writer: StatesWriter | None = None  # stays open: what a file has is checked once
        self._told = False

    def recorder(self, head: Candidate) -> Recorder | None:
        """What is to record for a head that is asked from now on; None if nothing is learned of it."""
        if self._target.path == head.path or read_head(head.path).block is not None:
            return None  # layers of the target itself are as they are, and blocks are not learned
        if self._lock is None:
            self._lock = self._store.claim(ADAPTED)
        if self._lock is None:
            self._notice("--adapt learns nothing: another specx adapts a head, or nothing can be kept")
            self._head = self._recorder = None
            self._told = True
            return None
        if self._head is None or self._paths(head) != self._paths(self._head):
            self._stop()
            self._leave_file()
            self._new = None
        self._head = head
        width, scale = own_width(self._target), widened_by(self._target)
        most = min(HELD, DISK // 2 // layout_of(self._target, head.layers, RECORDED).token_bytes)
        self._recorder = Recorder(len(head.layers), width, scale, most)
        return self._recorder

    def beside(
        self, writing: Callable[[Source], Iterator[Found]], source: Source
    ) -> Generator[Found, None, None]:
        """What `writing` gives of a source, with something learned only while nothing arrives there."""
        self.busy()
        try:
            yield from writing(source if isinstance(source, Iterable) else _Between(self, source))
        finally:
            self.idle()

    def busy(self) -> None:
        """An answer is asked for: stop learning; a better head takes its place."""
        if self._learner is not None:
            self._learner.go_on(working=False)
            self._hear()

    def idle(self) -> None:
        """Nothing is asked: keep what was recorded, and learn from it if there is enough."""
        if self._recorder is None or self._head is None:
            if not self._told and self._head is None:
                self._told = True
                self._notice("--adapt has no head to adapt: specx drafter train makes one")
            return
        try:
            new = self._keep(self._recorder)
            if self._learner is not None:
                self._learner.go_on(working=True)
            elif new >= max(ENOUGH, MORE * self._known()):
                self._begin(self._head)
        except (FileError, OSError) as error:  # of a file, or there can be no process
            why = error.message if isinstance(error, FileError) else error.strerror or error
            self._notice(f"--adapt goes no further: {why}")
            self.close()

    def finish(self, wait: Callable[[], None]) -> None:
        """Wait until nothing is learned any more; `wait` is called again and again meanwhile."""
        self.idle()
        while self._learner is not None:
            wait()
            self._hear()

    def close(self) -> None:
        """Learn no more; what was learned since the last better head is lost. Safe to call twice."""
        if self._learner is not None:
            self._over()
        self._stop()
        self._leave_file()
        self._recorder = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _stop(self) -> None:
        if self._learner is not None:
            self._learner.stop()
            self._learner = None

    def _paths(self, head: Candidate) -> tuple[Path, Path]:
        """Where its texts are kept, and where it goes when it is better."""
        path = adapted_path(self._store, self._target, head)
        assert path is not None  # else it would not have been claimed
        return path.with_suffix(".states"), path

    def _known(self) -> int:
        """Tokens that the target chose and that were learned from before, in whatever process."""
        assert self._head is not None
        known = self._store.load_json(ADAPTED, self._paths(self._head)[1].stem) or {}
        chosen = known.get("chosen")
        return chosen if isinstance(chosen, int) else 0

    def _note(self, chosen: int) -> None:
        """So many are learned from."""
        assert self._head is not None
        self._store.save_json(ADAPTED, self._paths(self._head)[1].stem, {"chosen": chosen})

    def _keep(self, recorder: Recorder) -> int:
        """Append what was recorded to the file of texts; how many tokens are new."""
        assert self._head is not None
        texts = recorder.take()
        if texts:
            path = self._paths(self._head)[0]
            layout = layout_of(self._target, self._head.layers, RECORDED)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._writer is None or not self._writer.intact:
                self._leave_file()
                self._writer = _writer(path, layout)
            for text in texts:
                self._writer.append(text)
                if self._new is not None:
                    self._new += len(text.tokens) - text.start
            if self._new is None:
                self._new = max(StatesFile(path, layout).chosen - self._known(), 0)
            if self._writer.bytes > DISK:
                self._leave_file()
                self._halve(path, layout)
        return self._new or 0

    def _leave_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _halve(self, path: Path, layout: Layout) -> None:
        """Leave the newer half of the texts."""
        states, shorter = StatesFile(path, layout), path.with_name(f".{path.name}.tmp")
        half = len(states) // 2
        first = -(-half // HELD_BACK) * HELD_BACK  # what was held back stays so
        first = first if first < len(states) else half
        shorter.unlink(missing_ok=True)
        with _writer(shorter, layout) as writer:
            for i in range(first, len(states)):
                writer.append(states[i])
        shorter.replace(path)
        left = StatesFile(path, layout).chosen
        gone = states.chosen - left  # of the oldest, from which was learned first
        self._new, self._learned = min(self._new or 0, left), max(self._learned - gone, 0)
        self._note(max(self._known() - gone, 0))

    def _begin(self, head: Candidate) -> None:
        """Start to learn, if there is memory for it."""
        free = available_memory()
        if free is not None and free < 2 * MEMORY:
            self._explain("nothing is learned: too little memory is free")
            return
        costs, (states, output) = self._costs(), self._paths(head)
        chosen = StatesFile(states, layout_of(self._target, head.layers, RECORDED)).chosen
        task = Task(
            str(self._target.path),
            str(head.path),
            str(states),
            str(output),
            RECORDED,
            max(this_cpu().default_threads // 2, 1),
            MEMORY,
            () if costs is None else tuple(costs.tolist()),
            chosen,
        )
        self._learner = self._start(task)
        self._learned, self._new = chosen, 0

    def _hear(self) -> None:
        """Take over what came of it, if it is over."""
        assert self._learner is not None and self._head is not None
        outcome = self._over()
        if outcome is None:
            return
        self._stop()
        if isinstance(outcome, str):
            self._notice(f"the draft head {self._head.name} was not adapted: {outcome}")
            return
        said = f"{outcome.before:.2f} tokens a step on text held back"
        if not outcome.better:
            self._explain(f"the draft head {self._head.name} stays as it is ({said}): {outcome.why}")
            return
        try:
            better = check_adapted(self._target, self._paths(self._head)[1])
        except (ModelError, OSError):
            better = None
        if better is not None:
            self._notice(f"the draft head was adapted to your texts: {outcome.after:.2f} instead of {said}")
            self._head = better
            self.renew(better)

    def _over(self) -> Outcome | str | None:
        """What came of it if it is over: then it is known what was learned from."""
        assert self._learner is not None
        outcome = self._learner.ended()
        if outcome is not None:
            self._note(self._learned)
        return outcome


def _writer(path: Path, layout: Layout) -> StatesWriter:
    """Appends texts to a file that only its owner can read; what is no such file is begun anew."""
    path.touch(0o600)
    try:
        return StatesWriter(path, layout)
    except FileError:
        path.unlink(missing_ok=True)
        path.touch(0o600)
        return StatesWriter(path, layout)


class _Between(Arrivals):
    """Arrivals that somebody learns between."""

    def __init__(self, adapting: Adapting, arrivals: Arrivals) -> None:
        self._adapting, self._arrivals = adapting, arrivals

    def take(self, wait: bool) -> Generation | None:
        """The next one."""
        found = self._arrivals.take(False)
        if found is not None or not wait:
            return found
        self._adapting.idle()
        try:
            return self._arrivals.take(True)
        finally:
            self._adapting.busy()
