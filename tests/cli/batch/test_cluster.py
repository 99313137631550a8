"""`specx batch --ray` on a Ray cluster of two nodes on this machine. Skipped where Ray is not installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")

LOCAL = Path(__file__).with_name("local_ray.py")
ITEMS = 60
SETTINGS = (
    "--seed",
    "3",
    "-np",
    "2",
    "--kernels",
    "specx",
    "-t",
    "1",
    "-c",
    "512",
    "--ignore-eos",
    "--no-cache",
)

MISSING = """
import os, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "specx.engine.batch.cluster" and os.path.exists(__file__ + ".ill"):
            raise ModuleNotFoundError("No module named 'specx'")

sys.meta_path.insert(0, Missing())
"""  # on every node: there is no specx while a file says so


@pytest.fixture(scope="module")
def ill(tmp_path_factory):
    """The file that does that."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "sitecustomize.py").write_text(MISSING)
    return folder / "sitecustomize.py.ill"


@pytest.fixture(scope="module")
def cluster(ill):
    """A process that holds one: its address, and a way to lose a node."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(LOCAL)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ill.parent)},
    )
    address = process.stdout.readline().strip()
    if not address:
        pytest.skip(f"no Ray cluster can be started here: {process.communicate()[1][-500:]}")
    try:
        yield process, address
    finally:
        try:
            process.communicate(timeout=60)  # which ends its input
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="module")
def job(write_tiny, tmp_path_factory):
    """A folder with a model, an input, and what `specx batch` makes of it on this machine alone."""
    folder = tmp_path_factory.mktemp("job")
    write_tiny(folder / "tiny.gguf", "llama")
    lines = [
        {"custom_id": f"q{n}", "method": "POST", "url": "/v1/completions",
         "body": {"prompt": f"Number {n}", "max_tokens": 40 + n % 9}}
        for n in range(ITEMS)
    ]  # fmt: skip
    lines[7]["body"]["temperature"] = "hot"  # each line's error is its own
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run(folder, "alone.jsonl")
    assert done.returncode == 3, done.stderr
    return folder


def command(folder, output, *more):
    specx = [sys.executable, "-P", "-m", "specx.cli", "batch", str(folder / "tiny.gguf")]
    return [*specx, str(folder / "in.jsonl"), "-o", str(folder / output), *SETTINGS, *more]


def run(folder, output, *more):
    """One run to its end."""
    return subprocess.run(
        command(folder, output, *more), capture_output=True, text=True, check=False, timeout=300
    )


def records(path):
    """Every line without what differs from run to run."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        body = row["response"]["body"]
        for name in ("created", "timings", "system_fingerprint"):
            body.pop(name, None)
        body.get("usage", {}).pop("prompt_tokens_details", None)  # what neighbours began with
    return rows


def test_the_same_lines_in_the_same_order(cluster, job):
    done = run(job, "ray.jsonl", "--ray", cluster[1])
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert records(job / "ray.jsonl") == records(job / "alone.jsonl")


def test_an_output_that_was_begun_here_is_gone_on_with_there(cluster, job):
    whole = (job / "alone.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (job / "half.jsonl").write_bytes(b"".join(lines[:20]) + lines[20][:30])  # torn in the middle of a line
    for name in os.listdir(job):
        if name.startswith(".alone.jsonl") or name.startswith("alone.jsonl."):
            (job / name.replace("alone", "half")).write_bytes((job / name).read_bytes())
    done = run(job, "half.jsonl", "--resume", "--ray", cluster[1])
    assert done.returncode == 3, done.stderr
    assert records(job / "half.jsonl") == records(job / "alone.jsonl")
    assert (job / "half.jsonl").read_bytes().startswith(b"".join(lines[:20]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("source", ["long.jsonl", "-"])
def test_a_signal_ends_it_with_its_code_and_whole_lines(cluster, job, number, source):
    """Also while a pipe is read in which nobody writes any more."""
    output = job / f"{number.name}-{source[:4]}.jsonl"
    line = '{"prompt": "Number", "max_tokens": 400}\n'
    (job / "long.jsonl").write_text(line * 400)
    specx = [sys.executable, "-P", "-m", "specx.cli", "batch", str(job / "tiny.gguf"), source]
    batch = subprocess.Popen(
        [*specx, "-o", str(output), *SETTINGS, "--ray", cluster[1]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=job,
    )
    deadline = time.monotonic() + 120
    if source == "-":  # as much as a pipe holds several times: then its items are being read
        batch.stdin.write(line * 8000)
        batch.stdin.flush()
    while source != "-" and batch.poll() is None and time.monotonic() < deadline:
        if output.exists() and output.read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.01)
    batch.send_signal(number)
    try:
        code = batch.wait(timeout=60)
    finally:
        batch.kill()
    out, err = batch.communicate()
    assert code == 128 + number, err
    assert out == ""
    lines = [line for line in err.splitlines() if " done, " not in line]
    assert lines[0] == f"{number.name}: stopping"
    assert len(lines) == 2, err  # the other is the summary, and there are no words of Ray
    assert output.read_bytes()[-1:] in (b"", b"\n")


def test_nodes_without_specx_end_it_with_an_error_that_names_one(cluster, job, ill):
    ill.touch()
    try:
        done = run(job, "ill.jsonl", "--ray", cluster[1])
    finally:
        ill.unlink()
    assert done.returncode == 1, done.stderr
    told, hint = [line for line in done.stderr.splitlines() if " done, " not in line]
    assert told.startswith(f"error: the cluster failed on the node {cluster[1].rpartition(':')[0]}: ")
    assert told.endswith("ModuleNotFoundError: No module named 'specx'")
    assert "--resume" in hint
    assert (job / "ill.jsonl").read_bytes() == b""


def test_a_token_that_the_model_does_not_have_is_wrong_usage(cluster, job):
    alone = run(job, "bias.jsonl", "-l", "999999+1")
    there = run(job, "bias.jsonl", "-l", "999999+1", "--ray", cluster[1])
    assert there.returncode == alone.returncode == 2
    assert there.stderr == alone.stderr.splitlines(keepends=True)[-2] + alone.stderr.splitlines(True)[-1]


def test_an_address_that_is_empty_is_wrong_usage(job):
    done = run(job, "none.jsonl", "--ray", "")
    assert done.returncode == 2
    assert "error: --ray names no cluster" in done.stderr


def test_where_there_is_no_cluster(job):
    done = run(job, "none.jsonl", "--ray", "127.0.0.1:9")
    assert done.returncode == 1
    assert "error: no Ray cluster can be reached at 127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_node_that_is_lost_in_the_middle_loses_and_doubles_nothing(cluster, job):
    """The last test of the cluster: it has one node afterwards."""
    process, address = cluster
    batch = subprocess.Popen(
        command(job, "lost.jsonl", "--unordered", "--ray", address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    output = job / "lost.jsonl"
    while batch.poll() is None and time.monotonic() < deadline:
        if output.exists() and output.read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.01)
    process.stdin.write("lose\n")
    process.stdin.flush()
    assert process.stdout.readline() == "lost\n"
    out, err = batch.communicate(timeout=240)
    assert batch.returncode == 3, err
    assert out == ""

    def by_name(path):
        return sorted(records(path), key=lambda row: int(row["custom_id"][1:]))

    assert by_name(output) == records(job / "alone.jsonl")
