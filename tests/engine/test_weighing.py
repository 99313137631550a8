"""Forecasts that are weighed at once, and one by one: what is asked is the same."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import takewhile

import numpy as np
import pytest

from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.drafters.base import Drafting, Text
from specx.drafters.free import FreeDrafter
from specx.drafters.guesser import GuessCosts
from specx.drafters.mixture import MixtureDrafter
from specx.drafters.model import DraftModel
from specx.engine.cost.staircase import Staircase
from specx.engine.decode import Job, decode
from specx.engine.plan import Plan
from specx.engine.sampling import Sampler
from specx.engine.settings import SamplingSettings


class Recorded(MixtureDrafter):
    """Writes down which offers are taken; `at_once` says whether they tell everything in one call."""

    def __init__(self, free, at_once):
        super().__init__(free)
        self.at_once, self.taken = at_once, []

    def start(self, text):
        return RecordedDrafting(self, super().start(text))


class RecordedDrafting(Drafting):
    def __init__(self, drafter, inner):
        self.drafter, self.inner = drafter, inner
        self.propose, self.observe = inner.propose, inner.observe

    def offers(self, room):
        for offer in self.inner.offers(room):
            told = offer.gain if self.drafter.at_once else None
            yield replace(offer, take=partial(self.take, offer), gain=told)

    def take(self, offer):
        self.drafter.taken.append((offer.first_ms, offer.most, len(self.drafter.taken)))
        return offer.take()


@pytest.mark.parametrize("leaves", [1, 4])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_is_asked_is_the_same_if_forecasts_are_weighed_one_by_one(leaves, temperature):
    def run(at_once):
        clock, rng = SimulatedClock(), np.random.default_rng(5)
        script = rng.integers(1, 60, 400)
        said = np.where(rng.random(400) < 0.85, script, rng.integers(1, 60, 400))
        costs = {1: 20.0, 4: 23.0, 8: 29.0, 16: 40.0, 32: 70.0}
        options = {"sharpness": 3.0, "max_width": 32, "clock": clock, "peak": 0.85}
        target = ScriptedModel(64, 4, script=script.tolist(), step_costs=costs, max_leaves=leaves, **options)
        model = ScriptedModel(64, 2, script=said.tolist(), step_costs={1: 2.0, 32: 6.0}, **options)
        drafter = Recorded(FreeDrafter(64), at_once)
        prices = GuessCosts(2.0, 0.3, 0.2, 0.0)
        drafter.guessers.append(DraftModel(lambda: model, n_ctx=4096, shared=64, costs=prices, clock=clock))
        text = Text(script[:10].tolist(), 3, temperature)
        sampler = Sampler(SamplingSettings(seed=3, temperature=temperature), 64)
        cache = target.open()
        cache.prefill(text.tokens[:-1])
        job = Job(text, cache, drafter.start(text), sampler)
        staircase, steps = Staircase(32), []
        staircase.load_json({"0": {str(n): ms for n, ms in costs.items()}})
        plan = Plan(staircase, clock=clock)
        for [step] in takewhile(lambda _: len(text.tokens) < 300, decode(target, [job], plan, clock=clock)):
            steps.append((step.draft.tokens.tolist(), step.tokens, step.spent))
        return drafter.taken, steps

    taken, steps = run(True)
    assert (taken, steps) == run(False)
    assert len({first_ms > 0 for first_ms, *_ in taken}) == 2 and len(taken) > 50  # checks and others
