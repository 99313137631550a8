"""Whatever is wrong with a GGUF file, `specx` ends with a sentence: no signal, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("damage.py")


@pytest.mark.parametrize(("model", "part", "of"), [("full", 0, 24), ("sliding", 7, 40), ("recurrent", 5, 45)])
def test_every_damage_ends_in_a_text_or_a_sentence(tiny_models, model, part, of):
    every_damage(tiny_models[model], part, of)


@pytest.mark.parametrize(("model", "part"), [("qwen35", 3), ("lfm2moe", 20), ("nemotron_h_moe", 40)])
def test_every_damage_of_a_model_with_recurrent_states(tiny_hybrids, model, part):
    every_damage(tiny_hybrids[model], part, 50)


def every_damage(model, part, of):
    command = [sys.executable, "-P", str(SCRIPT), str(model), str(part), str(of)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(seen) > 20
    assert {one["code"] for one in seen} == {0, 1}
    for one in seen:
        errors = [line for line in one["err"].splitlines() if line.startswith("error: ")]
        assert len(errors) == one["code"], one
        assert "unexpected" not in one["err"], one
        assert "Traceback" not in one["err"], one
