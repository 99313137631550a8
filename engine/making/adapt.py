"""Adapting a draft head: it learns from what one person has the model write, in a process of its own.

The process does what it is told: it works while its owner has nothing else to do, and ends when its owner
does. Nothing but a head that is better is ever written, so it may be ended at any time.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

import numpy as np

from specx.backends.errors import SpecxError, unexpected
from specx.backends.gguf.file import GGUFInfo, read_gguf
from specx.backends.gguf.head_target import HEAD_ADAPTED, HEAD_TRAINED, own_width
from specx.backends.gguf.heads import read_head
from specx.drafters.train.states import Layout, StatesFile
from specx.engine.cost.rate import chain_rate
from specx.engine.setup.layers import step_bytes

if TYPE_CHECKING:
    from specx.drafters.train.batches import Batches
    from specx.drafters.train.chains import Acceptance
    from specx.drafters.train.head import Head
    from specx.drafters.train.loop import Trainer

__all__ = ["ENOUGH", "Outcome", "Task", "adapt", "layout_of"]

HELD_BACK = 4  # one text in so many is not learned from
ENOUGH = 1024  # tokens that the target chose, from which on there is something to learn
LEAST_HELD = 200  # of them held back
MEASURED_TOKENS = 4000  # held back, and looked at: the newest
PASSES, UPDATES = 8, 120  # over the text and batches, at most: whichever is more
ROUNDS = 10  # how often what was learned is measured meanwhile
PATIENCE = 2  # rounds that did not pay after which it ends
RATE = 3e-4  # of learning
GAIN = 1.03  # times as many tokens a step are worth another head
SURE = 2.5  # standard deviations, as the best of several rounds is lucky
PRICE = 0.1  # seconds of waiting that a second of idle time is worth
NICE = 19


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done.

    Attributes:
        target: the model.
        head: the head as it is now.
        states: what the target computed of a person's text.
        output: where the head goes if it is better.
        recorded: scores of each token in `states`.
        threads: CPU threads.
        memory: bytes that may be used.
        costs: (W + 1,) milliseconds of the target's steps; empty if they are not known.
        expected: tokens that will be written with it, about.
        seed: of everything that is drawn.
    """

    target: str
    head: str
    states: str
    output: str
    recorded: int
    threads: int
    memory: int
    costs: tuple[float, ...] = ()
    expected: int = 0
    seed: int = 0

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError or TypeError if `text` is none."""
        values = json.loads(text)
        return cls(**{**values, "costs": tuple(values["costs"])})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        before, after: mean tokens of a step on text held back; the same if it is no better.
        tokens: that the target chose, in what was learned from.
        held: in what was held back.
        seconds: of work.
        why: it ended (one clause).
        better: whether the head was written.
    """

    before: float
    after: float
    tokens: int
    held: int
    seconds: float
    why: str
    better: bool = False


def layout_of(target: GGUFInfo, layers: Sequence[int], recorded: int) -> Layout:
    """What the arrays of captured texts are."""
    return Layout(target.fingerprint, tuple(layers), own_width(target), recorded)


def adapt(
    task: Task, between: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.monotonic
) -> Outcome:
    """Let a head learn from a person's text, and write it if it is better on text held back.

    Args:
        task: what is to be done.
        between: called between two batches; time spent in it is nobody's.
        clock: seconds.

    Raises:
        SpecxError: it cannot be read or written, or memory does not suffice.
    """
    target, made = read_gguf(Path(task.target)), read_head(Path(task.head))
    states = StatesFile(Path(task.states), layout_of(target, made.layers, task.recorded))
    learned, held = _divided(states)
    chosen = {which: sum(states.length(i) - states.start(i) for i in which) for which in (learned, held)}
    if chosen[learned] < ENOUGH or chosen[held] < LEAST_HELD:
        return Outcome(0.0, 0.0, chosen[learned], chosen[held], 0.0, "there is too little text")
    work = _Work(task, target, made.info, states, (learned, held), between, clock)
    return work.run(chosen[learned], chosen[held])


