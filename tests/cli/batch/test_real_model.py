"""Batches with a small real model, each run in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from specx.backends.llama import kernels as ggml_device

PATIENCE = 240
SMALL = ("-t", "1", "-tb", "1", "-ub", "64")
WORDS = ("red", "a long road home", "fox", "1, 2, 3,", "SELECT name FROM", "Once upon a time", "red")


@pytest.fixture
def run(smollm2, tmp_path):
    def start(*arguments, **options):
        environment = {**os.environ, "SPECX_CACHE": str(tmp_path / "cache"), "SPECX_KERNELS": "specx"}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "specx.cli", "batch", str(smollm2), *map(str, arguments), *SMALL],
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
            env=environment,
        )

    return start


def answers(path):
    """What was said, by the digests of the requests."""
    found = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        value = json.loads(line)
        body = value["response"]["body"] if "response" in value else value
        said = [choice.get("text") or choice["message"]["content"] for choice in body["choices"]]
        found[value["id"][-16:]] = said, body["usage"]["completion_tokens"]
    return found


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    bodies = [
        {"prompt": word, "max_tokens": 3 + 3 * i, "temperature": 0.8 * (i % 2), "n": 1 + i % 2}
        for i, word in enumerate(WORDS)
    ]
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    chat = {"messages": [{"role": "user", "content": "Name a color."}], "max_tokens": 12}
    path.write_text("".join(json.dumps(value) + "\n" for value in [*lines, *bodies, chat, chat]))
    return path


@pytest.mark.skipif(ggml_device.unavailable() is not None, reason="specx's kernels do not run here")
def test_the_same_bits_at_any_parallel_order_and_interruption(run, source, tmp_path):
    one, many, killed = (tmp_path / f"{name}.jsonl" for name in ("one", "many", "killed"))
    process = run(source, "-o", one, "-s", "11", "--parallel", "1", "--drafter", "none")
    assert process.communicate(timeout=PATIENCE) and process.returncode == 0
    expected = answers(one)
    assert len(expected) == 16 and sum(len(said) for said, _ in expected.values()) == 22

    process = run(source, "-o", many, "-s", "11", "--parallel", "8", "--unordered")
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, err.decode()
    assert answers(many) == expected

    process = run(source, "-o", killed, "-s", "11", "--parallel", "3")
    deadline = time.monotonic() + PATIENCE
    while not (killed.exists() and killed.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = run(source, "-o", killed, "--resume", "--parallel", "5")
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, err.decode()
    assert answers(killed) == expected
    assert b"done before" in err


def test_a_schema_for_every_row(run, tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("thing\nsky\ngrass\n")
    schema = '{"type": "object", "properties": {"color": {"enum": ["blue", "green"]}}, "required": ["color"]}'
    process = run(source, "--template", "Which color has the {thing}?", "-j", schema, "-o", output)
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, err.decode()
    import csv

    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["thing"] for row in rows] == ["sky", "grass"]
    assert all(json.loads(row["answer"])["color"] in ("blue", "green") for row in rows)
