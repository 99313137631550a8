"""Who comes while others are written has a first token soon, on recorded step times and in simulated time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MOMENTS = 3
# Step times, and tokens of prompts that alone take no longer than what is promised anything.
PROMPTS = [
    *((name, tokens) for name in ("xeon-specx-135m", "zen5-specx-135m-1-thread") for tokens in (24, 128)),
    ("xeon-specx-1b", 24),
]


@pytest.fixture
def first_token(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import first_token

    yield first_token
    for name in ("first_token", "simulate"):
        sys.modules.pop(name, None)


def steps(name):
    return json.loads((BENCHMARKS / "staircases.json").read_text())[name]


@pytest.mark.parametrize(("name", "tokens"), PROMPTS)
def test_a_first_token_beside_seven_long_ones_is_at_most_three_times_as_late(first_token, name, tokens):
    found = first_token.worst(steps(name), tokens, MOMENTS, prompt=250, answer=80)
    assert len(found) == MOMENTS
    assert max(found) <= 3


def test_others_are_held_up_by_a_few_hundredths_at_most(first_token, monkeypatch):
    data = steps("xeon-specx-135m")
    at = 1.0
    kept = first_token.run(data, 24, at)
    import specx.engine.first_token as promises

    monkeypatch.setattr(promises, "PROMISE", 1e6)
    alone = first_token.run(data, 24, at)
    assert kept.first_ms < alone.first_ms
    assert kept.seconds < 1.03 * alone.seconds
