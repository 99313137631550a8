"""What changes in the middle of a generation is followed within some fifty steps: the text or the machine."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from specx.backends.base import Facts, Output
from specx.drafters.base import Text, Verified
from specx.drafters.free import FreeDrafter
from specx.engine.budget import Budget
from specx.engine.cost.staircase import Staircase
from specx.engine.learned.lengths import Outlook
from specx.engine.plan import Plan

VOCAB = 500
STEPS = {1: 10.0, 2: 11.0, 4: 12.0, 8: 15.0, 16: 20.0, 32: 32.0}
FOLLOWED = 50  # steps
HOST_MS = 0.1
FACTS = Facts(n_ctx=1 << 20, max_width=32, max_leaves=1)


class World:
    """A text that is already known, and a machine that takes as long as it is told to."""

    def __init__(self, text):
        self.text = np.asarray(text, np.int32)
        self.staircase = Staircase(32)
        self.staircase.load_json({"0": {str(n): ms for n, ms in STEPS.items()}})
        self.truth = self.staircase.costs(0).copy()
        self.plan = Plan(self.staircase)
        self.written = Text(self.text[:2].tolist())
        self.drafting = FreeDrafter(VOCAB).start(self.written)
        self.budget = Budget()
        self.outlook = Outlook()
        self.record = []  # (first token, emitted tokens, width, expected ms, real ms)

    @property
    def at(self):
        return self.written.position

    @property
    def cache(self):
        return SimpleNamespace(length=self.at - 1, room=FACTS.n_ctx, again=(), max_leaves=FACTS.max_leaves)

    def step(self, slower=1.0):
        at, decision = self.at, self.plan.choose([self], FACTS)
        [part] = decision.parts
        draft = part.draft
        accepted = 0
        while accepted < len(draft) and draft.tokens[accepted] == self.text[at + accepted]:
            accepted += 1
        real = float(self.truth[len(draft) + 1]) * slower
        emitted = self.text[at : at + accepted + 1].tolist()
        self.plan.observe(decision, [self], [at - 1], [accepted], real, HOST_MS)
        logits = np.full((len(draft) + 1, VOCAB), -9.0, np.float32)
        for row in range(accepted + 1):
            logits[row, self.text[at + row]] = 9.0
        self.written.append(emitted)
        self.drafting.observe(Verified(emitted, draft, Output(logits)))
        self.record.append((at, len(emitted), len(draft) + 1, decision.cost_ms, real + HOST_MS))

    def rate(self, steps):
        """Tokens per millisecond over some steps, in units of plain decoding."""
        return sum(s[1] for s in steps) / sum(s[4] for s in steps) * (self.truth[1] + HOST_MS)


def repeating(rng, n, period=60):
    return np.resize(rng.integers(0, VOCAB, period), n)


def new(rng, n):
    return rng.integers(0, VOCAB, n)


@pytest.mark.parametrize("seed", range(5))
def test_another_kind_of_text(seed):
    rng = np.random.default_rng(seed)
    parts = [new(rng, 300), repeating(rng, 900), new(rng, 300), repeating(rng, 900), [0] * 64]
    world = World(np.concatenate(parts))
    ends = np.cumsum([len(part) for part in parts])[:4]
    while world.at < ends[-1]:
        world.step()
    phases = [
        [s for s in world.record if low <= s[0] < high] for low, high in zip([0, *ends], ends, strict=False)
    ]
    for phase in (phases[0], phases[2]):  # nothing can be guessed here
        assert world.rate(phase[FOLLOWED:]) > 0.95
    # The first period of a repetition is new as well.
    assert world.rate([s for s in phases[1] if s[0] >= ends[0] + 60][FOLLOWED // 5 :]) > 4
    assert world.rate([s for s in phases[3] if s[0] >= ends[2] + 60][FOLLOWED // 5 :]) > 4


@pytest.mark.parametrize("slower", [0.6, 1.5, 3.0])
def test_another_speed_of_the_whole_machine(slower):
    """Thermal throttling, or another process: prices are right again, whatever is decoded."""
    rng = np.random.default_rng(1)
    world = World(np.concatenate([repeating(rng, 6000), [0] * 64]))
    for _ in range(60):
        world.step()
    for _ in range(FOLLOWED):
        world.step(slower)
    for _ in range(10):
        world.step(slower)
    expected, real = (np.array([s[i] for s in world.record[-10:]]) for i in (3, 4))
    np.testing.assert_allclose(expected, real, rtol=0.1)
    if slower > 1:
        for _ in range(2 * FOLLOWED):
            world.step()
        expected, real = (np.array([s[i] for s in world.record[-10:]]) for i in (3, 4))
        np.testing.assert_allclose(expected, real, rtol=0.1)


@pytest.mark.parametrize("dearer", [1.8, 2.5, 5.0])
def test_wide_steps_that_become_dear(dearer):
    """Another process takes what the wide steps lived on: only they are slower, and drafts get short."""
    rng = np.random.default_rng(2)
    text = np.concatenate([np.resize([*new(rng, 40), int(rng.integers(VOCAB))], 9000), [0] * 64])
    world = World(text)
    for _ in range(60):
        world.step()
    assert np.mean([s[2] for s in world.record[-20:]]) > 16
    world.truth = world.truth * np.where(np.arange(33) > 4, dearer, 1.0)
    for _ in range(FOLLOWED):
        world.step()
    later = [world.step() or world.record[-1] for _ in range(30)]
    best = max(n / world.truth[n] for n in range(1, 33)) * world.truth[1]
    assert world.rate(later) > 0.9 * best
