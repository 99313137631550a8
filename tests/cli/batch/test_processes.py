"""Batches as processes: signals, pipes, full disks, and many kills."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest

PATIENCE = 240  # seconds that anything may take on a busy machine
BODY = b'{"prompt": "a", "max_tokens": %d, "ignore_eos": true}\n'


def records(data):
    return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(BODY % 10 * 200)
    return path


def until(process, path, size=1):
    """Wait until a file has so many bytes."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists() or path.stat().st_size < size:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_finishes_what_was_begun(start, source, tmp_path, number):
    output = tmp_path / "out.jsonl"
    process = start(source, "-o", output, "--parallel", "4", delay=0.02)
    until(process, output)
    process.send_signal(number)
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 128 + number
    found = records(output.read_bytes())
    assert 4 <= len(found) < 200 and all(len(line["choices"][0]["text"]) for line in found)
    assert [line["line"] for line in found] == list(range(1, len(found) + 1))
    assert b"left" in err and b"Traceback" not in err
    process = start(source, "-o", output, "--resume")
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and len(records(output.read_bytes())) == 200


def test_a_second_signal_drops_what_was_begun(start, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(BODY % 1 + BODY % 3000 * 9)
    process = start(source, "-o", output, "--parallel", "2", "-c", "4096", delay=0.02)
    until(process, output)
    process.send_signal(signal.SIGTERM)
    assert any(b"finishing" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert len(records(output.read_bytes())) == 1


def test_a_signal_ends_the_wait_for_a_pipe(start):
    process = start("-", "-n", "2")
    process.stdin.write(BODY % 2)
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["line"] == 1  # before the pipe has ended
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)
    assert process.returncode == 130 and b"Traceback" not in process.stderr.read()


def test_a_slow_pipe_holds_up_nobody(start):
    process = start("-")
    process.stdin.write(BODY % 40)
    process.stdin.flush()
    first = process.stdout.readline()
    process.stdin.write(BODY % 3 + BODY % 3)
    process.stdin.close()
    rest = process.stdout.read()
    assert process.wait(PATIENCE) == 0
    assert [record["line"] for record in records(first + rest)] == [1, 2, 3]


def test_nobody_reads_any_more(start, source):
    process = start(source, delay=0.005)
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert process.wait(PATIENCE) == 141
    assert b"Traceback" not in process.stderr.read()


def test_a_full_disk(start, source, tmp_path):
    output = tmp_path / "out.jsonl"

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start(source, "-o", output, preexec_fn=limited)
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1 and b"cannot write" in err and b"--resume" in err
    data = output.read_bytes()
    assert data.endswith(b"\n") and len(data) > 15_000 and all(records(data))
    process = start(source, "-o", output, "--resume")
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and len(records(output.read_bytes())) == 200


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_a_full_device(start, source):
    with open("/dev/full", "wb") as full:
        process = start(source, stdout=full)
        err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1 and b"No space left" in err and b"--resume" not in err


def test_what_is_read_is_not_what_is_written(start, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(BODY % 2)
    with path.open("ab") as output:
        process = start(path, stdout=output)
        err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 2 and b"is the input as well" in err
    with path.open("rb") as file:
        process = start("-", "-o", path, "--force", stdin=file)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and path.read_bytes() == BODY % 2


def test_an_output_that_is_removed_meanwhile(start, source, tmp_path):
    output = tmp_path / "out.jsonl"
    process = start(source, "-o", output, "--parallel", "2", delay=0.001)
    until(process, output)
    output.unlink()
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1 and b"removed" in err and b"Traceback" not in err


@pytest.mark.parametrize("change", ["shorter", "longer"])
def test_an_input_that_is_changed_while_it_is_read(start, tmp_path, change):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    long = BODY.replace(b"{", b'{"metadata": "' + b"x" * 100_000 + b'", ', 1) % 4
    source.write_bytes(long * 40)
    process = start(source, "-o", output, "--parallel", "2", delay=0.01)
    until(process, output)
    if change == "shorter":
        source.write_bytes(long * 5)
    else:
        with source.open("ab") as file:
            file.write(long * 5)
    err = process.communicate(timeout=PATIENCE)[1]
    done = len(records(output.read_bytes()))
    if change == "shorter":
        assert process.returncode == 1 and b"was changed" in err and f"{40 - done} left".encode() in err
    else:
        assert process.returncode == 0 and done == 45 and b"left" not in err


def test_killed_at_random_moments(tmp_path):
    """The short form of `faults.py --kills 200`."""
    script = os.path.join(os.path.dirname(__file__), "faults.py")
    seed = str(random.Random(5).randrange(100))
    done = subprocess.run(
        [sys.executable, "-P", script, "--kills", "12", "--seed", seed], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"12 runs killed" in done.stdout
