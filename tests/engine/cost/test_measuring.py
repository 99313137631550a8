"""Steps at a new depth are timed between those of texts, a little at a time."""

from __future__ import annotations

import pytest

from specx.backends.scripted import ScriptedCache, ScriptedModel, SimulatedClock
from specx.engine.cost.measuring import SHARE, BetweenSteps
from specx.engine.cost.staircase import MARKS, Staircase
from specx.engine.cost.timing import unwatched

STEPS = {n: 10.0 + n for n in range(1, 65)}


class Measured:
    """Texts on a model whose steps take `10 + n` milliseconds, and what is known of an empty context."""

    def __init__(self, texts=1, steps=STEPS):
        self.clock = SimulatedClock()
        self.model = ScriptedModel(8, step_costs=steps, clock=self.clock, max_texts=texts)
        self.caches = [self.model.open() for _ in range(texts)]
        self.staircase = Staircase(64, watch=unwatched)
        self.staircase.load_json({"0": {str(n): ms for n, ms in steps.items()}})
        self.between = BetweenSteps(self.staircase, self.clock)

    def write(self, seconds, *caches: ScriptedCache):
        """Widths that are timed in so many seconds of writing, and the longest of the pauses."""
        widths, longest, end = [], 0.0, self.clock() + seconds
        while self.clock() < end:
            start = self.clock()
            widths.append(self.between.go_on(caches))
            longest = max(longest, self.clock() - start)
            self.clock.sleep(0.01)
        return [n for n in widths if n], longest


def test_one_step_at_a_time_in_a_share_of_the_time():
    here = Measured()
    [cache] = here.caches
    assert here.write(0.5, cache) == ([], 0.0)  # nothing is new
    cache.prefill([1] * MARKS[2])
    widths, longest = here.write(20.0, cache)
    assert here.staircase.depths == [0, MARKS[2]]
    assert set(widths) == {1, 2, 4, 8, 16, 64}
    assert longest <= 2 * 0.074 + 1e-6  # the widest, and a first one that warms up
    for n in (1, 2, 4, 8, 16, 64):
        assert here.staircase.cost(n, MARKS[2]) == pytest.approx(STEPS[n], rel=0.01)
    here = Measured()
    here.caches[0].prefill([1] * MARKS[2])
    begun, _ = here.write(0.5, here.caches[0])
    assert here.staircase.depths == [0]
    assert sum(STEPS[n] for n in begun) / 1e3 < SHARE * 0.5 + 0.08  # and one step more


def test_it_goes_on_in_a_text_that_is_about_as_deep_and_in_no_other():
    here = Measured(texts=3)
    one, alike, deeper = here.caches
    one.prefill([1] * 1100)
    alike.prefill([1] * 1200)
    deeper.prefill([1] * 3000)
    first, _ = here.write(0.3, one)
    rest, _ = here.write(20.0, alike)
    assert here.staircase.depths == [0, 1100]
    assert len(first) > 0 and first[:2] == [1, 2] and 1 not in rest[:1]
    here = Measured(texts=3)
    one, _, deeper = here.caches
    one.prefill([1] * 1100)
    deeper.prefill([1] * 3000)
    here.write(0.3, one)
    widths, _ = here.write(20.0, deeper)
    assert here.staircase.depths == [0, 3000] and widths[:2] == [1, 2]  # from its beginning


def test_steps_that_would_take_long_are_left_out():
    here = Measured(steps={n: 50.0 * n for n in range(1, 65)})
    here.caches[0].prefill([1] * MARKS[2])
    widths, longest = here.write(60.0, *here.caches)
    assert here.staircase.depths == [0, MARKS[2]]
    assert set(widths) == {1, 2, 4} and longest <= 0.2 + 1e-6


def test_nothing_is_measured_before_the_first_time_or_without_room():
    here = Measured()
    here.caches[0].prefill([1] * (here.model.facts.n_ctx - 20))
    assert here.write(1.0, *here.caches) == ([], 0.0)
    here.staircase.load_json({})
    assert here.write(1.0, *here.caches) == ([], 0.0)
