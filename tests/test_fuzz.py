"""The short form of tests/fuzz/run.py: a few cases of each kind; the same ones each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "fuzz" / "run.py"


def fuzzed(kind: str, count: int, seed: int = 0) -> tuple[int, list[dict[str, object]]]:
    done = subprocess.run(
        [sys.executable, "-P", RUN, kind, str(count), str(seed)], capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    return done.returncode, lines


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded as Linux counts it")
def test_a_few_cases_of_each_kind_end_as_they_should():
    code, lines = fuzzed("all", 4, 7)
    assert [line for line in lines if "end" in line] == []
    assert code == 0
    counts = {line["kind"]: line for line in lines}
    assert set(counts) == {
        *("headers", "templates", "grammars", "schemas", "bodies", "requests", "hubs", "stores")
    }
    found = {kind: int(str(line.get("ok", 0))) for kind, line in counts.items()}
    assert found["headers"] and sum(found.values()) >= 12  # cases that are never any good find nothing


HARM = {
    "import os; os.abort()": "signal 6",
    "bytearray(3 << 30)": "MemoryError",
    "raise KeyError('x')": "KeyError: 'x'",
    "import os; os._exit(3)": "exit code 3",
    "signal.alarm(1)\nsignal.pause()": "more than 30 seconds",
    "signal.setitimer(signal.ITIMER_PROF, 0.1)\nwhile True: pass": "more than 30 seconds",
    "raise SpecxError('KeyError: x')": "KeyError passed on",
    "pass": "ok",
}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded as Linux counts it")
def test_what_it_looks_for_it_finds():
    script = (
        f"import sys; sys.path[:0] = [{str(RUN.parents[1])!r}]\n"
        "from fuzz import run\nimport json\nimport signal\n"
        f"for harm in {list(HARM)!r}:\n"
        "    run.KINDS['bodies'] = lambda world, source: exec(harm, run.__dict__)\n"
        "    print(json.dumps(run.tried(None, 'bodies', 0)))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ends) == len(HARM), done.stderr
    assert all(expected in end for expected, end in zip(HARM.values(), ends, strict=True)), ends
