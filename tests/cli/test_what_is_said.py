"""Every screen says the same of a run: what was decided, and why."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from specx.backends.llama import kernels as ggml_device
from specx.engine.settings import Asked
from specx.engine.setup.decide import decide
from specx.engine.setup.here import Here
from specx.engine.setup.threads import ThreadTimes, save_threads

TIMES = ThreadTimes({1: {1: 1.0, 2: 2.0}, 8: {1: 2.0, 2: 1.0}, 32: {1: 2.0, 2: 1.0}})


def keep_measurements(asked):
    """Keep threads and kernels, as `probe` and an earlier run would."""
    here = Here.of(asked)
    save_threads(here.store, decide(asked, here).threads_key, TIMES)
    here.store.save_json("kernels", decide(asked, here).kernels_key, {"choice": "attention"})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            (),
            {
                "context": (4096, "the default (-c sets it)"),
                "threads": (1, "as measured"),
                "threads_batch": (2, "as measured"),
                "kernels": ("attention", "as measured"),
                "placement": ("all on CPU", "there is no GPU"),
                "cache_type_k": ("f16", "the default"),
                "drafter": ("auto", "the default"),
            },
        ),
        (
            ("-c", "300", "-t", "2", "-ctk", "q8_0", "--kernels", "stock", "--drafter", "none"),
            {
                "context": (512, "as asked, rounded up to a multiple of 256"),
                "threads": (2, "as asked"),
                "threads_batch": (2, "as many as for one token"),
                "kernels": ("stock", "as asked"),
                "cache_type_k": ("q8_0", "as asked"),
                "cache_type_v": ("f16", "the default"),
                "drafter": ("none", "as asked"),
                "draft_model": (None, "nothing asks one"),
            },
        ),
    ],
)
def test_plan_verbose_and_json_agree(specx, smollm2, flags, said):
    keep_measurements(Asked(smollm2))
    tables = specx("plan", str(smollm2), "--no-measure", *flags)
    planned = json.loads(specx("plan", str(smollm2), "--no-measure", "--json", *flags).out)["setup"]
    command = [sys.executable, "-P", "-m", "specx.cli", "complete", str(smollm2), "-p", "Once", "-n", "1"]
    done = subprocess.run(
        [*command, "--verbose", "--json", *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
    decided = json.loads(done.stdout)["setup"]
    if "-c" not in flags:  # what the command is asked to write bounds its context
        assert decided["context"] == {"value": 512, "why": "enough for all that can be written"}
        decided["context"] = planned["context"]
    assert decided == planned
    rows = [" ".join(line.split()) for line in tables.out.splitlines()]
    told = done.stderr.splitlines()
    assert len(told) < 40 and "llama_model_loader" not in done.stderr  # llama.cpp's log is not among it
    for name, choice in planned.items():
        if name == "changes":
            continue
        words, value = name.replace("_", " "), "none" if choice["value"] is None else choice["value"]
        assert f"{words} {value}, {choice['why']}" in rows
        assert f"{words}: {value}, {choice['why']}" in told or (name == "context" and "-c" not in flags)
    if ggml_device.unavailable():  # then nothing was compared, and it says so
        said = {name: choice for name, choice in said.items() if name != "kernels"}
    assert {name: (planned[name]["value"], planned[name]["why"]) for name in said} == said