def _divided(states: StatesFile) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Texts that are learned from, and the newest of those that are held back."""
    every = range(len(states))
    held, tokens = [], 0
    for i in reversed([i for i in every if i % HELD_BACK == HELD_BACK - 1]):
        if tokens < MEASURED_TOKENS:
            held.append(i)
        tokens += states.length(i)
    return tuple(i for i in every if i % HELD_BACK != HELD_BACK - 1), tuple(sorted(held))


class _Work:
    """A head on the way to a better one."""

    def __init__(
        self,
        task: Task,
        target: GGUFInfo,
        made: GGUFInfo,
        states: StatesFile,
        texts: tuple[Sequence[int], Sequence[int]],
        between: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        from specx.drafters.train.loaded import trained_further

        self._task, self._target, self._made = task, target, made
        self._between, self._clock = between, clock
        self._draft_share = step_bytes(made) / step_bytes(target)
        self._trainer: Trainer
        self._trainer, learned, self._held, self._rows = trained_further(
            target, made, states, texts,
            rate=RATE, seed=task.seed, memory=task.memory, threads=task.threads,
        )  # fmt: skip
        self._batches = len(learned.epoch(0))
        self._begun, self._paused = clock(), 0.0

    def run(self, learned: int, held: int) -> Outcome:
        """Learn as long as it pays."""
        before = best = self._measured(self._trainer.head)
        weights, last, since = self._weights(), self._seconds, 0
        why = "the text was read often enough"
        updates = max(PASSES * self._batches, UPDATES)
        for number in range(ROUNDS):
            for i in range(number * updates // ROUNDS, (number + 1) * updates // ROUNDS):
                self._trainer.learn(i / updates)
                self._pause()
            found = self._measured(self._trainer.head)
            took, last = self._seconds - last, self._seconds
            worth_s = self._saved_s(best, found) * PRICE
            if found.length > best.length:
                best, weights = found, self._weights()
            since = 0 if worth_s > took else since + 1
            if since >= PATIENCE:
                why = "it no longer pays"
                break
        better = self._is_better(before, best) and self._write(before, weights, learned, held)
        after = best.length if better else before.length
        return Outcome(before.length, after, learned, held, self._seconds, why, better)

    @property
    def _seconds(self) -> float:
        """Of work so far."""
        return self._clock() - self._begun - self._paused

    def _pause(self) -> None:
        start = self._clock()
        self._between()
        self._paused += self._clock() - start

    def _saved_s(self, before: Acceptance, now: Acceptance) -> float:
        """Seconds that the tokens which are expected would take less; without end where nothing is known of
        the target's steps and it is better at all."""
        if not self._task.costs:
            return float("inf") if now.length > before.length else 0.0
        costs = np.array(self._task.costs)
        draft_ms = self._draft_share * float(costs[1])
        rates = (
            chain_rate(costs, draft_ms=draft_ms, acceptance=each.to_json()["by_step"]).rate
            for each in (before, now)
        )
        ms = [1 / rate for rate in rates]
        return self._task.expected * (ms[0] - ms[1]) / 1e3

    def _is_better(self, before: Acceptance, now: Acceptance) -> bool:
        """Whether it surely gives more tokens a step, and enough more."""
        from specx.drafters.train.chains import deviations

        return now.length >= GAIN * before.length and deviations(before, now) >= SURE

    def _measured(self, head: Head) -> Acceptance:
        """What is accepted of text held back."""
        from specx.drafters.train.chains import measure_chains

        head.eval()
        with self._trainer.precision():
            found = measure_chains(head, self._each(self._held), self._rows.ids)
        head.train()
        return found

    def _each(self, batches: Batches) -> Any:
        for batch in batches.each(batches.windows):
            self._pause()
            yield batch

    def _weights(self) -> dict[str, Any]:
        head = self._trainer.head
        return {name: weight.detach().clone() for name, weight in head.named_parameters()}

    def _write(self, before: Acceptance, weights: dict[str, Any], learned: int, held: int) -> bool:
        """Write the head, and put it in its place if it is still better as it was quantized."""
        from specx.drafters.train.export import write_head
        from specx.drafters.train.loaded import EMBEDDING, read_trained

        output, shape = Path(self._task.output), self._trainer.head.shape
        adapts = HEAD_ADAPTED in self._made.metadata
        trial = output.with_name(f".{output.name}.tmp")
        values = {name: weight.float().numpy() for name, weight in weights.items()}
        told = _trained(self._made)
        first = str(self._made.metadata.get("specx.made.from")) if adapts else self._made.path.name
        source = replace(self._made, path=self._made.path.with_name(first))
        gained = {"before": round(before.length, 3), "tokens": learned, "held": held}
        own = next((tensor.type for tensor in self._made.tensors if tensor.name == EMBEDDING), None)
        try:
            for _ in range(2):  # what it brought is known once it was written
                write_head(
                    trial, values, shape, self._rows.ids, self._target,
                    trained=told, adapted=(source, gained), embedding=own,
                )  # fmt: skip
                if "after" in gained:
                    break
                found = self._measured(read_trained(self._target, read_gguf(trial))[0])
                if not self._is_better(before, found):
                    return False
                gained = {**gained, "after": round(found.length, 3)}
                told = {**told, **found.to_json()}
            trial.replace(output)
        finally:
            trial.unlink(missing_ok=True)
        return True


def _trained(made: GGUFInfo) -> dict[str, Any]:
    """How a head was trained, as far as its file says."""
    try:
        told = json.loads(str(made.metadata.get(HEAD_TRAINED, "")))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


class _Owner:
    """Who started this process: says when to work, and hears what came of it.

    Args:
        commands: lines "go" and "stop"; their end is the end.
    """

    def __init__(self, commands: TextIO) -> None:
        self._commands, self._may = commands, threading.Event()
        self._may.set()
        threading.Thread(target=self._listen, daemon=True).start()

    def wait(self) -> None:
        """Until it may go on."""
        self._may.wait()

    def _listen(self) -> None:
        for line in self._commands:
            (self._may.set if line.strip() == "go" else self._may.clear)()
        os._exit(0)


def main() -> None:
    """One task from standard input; what came of it goes to standard output, as one line of JSON."""
    if hasattr(os, "nice"):
        os.nice(NICE)
    task = Task.from_json(sys.stdin.readline())
    owner = _Owner(sys.stdin)
    try:
        told: dict[str, Any] = asdict(adapt(task, owner.wait))
    except SpecxError as problem:
        told = {"failed": problem.message}
    except Exception as problem:  # noqa: BLE001 -- the owner says it; nobody sees this process
        told = {"failed": unexpected(problem, "").message}
    with suppress(OSError):
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
    os._exit(0)  # the thread that listens waits for ever


if __name__ == "__main__":
    main()
