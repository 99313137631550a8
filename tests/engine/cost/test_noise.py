"""Decisions that noise cannot turn: first uses beside others, then quiet ones, on a simulated machine.

It has two CPUs. Others that do nothing but run take their share of them, and hold a step of two threads up
far longer than that; short bursts, a hot processor, a slow drift, a cold start and better and worse tenths of
a second come on top. What others had is seen as
it is on a real machine: in ticks of 10 ms, and as time that threads waited.
"""

from __future__ import annotations

import numpy as np
import pytest

from specx.backends.base import Want
from specx.backends.llama import kernels as ggml_device
from specx.backends.llama.kernels import ATTENTION, SPECX, STOCK
from specx.backends.machine.other_work import Work
from specx.backends.scripted import ScriptedCache, ScriptedModel
from specx.backends.store import Store
from specx.engine.cost import timing
from specx.engine.cost.measuring import give_up_provisional
from specx.engine.cost.rate import chain_rate
from specx.engine.cost.staircase import Staircase
from specx.engine.cost.timing import disturbs
from specx.engine.learned.knowledge import keep_staircase, kept_staircase
from specx.engine.setup.here import Here
from specx.engine.setup.kernels import choose_kernels, load_on_chosen

CPUS, TICK_S = 2, 0.01
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64)
SMALL = {  # milliseconds of a small model, in which kernels work in groups of rows
    "stock": (6.8, 9.6, 12.8, 13.5, 17.0, 19.5, 20.4, 18.2, 25.0, 26.0, 31.0, 46.0, 58.0, 110.0),
    "specx": (4.2, 4.4, 4.6, 4.7, 5.4, 5.8, 6.0, 6.1, 7.9, 8.4, 10.2, 15.0, 19.0, 36.0),
}
LARGE = {
    "stock": (30, 45, 50, 55, 68, 78, 86, 92, 112, 130, 165, 240, 315, 620),
    "specx": (28, 29, 30, 31, 33, 36, 39, 43, 50, 57, 78, 110, 150, 290),
}
TURNED = {"stock": SMALL["specx"], "specx": SMALL["stock"]}  # where llama.cpp's own are the right ones
SLOWER = {0: 1.0, 1: 9.0, 2: 12.0, 4: 20.0}  # times, a step beside so many others; as it was measured
SHARE = {0: 0.0, 1: 0.7, 2: 1.0, 4: 1.4}  # CPUs that they get meanwhile
COLD, COLD_S = 0.3, 0.06  # how much slower the first steps are, and how fast that goes
ALLOWED = 1.03  # times as slow as by a cache that was made in peace


class Room:
    """A machine, and what else happens on it.

    Args:
        seed: of everything that happens by chance.
        true: milliseconds of a step on a quiet machine, by kernels.
        load: processes that do nothing but run, from the seconds `begin` to `end`.
        hot: how much slower everything becomes in the first seconds.
    """

    def __init__(self, seed, true, *, load=0, begin=0.0, end=np.inf, hot=0.0):
        self.uneven = 0.02 if true is LARGE else 0.05  # as was measured: of short steps some have all of it
        self.rng = np.random.default_rng(seed)
        self.true = {name: np.interp(range(65), WIDTHS, steps) for name, steps in true.items()}
        self.true["attention"] = self.true["stock"] * 0.98
        self.load, self.begin, self.end, self.hot = load, begin, end, hot
        self.now = self.others_s = self.waited_s = 0.0
        self.next_burst = self.rng.exponential(0.3)
        self.woke, self.stretch = 0.0, np.random.default_rng(seed + 5000)
        self.until, self.worse = 0.0, 1.0

    def clock(self):
        return self.now

    def busy(self):
        return self.load if self.begin <= self.now < self.end else 0

    def sleep(self, seconds):
        self.others_s += seconds * min(self.busy(), CPUS)
        self.now += seconds

    def step(self, name, n):
        """Time of a step passes: some of it, then what happens meanwhile, until the work is done."""
        left = self.true[name][n] / 1e3 * (1 + abs(self.rng.normal(0, 0.01)))
        left *= 1 + self.hot * min(self.now / 3, 1.0) + 0.01 * np.sin(self.now)
        left *= 1 + COLD * np.exp((self.woke - self.now) / COLD_S)
        while left > 0:
            busy = self.busy()
            slower = SLOWER[busy] * self.rng.uniform(0.6, 1.4) if busy else 1.0
            worse = self.present()
            took = min(left * slower * worse, 0.05)
            self.now += took
            self.others_s += took * SHARE[busy]
            self.waited_s += took * (1 - 1 / slower) if busy else 0.0
            left -= took / slower / worse
        while self.next_burst < self.now:  # something short had one of the CPUs, and the step waited for it
            burst = self.rng.exponential(0.006)
            self.now, self.others_s, self.waited_s = (
                self.now + burst,
                self.others_s + burst,
                self.waited_s + burst,
            )
            self.next_burst = self.now + self.rng.exponential(0.3)

    def present(self):
        """How much slower it is in this tenth of a second, about: a processor's clock, and other guests."""
        if self.now >= self.until:
            self.until = self.now + self.stretch.exponential(0.1)
            self.worse = 1 + abs(self.stretch.normal(0, self.uneven))
        return self.worse

    def watch(self):
        then, others, waited = self.now, self.others_s, self.waited_s

        def seen():
            blur = self.rng.uniform(-TICK_S, TICK_S)
            had = max(0.0, self.others_s - others + blur)
            return disturbs(
                Work(self.now - then, CPUS, had, self.waited_s - waited, tick_s=CPUS**0.5 * TICK_S)
            )

        return seen

    def load_model(self, kernels):
        self.woke = self.now
        return Machine(self, kernels)


class Reading(ScriptedCache):
    def prefill(self, tokens, **options):
        model = self.model
        for _ in range(len(tokens) // 64):
            model.room.step(model.kernels.name, 64)
        super().prefill(tokens, **options)


class Machine(ScriptedModel):
    def __init__(self, room, kernels):
        super().__init__(8, max_width=64, n_ctx=1024, max_leaves=1, cache_class=Reading)
        self.room, self.kernels = room, kernels

    def forward(self, trees, want=Want.LOGITS):
        self.room.step(self.kernels.name, sum(map(len, trees)))
        return super().forward(trees, want)


def use(room, store, monkeypatch, *, steps=150):
    """A process: it is loaded, its steps are measured if they are not known, and it writes. Its kernels."""
    monkeypatch.setattr(timing.time, "sleep", room.sleep)
    here = Here(store, clock=room.clock)
    chosen = load_on_chosen(
        choose_kernels("auto", store, "key", here.notice), room.load_model, "key", here, watch=room.watch
    )
    name, key = chosen.kernels.value, f"key-{chosen.kernels.value}"
    staircase = kept_staircase(store, key, Staircase(64, watch=room.watch))
    give_up_provisional(staircase)
    cache = chosen.model.open()
    if staircase.needs_measuring(0):
        staircase.measure_first(cache, clock=room.clock)
        keep_staircase(store, key, staircase)
    for i in range(steps):
        width = (1, 8, 1, 4, 1, 16)[i % 6]
        before = room.now
        room.step(name, width)
        staircase.observe(width, 100, (room.now - before) * 1e3)
    keep_staircase(store, key, staircase)
    return name


def rate(room, store, name, acceptance):
    """True tokens per millisecond of what the kept table of `name` says is best."""
    staircase = kept_staircase(store, f"key-{name}", Staircase(64))
    assert not staircase.needs_measuring(0)
    best = chain_rate(staircase.costs(100)[:33], acceptance=acceptance)
    return best.tokens / room.true[name][best.drafted + 1]


@pytest.mark.parametrize("load", [0, 1, 2, 4])
@pytest.mark.parametrize("true", [SMALL, LARGE, TURNED], ids=["small", "large", "turned"])
def test_after_a_first_use_beside_others_a_quiet_one_decides_as_in_peace(monkeypatch, tmp_path, load, true):
    monkeypatch.setattr(ggml_device, "unavailable", lambda: None)
    right = {STOCK.name, ATTENTION.name} if true is TURNED else {SPECX.name}  # these two are nearly as fast
    for seed in range(20):
        store, peace = Store(tmp_path / f"{seed}"), Store(tmp_path / f"{seed}-peace")
        rng = np.random.default_rng(1000 * load + seed)
        begin, length = (0.0, np.inf) if seed % 2 else (rng.uniform(0, 2), rng.uniform(0.1, 3))
        first = Room(seed, true, load=load, begin=begin, end=begin + length, hot=0.08 * (seed % 3 == 0))
        use(first, store, monkeypatch)
        quiet = Room(seed + 100, true)
        kept, in_peace = use(quiet, store, monkeypatch), use(Room(seed, true), peace, monkeypatch)
        assert {kept, in_peace} <= right, seed
        for acceptance in (0.3, 0.6, 0.8, 0.95):
            as_in_peace = rate(quiet, peace, in_peace, acceptance)
            assert ALLOWED * rate(quiet, store, kept, acceptance) >= as_in_peace, (seed, acceptance)
